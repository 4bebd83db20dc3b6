"""The CamVid configs: one schedule for all, and each takes training steps on a small folder in CamVid's format.

Three are compared with each other, of equal head; two small ones serve to compare attentions.
"""

import re
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from fma_kernels import ATTENTIONS, CoreAttention
from fma_mm import cli

FOLDER = Path(__file__).parents[2] / "configs" / "camvid"
CONFIGS = sorted(FOLDER.glob("*.py"))
NAME = re.compile(r"((fma2d-(tiny|nano)|swin-tiny|mit-b1)_segformer|vit-nano-p8_fcn)_b4-800_camvid-160x160")
SMALL = re.compile(r"(fma2d|vit)-nano.*")
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
    """And, in the small configs that serve to compare attentions, the head."""
    assert NAME.fullmatch(config.stem)
    ours, theirs = Config.fromfile(OURS).to_dict(), Config.fromfile(config).to_dict()
    for cfg in (ours, theirs):
        del cfg["model"]["backbone"]
        if SMALL.fullmatch(config.stem):
            del cfg["model"]["decode_head"]
            cfg.pop("custom_hooks", None)
        else:
            del cfg["model"]["decode_head"]["in_channels"]
    assert ours == theirs


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize(
    "config, option",
    [
        ("fma2d-nano_segformer_b4-800_camvid-160x160", "model.backbone.attention"),
        ("vit-nano-p8_fcn_b4-800_camvid-160x160", "custom_hooks.0.attention"),
    ],
)
def test_attention_is_an_option(config, option, attention):
    """As the page of results chooses it: the segmentor has as many modules of it as layers, and no other attention."""
    model = cli.build_model(cli.read_config(str(FOLDER / f"{config}.py"), {option: attention}))
    found = [module.attention for module in model.modules() if isinstance(module, CoreAttention)]
    assert found == [attention] * (7 if "fma2d" in config else 4)


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
