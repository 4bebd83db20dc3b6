#!/usr/bin/env python
"""Write a language model of fairseq as an ONNX file that stock runtimes run, and check the file.

    python tools/export_lm.py lm/weights/fma_lm_stdlib-*.pt --data lm/weights --length 1024 --out model.onnx
    python tools/export_lm.py lm/weights/fma_lm_stdlib-*.pt --data lm/weights --length 4096 --step --out step.onnx
    python tools/continue_text.py "def main(" --onnx step.onnx

Without --step the file computes the logits of all tokens of a sequence of --length tokens. With --step it takes one
token and the state of the tokens before it, and gives the logits of the next token and the new state, up to --length
tokens: O(log n) numbers for FMA. The largest difference between what the file and what PyTorch computes is printed; if
it is above the tolerance, the command fails and leaves no file.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

# PyTorch reads this when it is imported; exporting warns of operators of other packages.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

from fma_tools.command import CommandError, require_positive, run


def export(args: argparse.Namespace) -> None:
    """Write the file, compare it, and print what it is.

    Args:
        args: parsed arguments.

    Raises:
        CommandError: a file is missing or exists already, or the model cannot be exported.
    """
    for name, path, found in (
        ("checkpoint", args.checkpoint, args.checkpoint.is_file()),
        ("--data", args.data, (args.data / "dict.txt").is_file()),
    ):
        if not found:
            raise CommandError(f"{name} {path}: {'no such file' if name == 'checkpoint' else 'no dict.txt in it'}")
    if args.out.exists():
        raise CommandError(f"--out {args.out}: expected a new file; it exists")
    if args.tolerance <= 0:
        raise CommandError(f"--tolerance {args.tolerance}: expected a number above 0")
    from fma_tools.language_models.exporting import export_language_model

    try:
        print(
            export_language_model(
                args.checkpoint, args.data, args.out, length=args.length, step=args.step, batch=args.batch,
                tolerance=args.tolerance,
            )
        )  # fmt: skip
    except (ImportError, ValueError) as error:
        raise CommandError(str(error)) from error


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: the arguments; those of the process when None.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="of fairseq")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with the dict.txt of the model")
    parser.add_argument("--length", type=int, required=True, metavar="TOKENS", help="of the longest sequence")
    parser.add_argument("--step", action="store_true", help="one token at a time, with the state as input and output")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="sequences at a time (%(default)s)")
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, metavar="T",
        help="largest difference allowed, as a share of the largest logit (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where to write it")
    args = parser.parse_args(argv)
    require_positive(parser, args, "length", "batch")
    run(parser, args, export)


if __name__ == "__main__":
    main()
