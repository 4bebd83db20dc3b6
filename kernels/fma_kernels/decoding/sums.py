"""Sums of cells over their tokens, level by level, as the cells end."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..summaries import SummaryBasis


class Sums:
    """Sums over the cells of each level, from which the summaries of one basis come.

    Args:
        basis: the weights.
    """

    def __init__(self, basis: SummaryBasis):
        self.basis, self.direct = basis, basis.kind == "direct"
        #: Levels that there can be.
        self.num_levels = basis.num_levels if self.direct else math.inf
        #: Of a direct basis: sums of the cell of each level that has begun and not ended, (B, H, p, d).
        self.open: dict[int, Tensor] = {}

    def of_cells(self, level: int, below: Tensor, cells: int) -> Tensor:
        """Sums of the first cells of a level: (B, H, cells * p, d).

        Args:
            level: the level.
            below: (B, H, n, d), the tokens for level 1 and for a direct basis, else the sums of the level below.
            cells: how many there are.
        """
        weight = self._weight(level, below)
        blocks = below[:, :, : cells * weight.shape[2]].unflatten(2, (cells, -1))
        return torch.einsum("bhcid,hpid->bhcpd", blocks, weight).flatten(2, 3)

    def add_cell(self, tokens: Tensor, first: int) -> None:
        """Let a direct basis add a level-1 cell to the open sums of all levels.

        Args:
            tokens: (B, H, m, d).
            first: number of tokens before them.
        """
        for level in self._direct_levels():
            self._add(level, tokens, first % (tokens.shape[2] * 2 ** (level - 1)))

    def add_prompt(self, tokens: Tensor) -> None:
        """Let a direct basis begin the open sums of all levels with a prompt of whole level-1 cells, (B, H, n, d)."""
        for level in self._direct_levels():
            if rest := tokens.shape[2] % (self.basis.cell_size * 2 ** (level - 1)):
                self._add(level, tokens[:, :, -rest:], 0)

    def end_cell(self, level: int, below: Tensor) -> Tensor:
        """Sums of the cell of a level that ends, (B, H, p, d); ``below`` as in :meth:`of_cells`, for that one cell."""
        return self.open.pop(level) if self.direct else self.of_cells(level, below, 1)

    def _direct_levels(self) -> range:
        return range(1, int(self.num_levels) + 1) if self.direct else range(0)

    def _add(self, level: int, tokens: Tensor, offset: int) -> None:
        """Add tokens that lie in one cell of a level, ``offset`` tokens behind its start."""
        weight = self._weight(level, tokens)[:, :, offset : offset + tokens.shape[2]]
        sums = torch.einsum("bhid,hpid->bhpd", tokens, weight)
        self.open[level] = self.open[level] + sums if level in self.open else sums

    def _weight(self, level: int, like: Tensor) -> Tensor:
        """(H or 1, p, inputs, d)."""
        return self.basis.weight(0, level, like).to(like.dtype)
