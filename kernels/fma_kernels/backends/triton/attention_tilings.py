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


#: Kernels: forward, the same with a causal mask or dropout (which need registers), gradient of the queries, of the keys
#: read one by one, of the far summaries.
KERNELS = ("forward", "masked_forward", "queries", "keys", "far_keys")

#: By bytes per number and largest head dimension: tilings in the order of KERNELS. None spills on sm_80 or sm_90
#: (tools/kernel_resources.py). Among such, those of 16-bit numbers and d = 64 are the fastest of 29 on an NVIDIA H200
#: (16,384 tokens and 128x128, bfloat16); the others have the most warps per multiprocessor.
TILINGS = {
    (2, 64): (Tiling(64, 128, 4, 2), Tiling(64, 64, 4, 1), *[Tiling(64, 32, 4, 1)] * 3),
    (2, 128): (*[Tiling(64, 32, 4, 3)] * 3, *[Tiling(64, 32, 8, 3)] * 2),
    (4, 64): (*[Tiling(64, 32, 8, 2)] * 2, Tiling(64, 16, 8, 2), *[Tiling(64, 32, 8, 2)] * 2),
    (4, 128): (*[Tiling(32, 16, 8, 2)] * 2, Tiling(32, 16, 8, 3), *[Tiling(32, 16, 8, 2)] * 2),
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
