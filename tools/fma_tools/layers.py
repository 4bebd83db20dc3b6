"""Self-attention layers, projections included: this project's, full attention, and those of other libraries."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor, nn

from fma_kernels import FMAttention
from fma_kernels.measure import milliseconds, peak_mib, take_turns

from . import markdown
from .command import CommandError

DIRECTIONS = ("bidirectional", "causal")
#: Largest difference that rounding may make, relative to the largest output.
TOLERANCE = 1e-4
TITLES = ["layer", "forward, ms", "/ FMA", "forward + backward, ms", "/ FMA", "MiB", "goal"]


@dataclass(frozen=True)
class Settings:
    """Settings that all layers share.

    Attributes:
        layers: keys of :data:`KINDS`.
        tokens: tokens of the sequences.
        batch: sequences.
        dim: channels.
        heads: attention heads.
        cell_size: cell size of FMA.
        rank: rank of FMA.
        device: where the layers run.
        rounds: timed rounds, of which the median counts.
        seed: seed of weights and inputs.
    """

    layers: tuple[str, ...]
    tokens: int
    batch: int
    dim: int
    heads: int
    cell_size: int
    rank: int
    device: str
    rounds: int
    seed: int


def own(attention: str, settings: Settings, causal: bool) -> nn.Module:
    """This project's layer with one of its attentions, nested summaries."""
    cells = dict(cell_size=settings.cell_size, rank=settings.rank)
    return FMAttention(settings.dim, settings.heads, causal=causal, attention=attention, qkv_bias=False, **cells)


