"""Operators that make summaries: contraction of blocks, counting."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import layout
from ..backends import torch_pooling
from ..hierarchy import Hierarchy
from .forward_mode import refuse_forward_mode


def contract(x: Tensor, weight: Tensor, axis: int) -> Tensor:
    """Contract blocks along one axis of a grid with one weight per channel.

    y[..., c * p + s, ..., h, k] = sum_j weight[h, s, j, k] * x[..., c * w + j, ..., h, k]

    Args:
        x: (B, H, n_1, ..., n_D, d); w divides the axis.
        weight: (H or 1, p, w, d).
        axis: grid axis, 0 to D - 1.

    Returns:
        The grid with n_axis / w * p entries on that axis, in the promoted dtype of both.

    Raises:
        NotImplementedError: under forward-mode differentiation.
    """
    refuse_forward_mode(x, weight)
    return _contract(x, weight, axis)


@torch.library.custom_op("fma_kernels::contract", mutates_args=())
def _contract(x: Tensor, weight: Tensor, axis: int) -> Tensor:
    return torch_pooling.contract_forward(x, weight, axis)


@torch.library.custom_op("fma_kernels::contract_backward", mutates_args=())
def _contract_backward(grad: Tensor, x: Tensor, weight: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    return torch_pooling.contract_backward(grad, x, weight, axis)


@_contract.register_fake
def _(x, weight, axis):
    return x.new_empty(torch_pooling.output_shape(x, weight, axis), dtype=torch.promote_types(x.dtype, weight.dtype))


@_contract_backward.register_fake
def _(grad, x, weight, axis):
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _contract_setup(ctx, inputs, output):
    x, weight, ctx.axis = inputs
    ctx.save_for_backward(x, weight)


_contract.register_autograd(
    lambda ctx, grad: (*_contract_backward(grad, *ctx.saved_tensors, ctx.axis), None), setup_context=_contract_setup
)


@torch.library.custom_op("fma_kernels::summary_counts", mutates_args=())
def _summary_counts(
    mask: Tensor | None, grid: Sequence[int], cell_size: int, rank: int, causal: bool, device: torch.device
) -> Tensor:
    hierarchy = Hierarchy(tuple(grid), cell_size, rank, causal)
    return layout.token_counts(hierarchy, device, mask).clone()  # the cached tensor must not leave


@_summary_counts.register_fake
def _(mask, grid, cell_size, rank, causal, device):
    hierarchy = Hierarchy(tuple(grid), cell_size, rank, causal)
    return torch.empty(1 if mask is None else mask.shape[0], hierarchy.num_summaries, device=device)


def summary_counts(hierarchy: Hierarchy, device: torch.device, mask: Tensor | None = None) -> Tensor:
    """:func:`fma_kernels.layout.token_counts` as an operator, so that a trace does not see how it counts."""
    h = hierarchy
    return _summary_counts(mask, list(h.grid), h.cell_size, h.rank, h.causal, device)
