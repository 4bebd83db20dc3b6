"""The ImageNet configs: each takes a real training step on a small folder in ImageNet's format, and they compare."""

import math
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

FOLDER = Path(__file__).parents[2] / "configs" / "imagenet"
CONFIGS = sorted(FOLDER.glob("*.py"))
NAME = re.compile(
    r"(?P<model>fma2d|swin|vit)-(tiny|small|base|large)(-p16)?(_in22k-pre)?"
    r"_(?P<gpus>\d+)xb(?P<batch>\d+)_(?P<data>in1k|in22k)(-(?P<size>\d+)px)?"
)

every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)


def load(name: str) -> dict:
    return Config.fromfile(FOLDER / f"{name}.py").to_dict()


@every_config
def test_name_says_what_the_config_does(config):
    name = NAME.fullmatch(config.stem)
    cfg = Config.fromfile(config)
    classes = {"in1k": 1000, "in22k": 21841}[name["data"]]
    size = int(name["size"] or 224)
    assert cfg.train_dataloader.batch_size == int(name["batch"])
    assert cfg.auto_scale_lr.base_batch_size == int(name["gpus"]) * int(name["batch"])
    assert cfg.model.head.num_classes == cfg.data_preprocessor.num_classes == classes
    assert cfg.train_pipeline == cfg.train_dataloader.dataset.pipeline
    assert [step.scale for step in cfg.train_pipeline if step.type == "RandomResizedCrop"] == [size]
    assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_epochs
    assert ("Pretrained" in str(cfg.model)) == ("-pre" in config.stem)
    assert cfg.custom_imports == dict(imports=["fma_mm"], allow_failed_imports=False)


class Watch(Hook):
    """Keeps what the step must change: the first weights of the backbone, and those of the classifier."""

    priority = "LOWEST"

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.inputs = torch.stack(list(data_batch["inputs"]))
        self.before = self.weights(runner)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.after = self.weights(runner)
        self.loss = outputs["loss"].item()

    @staticmethod
    def weights(runner) -> list[torch.Tensor]:
        model = runner.model
        return [next(module.parameters()).detach().clone() for module in (model.backbone, model.head)]


@pytest.mark.slow
@every_config
def test_training_step(make_runner, imagenet, one_thread, config):
    """The tool's runner, made small by options that a user could give, trains an epoch of one step and validates.

    The FMA2D configs differ in their arch, and tests/test_model_index.py runs every arch: here FMA2D-T stands for them.
    """
    size = int(NAME.fullmatch(config.stem)["size"] or 224)
    images = 2 if size == 224 else 1
    options = [
        f"train_dataloader.dataset.data_root={imagenet}",
        f"train_dataloader.dataset.indices={images}",
        f"train_dataloader.batch_size={images}",
        "train_dataloader.num_workers=0",
        "train_cfg.max_epochs=1",
        "default_hooks.checkpoint=None",
    ]
    if "val_dataloader" in Config.fromfile(config):
        options += [
            f"val_dataloader.dataset.data_root={imagenet}",
            "val_dataloader.dataset.indices=1",
            "val_dataloader.num_workers=0",
        ]
    if config.stem.startswith("fma2d"):
        options += ["model.backbone.arch=tiny", "model.head.in_channels=768"]
    if "-pre" in config.stem:
        options.append("model.backbone.init_cfg=None")
    runner = make_runner(config, *options)
    watch = Watch()
    runner.register_hook(watch)
    runner.train()

    assert watch.inputs.shape == (images, 3, size, size)
    assert 0.8 < watch.loss / math.log(runner.model.head.num_classes) < 1.2, "a new classifier knows nothing"
    for before, after in zip(watch.before, watch.after, strict=True):
        assert after.isfinite().all() and not torch.equal(before, after)
    if runner.val_loop is not None:
        assert runner.message_hub.get_scalar("val/accuracy/top1").current() in (0, 100)


@pytest.mark.parametrize("baseline", ["swin-base_8xb128_in1k", "vit-base-p16_8xb128_in1k"])
def test_baselines_share_the_recipe(baseline):
    """Nothing but the backbone differs, and how the head reads its features."""
    ours, theirs = load("fma2d-base_8xb128_in1k"), load(baseline)
    our_model, their_model = ours.pop("model"), theirs.pop("model")
    assert ours == theirs
    for part in ("type", "init_cfg", "train_cfg"):
        assert our_model[part] == their_model[part]
    for part in ("num_classes", "loss", "init_cfg"):
        assert our_model["head"][part] == their_model["head"][part]
    assert baseline.startswith("vit") or our_model["neck"] == their_model["neck"]


def test_pretrained_backbone_is_loaded(tmp_path):
    """Fine-tuning starts from the file that pre-training saves; smaller models stand for both."""
    init_default_scope("mmpretrain")
    small = dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
    before, after = load("fma2d-large_8xb128_in22k"), load("fma2d-large_in22k-pre_8xb64_in1k-384px")
    for cfg in (before, after):
        cfg["model"]["backbone"]["arch"] = small
        cfg["model"]["head"]["in_channels"] = 64
    pretrained = MODELS.build(before["model"])
    pretrained.init_weights()
    for parameter in pretrained.parameters():
        parameter.data.add_(torch.randn_like(parameter))
    torch.save({"state_dict": pretrained.state_dict()}, tmp_path / "epoch_90.pth")
    assert after["model"]["backbone"]["init_cfg"]["checkpoint"] == "work_dirs/fma2d-large_8xb128_in22k/epoch_90.pth"
    after["model"]["backbone"]["init_cfg"]["checkpoint"] = str(tmp_path / "epoch_90.pth")
    model = MODELS.build(after["model"])
    model.init_weights()
    state, expected = model.backbone.state_dict(), pretrained.backbone.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    assert model(torch.rand(1, 3, 384, 384)).shape == (1, 1000)


@pytest.mark.parametrize("name", ["fma2d-tiny_8xb128_in1k", "swin-base_8xb128_in1k", "vit-base-p16_8xb128_in1k"])
def test_weight_decay(name):
    """Weight decay is for the weights of linear layers and convolutions."""
    init_default_scope("mmpretrain")
    cfg = load(name)
    model = MODELS.build(cfg["model"])
    wrapper = build_optim_wrapper(model, cfg["optim_wrapper"])
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed = {names[p]: group["weight_decay"] for group in wrapper.optimizer.param_groups for p in group["params"]}
    assert decayed.keys() == set(names.values())
    layers = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)}
    assert {name for name, decay in decayed.items() if decay == 0.05} == layers
    assert {decay for name, decay in decayed.items() if name not in layers} == {0.0}
    assert not name.startswith("fma2d") or any("_basis" in name for name in decayed)
