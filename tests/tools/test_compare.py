"""tools/compare.py: costs by hand, trainings as those of tools/train.py, and clear words about mistakes."""

import json
import re
import statistics

import pytest
import torch
from helpers import flops_by_hand
from helpers.command_line import error_of
from helpers.tool_loader import load_tool

from fma_mm import FMA2D, cli
from fma_mm.analysis.comparison import Results


@pytest.fixture(scope="module")
def tool():
    return load_tool("compare")


@pytest.fixture
def compare(tool, tmp_path, capsys):
    """Run the tool: what its JSON file holds, and what it prints at the end."""

    def run(*arguments: object, out: str = "out") -> tuple[dict, str]:
        tool.main([*map(str, arguments), "--out", str(tmp_path / out), "--rounds", "5"])
        printed = capsys.readouterr().out
        return json.loads((tmp_path / out / "comparison.json").read_text()), printed

    return run


@pytest.mark.slow
def test_costs(compare, classifier, vit, tmp_path):
    """Parameters and FLOPs by hand; the batch size of the first config for both."""
    vit.write_text(vit.read_text() + "train_dataloader = dict(batch_size=8)\nval_dataloader = None\n")
    result, printed = compare(classifier, vit)
    assert result["command"].startswith(f"python tools/compare.py {classifier} {vit} --out ")
    assert result["settings"]["batch_size"] == 4 and result["settings"]["iterations"] == 0

    backbone = FMA2D(
        arch=dict(embed_dims=8, depths=(1, 1), num_heads=(1, 2)), patch_sizes=(7, 3), strides=(4, 2), cell_sizes=2,
        img_size=32,
    )  # fmt: skip
    head = 16 * 1000
    fma, full = result["rows"]["classifier"], result["rows"]["vit"]
    assert fma["parameters"] == sum(p.numel() for p in backbone.parameters()) + head + 1000
    assert fma["flops"] == flops_by_hand.fma2d(8, (1, 1), 32, 2) + head
    layers = 2 * (65 * (16 * 48 + 16 * 16 + 2 * 16 * 32) + 2 * 65 * 65 * 16)
    assert full["flops"] == 64 * 16 * 3 * 4 * 4 + layers + head
    for row in (fma, full):
        assert row["input_shape"] == [3, 32, 32]
        assert row["memory_mib"] > 4 * 4 * row["parameters"] / 2**20  # weights, gradients, AdamW's two moments
        assert len(row["step_ms"]) == 5 and min(row["step_ms"]) > 0
        assert not row["metrics"] and not row["loss"]

    table = (tmp_path / "out" / "comparison.md").read_text()
    assert table in printed
    for row, line in zip((fma, full), table.split("\n")[4:6], strict=True):
        ratio = statistics.median(row["step_ms"]) / statistics.median(fma["step_ms"])
        assert f" {row['parameters'] / 1e6:.2f} |" in line and f" {row['flops'] / 1e9:.3f} |" in line
        assert line.endswith(f" {ratio:.2f} |")
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_training_is_that_of_train(compare, train, classifier, vit, tmp_path, monkeypatch):
    """Weights and metrics are those that tools/train.py ends with under the same settings, bit by bit."""
    arguments = [vit, classifier, "--iterations", 8, "--batch-size", 3, "--seed", 5]
    result, printed = compare(*arguments)
    rows = result["rows"]
    for name, row in rows.items():
        assert len(row["loss"]) == len(row["seconds"]) == 8 and row["seconds"] == sorted(row["seconds"])
        assert re.search(rf"^\| {name} .*\| +{row['metrics']['accuracy/top1']:.4g} \|$", printed, re.MULTILINE)

    # The classifier's 4 epochs, one of warm-up, in 8 iterations.
    explicit = classifier.with_name("explicit.py")
    explicit.write_text("""
_base_ = ["classifier.py"]
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, end=2, by_epoch=False),
    dict(type="CosineAnnealingLR", begin=2, end=8, by_epoch=False),
]
train_cfg = dict(_delete_=True, by_epoch=False, max_iters=8, val_interval=8)
train_dataloader = dict(batch_size=3)
default_hooks = dict(
    checkpoint=dict(_delete_=True, type="CheckpointHook", by_epoch=False, interval=8),
    logger=dict(type="LoggerHook", interval=1),
)
log_processor = dict(by_epoch=False, window_size=1)
randomness = dict(seed=5)
""")
    folder = tmp_path / "trained"
    train.main([str(explicit), "--work-dir", str(folder), "--cfg-options", f"experiment_name={tmp_path.name}"])
    found, expected = (
        torch.load(path / "iter_8.pth", weights_only=False)["state_dict"]
        for path in (tmp_path / "out" / "classifier", folder)
    )
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    lines = next(folder.glob("*/vis_data/scalars.json")).read_text().strip().split("\n")
    scalars = [json.loads(line) for line in lines]
    losses = [line["loss"] for line in scalars if "loss" in line]
    assert rows["classifier"]["loss"] == pytest.approx(losses, abs=1e-4)
    assert rows["classifier"]["metrics"] == {"accuracy/top1": scalars[-1]["accuracy/top1"]}

    # A comparison that stopped before its last training goes on there.
    rows["classifier"].update(metrics={}, loss=[], seconds=[])
    (tmp_path / "out" / "comparison.json").write_text(json.dumps(result))
    trained = []
    monkeypatch.setattr(cli, "build_runner", lambda cfg, build=cli.build_runner: trained.append(cfg) or build(cfg))
    again, _ = compare(*arguments, "--resume")
    assert [cfg.filename for cfg in trained] == [str(classifier)]
    assert again["rows"]["vit"] == rows["vit"]
    assert again["rows"]["classifier"]["step_ms"] == rows["classifier"]["step_ms"]
    assert again["rows"]["classifier"]["loss"] == pytest.approx(losses, abs=1e-4)


