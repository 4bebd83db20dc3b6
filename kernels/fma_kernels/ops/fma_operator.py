"""The operator of FMA as a whole: the summaries of all levels, and the attention that reads them.

It computes what :func:`.pooling.pool` and :func:`.attention.attend` compute one after the other. As one operator it is
dispatched once, and the gradients of keys and values by way of their summaries are added in place to those of the near
field, where two operators leave two tensors as large as the keys for PyTorch to add.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..backends.level_pass import Options
from ..backends.pooling_tables import Pyramid
from ..hierarchy import Hierarchy
from ..precision import sum_dtype
from .attention import attend_backward, attend_forward, draw_seed, empty_levels
from .forward_mode import refuse_forward_mode
from .pooling import pool_backward, pool_forward

#: Weights of a kind of summaries: those of tokens and those of the levels above, as :func:`.pooling.pool` takes them.
Weights = tuple[Tensor, Tensor]


def fma(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_weights: Weights | None,
    key_weights: Weights,
    value_weights: Weights,
    hierarchy: Hierarchy,
    *,
    mask: Tensor | None = None,
    scale: float,
    group_bias: bool = True,
    dropout_p: float = 0.0,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Make the summaries, and attend, with fused kernels.

    Args:
        query, key, value: tokens, (B, H, N, d); float32, float16 or bfloat16.
        query_weights: weights of the query summaries of FMA-linear, ``windows`` on a causal hierarchy; None for FMA.
        key_weights, value_weights: weights of the key and value summaries.
        hierarchy: geometry of the tokens; at least one far level.
        mask, scale, group_bias, dropout_p: as in :func:`.attention.attend`.
        backend: "triton" or "cpp".

    Returns:
        Output and log-sum-exp of :func:`.attention.attend`.

    Raises:
        NotImplementedError: under forward-mode differentiation.
    """
    weights = (*(query_weights or (None, None)), *key_weights, *value_weights)
    tensors = [x for x in (query, key, value, *weights) if x is not None]
    refuse_forward_mode(*tensors)
    seed = draw_seed(query.device) if dropout_p else None
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    with torch.autocast(query.device.type, enabled=False):  # sums stay in the precision that they are made in
        return _fma(
            query, key, value, *weights, mask, seed, *hierarchy.pack(), scale, group_bias, dropout_p, keep, backend
        )[:2]


@torch.library.custom_op("fma_kernels::fma", mutates_args=())
def _fma(
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
    """The results of attend, then what the gradients need of the pooling: summaries and sums, (2 or 3, B, H, S, d)."""
    hierarchy = Hierarchy.unpack(grid, cell_size, rank, causal)
    options = Options(scale=scale, group_bias=group_bias, mask=mask, dropout_p=dropout_p, seed=seed)
    weights = (query_weight, query_upper, key_weight, key_upper, value_weight, value_upper)
    summaries, sums = _empty_summaries(query, query_weight, hierarchy, keep)
    for i, (x, weight, upper, pyramid) in enumerate(_pooled((query, key, value), weights, hierarchy)):
        pool_forward(x, weight, upper, mask, pyramid, summaries[i], sums[i] if keep else None, backend)
    far = _far(summaries)
    results = attend_forward((query, key, value), far, hierarchy, options, backend)
    return *results, summaries if keep else summaries.new_empty(0), sums


@torch.library.custom_op("fma_kernels::fma_backward", mutates_args=())
def _fma_backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    out: Tensor,
    lse: Tensor,
    far_out: Tensor,
    far_lse: Tensor,
    summaries: Tensor,
    sums: Tensor,
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
    backend: str,
) -> list[Tensor]:
    """Gradients of query, key and value, then of those weights that there are."""
    hierarchy = Hierarchy.unpack(grid, cell_size, rank, causal)
    options = Options(scale=scale, group_bias=group_bias, mask=mask, dropout_p=dropout_p, seed=seed)
    tokens, results = (query, key, value), (out, lse, far_out, far_lse)
    grads = attend_backward(grad_out, grad_lse, results, tokens, _far(summaries), hierarchy, options, backend)
    weights = (query_weight, query_upper, key_weight, key_upper, value_weight, value_upper)
    pooled = [*_pooled(tokens, weights, hierarchy)]
    of_tokens, of_summaries = grads[:3], grads[3:]
    of_weights: list[Tensor] = []
    for i, (x, weight, upper, pyramid) in enumerate(pooled):
        add_to = of_tokens[i - len(pooled)]  # the last ones are pooled
        grad = pool_backward(of_summaries[i], x, weight, upper, mask, sums[i], pyramid, backend, add_to)
        of_weights += grad[1:]
    return [*of_tokens, *of_weights]


def _pooled(
    tokens: tuple[Tensor, ...], weights: tuple[Tensor | None, ...], hierarchy: Hierarchy
) -> Iterator[tuple[Tensor, Tensor, Tensor, Pyramid]]:
    """Tokens that are summarised, their weights and their cells: queries if they have weights, keys, values."""
    for i, x in enumerate(tokens):
        weight, upper = weights[2 * i : 2 * i + 2]
        if weight is not None:
            yield x, weight, upper, Pyramid(hierarchy, windows=hierarchy.causal and i == 0)


def _far(summaries: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
    """Query summaries if there are any, key and value summaries."""
    *queries, keys, values = summaries.unbind(0)
    return (queries[0] if queries else None), keys, values


def _empty_summaries(
    query: Tensor, query_weight: Tensor | None, hierarchy: Hierarchy, keep: bool
) -> tuple[Tensor, Tensor]:
    batch, heads, _, dim = query.shape
    shape = (2 if query_weight is None else 3, batch, heads, hierarchy.num_summaries, dim)
    return query.new_empty(shape), query.new_empty(shape if keep else 0, dtype=torch.float32)


@_fma.register_fake
def _(query, key, value, query_weight, *args):
    geometry, keep = args[7:11], args[-2]
    hierarchy = Hierarchy.unpack(*geometry)
    lse = query.new_empty(query.shape[:-1], dtype=sum_dtype(query))
    levels = empty_levels(query, None if query_weight is None else hierarchy)
    summaries, sums = _empty_summaries(query, query_weight, hierarchy, keep)
    return query.new_empty(query.shape), lse, *levels, summaries if keep else summaries.new_empty(0), sums


@_fma_backward.register_fake
def _(grad_out, grad_lse, out, lse, far_out, far_lse, summaries, sums, *args):
    return [x.new_empty(x.shape) for x in args[:_NUM_DIFFERENTIABLE] if x is not None]


#: Leading arguments of the operator that have gradients: tokens, then weights.
_NUM_DIFFERENTIABLE = 9


def _fma_setup(ctx, inputs, output):
    tensors, (*geometry, _, backend) = inputs[:11], inputs[11:]
    ctx.rest = (*geometry, backend)
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)  # zeros for those would be as large as all summaries
    ctx.save_for_backward(*tensors, *output)


def _fma_gradients(ctx, grad_out, grad_lse, *_):
    saved = ctx.saved_tensors
    tensors, results = saved[:11], saved[11:]
    out, lse = results[:2]
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    grad_lse = torch.zeros_like(lse) if grad_lse is None else grad_lse
    grads = iter(_fma_backward(grad_out, grad_lse, *results, *tensors, *ctx.rest))
    by_argument = [None if x is None else next(grads) for x in tensors[:_NUM_DIFFERENTIABLE]]
    return *by_argument, *[None] * (len(tensors) + len(ctx.rest) + 1 - _NUM_DIFFERENTIABLE)


_fma.register_autograd(_fma_gradients, setup_context=_fma_setup)
