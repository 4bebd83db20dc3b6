"""Bytes between ranks that hold parts of a sequence, an image or a volume: the figures behind tools/plan_parallel.py.

FMA counts what :mod:`fma_kernels.distributed` sends, a layer, a rank and a direction at a time; a test holds it against
what goes over the wire. With b the bytes of a rank's keys and values, and W ranks:

* *ring attention*: keys and values go round, W - 1 steps. In the backward pass they go round again, and their gradients
  do, which take one step more to come home.
* *gathered keys and values*: every rank gets those of all others, and in the backward pass sends their gradients back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from matplotlib.figure import Figure

from fma_kernels import CoreAttention, Hierarchy
from fma_kernels.distributed.level_sums import exchanged_shapes
from fma_kernels.slab import Slab

from .markdown import table

MIB = 2**20


@dataclass(frozen=True)
class Attention:
    """The attention of a layer.

    Attributes:
        cell_size, rank, causal, basis_kind: its geometry and its summaries.
        attention: ``"fma"``, ``"fma_linear"`` or ``"near"``.
        batch, heads, head_dim, dtype: of its queries, keys and values.
    """

    cell_size: int
    rank: int
    causal: bool
    attention: str
    basis_kind: str
    batch: int
    heads: int
    head_dim: int
    dtype: torch.dtype

    def slab(self, grid: Sequence[int], rank: int, size: int) -> Slab:
        """The tokens of a rank."""
        return Slab(Hierarchy(tuple(grid), self.cell_size, self.rank, causal=self.causal), rank, size)

    @property
    def token_bytes(self) -> int:
        """Bytes of the key of a token, or of its value."""
        return self.batch * self.heads * self.head_dim * self.dtype.itemsize


@dataclass(frozen=True)
class Traffic:
    """Bytes that a rank sends and gets in the forward pass of a layer of FMA; the backward pass reverses the two.

    Attributes:
        halo_sent, halo_received: bytes of keys and values of cells, from and to neighbours.
        sums_sent, sums_received: bytes of sums of the lowest levels, from and to all.
    """

    halo_sent: int
    halo_received: int
    sums_sent: int
    sums_received: int

    @property
    def sent(self) -> int:
        """Bytes that the rank sends."""
        return self.halo_sent + self.sums_sent

    @property
    def received(self) -> int:
        """Bytes that the rank gets."""
        return self.halo_received + self.sums_received


def traffic(attention: Attention, grid: Sequence[int], rank: int, size: int) -> Traffic:
    """Bytes of a layer of FMA.

    Args:
        attention: the layer.
        grid: tokens of all ranks per axis.
        rank, size: the rank, of how many.
    """
    slab = attention.slab(grid, rank, size)
    halo = [2 * sum(tokens) * attention.token_bytes for tokens in (slab.lent, slab.halo)]
    if attention.attention == "near" or not slab.hierarchy.num_levels:
        return Traffic(*halo, 0, 0)
    sums = _sum_bytes(attention, slab.hierarchy, size)
    return Traffic(*halo, (size - 1) * sums[rank], sum(sums) - sums[rank])


@lru_cache
def _sum_bytes(attention: Attention, hierarchy: Hierarchy, size: int) -> list[int]:
    """Bytes of the sums that each rank makes of its tokens."""
    with torch.device("meta"):  # direct bases are as long as the sequence
        core = CoreAttention(
            attention.heads, attention.head_dim, cell_size=attention.cell_size, rank=attention.rank,
            ndim=hierarchy.ndim, causal=attention.causal, attention=attention.attention,
            basis_kind=attention.basis_kind, num_levels=hierarchy.num_levels,
        )  # fmt: skip
    bases = [basis for basis in (core.query_basis, core.key_basis, core.value_basis) if basis is not None]
    by_rank = [
        exchanged_shapes(bases, Slab(hierarchy, rank, size), attention.batch, attention.heads, attention.head_dim)
        for rank in range(size)
    ]
    return [sum(map(math.prod, shapes)) * attention.dtype.itemsize for shapes in by_rank]


@dataclass(frozen=True)
class Row:
    """Bytes that the busiest rank gets, in the forward pass and in both passes of a layer.

    Attributes:
        grid: tokens of all ranks per axis.
        ranks: number of ranks.
        halo, sums: the two parts of the forward pass of FMA.
        fma, ring, gathered: (forward, both).
    """

    grid: tuple[int, ...]
    ranks: int
    halo: int
    sums: int
    fma: tuple[int, int]
    ring: tuple[int, int]
    gathered: tuple[int, int]


def compare(attention: Attention, grid: Sequence[int], size: int) -> Row:
    """Bytes of the busiest rank.

    Args:
        attention: the layer of FMA; the other attentions have its heads and dtype.
        grid: tokens of all ranks per axis.
        size: number of ranks.

    Raises:
        ValueError: there are fewer layers of cells than ranks.
    """
    busy = sorted({0, size // 2, size - 1})  # the ends have one neighbour, the others two
    found = max((traffic(attention, grid, rank, size) for rank in busy), key=lambda found: found.received)
    own = 2 * attention.token_bytes * max(attention.slab(grid, rank, size).num_tokens for rank in busy)
    ring = (size - 1) * own
    return Row(
        tuple(grid), size, found.halo_received, found.sums_received, (found.received, found.received + found.sent),
        (ring, 3 * ring + own), (ring, 2 * ring),
    )  # fmt: skip


def report(rows: Sequence[Row]) -> str:
    """The rows as a table, in MiB.

    Args:
        rows: the rows.
    """
    titles = ["tokens", "ranks", "FMA: halo", "FMA: sums", "FMA", "ring", "ring / FMA", "FMA, both", "ring, both"]
    lines = [[*titles, "gathered, both"], ["---:"] * (len(titles) + 1)]
    for row in rows:
        ratio = row.ring[0] / row.fma[0] if row.fma[0] else 0
        bytes_ = [row.halo, row.sums, row.fma[0], row.ring[0]]
        both = [row.fma[1], row.ring[1], row.gathered[1]]
        cells = ["x".join(f"{n:,}" for n in row.grid), row.ranks, *map(_mib, bytes_), f"{ratio:.1f}", *map(_mib, both)]
        lines.append(cells)
    return table(lines)


def _mib(count: int) -> str:
    return f"{count / MIB:,.3g}" if count < 100 * MIB else f"{count / MIB:,.0f}"


def plot(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draw bytes against the number of ranks, a line for each grid.

    Args:
        rows: the rows.
        title: title of the picture.
        path: where to.
    """
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axis = figure.subplots()
    for i, grid in enumerate(dict.fromkeys(row.grid for row in rows)):
        of_grid = [row for row in rows if row.grid == grid]
        ranks = [row.ranks for row in of_grid]
        name = "x".join(f"{n:,}" for n in grid)
        axis.plot(ranks, [row.fma[0] / MIB for row in of_grid], "o-", color=f"C{i}", label=f"FMA, {name} tokens")
        axis.plot(ranks, [row.ring[0] / MIB for row in of_grid], "s", markerfacecolor="none", color=f"C{i}")
    axis.set(xlabel="ranks", ylabel="MiB that a rank gets, forward", title=title, xscale="log", yscale="log")
    axis.set_xticks(sorted({row.ranks for row in rows}), sorted({row.ranks for row in rows}), minor=False)
    axis.plot([], [], "ks", markerfacecolor="none", label="squares: ring attention, or\ngathered keys and values")
    axis.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right upper")
    figure.savefig(path, dpi=110)
