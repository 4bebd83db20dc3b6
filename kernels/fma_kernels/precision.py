"""The dtype that sums are made in."""

from __future__ import annotations

import torch
from torch import Tensor


def sum_dtype(x: Tensor) -> torch.dtype:
    """The dtype of sums over numbers such as those of ``x``: its own, but float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)
