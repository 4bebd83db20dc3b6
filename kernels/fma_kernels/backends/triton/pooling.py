"""Summaries of all levels with fused kernels: configurations and launches."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ...caches import cached
from ..pooling_tables import Pyramid, launches, summary_scale, tables
from . import pooling_kernels as kernels

#: Warps per program of all kernels, and stages: loads overlap by unrolling and prefetching, not by the compiler.
WARPS, STAGES = 4, 1


class Config(NamedTuple):
    """Division of the work among programs, whatever the number of tokens.

    Attributes:
        channels: channels per program.
        part: summaries of a cell per program; divides their number.
        levels: levels per launch, more than one only where ``part`` is all summaries.
        tops: cells of the highest of these levels per block.
    """

    channels: int
    part: int
    levels: int
    tops: int


def config(head_dim: int, summaries: int, fanout: int) -> Config:
    """The configuration for cells of ``summaries`` summaries with ``fanout`` children each.

    With 32 cells in a block, each thread holds 8 numbers of every summary. All pairs of the summaries of two levels are
    unrolled, which takes the compiler seconds per level: only small cells take several levels per launch, and those
    few.
    """
    part = max(k for k in range(1, 9) if summaries % k == 0)
    levels = {2: 4, 4: 3, 8: 2}[fanout] if summaries <= 4 else 1
    leaves = 32 if part <= 4 else 16
    return Config(min(32, triton.next_power_of_2(head_dim)), part, levels, leaves // fanout ** (levels - 1))


def input_block(inputs: int, part: int) -> int:
    """Inputs of a cell per program of the gradients: their weights and those weights' gradients stay in registers."""
    return min(triton.next_power_of_2(inputs), 128 // triton.next_power_of_2(part), 64)


def forward(
    x: Tensor,
    weight: Tensor,
    upper: Tensor,
    mask: Tensor | None,
    pyramid: Pyramid,
    out: Tensor,
    sums: Tensor | None,
) -> None:
    """See :func:`fma_kernels.ops.pool`.

    Args:
        x: (B, H, N, d) with contiguous channels.
        weight: (H or 1, summaries, taps, d) float32, contiguous.
        upper: (levels, H or 1, summaries, fanout * summaries, d) float32, contiguous.
        mask: (B, N) bool, contiguous, or None.
        pyramid: geometry with at least one level.
        out: the summaries go here, (B, H, S, d) in the dtype of ``x``, contiguous.
        sums: if given, the same without their factors go here, in float32.
    """
    batch, heads, _, dim = x.shape
    hierarchy, all_sums = pyramid.hierarchy, sums is not None
    sums = torch.empty_like(out, dtype=torch.float32) if sums is None else sums
    if not out.numel():
        return
    table, cfg = tables(pyramid, x.device), config(dim, pyramid.summaries, pyramid.fanout)
    scale = summary_scale(pyramid, mask, x.device)
    for launch in launches(pyramid, cfg.levels, cfg.tops, x.device):
        lowest = launch.level == 1
        source, rows, taps = (x, table.tokens, weight) if lowest else (sums, table.children, upper)
        blocks, levels, leaves = launch.cells.shape
        grid = (batch * heads * triton.cdiv(dim, cfg.channels) * blocks * (pyramid.summaries // cfg.part),)
        kernels.pool[grid](
            source, _bytes(mask) if lowest else None, taps, upper, scale, out, sums, rows, table.rows, launch.cells,
            *_strides(source), hierarchy.num_tokens, hierarchy.num_summaries, _batch_stride(scale), heads, blocks,
            0 if lowest else pyramid.num_cells[0], launch.level, len(upper) - 1,
            0 if lowest else min(launch.level - 2, len(upper) - 1),
            **kernel_constants(pyramid, dim, cfg, len(weight) < heads), INPUTS=rows.shape[1], LEVELS=levels,
            LEAVES=leaves, FANOUT=pyramid.fanout, VECTOR=_vector(source), ALL_SUMS=all_sums,
            num_warps=WARPS, num_stages=STAGES,
        )  # fmt: skip


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    upper: Tensor,
    mask: Tensor | None,
    sums: Tensor,
    pyramid: Pyramid,
    add_to: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`forward` with respect to ``x``, ``weight`` and ``upper``, from those of the summaries.

    Args:
        grad: (B, H, S, d) in the dtype of ``x``, contiguous.
        x, weight, upper, mask, pyramid: as in the forward pass.
        sums: those of the forward pass.
        add_to: a gradient of ``x`` to add this one to, contiguous, in the dtype of ``x``.
    """
    grad_x = add_to
    if grad_x is None:  # windows leave out the tokens behind the last one
        grad_x = (torch.zeros if pyramid.windows else torch.empty)(x.shape, dtype=x.dtype, device=x.device)
    if not grad_x.numel():
        return grad_x, torch.zeros_like(weight), torch.zeros_like(upper)
    grad_sums = _spread(grad, upper, mask, pyramid, len(weight) < x.shape[1])
    table, cells = tables(pyramid, x.device), pyramid.num_cells
    grad_weight = _input_gradients(
        x, mask, grad_sums, weight, grad_x, table.tokens, pyramid, first_cell=0, bounds=(0, cells[0]),
        add=add_to is not None,
    )  # fmt: skip
    starts = [sum(cells[1:level]) for level in range(1, 1 + min(len(upper), len(cells)))]
    bounds = (*starts, *[sum(cells[1:])] * (len(upper) + 1 - len(starts)))
    grad_upper = _input_gradients(
        sums, None, grad_sums, upper, None, table.children, pyramid, first_cell=cells[0], bounds=bounds
    )
    return grad_x, grad_weight.view(weight.shape), grad_upper


def _spread(grad: Tensor, upper: Tensor, mask: Tensor | None, pyramid: Pyramid, shared: bool) -> Tensor:
    """Gradients (B, H, S, d) of the sums of all levels in float32, from the highest level down."""
    batch, heads, rows, dim = grad.shape
    table, cfg = tables(pyramid, grad.device), config(dim, pyramid.summaries, pyramid.fanout)
    grad_sums = torch.empty_like(grad, dtype=torch.float32)
    scale = summary_scale(pyramid, mask, grad.device)
    for launch in reversed(launches(pyramid, cfg.levels, cfg.tops, grad.device)):
        blocks, levels, leaves = launch.cells.shape
        grid = (batch * heads * triton.cdiv(dim, cfg.channels) * blocks * (pyramid.summaries // cfg.part),)
        kernels.spread_gradients[grid](
            grad, scale, upper, grad_sums, table.rows, table.parents, launch.cells,
            rows, _batch_stride(scale), heads, blocks, launch.level, len(upper) - 1,
            **kernel_constants(pyramid, dim, cfg, shared), LEVELS=levels, LEAVES=leaves, FANOUT=pyramid.fanout,
            VECTOR=_vector(grad), num_warps=WARPS, num_stages=STAGES,
        )  # fmt: skip
    return grad_sums


def _input_gradients(
    x: Tensor,
    mask: Tensor | None,
    grad_sums: Tensor,
    weight: Tensor,
    grad_x: Tensor | None,
    input_rows: Tensor,
    pyramid: Pyramid,
    first_cell: int,
    bounds: tuple[int, ...],
    add: bool = False,
) -> Tensor:
    """Write the gradient of the inputs ``x`` of cells, if wanted, and return that of their weights by group."""
    batch, heads, tokens, dim = x.shape
    inputs, groups, shared = weight.shape[-2], len(bounds) - 1, weight.shape[-4] < heads
    cfg = config(dim, pyramid.summaries, pyramid.fanout)
    block = input_block(inputs, cfg.part)
    programs = heads * triton.cdiv(dim, cfg.channels) * triton.cdiv(inputs, block) * (pyramid.summaries // cfg.part)
    items = batch * max(stop - start for start, stop in pairwise(bounds))
    # Of the cells above the first level, half belong to the second: about twice the work of an even share.
    splits = max(1, min(_PROGRAMS // (programs * min(groups, 2)), triton.cdiv(items, _MIN_ITEMS)))
    parts = x.new_empty(groups, splits, heads, pyramid.summaries, inputs, dim, dtype=torch.float32)
    kernels.input_gradients[(programs * groups * splits,)](
        x, _bytes(mask), grad_sums, weight, grad_x, parts, input_rows, tables(pyramid, x.device).rows,
        _bounds(bounds, x.device), *_strides(x), tokens, grad_sums.shape[2], batch, heads, splits, first_cell,
        **kernel_constants(pyramid, dim, cfg, shared), INPUTS=inputs, BLOCK=block, VECTOR=_vector(x), ADD=add,
        num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    return parts.sum((1, 2), keepdim=True).squeeze(1) if shared else parts.sum(1)


#: Splits of the cells are made for so many programs (two waves on a large GPU), but not for fewer cells than these.
_PROGRAMS, _MIN_ITEMS = 1024, 8


def kernel_constants(pyramid: Pyramid, dim: int, cfg: Config, shared: bool) -> dict[str, Any]:
    """Constants that every kernel is compiled for; ``shared``: heads share their weights."""
    return dict(DIM=dim, SUMMARIES=pyramid.summaries, PART=cfg.part, CHANNELS=cfg.channels, SHARED=shared)


def _vector(x: Tensor) -> int:
    """Neighbouring channels that a thread may load at once: at most 4."""
    return math.gcd(4, *x.stride()[:3], x.shape[3])


def _strides(x: Tensor) -> list[int]:
    """Strides of the dimensions before the channels, in units of :func:`_vector`."""
    return [stride // _vector(x) for stride in x.stride()[:3]]


def _bytes(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.view(torch.uint8)


def _batch_stride(scale: Tensor | None) -> int:
    return 0 if scale is None or len(scale) == 1 else scale.stride(0)


@cached
def _bounds(bounds: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(bounds, dtype=torch.int32).to(device)
