"""PyTorch operators of the library: schema, shapes for tracing, gradients. The work itself is in ``backends``.

As ``torch.library`` operators they are single nodes for ``torch.compile`` and ``torch.export``, whatever the number of
chunks that a backend works in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from . import layout
from .backends import torch_attention, torch_pooling
from .hierarchy import Hierarchy


def _refuse_forward_mode(*tensors: Tensor) -> None:
    """These operators have no forward-mode derivative, and PyTorch would take it for zero."""
    if not torch.compiler.is_compiling() and any(unpack_dual(x).tangent is not None for x in tensors):
        raise NotImplementedError("fma_kernels has no forward-mode derivatives: use reverse mode")


# ---------------------------------------------------------------------- pooling


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
    _refuse_forward_mode(x, weight)
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


# ---------------------------------------------------------------------- counting


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


# ---------------------------------------------------------------------- attention


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    hierarchy: Hierarchy,
    *,
    level: int = 0,
    far: tuple[Tensor, Tensor] | None = None,
    carry: tuple[Tensor, Tensor] | None = None,
    mask: Tensor | None = None,
    scale: float,
    group_bias: bool = True,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Softmax attention of every query over what its cell reads, with the log-sum-exp of its logits.

    All methods are made of this one operator. At level 0 the queries are tokens that read their near field and, given
    ``far``, the summaries of all levels. At level l >= 1 they are level-l query summaries that read the level-l
    summaries of their interaction list. A ``carry`` is a partial result over keys that were read before; it takes part
    in the same softmax.

    Args:
        query: (B, H, n, d); tokens, or the query summaries of one level.
        key, value: (B, H, n, d); tokens, or the summaries of the same level.
        hierarchy: geometry of the tokens.
        level: 0, or a far level.
        far: key and value summaries of all levels, (B, H, S, d) each.
        carry: output (B, H, G, d) and log-sum-exp (B, H, G) for each of the G summaries of level max(1, ``level``);
            every query takes part with that of the sub-block it lies in.
        mask: (B, N) bool over the tokens, True = ignore.
        scale: factor of the products.
        group_bias: add the logarithm of the number of tokens that a summary stands for.
        dropout_p: probability to drop a probability, 0 <= p < 1.

    Returns:
        The output (B, H, n, d), at level 0 in the dtype of the query, and the log-sum-exp (B, H, n); 0 and -inf for a
        query that reads nothing. The log-sum-exp, and at far levels the output, are in float32 or better: they are
        carried on.

    Raises:
        NotImplementedError: under forward-mode differentiation.
    """
    _refuse_forward_mode(query, key, value, *(far or ()), *(carry or ()))
    far_key, far_value = far or (None, None)
    carry, carry_lse = carry or (None, None)
    # Drawn from the global generator, so that seeds and activation checkpointing reproduce it.
    seed = torch.randint(2**62, (1,)) if dropout_p else None
    tensors = (query, key, value, far_key, far_value, carry, carry_lse, mask, seed)
    h = hierarchy
    with torch.autocast(query.device.type, enabled=False):  # sums stay in the precision that they are made in
        return _attend(*tensors, list(h.grid), h.cell_size, h.rank, h.causal, level, scale, group_bias, dropout_p)


@torch.library.custom_op("fma_kernels::attend", mutates_args=())
def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    far_key: Tensor | None,
    far_value: Tensor | None,
    carry: Tensor | None,
    carry_lse: Tensor | None,
    mask: Tensor | None,
    seed: Tensor | None,
    grid: Sequence[int],
    cell_size: int,
    rank: int,
    causal: bool,
    level: int,
    scale: float,
    group_bias: bool,
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    geometry = torch_attention.Geometry(Hierarchy(tuple(grid), cell_size, rank, causal), level, far_key is not None)
    keys, values = _sources(key, value, far_key, far_value)
    options = torch_attention.Options(scale, group_bias, mask, carry, carry_lse, dropout_p, seed)
    return torch_attention.forward(geometry, query, keys, values, options)


@torch.library.custom_op("fma_kernels::attend_backward", mutates_args=())
def _attend_backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    out: Tensor,
    lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    far_key: Tensor | None,
    far_value: Tensor | None,
    carry: Tensor | None,
    carry_lse: Tensor | None,
    mask: Tensor | None,
    seed: Tensor | None,
    grid: Sequence[int],
    cell_size: int,
    rank: int,
    causal: bool,
    level: int,
    scale: float,
    group_bias: bool,
    dropout_p: float,
) -> list[Tensor]:
    geometry = torch_attention.Geometry(Hierarchy(tuple(grid), cell_size, rank, causal), level, far_key is not None)
    keys, values = _sources(key, value, far_key, far_value)
    options = torch_attention.Options(scale, group_bias, mask, carry, carry_lse, dropout_p, seed)
    return torch_attention.backward(geometry, grad_out, grad_lse, out, lse, query, keys, values, options)


def _sources(key, value, far_key, far_value):
    return ([key], [value]) if far_key is None else ([key, far_key], [value, far_value])


@_attend.register_fake
def _(query, key, value, far_key, far_value, carry, carry_lse, mask, seed, grid, cell_size, rank, causal, level, *_):
    dtype = torch.promote_types(query.dtype, torch.float32)
    out = query.new_empty(query.shape, dtype=dtype if level else query.dtype)
    return out, query.new_empty(query.shape[:-1], dtype=dtype)


@_attend_backward.register_fake
def _(grad_out, grad_lse, out, lse, *args):
    return [x.new_empty(x.shape) for x in args[:_NUM_DIFFERENTIABLE] if x is not None]


#: Leading arguments of the operator that have gradients: query, key, value, far key and value, carry and its lse.
_NUM_DIFFERENTIABLE = 7


def _attend_setup(ctx, inputs, output):
    tensors, ctx.rest = inputs[:9], inputs[9:]
    ctx.save_for_backward(*tensors, *output)


def _attend_gradients(ctx, grad_out, grad_lse):
    *tensors, out, lse = ctx.saved_tensors
    grads = iter(_attend_backward(grad_out, grad_lse, out, lse, *tensors, *ctx.rest))
    by_argument = [None if x is None else next(grads) for x in tensors[:_NUM_DIFFERENTIABLE]]
    return *by_argument, *[None] * (len(tensors) + len(ctx.rest) - _NUM_DIFFERENTIABLE)


_attend.register_autograd(_attend_gradients, setup_context=_attend_setup)
