"""The model index lists every config of its folders, with true figures, and makes the models known by name."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from modelindex.load_model_index import load
from torch._subclasses import FakeTensorMode

from fma_mm.analysis.flops import count_flops, count_parameters
from fma_mm.model_zoo import files_root

ROOT = Path(__file__).parents[1]
METAFILES = [ROOT / path for path in yaml.safe_load((ROOT / "model-index.yml").read_text())["Import"]]
ENTRIES = [entry for path in METAFILES for entry in yaml.safe_load(path.read_text())["Models"]]


def test_index_lists_every_config_once():
    names = [entry["Name"] for entry in ENTRIES]
    assert len(set(names)) == len(names)
    assert [entry["Config"] for entry in ENTRIES] == [f"{Path(e['Config']).parent}/{e['Name']}.py" for e in ENTRIES]
    for metafile in METAFILES:
        listed = {entry["Config"] for entry in yaml.safe_load(metafile.read_text())["Models"]}
        assert listed == {path.relative_to(ROOT).as_posix() for path in metafile.parent.glob("*.py")}
    assert {"configs/imagenet", "configs/ade20k"} <= {path.parent.relative_to(ROOT).as_posix() for path in METAFILES}


def test_index_is_well_formed():
    index = load(str(ROOT / "model-index.yml"))
    index.build_models_with_collections()
    assert index.check(silent=True) == []
    assert len(index.models) == len(ENTRIES)
    for model in index.models:
        assert model.full_model.paper["URL"].startswith("https://arxiv.org/abs/")
        assert model.full_model.metadata.training_data


def test_files_of_a_checkout():
    assert files_root() == ROOT


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["Name"])
def test_figures(entry, one_thread):
    """Those of the whole model, on an image of the size in its name."""
    size = int((re.search(r"-(\d+)(px|x\d+)$", entry["Name"]) or [0, 224])[1])
    cfg = Config.fromfile(ROOT / entry["Config"])
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    with FakeTensorMode(allow_non_fake_inputs=True):  # shapes without numbers
        flops = count_flops(model, torch.empty(1, 3, size, size), mode="tensor")
    assert entry["Metadata"]["Parameters"] == count_parameters(model)
    assert entry["Metadata"]["FLOPs"] == flops[""]


@pytest.mark.slow
def test_models_by_name():
    """As a user does it who imports mmpretrain first; test_wheel.py has the other order."""
    code = """
import mmpretrain, fma_mm, torch
from mmpretrain import get_model, list_models
model = get_model("FMA2D-tiny_8xb128_in1k", backbone=dict(out_indices=(1, -1)), neck=None, head=None)
maps = model.extract_feat(torch.rand(1, 3, 64, 96))
print([list_models(), [list(x.shape) for x in maps]])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names, shapes = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    ours = {entry["Name"] for entry in ENTRIES if entry["Config"].startswith("configs/imagenet/")}
    assert {"fma2d-tiny_8xb128_in1k", "vit-base-p16_8xb128_in1k"} <= ours < set(names)
    assert "resnet50_8xb32_in1k" in names, "mmpretrain's own models are still there"
    assert shapes == [[1, 192, 8, 12], [1, 768, 2, 3]]
