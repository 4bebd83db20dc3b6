"""The operator that all attentions are made of."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from ..backends import torch_attention
from ..hierarchy import Hierarchy
from .forward_mode import refuse_forward_mode


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
    backend: str = "torch",
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
        backend: what does the work, "torch" or "triton"; see :func:`fma_kernels.backends.selection.choose`.

    Returns:
        The output (B, H, n, d), at level 0 in the dtype of the query, and the log-sum-exp (B, H, n); 0 and -inf for a
        query that reads nothing. The log-sum-exp, and at far levels the output, are in float32 or better: they are
        carried on.

    Raises:
        NotImplementedError: under forward-mode differentiation.
    """
    refuse_forward_mode(query, key, value, *(far or ()), *(carry or ()))
    far_key, far_value = far or (None, None)
    carry, carry_lse = carry or (None, None)
    # Drawn from the global generator, so that seeds and activation checkpointing reproduce it.
    seed = torch.randint(2**62, (1,), device=query.device) if dropout_p else None
    tensors = (query, key, value, far_key, far_value, carry, carry_lse, mask, seed)
    h = hierarchy
    geometry = (list(h.grid), h.cell_size, h.rank, h.causal, level)
    with torch.autocast(query.device.type, enabled=False):  # sums stay in the precision that they are made in
        return _attend(*tensors, *geometry, scale, group_bias, dropout_p, backend)


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
    backend: str,
) -> tuple[Tensor, Tensor]:
    geometry = torch_attention.Geometry(Hierarchy(tuple(grid), cell_size, rank, causal), level, far_key is not None)
    keys, values = _sources(key, value, far_key, far_value)
    options = torch_attention.Options(scale, group_bias, mask, carry, carry_lse, dropout_p, seed)
    return _backend(backend).forward(geometry, query, keys, values, options)


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
    backend: str,
) -> list[Tensor]:
    geometry = torch_attention.Geometry(Hierarchy(tuple(grid), cell_size, rank, causal), level, far_key is not None)
    keys, values = _sources(key, value, far_key, far_value)
    options = torch_attention.Options(scale, group_bias, mask, carry, carry_lse, dropout_p, seed)
    return _backend(backend).backward(geometry, grad_out, grad_lse, out, lse, query, keys, values, options)


def _backend(name: str) -> ModuleType:
    if name == "torch":
        return torch_attention
    from ..backends.triton import attention  # Triton may be absent where nobody asks for it

    return attention


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