def h_transformer(settings: Settings, causal: bool) -> nn.Module:
    """H-Transformer-1D (arXiv 2107.11906)."""
    from h_transformer_1d.h_transformer_1d import CausalHAttention1D, HAttention1D

    options = dict(dim=settings.dim, heads=settings.heads, dim_head=settings.dim // settings.heads)
    return CausalHAttention1D(max_seq_len=settings.tokens, **options) if causal else HAttention1D(**options)


def local(settings: Settings, causal: bool) -> nn.Module:
    """Attention to a window on either side, or on the left alone."""
    from local_attention.transformer import LocalMHA

    options = dict(dim=settings.dim, heads=settings.heads, dim_head=settings.dim // settings.heads)
    return LocalMHA(window_size=128, causal=causal, use_rotary_pos_emb=False, **options)


def nystrom(settings: Settings, causal: bool) -> nn.Module:
    """Nystromformer's attention (arXiv 2102.03902), which is never causal."""
    from nystrom_attention import NystromAttention

    return NystromAttention(dim=settings.dim, heads=settings.heads, dim_head=settings.dim // settings.heads)


def linear(settings: Settings, causal: bool) -> nn.Module:
    """Efficient attention (arXiv 1812.01243), all heads global; a causal token reads what ends before its 64."""
    from linear_attention_transformer.linear_attention_transformer import SelfAttention

    return SelfAttention(
        settings.dim, settings.heads, causal, dim_head=settings.dim // settings.heads, blindspot_size=64
    )


@dataclass(frozen=True)
class Kind:
    """A layer of the benchmark.

    Attributes:
        title: its name in tables.
        build: makes it of the settings, causal or not.
        setting: its own settings, in words; names in braces are fields of the settings.
        limit: the goal, at most that many times its time for FMA; None if there is no goal.
        causal: it has a causal form that does not read later tokens.
        library: it is that of another library, whose distribution is named as the layer.
    """

    title: str
    build: Callable[[Settings, bool], nn.Module]
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
    "fma": Kind("FMA", partial(own, "fma"), "cell {cell_size}, rank {rank}, nested summaries"),
    "fma-linear": Kind("FMA-linear", partial(own, "fma_linear"), "cell {cell_size}, rank {rank}, nested summaries"),
    "sdpa": Kind("SDPA", partial(own, "full"), "scaled_dot_product_attention"),
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
class LayerRow:
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
        goal: the goal of FMA beside this layer, if there is one.
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

    def cells(self) -> list[str]:
        """The row of the table."""
        return [
            self.layer,
            f"{self.forward_ms:.0f}",
            f"{self.forward_ratio:.2f}",
            f"{self.forward_backward_ms:.0f}",
            f"{self.forward_backward_ratio:.2f}",
            f"{self.forward_backward_mib:.0f}",
            f"{self.goal}: {'met' if self.met else 'missed'}" if self.goal else "",
        ]


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
        """The first problem of the layer, None if there is none."""
        out = self.forward()
        if out.shape != self.x.shape:
            return f"output.shape {tuple(out.shape)}, expected {tuple(self.x.shape)}"
        if not all(x.isfinite().all() for x in (out, *self.forward_backward())):
            return "output or gradients are not finite"
        if self.causal and (cut := self._leak(out)) is not None:
            return f"outputs before token {cut} depend on later tokens"
        if isinstance(self.layer, FMAttention) and self.layer.attention.attention != "full":
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
        short = self.x[:, : 15 * self.layer.attention.cell_size + 1]
        definition = copy.deepcopy(self.layer).double()
        definition.attention.backend = "reference"
        exact = definition(short.double())
        return ((self.layer(short) - exact).abs().max() / exact.abs().max()).item()


def make_entries(settings: Settings, causal: bool) -> dict[str, Entry]:
    """The chosen layers that have a form in this direction, on one input.

    Args:
        settings: the settings that all layers share.
        causal: make causal ones.

    Raises:
        CommandError: the library of one is not installed.
    """
    generator = torch.Generator(settings.device).manual_seed(settings.seed)
    shape = (settings.batch, settings.tokens, settings.dim)
    x, grad = (torch.randn(shape, generator=generator, device=settings.device) for _ in range(2))
    x.requires_grad_()
    entries = {}
    for name in settings.layers:
        if causal and not KINDS[name].causal:
            continue
        torch.manual_seed(settings.seed)
        try:
            layer = KINDS[name].build(settings, causal)
        except ImportError as error:
            raise CommandError(
                f"--layers {name}: its library cannot be imported ({error}); expected it to be installed by "
                "pip install 'fma-mm[baselines]', or name the other layers alone"
            ) from error
        entries[name] = Entry(layer.to(settings.device), x, grad, causal)
    return entries


def measure(entries: dict[str, Entry], settings: Settings, direction: str) -> list[LayerRow]:
    """Memory and time of the layers, which take turns.

    Args:
        entries: the layers, FMA among them.
        settings: the settings that all layers share.
        direction: which of :data:`DIRECTIONS` they have.
    """
    device = torch.device(settings.device)
    passes = ("forward", "forward_backward")
    figures: dict[str, dict[str, float]] = {name: {} for name in entries}
    for name, entry in entries.items():
        for label in passes:  # also the warm-up
            figures[name][f"{label}_mib"] = peak_mib(getattr(entry, label), device)
    for label in passes:
        clocks = {name: partial(milliseconds, getattr(entry, label), device) for name, entry in entries.items()}
        times = take_turns(clocks, settings.rounds)
        for name, figure in figures.items():
            figure[f"{label}_ms"] = statistics.median(times[name])
            figure[f"{label}_ratio"] = figure[f"{label}_ms"] / statistics.median(times["fma"])
    rows = []
    for name, entry in entries.items():
        kind, figure = KINDS[name], figures[name]
        setting, parameters = kind.setting.format(**asdict(settings)), sum(p.numel() for p in entry.parameters)
        row = LayerRow(direction, kind.title, setting, parameters, **figure, goal=kind.goal)
        if kind.limit is not None:
            row.met = min(row.forward_ratio, row.forward_backward_ratio) * kind.limit >= 1
        rows.append(row)
    return rows


def table(rows: list[LayerRow]) -> str:
    """The rows of one direction as a table in Markdown.

    Args:
        rows: the rows.
    """
    return markdown.table([TITLES, ["---", *["---:"] * 5, "---"], *(row.cells() for row in rows)])
