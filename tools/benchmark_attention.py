#!/usr/bin/env python3
"""Time and memory of FMA, FMA-linear and full attention (SDPA), side by side in one run.

    python tools/benchmark_attention.py                          # 1k .. 16k tokens and 64x64, 128x128 on this CPU
    python tools/benchmark_attention.py --sizes 65536 --causal
    python tools/benchmark_attention.py --grids 256x256 --device cuda --dtype bfloat16

Every row starts from the same query, key and value. FMA and FMA-linear include the making of their summaries; the row
"FMA, summaries given" is the attention alone. Before a size is timed, FMA and FMA-linear are checked on it: against the
dense definition where that fits, and against full attention on constant keys, where both must agree. Times are medians
of rounds in which the methods take turns; memory is the peak of what a method allocates beyond its inputs, outputs and
gradients included. Prints a table, and writes a JSON file and a plot.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler that counts memory reports every start otherwise

import torch
import torch.nn.functional as F
from torch import Tensor

from fma_kernels import Hierarchy, SummaryBasis, __version__, aggregate, fma_attention, fma_linear_attention
from fma_kernels.measure import device_name, milliseconds, peak_mib

FULL, FMA, LINEAR, ALONE = "SDPA", "FMA", "FMA-linear", "FMA, summaries given"
DENSE_LIMIT = 4096 * 4096 * 2  # logits of the dense definition that a check may make


@dataclass
class Row:
    """One method on one size: milliseconds and MiB."""

    method: str
    grid: list[int]
    tokens: int
    forward_ms: float
    forward_backward_ms: float
    forward_mib: float
    forward_backward_mib: float


class Case:
    """Inputs of one size and the methods that run on them."""

    def __init__(self, grid: tuple[int, ...], args: argparse.Namespace):
        ndim = len(grid)
        cell, rank = (args.cell_size, args.rank) if ndim == 1 else (args.cell_size_2d, args.rank_2d)
        self.hierarchy = Hierarchy(grid, cell, rank, causal=args.causal and ndim == 1)
        self.device = torch.device(args.device)
        dtype = getattr(torch, args.dtype)
        generator = torch.Generator().manual_seed(args.seed)
        shape = (args.batch, args.heads, self.hierarchy.num_tokens, args.head_dim)
        self.query, self.key, self.value, self.grad = (
            torch.randn(shape, generator=generator).to(self.device, dtype).requires_grad_(i < 3) for i in range(4)
        )
        options = dict(ndim=ndim, num_levels=max(1, self.hierarchy.num_levels))
        self.bases = [
            SummaryBasis(args.heads, args.head_dim, cell, rank, causal_queries=queries, **options).to(self.device)
            for queries in (self.hierarchy.causal, False, False)
        ]
        summaries = self._summaries(self.query, self.key, self.value)
        self.given = [x.detach().requires_grad_() for x in summaries[1:]]

    def _summaries(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        inputs = zip((query, key, value), self.bases, (True, False, False), strict=True)
        return [aggregate(x, basis, self.hierarchy, queries=queries) for x, basis, queries in inputs]

    def full(self) -> Tensor:
        return F.scaled_dot_product_attention(self.query, self.key, self.value, is_causal=self.hierarchy.causal)

    def fma(self) -> Tensor:
        key_summaries = aggregate(self.key, self.bases[1], self.hierarchy)
        value_summaries = aggregate(self.value, self.bases[2], self.hierarchy)
        return fma_attention(self.query, self.key, self.value, key_summaries, value_summaries, self.hierarchy)

    def linear(self) -> Tensor:
        summaries = self._summaries(self.query, self.key, self.value)
        return fma_linear_attention(self.query, self.key, self.value, *summaries, self.hierarchy)

    def alone(self) -> Tensor:
        return fma_attention(self.query, self.key, self.value, *self.given, self.hierarchy)

    def methods(self) -> dict[str, Callable[[], Tensor]]:
        return {FULL: self.full, FMA: self.fma, LINEAR: self.linear, ALONE: self.alone}

    def leaves(self) -> list[Tensor]:
        weights = [parameter for basis in self.bases for parameter in basis.parameters()]
        return [self.query, self.key, self.value, *weights, *self.given]

    @torch.no_grad()
    def check(self) -> None:
        """Raise unless FMA and FMA-linear are right on this size (first head of the first sequence, float32)."""
        query, key, value = (x[:1, :1].float() for x in (self.query, self.key, self.value))
        h, dim = self.hierarchy, query.shape[-1]
        bases = []
        for basis in self.bases:
            head = SummaryBasis(
                1, dim, h.cell_size, h.rank, ndim=h.ndim, num_levels=max(1, h.num_levels),
                causal_queries=basis.causal_queries,
            )  # fmt: skip
            bases.append(head.to(self.device))

        def summaries(*tensors: Tensor) -> list[Tensor]:
            flags = (True, False, False)
            return [aggregate(x, b, h, queries=q) for x, b, q in zip(tensors, bases, flags, strict=True)]

        constant = key[:, :, :1].expand_as(key).contiguous()
        zero = torch.zeros_like(query)
        expected = F.scaled_dot_product_attention(query, constant, value, is_causal=h.causal)
        made = summaries(zero, constant, value)
        outputs = {
            FMA: (fma_attention(query, constant, value, *made[1:], h), expected),
            # Query summaries are other queries: on zeros all keys weigh the same for every one of them.
            LINEAR: (fma_linear_attention(zero, constant, value, *made, h), expected),
        }
        if h.num_tokens * (h.num_tokens + h.num_summaries) <= DENSE_LIMIT:
            made = summaries(query, key, value)
            for name, function, given in ((FMA, fma_attention, made[1:]), (LINEAR, fma_linear_attention, made)):
                dense = [x.double() for x in (query, key, value, *given)]
                outputs[f"{name}, dense"] = (
                    function(query, key, value, *given, h),
                    function(*dense, h, backend="reference"),
                )
        for name, (mine, theirs) in outputs.items():
            error = (mine.double() - theirs.double()).abs().max().item()
            if not error < 1e-4:
                raise AssertionError(f"{name} is wrong on {h.grid}: largest error {error:.2e}")


def forward(case: Case, method: Callable[[], Tensor]) -> None:
    with torch.no_grad():
        method()


def forward_backward(case: Case, method: Callable[[], Tensor]) -> None:
    method().backward(case.grad)
    for leaf in case.leaves():
        leaf.grad = None


def measure(case: Case, rounds: int, budget_s: float) -> list[Row]:
    """All methods on one size, taking turns round by round; fewer rounds where they would take over ``budget_s``."""
    passes = {"forward": forward, "forward_backward": forward_backward}
    results = {name: {} for name in case.methods()}
    for label, one_pass in passes.items():
        runs = {name: (lambda m=method, p=one_pass: p(case, m)) for name, method in case.methods().items()}
        for name, run in runs.items():  # also the warm-up
            results[name][f"{label}_mib"] = peak_mib(run, case.device)
        times = {name: [] for name in runs}
        start = time.perf_counter()
        for _ in range(rounds):
            for name, run in runs.items():
                times[name].append(milliseconds(run, case.device))
            if time.perf_counter() - start > budget_s:
                break
        for name in runs:
            results[name][f"{label}_ms"] = statistics.median(times[name])
    h = case.hierarchy
    return [Row(method=name, grid=list(h.grid), tokens=h.num_tokens, **values) for name, values in results.items()]


def table(rows: list[Row]) -> str:
    """The rows of one size; times as multiples of SDPA's beside the milliseconds."""
    full = next(row for row in rows if row.method == FULL)
    lines = []
    for row in rows:
        size = "x".join(map(str, row.grid))
        lines.append(
            f"{size:>9} {row.method:<22}"
            f"{row.forward_ms:>10.1f} {full.forward_ms / row.forward_ms:>7.1f}x"
            f"{row.forward_backward_ms:>11.1f} {full.forward_backward_ms / row.forward_backward_ms:>7.1f}x"
            f"{row.forward_mib:>9.0f}{row.forward_backward_mib:>10.0f}"
        )
    return "\n".join(lines)


