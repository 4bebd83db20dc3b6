#!/usr/bin/env python
"""Evaluate a checkpoint of mmpretrain, mmseg or plain mmengine, or an exported file, on the test set of its config."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from copy import deepcopy
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.evaluator import DumpResults
from mmengine.fileio import dump

from fma_mm import cli  # the package registers the project's components
from fma_mm.cli import CommandError

PREDICTION_FILES = (".pkl", ".pickle")
METRIC_FILES = (".json", ".yaml", ".yml", *PREDICTION_FILES)


def make_parser() -> ArgumentParser:
    """The command line."""
    parser = ArgumentParser(description="Evaluate a checkpoint on the test set of its config.")
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", nargs="?", help="checkpoint file or URL; none with --onnx")
    parser.add_argument(
        "--onnx",
        metavar="FILE",
        help="evaluate this file of tools/export.py in place of a checkpoint: onnxruntime computes the logits, and the "
        "config's model does all that is before and behind them",
    )
    cli.add_common_arguments(parser)
    parser.add_argument(
        "--out",
        metavar="PATH",
        help="write the predictions to this .pkl file (mmseg: as images to this directory), or with --out-item "
        "metrics, the metrics to this .json, .yaml or .pkl file",
    )
    parser.add_argument("--out-item", choices=["metrics", "pred"], help="contents of --out; predictions by default")
    parser.add_argument("--show", action="store_true", help="show the predictions in a window")
    parser.add_argument("--show-dir", metavar="DIR", help="draw the predictions into this directory")
    parser.add_argument("--interval", type=int, metavar="N", help="draw every N-th sample; 1 by default (mmpretrain)")
    parser.add_argument("--wait-time", type=float, default=2, metavar="SECONDS", help="time per window; 2 by default")
    parser.add_argument(
        "--tta",
        action="store_true",
        help="average over augmentations of the input: the config's tta_pipeline and tta_model; "
        "mmpretrain's default is to flip the images",
    )
    return parser


def make_config(args: Namespace) -> Config:
    """The config that the command line asks for.

    Args:
        args: parsed arguments.

    Raises:
        CommandError: an option does not fit the config or the machine, or the checkpoint is missing.
    """
    cfg = cli.load_config(args)
    if (args.checkpoint is None) == (args.onnx is None):
        raise CommandError("expected a checkpoint, or --onnx FILE in its place")
    if args.checkpoint is not None and not cli.exists(args.checkpoint):
        raise CommandError(f"checkpoint {args.checkpoint}: no such file")
    if args.onnx is not None and (args.amp or args.tta):
        raise CommandError(f"--onnx {args.onnx}: works without --amp and --tta, which belong to the model")
    for name in ("test_dataloader", "test_cfg", "test_evaluator"):
        if cfg.get(name) is None:
            raise CommandError(f"config {args.config}: it has no {name}")
    cfg.load_from, cfg.resume = args.checkpoint, False
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.tta:
        enable_tta(cfg)
    if args.show or args.show_dir:
        enable_drawing(cfg, args)
    elif args.interval is not None:
        raise CommandError("--interval: needs --show or --show-dir")
    set_out(cfg, args)
    cli.complete_dataloaders(cfg, pin_memory=not args.no_pin_memory)
    return cfg


def enable_tta(cfg: Config) -> None:
    """Average over augmentations of the input.

    Args:
        cfg: the config, changed in place.

    Raises:
        CommandError: the config does not say how, and its library has no default.
    """
    dataset = cfg.test_dataloader.dataset
    if cli.scope(cfg) == "mmpretrain":
        cfg.setdefault("tta_model", ConfigDict(type="mmpretrain.AverageClsScoreTTA"))
        if "tta_pipeline" not in cfg:
            flips = [dict(type="RandomFlip", prob=1.0), dict(type="RandomFlip", prob=0.0)]
            *steps, pack = deepcopy(dataset.pipeline)
            cfg.tta_pipeline = [*steps, ConfigDict(type="TestTimeAug", transforms=[flips, [pack]])]
    for name in ("tta_model", "tta_pipeline"):
        if cfg.get(name) is None:
            raise CommandError(f"--tta: the config has no {name}, and {cli.scope(cfg)} has no default for it")
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    dataset.pipeline = cfg.tta_pipeline


def enable_drawing(cfg: Config, args: Namespace) -> None:
    """Draw the predictions, in a window or into a directory.

    Args:
        cfg: the config, changed in place.
        args: parsed arguments.

    Raises:
        CommandError: the config's library draws in another way.
    """
    option = "--show-dir" if args.show_dir else "--show"
    if cli.scope(cfg) not in {"mmpretrain", "mmseg"}:
        raise CommandError(f"{option}: works under default_scope 'mmpretrain' and 'mmseg', not '{cli.scope(cfg)}'")
    hook = (cfg.get("default_hooks") or {}).get("visualization")
    if hook is None:
        raise CommandError(f"{option}: the config has no default_hooks.visualization")
    if cli.scope(cfg) == "mmpretrain":
        if args.tta:
            raise CommandError(f"{option}: mmpretrain cannot draw with --tta")
        hook.update(enable=True, show=args.show, out_dir=args.show_dir, interval=args.interval or 1)
        hook.wait_time = args.wait_time
        return
    if args.interval is not None:
        raise CommandError("--interval: mmseg draws every sample")
    if args.show and args.show_dir:
        raise CommandError("--show-dir: mmseg cannot draw into a directory and show the window as well")
    hook.update(draw=True, show=args.show, wait_time=args.wait_time)
    if args.show_dir:
        if cfg.get("visualizer") is None:
            raise CommandError("--show-dir: the config has no visualizer")
        cfg.visualizer.save_dir = args.show_dir


def set_out(cfg: Config, args: Namespace) -> None:
    """Check where results go, and let mmseg's metrics write predictions there.

    Args:
        cfg: the config, changed in place.
        args: parsed arguments.

    Raises:
        CommandError: the path does not suit what is written.
    """
    if args.out is None:
        if args.out_item is not None:
            raise CommandError("--out-item: needs --out")
        return
    suffix = Path(args.out).suffix
    if args.out_item == "metrics":
        if suffix not in METRIC_FILES:
            raise CommandError(f"--out {args.out}: metrics need a {', '.join(METRIC_FILES)} file")
    elif cli.scope(cfg) == "mmseg":
        if Path(args.out).is_file():
            raise CommandError(f"--out {args.out}: mmseg writes predictions into a directory, and this is a file")
        metrics = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
        for metric in metrics:
            metric.update(output_dir=args.out, keep_results=True)
    elif suffix not in PREDICTION_FILES:
        raise CommandError(f"--out {args.out}: predictions need a {' or '.join(PREDICTION_FILES)} file")


def evaluate(args: Namespace) -> None:
    """Evaluate, and write what ``--out`` asks for.

    Args:
        args: parsed arguments.
    """
    cfg = make_config(args)
    runner = cli.build_runner(cfg)
    if args.onnx is not None:
        from fma_mm.deployment import run_by_onnx  # tracing takes a while to import, and checkpoints do without it

        try:
            run_by_onnx(runner.model, args.onnx)
        except (ImportError, ValueError) as error:
            raise CommandError(f"--onnx {args.onnx}: {error}") from error
    if args.out and args.out_item != "metrics" and cli.scope(cfg) != "mmseg":
        runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))
    metrics = runner.test()
    if args.out and args.out_item == "metrics":
        dump(metrics, args.out)


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: the arguments; those of the process when None.
    """
    cli.run(make_parser(), argv, evaluate)


if __name__ == "__main__":
    main()
