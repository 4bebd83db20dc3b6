"""Summaries in standard operators."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..backends.pooling_tables import Pyramid, summary_sizes
from ..backends.torch.pooling import output_shape
from ..cells import token_counts
from ..hierarchy import Hierarchy
from .attention import attend
from .tables import CPU, constant, gather, pool_tables, scale_of_summaries, summary_order


def pool(
    x: Tensor,
    weight: Tensor,
    upper: Tensor,
    mask: Tensor | None,
    grid: Sequence[int],
    cell_size: int,
    rank: int,
    causal: bool,
    windows: bool,
    keep: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """``fma_kernels::pool``, arguments and results as there; the second result, for its gradients, is empty."""
    pyramid = Pyramid(Hierarchy.unpack(grid, cell_size, rank, causal), windows)
    return _pool(x, weight, upper, mask, pyramid), x.new_empty(0, dtype=torch.float32)


def _pool(x: Tensor, weight: Tensor, upper: Tensor, mask: Tensor | None, pyramid: Pyramid) -> Tensor:
    """Summaries of all levels, (B, H, S, d)."""
    hierarchy, dtype = pyramid.hierarchy, x.dtype
    below = x if mask is None else x.masked_fill(mask[:, None, :, None], 0)
    below, levels = below.to(weight.dtype), []
    for level in hierarchy.levels:
        tables = constant(pool_tables, pyramid, level)
        inputs = gather(below, tables.rows)  # (B, H, cells, inputs, d)
        if tables.exists is not None:
            inputs = inputs.masked_fill(~tables.exists, 0)
        factors = weight if level == 1 else upper[min(level - 2, len(upper) - 1)]
        below = (inputs[:, :, :, None] * factors[:, None]).sum(4).flatten(2, 3)
        levels.append(below)
    out = torch.cat(levels, 2) if len(levels) > 1 else levels[0]
    order = constant(summary_order, pyramid)
    out = out if order is None else out.index_select(2, order)
    scale = _scale(pyramid, mask, out.dtype)
    return (out if scale is None else out * scale).to(dtype)


def _scale(pyramid: Pyramid, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Factor of every sum, (S, 1) or (B, 1, S, 1); None for 1."""
    if pyramid.windows:
        return None
    if mask is None:
        return constant(scale_of_summaries, pyramid.hierarchy, dtype)
    counts = token_counts(pyramid.hierarchy, mask.device, mask)
    return (constant(summary_sizes, pyramid.hierarchy, CPU).to(dtype) / counts.clamp(min=1))[:, None, :, None]


def fma(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_weight: Tensor | None,
    query_upper: Tensor | None,
    key_weight: Tensor,
    key_upper: Tensor,
    value_weight: Tensor,
    value_upper: Tensor,
    mask: Tensor | None,
    seed: Tensor | None,
    grid: Sequence[int],
    cell_size: int,
    rank: int,
    causal: bool,
    scale: float,
    group_bias: bool,
    dropout_p: float,
    keep: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``fma_kernels::fma``, arguments and results as there; all results but the first two are empty."""
    hierarchy = Hierarchy.unpack(grid, cell_size, rank, causal)
    parts = [(key, key_weight, key_upper), (value, value_weight, value_upper)]
    far_query = None
    if query_weight is not None and causal:  # windows are other cells
        far_query = _pool(query, query_weight, query_upper, mask, Pyramid(hierarchy, windows=True))
    elif query_weight is not None:
        parts.append((query, query_weight, query_upper))
    far = _pool_together(parts, mask, Pyramid(hierarchy))
    far_key, far_value, *rest = far
    results = attend(
        query, key, value, rest[0] if rest else far_query, far_key, far_value, mask, seed, grid, cell_size, rank,
        causal, [], scale, group_bias, dropout_p, backend,
    )  # fmt: skip
    none = results[2]
    return *results, none.to(query.dtype), none.clone()


def _pool_together(
    parts: Sequence[tuple[Tensor, Tensor, Tensor]], mask: Tensor | None, pyramid: Pyramid
) -> Sequence[Tensor]:
    """Summaries of several kinds of tokens, as if they were heads of one: fewer operators."""
    heads = parts[0][0].shape[1]
    x = torch.cat([x for x, _, _ in parts], 1)
    weight = torch.cat([weight.expand(heads, -1, -1, -1) for _, weight, _ in parts])
    upper = torch.cat([upper.expand(-1, heads, -1, -1, -1) for _, _, upper in parts], 1)
    return _pool(x, weight, upper, mask, pyramid).split(heads, 1)


def contract(x: Tensor, weight: Tensor, axis: int) -> Tensor:
    """``fma_kernels::contract``, arguments and result as there."""
    before, after, width = x.shape[2 : 2 + axis], x.shape[3 + axis : -1], weight.shape[2]
    outer = math.prod(before) * (x.shape[2 + axis] // width)
    blocks = x.reshape(*x.shape[:2], outer, 1, width, math.prod(after), x.shape[-1])
    return (blocks * weight[:, None, :, :, None]).sum(4).reshape(output_shape(x, weight, axis))


def summary_counts(
    mask: Tensor | None, grid: Sequence[int], cell_size: int, rank: int, causal: bool, device: torch.device
) -> Tensor:
    """``fma_kernels::summary_counts``, arguments and result as there."""
    hierarchy = Hierarchy.unpack(grid, cell_size, rank, causal)
    if mask is not None:
        return token_counts(hierarchy, mask.device, mask)
    return constant(token_counts, hierarchy, CPU)
