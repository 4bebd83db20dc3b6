"""Summaries of all levels on the CPU: calls of the kernels of ``source/pooling.h``."""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from ...caches import cached
from ..pooling_tables import Pyramid, summary_scale, tables
from . import library, memory, structures
from .structures import PoolGradients, PoolInputs, pointer, rows, strides

CPU = torch.device("cpu")


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
        x: (B, H, N, d).
        weight: (H or 1, summaries, taps, d) float32, contiguous.
        upper: (levels, H or 1, summaries, fanout * summaries, d) float32, contiguous.
        mask: (B, N) bool, contiguous, or None.
        pyramid: geometry with at least one level.
        out: the summaries go here, (B, H, S, d) in the dtype of ``x``, contiguous.
        sums: if given, the same without their factors go here, in float32.
    """
    if out.numel():
        made = out if out.dtype == torch.float32 else torch.empty(out.shape, dtype=torch.float32)
        geometry, inputs = _geometry(pyramid), _inputs(x, weight, upper, mask, pyramid)
        into = made if sums is None else sums
        library.loaded().fma_pool(byref(geometry), byref(inputs), pointer(into), pointer(made), library.threads())
        if made is not out:
            out.copy_(made)


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
    add = add_to is not None and add_to.dtype == torch.float32
    # Windows leave out the tokens behind the last one.
    grad_x = add_to if add else (memory.zeros if pyramid.windows else memory.empty)(x.shape)
    grad_weight, grad_upper = torch.zeros_like(weight), torch.zeros_like(upper)
    if grad_x.numel():
        geometry, inputs = _geometry(pyramid), _inputs(x, weight, upper, mask, pyramid)
        gradients = PoolGradients(
            grad=grad.float(), sums=sums, grad_sums=memory.empty(sums.shape), x=grad_x, weight=grad_weight,
            upper=grad_upper, add=add,
        )  # fmt: skip
        library.loaded().fma_pool_backward(byref(geometry), byref(inputs), byref(gradients), library.threads())
    if add_to is not None and not add:
        grad_x = add_to.add_(grad_x)
    return grad_x.to(x.dtype), grad_weight, grad_upper


@cached
def _geometry(pyramid: Pyramid) -> structures.Pyramid:
    table, hierarchy = tables(pyramid, CPU), pyramid.hierarchy
    return structures.Pyramid(
        levels=hierarchy.num_levels, summaries=pyramid.summaries, taps=pyramid.taps, fanout=pyramid.fanout,
        num_cells=torch.tensor(pyramid.num_cells, dtype=torch.int32), tokens=table.tokens.contiguous(),
        children=table.children.contiguous(), rows=table.rows.contiguous(), num_tokens=hierarchy.num_tokens,
        num_summaries=hierarchy.num_summaries,
    )  # fmt: skip


def _inputs(x: Tensor, weight: Tensor, upper: Tensor, mask: Tensor | None, pyramid: Pyramid) -> PoolInputs:
    x, factor = rows(x), summary_scale(pyramid, mask, CPU)
    masked = {} if mask is None else dict(mask=mask.view(torch.uint8))
    scaled = {} if factor is None else dict(scale=factor, scale_stride=factor.shape[1] if len(factor) > 1 else 0)
    return PoolInputs(
        batch=x.shape[0], heads=x.shape[1], dim=x.shape[3], x=x, x_at=strides(x), weight=weight, upper=upper,
        weight_heads=len(weight), upper_levels=len(upper), **masked, **scaled,
    )  # fmt: skip
