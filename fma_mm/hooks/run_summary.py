"""Tells at the end of a training run where its results are, and shows some of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mmengine.dataset import pseudo_collate
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from fma_kernels.checks import require

#: Images per row of the picture.
COLUMNS = 10


@HOOKS.register_module()
class RunSummaryHook(Hook):
    """After training, print where the checkpoint, the log and a picture of predictions are.

    The picture ``predictions.png`` in the work directory shows images of the validation set, evenly spaced over it,
    each with the label that the trained classifier gives it, and with the true one where they differ.

    Args:
        num_images: number of images in the picture.
    """

    priority = "LOWEST"  # after the last checkpoint was written

    def __init__(self, num_images: int = 40):
        require(isinstance(num_images, int) and num_images >= 1, "num_images", num_images, "an integer >= 1")
        self.num_images = num_images

    @master_only
    def after_train(self, runner: Runner) -> None:
        """Draw the picture and print the paths of what the run left.

        Args:
            runner: the runner whose training has ended.
        """
        found = {
            "checkpoint": runner.message_hub.runtime_info.get("last_ckpt"),
            "log": Path(runner.log_dir, f"{runner.timestamp}.log"),
            "predictions": self._draw(runner) if runner.val_loop is not None else None,
        }
        lines = [f"  {name:<12}{path}" for name, path in found.items() if path is not None]
        runner.logger.info("\n".join(["Training has ended. Results:", *lines]))

    def _draw(self, runner: Runner) -> Path:
        """Write the picture and return its path."""
        dataset = runner.val_loop.dataloader.dataset
        count = min(self.num_images, len(dataset))
        batch = pseudo_collate([dataset[i] for i in np.linspace(0, len(dataset) - 1, count).astype(int)])
        pictures = [_as_picture(image) for image in batch["inputs"]]
        classes = dataset.metainfo["classes"]

        training = runner.model.training
        runner.model.eval()
        with torch.no_grad():
            samples = runner.model.test_step(batch)
        runner.model.train(training)

        rows = -(-count // COLUMNS)
        figure = Figure(figsize=(COLUMNS, 1.25 * rows), layout="constrained")
        FigureCanvasAgg(figure)  # a canvas of its own: pyplot and its backend stay as they are
        axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
        for axis in axes:
            axis.set_axis_off()
        for axis, picture, sample in zip(axes, pictures, samples, strict=False):
            predicted, true = classes[int(sample.pred_label)], classes[int(sample.gt_label)]
            axis.imshow(picture)
            if predicted == true:
                axis.set_title(predicted, color="tab:green")
            else:
                axis.set_title(f"{predicted} (is {true})", color="tab:red")
        path = Path(runner.work_dir, "predictions.png")
        figure.savefig(path, dpi=100)
        return path


def _as_picture(image: torch.Tensor) -> np.ndarray:
    """Turn an input of the pipeline, (3, H, W) in BGR with values up to 255, into (H, W, 3) uint8 RGB."""
    return image.flip(0).permute(1, 2, 0).clamp(0, 255).to(torch.uint8).cpu().numpy()
