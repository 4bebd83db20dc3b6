#!/usr/bin/env python3
"""Time and memory of FMA, FMA-linear, full attention (SDPA) and their peers, side by side in one run.

    python tools/benchmark_attention.py                          # 1k .. 16k tokens and 64x64, 128x128 on this CPU
    python tools/benchmark_attention.py --sizes 65536 --causal
    python tools/benchmark_attention.py --device cuda            # 1k .. 256k tokens and 32x32 .. 256x256, bfloat16

Every row starts from the same query, key and value. FMA and FMA-linear include the making of their summaries; the row
"FMA, summaries given" is the attention alone. Times are medians of rounds in which the methods take turns; on a CPU, a
pass of less than a second runs twice in its turn, and the second one counts. Memory is the peak of what a method
allocates beyond its inputs, output and gradients included. Before a method is timed on a size, its output and gradients
there are compared with the definition in float64 at some queries, as fma_tools/attention/gate.py says; one that is
wrong is not timed, and the run ends with status 1.

On a GPU the peers are SDPA's flash and cuDNN backends; FMA with summaries given by flex_attention, over tokens and
summaries that were joined and brought into cell order beforehand, in blocks of 128; and the near field alone, a local
window, by flex_attention. "floor" is the least time that the device needs for the attention, as a share of the time
measured; it comes from the bandwidth of a copy and the rate of a matrix product in the same run, by the formulas of
fma_tools/attention/floors.py. "extra" is the peak of the memory beyond inputs, output and gradients, and "of held" its
share of those. The second-level cache is flushed before each repetition. A method that does not fit, takes too long or
refuses the input is a row that says why.

Prints a table, and writes attention.json and attention.png to --out. To keep a result, copy them to
benchmarks/results/attention-DEVICE.json and docs/attention-DEVICE.png.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from fma_kernels import Hierarchy, __version__
from fma_kernels.measure import device_name
from fma_tools.attention.cases import KINDS
from fma_tools.attention.floors import measure_ceilings
from fma_tools.attention.measuring import Clock, MethodRow, measure
from fma_tools.attention.report import HEADER, HEADER_GPU, growth, plot, table
from fma_tools.attention.settings import Settings
from fma_tools.command import require_device, run, settings_of
from fma_tools.results import write_results

#: Settings that are not given, on a CPU and on a GPU. There, "auto" could measure other code than the fused kernels.
DEFAULTS = {
    "cpu": dict(
        sizes=[1024, 2048, 4096, 8192, 16384],
        grids=[(64, 64), (128, 128)],
        methods=["sdpa", "fma", "linear", "given"],
        batch=1,
        heads=8,
        dtype="float32",
        rounds=7,
        backend="auto",
        out=Path("work_dirs/benchmark_attention"),
    ),
    "cuda": dict(
        sizes=[1024, 4096, 16384, 65536, 262144],
        grids=[(32, 32), (64, 64), (128, 128), (256, 256)],
        methods=[name for name in KINDS if name != "sdpa"],
        batch=4,
        heads=16,
        dtype="bfloat16",
        rounds=5,
        backend="triton",
        out=Path("work_dirs/benchmark_attention_cuda"),
    ),
}


def grid_argument(text: str) -> tuple[int, ...]:
    try:
        grid = tuple(int(n) for n in text.split("x"))
    except ValueError:
        grid = ()
    if len(grid) != 2 or min(grid) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected HEIGHTxWIDTH, for example 64x64")
    return grid


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", help="sequence lengths")
    parser.add_argument("--grids", type=grid_argument, nargs="*", help="image sizes HxW")
    parser.add_argument("--methods", nargs="+", choices=list(KINDS), metavar="METHOD", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--batch", type=int, help="default 1, on a GPU 4")
    parser.add_argument("--heads", type=int, help="default 8, on a GPU 16")
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--cell-size", type=int, default=64, help="of sequences")
    parser.add_argument("--rank", type=int, default=4, help="of sequences")
    parser.add_argument("--cell-size-2d", type=int, default=8, help="of images")
    parser.add_argument("--rank-2d", type=int, default=2, help="of images")
    parser.add_argument("--causal", action="store_true", help="causal attention over sequences")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--dtype", choices=["float32", "float16", "bfloat16"], help="default float32, on a GPU bfloat16"
    )
    parser.add_argument(
        "--backend", choices=["auto", "triton", "cpp", "torch"],
        help="of FMA; default auto, on a GPU triton, without fallback",
    )
    parser.add_argument("--threads", type=int, default=min(2, torch.get_num_threads()), help="CPU threads")
    parser.add_argument("--rounds", type=int, help="timed rounds, of which the median counts; default 7, on a GPU 5")
    parser.add_argument("--budget", type=float, default=30.0, help="seconds after which a size gets no further round")
    parser.add_argument("--time-limit", type=float, help="seconds after which no further size is begun")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder of the results, under work_dirs by default")
    return parser


def complete(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Fill in the settings that are not given, and refuse what cannot be measured.

    Args:
        parser: the parser.
        args: parsed arguments.
    """
    require_device(parser, args.device)
    for name, value in DEFAULTS["cuda" if args.device.startswith("cuda") else "cpu"].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if not args.sizes and not args.grids:
        parser.error("nothing to measure: give --sizes or --grids")


