#!/usr/bin/env python
"""Write a model of a config as a file that stock runtimes run without PyTorch or this project, and check the file.

    python tools/export.py configs/demo/fma2d_digits.py work_dirs/fma2d_digits/epoch_25.pth --size 48 --out digits.onnx
    python tools/export.py configs/imagenet/fma2d-tiny_8xb128_in1k.py --size 224 --batch dynamic --out tiny.onnx
    python tools/export.py configs/ade20k/fma2d-tiny_segformer_8xb2-160k_ade20k-512x512.py --size 512 --part backbone \\
        --format pt2 --out backbone.pt2

The file computes the logits of a classifier, the maps of a segmentor at the size of the image, or with --part backbone
the feature maps. Heights and widths are numbers, as the levels of the attention depend on them: one file per size.
The largest difference between what the file and what PyTorch computes is printed; if it is above the tolerance, the
command fails and leaves no file.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

# PyTorch reads this when it is imported; exporting warns of operators of other packages.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

from fma_mm import cli  # the package registers the project's components
from fma_mm.cli import CommandError
from fma_mm.deployment import PARTS


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", nargs="?", help="checkpoint file or URL; random weights without one")
    parser.add_argument("--size", nargs="+", type=_side, required=True, metavar="PIXELS", help="height and width")
    parser.add_argument("--batch", type=_batch, default=1, metavar="N", help="images, or 'dynamic' (%(default)s)")
    parser.add_argument("--format", choices=["onnx", "pt2"], default="onnx", help="(%(default)s)")
    parser.add_argument("--part", choices=PARTS, default="model", help="part of the model to export (%(default)s)")
    parser.add_argument("--fp16", action="store_true", help="compute in float16; images and outputs stay float32")
    parser.add_argument(
        "--normalize", action="store_true",
        help="the file takes pixels as the config's pipeline loads them, 0 to 255, blue first, and normalises them",
    )  # fmt: skip
    parser.add_argument("--image", type=Path, metavar="FILE", help="picture to compare on; random pixels without one")
    parser.add_argument(
        "--tolerance", type=float, metavar="T",
        help="largest difference allowed, as a share of the largest output (1e-4, with --fp16 2e-2)",
    )  # fmt: skip
    parser.add_argument(
        "--time", type=int, default=0, metavar="ROUNDS",
        help="time the file and PyTorch on one thread in so many rounds, in turns; medians",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where to write it")
    cli.add_config_options(parser)
    return parser


def _side(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected a number of pixels: the levels of the attention depend on it; export one file per size"
        )
    return int(text)


def _batch(text: str) -> int | str:
    if text != "dynamic" and (not text.isdigit() or int(text) < 1):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number >= 1, or 'dynamic'")
    return text if text == "dynamic" else int(text)


def export(args: argparse.Namespace) -> None:
    """Write the file, compare it, and print what it is.

    Args:
        args: parsed arguments.

    Raises:
        CommandError: an argument does not fit, a package is missing, or the file differs from the model.
    """
    if len(args.size) > 2:
        raise CommandError(f"--size {' '.join(map(str, args.size))}: expected one or two numbers")
    if args.tolerance is not None and args.tolerance <= 0:
        raise CommandError(f"--tolerance {args.tolerance}: expected a number above 0")
    if args.time < 0:
        raise CommandError(f"--time {args.time}: expected a number >= 0")
    if args.out.exists():
        raise CommandError(f"--out {args.out}: expected a new file; it exists")
    if args.image is not None and not args.image.is_file():
        raise CommandError(f"--image {args.image}: no such file")
    if args.checkpoint is not None and not cli.exists(args.checkpoint):
        raise CommandError(f"checkpoint {args.checkpoint}: no such file")
    from fma_tools.exporting import Request, export_model  # after the arguments are known to be good

    cfg = cli.read_config(args.config, args.cfg_options)
    request = Request(
        size=(args.size[0], args.size[-1]), batch=args.batch, format=args.format, part=args.part, half=args.fp16,
        normalize=args.normalize, image=args.image, out=args.out, rounds=args.time,
        tolerance=args.tolerance or (2e-2 if args.fp16 else 1e-4),
    )  # fmt: skip
    try:
        report = export_model(cfg, args.checkpoint, request)
    except (ImportError, ValueError) as error:
        raise CommandError(str(error)) from error
    print(report)


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: the arguments; those of the process when None.
    """
    cli.run(make_parser(), argv, export)


if __name__ == "__main__":
    main()
