"""The embedded demos, whole or shortened: their configurations, their training and what they leave."""

import pickle
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
from sklearn.metrics import precision_score

from fma_kernels import Hierarchy
from fma_mm import DigitScenes

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/demo/fma2d_digits.py"
SEGMENTATION = ROOT / "configs/demo/fma2d_segformer_digits.py"

#: In both demos the second stage has one far level, the third none: the other bases wait for larger images, as means.
UNREAD = r"stages\.2\..*_basis\.|stages\.1\..*_basis\.axis\d_level2"


def demo(work_dir: Path) -> Runner:
    """The demo's runner without its schedule."""
    cfg = Config.fromfile(CONFIG)
    cfg.merge_from_dict({"work_dir": str(work_dir), "experiment_name": work_dir.name, "param_scheduler": None})
    return Runner.from_cfg(cfg)


def test_first_stage_has_two_far_levels(tmp_path):
    runner = demo(tmp_path / "geometry")
    batch = next(iter(runner.build_dataloader(runner.cfg.train_dataloader)))
    stage = runner.model.backbone.stages[0]
    _, grid = stage(runner.model.data_preprocessor(batch)["inputs"])
    basis = stage.blocks[0].attn.attention.key_basis
    assert Hierarchy(grid, basis.cell_size, basis.rank).num_levels >= 2


def test_one_training_step_changes_every_weight_that_is_read(tmp_path):
    runner = demo(tmp_path / "step")
    loader = runner.build_dataloader(runner.cfg.train_dataloader)
    wrapper = runner.build_optim_wrapper(runner.cfg.optim_wrapper)
    before = {name: parameter.clone() for name, parameter in runner.model.named_parameters()}
    losses = runner.model.train_step(next(iter(loader)), wrapper)
    assert losses["loss"].isfinite()
    same = {name for name, parameter in runner.model.named_parameters() if torch.equal(parameter, before[name])}
    assert same == {name for name in before if re.search(UNREAD, name)}


def test_augmented_testing_agrees_with_itself_and_mirrors_no_digit(evaluate, tmp_path, capfd):
    """The report counts the averaged predictions, as the accuracy does, and not those of the last view."""
    checkpoint = tmp_path / "random.pth"
    torch.manual_seed(0)
    model = demo(tmp_path / "model").model
    torch.save(dict(state_dict={name: 3 * x for name, x in model.state_dict().items()}), checkpoint)
    arguments = [str(CONFIG), str(checkpoint), "--tta", "--work-dir", str(tmp_path), "--out", str(tmp_path / "p.pkl")]
    assert "Flip" not in str(evaluate.make_config(evaluate.make_parser().parse_args(arguments)).test_dataloader)

    evaluate.main([*arguments, "--cfg-options", "test_dataloader.dataset.indices=120"])
    samples = pickle.loads((tmp_path / "p.pkl").read_bytes())
    truth = [int(sample["gt_label"]) for sample in samples]
    averaged = [int(sample["pred_score"].argmax()) for sample in samples]
    assert averaged != [int(sample["pred_label"]) for sample in samples], "the views differ"
    precision = 100 * precision_score(truth, averaged, labels=range(10), average="macro", zero_division=0)
    assert f"report/precision: {precision:.4f}" in capfd.readouterr().out


def run(config: Path, work_dir: Path, *options: str) -> str:
    """Output of tools/train.py, which `make demo` and `make demo-seg` run."""
    command = [sys.executable, "tools/train.py", config, "--work-dir", work_dir, *options]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return result.stdout + result.stderr


def results(printed: str) -> dict[str, Path]:
    """The files that a run names at its end."""
    paths = dict(re.findall(r"^ +(checkpoint|log|predictions) +(\S+)$", printed, re.MULTILINE))
    return {name: Path(path) for name, path in paths.items()}


