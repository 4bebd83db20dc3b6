"""Options of the command-line tools, the reading of configs, and one line for a mistake, or more: ``FMA_DEBUG=1``."""

from __future__ import annotations

import ast
import os
import traceback
from argparse import ArgumentError, ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS, RUNNERS, init_default_scope
from mmengine.runner import Runner
from torch import nn

from fma_mm.conversion import convert_attention


class CommandError(Exception):
    """The command line or the config asks for something that cannot be done; told to the user in one line."""


class ConfigOptions(DictAction):
    """mmengine's ``KEY=VALUE`` options, refusing other forms in the parser's way.

    A value in brackets that is a Python literal is that literal: mmengine takes the dicts in a list for strings.
    """

    @staticmethod
    def _parse_iterable(val: str) -> Any:
        if val.startswith(("[", "(", "{")):
            try:
                literal = ast.literal_eval(val)
            except (SyntaxError, TypeError, ValueError):  # such as [a,b], whose strings have no quotes
                literal = None
            if isinstance(literal, (list, tuple, dict)):
                return literal
        return DictAction._parse_iterable(val)

    def __call__(self, parser, namespace, values, option_string=None):
        try:
            super().__call__(parser, namespace, values, option_string)
        except (AssertionError, ValueError):
            raise ArgumentError(self, f"expected KEY=VALUE pairs, got {' '.join(values)!r}") from None


def add_config_options(parser: ArgumentParser) -> None:
    """Add the option that changes the config.

    Args:
        parser: the parser to extend.
    """
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=ConfigOptions,
        default={},
        metavar="KEY=VALUE",
        help="change the config before anything else, e.g. train_dataloader.batch_size=64 model.backbone.arch=small; "
        "lists as key=\"[a,b]\" or key=a,b, dicts as key=\"{'type': 'A'}\"",
    )


def add_common_arguments(parser: ArgumentParser) -> None:
    """Add the options that training and testing have in common.

    Args:
        parser: the parser to extend.
    """
    parser.add_argument("--work-dir", metavar="DIR", help="where logs and results go; ./work_dirs/CONFIG by default")
    parser.add_argument("--amp", action="store_true", help="compute in mixed precision")
    parser.add_argument("--no-pin-memory", action="store_true", help="load data into ordinary, pageable memory")
    add_config_options(parser)
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none", help="job launcher")
    parser.add_argument("--local-rank", "--local_rank", type=int, default=0, help="set by some launchers")


def run(parser: ArgumentParser, argv: list[str] | None, command: Callable[[Namespace], None]) -> None:
    """Parse the command line and carry the command out; a :class:`CommandError` ends the program with status 2.

    With ``FMA_DEBUG=1`` in the environment, the traceback of the error stands above its line.

    Args:
        parser: the parser.
        argv: the arguments; those of the process when None.
        command: takes the parsed arguments.
    """
    parser.epilog = parser.epilog or "With FMA_DEBUG=1 in the environment, an error shows its traceback."
    args = parser.parse_args(argv)
    if getattr(args, "launcher", "none") != "none":
        os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    try:
        command(args)
    except CommandError as error:
        if os.environ.get("FMA_DEBUG") == "1":
            traceback.print_exception(error)
        parser.exit(2, f"{parser.prog}: error: {error}\n")


def load_config(args: Namespace) -> Config:
    """Read the config and apply the common options, ``--cfg-options`` first.

    Args:
        args: parsed arguments, with ``config``.

    Returns:
        The config, with a work directory and a launcher.

    Raises:
        CommandError: the config is missing, an option does not fit it, or the machine cannot serve the launcher.
    """
    cfg = read_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    if args.launcher == "pytorch" and "RANK" not in os.environ:
        raise CommandError("--launcher pytorch: expected torchrun to start the processes, as tools/dist_train.sh does")
    if args.launcher != "none" and not has_accelerator():
        if args.launcher != "pytorch":
            raise CommandError(
                f"--launcher {args.launcher}: needs a GPU and this machine has none; without it, the CPU is used"
            )
        use_cpus(cfg)
    cfg.work_dir = args.work_dir or cfg.get("work_dir") or str(Path("work_dirs", Path(args.config).stem))
    return cfg


def use_cpus(cfg: Config) -> None:
    """Let the processes of a launcher compute on CPUs, and exchange gradients over gloo.

    mmengine always hands the number of a GPU to DistributedDataParallel, which refuses it for a model on a CPU; and
    synchronised batch normalisation needs GPUs, so each process normalises by itself, as a single process does.

    Args:
        cfg: the config, changed in place.
    """
    cfg.env_cfg = ConfigDict(cfg.get("env_cfg") or {}, dist_cfg=dict(backend="gloo"))
    wrapper = dict(type="MMDistributedDataParallel", broadcast_buffers=False)
    wrapper["find_unused_parameters"] = cfg.get("find_unused_parameters", False)
    cfg.model_wrapper_cfg = ConfigDict({**wrapper, **(cfg.get("model_wrapper_cfg") or {}), "device_ids": None})
    for part in _dicts_in(cfg.get("model") or {}):
        if part.get("type") == "SyncBN":
            part.type = "BN"


