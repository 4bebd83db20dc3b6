"""The operator of the attention: FMA, FMA-linear and the near field alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

from ..backends.cpp import attention as cpp_attention
from ..backends.level_pass import LevelPass, Options
from ..backends.torch import attention as torch_attention
from ..hierarchy import Hierarchy
from ..precision import sum_dtype
from ..slab import Slab
from .forward_mode import refuse_forward_mode


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    far_query: Tensor | None,
    far_key: Tensor | None,
    far_value: Tensor | None,
    hierarchy: Hierarchy,
    *,
    mask: Tensor | None = None,
    scale: float,
    group_bias: bool = True,
    dropout_p: float = 0.0,
    backend: str = "torch",
    slab: Slab | None = None,
) -> tuple[Tensor, Tensor]:
    """One softmax over near tokens and far summaries for every token, with the log-sum-exp of its logits.

    * Without ``far_query``, tokens read the summaries of all levels themselves: FMA.
    * With ``far_query``, level by level, coarse to fine, the query summaries of a cell read its interaction list. They
      carry the result on to the sub-blocks of the next finer level, and the finest to their tokens: FMA-linear.
    * Without any summaries, tokens read their near field alone.

    Args:
        query, key, value: tokens, (B, H, N, d).
        far_query: query summaries of all levels, (B, H, S, d), or None.
        far_key, far_value: key and value summaries of all levels, (B, H, S, d), or None for both.
        hierarchy: geometry of the tokens; with summaries, one of at least one far level.
        mask: (B, N) bool over the tokens, True = ignore. With a slab, over those of the whole grid.
        scale: factor of the products.
        group_bias: add the logarithm of the number of tokens that a summary stands for.
        dropout_p: probability to drop a probability, 0 <= p < 1.
        backend: "torch", "cpp" or "triton"; see :func:`fma_kernels.backends.selection.choose`.
        slab: work on the queries of a slab alone: query, key and value are the tokens of its frame, and the results of
            queries that are not its own are undefined. Summaries are those of the whole grid.

    Returns:
        The output (B, H, N, d) in the dtype of the query, and the log-sum-exp (B, H, N) in float32 or better; 0 and
        -inf for a query that reads nothing.

    Raises:
        NotImplementedError: under forward-mode differentiation.
    """
    tensors = (query, key, value, far_query, far_key, far_value)
    refuse_forward_mode(*(x for x in tensors if x is not None))
    seed = draw_seed(query.device) if dropout_p else None
    with torch.autocast(query.device.type, enabled=False):  # sums stay in the precision that they are made in
        part = slab.pack() if slab else []
        return _attend(*tensors, mask, seed, *hierarchy.pack(), part, scale, group_bias, dropout_p, backend)[:2]


def draw_seed(device: torch.device) -> Tensor:
    """A seed for what is dropped.

    It comes from the global generator, so that seeds and activation checkpointing reproduce it; on the device, so that
    CUDA graphs draw anew with every replay.

    Args:
        device: where the tensors are.
    """
    return torch.randint(2**62, (1,), device=device)


@torch.library.custom_op("fma_kernels::attend", mutates_args=())
def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    far_query: Tensor | None,
    far_key: Tensor | None,
    far_value: Tensor | None,
    mask: Tensor | None,
    seed: Tensor | None,
    grid: Sequence[int],
    cell_size: int,
    rank: int,
    causal: bool,
    slab: Sequence[int],
    scale: float,
    group_bias: bool,
    dropout_p: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output and log-sum-exp of the tokens, then those of the query summaries, level after level, for the backward."""
    hierarchy = Hierarchy.unpack(grid, cell_size, rank, causal)
    options = Options(
        scale=scale, group_bias=group_bias, mask=mask, dropout_p=dropout_p, seed=seed, slab=_unpack(hierarchy, slab)
    )  # fmt: skip
    return attend_forward((query, key, value), (far_query, far_key, far_value), hierarchy, options, backend)


