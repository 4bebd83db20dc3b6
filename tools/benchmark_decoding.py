#!/usr/bin/env python3
"""Memory and time per token of decoding, by causal FMA's state and by a key-value cache with full attention (SDPA).

    python tools/benchmark_decoding.py                                  # contexts of 1k .. 1M tokens on this CPU
    python tools/benchmark_decoding.py --contexts 1024 65536 --heads 8
    python tools/benchmark_decoding.py --device cuda --dtype bfloat16 --heads 16 --batch 8

Both methods get the same tokens, one at a time. The key-value cache is allocated in advance and written in place; its
bytes are those of the tokens that it holds. First both are checked on a short context against the definition in
float64; if one is wrong, nothing is timed, and the run ends with status 1. Then the contexts are filled one after the
other, in chunks, and timed in rounds in which the methods take turns. A round of FMA is a whole cell of tokens, so that
making the summaries is in its mean; "slowest" is its slowest token, the one that ends a cell. Times are medians over
rounds.

Prints a table, and writes decoding.json and decoding.png to --out. To keep a result, copy them to
benchmarks/results/decoding-DEVICE.json and docs/decoding-DEVICE.png.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from fma_kernels import __version__
from fma_kernels.measure import device_name
from fma_tools.command import require_device, require_positive, run, settings_of
from fma_tools.decoding import HEADER, TOLERANCE, Benchmark, ContextRow, Settings, plot
from fma_tools.results import write_results


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[4**i for i in range(5, 11)], help="tokens before")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=2, help="default 2: the key-value cache of 1M tokens takes 1 GiB")
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--cell-size", type=int, default=64)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--kind", choices=["nested", "direct", "mean"], default="nested", help="of the summaries")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=list(TOLERANCE), default="float32")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--rounds", type=int, default=9, help="rounds, of which the median counts")
    parser.add_argument("--kv-tokens", type=int, default=4, help="timed tokens of the key-value cache in a round")
    parser.add_argument("--chunk", type=int, default=4096, help="tokens at a time with which contexts are filled")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("work_dirs/benchmark_decoding"), help="folder of the results")
    return parser


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse arguments that do not fit together; put the contexts in order.

    Args:
        parser: the parser.
        args: parsed arguments.
    """
    names = "batch", "heads", "head_dim", "cell_size", "rank", "threads", "rounds", "kv_tokens", "chunk"
    require_positive(parser, args, *names)
    if args.cell_size % args.rank:
        parser.error(f"--rank {args.rank}: expected a divisor of --cell-size {args.cell_size}")
    args.kv_tokens = min(args.kv_tokens, args.cell_size)
    args.contexts = sorted(args.contexts)
    step = args.rounds * args.cell_size
    gaps = [b - a for a, b in zip([-step, *args.contexts], args.contexts, strict=False)]
    if args.contexts[0] < 1 or min(gaps) < step:
        parser.error(f"--contexts {args.contexts}: expected to begin at 1 or more, and {step} tokens or more apart")
    require_device(parser, args.device)


@torch.no_grad()
def benchmark(words: list[str], args: argparse.Namespace) -> int:
    """Check, measure and report.

    Args:
        words: the arguments as they were given.
        args: parsed arguments.

    Returns:
        The status.
    """
    torch.set_num_threads(args.threads)
    methods = Benchmark(settings_of(Settings, args))
    device = device_name(methods.device)
    title = (
        f"{device}; {args.dtype}, batch {args.batch}, {args.heads} heads of {args.head_dim}; "
        f"cell {args.cell_size}, rank {args.rank}, {args.kind}"
    )
    print(f"{title}\ntorch {torch.__version__}, fma-mm {__version__}")
    errors = methods.errors()
    for name, error in errors.items():
        print(f"{name}: {error:.1e} from the definition in float64")
    if wrong := [name for name, error in errors.items() if not error <= TOLERANCE[args.dtype]]:
        print(f"wrong: {', '.join(wrong)}; expected at most {TOLERANCE[args.dtype]:g}", file=sys.stderr)
        return 1

    print(f"\n{HEADER}")
    rows: list[ContextRow] = []
    for row in methods.rows():
        rows.append(row)
        print(row, flush=True)
        command = ["python", "tools/benchmark_decoding.py", *words]
        figures = dict(errors=errors, rows=[asdict(row) for row in rows])
        write_results(args.out / "decoding.json", command, args, {"device": device}, **figures)
    first, last = rows[0], rows[-1]
    print(
        f"{first.context} -> {last.context} tokens: FMA's time per token x {last.fma_ms / first.fma_ms:.2f}, "
        f"its memory x {last.fma_bytes / first.fma_bytes:.2f}"
    )
    plot(rows, title, args.out / "decoding.png")
    print(f"\nwrote {args.out / 'decoding.json'} and {args.out / 'decoding.png'}")
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
