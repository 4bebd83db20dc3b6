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
import copy
import json
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler that counts memory reports every start otherwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fma_kernels import FMAttention, __version__
from fma_kernels.measure import device_name, milliseconds, peak_mib

DIRECTIONS = ("bidirectional", "causal")
#: Largest difference that rounding may make, relative to the largest output.
TOLERANCE = 1e-4
HEADER = """\
| layer | forward, ms | / FMA | forward + backward, ms | / FMA | MiB | goal |
| --- | ---: | ---: | ---: | ---: | ---: | --- |"""


class SequenceFMA(FMAttention):
    """FMA over a sequence; takes (B, N, C) and nothing else, as the other layers do."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, x.shape[1:2])


class FullAttention(nn.Module):
    """Full attention by PyTorch's ``scaled_dot_product_attention``, with the projections of the other layers.

    Args:
        dim: channels.
        heads: attention heads.
        causal: a token reads no later one.
    """

    def __init__(self, dim: int, heads: int, causal: bool):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(*qkv, is_causal=self.causal)
        return self.proj(out.transpose(1, 2).flatten(2))


def fma(args: argparse.Namespace, causal: bool, query_summaries: bool = False) -> nn.Module:
    """This project's layer, nested summaries; with query summaries, FMA-linear."""
    return SequenceFMA(
        args.dim, args.heads, args.cell_size, args.rank, causal=causal, query_summaries=query_summaries, qkv_bias=False
    )


def sdpa(args: argparse.Namespace, causal: bool) -> nn.Module:
    """Full attention."""
    return FullAttention(args.dim, args.heads, causal)


