"""Rotary positions (RoFormer, arXiv 2104.09864, section 3.2.2)."""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 10000.0


def rotate(x: Tensor, start: int | Tensor = 0) -> Tensor:
    """Rotate pairs of channels, the i-th of the first and of the second half, by angles that grow with the position.

    Products of rotated queries and keys depend on the difference of their positions only.

    Args:
        x: (B, H, N, d), d even.
        start: position of the first token; an int64 tensor without dimensions where it is an input of a graph.

    Returns:
        (B, H, N, d) in the dtype of ``x``.
    """
    half = x.shape[-1] // 2
    frequency = BASE ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
    position = start + torch.arange(x.shape[2], device=x.device, dtype=torch.float64)
    angle = position[:, None] * frequency  # in double precision: in single, far positions would round to others
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
