#!/usr/bin/env python
"""Train a language model from its recipe, with any attention and context.

    python tools/train_lm.py configs/lm/enwik8.yaml --data data/enwik8/bin --attention fma --context 4096
    python tools/train_lm.py configs/lm/stdlib.yaml --data data/stdlib/bin --attention fma:cell=16,rank=2 --context 1024
    python tools/train_lm.py configs/lm/stdlib.yaml --data data/stdlib/bin --attention local optimization.max_update=100

It starts ``fairseq-hydra-train`` with the recipe, which says everything else, and prints that command. Further
arguments KEY=VALUE change the recipe. On a machine with several GPUs fairseq uses all of them. Checkpoints and log lie
in --out; the same command continues a run that was interrupted.
"""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

from fma_tools.command import run
from fma_tools.language_models.recipes import MALLOC, OPTIONS, Variant, default_out, training_command


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="recipe, a file of configs/lm")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder that fairseq-preprocess wrote")
    parser.add_argument(
        "--attention", type=Variant.parse, metavar="ATTENTION[:OPTION=VALUE,...]",
        help="full, near, fma, fma-linear, local, linear, h-transformer or reformer; options are " + ", ".join(OPTIONS),
    )  # fmt: skip
    parser.add_argument("--context", type=int, metavar="TOKENS", help="tokens per sample")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where log and checkpoints go; in work_dirs by default")
    parser.add_argument("--dry-run", action="store_true", help="print the command, and end")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes of the recipe")
    return parser


def train(args: argparse.Namespace) -> None:
    """Print the command that trains, and become it.

    Args:
        args: parsed arguments.
    """
    out = args.out or default_out(args.config, args.attention, args.context)
    command = training_command(args.config, args.data, out, args.attention, args.context, args.overrides)
    print(shlex.join(command), flush=True)
    if not args.dry_run:
        os.execve(command[0], command, {**MALLOC, **os.environ})


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: the arguments; those of the process when None.
    """
    parser = make_parser()
    run(parser, parser.parse_intermixed_args(argv), train)


if __name__ == "__main__":
    main()
