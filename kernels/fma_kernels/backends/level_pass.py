"""Geometry and options of one attention pass over one level; shared by all backends."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cells import (
    from_cells,
    summaries_from_cells,
    summaries_to_cells,
    to_cells,
    tokens_from_cells,
    tokens_to_cells,
)
from ..hierarchy import Hierarchy
from ..slab import Slab


@dataclass(frozen=True)
class LevelPass:
    """Geometry of one pass: the hierarchy, the level of the queries (0: tokens), and whether they read summaries too.

    Queries of level 0 read near tokens and, with ``far``, the summaries of all levels. Queries of a higher level are
    summaries, and read those of their own level. With a ``slab``, at level 0, queries, keys and values are the tokens
    of its frame, and only the queries of its own cells are worked on: rows of others are undefined in every result.
    """

    hierarchy: Hierarchy
    level: int
    _: KW_ONLY
    far: bool
    slab: Slab | None = None

    @property
    def tokens(self) -> Hierarchy:
        """Geometry of the rows of tokens."""
        return self.slab.frame if self.slab else self.hierarchy

    @property
    def own(self) -> slice:
        """The query cells among the cells of keys."""
        return self.slab.frame_cells if self.slab else slice(None)

    @property
    def query_grid(self) -> tuple[int, ...]:
        """Query cells per axis."""
        if self.level:
            return self.hierarchy.cell_grid(self.level)
        return (self.slab.interior if self.slab else self.hierarchy).cell_grid(1)

    @property
    def cells(self) -> int:
        """Number of query cells."""
        return math.prod(self.query_grid)

    @property
    def num_keys(self) -> int:
        """Number of keys that are read one by one, and of queries."""
        return self.hierarchy.level_sizes[self.level - 1] if self.level else self.tokens.num_tokens

    def near_cells(self) -> Tensor:
        """The cells of keys that each query cell reads one by one: (query cells, slots), -1 = none."""
        return self.hierarchy.interaction_table(self.level) if self.level else self.tokens.tables().near[self.own]

    def far_cells(self) -> Tensor:
        """The summary cells of all levels that each query cell reads at level 0: (query cells, slots), -1 = none."""
        far = self.hierarchy.tables().far
        return far[self.slab.cells] if self.slab else far

    def mask_of_tokens(self, mask: Tensor) -> Tensor:
        """The part of a mask (B, N) of the whole grid that belongs to the rows of tokens."""
        return mask[:, self.slab.read_tokens.start : self.slab.read_tokens.stop] if self.slab else mask

    @property
    def diagonal(self) -> bool:
        """Whether the own cell is among the keys and must not look ahead."""
        return self.hierarchy.causal and self.level == 0

    def query_to_cells(self, x: Tensor) -> Tensor:
        """Queries (B, H, n, d) by cell: (B * H, query cells, T, d)."""
        if not self.slab:
            return self.key_to_cells(x)
        return tokens_to_cells(x[:, :, self.slab.own], self.slab.interior).flatten(0, 1)

    def query_from_cells(self, x: Tensor, batch: int) -> Tensor:
        """Inverse of :meth:`query_to_cells`, with zeros for queries that are in none of the cells."""
        if not self.slab:
            return self.key_from_cells(x, batch)
        x, own = tokens_from_cells(x.unflatten(0, (batch, -1)), self.slab.interior), self.slab.own
        return F.pad(x, [0, 0, own.start, self.num_keys - own.stop])

    def key_to_cells(self, x: Tensor) -> Tensor:
        """Keys that are read one by one (B, H, n, d) by cell: (B * H, cells, T, d)."""
        if self.level == 0:
            return tokens_to_cells(x, self.tokens).flatten(0, 1)
        return to_cells(x, self.hierarchy.cell_grid(self.level), self.hierarchy.rank).flatten(0, 1)

    def key_from_cells(self, x: Tensor, batch: int) -> Tensor:
        """Inverse of :meth:`key_to_cells`."""
        x = x.unflatten(0, (batch, -1))
        if self.level == 0:
            return tokens_from_cells(x, self.tokens)
        return from_cells(x, self.hierarchy.cell_grid(self.level), self.hierarchy.rank).flatten(2, -2)

    def far_to_cells(self, x: Tensor) -> Tensor:
        """Summaries (B, H, S, d) of all levels by cell: (B * H, cells of all levels, rank**D, d)."""
        return summaries_to_cells(x, self.hierarchy).flatten(0, 1)

    def far_from_cells(self, x: Tensor, batch: int) -> Tensor:
        """Inverse of :meth:`far_to_cells`."""
        return summaries_from_cells(x.unflatten(0, (batch, -1)), self.hierarchy)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Arguments of both directions of all passes beside queries, keys and values.

    ``carry`` and ``carry_lse`` are a partial result (output and log-sum-exp) of the next coarser level: (B, H,
    summaries of that level, d) and (B, H, summaries). A query takes part with that of the sub-block it lies in.
    ``slab`` is that of the pass over tokens.
    """

    scale: float
    group_bias: bool = True
    mask: Tensor | None = None
    carry: Tensor | None = None
    carry_lse: Tensor | None = None
    dropout_p: float = 0.0
    seed: Tensor | None = None
    slab: Slab | None = None

    def of(self, part: tuple[slice, slice]) -> Options:
        """The options of a slice (batch, heads)."""
        mask = None if self.mask is None else self.mask[part[0]]
        carry, carry_lse = (None if x is None else x[part] for x in (self.carry, self.carry_lse))
        return replace(self, mask=mask, carry=carry, carry_lse=carry_lse)

    def carrying(self, out: Tensor, lse: Tensor) -> Options:
        """The options of the next finer level."""
        return replace(self, carry=out, carry_lse=lse)

    def generator(self, device: torch.device, level: int) -> torch.Generator | None:
        """Random numbers for the dropout of all chunks of a level, in order; None without dropout."""
        return torch.Generator(device).manual_seed(int(self.seed) + level) if self.dropout_p else None
