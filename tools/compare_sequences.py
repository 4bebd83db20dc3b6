#!/usr/bin/env python
"""Train models that differ in their attention alone on tasks that need the far field, and count what they get right.

    python tools/compare_sequences.py configs/lm/listops.yaml --data data/listops \\
        --attention full near:cell=8 fma:cell=8,rank=2
    python tools/compare_sequences.py configs/lm/recall.yaml --data data/recall --seeds 0 1 \\
        --attention full near:cell=8 fma:cell=8,rank={1,2,4} fma-linear:cell=8,rank=2

The data are those of tools/prepare/listops.py and recall.py; ATTENTION is written as for train_lm.py. Trainings that
ended before are not repeated. Accuracies are also given by the distance from a question back to its pair (recall), or
by the length of the list (ListOps). Prints a table, and writes NAME.json and NAME.md to --out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fma_tools.command import run
from fma_tools.language_models.recipes import Variant
from fma_tools.language_models.sequences import compare, settings_from


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="recipe: configs/lm/listops.yaml or recall.yaml")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder that tools/prepare wrote")
    parser.add_argument(
        "--attention", nargs="+", type=Variant.parse, required=True, metavar="ATTENTION",
        help="attentions to compare, written as for train_lm.py",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("work_dirs/sequences"), metavar="DIR", help="%(default)s")
    parser.add_argument("--name", default="comparison", help="of the files that are written (%(default)s)")
    parser.add_argument("--split", default="test", help="split to test on (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each training on a CPU (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], metavar="SEED", help="train each with these seeds")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes of the recipe")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: the arguments; those of the process when None.
    """
    words, parser = sys.argv[1:] if argv is None else argv, make_parser()
    args = parser.parse_args(words)
    command = ["python", "tools/compare_sequences.py", *words]
    run(parser, args, lambda args: compare(settings_from(args), command))


if __name__ == "__main__":
    main()
