"""Summaries of a grid that is split over ranks: the sums of own tokens, and how those of all ranks make the whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backends.row_tables import lists
from ..cells import pad_to
from ..hierarchy import Hierarchy
from ..precision import sum_dtype
from ..slab import Slab
from ..summaries import SummaryBasis, sums_above


def shared_levels(basis: SummaryBasis, hierarchy: Hierarchy) -> range:
    """The levels whose sums are made from tokens, so that ranks exchange them; those above are made from these."""
    return hierarchy.levels if basis.kind == "direct" else hierarchy.levels[:1]


class PartialSums:
    """The sums of one level that the tokens of a slab add to, along the first axis.

    A block of the first axis makes the sums of a cell of the level. With the windows of causal queries it is a
    sub-block, whose window ends at its first token: a block of tokens that come later by one less than its width. So
    the tokens of a slab may add to one sub-block more than they lie in.

    Args:
        basis: weights.
        slab: geometry of the own tokens.
        level: the level.

    Attributes:
        rows: numbers of the sums along the first axis, which begins and ends with whole blocks.
    """

    def __init__(self, basis: SummaryBasis, slab: Slab, level: int):
        self.basis, self.hierarchy, self.level = basis, slab.hierarchy, level
        width, rank = self.hierarchy.cell_width(level), self.hierarchy.rank
        windows = basis.causal_queries
        self.block, outputs = (width // rank, 1) if windows else (width, rank)
        delay = self.block - 1 if windows else 0
        self.first = slab.extent.start + delay
        blocks = range(self.first // self.block, -(-(slab.extent.stop + delay) // self.block))
        self.blocks = len(blocks)
        last = min(blocks.stop * outputs, self.hierarchy.summary_grid(level)[0])  # a window may begin beyond the grid
        self.rows = range(blocks.start * outputs, max(blocks.start * outputs, last))

    def shape(self, batch: int, heads: int, dim: int) -> tuple[int, ...]:
        """Shape of the sums, (B, H, rows, *summaries of the other axes, d)."""
        return (batch, heads, len(self.rows), *self.hierarchy.summary_grid(self.level)[1:], dim)

    def make(self, x: Tensor) -> Tensor:
        """The sums of the own tokens.

        Args:
            x: (B, H, *own grid, d).

        Returns:
            Of :meth:`shape`, in the dtype of ``x``.
        """
        dtype, x = x.dtype, F.pad(x, [0, 0] * self.hierarchy.ndim + [self.first % self.block, 0])
        others = [cells * self.hierarchy.cell_width(self.level) for cells in self.hierarchy.cell_grid(self.level)[1:]]
        x = pad_to(x, [self.blocks * self.block, *others])
        for axis in reversed(range(self.hierarchy.ndim)):  # the last axis first: it reads the tokens in memory order
            x = self.basis.contract(x, axis, self.level)
        return x[:, :, : len(self.rows)].to(dtype)


def partial_sums(basis: SummaryBasis, slab: Slab) -> Iterator[PartialSums]:
    """The sums that the tokens of a slab add to, of all levels that ranks exchange."""
    return (PartialSums(basis, slab, level) for level in shared_levels(basis, slab.hierarchy))


def exchanged_shapes(
    bases: Iterable[SummaryBasis], slab: Slab, batch: int, heads: int, dim: int
) -> list[tuple[int, ...]]:
    """Shapes of what a rank sends to all others, by basis and level.

    Args:
        bases: those of keys, of values, and of queries if they have one.
        slab: geometry of the rank's tokens.
        batch, heads, dim: the rest of the shape of tokens.
    """
    return [level.shape(batch, heads, dim) for basis in bases for level in partial_sums(basis, slab)]


def sums_of_all(parts: Sequence[Sequence[Tensor]], basis: SummaryBasis, slab: Slab) -> list[Tensor]:
    """The sums of all levels of the whole grid.

    Args:
        parts: by rank, the sums of :func:`partial_sums`.
        basis: weights.
        slab: that of any rank.

    Returns:
        (B, H, *summaries, d) by level, finest first, in float32 or better.
    """
    sums = []
    for level, of_ranks in zip(shared_levels(basis, slab.hierarchy), zip(*parts, strict=True), strict=True):
        rows = [PartialSums(basis, slab.of(rank), level).rows for rank in range(slab.size)]
        whole = torch.cat(of_ranks, 2)
        whole = whole.to(sum_dtype(whole))
        sums.append(_add_rows(whole, rows, slab.hierarchy.summary_grid(level)[0]))
    return sums if basis.kind == "direct" else [sums[0], *sums_above(sums[0], basis, slab.hierarchy)]


def _add_rows(x: Tensor, rows: list[range], total: int) -> Tensor:
    """Add up what ranks made of the same sums, in their order: (B, H, rows of all ranks, ...) to (B, H, total, ...)."""
    number = torch.tensor([row for of_rank in rows for row in of_rank])
    if torch.equal(number, torch.arange(total)):
        return x
    places = lists(number, torch.arange(len(number)), total).to(x.device)  # (total, most)
    x = torch.cat([x, x.new_zeros(*x.shape[:2], 1, *x.shape[3:])], 2)  # -1 is the row of zeros at the end
    return x.index_select(2, (places % x.shape[2]).flatten()).unflatten(2, places.shape).sum(3)
