"""The CamVid configs: one schedule for all, and each takes training steps on a small folder in CamVid's format."""

import re
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

FOLDER = Path(__file__).parents[2] / "configs" / "camvid"
CONFIGS = sorted(FOLDER.glob("*.py"))
NAME = re.compile(r"(fma2d-tiny|swin-tiny|mit-b1)_segformer_b4-800_camvid-160x160")
OURS = FOLDER / "fma2d-tiny_segformer_b4-800_camvid-160x160.py"
VOID = 11

every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def camvid(tmp_path_factory) -> Path:
    """Images and, under the same names, maps of the 11 classes and of void; for validation, of void and sky alone."""
    root = tmp_path_factory.mktemp("camvid")
    rng = np.random.default_rng(0)
    for split, count in {"training": 2, "validation": 1}.items():
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True)
        for i in range(count):
            image, classes = rng.integers(0, 256, (90, 120, 3)), rng.integers(0, VOID + 1, (90, 120))
            if split == "validation":
                classes = np.where(classes < VOID, 0, VOID)
            Image.fromarray(image.astype(np.uint8)).save(root / "images" / split / f"{i}.jpg")
            Image.fromarray(classes.astype(np.uint8)).save(root / "annotations" / split / f"{i}.png")
    return root


@every_config
def test_only_the_backbone_differs(config):
    assert NAME.fullmatch(config.stem)
    ours, theirs = Config.fromfile(OURS).to_dict(), Config.fromfile(config).to_dict()
    for cfg in (ours, theirs):
        del cfg["model"]["backbone"], cfg["model"]["decode_head"]["in_channels"]
    assert ours == theirs


@pytest.mark.slow
@every_config
def test_training(make_runner, camvid, one_thread, config):
    """The tool's runner trains two iterations and validates; void counts nowhere."""
    loaders = [f"{name}_dataloader" for name in ("train", "val")]
    runner = make_runner(
        config,
        *(f"{loader}.dataset.data_root={camvid}" for loader in loaders),
        *(f"{loader}.num_workers=0" for loader in loaders),
        *(f"{loader}.persistent_workers=False" for loader in loaders),
        "train_dataloader.batch_size=2",
        "train_cfg.max_iters=2",
    )
    runner.train()
    assert runner.iter == 2
    assert runner.model.decode_head.ignore_index == VOID
    hub = runner.message_hub
    assert np.isfinite(hub.get_scalar("train/loss").current())
    # All pixels that count are sky: the share of right ones is the recall of sky.
    assert hub.get_scalar("val/aAcc").current() == hub.get_scalar("val/mAcc").current()
