"""FLOPs of the operators, for ``torch.utils.flop_counter.FlopCounterMode``, which takes unknown operators for free.

As everywhere in PyTorch, one multiply-add counts as two, and only the products of matrices and weights count: not the
softmax, and not the merging of partial results. An attention counts the pairs that it reads, whatever the padding of
partial cells or a mask. Summaries count as contractions, axis by axis and level by level, of grids with the zeros
beyond the edge. So a model counts the same with every backend; the fused kernels work on all axes of a cell at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.utils.flop_counter import register_flop_formula

from . import ops  # noqa: F401  defines the operators
from .hierarchy import Hierarchy
from .slab import Slab


def near_pairs(hierarchy: Hierarchy, slab: Slab | None = None) -> int:
    """Number of (query token, key token) pairs whose level-1 cells touch; without the later keys if causal.

    Args:
        hierarchy: geometry.
        slab: count the queries of one rank alone.
    """
    queries, keys = _query_tokens(hierarchy, 1, slab), _tokens(hierarchy, 1)
    if hierarchy.causal:
        return _before(queries[0], keys[0]) + sum(n * (n + 1) // 2 for n in queries[0])
    return math.prod(_touching(q, k) for q, k in zip(queries, keys, strict=True))


def far_pairs(hierarchy: Hierarchy, level: int, summarised_queries: bool = False, slab: Slab | None = None) -> int:
    """Number of (query, summary) pairs of one level.

    Args:
        hierarchy: geometry.
        level: far level, 1 or more.
        summarised_queries: count the pairs of query summaries instead of those of query tokens.
        slab: count the query tokens of one rank alone; every rank works on all query summaries.

    Returns:
        The pairs over the interaction lists; summaries that stand for no token are read by none and read nothing.
    """
    queries = _sub_blocks(hierarchy, level) if summarised_queries else _query_tokens(hierarchy, level, slab)
    keys = _sub_blocks(hierarchy, level)
    if hierarchy.causal:  # the cells of the parent before, but for those that touch
        (q,), (k,) = queries, keys
        return _before(_parents(q), _parents(k)) - _before(q[::2], k[1::2])
    in_touching_parents = math.prod(_touching(_parents(q), _parents(k)) for q, k in zip(queries, keys, strict=True))
    return in_touching_parents - math.prod(_touching(q, k) for q, k in zip(queries, keys, strict=True))


def attend_pairs(
    hierarchy: Hierarchy, *, summarised_queries: bool = False, near_only: bool = False, slab: Slab | None = None
) -> int:
    """Number of pairs that :func:`fma_kernels.ops.attend` reads, per sequence and head.

    Args:
        hierarchy: geometry.
        summarised_queries: whether queries have summaries as well (FMA-linear).
        near_only: whether there are no summaries.
        slab: count the work of one rank alone.
    """
    levels = () if near_only else hierarchy.levels
    far = sum(far_pairs(hierarchy, level, summarised_queries, slab) for level in levels)
    return near_pairs(hierarchy, slab) + far


# Numbers of level cells are given along each axis; that of a cell of the grid is the product over the axes.


def _tokens(hierarchy: Hierarchy, level: int) -> list[list[int]]:
    """Tokens of each cell, partial ones at the far edge."""
    width = hierarchy.cell_width(level)
    return [[min(width, n - start) for start in range(0, n, width)] for n in hierarchy.grid]


def _query_tokens(hierarchy: Hierarchy, level: int, slab: Slab | None) -> list[list[int]]:
    """As :func:`_tokens`; with a slab, its own tokens alone."""
    tokens = _tokens(hierarchy, level)
    if slab:
        own, width = slab.extent, hierarchy.cell_width(level)
        cells = (range(i * width, (i + 1) * width) for i in range(len(tokens[0])))
        tokens[0] = [max(0, min(cell.stop, own.stop) - max(cell.start, own.start)) for cell in cells]
    return tokens


def _sub_blocks(hierarchy: Hierarchy, level: int) -> list[list[int]]:
    """Sub-blocks of each cell that hold a token."""
    block = hierarchy.cell_width(level) // hierarchy.rank
    return [[-(-tokens // block) for tokens in axis] for axis in _tokens(hierarchy, level)]


def _parents(cells: Sequence[int]) -> list[int]:
    return [sum(cells[i : i + 2]) for i in range(0, len(cells), 2)]


def _before(queries: Sequence[int], keys: Sequence[int]) -> int:
    """Pairs of each cell with the one before it, on one axis."""
    return sum(q * k for q, k in zip(queries[1:], keys, strict=False))


def _touching(queries: Sequence[int], keys: Sequence[int]) -> int:
    """Pairs of each cell with itself, the one before and the one after, on one axis."""
    return sum(q * k for q, k in zip(queries, keys, strict=True)) + _before(queries, keys) + _before(keys, queries)


# ---------------------------------------------------------------------- formulas


def _attend_product(
    query: Sequence[int],
    far_query: Sequence[int] | None,
    far_key: Sequence[int] | None,
    geometry: tuple,
    slab: Sequence[int] = (),
) -> int:
    """FLOPs of one of the products of an attention: one of length d for every pair."""
    batch, heads, _, dim = query
    hierarchy = Hierarchy.unpack(*geometry[:4])
    pairs = attend_pairs(
        hierarchy, summarised_queries=far_query is not None, near_only=far_key is None,
        slab=Slab(hierarchy, *slab) if slab else None,
    )  # fmt: skip
    return 2 * batch * heads * dim * pairs


@register_flop_formula(torch.ops.fma_kernels.attend)
def _attend(query, key, value, far_query, far_key, far_value, mask, seed, *geometry, **_) -> int:
    return 2 * _attend_product(query, far_query, far_key, geometry, geometry[4])  # with the keys, with the values


@register_flop_formula(torch.ops.fma_kernels.attend_backward)
def _attend_backward(
    grad_out, grad_lse, out, lse, far_out, far_lse,
    query, key, value, far_query, far_key, far_value, mask, seed, *geometry, **_,
) -> int:  # fmt: skip
    return 5 * _attend_product(query, far_query, far_key, geometry, geometry[4])  # logits again, and four gradients


def _pools_product(tokens, query_weight: Sequence[int] | None, geometry: tuple) -> int:
    """FLOPs of one pass of the pooling over the keys, the values, and the queries if they have weights."""
    windows = [False, False] if query_weight is None else [False, False, geometry[3]]
    return sum(_pool_product(tokens, (*geometry[:4], of_queries)) for of_queries in windows)


@register_flop_formula(torch.ops.fma_kernels.fma)
def _fma(query, key, value, query_weight, query_upper, kw, ku, vw, vu, mask, seed, *geometry, **_) -> int:
    return 2 * _attend_product(query, query_weight, key, geometry) + _pools_product(query, query_weight, geometry)


@register_flop_formula(torch.ops.fma_kernels.fma_backward)
def _fma_backward(
    grad_out, grad_lse, out, lse, far_out, far_lse, summaries, sums,
    query, key, value, query_weight, query_upper, kw, ku, vw, vu, mask, seed, *geometry, **_,
) -> int:  # fmt: skip
    return 5 * _attend_product(query, query_weight, key, geometry) + 2 * _pools_product(query, query_weight, geometry)


@register_flop_formula(torch.ops.fma_kernels.contract)
def _contract(x, weight, axis, **_) -> int:
    return 2 * math.prod(x) * weight[1]  # every entry counts for all outputs of its block


@register_flop_formula(torch.ops.fma_kernels.contract_backward)
def _contract_backward(grad, x, weight, axis, **_) -> int:
    return 2 * 2 * math.prod(x) * weight[1]  # the gradients of the grid and of the weight


def _pool_product(x: Sequence[int], geometry: tuple) -> int:
    """FLOPs of one pass over the inputs of the cells of all levels."""
    hierarchy, windows = Hierarchy.unpack(*geometry[:4]), geometry[4]
    outputs = 1 if windows else hierarchy.rank  # of a block along one axis
    total = 0
    for level in hierarchy.levels:
        below = hierarchy.cell_size if level == 1 else 2 * hierarchy.rank
        shape = [cells * below for cells in hierarchy.cell_grid(level)]
        for axis in reversed(range(hierarchy.ndim)):
            total += math.prod(shape) * outputs
            shape[axis] = hierarchy.summary_grid(level)[axis]
    return 2 * x[0] * x[1] * x[3] * total


@register_flop_formula(torch.ops.fma_kernels.pool)
def _pool(x, weight, upper, mask, *geometry, **_) -> int:
    return _pool_product(x, geometry)


@register_flop_formula(torch.ops.fma_kernels.pool_backward)
def _pool_backward(grad, x, weight, upper, mask, sums, *geometry, **_) -> int:
    return 2 * _pool_product(x, geometry)  # the gradients of the inputs and of the weights
