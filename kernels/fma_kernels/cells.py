"""Between row-major grids and cells: padding, regrouping, and how many tokens a summary stands for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .caches import cached
from .hierarchy import Hierarchy


def pad_to(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Append zeros to a grid (B, H, *grid, d) until it has ``shape``: (B, H, *shape, d)."""
    grid = x.shape[2:-1]
    if tuple(grid) == tuple(shape):
        return x
    missing = [amount for n, m in zip(reversed(grid), reversed(shape), strict=True) for amount in (0, m - n)]
    return F.pad(x, [0, 0, *missing])


def to_cells(x: Tensor, cells: Sequence[int], side: int) -> Tensor:
    """Group a grid (B, H, *(cells * side), d) by cell: (B, H, number of cells, side**D, d)."""
    ndim = len(cells)
    x = x.reshape(*x.shape[:2], *(size for n in cells for size in (n, side)), x.shape[-1])
    order = [0, 1, *range(2, 2 + 2 * ndim, 2), *range(3, 3 + 2 * ndim, 2), 2 + 2 * ndim]
    return x.permute(order).reshape(*x.shape[:2], math.prod(cells), side**ndim, x.shape[-1])


def from_cells(x: Tensor, cells: Sequence[int], side: int) -> Tensor:
    """Inverse of :func:`to_cells`: (B, H, number of cells, side**D, d) to (B, H, *(cells * side), d)."""
    ndim = len(cells)
    x = x.reshape(*x.shape[:2], *cells, *[side] * ndim, x.shape[-1])
    order = [0, 1, *(axis for a in range(ndim) for axis in (2 + a, 2 + ndim + a)), 2 + 2 * ndim]
    return x.permute(order).reshape(*x.shape[:2], *(n * side for n in cells), x.shape[-1])


def tokens_to_cells(x: Tensor, hierarchy: Hierarchy) -> Tensor:
    """Group tokens (B, H, N, d) by level-1 cell, zeros beyond the grid: (B, H, cells, cell_size**D, d)."""
    cells, side = hierarchy.cell_grid(1), hierarchy.cell_size
    return to_cells(pad_to(x.unflatten(2, hierarchy.grid), [n * side for n in cells]), cells, side)


def tokens_from_cells(x: Tensor, hierarchy: Hierarchy) -> Tensor:
    """Inverse of :func:`tokens_to_cells`: (B, H, cells, cell_size**D, d) to (B, H, N, d)."""
    x = from_cells(x, hierarchy.cell_grid(1), hierarchy.cell_size)
    for axis, n in enumerate(hierarchy.grid):
        x = x.narrow(2 + axis, 0, n)
    return x.reshape(*x.shape[:2], hierarchy.num_tokens, x.shape[-1])


def summaries_to_cells(x: Tensor, hierarchy: Hierarchy) -> Tensor:
    """Group summaries (B, H, S, d) by summary cell of all levels: (B, H, cells of all levels, rank**D, d)."""
    if hierarchy.ndim == 1 or hierarchy.rank == 1:  # row-major order is cell order already
        return x.unflatten(2, (-1, hierarchy.rank**hierarchy.ndim))
    levels = zip(hierarchy.levels, x.split(hierarchy.level_sizes, dim=2), strict=True)
    return torch.cat([to_cells(part, hierarchy.cell_grid(level), hierarchy.rank) for level, part in levels], dim=2)


def summaries_from_cells(x: Tensor, hierarchy: Hierarchy) -> Tensor:
    """Inverse of :func:`summaries_to_cells`."""
    if hierarchy.ndim == 1 or hierarchy.rank == 1:
        return x.flatten(2, 3)
    counts = [math.prod(hierarchy.cell_grid(level)) for level in hierarchy.levels]
    levels = zip(hierarchy.levels, x.split(counts, dim=2), strict=True)
    return torch.cat(
        [from_cells(part, hierarchy.cell_grid(level), hierarchy.rank).flatten(2, -2) for level, part in levels], dim=2
    )


def to_finer_level(x: Tensor, hierarchy: Hierarchy, level: int) -> Tensor:
    """Give each sub-block of a level what the one of the next coarser level has that it lies in.

    Args:
        x: (B, H, summaries of ``level`` + 1, d).
        hierarchy: geometry.
        level: the finer level.

    Returns:
        (B, H, summaries of ``level``, d).
    """
    x = x.unflatten(2, hierarchy.summary_grid(level + 1))
    for axis, n in enumerate(hierarchy.summary_grid(level)):
        x = x.repeat_interleave(2, dim=2 + axis).narrow(2 + axis, 0, n)
    return x.flatten(2, -2)


def to_coarser_level(x: Tensor, hierarchy: Hierarchy, level: int) -> Tensor:
    """Transpose of :func:`to_finer_level`: sums over the sub-blocks of ``level`` in each of the next coarser one."""
    x = pad_to(x.unflatten(2, hierarchy.summary_grid(level)), [2 * n for n in hierarchy.summary_grid(level + 1)])
    return _sum_blocks(x, 2).flatten(2, -2)


def token_counts(hierarchy: Hierarchy, device: torch.device, mask: Tensor | None = None) -> Tensor:
    """Number of tokens inside the grid and not masked that each summary stands for.

    Args:
        hierarchy: geometry.
        device: where the result lies.
        mask: (B, N) bool, True = the token does not exist; None = every token exists.

    Returns:
        (B, S) float32, or (1, S) without a mask.
    """
    if mask is None:
        return _full_counts(hierarchy, device)
    side, cells = hierarchy.cell_size // hierarchy.rank, hierarchy.cell_grid(1)
    counts = (~mask).to(device, torch.float32)[:, None, :, None].unflatten(2, hierarchy.grid)
    counts = pad_to(counts, [n * hierarchy.cell_size for n in cells])
    levels = []
    for level in hierarchy.levels:
        counts = _sum_blocks(counts, side)
        levels.append(counts.flatten(1))
        cells, side = hierarchy.cell_grid(level + 1), 2
        counts = pad_to(counts, [2 * n * hierarchy.rank for n in cells])
    return torch.cat(levels, 1) if levels else counts.new_zeros(len(mask), 0)


@cached
def _full_counts(hierarchy: Hierarchy, device: torch.device) -> Tensor:
    return token_counts(hierarchy, device, torch.zeros(1, hierarchy.num_tokens, dtype=torch.bool, device=device))


def _sum_blocks(x: Tensor, side: int) -> Tensor:
    """Sums over blocks of ``side`` along every axis of a grid (B, H, *grid, d)."""
    for axis in range(2, x.ndim - 1):
        x = x.unflatten(axis, (-1, side)).sum(axis + 1)
    return x