@torch.library.custom_op("fma_kernels::attend_backward", mutates_args=())
def _attend_backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    out: Tensor,
    lse: Tensor,
    far_out: Tensor,
    far_lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    far_query: Tensor | None,
    far_key: Tensor | None,
    far_value: Tensor | None,
    mask: Tensor | None,
    seed: Tensor | None,
    grid: Sequence[int],
    cell_size: int,
    rank: int,
    causal: bool,
    slab: Sequence[int],
    scale: float,
    group_bias: bool,
    dropout_p: float,
    backend: str,
) -> list[Tensor]:
    """Gradients of query, key, value, then of query, key and value summaries if there are any."""
    hierarchy = Hierarchy.unpack(grid, cell_size, rank, causal)
    options = Options(
        scale=scale, group_bias=group_bias, mask=mask, dropout_p=dropout_p, seed=seed, slab=_unpack(hierarchy, slab)
    )  # fmt: skip
    tokens, summaries = (query, key, value), (far_query, far_key, far_value)
    results = (out, lse, far_out, far_lse)
    return attend_backward(grad_out, grad_lse, results, tokens, summaries, hierarchy, options, backend)


def _unpack(hierarchy: Hierarchy, slab: Sequence[int]) -> Slab | None:
    return Slab(hierarchy, *slab) if slab else None


#: Query, key and value; those of summaries may be None.
Triple = tuple[Tensor | None, Tensor | None, Tensor | None]