def _dicts_in(value: Any) -> Iterator[dict]:
    """A dict of a config and all dicts in it."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
        yield from _dicts_in(inner)


def read_config(filename: str, options: dict) -> Config:
    """Read a config and change it.

    Args:
        filename: where it is.
        options: values by key, from ``--cfg-options``.

    Raises:
        CommandError: the config is missing, or an option does not fit it.
    """
    path = Path(filename)
    if not path.is_file():
        raise CommandError(f"config {filename}: no such file")
    if path.suffix not in {".py", ".json", ".yaml", ".yml"}:
        raise CommandError(f"config {filename}: expected a .py, .json, .yaml or .yml file")
    cfg = Config.fromfile(path)
    try:
        cfg.merge_from_dict(options)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise CommandError(f"--cfg-options: {error}") from error
    return cfg


def has_accelerator() -> bool:
    """Whether mmengine's mixed precision and its launchers find a device to use."""
    return get_device() in {"cuda", "npu", "mlu", "musa"}


def exists(checkpoint: str) -> bool:
    """Whether a checkpoint is there; one at a URL or on other storage is taken to be.

    Args:
        checkpoint: path or URL.
    """
    return "://" in checkpoint or os.path.exists(checkpoint)


def scope(cfg: Config) -> str:
    """The library a config is written for, as users know it."""
    return cfg.get("default_scope") or "mmengine"


def type_name(component: dict | Hook | None, default: str = "") -> str:
    """Name of the class that a component's config builds, without scope or module.

    Args:
        component: the config, whose ``type`` is a name or a class; or a hook that is built already.
        default: the answer if it has no type.
    """
    if isinstance(component, Hook):
        return type(component).__name__
    kind = (component or {}).get("type") or default
    return kind.split(".")[-1] if isinstance(kind, str) else kind.__name__


def custom_hooks(cfg: Config) -> list[dict | Hook]:
    """The config's own hooks.

    Args:
        cfg: the config.

    Raises:
        CommandError: they are no list of hooks.
    """
    hooks = cfg.get("custom_hooks") or []
    if not isinstance(hooks, (list, tuple)) or not all(isinstance(hook, (dict, Hook)) for hook in hooks):
        raise CommandError(
            f"config {cfg.filename}: custom_hooks={hooks!r}: expected a list of dicts, one for each hook"
        )
    return list(hooks)


def complete_dataloaders(cfg: Config, *, pin_memory: bool = True, persistent_workers: bool = True) -> None:
    """Give the dataloaders the defaults of their library, and apply the options about them.

    mmpretrain's configs leave pinned memory, workers that live on, and batching to the tools; those of other libraries
    state them, and batch differently.

    Args:
        cfg: the config, changed in place.
        pin_memory: False to load data into ordinary memory, whatever the config says.
        persistent_workers: False to start new workers in every epoch, whatever the config says.
    """
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        loader = cfg.get(name)
        if not loader:
            continue
        if scope(cfg) == "mmpretrain":
            loader.setdefault("pin_memory", has_accelerator())
            loader.setdefault("persistent_workers", True)
            loader.setdefault("collate_fn", ConfigDict(type="default_collate"))
        if not pin_memory:
            loader.pin_memory = False
        if not persistent_workers or not loader.get("num_workers"):
            loader.persistent_workers = False


def enable_exact_resume(cfg: Config) -> None:
    """Let every run be one that a kill interrupts without harm.

    Args:
        cfg: the config, changed in place.
    """
    hooks = custom_hooks(cfg)
    if all(type_name(hook) != "ExactResumeHook" for hook in hooks):
        cfg.custom_hooks = [*hooks, ConfigDict(type="ExactResumeHook")]
    if cfg.get("default_hooks") is None:
        cfg.default_hooks = {}
    checkpoint = cfg.default_hooks.setdefault("checkpoint", ConfigDict(type="CheckpointHook", interval=1))
    if type_name(checkpoint) == "CheckpointHook":
        checkpoint.type = "AtomicCheckpointHook"


def build_model(cfg: Config) -> nn.Module:
    """Build the model that the config trains, with its preprocessor, on the CPU and not yet initialised.

    Args:
        cfg: the config.

    Raises:
        CommandError: the config has no model, or one that cannot be built.
    """
    if cfg.get("model") is None:
        raise CommandError(f"config {cfg.filename}: it has no model")
    init_default_scope(scope(cfg))
    model = deepcopy(cfg.model)
    if cfg.get("data_preprocessor") is not None:
        model.setdefault("data_preprocessor", cfg.data_preprocessor)
    try:
        model = MODELS.build(model)
        for hook in custom_hooks(cfg):
            if type_name(hook) == "ConvertAttentionHook":
                hook = hook if isinstance(hook, Hook) else HOOKS.build(hook)
                convert_attention(model, **hook.options)
        return model
    except Exception as error:  # whatever its parts say
        reason = " ".join(str(error).split())
        raise CommandError(f"config {cfg.filename}: its model cannot be built: {reason}") from error


def build_runner(cfg: Config) -> Runner:
    """Build the runner that the config asks for.

    Args:
        cfg: the complete config.
    """
    if cfg.get("launcher") == "pytorch" and not has_accelerator() and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")  # mmengine would choose a GPU first, and fail
    return RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)
