"""A summary at the end of a training run: the paths of its results, and a picture of predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mmengine.dataset import pseudo_collate
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from fma_kernels.checks import require

#: Images per row of the picture: of a classifier's, and of a segmentor's (each with its truth and its prediction).
COLUMNS, TRIPLES = 10, 2


@HOOKS.register_module()
class RunSummaryHook(Hook):
    """After training, print where the checkpoint, the log and a picture of predictions are.

    The picture ``predictions.png`` in the work directory shows images of the validation set, evenly spaced over it,

    * of a classifier, each with the label that the trained model gives it, and with the true one where they differ;
    * of a segmentor, each beside its true and its predicted map, in the colours of the data set's palette, over a
      legend of the classes that occur. Pixels without a true class are black.

    Its title is the last value of a metric of the validation, if one is asked for.

    Args:
        num_images: number of images in the picture.
        metric: the metric, such as ``"mIoU"`` (in percent), as the log names it; None for no title.
    """

    priority = "LOWEST"  # after the last checkpoint was written

    def __init__(self, num_images: int = 40, metric: str | None = None):
        require(isinstance(num_images, int) and num_images >= 1, "num_images", num_images, "an integer >= 1")
        self.num_images, self.metric = num_images, metric

    def after_train(self, runner: Runner) -> None:
        """Draw the picture and print the paths of the results.

        Args:
            runner: the runner whose training has ended.
        """
        predicted = self._predict(runner) if runner.val_loop is not None else None
        if not is_main_process():
            return
        found = {
            "checkpoint": runner.message_hub.runtime_info.get("last_ckpt"),
            "log": Path(runner.log_dir, f"{runner.timestamp}.log"),
            "predictions": self._draw(runner, *predicted) if predicted else None,
        }
        lines = [f"  {name:<12}{path}" for name, path in found.items() if path is not None]
        runner.logger.info("\n".join(["Training has ended. Results:", *lines]))

    def _predict(self, runner: Runner) -> tuple[list[dict], list[BaseDataElement]]:
        """Items of the validation set, and what the model makes of them. A model may be sharded: all processes work."""
        dataset = runner.val_loop.dataloader.dataset
        count = min(self.num_images, len(dataset))
        items = [dataset[i] for i in np.linspace(0, len(dataset) - 1, count).astype(int)]

        training = runner.model.training
        runner.model.eval()
        with torch.no_grad():
            samples = [runner.model.test_step(pseudo_collate([item]))[0] for item in items]  # their sizes may differ
        runner.model.train(training)
        return items, samples

    def _draw(self, runner: Runner, items: list[dict], samples: list[BaseDataElement]) -> Path:
        """Write the picture and return its path."""
        draw = draw_maps if "pred_sem_seg" in samples[0] else draw_labels
        pictures = [_as_picture(item["inputs"]) for item in items]
        figure = draw(pictures, samples, runner.val_loop.dataloader.dataset.metainfo)
        scalars = runner.message_hub.log_scalars
        if f"val/{self.metric}" in scalars:
            figure.suptitle(f"validation {self.metric}: {scalars[f'val/{self.metric}'].current():.1f} %")
        path = Path(runner.work_dir, "predictions.png")
        figure.savefig(path, dpi=100)
        return path


def draw_labels(pictures: list[np.ndarray], samples: list[BaseDataElement], metainfo: dict) -> Figure:
    """Draw images under their labels.

    Args:
        pictures: images (H, W, 3) uint8, RGB.
        samples: their ``gt_label`` and ``pred_label``.
        metainfo: names of the classes, ``classes``.
    """
    classes = metainfo["classes"]
    figure, axes = _figure(len(pictures), COLUMNS, width=10, height=1.25)
    for axis, picture, sample in zip(axes, pictures, samples, strict=False):
        predicted, true = classes[int(sample.pred_label)], classes[int(sample.gt_label)]
        axis.imshow(picture)
        if predicted == true:
            axis.set_title(predicted, color="tab:green")
        else:
            axis.set_title(f"{predicted} (is {true})", color="tab:red")
    return figure


def draw_maps(pictures: list[np.ndarray], samples: list[BaseDataElement], metainfo: dict) -> Figure:
    """Draw images beside their true and their predicted maps, over a legend.

    Args:
        pictures: images (H, W, 3) uint8, RGB.
        samples: their ``gt_sem_seg`` and ``pred_sem_seg``, with ``data`` (1, H, W).
        metainfo: names and RGB colours of the classes, ``classes`` and ``palette``.
    """
    classes, palette = metainfo["classes"], metainfo["palette"]
    colors = np.zeros((256, 3), dtype=np.uint8)  # pixels without a class, such as ignored ones, stay black
    colors[: len(palette)] = palette
    maps = [[kind.data.squeeze(0).cpu().numpy() for kind in (s.gt_sem_seg, s.pred_sem_seg)] for s in samples]

    figure, axes = _figure(3 * len(pictures), 3 * TRIPLES, width=10, height=1.75)
    for axis, title in zip(axes, ["image", "truth", "prediction"] * min(TRIPLES, len(pictures)), strict=False):
        axis.set_title(title)
    for i, (picture, (true, predicted)) in enumerate(zip(pictures, maps, strict=True)):
        for axis, panel in zip(axes[3 * i :], (picture, colors[true], colors[predicted]), strict=False):
            axis.imshow(panel)
    occurring = sorted({i for pair in maps for one in pair for i in np.unique(one).tolist() if i < len(classes)})
    patches = [Patch(facecolor=colors[i] / 255, label=classes[i]) for i in occurring]
    per_row = 100 // (5 + len("".join(classes)) // len(classes))  # characters, one column being as wide as five
    figure.legend(handles=patches, loc="outside lower center", ncols=max(1, per_row), frameon=False, handlelength=1)
    return figure


def _figure(panels: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches in width, and per row in height, and its axes without frames, row by row."""
    rows = -(-panels // columns)
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    return figure, axes


def _as_picture(image: torch.Tensor) -> np.ndarray:
    """Turn an input of the pipeline, (3, H, W) in BGR with values up to 255, into (H, W, 3) uint8 RGB."""
    return image.flip(0).permute(1, 2, 0).clamp(0, 255).to(torch.uint8).cpu().numpy()