HEADER = (
    f"{'tokens':>9} {'':<22}{'fwd ms':>10} {'vs SDPA':>8}{'f+b ms':>11} {'vs SDPA':>8}{'fwd MiB':>9}{'f+b MiB':>10}"
)


def growth(rows: list[Row], method: str) -> list[tuple[str, float, float]]:
    """Factor in time from each sequence length to the next where that is its double."""
    line = sorted((row for row in rows if row.method == method and len(row.grid) == 1), key=lambda row: row.tokens)
    return [
        (f"{a.tokens} -> {b.tokens}", b.forward_ms / a.forward_ms, b.forward_backward_ms / a.forward_backward_ms)
        for a, b in itertools.pairwise(line)
        if b.tokens == 2 * a.tokens
    ]


def plot(rows: list[Row], title: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    quantities = [
        ("forward_ms", "forward, ms"),
        ("forward_backward_ms", "forward + backward, ms"),
        ("forward_backward_mib", "peak memory, forward + backward, MiB"),
    ]
    for axis, (field, label) in zip(axes, quantities, strict=True):
        for color, method in zip(("C7", "C0", "C1"), (FULL, FMA, LINEAR), strict=True):
            line = sorted((r.tokens, getattr(r, field)) for r in rows if r.method == method and len(r.grid) == 1)
            plane = sorted((r.tokens, getattr(r, field)) for r in rows if r.method == method and len(r.grid) == 2)
            if line:
                axis.plot(*zip(*line, strict=True), "o-", color=color, label=method)
            if plane:
                axis.plot(*zip(*plane, strict=True), "s--", color=color, mfc="none", label=f"{method}, image")
        axis.set(xscale="log", yscale="log", xlabel="tokens", title=label)
        axis.set_xscale("log", base=2)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def grid_argument(text: str) -> tuple[int, ...]:
    try:
        grid = tuple(int(n) for n in text.split("x"))
    except ValueError:
        grid = ()
    if len(grid) != 2 or min(grid) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected HEIGHTxWIDTH, for example 64x64")
    return grid


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[1024, 2048, 4096, 8192, 16384], help="sequence lengths"
    )
    parser.add_argument(
        "--grids", type=grid_argument, nargs="*", default=[(64, 64), (128, 128)], help="image sizes HxW"
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--cell-size", type=int, default=64, help="of sequences")
    parser.add_argument("--rank", type=int, default=4, help="of sequences")
    parser.add_argument("--cell-size-2d", type=int, default=8, help="of images")
    parser.add_argument("--rank-2d", type=int, default=2, help="of images")
    parser.add_argument("--causal", action="store_true", help="causal attention over sequences")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--threads", type=int, default=min(2, torch.get_num_threads()), help="CPU threads")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds; the median counts")
    parser.add_argument("--budget", type=float, default=30.0, help="seconds after which a size gets no further round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("work_dirs/benchmark_attention"), help="folder of the results")
    args = parser.parse_args(argv)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: PyTorch sees no GPU on this machine")
    if not args.sizes and not args.grids:
        parser.error("nothing to measure: give --sizes or --grids")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    name = device_name(torch.device(args.device))
    title = (
        f"{name}; {args.dtype}, batch {args.batch}, {args.heads} heads of {args.head_dim}; "
        f"cell {args.cell_size}, rank {args.rank} (images: {args.cell_size_2d}, {args.rank_2d})"
    )
    print(f"{title}\ntorch {torch.__version__}, fma-mm {__version__}\n\n{HEADER}")
    rows: list[Row] = []
    for grid in [*((n,) for n in args.sizes), *args.grids]:
        case = Case(grid, args)
        case.check()
        rows += (measured := measure(case, args.rounds, args.budget))
        print(table(measured), flush=True)
    for method in (FMA, LINEAR):
        for step, fwd, both in growth(rows, method):
            print(f"{method}, {step}: time x {fwd:.2f} forward, x {both:.2f} forward + backward")

    args.out.mkdir(parents=True, exist_ok=True)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    result = dict(
        command=" ".join(["python", "tools/benchmark_attention.py", *(sys.argv[1:] if argv is None else argv)]),
        device=name, torch=torch.__version__, version=__version__, settings=settings, rows=[asdict(r) for r in rows],
    )  # fmt: skip
    (args.out / "attention.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(rows, title, args.out / "attention.png")
    print(f"\nwrote {args.out / 'attention.json'} and {args.out / 'attention.png'}")


if __name__ == "__main__":
    main()