def benchmark(words: list[str], args: argparse.Namespace) -> int:
    """Measure, and report size by size.

    Args:
        words: the arguments as they were given.
        args: parsed arguments.

    Returns:
        The status.
    """
    settings, begin = settings_of(Settings, args), time.perf_counter()
    torch.set_num_threads(args.threads)
    where = torch.device(args.device)
    gpu = where.type == "cuda"
    device = {"device": device_name(where)}
    title = (
        f"{device['device']}; {args.dtype}, batch {args.batch}, {args.heads} heads of {args.head_dim}; "
        f"cell {args.cell_size}, rank {args.rank} (images: {args.cell_size_2d}, {args.rank_2d})"
    )
    print(f"{title}\ntorch {torch.__version__}, fma-mm {__version__}")
    ceilings = memory = None
    if gpu:
        import triton
        from torch._functorch import config

        if where.index is not None:
            torch.cuda.set_device(where)
        # Otherwise a compiled backward pass overwrites what it needs to run again.
        config.donated_buffer = False
        ceilings = measure_ceilings(where, getattr(torch, args.dtype), Clock(where))
        memory = torch.cuda.mem_get_info()[1]
        device |= dict(triton=triton.__version__, cuda=torch.version.cuda, ceilings=asdict(ceilings), memory=memory)
        print(
            f"triton {triton.__version__}, CUDA {torch.version.cuda}; copy {ceilings.bytes_per_s / 1e12:.2f} TB/s, "
            f"{args.dtype} product {ceilings.flops_per_s / 1e12:.0f} TFLOP/s"
        )
    print(f"\n{HEADER_GPU if gpu else HEADER}")

    rows: list[MethodRow] = []
    for grid in [*((n,) for n in args.sizes), *args.grids]:
        if args.time_limit is not None and time.perf_counter() - begin > args.time_limit:
            print(f"not begun after {args.time_limit:g} s: {'x'.join(map(str, grid))} and what follows")
            break
        cell, rank = (args.cell_size, args.rank) if len(grid) == 1 else (args.cell_size_2d, args.rank_2d)
        hierarchy = Hierarchy(grid, cell, rank, causal=args.causal and len(grid) == 1)
        rows += (measured := measure(hierarchy, args.methods, settings, ceilings, memory))
        print(table(measured, gpu), flush=True)
        figures = [{key: x for key, x in asdict(row).items() if x is not None and x is not False} for row in rows]
        command = ["python", "tools/benchmark_attention.py", *words]
        write_results(args.out / "attention.json", command, args, device, rows=figures)
        if gpu:
            torch._dynamo.reset()  # flex_attention is compiled for every size; PyTorch gives up after some
            torch.cuda.empty_cache()
    for method in ("fma", "linear"):
        for step, fwd, both in growth(rows, KINDS[method].title):
            print(f"{KINDS[method].title}, {step}: time x {fwd:.2f} forward, x {both:.2f} forward + backward")
    plot(rows, title, args.out / "attention.png")
    print(f"\nwrote {args.out / 'attention.json'} and {args.out / 'attention.png'}")
    if failed := [row for row in rows if row.failed]:
        names = dict.fromkeys(f"{row.method} on {'x'.join(map(str, row.grid))}" for row in failed)
        print(f"failed: {', '.join(names)}", file=sys.stderr)
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the arguments; those of the process when None.

    Returns:
        The status.
    """
    words, parser = sys.argv[1:] if argv is None else argv, make_parser()
    args = parser.parse_args(words)
    complete(parser, args)
    return run(parser, args, partial(benchmark, words))


if __name__ == "__main__":
    sys.exit(main())