def attend_forward(
    tokens: Triple, summaries: Triple, hierarchy: Hierarchy, options: Options, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The work of :func:`attend`: the four results of its operator."""
    (query, key, value), (far_query, far_key, far_value) = tokens, summaries
    far_out, far_lse = empty_levels(query, None if far_query is None else hierarchy)
    with _backend(backend, query) as work:
        if far_query is None:
            level_pass, keys, values = _single_pass(hierarchy, options.slab, key, value, far_key, far_value)
            return *work.forward(level_pass, query, keys, values, options), far_out, far_lse
        levels = _by_level(hierarchy, far_query, far_key, far_value)
        results = [*_levels(hierarchy, far_out, far_lse, query)]
        for level in reversed(hierarchy.levels):
            q, k, v = levels[level - 1]
            carry = work.forward(LevelPass(hierarchy, level, far=False), q, [k], [v], options, into=results[level - 1])
            options = options.carrying(*carry)
        level_pass = LevelPass(hierarchy, 0, far=False, slab=options.slab)
        return *work.forward(level_pass, query, [key], [value], options), far_out, far_lse


def attend_backward(
    grad_out: Tensor,
    grad_lse: Tensor,
    results: tuple[Tensor, Tensor, Tensor, Tensor],
    tokens: Triple,
    summaries: Triple,
    hierarchy: Hierarchy,
    options: Options,
    backend: str,
) -> list[Tensor]:
    """Gradients of :func:`attend_forward`, contiguous: of the tokens, then of those summaries that there are."""
    out, lse, far_out, far_lse = results
    (query, key, value), (far_query, far_key, far_value) = tokens, summaries
    with _backend(backend, query) as work:
        if far_query is None:
            level_pass, keys, values = _single_pass(hierarchy, options.slab, key, value, far_key, far_value)
            return work.backward(level_pass, grad_out, grad_lse, out, lse, query, keys, values, options)
        levels = _by_level(hierarchy, far_query, far_key, far_value)
        inputs = [(query, key, value), *levels]
        by_level = [(out, lse), *_levels(hierarchy, far_out, far_lse, query)]
        grads = []
        for level in range(hierarchy.num_levels + 1):  # fine to coarse: each passes on the gradient of what it carried
            carried = options.carrying(*by_level[level + 1]) if level < hierarchy.num_levels else options
            slab = None if level else options.slab
            (q, k, v), level_pass = inputs[level], LevelPass(hierarchy, level, far=False, slab=slab)
            grad = work.backward(level_pass, grad_out, grad_lse, *by_level[level], q, [k], [v], carried)
            grads.append(grad[:3])
            if level < hierarchy.num_levels:
                grad_out, grad_lse = grad[3:]
    return [*grads[0], *(torch.cat(parts, 2) for parts in zip(*grads[1:], strict=True))]


@contextmanager
def _backend(name: str, query: Tensor) -> Iterator[ModuleType]:
    """The module of a backend, with the device of ``query`` the current one: Triton launches its kernels there."""
    if name == "torch":
        yield torch_attention
    elif name == "cpp":
        yield cpp_attention
    else:
        from ..backends.triton import attention  # Triton may be absent where nobody asks for it

        with torch.cuda.device_of(query):
            yield attention


def _single_pass(
    hierarchy: Hierarchy,
    slab: Slab | None,
    key: Tensor,
    value: Tensor,
    far_key: Tensor | None,
    far_value: Tensor | None,
) -> tuple[LevelPass, list[Tensor], list[Tensor]]:
    """The one pass of an attention without query summaries, its keys and its values."""
    if far_key is None:
        return LevelPass(hierarchy, 0, far=False, slab=slab), [key], [value]
    return LevelPass(hierarchy, 0, far=True, slab=slab), [key, far_key], [value, far_value]


def _by_level(hierarchy: Hierarchy, *summaries: Tensor) -> list[tuple[Tensor, ...]]:
    """Summaries of all levels, (B, H, S, d) each, as those of every level, finest first."""
    return [*zip(*(x.split(hierarchy.level_sizes, 2) for x in summaries), strict=True)]


def empty_levels(query: Tensor, hierarchy: Hierarchy | None) -> tuple[Tensor, Tensor]:
    """Buffers of results of all levels, one after the other, in the precision of sums: they are carried on.

    Args:
        query: the tokens, (B, H, N, d).
        hierarchy: geometry of the levels; None: there are none.
    """
    dtype = sum_dtype(query)
    size = 0 if hierarchy is None else query.shape[0] * query.shape[1] * hierarchy.num_summaries
    return query.new_empty(size * query.shape[-1], dtype=dtype), query.new_empty(size, dtype=dtype)


def _levels(hierarchy: Hierarchy, out: Tensor, lse: Tensor, query: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of such buffers by level: (B, H, summaries, d) and (B, H, summaries)."""
    batch, heads, _, dim = query.shape
    numbers = [batch * heads * size for size in hierarchy.level_sizes]
    parts = zip(hierarchy.level_sizes, out.split([n * dim for n in numbers]), lse.split(numbers), strict=True)
    for size, level_out, level_lse in parts:
        yield level_out.view(batch, heads, size, dim), level_lse.view(batch, heads, size)


@_attend.register_fake
def _(query, key, value, far_query, far_key, far_value, mask, seed, grid, cell_size, rank, causal, *_):
    lse = query.new_empty(query.shape[:-1], dtype=sum_dtype(query))
    hierarchy = None if far_query is None else Hierarchy.unpack(grid, cell_size, rank, causal)
    return query.new_empty(query.shape), lse, *empty_levels(query, hierarchy)


@_attend_backward.register_fake
def _(grad_out, grad_lse, out, lse, far_out, far_lse, *args):
    return [x.new_empty(x.shape) for x in args[:_NUM_DIFFERENTIABLE] if x is not None]


#: Leading arguments of the operator that have gradients: tokens, then summaries.
_NUM_DIFFERENTIABLE = 6


def _attend_setup(ctx, inputs, output):
    tensors, ctx.rest = inputs[:8], inputs[8:]
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)  # zeros for those would be as large as all query summaries
    ctx.save_for_backward(*tensors, *output)


def _attend_gradients(ctx, grad_out, grad_lse, *_):
    *tensors, out, lse, far_out, far_lse = ctx.saved_tensors
    grad_out = torch.zeros_like(out) if grad_out is None else grad_out
    grad_lse = torch.zeros_like(lse) if grad_lse is None else grad_lse
    grads = iter(_attend_backward(grad_out, grad_lse, out, lse, far_out, far_lse, *tensors, *ctx.rest))
    by_argument = [None if x is None else next(grads) for x in tensors[:_NUM_DIFFERENTIABLE]]
    return *by_argument, *[None] * (len(tensors) + len(ctx.rest) - _NUM_DIFFERENTIABLE)


_attend.register_autograd(_attend_gradients, setup_context=_attend_setup)
