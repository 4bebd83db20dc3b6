"""Decoding token by token, by causal FMA's state and by a key-value cache with full attention (SDPA)."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from fma_kernels import DecodingState, Hierarchy, KeyValueCache, SummaryBasis, aggregate, fma_attention
from fma_kernels.measure import milliseconds

#: Largest difference from the definition in float64 that rounding may make; the values are of order 1.
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 6e-2}
HEADER = (
    f"{'':>9} {'FMA':>9}{'':>9}{'':>10}{'KV cache':>11}{'':>11}{'KV / FMA':>10}\n"
    f"{'context':>9} {'ms/token':>9}{'slowest':>9}{'KiB':>10}{'ms/token':>11}{'KiB':>11}{'time':>10}{'memory':>9}"
)


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark.

    Attributes:
        contexts: tokens before the first that is timed, shortest first.
        batch: sequences.
        heads: heads.
        head_dim: channels per head.
        cell_size: cell size of FMA.
        rank: rank of FMA.
        kind: kind of the summaries.
        device: where both methods run.
        dtype: name of the tokens' dtype.
        rounds: rounds, of which the median counts.
        kv_tokens: timed tokens of the key-value cache in a round.
        chunk: tokens at a time with which contexts are filled.
        seed: seed of weights and tokens.
    """

    contexts: tuple[int, ...]
    batch: int
    heads: int
    head_dim: int
    cell_size: int
    rank: int
    kind: str
    device: str
    dtype: str
    rounds: int
    kv_tokens: int
    chunk: int
    seed: int


@dataclass
class ContextRow:
    """Both methods in one context.

    Attributes:
        context: tokens before the first that is timed.
        fma_ms: time per token of FMA, mean over a cell.
        fma_slowest_ms: its slowest token of a cell.
        fma_bytes: bytes of its state in this context.
        kv_ms: time per token of the key-value cache.
        kv_bytes: bytes of the cache in this context.
    """

    context: int
    fma_ms: float
    fma_slowest_ms: float
    fma_bytes: int
    kv_ms: float
    kv_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.context:>9} {self.fma_ms:>9.3f}{self.fma_slowest_ms:>9.3f}{self.fma_bytes / 2**10:>10.1f}"
            f"{self.kv_ms:>11.3f}{self.kv_bytes / 2**10:>11.0f}"
            f"{self.kv_ms / self.fma_ms:>9.1f}x{self.kv_bytes / self.fma_bytes:>8.0f}x"
        )


class Benchmark:
    """The two methods, and the tokens that they get.

    Args:
        settings: the settings.
    """

    def __init__(self, settings: Settings):
        self.settings, self.device = settings, torch.device(settings.device)
        self.dtype = getattr(torch, settings.dtype)
        self.generator = torch.Generator(self.device).manual_seed(settings.seed)
        cell, rank, longest = settings.cell_size, settings.rank, settings.contexts[-1]
        levels = max(1, Hierarchy((longest + settings.rounds * cell,), cell, rank).num_levels)
        self.bases = [
            SummaryBasis(settings.heads, settings.head_dim, cell, rank, num_levels=levels, kind=settings.kind)
            .to(self.device)
            .requires_grad_(False)
            for _ in range(2)
        ]
        for basis in self.bases:
            for parameter in basis.parameters():  # away from means, whose mistakes could hide
                noise = torch.randn(parameter.shape, generator=self.generator, device=self.device)
                parameter.mul_(1 + 0.1 * noise)

    def tokens(self, count: int) -> Tensor:
        """Query, key and value of the next tokens: (3, B, H, count, d)."""
        shape = (3, self.settings.batch, self.settings.heads, count, self.settings.head_dim)
        return torch.randn(shape, generator=self.generator, device=self.device, dtype=self.dtype)

    def state(self) -> DecodingState:
        """An empty state of FMA."""
        return DecodingState(*self.bases)

    def errors(self) -> dict[str, float]:
        """Largest difference of each method's outputs from its definition in float64, on a short context."""
        length = 16 * self.settings.cell_size + 3
        tokens = self.tokens(length)
        state, prompt = self.state(), 9 * self.settings.cell_size + 1
        cache = KeyValueCache(capacity=length)
        fma, full = [state.take(*tokens[..., :prompt, :])], []
        for i in range(length):
            token = tokens[..., i : i + 1, :]
            full.append(cache.take(*token))
            if i >= prompt:
                fma.append(state.take(*token))
        query, key, value = tokens.double()
        hierarchy = Hierarchy((length,), self.settings.cell_size, self.settings.rank, causal=True)
        summaries = [aggregate(x, b, hierarchy, backend="torch") for x, b in zip((key, value), self.bases, strict=True)]
        exact = {
            "FMA": fma_attention(query, key, value, *summaries, hierarchy, backend="reference"),
            "KV cache": F.scaled_dot_product_attention(query, key, value, is_causal=True),
        }
        outputs = {"FMA": torch.cat(fma, 2), "KV cache": torch.cat(full, 2)}
        return {name: (outputs[name] - exact[name]).abs().max().item() for name in exact}

    def rows(self) -> Iterator[ContextRow]:
        """Fill and time the contexts, shortest first; yields a row for each."""
        settings = self.settings
        state = self.state()
        cache = KeyValueCache(capacity=settings.contexts[-1] + settings.rounds * settings.cell_size)
        for context in settings.contexts:
            while missing := context - state.num_tokens:
                chunk = self.tokens(min(settings.chunk, missing))
                state.take(*chunk)
                cache.append(*chunk[1:])
            fma_bytes, kv_bytes = state.nbytes, cache.nbytes
            times = {"mean": [], "slowest": [], "kv": []}
            for _ in range(settings.rounds):
                tokens = self.tokens(settings.cell_size).split(1, dim=3)
                fma = [milliseconds(lambda x=x: state.take(*x), self.device) for x in tokens]
                times["mean"].append(statistics.mean(fma))
                times["slowest"].append(max(fma))
                kv = [milliseconds(lambda x=x: cache.take(*x), self.device) for x in tokens[: settings.kv_tokens]]
                times["kv"].append(statistics.mean(kv))
                for x in tokens[settings.kv_tokens :]:
                    cache.append(*x[1:])
            mean, slowest, kv_ms = (statistics.median(x) for x in times.values())
            yield ContextRow(context, mean, slowest, fma_bytes, kv_ms, kv_bytes)


def plot(rows: list[ContextRow], title: str, path: Path) -> None:
    """Draw time and memory against the context.

    Args:
        rows: all rows.
        title: device and settings.
        path: the PNG file.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    contexts = [row.context for row in rows]
    quantities = [("ms", 1, "ms per token"), ("bytes", 2**20, "memory of the cache, MiB")]
    for axis, (quantity, unit, label) in zip(axes, quantities, strict=True):
        for name, text, style in (("kv", "KV cache, SDPA", "C7o-"), ("fma", "FMA", "C0o-")):
            axis.plot(contexts, [getattr(row, f"{name}_{quantity}") / unit for row in rows], style, label=text)
        axis.set(yscale="log", xlabel="tokens before", title=label)
        axis.set_xscale("log", base=2)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110)
