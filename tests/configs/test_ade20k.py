"""The ADE20K configs: each starts from what ImageNet training saves and takes a training step, and they compare."""

import json
import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

ROOT = Path(__file__).parents[2] / "configs"
CONFIGS = sorted((ROOT / "ade20k").glob("*.py"))
NAME = re.compile(
    r"(?P<model>fma2d|swin|vit|mit)-(tiny|small|base|large|b5)(-p16)?(?P<pretrained>_in22k-pre)?_segformer"
    r"_(?P<gpus>\d+)xb(?P<batch>\d+)-(?P<iterations>\d+)k_ade20k-(?P<size>\d+)x(?P=size)"
)
CHECKPOINT = re.compile(r"work_dirs/(?P<name>.+)/epoch_(?P<epochs>\d+)\.pth")

every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
baselines = [path for path in CONFIGS if not path.stem.startswith("fma2d")]


def small(data_root: Path, crop: int) -> list[str]:
    """Options that a user could give: another folder, no worker processes, small images."""
    size = f"({crop},{crop})"
    return [
        f"train_dataloader.dataset.data_root={data_root}",
        f"train_dataloader.dataset.pipeline.2.scale={size}",
        f"train_dataloader.dataset.pipeline.3.crop_size={size}",
        "train_dataloader.num_workers=0",
        f"model.data_preprocessor.size={size}",
        *(
            f"{split}_dataloader.{option}"
            for split in ("val", "test")
            for option in (f"dataset.data_root={data_root}", f"dataset.pipeline.1.scale={size}", "num_workers=0")
        ),
    ]


def pretraining(cfg: Config) -> Config | None:
    """The ImageNet config whose last checkpoint this config starts from, if it is one of ours."""
    checkpoint = CHECKPOINT.fullmatch(cfg.model.backbone.init_cfg.checkpoint)
    if checkpoint is None:
        return None
    imagenet = Config.fromfile(ROOT / "imagenet" / f"{checkpoint['name']}.py")
    assert imagenet.train_cfg.max_epochs == int(checkpoint["epochs"])
    return imagenet


@every_config
def test_name_says_what_the_config_does(config):
    name = NAME.fullmatch(config.stem)
    cfg = Config.fromfile(config)
    size, iterations = int(name["size"]), 1000 * int(name["iterations"])
    train, test = ({step.type: step for step in pipeline} for pipeline in (cfg.train_pipeline, cfg.test_pipeline))
    assert train["RandomCrop"].crop_size == cfg.model.data_preprocessor.size == (size, size)
    assert train["RandomResize"].scale[1] == test["Resize"].scale[1] == size
    assert cfg.train_dataloader.dataset.pipeline == cfg.train_pipeline
    assert cfg.val_dataloader.dataset.pipeline == cfg.test_dataloader.dataset.pipeline == cfg.test_pipeline
    assert cfg.train_dataloader.batch_size == int(name["batch"])
    assert cfg.auto_scale_lr.base_batch_size == int(name["gpus"]) * int(name["batch"])
    assert cfg.train_cfg.max_iters == cfg.param_scheduler[-1].end == iterations
    assert cfg.custom_imports == dict(imports=["fma_mm"], allow_failed_imports=False)
    assert cfg.model.backbone.get("img_size", size) == size
    imagenet = pretraining(cfg)
    if imagenet is None:
        assert cfg.model.backbone.type == "MixVisionTransformer"
    else:
        data = "in22k" if name["pretrained"] else "in1k"
        assert imagenet.filename.endswith(f"_{data}.py")
        for key in ("arch", "patch_size"):
            assert cfg.model.backbone.get(key) == imagenet.model.backbone.get(key)
        assert cfg.model.backbone.type.removeprefix("mmpretrain.") == imagenet.model.backbone.type


@pytest.mark.parametrize("baseline", baselines, ids=lambda path: path.stem)
def test_baselines_share_the_recipe(baseline):
    """Nothing but the backbone differs, and for the one with a single scale, the neck."""
    ours = Config.fromfile(ROOT / "ade20k/fma2d-base_segformer_8xb2-160k_ade20k-512x512.py").to_dict()
    theirs = Config.fromfile(baseline).to_dict()
    for cfg in (ours, theirs):
        del cfg["model"]["backbone"], cfg["model"]["decode_head"]["in_channels"]
    neck = theirs["model"].pop("neck", None)
    assert ours == theirs
    assert (neck is not None) == baseline.stem.startswith("vit")


class Watch(Hook):
    """Looks at what training starts from, and at what its step does to it."""

    priority = "LOWEST"

    def __init__(self, check_start: Callable[[nn.Module], None]):
        self.check_start = check_start

    def before_train(self, runner):
        model = runner.model
        self.check_start(model.backbone)
        self.old = self.weights(model)
        model.backbone.register_forward_pre_hook(self.before_forward)
        runner.optim_wrapper.optimizer.register_step_pre_hook(lambda *_: self.before_step(model))

    def before_forward(self, backbone, inputs):
        self.shape = tuple(inputs[0].shape)

    def before_step(self, model):
        self.bad_gradients = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.loss = outputs["loss"].item()
        self.new = self.weights(runner.model)

    @staticmethod
    def weights(model) -> list[torch.Tensor]:
        return [next(module.parameters()).detach().clone() for module in (model.backbone, model.decode_head)]


def save_pretrained(imagenet: Config, path: Path) -> None:
    """Write what ImageNet training would, with random weights."""
    init_default_scope("mmpretrain")
    model = MODELS.build(imagenet.model)
    for parameter in model.parameters():
        parameter.data.uniform_(-0.05, 0.05)
    torch.save({"state_dict": model.state_dict()}, path)


