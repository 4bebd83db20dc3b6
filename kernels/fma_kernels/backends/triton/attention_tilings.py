"""Tile sizes of the attention kernels: a static table. Its key never holds the number of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tiling:
    """Tile sizes and compiler options of one kernel.

    Attributes:
        own: rows that an item owns, at most; a power of two, at least 16.
        block: partners that it takes at a time; a power of two, at least 16.
        warps: warps per program.
        stages: loads in flight, in tiles of partners.
    """

    own: int
    block: int
    warps: int
    stages: int


#: Kernels: forward, gradient of the queries, of the keys read one by one, of the far summaries.
KERNELS = ("forward", "queries", "keys", "far_keys")

#: By bytes per number and largest head dimension: tilings in the order of KERNELS. Chosen by the resources that the
#: compiler reports for sm_80 and sm_90 (tools/kernel_resources.py): no spills, then the most warps per multiprocessor.
TILINGS = {
    (2, 64): (Tiling(64, 64, 4, 3), Tiling(64, 32, 4, 3), Tiling(64, 32, 4, 3), Tiling(64, 32, 4, 3)),
    (2, 128): (Tiling(64, 32, 4, 3), Tiling(64, 32, 4, 3), Tiling(64, 32, 8, 3), Tiling(64, 32, 8, 3)),
    (4, 64): (Tiling(64, 32, 8, 2), Tiling(64, 16, 8, 2), Tiling(64, 32, 8, 2), Tiling(64, 32, 8, 2)),
    (4, 128): (Tiling(32, 16, 8, 2), Tiling(32, 16, 8, 3), Tiling(32, 16, 8, 2), Tiling(32, 16, 8, 2)),
}


def tiling(kernel: str, dtype: torch.dtype, head_dim: int) -> Tiling:
    """The tiling of one of :data:`KERNELS`.

    Args:
        kernel: which one.
        dtype: of queries, keys and values.
        head_dim: channels per head d, 16 to 128.
    """
    return TILINGS[dtype.itemsize, 64 if head_dim <= 64 else 128][KERNELS.index(kernel)]


def padded(number: int) -> int:
    """The next power of two, at least 16: what a matrix product in a kernel needs."""
    return max(16, 1 << (number - 1).bit_length())
