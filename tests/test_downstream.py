"""The configs of docs/downstream.md work as they stand in other projects: they build, load weights, and learn."""

import os
import re
import subprocess
import sys
from pathlib import Path

import mmseg
import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, MODELS, init_default_scope
from mmengine.structures import PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample

from fma_kernels import CoreAttention
from fma_mm import FMA2D

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "downstream.md").read_text()
CHECKPOINT = "work_dirs/fma2d-tiny_8xb128_in1k/epoch_300.pth"
IMAGE = (3, 64, 96)


def blocks(heading: str) -> list[str]:
    """The Python code under a heading of the page."""
    (section,) = [part for part in PAGE.split("\n## ")[1:] if part.startswith(f"{heading}\n")]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


INIT, LAYER_DECAY = blocks("Start from ImageNet weights")


def config(library: str, checkpoint: Path) -> Config:
    """The config of a library on the page, with the weights and the layer decay that the page adds."""
    (code,) = blocks(library)
    code = code.replace('"../', f'"{Path(mmseg.__file__).parent}/.mim/configs/')
    cfg = Config.fromstring(code, ".py")
    cfg.merge_from_dict(Config.fromstring(INIT.replace(CHECKPOINT, str(checkpoint)), ".py").to_dict())
    cfg.optim_wrapper = Config.fromstring(LAYER_DECAY, ".py").optim_wrapper
    init_default_scope(cfg.default_scope)
    return cfg


def check_learning(cfg: Config, checkpoint: Path, sample: object) -> None:
    """The model starts from the checkpoint, and one training step reaches every parameter."""
    torch.manual_seed(0)
    cfg.model.backbone.drop_path_rate = 0.0  # or chance decides which blocks learn
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    model.init_weights()
    saved, state = torch.load(checkpoint)["state_dict"], model.backbone.state_dict()
    shared = [name for name in state if f"backbone.{name}" in saved]
    assert len(shared) > 100 and all(name in shared for name in state if name.startswith("stages."))
    assert all(torch.equal(state[name], saved[f"backbone.{name}"]) for name in shared)

    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    first, last = next(model.backbone.parameters()), model.backbone.norm3.weight
    assert rates[id(first)] < 0.5 * rates[id(last)] and rates[id(last)] == pytest.approx(1e-4)

    before = [parameter.detach().clone() for parameter in model.parameters()]
    inputs = (255 * torch.rand(2, *IMAGE)).to(torch.uint8)
    losses = model.train_step(dict(inputs=list(inputs), data_samples=[sample, sample]), optimizer)
    assert losses["loss"].isfinite() and losses["loss"] > 0
    for (name, parameter), old in zip(model.named_parameters(), before, strict=True):
        assert parameter.isfinite().all(), name
        # Bases of levels that so small an image does not have stay as they are.
        assert "_basis" in name or not torch.equal(parameter, old), name


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """The checkpoint of a classifier of ImageNet, with weights that no initialisation gives."""
    torch.manual_seed(0)
    state = {f"backbone.{name}": torch.randn_like(x) / 8 for name, x in FMA2D("tiny").state_dict().items()}
    path = tmp_path_factory.mktemp("weights") / "epoch_300.pth"
    torch.save({"state_dict": state | {"head.fc.weight": torch.zeros(1000, 768)}}, path)
    return path


@pytest.mark.slow
def test_mmpretrain(checkpoint, one_thread):
    check_learning(config("mmpretrain", checkpoint), checkpoint, DataSample().set_gt_label(3))


@pytest.mark.slow
def test_mmsegmentation(checkpoint, one_thread):
    labels = PixelData(data=torch.randint(0, 150, (1, *IMAGE[1:])))
    cfg = config("mmsegmentation", checkpoint)
    cfg.model.data_preprocessor.size = IMAGE[1:]  # images are padded to this size
    check_learning(cfg, checkpoint, SegDataSample(gt_sem_seg=labels))


@pytest.mark.slow
def test_mmdetection(checkpoint):
    """In a process of its own, with stand-ins for the operators that mmcv may lack."""
    code = f"""
import helpers.refusing_ops, torch
from pathlib import Path
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from test_downstream import IMAGE, check_learning, config

checkpoint = Path({str(checkpoint)!r})
sample = DetDataSample(metainfo=dict(img_shape=IMAGE[1:], scale_factor=(1, 1)))
sample.gt_instances = InstanceData(bboxes=torch.tensor([[10.0, 10.0, 60.0, 50.0]]), labels=torch.tensor([3]))
check_learning(config("mmdetection", checkpoint), checkpoint, sample)
"""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_channels():
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([\d, ]+) \|$", PAGE, re.MULTILINE)
    stated = {arch: [int(n) for n in row.split(",")] for names, row in rows for arch in re.findall(r"\w+", names)}
    first = {name: arch["embed_dims"] for name, arch in FMA2D.arch_zoo.items()}
    assert stated == {name: [n, 2 * n, 4 * n, 8 * n] for name, n in first.items()}


def test_controls():
    by_config, by_hook = blocks("Controls")
    cfg = Config.fromstring(by_config.replace("PATH", str(ROOT)), ".py")
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    assert {module.attention for module in model.modules() if isinstance(module, CoreAttention)} == {"near"}
    (hook,) = Config.fromstring(by_hook, ".py").custom_hooks
    assert HOOKS.build(hook).options == dict(cell_size=7, attention="full")


def test_models_and_configs_by_name():
    (by_name, listing), (by_path,) = blocks("Models by name"), blocks("Configs and tools of the installed package")
    names = {}
    exec(by_name, names)
    assert names["backbone"].backbone.out_indices == (0, 1, 2, 3)
    exec(listing, names)
    exec(by_path, names)
    assert names["cfg"].model.backbone.type == "FMA2D"
