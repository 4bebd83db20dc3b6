from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from mmengine.dataset import BaseDataset
from mmengine.logging import MessageHub
from mmengine.registry import HOOKS
from mmengine.structures import BaseDataElement, PixelData

from fma_mm import RunSummaryHook


class Squares(BaseDataset):
    """Blue (0) or red (1) squares in BGR."""

    METAINFO = dict(classes=("blue", "red"))  # noqa: RUF012

    def load_data_list(self):
        return [dict(label=i % 2) for i in range(6)]

    def __getitem__(self, index):
        label = index % 2
        image = torch.zeros(3, 8, 8, dtype=torch.uint8)
        image[2 * label] = 255
        return dict(inputs=image, data_samples=BaseDataElement(gt_label=torch.tensor([label])))


class SaysRed(torch.nn.Module):
    def test_step(self, batch):
        assert not self.training and not torch.is_grad_enabled()
        for sample in batch["data_samples"]:
            sample.pred_label = torch.tensor([1])
        return batch["data_samples"]


class Halves(BaseDataset):
    """Blue images of several sizes, whose left half is sky and whose right half is sea, but for an unlabelled row."""

    METAINFO = dict(classes=("sky", "sea", "land"), palette=[(0, 250, 0), (0, 250, 250), (250, 250, 0)])  # noqa: RUF012

    def load_data_list(self):
        return [dict(size=size) for size in (8, 8, 10)]

    def __getitem__(self, index):
        size = self.get_data_info(index)["size"]
        image = torch.zeros(3, size, size, dtype=torch.uint8)
        image[0] = 250
        truth = torch.zeros(1, size, size, dtype=torch.int64)
        truth[..., size // 2 :] = 1
        truth[:, 0] = 255
        return dict(inputs=image, data_samples=BaseDataElement(gt_sem_seg=PixelData(data=truth)))


class SaysLand(torch.nn.Module):
    def test_step(self, batch):
        assert len({image.shape for image in batch["inputs"]}) == 1
        for sample in batch["data_samples"]:
            sample.pred_sem_seg = PixelData(data=torch.full_like(sample.gt_sem_seg.data, 2))
        return batch["data_samples"]


def run(
    tmp_path: Path,
    *,
    data: type[BaseDataset] = Squares,
    model: type[torch.nn.Module] = SaysRed,
    val: bool = True,
    last_ckpt: str | None = "epoch_1.pth",
    **kwargs,
) -> str:
    messages = []
    model = model()
    hub = MessageHub("run_summary")
    hub.update_scalar("val/mIoU", 12.34)
    hub.update_scalar("val/mIoU", 56.78)
    if last_ckpt:
        hub.update_info("last_ckpt", last_ckpt)
    runner = SimpleNamespace(
        message_hub=hub,
        log_dir=str(tmp_path / "logs"),
        work_dir=str(tmp_path),
        timestamp="20200101_000000",
        val_loop=SimpleNamespace(dataloader=SimpleNamespace(dataset=data())) if val else None,
        model=model,
        logger=SimpleNamespace(info=messages.append),
    )
    HOOKS.build(dict(type="RunSummaryHook", **kwargs)).after_train(runner)
    assert model.training
    return "\n".join(messages)


def colors(tmp_path: Path) -> Counter:
    pixels = (imread(tmp_path / "predictions.png")[..., :3] * 255).round().astype(int)
    return Counter(map(tuple, pixels.reshape(-1, 3).tolist()))


def test_picture_shows_the_images_in_their_colours(tmp_path):
    message = run(tmp_path, num_images=2)
    assert str(tmp_path / "predictions.png") in message
    assert str(tmp_path / "logs/20200101_000000.log") in message
    assert "epoch_1.pth" in message
    counts = colors(tmp_path)
    assert counts[0, 0, 255] == counts[255, 0, 0] > 1000


def test_picture_of_a_segmentor_shows_image_truth_and_prediction(tmp_path, monkeypatch):
    figures = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (figures.append(self), savefig(self, *args, **kw)))
    assert "predictions.png" in run(tmp_path, data=Halves, model=SaysLand, metric="mIoU")
    (figure,) = figures
    assert figure.get_suptitle() == "validation mIoU: 56.8 %"
    assert [axis.get_title() for axis in figure.axes] == ["image", "truth", "prediction"] * 2 + [""] * 6
    shown = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert len(shown) == 9  # three images; half of the second row stays empty
    for i in range(0, 9, 3):
        image, truth, prediction = shown[i : i + 3]
        assert (image == (0, 0, 250)).all() and (prediction == (250, 250, 0)).all()
        half = truth.shape[1] // 2
        assert (
            (truth[0] == 0).all()
            and (truth[1:, :half] == (0, 250, 0)).all()
            and (truth[1:, half:] == (0, 250, 250)).all()
        )
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["sky", "sea", "land"]
    counts = colors(tmp_path)
    assert (
        counts[0, 0, 250] > 1000
        and counts[250, 250, 0] > 1000
        and counts[0, 250, 0] > 400
        and counts[0, 250, 250] > 400
    )


@pytest.mark.parametrize("metric", [None, "accuracy"])
def test_no_title_without_a_value(tmp_path, monkeypatch, metric):
    monkeypatch.setattr(Figure, "suptitle", lambda *args: pytest.fail("there is nothing to say"))
    run(tmp_path, num_images=1, metric=metric)


def test_more_images_than_there_are(tmp_path):
    assert "predictions.png" in run(tmp_path, num_images=100)


def test_names_only_what_exists(tmp_path):
    message = run(tmp_path, val=False, last_ckpt=None)
    assert "log" in message and "checkpoint" not in message and "predictions" not in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("num_images", [0, 2.5])
def test_bad_number_of_images(num_images):
    with pytest.raises(ValueError, match=f"num_images={num_images}.*integer >= 1"):
        RunSummaryHook(num_images=num_images)
