"""Options of the command-line tools, and what they make of a config."""

from argparse import ArgumentParser

import pytest
from mmengine.config import Config
from mmengine.hooks import EMAHook

from fma_mm import cli
from fma_mm.cli import CommandError


def config_of(train, config, *arguments):
    return train.make_config(train.make_parser().parse_args([str(config), *arguments]))


def lines(config, *settings: str):
    config.write_text("\n".join([config.read_text(), *settings]))
    return config


# --- mistakes


def fail(args):
    try:
        raise KeyError("the cause")
    except KeyError as error:
        raise CommandError("the message") from error


@pytest.mark.parametrize("debug", [None, "0", "1"])
def test_a_mistake_is_a_line_and_a_traceback_on_demand(capsys, monkeypatch, debug):
    monkeypatch.delenv("FMA_DEBUG", raising=False)
    if debug is not None:
        monkeypatch.setenv("FMA_DEBUG", debug)
    with pytest.raises(SystemExit) as ended:
        cli.run(ArgumentParser(prog="tool"), [], fail)
    assert ended.value.code == 2
    *traceback, line = capsys.readouterr().err.splitlines()
    assert line == "tool: error: the message"
    if debug == "1":
        text = "\n".join(traceback)
        assert "KeyError: 'the cause'" in text and "CommandError: the message" in text and ", in fail" in text
    else:
        assert not traceback


@pytest.mark.parametrize("name", ["config.txt", "none.py"])
def test_a_config_that_is_none_is_refused(tmp_path, name):
    (tmp_path / "config.txt").write_text("")
    with pytest.raises(CommandError, match=r"no such file|expected a \.py, \.json, \.yaml or \.yml file"):
        cli.read_config(str(tmp_path / name), {})


# --- options


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[{'type':'EMAHook'}]", [{"type": "EMAHook"}]),
        ("{'type': 'EMAHook', 'momentum': 1e-3}", {"type": "EMAHook", "momentum": 1e-3}),
        ("[(1,2),['a b']]", [(1, 2), ["a b"]]),
        ("[a,true,2]", ["a", True, 2]),
        ("(a,b)", ("a", "b")),
        ("a,b", ["a", "b"]),
        ("[]", []),
        ("(3)", (3,)),
        ("1e-3", 1e-3),
        ("None", None),
        ("{a}", "{a}"),
    ],
)
def test_values_of_config_options(text, value):
    parser = ArgumentParser()
    cli.add_config_options(parser)
    parsed = parser.parse_args(["--cfg-options", f"key={text}"]).cfg_options["key"]
    assert parsed == value and type(parsed) is type(value)


def test_hooks_on_the_command_line(train, classifier):
    cfg = config_of(train, classifier, "--cfg-options", "custom_hooks=[{'type':'EMAHook'}]")
    assert [hook["type"] for hook in cfg.custom_hooks] == ["EMAHook", "ExactResumeHook"]


def test_hooks_that_are_built_already():
    cfg = Config(dict(custom_hooks=[EMAHook()]))
    cli.enable_exact_resume(cfg)
    assert [cli.type_name(hook) for hook in cfg.custom_hooks] == ["EMAHook", "ExactResumeHook"]


@pytest.mark.parametrize("hooks", ["EMAHook", ["EMAHook"], dict(type="EMAHook")])
def test_hooks_of_another_form_are_refused(hooks):
    with pytest.raises(CommandError, match=r"custom_hooks=.*: expected a list of dicts, one for each hook"):
        cli.enable_exact_resume(Config(dict(custom_hooks=hooks)))


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


# --- launchers on a machine without a GPU


SEGMENTOR = dict(
    decode_head=dict(norm_cfg=dict(type="SyncBN", requires_grad=True)), auxiliary=[dict(norm_cfg=dict(type="SyncBN"))]
)


@pytest.fixture
def launched(train, tmp_path, monkeypatch):
    """The config of a process that torchrun has started: launched(accelerator, **config)."""
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")

    def launched(accelerator: bool, **config: object) -> Config:
        monkeypatch.setattr(cli, "has_accelerator", lambda: accelerator)
        path = tmp_path / "config.json"
        Config(config).dump(str(path))
        return cli.load_config(train.make_parser().parse_args([str(path), "--launcher", "pytorch"]))

    return launched


def test_processes_on_cpus_use_gloo(launched):
    env = dict(cudnn_benchmark=False, dist_cfg=dict(backend="nccl"))
    cfg = launched(False, model=SEGMENTOR, env_cfg=env, find_unused_parameters=True)
    assert cfg.launcher == "pytorch"
    assert cfg.env_cfg == dict(cudnn_benchmark=False, dist_cfg=dict(backend="gloo"))
    wrapper = dict(type="MMDistributedDataParallel", broadcast_buffers=False, find_unused_parameters=True)
    assert cfg.model_wrapper_cfg == {**wrapper, "device_ids": None}
    assert "SyncBN" not in repr(cfg.model)
    assert cfg.model.decode_head.norm_cfg == dict(type="BN", requires_grad=True)
    own = launched(False, model_wrapper_cfg=dict(type="Own", static_graph=True)).model_wrapper_cfg
    assert own.type == "Own" and own.static_graph and own.device_ids is None


def test_processes_on_gpus_are_mmengines_own(launched):
    cfg = launched(True, model=SEGMENTOR, env_cfg=dict(dist_cfg=dict(backend="nccl")))
    assert cfg.env_cfg.dist_cfg.backend == "nccl" and "model_wrapper_cfg" not in cfg
    assert cfg.model.decode_head.norm_cfg.type == "SyncBN"
