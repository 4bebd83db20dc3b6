"""Chunks of work that fit the cache of a CPU or fill another device."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

#: Numbers in flight at a time. On a CPU the working set stays in the second-level cache; elsewhere it fills the device.
_BUDGET = {"cpu": 2**20}
_BUDGET_ELSEWHERE = 2**26


def chunk_size(device: torch.device, numbers: int) -> int:
    """Number of items to work on at a time, of ``numbers`` numbers each; at least 1."""
    return max(1, _BUDGET.get(device.type, _BUDGET_ELSEWHERE) // max(1, numbers))


def head_groups(x: Tensor, numbers_per_head: int) -> Iterator[tuple[slice, slice]]:
    """Batch and head slices of ``x`` (B, H, ...) to work on at a time: whole sequences, or else some of one's heads."""
    batch, heads = x.shape[:2]
    step = min(heads, chunk_size(x.device, numbers_per_head))
    sequences = chunk_size(x.device, heads * numbers_per_head) if step == heads else 1
    for b in range(0, batch, sequences):
        for h in range(0, heads, step):
            yield slice(b, b + sequences), slice(h, h + step)


class Scratch:
    """Buffers that the chunks of one call use one after the other; fresh memory for each would cost more than the work.

    ``scratch("name", shape)`` is an uninitialised tensor that the next call with that name overwrites.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device):
        self.dtype, self.device = dtype, device
        self._buffers: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        size, buffer = math.prod(shape), self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name] = torch.empty(size, dtype=dtype or self.dtype, device=self.device)
        return buffer[:size].view(shape)