def resize_positions(embedding: torch.Tensor, side: int) -> torch.Tensor:
    """A position embedding (1, 1 + n * n, C) for ``side * side`` patches after the class token."""
    cls_token, patches = embedding[:, :1], embedding[:, 1:]
    n = math.isqrt(patches.shape[1])
    patches = F.interpolate(patches.transpose(1, 2).unflatten(2, (n, n)), (side, side), mode="bicubic")
    return torch.cat([cls_token, patches.flatten(2).transpose(1, 2)], dim=1)


def check_loaded(backbone: nn.Module, checkpoint: Path) -> None:
    """Every weight is the saved one, but for what pre-training lacks: larger grids, and norms of further stages."""
    saved = torch.load(checkpoint, mmap=True)["state_dict"]
    saved = {name.removeprefix("backbone."): weight for name, weight in saved.items() if name.startswith("backbone.")}
    weights = backbone.state_dict()
    assert saved.keys() <= weights.keys()
    for name, weight in weights.items():
        level = re.fullmatch(r"(.+_basis\.axis\d_level)(\d+)", name)
        if name == "pos_embed":
            torch.testing.assert_close(weight, resize_positions(saved[name], side=512 // 16))
        elif name in saved:
            assert torch.equal(weight, saved[name]), name
        elif level:
            last = max(key for key in saved if key.startswith(level[1]))
            assert torch.equal(weight, saved[last]), name
        else:
            assert re.fullmatch(r"norm[012]\.(weight|bias)", name), name


@pytest.mark.slow
@every_config
def test_training_step(make_runner, ade20k, one_thread, tmp_path, config):
    """The tool's runner, made small by options that a user could give, starts from an ImageNet checkpoint and steps."""
    crop = 64
    options = [
        *small(ade20k, crop),
        "train_dataloader.batch_size=1",
        "train_cfg.max_iters=1",
        "param_scheduler.0.start_factor=1.0",
        "model.decode_head.loss_decode.avg_non_ignore=True",  # the mean over labelled pixels, to be compared below
        "val_cfg=None",
        "val_dataloader=None",
        "val_evaluator=None",
        "default_hooks.checkpoint=None",
    ]
    imagenet = pretraining(Config.fromfile(config))
    checkpoint = tmp_path / "epoch.pth"
    if imagenet is None:
        options.append("model.backbone.init_cfg=None")
    else:
        save_pretrained(imagenet, checkpoint)
        options.append(f"model.backbone.init_cfg.checkpoint={checkpoint}")
    runner = make_runner(config, *options)
    watch = Watch(lambda backbone: imagenet is None or check_loaded(backbone, checkpoint))
    runner.register_hook(watch)
    runner.train()
    checkpoint.unlink(missing_ok=True)  # up to 800 MB, and pytest keeps the folder

    assert watch.shape == (1, 3, crop, crop)
    assert 0.8 < watch.loss / math.log(150) < 1.2, "a new classifier knows nothing"
    assert watch.bad_gradients == []
    for old, new in zip(watch.old, watch.new, strict=True):
        assert new.isfinite().all() and not torch.equal(old, new)


@cache
def parameter_settings(config: Path) -> dict[str, dict]:
    """Learning rate and decay of each parameter, and whether it is one of a layer normalisation."""
    cfg = Config.fromfile(config)
    init_default_scope("mmseg")
    model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    groups = {p: group for group in wrapper.optimizer.param_groups for p in group["params"]}
    norms = {p for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()}
    return {
        name: dict(lr=groups[p]["lr"], weight_decay=groups[p]["weight_decay"], norm=p in norms)
        for name, p in model.named_parameters()
    }


@every_config
def test_rate_and_weight_decay_of_every_parameter(config):
    """New parts learn ten times faster; weight decay spares the backbone's norms, summaries and positions."""
    spared = ("_basis.", "relative_position_bias_table", "cls_token", "pos_embed")
    for name, setting in parameter_settings(config).items():
        pretrained = name.startswith("backbone.")
        assert setting["lr"] == pytest.approx(6e-5 if pretrained else 6e-4), name
        no_decay = pretrained and (setting["norm"] or any(part in name for part in spared))
        assert setting["weight_decay"] == (0.0 if no_decay else 0.01), name


def test_every_custom_key_has_a_use():
    """A key that no parameter's name has is one that was misspelt."""
    keys = Config.fromfile(CONFIGS[0]).optim_wrapper.paramwise_cfg.custom_keys
    names = [name for config in CONFIGS for name in parameter_settings(config)]
    assert [key for key in keys if not any(key in name for name in names)] == []


@pytest.mark.slow
def test_train_validate_and_test(train, evaluate, ade20k, one_thread, tmp_path):
    """The shipped config of FMA2D-T through both tools: two iterations, mIoU, a checkpoint, and tests of that."""
    config = str(ROOT / "ade20k/fma2d-tiny_segformer_8xb2-160k_ade20k-512x512.py")
    options = ["--cfg-options", *small(ade20k, crop=64)]
    train_options = [
        "model.backbone.init_cfg=None",
        "train_cfg.max_iters=2",
        "train_cfg.val_interval=2",
        "default_hooks.checkpoint.interval=2",
    ]
    train.main([config, "--work-dir", str(tmp_path), *options, *train_options])
    assert (tmp_path / "iter_2.pth").is_file()
    assert list(tmp_path.glob("best_mIoU_iter_2.pth"))
    for name, flags in {"plain": [], "tta": ["--tta"]}.items():
        out = tmp_path / f"{name}.json"
        arguments = ["--work-dir", str(tmp_path), "--out", str(out), "--out-item", "metrics", *flags]
        evaluate.main([config, str(tmp_path / "iter_2.pth"), *arguments, *options])
        assert 0 <= json.loads(out.read_text())["mIoU"] <= 100
