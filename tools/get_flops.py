#!/usr/bin/env python
"""Parameters and FLOPs of the model of a config, in total and by module.

    python tools/get_flops.py configs/imagenet/fma2d-tiny_8xb128_in1k.py
    python tools/get_flops.py configs/imagenet/swin-base_8xb128_in1k.py --shape 384 --depth 2

One FLOP is one multiply-add of a forward pass over one image; see fma_mm/analysis/flops.py for what counts.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

import torch
from mmengine.config import Config
from torch import nn

from fma_mm import cli  # the package registers the project's components
from fma_mm.analysis.flops import by_module, count_flops, count_parameters
from fma_mm.cli import CommandError


def make_parser() -> ArgumentParser:
    """The command line."""
    parser = ArgumentParser(description="Parameters and FLOPs of the model of a config.")
    parser.add_argument("config", help="config file")
    parser.add_argument(
        "--shape",
        type=int,
        nargs="+",
        metavar="PIXELS",
        help="side, or height and width, of the image; that of the config by default",
    )
    parser.add_argument("--depth", type=int, default=2, help="levels of modules to show; 2 by default")
    cli.add_config_options(parser)
    return parser


def input_shape(args: Namespace, cfg: Config) -> tuple[int, int]:
    """Height and width of the image.

    Args:
        args: parsed arguments.
        cfg: the config. Without ``--shape``, its preprocessor says what images are padded to, or its ``train_pipeline``
            what they are cropped to, or its backbone what they usually are; otherwise 512 pixels for mmseg, and 224.

    Raises:
        CommandError: ``--shape`` is not one or two positive numbers.
    """
    if args.shape is not None:
        if len(args.shape) > 2 or min(args.shape) < 1:
            raise CommandError(f"--shape {' '.join(map(str, args.shape))}: expected one or two positive numbers")
        return args.shape[0], args.shape[-1]
    model = cfg.get("model") or {}
    preprocessor = cfg.get("data_preprocessor") or model.get("data_preprocessor") or {}
    crops = [step for step in cfg.get("train_pipeline") or [] if "Crop" in cli.type_name(step)]
    size = (
        preprocessor.get("size")
        or (crops and (crops[-1].get("crop_size") or crops[-1].get("scale")))
        or (model.get("backbone") or {}).get("img_size")
        or (512 if cli.scope(cfg) == "mmseg" else 224)
    )
    return (size, size) if isinstance(size, int) else tuple(size)


def table(model: nn.Module, flops: dict[str, int], depth: int) -> str:
    """One line per module, indented as they lie in one another.

    Args:
        model: the model.
        flops: FLOPs by name of the module.
        depth: how far to go into modules inside modules.
    """
    rows, parents = [], []
    for level, name, module, count in by_module(model, flops, depth):
        parents[level:] = [f"{name}."]
        own = f"{name.removeprefix(parents[level - 1])}: " if level > 1 else f"{name}: " if level else ""
        share = 100 * count / flops[""] if flops[""] else 0.0
        figures = (f"{count_parameters(module) / 1e6:12.3f} M", f"{count / 1e9:10.3f} G", f"{share:6.1f} %")
        rows.append(("  " * level + own + type(module).__name__, *figures))
    width = max(len(row[0]) for row in rows)
    header = f"{'module':<{width}}{'parameters':>14}{'FLOPs':>12}{'share':>8}"
    return "\n".join([header, *(f"{label:<{width}}{''.join(figures)}" for label, *figures in rows)])


def get_flops(args: Namespace) -> None:
    """Count, and print the table.

    Args:
        args: parsed arguments.
    """
    if args.depth < 0:
        raise CommandError(f"--depth {args.depth}: expected 0 or more")
    cfg = cli.read_config(args.config, args.cfg_options)
    height, width = input_shape(args, cfg)
    model = cli.build_model(cfg)
    try:
        flops = count_flops(model, torch.zeros(1, 3, height, width), mode="tensor")
    except Exception as error:  # whatever the model makes of an image of this size
        reason = " ".join(str(error).split())
        raise CommandError(f"config {args.config}: no forward pass over {height}x{width}: {reason}") from error
    print(f"{table(model, flops, args.depth)}\n")
    print(f"Input shape: 3 x {height} x {width}")
    print(f"Parameters:  {count_parameters(model):,}")
    print(f"FLOPs:       {flops['']:,} multiply-adds")


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: the arguments; those of the process when None.
    """
    cli.run(make_parser(), argv, get_flops)


if __name__ == "__main__":
    main()