@pytest.mark.slow
def test_segmentors(compare, segmentor, tmp_path):
    """Two of mmseg, whose visualizers and preprocessors are other than mmpretrain's."""
    other = segmentor.with_name("linear.py")
    other.write_text("_base_ = ['segmentor.py']\nmodel = dict(backbone=dict(attention='fma_linear'))\n")
    result, printed = compare(segmentor, other, "--iterations", 2, "--batch-size", 1)
    for name in ("segmentor", "linear"):
        assert set(result["rows"][name]["metrics"]) == {"aAcc", "mIoU", "mAcc"}
        assert len(result["rows"][name]["loss"]) == 2
        assert list((tmp_path / "out" / name).glob("*/vis_data/scalars.json"))
    assert "mIoU" in printed


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["none.py"], "config none.py: no such file"),
        (["{config}", "{config}"], "configs {config} and {config}: the names of the files must differ"),
        (["{config}", "--cfg-options", "train_dataloader=None"], "config {config}: it has no train_dataloader"),
        (["{config}", "--cfg-options", "optim_wrapper=None"], "config {config}: it has no optim_wrapper"),
        (["{config}", "--iterations", "2", "--cfg-options", "val_evaluator=None"], "config {config}: it has no val_"),
        (
            ["{config}", "--iterations", "2", "--cfg-options", "param_scheduler.0.type=OneCycleLR"],
            "config {config}: ValueError: param_scheduler='OneCycleLR': expected one of",
        ),
        (["{config}", "--iterations", "-1"], "--iterations -1: expected 0 or more"),
        (["{config}", "--rounds", "4"], "--rounds 4: expected 5 or more"),
        (["{config}", "--batch-size", "0"], "--batch-size 0: expected 1 or more"),
        (["{config}", "--device", "cuda"], "--device cuda: PyTorch sees no GPU"),
        (["{config}", "--out", "."], "--out .: it is there and not empty; give another folder, or --resume"),
        (["{config}", "--out", ".", "--resume"], "--out .: it is there and not empty; give another folder"),
        (["{config}", "broken.py"], "config broken.py: SyntaxError: "),
        (["{config}", "--cfg-options", "model.backbone.arch=huge"], "config {config}: its model cannot be built: arch"),
        (["{config}", "--cfg-options", "train_dataloader.dataset.data_root=-"], "config {config}: FileNotFoundError"),
    ],
)
def test_mistakes(tool, capsys, classifier, monkeypatch, arguments, message):
    monkeypatch.chdir(classifier.parent)
    classifier.with_name("broken.py").write_text("model = dict(\n")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = error_of(tool.main, capsys, *(argument.format(config=classifier) for argument in arguments))
    assert said.startswith(message.format(config=classifier))


def test_results_of_other_settings_stay(tool, capsys, classifier, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    args = tool.make_parser().parse_args([str(classifier), "--batch-size", "2"])
    earlier = Results(folder, tool.conditions_of(args, tool.read_configs(args), torch.device("cpu")), [], False)
    earlier.save()
    before = (folder / "comparison.json").read_bytes()
    for options, difference in {
        ("--seed", 1): "seed",
        ("--iterations", 3): "configs",
        ("--cfg-options", "optim_wrapper.clip_grad.max_norm=1"): "configs",
    }.items():
        said = error_of(tool.main, capsys, classifier, "--batch-size", 2, "--out", folder, "--resume", *options)
        assert said == f"--resume: the comparison in {folder} has another {difference}"
    assert (folder / "comparison.json").read_bytes() == before
