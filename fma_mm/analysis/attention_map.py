"""Tokens and summaries that one query over a feature map reads, and their weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fma_kernels import Hierarchy, aggregate
from fma_kernels.checks import require

from ..models import FMA2DAttention


@dataclass(frozen=True)
class LevelReading:
    """Readings of a query at one level: single tokens in its near field, summaries of sub-blocks further away.

    Attributes:
        level: 0 for the near field, 1 to L for the far levels.
        index: (m,) int64, which ones: row-major numbers of tokens at level 0, else numbers of summaries as
            :func:`fma_kernels.aggregate` orders them (all levels, finest first).
        boxes: (m, 4) int64, the tokens that each one is or stands for, as (top, left, bottom, right): those of the
            half-open block of rows ``top`` to ``bottom`` and columns ``left`` to ``right``.
    """

    level: int
    index: Tensor
    boxes: Tensor

    @property
    def counts(self) -> Tensor:
        """(m,) int64: number of tokens of each box."""
        return (self.boxes[:, 2:] - self.boxes[:, :2]).prod(1)


@dataclass(frozen=True)
class QueryAttention:
    """The attention of one query, by level.

    Attributes:
        hierarchy: geometry of the feature map; without levels, the near field is the whole map.
        query: row and column of the query.
        readings: the near field, then the far levels that the query reads, finest first.
        weights: for each of the readings the softmax weights (heads, m), in the dtype of the tokens. For each head, the
            weights of all levels together sum to 1.
    """

    hierarchy: Hierarchy
    query: tuple[int, int]
    readings: list[LevelReading]
    weights: list[Tensor]

    def token_map(self) -> Tensor:
        """Weights over the tokens, (heads, height, width); a summary's is spread evenly over the tokens it stands for.

        Evenly, because a learned basis has weights of its own for each channel. Sums to 1 for each head.
        """
        result = self.weights[0].new_zeros(len(self.weights[0]), *self.hierarchy.grid)
        for reading, weights in zip(self.readings, self.weights, strict=True):
            per_token = weights / reading.counts.to(weights)
            for i, (top, left, bottom, right) in enumerate(reading.boxes.tolist()):
                result[:, top:bottom, left:right] += per_token[:, i, None, None]
        return result


def query_readings(hierarchy: Hierarchy, query: tuple[int, int]) -> list[LevelReading]:
    """Readings of a query of a two-dimensional grid (arXiv 2310.11960, section 3).

    Args:
        hierarchy: geometry, two axes.
        query: row and column of the query.

    Returns:
        The near field, then the far levels, finest first. Every token of the grid is in exactly one of their boxes.

    Raises:
        ValueError: the grid has not two axes, or the query is outside of it.
    """
    require(hierarchy.ndim == 2, "hierarchy", hierarchy, "a grid of two axes")
    inside = len(query) == 2 and all(0 <= i < n for i, n in zip(query, hierarchy.grid, strict=True))
    require(inside, "query", query, f"row and column in the grid {hierarchy.grid}")

    near = hierarchy.near_list([i // hierarchy.cell_size for i in query])
    readings = [LevelReading(0, *_sub_blocks(near, hierarchy.cell_size, 1, hierarchy.grid, hierarchy.grid))]
    before = 0  # summaries of finer levels
    for level in hierarchy.levels:
        width = hierarchy.cell_width(level)
        cells = hierarchy.interaction_list(level, [i // width for i in query])
        side = width // hierarchy.rank
        index, boxes = _sub_blocks(cells, hierarchy.rank, side, hierarchy.summary_grid(level), hierarchy.grid)
        readings.append(LevelReading(level, index + before, boxes))
        before += hierarchy.level_sizes[level - 1]
    return readings


def _sub_blocks(
    cells: list[tuple[int, int]], parts: int, side: int, blocks: tuple[int, int], grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The ``parts`` x ``parts`` sub-blocks of every cell that hold tokens: number in the grid of blocks, and box."""
    within = torch.cartesian_prod(torch.arange(parts), torch.arange(parts))
    position = (torch.tensor(cells, dtype=torch.int64).view(-1, 1, 2) * parts + within).flatten(0, 1)
    end = torch.tensor(grid)
    position = position[(position * side < end).all(1)]
    boxes = torch.cat([position * side, torch.minimum((position + 1) * side, end)], 1)
    return position[:, 0] * blocks[1] + position[:, 1], boxes


