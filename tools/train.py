#!/usr/bin/env python
"""Train a model of mmpretrain, mmseg or plain mmengine from its config.

A run that was interrupted and continued with ``--resume`` ends with the weights of the uninterrupted run.
"""

from __future__ import annotations

import logging
from argparse import ArgumentParser, Namespace
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import find_latest_checkpoint

from fma_mm import cli  # the package registers the project's components
from fma_mm.cli import CommandError


def make_parser() -> ArgumentParser:
    """The command line."""
    parser = ArgumentParser(description="Train a model from its config.")
    parser.add_argument("config", help="config file")
    cli.add_common_arguments(parser)
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="continue from this checkpoint, or without a value from the latest one in the work directory, if any",
    )
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate with the batch size, relative to the config's auto_scale_lr.base_batch_size",
    )
    parser.add_argument("--no-validate", action="store_true", help="do not validate during training")
    parser.add_argument("--no-persistent-workers", action="store_true", help="start new data workers in every epoch")
    return parser


def make_config(args: Namespace) -> Config:
    """The config that the command line asks for.

    Args:
        args: parsed arguments.

    Raises:
        CommandError: an option does not fit the config or the machine.
    """
    cfg = cli.load_config(args)
    if args.amp:
        enable_amp(cfg)
    if args.auto_scale_lr:
        if not (cfg.get("auto_scale_lr") or {}).get("base_batch_size"):
            raise CommandError(f"--auto-scale-lr: {args.config} states no auto_scale_lr = dict(base_batch_size=...)")
        cfg.auto_scale_lr.enable = True
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cli.complete_dataloaders(cfg, pin_memory=not args.no_pin_memory, persistent_workers=not args.no_persistent_workers)
    if args.resume:
        set_resume(cfg, args.resume)
    cli.enable_exact_resume(cfg)
    return cfg


def enable_amp(cfg: Config) -> None:
    """Train in mixed precision.

    Args:
        cfg: the config, changed in place.

    Raises:
        CommandError: the config's optimizer wrapper has no counterpart in mixed precision, or there is no GPU.
    """
    wrapper = cfg.get("optim_wrapper") or {}
    name = cli.type_name(wrapper, default="OptimWrapper")
    if name == "AmpOptimWrapper":
        print_log("--amp: the config trains in mixed precision already.", "current", logging.WARNING)
        return
    if name != "OptimWrapper":
        raise CommandError(f"--amp: works with optim_wrapper.type='OptimWrapper', and the config has '{name}'")
    if not cli.has_accelerator():
        raise CommandError("--amp: training in mixed precision needs a GPU, and this machine has none")
    wrapper.type = "AmpOptimWrapper"
    wrapper.setdefault("loss_scale", "dynamic")


def set_resume(cfg: Config, checkpoint: str) -> None:
    """Continue an earlier run.

    Args:
        cfg: the config, changed in place.
        checkpoint: path, or ``"auto"`` for the latest checkpoint in the work directory. Without one there, the run
            starts from the beginning, with the weights of the config's ``load_from``.

    Raises:
        CommandError: the checkpoint is missing, or the runner would not continue where it stopped.
    """
    hooks = cfg.get("default_hooks") or {}
    if cfg.get("runner_type") == "FlexibleRunner" and (hooks.get("checkpoint") or {}).get("save_best"):
        raise CommandError(
            "--resume: with runner_type='FlexibleRunner', checkpoints that save_best rewrites skip an epoch when "
            "resumed; train with default_hooks.checkpoint.save_best=None"
        )
    if checkpoint == "auto":
        checkpoint = find_latest_checkpoint(cfg.work_dir)
        if checkpoint is None:
            cfg.resume = False
            return
        moved = Path(cfg.work_dir, Path(checkpoint).name)
        if not cli.exists(checkpoint) and moved.is_file():  # the work directory has moved since
            checkpoint = str(moved)
    if not cli.exists(checkpoint):
        raise CommandError(f"--resume: {checkpoint}: no such checkpoint")
    cfg.resume, cfg.load_from = True, checkpoint


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: the arguments; those of the process when None.
    """
    cli.run(make_parser(), argv, lambda args: cli.build_runner(make_config(args)).train())


if __name__ == "__main__":
    main()
