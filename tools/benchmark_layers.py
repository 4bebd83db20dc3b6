#!/usr/bin/env python3
"""One self-attention layer, projections included: FMA, full attention (SDPA) and layers of other libraries, in one run.

    pip install 'fma-mm[baselines]'
    python tools/benchmark_layers.py                                    # 16,384 tokens on this CPU
    python tools/benchmark_layers.py --check                            # status 1 if FMA misses a goal
    python tools/benchmark_layers.py --layers fma sdpa local-attention --directions causal --rounds 3

All layers have the same width, heads and input, and none encodes positions. A library's layer is its own module with
its own projections and default settings, but for what its row in the JSON states. Layers whose causal form reads later
tokens, or that have none, are left out of the causal table. Every layer is checked first: shape, finite outputs and
gradients, causal ones by changing later tokens, FMA against its dense definition in float64 on a short sequence. If one
is wrong, nothing is timed, and the run ends with status 1. Times are medians of rounds in which the layers take turns;
memory is the peak of what both passes allocate beyond input and parameters, output and gradients included. "/ FMA"
divides a time by FMA's.

Prints a table in Markdown, and writes layers.json to --out. To keep a result, copy it to
benchmarks/results/layers-DEVICE.json.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from functools import partial
from importlib import metadata
from pathlib import Path

import torch

from fma_kernels import __version__
from fma_kernels.measure import device_name
from fma_tools.command import require_device, require_positive, run, settings_of
from fma_tools.layers import DIRECTIONS, KINDS, LayerRow, Settings, make_entries, measure, table
from fma_tools.results import write_results


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--layers", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="LAYER", help=f"of {', '.join(KINDS)}"
    )
    parser.add_argument("--directions", nargs="+", choices=DIRECTIONS, default=list(DIRECTIONS))
    parser.add_argument("--tokens", type=int, default=16384, help="a power of two, as h-transformer-1d asks for")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dim", type=int, default=512, help="channels of the layers")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--cell-size", type=int, default=32, help="of FMA")
    parser.add_argument("--rank", type=int, default=1, help="of FMA")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=min(2, torch.get_num_threads()), help="CPU threads")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, of which the median counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="end with status 1 if FMA misses a goal")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/benchmark_layers"), help="folder of the result")
    return parser


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse arguments that do not fit together.

    Args:
        parser: the parser.
        args: parsed arguments.
    """
    require_positive(parser, args, "batch", "dim", "heads", "cell_size", "rank", "threads", "rounds")
    if args.tokens < 256 or args.tokens & (args.tokens - 1):
        parser.error(f"--tokens {args.tokens}: expected a power of two, at least 256")
    if args.dim % args.heads:
        parser.error(f"--dim {args.dim}: expected a multiple of --heads {args.heads}")
    if args.cell_size % args.rank:
        parser.error(f"--rank {args.rank}: expected a divisor of --cell-size {args.cell_size}")
    if "fma" not in args.layers:
        parser.error(f"--layers {' '.join(args.layers)}: expected fma among them, which ratios and goals refer to")
    require_device(parser, args.device)


def benchmark(words: list[str], args: argparse.Namespace) -> int:
    """Check, measure and report.

    Args:
        words: the arguments as they were given.
        args: parsed arguments.

    Returns:
        The status.
    """
    settings = settings_of(Settings, args)
    torch.set_num_threads(args.threads)
    device = device_name(torch.device(args.device))
    print(
        f"{device}; float32, batch {args.batch}, {args.tokens} tokens, {args.dim} channels, {args.heads} heads\n"
        f"torch {torch.__version__}, fma-mm {__version__}; FMA: cell {args.cell_size}, rank {args.rank}"
    )
    rows: list[LayerRow] = []
    for direction in args.directions:
        entries = make_entries(settings, direction == "causal")
        problems = {name: problem for name, entry in entries.items() if (problem := entry.problem())}
        for name, problem in problems.items():
            print(f"wrong: {name}, {direction}: {problem}", file=sys.stderr)
        if problems:
            return 1
        rows += (measured := measure(entries, settings, direction))
        print(f"\n{direction}\n\n{table(measured)}", flush=True)
        libraries = {name: metadata.version(name) for name in args.layers if KINDS[name].library}
        figures = dict(libraries=libraries, rows=[asdict(row) for row in rows])
        command = ["python", "tools/benchmark_layers.py", *words]
        write_results(args.out / "layers.json", command, args, {"device": device}, **figures)
    print(f"\nwrote {args.out / 'layers.json'}")
    missed = [f"{row.layer}, {row.direction}" for row in rows if not row.met]
    if args.check and missed:
        print(f"missed: {'; '.join(missed)}", file=sys.stderr)
        return 1
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments; those of the process when None.

    Returns:
        The status.
    """
    words, parser = sys.argv[1:] if argv is None else argv, make_parser()
    args = parser.parse_args(words)
    check(parser, args)
    return run(parser, args, partial(benchmark, words))


if __name__ == "__main__":
    sys.exit(main())
