from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from matplotlib.image import imread
from mmengine.dataset import BaseDataset
from mmengine.registry import HOOKS
from mmengine.structures import BaseDataElement

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


def run(tmp_path: Path, *, val: bool = True, last_ckpt: str | None = "epoch_1.pth", **kwargs) -> str:
    messages = []
    model = SaysRed()
    runner = SimpleNamespace(
        message_hub=SimpleNamespace(runtime_info={"last_ckpt": last_ckpt} if last_ckpt else {}),
        log_dir=str(tmp_path / "logs"),
        work_dir=str(tmp_path),
        timestamp="20200101_000000",
        val_loop=SimpleNamespace(dataloader=SimpleNamespace(dataset=Squares())) if val else None,
        model=model,
        logger=SimpleNamespace(info=messages.append),
    )
    HOOKS.build(dict(type="RunSummaryHook", **kwargs)).after_train(runner)
    assert model.training
    return "\n".join(messages)


def test_picture_shows_the_images_in_their_colours(tmp_path):
    message = run(tmp_path, num_images=2)
    assert str(tmp_path / "predictions.png") in message
    assert str(tmp_path / "logs/20200101_000000.log") in message
    assert "epoch_1.pth" in message
    pixels = (imread(tmp_path / "predictions.png")[..., :3] * 255).round().reshape(-1, 3).tolist()
    blue, red = pixels.count([0, 0, 255]), pixels.count([255, 0, 0])
    assert blue == red > 1000


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
