#!/usr/bin/env python3
"""Cell size and rank for an input: what each choice reads, costs and needs, and which choices no other one beats.

    python tools/plan.py --grid 128x128 --heads 4 --head-dim 32 --batch 16
    python tools/plan.py --tokens 65536 --causal --heads 8 --head-dim 64 --budget 2GiB
    python tools/plan.py --grid 64x64 --heads 4 --head-dim 32 --measure          # milliseconds on this CPU as well

For each choice: tokens that a query reads one by one and summaries that it reads, on average; the share of all tokens
(of those before it, with --causal) that it reads one by one; multiply-adds of the forward pass, the making of the
summaries included; memory at the peak of a forward and a backward pass of the attention, simulated: queries, keys,
values, output, all gradients, and what is kept in between. A star marks a choice that no other one within the budget
beats: with as many keys per query (tokens and summaries), as many tokens read one by one, and as little time (without
--measure: as few multiply-adds).

Prints a table, and writes plan.json and plan.png to --out.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from fma_kernels.measure import device_name
from fma_tools.command import grid_argument, require_positive, run
from fma_tools.planning import Problem, plan, plot, report
from fma_tools.results import write_results

UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def size_argument(text: str) -> int:
    """Bytes, for example 8GiB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]iB)?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of bytes, or one of KiB, MiB or GiB, as in 8GiB")
    return int(float(match[1]) * UNITS[match[2] or ""])


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--grid", type=grid_argument, metavar="HxW", help="tokens of an image, or of a volume DxHxW")
    where.add_argument("--tokens", type=int, metavar="N", help="tokens of a sequence")
    parser.add_argument("--causal", action="store_true", help="causal attention over a sequence")
    parser.add_argument("--attention", choices=["fma", "fma_linear"], default="fma", help="fma by default")
    parser.add_argument("--batch", type=int, default=1, help="1 by default")
    parser.add_argument("--heads", type=int, default=8, help="8 by default")
    parser.add_argument("--head-dim", type=int, default=64, help="64 by default")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="float32")
    parser.add_argument("--cells", type=int, nargs="+", metavar="R", help="4 to 128 tokens; in images 2 to 16")
    parser.add_argument("--ranks", type=int, nargs="+", metavar="P", help="1, 2, 4 and 8; in images 1, 2 and 4")
    parser.add_argument("--budget", type=size_argument, metavar="BYTES", help="memory of both passes, as 8GiB")
    parser.add_argument("--measure", action="store_true", help="time both passes on this machine's CPU")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds; 3 by default")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/plan"), metavar="DIR", help="folder of the results")
    return parser


def work(words: list[str], args: argparse.Namespace) -> None:
    """Plan, and report.

    Args:
        words: the arguments as they were given.
        args: parsed arguments.
    """
    grid = args.grid or (args.tokens,)
    cells = args.cells or ([4, 8, 16, 32, 64, 128] if len(grid) == 1 else [2, 4, 7, 8, 16])
    ranks = args.ranks or ([1, 2, 4, 8] if len(grid) == 1 else [1, 2, 4])
    problem = Problem(
        grid, args.causal, args.attention, args.batch, args.heads, args.head_dim, getattr(torch, args.dtype)
    )  # fmt: skip
    choices = plan(problem, cells, ranks, args.budget, args.rounds if args.measure else 0)
    title = f"{'x'.join(map(str, grid))} tokens, {args.attention}{', causal' if args.causal else ''}; "
    title += f"batch {args.batch}, {args.heads} heads of {args.head_dim}, {args.dtype}"
    device = device_name(torch.device("cpu")) if args.measure else None
    print(f"{title}{f'; {device}' if device else ''}\n\n{report(choices)}")
    write_results(args.out / "plan.json", words, args, {"device": device}, choices=[asdict(c) for c in choices])
    plot(choices, title, args.out / "plan.png")
    print(f"\nwrote {args.out / 'plan.json'} and {args.out / 'plan.png'}")


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: the arguments; those of the process when None.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    require_positive(parser, args, "batch", "heads", "head_dim", "rounds", "tokens", "cells", "ranks")
    if args.causal and args.grid:
        parser.error("--causal: expected --tokens, as only sequences have an order")
    words = ["python", "tools/plan.py", *(sys.argv[1:] if argv is None else argv)]
    run(parser, args, lambda args: work(words, args))


if __name__ == "__main__":
    main()
