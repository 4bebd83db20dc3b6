#!/usr/bin/env python3
"""Bytes between ranks over which tokens are split: FMA beside ring attention and gathered keys and values.

    python tools/plan_parallel.py
    python tools/plan_parallel.py --tokens 1048576 --ranks 8 64 --cell-size 128 --rank 2 --causal
    python tools/plan_parallel.py --grids 2048x2048 64x256x256 --cell-size 8 --rank 1

For each number of tokens and ranks: MiB that the busiest rank gets in the forward pass of one layer of FMA, in two
parts (keys and values of the neighbours' cells; sums of the lowest level from all ranks), and with ring attention;
then the same for both passes, and with gathered keys and values, which get as much as a ring in the forward pass. Where
there are fewer layers of cells than ranks there is no row.

These are computed from the shapes of what is sent, not measured. How long it takes depends on the network.

Prints a table, and writes plan_parallel.json and plan_parallel.png to --out.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from fma_kernels.summaries import KINDS
from fma_tools.command import CommandError, grid_argument, require_positive, run, settings_of
from fma_tools.results import write_results
from fma_tools.traffic import Attention, compare, plot, report

TOKENS = [2**16, 2**18, 2**20, 2**22, 2**24]
RANKS = [2, 4, 8, 16, 32, 64, 128, 256, 512]


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--tokens", type=int, nargs="+", metavar="N", help="tokens of a sequence (64k to 16M)")
    where.add_argument("--grids", type=grid_argument, nargs="+", metavar="HxW", help="images, or volumes DxHxW")
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS, metavar="W", help="ranks (2 to 512)")
    parser.add_argument("--attention", choices=["fma", "fma_linear", "near"], default="fma", help="fma by default")
    parser.add_argument("--cell-size", type=int, default=64, help="64 by default")
    parser.add_argument("--rank", type=int, default=4, help="summaries per cell and axis; 4 by default")
    parser.add_argument("--basis-kind", choices=KINDS, default="nested", help="nested by default")
    parser.add_argument("--causal", action="store_true", help="causal attention over a sequence")
    parser.add_argument("--batch", type=int, default=1, help="sequences per rank; 1 by default")
    parser.add_argument("--heads", type=int, default=8, help="8 by default")
    parser.add_argument("--head-dim", type=int, default=64, help="64 by default")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="bfloat16", help="bfloat16")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/plan_parallel"), metavar="DIR", help="folder")
    return parser


def work(words: list[str], args: argparse.Namespace) -> None:
    """Compute, and report.

    Args:
        words: the arguments as they were given.
        args: parsed arguments.
    """
    attention = settings_of(Attention, argparse.Namespace(**{**vars(args), "dtype": getattr(torch, args.dtype)}))
    grids = args.grids or [(tokens,) for tokens in args.tokens or TOKENS]
    try:
        layers = {grid: attention.slab(grid, 0, 1).hierarchy.cell_grid(1)[0] for grid in grids}
    except ValueError as error:
        raise CommandError(error) from error
    rows = [compare(attention, grid, ranks) for grid in grids for ranks in args.ranks if ranks <= layers[grid]]
    if not rows:
        raise CommandError(f"--ranks {args.ranks}: expected at most {max(layers.values())}, the layers of cells")
    title = f"{args.attention}{', causal' if args.causal else ''}, cell {args.cell_size}, rank {args.rank}, "
    title += f"{args.basis_kind}; batch {args.batch}, {args.heads} heads of {args.head_dim}, {args.dtype}"
    print(f"{title}; MiB that a rank gets per layer\n\n{report(rows)}")
    write_results(args.out / "plan_parallel.json", words, args, {"device": None}, rows=[asdict(row) for row in rows])
    plot(rows, title, args.out / "plan_parallel.png")
    print(f"\nwrote {args.out / 'plan_parallel.json'} and {args.out / 'plan_parallel.png'}")


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: the arguments; those of the process when None.
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    require_positive(parser, args, "cell_size", "rank", "batch", "heads", "head_dim", "tokens")
    require_positive(parser, args, "ranks", least=2)
    words = ["python", "tools/plan_parallel.py", *(sys.argv[1:] if argv is None else argv)]
    run(parser, args, lambda args: work(words, args))


if __name__ == "__main__":
    main()
