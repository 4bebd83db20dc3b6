"""Geometry of Fast Multipole Attention: the tokens that a query reads one by one, and those it reads by summaries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .caches import cached
from .checks import require

#: Slot of an index table that points nowhere.
EMPTY = -1


@dataclass(frozen=True)
class Hierarchy:
    """Cells, levels and interaction lists over a grid of tokens (arXiv 2310.11960, section 3).

    Tokens are numbered row-major. A level-l cell (l = 1, 2, ...) is a block of side ``cell_size * 2**(l-1)``; cells at
    the far edge may be partial. Two cells touch when their Chebyshev distance is at most 1. A (query, key) pair is
    *near* when the level-1 cells touch; otherwise it belongs to the coarsest level at which the cells do not touch.
    So every pair is covered exactly once, and its level does not depend on the size of the grid.

    Each level-l cell has ``rank**D`` summaries, one per sub-block of side ``cell_size * 2**(l-1) / rank``. The
    summaries of one level form a row-major grid; the levels follow each other, finest first.

    Instances are immutable, hashable and compare by value; the derived tables are computed once per geometry.

    Args:
        grid: number of tokens per axis ``(n_1, ..., n_D)``; one to three axes, each at least 1.
        cell_size: side r of a level-1 cell, in tokens.
        rank: summaries per cell and axis p; divides ``cell_size``.
        causal: a query reads no later token (one axis only).

    Attributes:
        level_sizes: number of summaries of each level, finest first.

    Raises:
        ValueError: an argument is outside of what is stated above.

    Example:
        >>> hierarchy = Hierarchy((64, 64), cell_size=4)
        >>> hierarchy.num_levels, hierarchy.num_summaries
        (3, 336)
        >>> len(hierarchy.near_list((8, 8))), len(hierarchy.interaction_list(1, (8, 8)))
        (9, 27)
    """

    grid: tuple[int, ...]
    cell_size: int
    rank: int = 1
    _: KW_ONLY
    causal: bool = False
    level_sizes: list[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        grid = (self.grid,) if isinstance(self.grid, (int, torch.SymInt)) else tuple(self.grid)
        require(1 <= len(grid) <= 3, "grid", grid, "one, two or three axes")
        positive = all(isinstance(n, (int, torch.SymInt)) and n >= 1 for n in grid)
        require(positive, "grid", grid, "a positive integer per axis")
        # Under torch.compile with dynamic shapes these are symbols. Levels and tables need numbers: one graph per grid.
        object.__setattr__(self, "grid", tuple(int(n) for n in grid))
        require(isinstance(self.cell_size, int) and self.cell_size >= 1, "cell_size", self.cell_size, "an integer >= 1")
        require(isinstance(self.rank, int) and self.rank >= 1, "rank", self.rank, "an integer >= 1")
        require(
            self.cell_size % self.rank == 0, "rank", self.rank, f"a divisor of cell_size, which is {self.cell_size}"
        )
        require(not (self.causal and len(grid) > 1), "causal", self.causal, f"False on a grid of {len(grid)} axes")
        object.__setattr__(self, "level_sizes", [math.prod(self.summary_grid(level)) for level in self.levels])

    def pack(self) -> tuple[list[int], int, int, bool]:
        """The geometry as arguments that an operator of PyTorch takes; :meth:`unpack` is the inverse."""
        return list(self.grid), self.cell_size, self.rank, self.causal

    @classmethod
    def unpack(cls, grid: Sequence[int], cell_size: int, rank: int, causal: bool) -> Hierarchy:
        """The geometry that :meth:`pack` took apart."""
        return _unpacked(tuple(int(n) for n in grid), cell_size, rank, causal)

    # ------------------------------------------------------------------ sizes

    @property
    def ndim(self) -> int:
        """Number of axes D."""
        return len(self.grid)

    @property
    def num_tokens(self) -> int:
        """Number of tokens N."""
        return math.prod(self.grid)

    @property
    def num_levels(self) -> int:
        """Number of far levels L: the smallest with at most two cells of side ``cell_size * 2**L`` per axis.

        0 means that every pair is near: the attention is full attention, exactly.
        """
        level = 0
        while max(self.grid) > 2 * self.cell_size * 2**level:
            level += 1
        return level

    @property
    def levels(self) -> range:
        """The far levels, finest first: 1 .. L."""
        return range(1, self.num_levels + 1)

    @property
    def num_summaries(self) -> int:
        """Number of summaries S of all levels together."""
        return sum(self.level_sizes)

    def cell_width(self, level: int) -> int:
        """Side of a level-``level`` cell in tokens."""
        return self.cell_size * 2 ** (level - 1)

    def cell_grid(self, level: int) -> tuple[int, ...]:
        """Number of level-``level`` cells per axis (the last one may be partial)."""
        require(level >= 1, "level", level, "an integer >= 1")
        return tuple(-(-n // self.cell_width(level)) for n in self.grid)

    def summary_grid(self, level: int) -> tuple[int, ...]:
        """Number of level-``level`` summaries per axis."""
        return tuple(cells * self.rank for cells in self.cell_grid(level))

    # ------------------------------------------------------------------ lists of cells that are read

    def near_list(self, cell: Sequence[int]) -> list[tuple[int, ...]]:
        """Level-1 cells that a query in level-1 ``cell`` reads token by token: its own first, then row-major."""
        return self._row(self.tables().near, 1, cell)

    def interaction_list(self, level: int, cell: Sequence[int]) -> list[tuple[int, ...]]:
        """Level-``level`` cells whose summaries a query in ``cell`` reads, row-major.

        They do not touch ``cell`` while their parents touch its parent: at most 3 cells on one axis (2 when causal),
        27 on two, 189 on three.
        """
        require(level in self.levels, "level", level, f"a far level, 1 to {self.num_levels}")
        return self._row(self.interaction_table(level), level, cell)

    def _row(self, table: Tensor, level: int, cell: Sequence[int]) -> list[tuple[int, ...]]:
        cell, shape = tuple(cell), self.cell_grid(level)
        inside = len(cell) == self.ndim and all(0 <= i < n for i, n in zip(cell, shape, strict=True))
        require(inside, "cell", cell, f"an index into the {shape} cells of level {level}")
        row = table[_flat(torch.tensor(cell), shape)]
        return [tuple(j) for j in _coordinates(shape)[row[row != EMPTY]].tolist()]

    def interaction_table(self, level: int) -> Tensor:
        """Interaction lists of one level as flat cell numbers: (cells, slots) int64 on the CPU, -1 = no cell."""
        return _interaction_table(self, level)

    def tables(self) -> GridTables:
        """The index tables of this geometry (see :class:`GridTables`)."""
        return _tables(self)


@cached
def _unpacked(grid: tuple[int, ...], cell_size: int, rank: int, causal: bool) -> Hierarchy:
    return Hierarchy(grid, cell_size, rank, causal=causal)


class GridTables(NamedTuple):
    """Index tables of the cells that the queries of a level-1 cell read; int64, CPU, -1 = nothing.

    There is one row per level-1 cell, in row-major order.

    Attributes:
        near: (cells, near slots) level-1 cells that are read token by token, the own one first.
        far: (cells, far slots) summary cells of all levels, numbered finest level first.
    """

    near: Tensor
    far: Tensor


def _coordinates(shape: tuple[int, ...]) -> Tensor:
    """Index of every cell of a row-major grid: (cells, D)."""
    return torch.cartesian_prod(*map(torch.arange, shape)).view(-1, len(shape))


def _flat(cell: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Row-major number of the cells at ``cell``: (..., D) -> (...)."""
    index = torch.zeros_like(cell[..., 0])
    for axis, n in enumerate(shape):
        index = index * n + cell[..., axis]
    return index


