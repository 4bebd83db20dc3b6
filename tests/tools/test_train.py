"""tools/train.py: options, their meaning under each scope, and clear words about mistakes."""

import re

import pytest
from helpers.command_line import error_of
from helpers.plain_training import CONFIG

from fma_mm import cli


def config_of(train, config, *arguments):
    return train.make_config(train.make_parser().parse_args([str(config), *arguments]))


# --- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.py"], "config none.py: no such file"),
        (["{config}", "--launcher", "torchrun"], "argument --launcher: invalid choice: 'torchrun'"),
        (["{config}", "--launcher", "pytorch"], "--launcher pytorch: expected torchrun to start the processes"),
        (["{config}", "--launcher", "mpi"], "--launcher mpi: needs a GPU and this machine has none"),
        (["{config}", "--launcher", "slurm"], "--launcher slurm: needs a GPU and this machine has none"),
        (["{config}", "--amp"], "--amp: training in mixed precision needs a GPU"),
        (["{config}", "--resume", "none.pth"], "--resume: none.pth: no such checkpoint"),
        (["{config}", "--cfg-options", "lr"], "argument --cfg-options: expected KEY=VALUE pairs, got 'lr'"),
        (["{config}", "--cfg-options", "lr=[1,2"], "argument --cfg-options: expected KEY=VALUE pairs"),
        (["{config}", "--cfg-options", "custom_hooks=EMAHook"], "config .*: custom_hooks='EMAHook': expected a list"),
        (["{config}", "--cfg-options", "train_dataloader.batch_size.x=1"], "--cfg-options: "),
        (["{config}", "--cfg-options", "auto_scale_lr=None", "--auto-scale-lr"], "--auto-scale-lr: .* states no"),
        (["{config}", "--cfg-options", "optim_wrapper.type=MyWrapper", "--amp"], "--amp: works with .*'MyWrapper'"),
        (["{config}", "--resume", "--cfg-options", "runner_type=FlexibleRunner"], "--resume: .* skip an epoch"),
    ],
)
def test_mistakes(train, classifier, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(cli, "has_accelerator", lambda: False)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.chdir(classifier.parent)
    assert re.match(message, error_of(train.main, capsys, *(a.format(config=classifier) for a in arguments)))


def test_last_checkpoint_gone(train, classifier, capsys, tmp_path):
    for name in (tmp_path / "gone.pth", ""):
        (tmp_path / "last_checkpoint").write_text(str(name))
        message = error_of(train.main, capsys, classifier, "--work-dir", tmp_path, "--resume")
        assert message == f"--resume: {name}: no such checkpoint"


# --- options


@pytest.mark.parametrize("config", ["classifier", "segmentor"])
def test_amp(train, config, request, monkeypatch):
    said = []
    monkeypatch.setattr(cli, "has_accelerator", lambda: True)
    monkeypatch.setattr(train, "print_log", lambda message, *_: said.append(message))
    path = request.getfixturevalue(config)
    cfg = config_of(train, path, "--amp")
    assert cfg.optim_wrapper.type == "AmpOptimWrapper" and cfg.optim_wrapper.loss_scale == "dynamic"
    assert not said
    options = ["--cfg-options", "optim_wrapper.type=AmpOptimWrapper", "optim_wrapper.loss_scale=512.0"]
    assert config_of(train, path, "--amp", *options).optim_wrapper.loss_scale == 512
    assert said == ["--amp: the config trains in mixed precision already."]


def test_no_validate_and_scaled_lr(train, classifier):
    cfg = config_of(train, classifier, "--no-validate", "--auto-scale-lr")
    assert cfg.val_dataloader is cfg.val_cfg is cfg.val_evaluator is None
    assert cfg.auto_scale_lr == dict(base_batch_size=8, enable=True)
    cfg = config_of(train, classifier)
    assert cfg.val_dataloader and not cfg.auto_scale_lr.get("enable")


def test_resume_options(train, classifier, tmp_path):
    def resume(*arguments: str) -> tuple:
        cfg = config_of(train, classifier, "--work-dir", str(tmp_path), *arguments)
        return cfg.get("resume"), cfg.get("load_from")

    checkpoint = str(tmp_path / "epoch_3.pth")
    weights = ["--cfg-options", "load_from=weights.pth"]
    assert resume(*weights) == (None, "weights.pth")
    assert resume("--resume", *weights) == (False, "weights.pth"), "nothing to resume yet"
    (tmp_path / "last_checkpoint").write_text(checkpoint)
    (tmp_path / "epoch_3.pth").write_text("")
    assert resume("--resume", *weights) == (True, checkpoint)
    assert resume("--resume", checkpoint) == (True, checkpoint)
    assert resume("--resume", "https://example.org/a.pth") == (True, "https://example.org/a.pth")


# --- running


def test_plain_mmengine(train, tmp_path):
    """Without a default_scope, as for libraries that the tools do not know."""
    config = tmp_path / "plain.py"
    config.write_text(CONFIG)
    train.main([str(config), "--work-dir", str(tmp_path / "run")])
    assert (tmp_path / "run" / "epoch_1.pth").is_file()


@pytest.mark.slow
def test_commands(start_tool, segmentor, tmp_path):
    """Train and test as a user would, each in a process of its own; test_train_resume.py starts and resumes others."""
    options = ["train_cfg.max_iters=1", "train_dataloader.batch_size=12", "default_hooks.checkpoint.interval=1"]
    assert start_tool("train", segmentor, "--work-dir", "run", "--cfg-options", *options).wait() == 0
    last = (tmp_path / "run" / "last_checkpoint").read_text()
    assert last.endswith("iter_1.pth")
    assert start_tool("test", segmentor, last, "--out", "metrics.json", "--out-item", "metrics").wait() == 0
    assert '"mIoU": ' in (tmp_path / "metrics.json").read_text()
