"""tools/train.py: options, their meaning under each scope, and clear words about mistakes."""

import re

import pytest
import torch
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from torch import nn

from fma_mm import cli


def config_of(train, config, *arguments):
    return train.make_config(train.make_parser().parse_args([str(config), *arguments]))


def error_of(tool, capsys, *arguments) -> str:
    """The one line that the tool says before it ends with status 2."""
    with pytest.raises(SystemExit) as ended:
        tool.main([str(argument) for argument in arguments])
    assert ended.value.code == 2
    *usage, line = capsys.readouterr().err.strip().split("\n")
    assert not usage or usage[0].startswith("usage:")
    return line.split("error: ", 1)[1]


def lines(config, *settings: str):
    config.write_text("\n".join([config.read_text(), *settings]))
    return config


# --- mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.py"], "config none.py: no such file"),
        (["{config}", "--launcher", "torchrun"], "argument --launcher: invalid choice: 'torchrun'"),
        (["{config}", "--launcher", "pytorch"], "--launcher pytorch: needs a GPU and this machine has none"),
        (["{config}", "--launcher", "slurm"], "--launcher slurm: needs a GPU and this machine has none"),
        (["{config}", "--amp"], "--amp: training in mixed precision needs a GPU"),
        (["{config}", "--resume", "none.pth"], "--resume: none.pth: no such checkpoint"),
        (["{config}", "--cfg-options", "lr"], "argument --cfg-options: expected KEY=VALUE pairs, got 'lr'"),
        (["{config}", "--cfg-options", "lr=[1,2"], "argument --cfg-options: expected KEY=VALUE pairs"),
        (["{config}", "--cfg-options", "train_dataloader.batch_size.x=1"], "--cfg-options: "),
        (["{config}", "--cfg-options", "auto_scale_lr=None", "--auto-scale-lr"], "--auto-scale-lr: .* states no"),
        (["{config}", "--cfg-options", "optim_wrapper.type=MyWrapper", "--amp"], "--amp: works with .*'MyWrapper'"),
        (["{config}", "--resume", "--cfg-options", "runner_type=FlexibleRunner"], "--resume: .* skip an epoch"),
    ],
)
def test_mistakes(train, classifier, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(cli, "has_accelerator", lambda: False)
    monkeypatch.chdir(classifier.parent)
    assert re.match(message, error_of(train, capsys, *(a.format(config=classifier) for a in arguments)))


def test_config_suffix(train, capsys, tmp_path):
    config = tmp_path / "config.txt"
    config.write_text("")
    assert "expected a .py, .json, .yaml or .yml file" in error_of(train, capsys, config)


def test_last_checkpoint_gone(train, classifier, capsys, tmp_path):
    for name in (tmp_path / "gone.pth", ""):
        (tmp_path / "last_checkpoint").write_text(str(name))
        message = error_of(train, capsys, classifier, "--work-dir", tmp_path, "--resume")
        assert message == f"--resume: {name}: no such checkpoint"


# --- options


def test_work_dir(train, classifier):
    assert config_of(train, classifier).work_dir == "work_dirs/classifier"
    assert config_of(train, classifier, "--cfg-options", "work_dir=a").work_dir == "a"
    assert config_of(train, classifier, "--cfg-options", "work_dir=a", "--work-dir", "b").work_dir == "b"


def test_dataloaders_of_mmpretrain(train, classifier, monkeypatch):
    monkeypatch.setattr(cli, "has_accelerator", lambda: True)
    lines(classifier, "train_dataloader.update(num_workers=2)")
    cfg = config_of(train, classifier)
    assert cfg.train_dataloader.collate_fn == dict(type="default_collate")
    assert cfg.train_dataloader.pin_memory and cfg.train_dataloader.persistent_workers
    assert not cfg.val_dataloader.persistent_workers, "no workers, so none that live on"
    cfg = config_of(train, classifier, "--no-pin-memory", "--no-persistent-workers")
    assert not cfg.train_dataloader.pin_memory and not cfg.train_dataloader.persistent_workers
    monkeypatch.setattr(cli, "has_accelerator", lambda: False)
    assert not config_of(train, classifier).train_dataloader.pin_memory
    lines(classifier, "train_dataloader.update(collate_fn=dict(type='pseudo_collate'), pin_memory=True)")
    cfg = config_of(train, classifier)
    assert cfg.train_dataloader.collate_fn.type == "pseudo_collate" and cfg.train_dataloader.pin_memory


def test_dataloaders_of_mmseg(train, segmentor):
    cfg = config_of(train, segmentor, "--cfg-options", "train_dataloader.num_workers=2")
    assert cfg.train_dataloader.persistent_workers
    assert "collate_fn" not in cfg.train_dataloader and "pin_memory" not in cfg.train_dataloader
    assert not config_of(train, segmentor).train_dataloader.persistent_workers
    cfg = config_of(train, segmentor, "--no-pin-memory", "--no-persistent-workers")
    assert cfg.val_dataloader.pin_memory is False and cfg.val_dataloader.persistent_workers is False


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


def test_every_run_can_be_resumed_exactly(train, classifier):
    cfg = config_of(train, lines(classifier, "custom_hooks = [dict(type='EMAHook')]"))
    assert [hook.type for hook in cfg.custom_hooks] == ["EMAHook", "ExactResumeHook"]
    assert cfg.default_hooks.checkpoint == dict(
        type="AtomicCheckpointHook", interval=1, max_keep_ckpts=1, save_best="auto"
    )
    lines(
        classifier,
        "default_hooks = dict(checkpoint=dict(type='OwnHook'))",
        "custom_hooks = [dict(type='ExactResumeHook')]",
    )
    cfg = config_of(train, classifier)
    assert [hook.type for hook in cfg.custom_hooks] == ["ExactResumeHook"]
    assert cfg.default_hooks.checkpoint.type == "OwnHook"
    lines(classifier, "default_hooks = None")
    assert config_of(train, classifier).default_hooks.checkpoint.type == "AtomicCheckpointHook"


# --- running


@DATASETS.register_module()
class Ramp(BaseDataset):
    def load_data_list(self) -> list[dict]:
        return [dict(x=torch.tensor([float(i)])) for i in range(4)]


@MODELS.register_module()
class Line(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, x, sample_idx=None, mode="loss"):
        return dict(loss=self.linear(torch.stack(x)).square().mean())


def test_plain_mmengine(train, tmp_path):
    """Without a default_scope, as for libraries that the tools do not know."""
    config = tmp_path / "plain.py"
    config.write_text("""
model = dict(type="Line")
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=True, dataset=dict(type="Ramp"), sampler=dict(type="DefaultSampler")
)
optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.01))
train_cfg = dict(by_epoch=True, max_epochs=1)
""")
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
