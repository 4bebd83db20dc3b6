"""Rows of queries, keys and carries as index tables, and the bias of every key: the inputs of all fused kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..caches import cached
from ..cells import summaries_to_cells, to_cells, token_counts, tokens_to_cells
from ..hierarchy import EMPTY
from .level_pass import LevelPass


def query_rows(level_pass: LevelPass) -> Tensor:
    """Rows of the queries of each query cell: (query cells, T), -1 beyond the grid."""
    return all_rows(level_pass)[level_pass.own]


def all_rows(level_pass: LevelPass) -> Tensor:
    """Rows of the keys that are read one by one, of every cell of theirs: (cells, T), -1 beyond the grid."""
    hierarchy, level = level_pass.hierarchy, level_pass.level
    if level == 0:
        number = torch.arange(1, level_pass.num_keys + 1)[None, None, :, None]  # 0 is what lies beyond the grid
        return tokens_to_cells(number, level_pass.tokens)[0, 0, :, :, 0] - 1
    shape = hierarchy.summary_grid(level)
    number = torch.arange(math.prod(shape)).view(1, 1, *shape, 1)
    return to_cells(number, hierarchy.cell_grid(level), hierarchy.rank)[0, 0, :, :, 0]


def key_rows(level_pass: LevelPass) -> Tensor:
    """:func:`all_rows` without summaries that stand for no token."""
    rows, hierarchy, level = all_rows(level_pass), level_pass.hierarchy, level_pass.level
    if level:
        counts = token_counts(hierarchy, torch.device("cpu"))[0].split(hierarchy.level_sizes)[level - 1]
        rows = torch.where(counts[rows] > 0, rows, EMPTY)
    return rows


def summary_rows(level_pass: LevelPass, also_empty: bool = False) -> Tensor:
    """Rows of the summaries of each summary cell of all levels: (summary cells, rank**D)."""
    hierarchy = level_pass.hierarchy
    number = torch.arange(hierarchy.num_summaries)[None, None, :, None]
    rows = summaries_to_cells(number, hierarchy)[0, 0, :, :, 0]
    counts = token_counts(hierarchy, torch.device("cpu"))[0]
    return rows if also_empty else torch.where(counts[rows] > 0, rows, EMPTY)


@cached
def carry_rows(level_pass: LevelPass, device: torch.device) -> tuple[Tensor, Tensor]:
    """The result of the next coarser level that each query takes, and the queries that take each such result.

    Returns:
        (queries,) and (summaries of the next coarser level, most), int32, -1 = none.
    """
    hierarchy, level = level_pass.hierarchy, level_pass.level
    grid = hierarchy.summary_grid(level) if level else hierarchy.grid
    coarser = hierarchy.summary_grid(level + 1)
    side = 2 if level else hierarchy.cell_size // hierarchy.rank
    taken = torch.zeros((), dtype=torch.int64)
    for n, m in zip(grid, coarser, strict=True):
        taken = taken[..., None] * m + torch.arange(n) // side
    taken, queries = taken.flatten(), torch.arange(level_pass.num_keys)
    if slab := level_pass.slab:
        taken, queries = taken[slab.tokens.start : slab.tokens.stop], queries[slab.own]
    members = lists(taken, queries, math.prod(coarser))
    taken = torch.full((level_pass.num_keys,), EMPTY).index_copy_(0, queries, taken)
    return taken.to(device, torch.int32), members.to(device, torch.int32)


def lists(key: Tensor, value: Tensor, num_keys: int) -> Tensor:
    """The values of each key in order: (keys, most), -1 = none."""
    order = key.argsort(stable=True)
    count = torch.bincount(key, minlength=num_keys)
    position = torch.arange(len(key)) - (count.cumsum(0) - count)[key[order]]
    table = torch.full((num_keys, max(1, int(count.max()) if len(key) else 0)), EMPTY)
    table[key[order], position] = value[order]
    return table


def key_bias(level_pass: LevelPass, mask: Tensor | None, group_bias: bool, device: torch.device) -> Tensor:
    """Added to the logits, in units of log 2, by key: (B or 1, keys and then far summaries) float32.

    0 or log2(count); -inf for what does not exist.
    """
    return _full_bias(level_pass, group_bias, device) if mask is None else _make_bias(level_pass, mask, group_bias)


@cached
def _full_bias(level_pass: LevelPass, group_bias: bool, device: torch.device) -> Tensor:
    mask = torch.zeros(1, level_pass.hierarchy.num_tokens, dtype=torch.bool, device=device)
    return _make_bias(level_pass, mask, group_bias)


def _make_bias(level_pass: LevelPass, mask: Tensor, group_bias: bool) -> Tensor:
    hierarchy, level = level_pass.hierarchy, level_pass.level
    parts = []
    if level == 0:
        parts.append((~level_pass.mask_of_tokens(mask)).float())
    if level or level_pass.far:
        far = token_counts(hierarchy, mask.device, mask)
        parts.append(far.split(hierarchy.level_sizes, 1)[level - 1] if level else far)
    counts = torch.cat(parts, 1)
    return counts.log2() if group_bias else torch.where(counts > 0, 0.0, -math.inf)
