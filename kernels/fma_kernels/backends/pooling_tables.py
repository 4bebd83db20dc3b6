"""Geometry of the pooling kernels as index tables, so that the kernels know nothing of axes, edges and delays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..caches import cached
from ..cells import token_counts
from ..hierarchy import EMPTY, Hierarchy


class PoolingTables(NamedTuple):
    """Inputs and outputs of the pooling; int32, -1 = nothing.

    Cells are numbered finest level first, row-major in a level.

    Attributes:
        tokens: (cells of level 1, tokens per cell) tokens of every cell of level 1.
        children: (cells above, fanout * summaries) summaries that the others join, child by child.
        rows: (cells, summaries) place of every cell's summaries among the S of all levels.
        parents: (cells,) number of the parent * fanout + which of its children this is.
    """

    tokens: Tensor
    children: Tensor
    rows: Tensor
    parents: Tensor


class Launch(NamedTuple):
    """One launch: some consecutive levels, in blocks of cells that share all the levels.

    Attributes:
        level: the lowest of its levels.
        cells: (blocks, levels, leaves) int32 numbers of the block's cells on each level, at the front of their row.
            Siblings are consecutive; the leaves are the cells of the lowest level.
    """

    level: int
    cells: Tensor


@dataclass(frozen=True)
class Pyramid:
    """The cells that are pooled, and how they nest.

    With ``windows`` (the queries of causal FMA-linear) every sub-block is a cell of its own with a single summary. It
    pools the tokens that end at its first one, and joins the windows of sub-blocks 2b - 1 and 2b of the level below.

    Args:
        hierarchy: geometry of the tokens.
        windows: pool the windows of causal queries.
    """

    hierarchy: Hierarchy
    windows: bool = False

    @property
    def fanout(self) -> int:
        """Children of a cell."""
        return 2**self.hierarchy.ndim

    @property
    def summaries(self) -> int:
        """Summaries of a cell."""
        return self._rank**self.hierarchy.ndim

    @property
    def taps(self) -> int:
        """Tokens of a level-1 cell."""
        return self._side**self.hierarchy.ndim

    @property
    def num_cells(self) -> list[int]:
        """Number of cells of each level, finest first."""
        return [math.prod(self._shape(level)) for level in self.hierarchy.levels]

    @property
    def _delay(self) -> int:
        """Windows start one entry less than their width before the blocks that they belong to."""
        return int(self.windows)

    @property
    def _rank(self) -> int:
        return 1 if self.windows else self.hierarchy.rank

    @property
    def _side(self) -> int:
        return self.hierarchy.cell_size // self.hierarchy.rank if self.windows else self.hierarchy.cell_size

    def _shape(self, level: int) -> tuple[int, ...]:
        return self.hierarchy.summary_grid(level) if self.windows else self.hierarchy.cell_grid(level)

    # Cells are given by their coordinates, (m, D); those outside of the grid belong to no cell.

    def _numbers(self, level: int, cells: Tensor) -> Tensor:
        """Number of each cell among those of all levels: (m,)."""
        if level not in self.hierarchy.levels:
            return torch.full(cells.shape[:1], EMPTY)
        return _flat(cells, self._shape(level), offset=sum(self.num_cells[: level - 1]))

    def _rows(self, level: int, cells: Tensor) -> Tensor:
        """Places of the summaries of each cell: (m, summaries)."""
        sub_blocks = cells[:, None] * self._rank + _box([self._rank] * self.hierarchy.ndim)
        offset = sum(self.hierarchy.level_sizes[: level - 1])
        return _flat(sub_blocks, self.hierarchy.summary_grid(level), offset)

    def _tokens(self, cells: Tensor) -> Tensor:
        """Tokens of each level-1 cell: (m, taps)."""
        tokens = cells[:, None] * self._side - self._delay * (self._side - 1) + _box([self._side] * self.hierarchy.ndim)
        return _flat(tokens, self.hierarchy.grid)

    def _children(self, cells: Tensor) -> Tensor:
        """Children of each cell: (m * fanout, D)."""
        children = 2 * cells[:, None] - self._delay + _box([2] * self.hierarchy.ndim)
        return children.flatten(0, 1)

    def _parents(self, level: int, cells: Tensor) -> Tensor:
        """Parent * fanout + which of its children, of each cell: (m,)."""
        delayed = cells + self._delay
        parent = self._numbers(level + 1, delayed // 2)
        return torch.where(parent == EMPTY, EMPTY, parent * self.fanout + _flat(delayed % 2, (2,) * cells.shape[1]))

    def _tops(self, lowest: int, top: int) -> Tensor:
        """Level-``top`` cells over all that exists from level ``lowest`` on, also beyond the last level: (m, D)."""
        levels = range(lowest, min(top, self.hierarchy.num_levels) + 1)

        def count(axis: int) -> int:
            lasts = [(self._shape(level)[axis] - 1, 2 ** (top - level)) for level in levels]
            return max((last + self._delay * (width - 1)) // width for last, width in lasts) + 1

        return _box([count(axis) for axis in range(self.hierarchy.ndim)])


def _box(shape: Sequence[int]) -> Tensor:
    """Coordinates of a row-major grid: (cells, D)."""
    return torch.cartesian_prod(*map(torch.arange, shape)).view(-1, len(shape))


def _flat(index: Tensor, shape: Sequence[int], offset: int = 0) -> Tensor:
    """``offset`` plus the row-major number of coordinates (..., D): (...), -1 outside of the grid."""
    inside = ((index >= 0) & (index < torch.tensor(shape))).all(-1)
    number = index[..., 0]
    for axis in range(1, len(shape)):
        number = number * shape[axis] + index[..., axis]
    return torch.where(inside, number + offset, EMPTY)


@cached
def tables(pyramid: Pyramid, device: torch.device) -> PoolingTables:
    """The tables of a pyramid of at least one level, on a device."""
    levels = {level: _box(pyramid._shape(level)) for level in pyramid.hierarchy.levels}
    above = [pyramid._rows(level - 1, pyramid._children(cells)) for level, cells in levels.items() if level > 1]
    inputs = pyramid.fanout * pyramid.summaries
    parts = PoolingTables(
        tokens=pyramid._tokens(levels[1]),
        children=torch.cat([torch.empty(0, inputs, dtype=torch.int64), *(rows.view(-1, inputs) for rows in above)]),
        rows=torch.cat([pyramid._rows(level, cells) for level, cells in levels.items()]),
        parents=torch.cat([pyramid._parents(level, cells) for level, cells in levels.items()]),
    )
    return PoolingTables(*(part.to(device, torch.int32) for part in parts))


@cached
def launches(pyramid: Pyramid, levels: int, tops: int, device: torch.device) -> list[Launch]:
    """The launches that make all levels, bottom up.

    Args:
        pyramid: what is pooled.
        levels: levels per launch; the last one may go beyond those that exist.
        tops: cells of its highest level in a block.
        device: where the tables lie.
    """
    result = []
    for lowest in range(1, pyramid.hierarchy.num_levels + 1, levels):
        top = lowest + levels - 1
        cells = pyramid._tops(lowest, top)
        missing = -len(cells) % tops
        cells = torch.cat([cells, cells.new_full((missing, cells.shape[1]), EMPTY)])
        blocks, leaves = len(cells) // tops, tops * pyramid.fanout ** (levels - 1)
        table = torch.full((blocks, levels, leaves), EMPTY, dtype=torch.int32)
        for level in range(top, lowest - 1, -1):
            numbers = pyramid._numbers(level, cells).view(blocks, -1)
            table[:, level - lowest, : numbers.shape[1]] = numbers
            cells = pyramid._children(cells)
        result.append(Launch(lowest, table.to(device)))
    return result


def summary_scale(pyramid: Pyramid, mask: Tensor | None, device: torch.device) -> Tensor | None:
    """Factor of the sum of every summary: (size of its sub-block) / (tokens of it that exist).

    Args:
        pyramid: geometry.
        mask: (B, N) bool, True = the token does not exist; None = every token exists.
        device: where the factors shall lie.

    Returns:
        (B, S) float32, or (1, S) without a mask; None for windows, whose sums are not multiplied.
    """
    if pyramid.windows:
        return None
    hierarchy = pyramid.hierarchy
    if mask is None:
        return _full_scale(hierarchy, device)
    return summary_sizes(hierarchy, device) / token_counts(hierarchy, device, mask).clamp_(min=1)


@cached
def _full_scale(hierarchy: Hierarchy, device: torch.device) -> Tensor:
    return summary_sizes(hierarchy, device) / token_counts(hierarchy, device).clamp(min=1)


@cached
def summary_sizes(hierarchy: Hierarchy, device: torch.device) -> Tensor:
    """Size of the sub-block of every summary in tokens: (S,) float32."""
    sizes = [float(hierarchy.cell_width(level) // hierarchy.rank) ** hierarchy.ndim for level in hierarchy.levels]
    return torch.tensor(sizes, dtype=torch.float32).repeat_interleave(torch.tensor(hierarchy.level_sizes)).to(device)
