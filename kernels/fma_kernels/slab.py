"""The part of a grid that one of several ranks holds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .caches import cached
from .checks import require
from .hierarchy import Hierarchy


@dataclass(frozen=True)
class Slab:
    """Consecutive layers of level-1 cells along the first axis: those of one rank, and those that its queries read.

    Of c layers, rank i of W owns the layers i * c // W to (i + 1) * c // W. Its tokens follow each other in the
    row-major order of the grid. Its queries read the tokens of one layer more on each side that there is one on; on the
    left alone if attention is causal. These are the *halo*. Rows of tokens are numbered from the first one that is
    read: together with the halo they are a grid of their own, the *frame*.

    Args:
        hierarchy: geometry of the whole grid.
        rank: rank that owns the slab, from 0.
        size: number of ranks W.

    Raises:
        ValueError: there are fewer layers than ranks.
    """

    hierarchy: Hierarchy
    rank: int
    size: int

    def __post_init__(self):
        layers = self._num_layers
        expected = f"at most {layers}: each owns a layer of cells of side {self.hierarchy.cell_size}, "
        require(self.size <= layers, "ranks", self.size, f"{expected}and grid={self.hierarchy.grid} has {layers}")

    def pack(self) -> list[int]:
        """Rank and number of ranks, as an operator of PyTorch takes them with the hierarchy."""
        return [self.rank, self.size]

    def of(self, rank: int) -> Slab:
        """The slab of another rank."""
        return Slab(self.hierarchy, rank, self.size)

    @property
    def _num_layers(self) -> int:
        return self.hierarchy.cell_grid(1)[0]

    @property
    def layers(self) -> range:
        """Layers of level-1 cells that the rank owns."""
        return range(*(i * self._num_layers // self.size for i in (self.rank, self.rank + 1)))

    @property
    def read_layers(self) -> range:
        """Layers whose tokens the queries of the rank read one by one: its own, and those that touch them."""
        after = 0 if self.hierarchy.causal else 1
        return range(max(0, self.layers.start - 1), min(self._num_layers, self.layers.stop + after))

    def _extent(self, layers: range) -> range:
        """Coordinates of the tokens of layers on the first axis."""
        n, side = self.hierarchy.grid[0], self.hierarchy.cell_size
        return range(layers.start * side, min(n, layers.stop * side))

    @property
    def extent(self) -> range:
        """Coordinates of the own tokens on the first axis."""
        return self._extent(self.layers)

    @property
    def grid(self) -> tuple[int, ...]:
        """Own tokens per axis."""
        return (len(self.extent), *self.hierarchy.grid[1:])

    @property
    def num_tokens(self) -> int:
        """Number of own tokens."""
        return math.prod(self.grid)

    @property
    def tokens(self) -> range:
        """Numbers of the own tokens in the whole grid."""
        return self._tokens(self.extent)

    @property
    def read_tokens(self) -> range:
        """Numbers of the tokens of the frame in the whole grid."""
        return self._tokens(self._extent(self.read_layers))

    def _tokens(self, extent: range) -> range:
        row = math.prod(self.hierarchy.grid[1:])
        return range(extent.start * row, extent.stop * row)

    @property
    def own(self) -> slice:
        """Rows of the own tokens in the frame."""
        start = self.tokens.start - self.read_tokens.start
        return slice(start, start + self.num_tokens)

    @property
    def halo(self) -> tuple[int, int]:
        """Number of tokens that are read of the rank before, and of the rank after."""
        return self.own.start, len(self.read_tokens) - self.own.stop

    @property
    def lent(self) -> tuple[int, int]:
        """Number of own tokens that the rank before reads, and that the rank after reads."""
        before = self.of(self.rank - 1).halo[1] if self.rank > 0 else 0
        return before, self.of(self.rank + 1).halo[0] if self.rank + 1 < self.size else 0

    @property
    def frame(self) -> Hierarchy:
        """Geometry of the tokens that are read; its levels mean nothing."""
        return _geometry(self, self.read_layers)

    @property
    def interior(self) -> Hierarchy:
        """Geometry of the own tokens; its levels mean nothing."""
        return _geometry(self, self.layers)

    @property
    def cells(self) -> slice:
        """Numbers of the own level-1 cells in the whole grid."""
        return self._cells(0)

    @property
    def frame_cells(self) -> slice:
        """Numbers of the own level-1 cells in the frame."""
        return self._cells(self.read_layers.start)

    def _cells(self, first: int) -> slice:
        layer = math.prod(self.hierarchy.cell_grid(1)[1:])
        return slice((self.layers.start - first) * layer, (self.layers.stop - first) * layer)


@cached
def _geometry(slab: Slab, layers: range) -> Hierarchy:
    hierarchy = slab.hierarchy
    grid = (len(slab._extent(layers)), *hierarchy.grid[1:])
    return Hierarchy(grid, hierarchy.cell_size, hierarchy.rank, causal=hierarchy.causal)