@pytest.mark.slow
def test_demo_shortened(train, tmp_path, capsys, monkeypatch):
    """6 of the 25 epochs of `make demo`, the learning rate's decay among them: it learns and tells what it leaves."""
    titles = []
    savefig = Figure.savefig

    def spy(figure, *args, **kwargs):
        titles.extend(axis.get_title() for axis in figure.axes)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", spy)
    backend = matplotlib.get_backend()
    options = [f"{key}=6" for key in ("train_cfg.max_epochs", "train_cfg.val_interval", "param_scheduler.1.end")]
    options.append("default_hooks.checkpoint.interval=6")
    # mmengine names its loggers by config and second: a run in the second before would keep this one's log.
    options.append(f"experiment_name={tmp_path.name}")
    train.main([str(CONFIG), "--work-dir", str(tmp_path), "--cfg-options", *options])

    printed = capsys.readouterr()
    printed = printed.out + printed.err
    assert float(re.findall(r"accuracy/top1: ([\d.]+)", printed)[-1]) >= 94
    assert re.search(r"class +precision +recall +f1-score +images\n0 ", printed)
    paths = results(printed)
    assert paths.keys() == {"checkpoint", "log", "predictions"}
    assert matplotlib.get_backend() == backend
    assert "Epoch(train) [6]" in paths["log"].read_text()

    picture = imread(paths["predictions"])
    assert picture.shape[0] > 300 and picture.shape[1] > 700 and picture[..., :3].std() > 0.1
    runner = demo(tmp_path / "trained")
    runner.model.load_state_dict(torch.load(paths["checkpoint"], weights_only=False)["state_dict"])
    dataset = runner.build_dataloader(runner.cfg.val_dataloader).dataset
    chosen = np.linspace(0, len(dataset) - 1, 40).astype(int)
    with torch.no_grad():
        samples = runner.model.eval().test_step(pseudo_collate([dataset[i] for i in chosen]))
    predictions = [(int(sample.pred_label), int(sample.gt_label)) for sample in samples]
    assert titles == [f"{label}" if label == truth else f"{label} (is {truth})" for label, truth in predictions]
    assert len({label for label, _ in predictions}) > 5


def test_segmentation_demo_has_two_far_levels_and_every_weight_that_is_read_learns(tmp_path):
    cfg = Config.fromfile(SEGMENTATION)
    cfg.merge_from_dict({"work_dir": str(tmp_path), "experiment_name": tmp_path.name, "train_dataloader.batch_size": 2})
    runner = Runner.from_cfg(cfg)
    batch = next(iter(runner.build_dataloader(cfg.train_dataloader)))
    stage = runner.model.backbone.stages[0]
    _, grid = stage(runner.model.data_preprocessor(batch, training=True)["inputs"])
    basis = stage.blocks[0].attn.attention.key_basis
    assert Hierarchy(grid, basis.cell_size, basis.rank).num_levels >= 2

    before = {name: parameter.clone() for name, parameter in runner.model.named_parameters()}
    losses = runner.model.train_step(batch, runner.build_optim_wrapper(cfg.optim_wrapper))
    assert losses["loss"].isfinite()
    same = {name for name, parameter in runner.model.named_parameters() if torch.equal(parameter, before[name])}
    assert same == {name for name in before if re.search(UNREAD, name)}


@pytest.mark.slow
def test_segmentation_demo_shortened(tmp_path):
    """Twice what "background" everywhere reaches, 8 %, after 500 iterations of `make demo-seg`, on half its batches."""
    options = [f"{key}=500" for key in ("train_cfg.max_iters", "train_cfg.val_interval")]
    options += ["default_hooks.checkpoint.interval=500", "val_dataloader.dataset.num_scenes=50"]
    options += ["train_dataloader.batch_size=4"]
    printed = run(SEGMENTATION, tmp_path, "--cfg-options", *options)
    assert float(re.findall(r"mIoU: ([\d.]+)", printed)[-1]) >= 16
    paths = results(printed)
    assert paths.keys() == {"checkpoint", "log", "predictions"} and all(map(Path.is_file, paths.values()))
    picture = imread(paths["predictions"])
    assert picture.shape[0] > 500 and picture.shape[1] > 900
    colors = {tuple(color) for color in (picture[..., :3] * 255).round().astype(int).reshape(-1, 3).tolist()}
    assert len(colors & set(DigitScenes.METAINFO["palette"])) > 5