def _compact(table: Tensor) -> Tensor:
    """Move the empty slots of every row to its end, keep the order of the others, drop columns that are all empty."""
    order = (table == EMPTY).to(torch.int8).argsort(dim=1, stable=True)
    return table.gather(1, order)[:, : int((table != EMPTY).sum(1).max())].contiguous()


def _table(hierarchy: Hierarchy, level: int, offsets: Tensor, parents_touch: bool) -> Tensor:
    """Number of the cell at each offset from every level cell, -1 where there is none.

    With ``parents_touch``, a cell whose parent does not touch the parent of the first is left out as well.
    """
    shape = hierarchy.cell_grid(level)
    cell = _coordinates(shape)[:, None]
    other = cell + offsets
    valid = ((other >= 0) & (other < torch.tensor(shape))).all(-1)
    if parents_touch:
        valid &= (other.div(2, rounding_mode="floor") - cell // 2).abs().amax(-1) <= 1
    return _compact(torch.where(valid, _flat(other, shape), EMPTY))


def _offsets(hierarchy: Hierarchy, reach: int) -> tuple[Tensor, Tensor]:
    """Row-major cell offsets of Chebyshev length up to ``reach``, and those lengths; only backward ones if causal."""
    steps = torch.arange(-reach, (0 if hierarchy.causal else reach) + 1)
    offsets = torch.cartesian_prod(*[steps] * hierarchy.ndim).view(-1, hierarchy.ndim)
    return offsets, offsets.abs().amax(1)


@cached
def _interaction_table(hierarchy: Hierarchy, level: int) -> Tensor:
    offsets, length = _offsets(hierarchy, reach=3)  # children of touching parents are at most 3 cells apart
    return _table(hierarchy, level, offsets[length > 1], parents_touch=True)


@cached
def _tables(hierarchy: Hierarchy) -> GridTables:
    offsets, length = _offsets(hierarchy, reach=1)
    near = _table(hierarchy, 1, offsets[length.argsort(stable=True)], parents_touch=False)
    finest = _coordinates(hierarchy.cell_grid(1))
    far, offset = [torch.empty(len(finest), 0, dtype=torch.int64)], 0
    for level in hierarchy.levels:
        shape = hierarchy.cell_grid(level)
        rows = hierarchy.interaction_table(level)[_flat(finest >> (level - 1), shape)]
        far.append(torch.where(rows == EMPTY, EMPTY, rows + offset))
        offset += math.prod(shape)
    return GridTables(near, _compact(torch.cat(far, 1)))