def h_transformer(args: argparse.Namespace, causal: bool) -> nn.Module:
    """H-Transformer-1D (arXiv 2107.11906)."""
    from h_transformer_1d.h_transformer_1d import CausalHAttention1D, HAttention1D

    options = dict(dim=args.dim, heads=args.heads, dim_head=args.dim // args.heads)
    return CausalHAttention1D(max_seq_len=args.tokens, **options) if causal else HAttention1D(**options)


def local(args: argparse.Namespace, causal: bool) -> nn.Module:
    """Attention to a window on either side, or on the left alone."""
    from local_attention.transformer import LocalMHA

    options = dict(dim=args.dim, heads=args.heads, dim_head=args.dim // args.heads)
    return LocalMHA(window_size=128, causal=causal, use_rotary_pos_emb=False, **options)


def nystrom(args: argparse.Namespace, causal: bool) -> nn.Module:
    """Nystromformer's attention (arXiv 2102.03902), which is never causal."""
    from nystrom_attention import NystromAttention

    return NystromAttention(dim=args.dim, heads=args.heads, dim_head=args.dim // args.heads)


def linear(args: argparse.Namespace, causal: bool) -> nn.Module:
    """Efficient attention (arXiv 1812.01243), all heads global; a causal token reads what ends before its 64."""
    from linear_attention_transformer.linear_attention_transformer import SelfAttention

    return SelfAttention(args.dim, args.heads, causal, dim_head=args.dim // args.heads, blindspot_size=64)


@dataclass(frozen=True)
class Kind:
    """A layer of the benchmark.

    Attributes:
        title: its name in tables.
        build: makes it of the settings of the command line, causal or not.
        setting: its own settings, in words; names in braces are settings of the command line.
        limit: the goal, at most that many times its time for FMA; None if there is no goal.
        causal: it has a causal form that does not read later tokens.
        library: it is that of another library, whose distribution is named as the layer.
    """

    title: str
    build: Callable[[argparse.Namespace, bool], nn.Module]
    setting: str
    limit: float | None = None
    causal: bool = True
    library: bool = False

    @property
    def goal(self) -> str:
        """The goal in words."""
        if self.limit is None:
            return ""
        return "FMA is faster" if self.limit == 1 else f"FMA takes at most {self.limit:g} times as long"


KINDS = {
    "fma": Kind("FMA", fma, "cell {cell_size}, rank {rank}, nested summaries"),
    "fma-linear": Kind(
        "FMA-linear", partial(fma, query_summaries=True), "cell {cell_size}, rank {rank}, nested summaries"
    ),
    "sdpa": Kind("SDPA", sdpa, "scaled_dot_product_attention"),
    "h-transformer-1d": Kind("h-transformer-1d", h_transformer, "blocks of 16", limit=1, library=True),
    "local-attention": Kind(
        "local-attention", local, "window of 128, exact; no rotary positions", limit=1, library=True
    ),
    "nystrom-attention": Kind(
        "nystrom-attention", nystrom, "256 landmarks, 6 iterations, convolution over 33 tokens",
        limit=1, causal=False, library=True,
    ),
    "linear-attention-transformer": Kind(
        "linear-attention-transformer", linear, "no local heads; causal: blind spot of 64 tokens",
        limit=1.2, library=True,
    ),
}  # fmt: skip


@dataclass
class Row:
    """One layer in one direction.

    Attributes:
        direction: ``"bidirectional"`` or ``"causal"``.
        layer: its title.
        setting: its own settings.
        parameters: how many it has.
        forward_mib: peak of what the forward pass allocates, output included.
        forward_backward_mib: peak of what both passes allocate, output and gradients included.
        forward_ms: time of the forward pass.
        forward_backward_ms: time of both passes.
        forward_ratio: ``forward_ms`` by FMA's.
        forward_backward_ratio: ``forward_backward_ms`` by FMA's.
        goal: what FMA is to reach beside this layer, if anything.
        met: it does, in both times.
    """

    direction: str
    layer: str
    setting: str
    parameters: int
    forward_mib: float
    forward_backward_mib: float
    forward_ms: float
    forward_backward_ms: float
    forward_ratio: float = 1.0
    forward_backward_ratio: float = 1.0
    goal: str = ""
    met: bool = True

    def __str__(self) -> str:
        goal = f"{self.goal}: {'met' if self.met else 'missed'}" if self.goal else ""
        return (
            f"| {self.layer} | {self.forward_ms:.0f} | {self.forward_ratio:.2f} | {self.forward_backward_ms:.0f} "
            f"| {self.forward_backward_ratio:.2f} | {self.forward_backward_mib:.0f} | {goal} |"
        )


class Entry:
    """A layer on its input.

    Args:
        layer: maps (B, N, C) to the same shape.
        x: the input.
        grad: gradient of the output.
        causal: the layer is to read no later tokens.
    """

    def __init__(self, layer: nn.Module, x: Tensor, grad: Tensor, causal: bool):
        self.layer, self.x, self.grad, self.causal = layer, x, grad, causal
        self.parameters = list(layer.parameters())

    @torch.no_grad()
    def forward(self) -> Tensor:
        """The forward pass alone."""
        return self.layer(self.x)

    def forward_backward(self) -> tuple[Tensor, ...]:
        """Both passes; gradients of the input and of all parameters."""
        return torch.autograd.grad(self.layer(self.x), [self.x, *self.parameters], self.grad)

    def problem(self) -> str | None:
        """What is wrong with the layer, None if nothing is."""
        out = self.forward()
        if out.shape != self.x.shape:
            return f"output.shape {tuple(out.shape)}, expected {tuple(self.x.shape)}"
        if not all(x.isfinite().all() for x in (out, *self.forward_backward())):
            return "output or gradients are not finite"
        if self.causal and (cut := self._leak(out)) is not None:
            return f"outputs before token {cut} depend on later tokens"
        if isinstance(self.layer, FMAttention):
            error = self._difference_from_definition()
            if not error <= TOLERANCE:
                return f"{error:.1e} from the definition in float64, expected at most {TOLERANCE:g}"
        return None

    @torch.no_grad()
    def _leak(self, out: Tensor) -> int | None:
        """A token in front of which outputs change when it and all later ones do; None if there is none."""
        count = out.shape[1]
        for cut in (count // 3, count - 1):  # a third of a power of two lies inside of a block of any size above 2
            changed = self.x.detach().clone()
            changed[:, cut:] = self.x[:, cut:].flip(2)
            difference = (self.layer(changed) - out)[:, :cut].abs().max()
            if not difference <= TOLERANCE * out.abs().max():
                return cut
        return None

    @torch.no_grad()
    def _difference_from_definition(self) -> float:
        """Of FMA on a sequence of some levels with a partial cell, relative to the largest output."""
        short = self.x[:, : 15 * self.layer.cell_size + 1]
        definition = copy.deepcopy(self.layer).double()
        definition.backend = "reference"
        exact = definition(short.double())
        return ((self.layer(short) - exact).abs().max() / exact.abs().max()).item()


def make_entries(args: argparse.Namespace, causal: bool) -> dict[str, Entry]:
    """The chosen layers that have a form in this direction, on one input.

    Args:
        args: the settings of the command line.
        causal: make causal ones.

    Raises:
        SystemExit: the library of one is not installed.
    """
    generator = torch.Generator(args.device).manual_seed(args.seed)
    shape = (args.batch, args.tokens, args.dim)
    x, grad = (torch.randn(shape, generator=generator, device=args.device) for _ in range(2))
    x.requires_grad_()
    entries = {}
    for name in args.layers:
        if causal and not KINDS[name].causal:
            continue
        torch.manual_seed(args.seed)
        try:
            layer = KINDS[name].build(args, causal)
        except ImportError as error:
            sys.exit(
                f"--layers {name}: its library cannot be imported ({error}); expected it to be installed by "
                "pip install 'fma-mm[baselines]', or name the other layers alone"
            )
        entries[name] = Entry(layer.to(args.device), x, grad, causal)
    return entries


def measure(entries: dict[str, Entry], args: argparse.Namespace, direction: str) -> list[Row]:
    """Memory and time of the layers, which take turns.

    Args:
        entries: the layers, FMA among them.
        args: the settings of the command line.
        direction: which of :data:`DIRECTIONS` they have.
    """
    device = torch.device(args.device)
    passes = ("forward", "forward_backward")
    figures: dict[str, dict[str, float]] = {name: {} for name in entries}
    for name, entry in entries.items():
        for label in passes:  # also the warm-up
            figures[name][f"{label}_mib"] = peak_mib(getattr(entry, label), device)
    for label in passes:
        times: dict[str, list[float]] = {name: [] for name in entries}
        for _ in range(args.rounds):
            for name, entry in entries.items():
                times[name].append(milliseconds(getattr(entry, label), device))
        for name, figure in figures.items():
            figure[f"{label}_ms"] = statistics.median(times[name])
            figure[f"{label}_ratio"] = figure[f"{label}_ms"] / statistics.median(times["fma"])
    rows = []
    for name, entry in entries.items():
        kind, figure = KINDS[name], figures[name]
        setting, parameters = kind.setting.format(**vars(args)), sum(p.numel() for p in entry.parameters)
        row = Row(direction, kind.title, setting, parameters, **figure, goal=kind.goal)
        if kind.limit is not None:
            row.met = min(row.forward_ratio, row.forward_backward_ratio) * kind.limit >= 1
        rows.append(row)
    return rows


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
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
    args = parser.parse_args(argv)
    for name in ("batch", "dim", "heads", "cell_size", "rank", "threads", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: expected at least 1")
    if args.tokens < 256 or args.tokens & (args.tokens - 1):
        parser.error(f"--tokens {args.tokens}: expected a power of two, at least 256")
    if args.dim % args.heads:
        parser.error(f"--dim {args.dim}: expected a multiple of --heads {args.heads}")
    if args.cell_size % args.rank:
        parser.error(f"--rank {args.rank}: expected a divisor of --cell-size {args.cell_size}")
    if "fma" not in args.layers:
        parser.error(f"--layers {' '.join(args.layers)}: expected fma among them, which ratios and goals refer to")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: PyTorch sees no GPU on this machine")
    return args


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    device = device_name(torch.device(args.device))
    print(
        f"{device}; float32, batch {args.batch}, {args.tokens} tokens, {args.dim} channels, {args.heads} heads\n"
        f"torch {torch.__version__}, fma-mm {__version__}; FMA: cell {args.cell_size}, rank {args.rank}"
    )
    rows: list[Row] = []
    for direction in args.directions:
        entries = make_entries(args, direction == "causal")
        problems = {name: problem for name, entry in entries.items() if (problem := entry.problem())}
        for name, problem in problems.items():
            print(f"wrong: {name}, {direction}: {problem}", file=sys.stderr)
        if problems:
            return 1
        rows += (measured := measure(entries, args, direction))
        print(f"\n{direction}\n\n{HEADER}", *measured, sep="\n", flush=True)
        result = dict(
            command=" ".join(["python", "tools/benchmark_layers.py", *argv]),
            device=device,
            torch=torch.__version__,
            version=__version__,
            libraries={name: metadata.version(name) for name in args.layers if KINDS[name].library},
            settings={key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()},
            rows=[asdict(row) for row in rows],
        )
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "layers.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nwrote {args.out / 'layers.json'}")
    missed = [f"{row.layer}, {row.direction}" for row in rows if not row.met]
    if args.check and missed:
        print(f"missed: {'; '.join(missed)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
