"""tools/test.py: options, their meaning under each scope, and clear words about mistakes."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.command_line import error_of
from PIL import Image

from fma_mm import FMA2D

SEGMENTATION_TTA = """
tta_model = dict(type="SegTTAModel")
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="Resize", scale=(70, 50), keep_ratio=True)],
            [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)],
            [dict(type="LoadAnnotations", reduce_zero_label=True)],
            [dict(type="PackSegInputs")],
        ],
    ),
]
"""


@pytest.fixture
def checkpoint(train, tmp_path, request) -> Path:
    """A checkpoint of one iteration of the config named by the parameter."""
    config = request.getfixturevalue(request.param)
    options = ["train_dataloader.batch_size=24", "train_cfg.max_epochs=1", f"experiment_name={tmp_path.name}"]
    if request.param == "segmentor":
        options[1] = "train_cfg.max_iters=1"
    train.main([str(config), "--work-dir", str(tmp_path / "run"), "--no-validate", "--cfg-options", *options])
    return Path((tmp_path / "run" / "last_checkpoint").read_text())


@pytest.fixture
def run(evaluate, tmp_path):
    """Test in this process, with a name of its own for each run."""
    names = iter("abcdefgh")

    def run(config: Path, checkpoint: Path, *arguments: object) -> None:
        name = f"experiment_name={next(names)}{tmp_path.name}"
        options = [str(config), str(checkpoint), *map(str, arguments), "--work-dir", str(tmp_path / "test")]
        evaluate.main([*options, "--cfg-options", name])

    return run


@pytest.mark.parametrize("checkpoint", ["classifier"], indirect=True)
def test_classification(run, classifier, checkpoint, tmp_path):
    run(classifier, checkpoint, "--out", tmp_path / "pred.pkl", "--show-dir", tmp_path / "drawn", "--interval", 2)
    predictions = pickle.loads((tmp_path / "pred.pkl").read_bytes())
    assert [p["gt_label"].item() for p in predictions] == [0, 1, 2, 3, 4, 5]
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 3

    run(classifier, checkpoint, "--out", tmp_path / "metrics.json", "--out-item", "metrics")
    correct = [p["pred_label"].item() == p["gt_label"].item() for p in predictions]
    top1 = json.loads((tmp_path / "metrics.json").read_text())["accuracy/top1"]
    assert top1 == pytest.approx(100 * np.mean(correct), abs=1e-4)

    run(classifier, checkpoint, "--tta", "--out", tmp_path / "tta.pkl")
    flipped = pickle.loads((tmp_path / "tta.pkl").read_bytes())
    assert not np.allclose(flipped[0]["pred_score"], predictions[0]["pred_score"], atol=1e-6)
    assert np.allclose(flipped[0]["pred_score"], predictions[0]["pred_score"], atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["classifier"], indirect=True)
def test_command(start_tool, classifier, checkpoint, tmp_path):
    """In a process of its own; test_train.py does so with a segmentor."""
    assert start_tool("test", classifier, checkpoint, "--out", "metrics.json", "--out-item", "metrics").wait() == 0
    assert '"accuracy/top1": ' in (tmp_path / "metrics.json").read_text()


@pytest.mark.parametrize("checkpoint", ["segmentor"], indirect=True)
def test_segmentation(run, segmentor, checkpoint, tmp_path, ade20k):
    segmentor.write_text(segmentor.read_text() + SEGMENTATION_TTA)
    run(segmentor, checkpoint, "--out", tmp_path / "pred", "--show-dir", tmp_path / "drawn")
    images = sorted((ade20k / "images" / "validation").glob("*.jpg"))
    for image in images:
        labels = Image.open(tmp_path / "pred" / f"{image.stem}.png")
        assert labels.size == Image.open(image).size
        assert np.asarray(labels).max() < 151
    assert len(list((tmp_path / "drawn").rglob("*.png"))) == len(images)

    run(segmentor, checkpoint, "--tta", "--out", tmp_path / "metrics.json", "--out-item", "metrics")
    assert {"aAcc", "mIoU", "mAcc"} <= json.loads((tmp_path / "metrics.json").read_text()).keys()


@pytest.mark.parametrize("checkpoint", ["classifier", "segmentor"], indirect=True)
def test_amp(run, checkpoint, request, tmp_path, monkeypatch):
    """With --amp, and only then, the model computes in low precision."""
    config = request.getfixturevalue(request.node.callspec.params["checkpoint"])
    autocast = []
    forward = FMA2D.forward

    def spy(self, x):
        autocast.append(torch.is_autocast_enabled(x.device.type))
        return forward(self, x)

    monkeypatch.setattr(FMA2D, "forward", spy)
    run(config, checkpoint)
    run(config, checkpoint, "--amp")
    half = len(autocast) // 2
    assert half and autocast == [False] * half + [True] * half


MISTAKES = [
    ("classifier", ["--out-item", "pred"], "--out-item: needs --out"),
    ("classifier", ["--out", "a.txt"], "--out a.txt: predictions need a .pkl or .pickle file"),
    ("classifier", ["--out", "a.csv", "--out-item", "metrics"], "--out a.csv: metrics need a .json"),
    ("classifier", ["--show-dir", "a", "--tta"], "--show-dir: mmpretrain cannot draw with --tta"),
    (
        "classifier",
        ["--show", "--cfg-options", "default_hooks.visualization=None"],
        "--show: the config has no ",
    ),
    ("classifier", ["--interval", "2"], "--interval: needs --show or --show-dir"),
    ("classifier", ["--show", "--cfg-options", "default_scope=mmdet"], "--show: works under .* not 'mmdet'"),
    (
        "classifier",
        ["--tta", "--cfg-options", "default_scope=None"],
        "--tta: the config has no tta_model, and ",
    ),
    ("classifier", ["--cfg-options", "test_dataloader=None"], "config .*classifier.py: it has no test_dataloader"),
    ("classifier", ["--launcher", "mpi"], "--launcher mpi: needs a GPU"),
    ("segmentor", ["--tta"], "--tta: the config has no tta_model, and mmseg has no default for it"),
    ("segmentor", ["--show-dir", "a", "--interval", "2"], "--interval: mmseg draws every sample"),
    ("segmentor", ["--show-dir", "a", "--show"], "--show-dir: mmseg cannot draw into a directory and show"),
    ("segmentor", ["--show-dir", "a", "--cfg-options", "visualizer=None"], "--show-dir: the config has no visualizer"),
    ("segmentor", ["--out", "{file}"], "--out .*: mmseg writes predictions into a directory"),
]


@pytest.mark.parametrize(("config", "arguments", "message"), MISTAKES)
def test_mistakes(evaluate, request, capsys, monkeypatch, tmp_path, config, arguments, message):
    monkeypatch.setattr("fma_mm.cli.has_accelerator", lambda: False)
    file = tmp_path / "any.pth"
    file.write_text("")
    given = [request.getfixturevalue(config), file, *(a.format(file=file) for a in arguments)]
    assert re.match(message, error_of(evaluate.main, capsys, *given))


def test_missing_checkpoint(evaluate, classifier, capsys):
    assert error_of(evaluate.main, capsys, classifier, "none.pth") == "checkpoint none.pth: no such file"
