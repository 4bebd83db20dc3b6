"""Index tables, biases and sub-blocks of the blockwise backend, made from a pass."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...caches import cached
from ...cells import summaries_to_cells, to_cells, token_counts, tokens_to_cells
from ...hierarchy import EMPTY
from ..level_pass import LevelPass


@cached
def tables(level_pass: LevelPass, device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """Per key source (near, then far): the cells that a query cell reads, and which of these slots are empty."""
    tables = [level_pass.near_cells(), *([level_pass.far_cells()] if level_pass.far else [])]
    tables = [table.to(device) for table in tables]
    return [table.clamp(min=0) for table in tables], [table == EMPTY for table in tables]


def bias(level_pass: LevelPass, mask: Tensor | None, group_bias: bool, like: Tensor) -> list[Tensor]:
    """Added to the logits of each key source, by query cell and key: [(B or 1, cells, K)].

    0 or log(count); -inf for what does not exist.
    """
    if mask is None:
        return _full_bias(level_pass, group_bias, like.device, like.dtype)
    hierarchy, level = level_pass.hierarchy, level_pass.level
    kinds = []  # per source: how many existing tokens each key stands for, by cell
    if level == 0:
        exists = (~level_pass.mask_of_tokens(mask)).to(like.dtype)[:, None, :, None]
        kinds.append(tokens_to_cells(exists, level_pass.tokens)[:, 0, :, :, 0])
    if level or level_pass.far:
        counts = token_counts(hierarchy, like.device, mask).to(like.dtype)[:, None, :, None]
        if level:
            counts = counts.split(hierarchy.level_sizes, 2)[level - 1]
            kinds.append(to_cells(counts, hierarchy.cell_grid(level), hierarchy.rank)[:, 0, :, :, 0])
        else:
            kinds.append(summaries_to_cells(counts, hierarchy)[:, 0, :, :, 0])
    parts = []
    for counts, table, empty in zip(kinds, *tables(level_pass, like.device), strict=True):
        logit = counts.log() if group_bias else torch.where(counts > 0, 0.0, -math.inf).to(like.dtype)
        parts.append(logit[:, table].masked_fill(empty[..., None], -math.inf).flatten(2))
    return parts


@cached
def _full_bias(level_pass: LevelPass, group_bias: bool, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    nothing_masked = torch.zeros(1, level_pass.hierarchy.num_tokens, dtype=torch.bool, device=device)
    return bias(level_pass, nothing_masked, group_bias, torch.empty(0, dtype=dtype, device=device))


def sub_block_of_query(level_pass: LevelPass) -> Tensor:
    """Sub-block of its cell that each query of a cell lies in: (T,) int64."""
    hierarchy = level_pass.hierarchy
    side, block = (
        (hierarchy.cell_size, hierarchy.cell_size // hierarchy.rank) if level_pass.level == 0 else (hierarchy.rank, 1)
    )
    number = torch.zeros((), dtype=torch.int64)
    for _ in range(hierarchy.ndim):
        number = number[..., None] * hierarchy.rank + torch.arange(side) // block
    return number.flatten()
