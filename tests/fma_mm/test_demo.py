"""The embedded demo, shortened: its configuration, its training and what it leaves."""

import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner

from fma_kernels import Hierarchy

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/demo/fma2d_digits.py"


def demo(work_dir: Path, epochs: int, images: int | None = None) -> Runner:
    """The demo's runner with a shorter schedule and, if asked for, fewer images."""
    cfg = Config.fromfile(CONFIG)
    cfg.merge_from_dict(
        {
            "work_dir": str(work_dir),
            "experiment_name": work_dir.name,
            "train_cfg.max_epochs": epochs,
            "train_cfg.val_interval": epochs,
            "default_hooks.checkpoint.interval": epochs,
            "param_scheduler": None,
            "train_dataloader.dataset.indices": images,
            "val_dataloader.dataset.indices": images,
        }
    )
    return Runner.from_cfg(cfg)


def test_first_stage_has_two_far_levels(tmp_path):
    runner = demo(tmp_path / "geometry", 1)
    batch = next(iter(runner.build_dataloader(runner.cfg.train_dataloader)))
    stage = runner.model.backbone.stages[0]
    _, grid = stage(runner.model.data_preprocessor(batch)["inputs"])
    basis = stage.blocks[0].attn.fma.key_basis
    assert Hierarchy(grid, basis.cell_size, basis.rank).num_levels >= 2


def test_one_training_step_changes_every_weight_that_is_read(tmp_path):
    runner = demo(tmp_path / "step", 1)
    loader = runner.build_dataloader(runner.cfg.train_dataloader)
    wrapper = runner.build_optim_wrapper(runner.cfg.optim_wrapper)
    before = {name: parameter.clone() for name, parameter in runner.model.named_parameters()}
    losses = runner.model.train_step(next(iter(loader)), wrapper)
    assert losses["loss"].isfinite()
    same = {name for name, parameter in runner.model.named_parameters() if torch.equal(parameter, before[name])}
    # The second stage has one far level, the third none: the other bases wait for larger images, as means.
    unread = r"stages\.2\..*_basis\.|stages\.1\..*_basis\.axis\d_level2"
    assert same == {name for name in before if re.search(unread, name)}


@pytest.mark.slow
def test_short_training_learns_and_tells_where_its_results_are(tmp_path, capsys, monkeypatch):
    titles = []
    savefig = Figure.savefig

    def spy(figure, *args, **kwargs):
        titles.extend(axis.get_title() for axis in figure.axes)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spy)
    backend = matplotlib.get_backend()
    runner = demo(tmp_path / "run", 2)
    runner.train()
    assert runner.message_hub.get_scalar("val/accuracy/top1").current() > 60

    printed = capsys.readouterr()
    printed = printed.out + printed.err
    assert re.search(r"class +precision +recall +f1-score +images\n0 ", printed)
    paths = dict(re.findall(r"^ +(checkpoint|log|predictions) +(\S+)$", printed, re.MULTILINE))
    assert paths.keys() == {"checkpoint", "log", "predictions"}
    assert matplotlib.get_backend() == backend

    weights = torch.load(paths["checkpoint"], weights_only=False)["state_dict"]
    for name, tensor in runner.model.state_dict().items():
        assert torch.equal(tensor, weights[name])
    assert "Epoch(train) [2]" in Path(paths["log"]).read_text()

    picture = imread(paths["predictions"])
    assert picture.shape[0] > 300 and picture.shape[1] > 700 and picture[..., :3].std() > 0.1
    dataset = runner.val_dataloader.dataset
    chosen = np.linspace(0, len(dataset) - 1, 40).astype(int)
    with torch.no_grad():
        samples = runner.model.eval().test_step(pseudo_collate([dataset[i] for i in chosen]))
    predictions = [(int(sample.pred_label), int(sample.gt_label)) for sample in samples]
    assert titles == [f"{label}" if label == truth else f"{label} (is {truth})" for label, truth in predictions]
    assert len({label for label, _ in predictions}) > 5


@pytest.mark.slow
def test_the_whole_demo_reaches_its_goal(tmp_path):
    """97 % of the digits that were held out, by the command that `make demo` runs."""
    command = [sys.executable, "tools/train.py", CONFIG, "--work-dir", tmp_path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    accuracies = re.findall(r"accuracy/top1: ([\d.]+)", result.stdout + result.stderr)
    assert float(accuracies[-1]) >= 97
    for name in ("checkpoint", "log", "predictions"):
        (path,) = re.findall(rf"^ +{name} +(\S+)$", result.stdout + result.stderr, re.MULTILINE)
        assert Path(path).is_file()
