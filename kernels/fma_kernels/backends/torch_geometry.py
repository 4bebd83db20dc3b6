"""What the blockwise backend derives from a geometry: layouts by cell, index tables, biases."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..hierarchy import EMPTY, Hierarchy
from ..layout import (
    from_cells,
    summaries_from_cells,
    summaries_to_cells,
    to_cells,
    token_counts,
    tokens_from_cells,
    tokens_to_cells,
)


@dataclass(frozen=True)
class Geometry:
    """What is fixed about one call: the hierarchy, whose queries read (level 0: tokens), and whether far keys exist."""

    hierarchy: Hierarchy
    level: int
    far: bool

    @property
    def cells(self) -> int:
        """Number of query cells."""
        return math.prod(self.hierarchy.cells(max(1, self.level)))

    @property
    def diagonal(self) -> bool:
        """Whether the own cell is among the keys and must not look ahead."""
        return self.hierarchy.causal and self.level == 0

    def query_to_cells(self, x: Tensor) -> Tensor:
        """Queries (B, H, n, d) by cell: (B * H, cells, T, d)."""
        if self.level == 0:
            return tokens_to_cells(x, self.hierarchy).flatten(0, 1)
        return to_cells(x, self.hierarchy.cells(self.level), self.hierarchy.rank).flatten(0, 1)

    def query_from_cells(self, x: Tensor, batch: int) -> Tensor:
        """Inverse of :meth:`query_to_cells`."""
        x = x.unflatten(0, (batch, -1))
        if self.level == 0:
            return tokens_from_cells(x, self.hierarchy)
        return from_cells(x, self.hierarchy.cells(self.level), self.hierarchy.rank).flatten(2, -2)

    def far_to_cells(self, x: Tensor) -> Tensor:
        """Summaries (B, H, S, d) of all levels by cell: (B * H, cells of all levels, rank**D, d)."""
        return summaries_to_cells(x, self.hierarchy).flatten(0, 1)

    def far_from_cells(self, x: Tensor, batch: int) -> Tensor:
        """Inverse of :meth:`far_to_cells`."""
        return summaries_from_cells(x.unflatten(0, (batch, -1)), self.hierarchy)


@lru_cache(maxsize=64)
def tables(geometry: Geometry, device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """Per key source (near, then far): the cells that a query cell reads, and which of these slots are empty."""
    hierarchy, level = geometry.hierarchy, geometry.level
    tables = [hierarchy.interaction_table(level)] if level else list(hierarchy.tables()[: 1 + geometry.far])
    tables = [table.to(device) for table in tables]
    return [table.clamp(min=0) for table in tables], [table == EMPTY for table in tables]


def bias(geometry: Geometry, mask: Tensor | None, group_bias: bool, like: Tensor) -> list[Tensor]:
    """Added to the logits of each key source, by query cell and key: [(B or 1, cells, K)].

    0 or log(count); -inf for what does not exist.
    """
    if mask is None:
        return _full_bias(geometry, group_bias, like.device, like.dtype)
    hierarchy, level = geometry.hierarchy, geometry.level
    kinds = []  # per source: how many existing tokens each key stands for, by cell
    if level == 0:
        kinds.append(tokens_to_cells((~mask).to(like.dtype)[:, None, :, None], hierarchy)[:, 0, :, :, 0])
    if level or geometry.far:
        counts = token_counts(hierarchy, like.device, mask).to(like.dtype)[:, None, :, None]
        if level:
            counts = counts.split(hierarchy.level_sizes, 2)[level - 1]
            kinds.append(to_cells(counts, hierarchy.cells(level), hierarchy.rank)[:, 0, :, :, 0])
        else:
            kinds.append(summaries_to_cells(counts, hierarchy)[:, 0, :, :, 0])
    parts = []
    for counts, table, empty in zip(kinds, *tables(geometry, like.device), strict=True):
        logit = counts.log() if group_bias else torch.where(counts > 0, 0.0, -math.inf).to(like.dtype)
        parts.append(logit[:, table].masked_fill(empty[..., None], -math.inf).flatten(2))
    return parts


@lru_cache(maxsize=64)
def _full_bias(geometry: Geometry, group_bias: bool, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    nothing_masked = torch.zeros(1, geometry.hierarchy.num_tokens, dtype=torch.bool, device=device)
    return bias(geometry, nothing_masked, group_bias, torch.empty(0, dtype=dtype, device=device))


def sub_block_of_query(geometry: Geometry) -> Tensor:
    """Sub-block of its cell that each query of a cell lies in: (T,) int64."""
    hierarchy = geometry.hierarchy
    side, block = (
        (hierarchy.cell_size, hierarchy.cell_size // hierarchy.rank) if geometry.level == 0 else (hierarchy.rank, 1)
    )
    number = torch.zeros((), dtype=torch.int64)
    for _ in range(hierarchy.ndim):
        number = number[..., None] * hierarchy.rank + torch.arange(side) // block
    return number.flatten()
