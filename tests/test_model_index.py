"""The model index lists every config of its folders, with true figures and no invented ones."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from modelindex.load_model_index import load
from torch._subclasses import FakeTensorMode

from fma_mm import cli
from fma_mm.analysis.flops import count_flops, count_parameters
from fma_mm.analysis.simulation import Conditions, simulate_config

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
    folders = {path.parent.relative_to(ROOT).as_posix() for path in METAFILES}
    assert folders == {"configs/imagenet", "configs/ade20k", "configs/cifar10"}


def test_index_is_well_formed():
    index = load(str(ROOT / "model-index.yml"))
    index.build_models_with_collections()
    assert index.check(silent=True) == []
    assert len(index.models) == len(ENTRIES)
    for model in index.models:
        assert model.full_model.paper["URL"].startswith("https://arxiv.org/abs/")
        assert model.full_model.metadata.training_data


def test_results_state_the_task_and_only_what_was_trained():
    """A figure of what was not trained would be invented. mmpretrain chooses an inferencer by the task."""
    results = (ROOT / "docs/results.md").read_text()
    for entry in ENTRIES:
        if entry["Config"].startswith("configs/cifar10/"):
            (result,) = entry["Results"]
            assert result["Task"] == "Image Classification" and result["Dataset"] == "CIFAR-10"
            assert f"{result['Metrics']['Top 1 Accuracy']:.2f}" in results
            assert ("Weights" in entry) == (entry["Name"] == "fma2d-nano_b64-33k_cifar10")
            continue
        if entry["Name"].endswith("in22k"):
            assert "Results" not in entry, "pre-training has no validation images"
            continue
        imagenet = entry["Config"].startswith("configs/imagenet/")
        task = dict(Task="Image Classification", Dataset="ImageNet-1K")
        assert entry["Results"] == [
            (task if imagenet else dict(Task="Semantic Segmentation", Dataset="ADE20K")) | dict(Metrics={})
        ]
        assert "Weights" not in entry


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["Name"])
def test_figures(entry, one_thread):
    """Parameters and FLOPs of the whole model, on an image of the size in its name."""
    usual = 32 if "cifar10" in entry["Name"] else 224
    size = int((re.search(r"-(\d+)(px|x\d+)$", entry["Name"]) or [0, usual])[1])
    cfg = Config.fromfile(ROOT / entry["Config"])
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    with FakeTensorMode(allow_non_fake_inputs=True):  # shapes without numbers
        flops = count_flops(model, torch.empty(1, 3, size, size), mode="tensor")
    assert entry["Metadata"]["Parameters"] == count_parameters(model)
    assert entry["Metadata"]["FLOPs"] == flops[""]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["fma2d-tiny_8xb128_in1k", "fma2d-tiny_segformer_8xb2-160k_ade20k-512x512"]
)  # fmt: skip
def test_simulated_memory(name):
    """GiB of a training step in bfloat16 with the config's batch, as tools/compare.py --simulate has them."""
    (entry,) = (entry for entry in ENTRIES if entry["Name"] == name)
    cfg = cli.read_config(str(ROOT / entry["Config"]), {})
    size = 2 * (224 if "in1k" in name else 512,)
    _, peak = simulate_config(cfg, Conditions(cfg.train_dataloader.batch_size, size))
    assert entry["Metadata"]["Training Memory (GB)"] == pytest.approx(peak.size / 2**30, abs=0.06)
    assert all("Training Memory (GB)" in entry["Metadata"] for entry in ENTRIES)