@torch.no_grad()
def query_attention(
    module: FMA2DAttention, x: Tensor, hw_shape: tuple[int, int], query: tuple[int, int]
) -> QueryAttention:
    """The exact weights with which one query of a module's call reads tokens and summaries, in evaluation.

    Under FMA-linear, the weights at a far level are those of the query summary of the sub-block that the query lies in.
    A control has a near field alone: the tokens of touching cells (``"near"``), or all tokens (``"full"``).

    Args:
        module: the attention.
        x: tokens of one image that the module is called with, (H * W, C), row-major.
        hw_shape: height and width (H, W) of the feature map.
        query: row and column of the query.

    Returns:
        The weights of every head. With the tokens' values and the summaries' values, they give the head's output.

    Raises:
        ValueError: the shapes do not fit together, or the query is outside of the map.
    """
    core = module.attention
    require(core.attention != "none", "module.attention", core.attention, "an attention that reads other tokens")
    cells = (max(hw_shape), 1) if core.attention == "full" else (core.cell_size, core.rank)
    hierarchy = Hierarchy(tuple(hw_shape), *cells)
    expected = (hierarchy.num_tokens, module.embed_dims)
    require(tuple(x.shape) == expected, "x.shape", tuple(x.shape), f"{expected}, the tokens of a map {tuple(hw_shape)}")
    readings = query_readings(hierarchy, query)
    if core.attention == "near":
        readings = readings[:1]

    heads = (core.num_heads, core.head_dim)
    q, k, _ = module.qkv(x[None]).unflatten(-1, (3, *heads)).permute(2, 0, 3, 1, 4)  # (1, H, N, d) each
    key_summaries = None if core.key_basis is None else aggregate(k, core.key_basis, hierarchy)
    query_summaries = None if core.query_basis is None else aggregate(q, core.query_basis, hierarchy, queries=True)
    own = q[0, :, query[0] * hierarchy.grid[1] + query[1]]  # (H, d)
    scale = core.head_dim**-0.5 if core.scale is None else core.scale

    logits = []
    before = 0  # summaries of finer levels
    for reading in readings:
        keys, asks = (key_summaries if reading.level else k)[0], own
        if reading.level:
            if query_summaries is not None:
                side = hierarchy.cell_width(reading.level) // hierarchy.rank
                columns = hierarchy.summary_grid(reading.level)[1]
                asks = query_summaries[0, :, before + query[0] // side * columns + query[1] // side]
            before += hierarchy.level_sizes[reading.level - 1]
        logit = scale * torch.einsum("hd,hmd->hm", asks, keys[:, reading.index.to(keys.device)])
        logits.append(logit + reading.counts.to(logit).log() if core.group_bias else logit)
    weights = torch.cat(logits, -1).softmax(-1).split([len(reading.index) for reading in readings], -1)
    return QueryAttention(hierarchy, tuple(query), readings, list(weights))


@torch.no_grad()
def capture_inputs(module: nn.Module, run: Callable[[], Any]) -> tuple:
    """Positional arguments of a module's first call while something runs.

    Args:
        module: the module to watch.
        run: what calls it, such as a model's forward pass; runs without gradients.

    Raises:
        ValueError: the module was not called.
    """
    calls = []
    watch = module.register_forward_pre_hook(lambda _, inputs: calls.append(inputs))
    try:
        run()
    finally:
        watch.remove()
    require(bool(calls), "module", type(module).__name__, "a module that is called during the run")
    return calls[0]
