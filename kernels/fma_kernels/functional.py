"""Fast Multipole Attention as functions of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from . import ops
from .backends import reference
from .backends.selection import BACKENDS, choose
from .checks import (
    refuse_jit_trace,
    require,
    require_like,
    require_mask,
    require_num_global_tokens,
    require_tokens,
)
from .hierarchy import Hierarchy
from .packing import attend_packed, resolve_grids
from .precision import sum_dtype
from .summaries import SummaryBasis, aggregate, cell_weights, means

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def fma(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    cell_size: int,
    rank: int = 1,
    grid: Sequence[int] | None = None,
    cu_seqlens: Tensor | Sequence[int] | None = None,
    grids: Sequence[int | Sequence[int]] | None = None,
    causal: bool = False,
    key_basis: SummaryBasis | None = None,
    value_basis: SummaryBasis | None = None,
    query_basis: SummaryBasis | None = None,
    scale: float | None = None,
    group_bias: bool = True,
    near_only: bool = False,
    key_padding_mask: Tensor | None = None,
    num_global_tokens: int = 0,
    dropout_p: float = 0.0,
    return_lse: bool = False,
    backend: str = "auto",
    group: ProcessGroup | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Fast Multipole Attention in one call (arXiv 2310.11960): makes the summaries, and attends.

    :func:`aggregate` makes the summaries and :func:`fma_attention` reads them. Call these two where summaries are made
    once and read several times.

    Args:
        query, key, value: (B, H, G + N, d), one floating-point dtype and device; the G global tokens come first.
        cell_size: side of a level-1 cell in tokens.
        rank: summaries per cell and axis; divides ``cell_size``.
        grid: tokens per axis, one to three numbers whose product is N; None for a sequence of N tokens.
        cu_seqlens: several sequences in one row (B = 1, G = 0), none of which reads another: where each begins, and
            where the last one ends, 0, n_1, n_1 + n_2, ..., N. Results are those of one call per sequence.
        grids: the same for images or volumes: tokens per axis of each, in the order of the row.
        causal: a query reads no later token (sequences only).
        key_basis, value_basis: weights of the summaries, with the geometry above; None for means without weights.
        query_basis: weights of query summaries: FMA-linear, O(N). None: a query reads the summaries itself, O(N log N).
        scale, group_bias, key_padding_mask, num_global_tokens, dropout_p, backend: as in :func:`fma_attention`. The
            summaries of ``direct`` bases are always made by PyTorch; the attention still uses ``backend``.
        near_only: read the near field alone: no summaries, and no bases.
        return_lse: return the log-sum-exp of the logits as well.
        group: ranks over which the tokens are split, as :func:`fma_kernels.distributed.shard` cuts them. Tensors are
            those of this rank's tokens; ``grid`` is that of all together, which None takes for a sequence. The ranks
            compare their arguments first, and where one is wrong all of them raise. No global tokens, ``cu_seqlens``
            and ``grids``; not with ``"reference"``. Gradients of bases are parts that have to be added over ranks.

    Returns:
        (B, H, G + N, d) in the dtype of ``query``; with ``return_lse`` also (B, H, G + N), as :func:`fma_attention`.

    Raises:
        ValueError: an argument is outside of what is stated above; the message names it.

    Example:
        >>> query, key, value = torch.randn(3, 1, 8, 16384, 64)
        >>> fma(query, key, value, cell_size=64, rank=4).shape
        torch.Size([1, 8, 16384, 64])
    """
    refuse_jit_trace()
    if group is not None and group.size() > 1:
        from .distributed.attention import Call, attend

        call = Call(
            query=query, key=key, value=value, cell_size=cell_size, rank=rank, grid=grid,
            packed=cu_seqlens is not None or grids is not None, causal=causal, key_basis=key_basis,
            value_basis=value_basis, query_basis=query_basis, scale=scale, group_bias=group_bias, near_only=near_only,
            key_padding_mask=key_padding_mask, num_global_tokens=num_global_tokens, dropout_p=dropout_p,
            backend=backend,
        )  # fmt: skip
        out, lse, _ = attend(call, group)
        return (out, lse) if return_lse else out
    require(query.ndim == 4, "query.shape", tuple(query.shape), "four dimensions (B, H, N, d)")
    require_num_global_tokens(num_global_tokens, causal)
    if cu_seqlens is not None or grids is not None:
        require(grid is None, "grid", grid, "None with cu_seqlens or grids")
        require(num_global_tokens == 0, "num_global_tokens", num_global_tokens, "0 with cu_seqlens or grids")
        require(query.shape[0] == 1, "query.shape", tuple(query.shape), "one row, with cu_seqlens or grids")
        found = resolve_grids(query.shape[2], cu_seqlens, grids)
        for name, x in (("key", key), ("value", value)):
            require_like(name, x, "query", query, query.shape[2])
        require_mask(key_padding_mask, query)

        def attend(query, key, value, grid, mask) -> tuple[Tensor, Tensor]:
            results = fma(
                query, key, value, cell_size=cell_size, rank=rank, grid=grid, causal=causal, key_basis=key_basis,
                value_basis=value_basis, query_basis=query_basis, scale=scale, group_bias=group_bias,
                near_only=near_only, key_padding_mask=mask, dropout_p=dropout_p, return_lse=True, backend=backend,
            )  # fmt: skip
            return cast(tuple[Tensor, Tensor], results)

        results = attend_packed(attend, query, key, value, found, cell_size, key_padding_mask)
        return results if return_lse else results[0]
    if grid is None:
        length = query.shape[2] - num_global_tokens
        require(length >= 1, "query.shape", tuple(query.shape), f"more than {num_global_tokens} tokens in dimension 2")
        grid = (length,)
    hierarchy = Hierarchy(tuple(grid), cell_size, rank, causal=causal)
    for name, basis in dict(key_basis=key_basis, value_basis=value_basis, query_basis=query_basis).items():
        require(basis is None or not near_only, name, basis, "None with near_only=True")
        require(basis is None or isinstance(basis, SummaryBasis), name, basis, "a SummaryBasis or None")
    query, key, value = in_autocast_dtype(query, key, value)
    _check(query, key, value, hierarchy, key_padding_mask, num_global_tokens, dropout_p, backend)
    options: dict[str, Any] = dict(scale=scale, group_bias=group_bias, return_lse=return_lse, backend=backend)
    options.update(key_padding_mask=key_padding_mask, num_global_tokens=num_global_tokens, dropout_p=dropout_p)
    if near_only:
        return _attention(query, key, value, None, None, None, hierarchy, **options)

    bases = (query_basis, key_basis or means(key, hierarchy), value_basis or means(value, hierarchy))
    tokens = _of_grid(query, key, value, num_global_tokens)
    work, scale = choose_backend(query, dropout_p, backend), scale_of(query, scale)
    fused = work not in ("torch", "reference") and all(basis is None or basis.kind != "direct" for basis in bases)
    if hierarchy.num_levels and fused:
        of_queries, of_keys, of_values = (
            None if basis is None else cell_weights(x, basis, hierarchy, queries=i == 0)
            for i, (x, basis) in enumerate(zip(tokens, bases, strict=True))
        )
        results = ops.fma(
            *tokens, of_queries, of_keys, of_values, hierarchy, mask=key_padding_mask, scale=scale,
            group_bias=group_bias, dropout_p=dropout_p, backend=work,
        )  # fmt: skip
        return _complete(
            *results, query, key, value, scale=scale, key_padding_mask=key_padding_mask,
            num_global_tokens=num_global_tokens, dropout_p=dropout_p, return_lse=return_lse,
        )  # fmt: skip
    query_summaries, key_summaries, value_summaries = (
        # Direct bases have no fused kernel. The attention still runs on the backend that was asked for.
        None if basis is None else aggregate(
            x, basis, hierarchy, key_padding_mask=key_padding_mask, queries=i == 0,
            backend="torch" if basis.kind == "direct" else backend,
        )
        for i, (x, basis) in enumerate(zip(tokens, bases, strict=True))
    )  # fmt: skip
    return _attention(query, key, value, query_summaries, key_summaries, value_summaries, hierarchy, **options)


def fma_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_summaries: Tensor | None,
    value_summaries: Tensor | None,
    hierarchy: Hierarchy,
    *,
    query_summaries: Tensor | None = None,
    scale: float | None = None,
    group_bias: bool = True,
    key_padding_mask: Tensor | None = None,
    num_global_tokens: int = 0,
    dropout_p: float = 0.0,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Fast Multipole Attention over given summaries (arXiv 2310.11960, section 3): O(N log N), or O(N).

    A query reads the tokens of its own and the touching cells one by one and everything further away through the
    summaries of ever larger cells, under one softmax::

        logit(i, j)      = scale * q_i . k_j                                near token j
        logit(i, (J, s)) = scale * q_i . k~_(J,s) + log count(J, s)         far summary s of cell J

    With ``query_summaries`` this is FMA-linear (section 3.4), O(N): at every level the query summaries of a cell read
    its interaction list, and each token takes the partial result of the sub-block that it lies in::

        logit(i, (J, s)) = scale * q~_b(i) . k~_(J,s) + log count(J, s)     b(i): sub-block of token i at J's level

    Sub-blocks nest, so the partial results are merged once through the levels, coarse to fine.

    Without key and value summaries a query reads its near field alone, local attention in blocks. Where
    ``hierarchy.num_levels`` is 0, all of these are full attention, exactly.

    Tokens without a place in the grid, such as a class token, are *global*: they read every token one by one, and
    every token reads them, under the same softmax: O(G * N) for G of them.

    Args:
        query, key, value: (B, H, G + N, d), one floating-point dtype and device; the G global tokens come first.
        key_summaries, value_summaries: (B, H, S, d) from :func:`aggregate`, with S = ``hierarchy.num_summaries``; or
            None for both.
        hierarchy: geometry of the N tokens.
        query_summaries: (B, H, S, d) from :func:`aggregate` with ``queries=True``; None: tokens read summaries
            themselves.
        scale: factor of the products; default 1 / sqrt(d).
        group_bias: add the logarithm of the number of tokens that a summary stands for, so that keys that are constant
            give full attention exactly.
        key_padding_mask: (B, N) bool over the tokens of the grid, True = ignore the token as a key. Global tokens are
            never ignored.
        num_global_tokens: number of global tokens G, 0 if ``hierarchy`` is causal: they read later tokens.
        dropout_p: probability to drop an attention weight, 0 <= p < 1. Applied whenever it is not 0, to the weights of
            and on global tokens too. With query summaries, the tokens of a sub-block share what is dropped.
        return_lse: return the log-sum-exp of the logits as well. Two results over different keys are merged by it.
        backend: ``"triton"`` (fused kernels for CUDA GPUs, head dimensions 16 to 128; on a CPU under
            ``TRITON_INTERPRET=1``), ``"cpp"`` (fused kernels for CPUs, head dimensions to 256, without dropout;
            compiled at first use), ``"torch"`` (blockwise, any device and dtype), ``"reference"`` (the dense
            definition, O(N^2)) or ``"auto"``: the fused kernels of the device, else ``"torch"``. The fused kernels take
            float32, float16 and bfloat16. Where they cannot run, ``"auto"`` takes ``"torch"``, and the logger
            ``fma_kernels`` says once why. All but ``"reference"`` accumulate float16 and bfloat16 in float32.

    Returns:
        (B, H, G + N, d) in the dtype of ``query``; zeros for a query that reads nothing. With ``return_lse`` also
        (B, H, G + N) in float32 or better: the natural logarithm of the sum of exp(logit), before dropout; -inf for
        a query that reads nothing. It has gradients.

    Raises:
        ValueError: an argument is outside of what is stated above; the message names it.

    Example:
        >>> hierarchy = Hierarchy((64, 48), cell_size=8, rank=2)
        >>> query, key, value = torch.randn(3, 1, 8, 64 * 48, 32)
        >>> basis = SummaryBasis(8, 32, cell_size=8, rank=2, ndim=2, num_levels=hierarchy.num_levels)
        >>> keys, values = (aggregate(x, basis, hierarchy) for x in (key, value))
        >>> fma_attention(query, key, value, keys, values, hierarchy).shape
        torch.Size([1, 8, 3072, 32])
    """
    given = (query, key, value, query_summaries, key_summaries, value_summaries)
    query, key, value, query_summaries, key_summaries, value_summaries = in_autocast_dtype(*given)
    _check(query, key, value, hierarchy, key_padding_mask, num_global_tokens, dropout_p, backend)
    summaries = dict(query_summaries=query_summaries, key_summaries=key_summaries, value_summaries=value_summaries)
    for name, x in summaries.items():
        if x is None:
            needless = name == "query_summaries" or (key_summaries is None and query_summaries is None)
            require(needless, name, None, "a tensor, as there are other summaries")
        else:
            require_like(name, x, "query", query, hierarchy.num_summaries)
    return _attention(
        query, key, value, **summaries, hierarchy=hierarchy, scale=scale, group_bias=group_bias,
        key_padding_mask=key_padding_mask, num_global_tokens=num_global_tokens, dropout_p=dropout_p,
        return_lse=return_lse, backend=backend,
    )  # fmt: skip


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_summaries: Tensor | None,
    key_summaries: Tensor | None,
    value_summaries: Tensor | None,
    hierarchy: Hierarchy,
    *,
    scale: float | None,
    group_bias: bool,
    key_padding_mask: Tensor | None,
    num_global_tokens: int,
    dropout_p: float,
    return_lse: bool,
    backend: str,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`fma_attention` of arguments that have been checked, in the dtype of autocast."""
    summaries = (query_summaries, key_summaries, value_summaries)
    scale = scale_of(query, scale)
    if backend == "reference":
        out, lse = reference.attention(
            query, key, value, *summaries, hierarchy, scale=scale, group_bias=group_bias, mask=key_padding_mask,
            num_global_tokens=num_global_tokens, dropout_p=dropout_p,
        )  # fmt: skip
        return (out, lse.to(sum_dtype(lse))) if return_lse else out
    backend = choose_backend(query, dropout_p, backend)
    if hierarchy.num_levels == 0:
        if not return_lse:
            return _full_attention(query, key, value, scale, key_padding_mask, dropout_p, hierarchy.causal)
        summaries = (None, None, None)  # all tokens are near
    tokens = _of_grid(query, key, value, num_global_tokens)
    results = ops.attend(
        *tokens, *summaries, hierarchy, mask=key_padding_mask, scale=scale, group_bias=group_bias, dropout_p=dropout_p,
        backend=backend,
    )  # fmt: skip
    return _complete(
        *results, query, key, value, scale=scale, key_padding_mask=key_padding_mask,
        num_global_tokens=num_global_tokens, dropout_p=dropout_p, return_lse=return_lse,
    )  # fmt: skip


def fma_linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_summaries: Tensor,
    key_summaries: Tensor,
    value_summaries: Tensor,
    hierarchy: Hierarchy,
    **options: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """FMA-linear (arXiv 2310.11960, section 3.4): a name for :func:`fma_attention` with ``query_summaries``.

    Args:
        query, key, value, key_summaries, value_summaries, hierarchy: as in :func:`fma_attention`.
        query_summaries: (B, H, S, d) from :func:`aggregate` with ``queries=True``.
        **options: the other arguments of :func:`fma_attention`.

    Returns:
        What :func:`fma_attention` returns.

    Raises:
        ValueError: as :func:`fma_attention`, and if ``query_summaries`` is None.

    Example:
        >>> hierarchy = Hierarchy((1024,), cell_size=16)
        >>> query, key, value = torch.randn(3, 1, 8, 1024, 32)
        >>> basis = SummaryBasis(8, 32, cell_size=16, kind="mean")
        >>> summaries = [aggregate(x, basis, hierarchy) for x in (key, value)]
        >>> queries = aggregate(query, basis, hierarchy, queries=True)
        >>> fma_linear_attention(query, key, value, queries, *summaries, hierarchy).shape
        torch.Size([1, 8, 1024, 32])
    """
    require(query_summaries is not None, "query_summaries", None, "a tensor")
    summaries = (key_summaries, value_summaries)
    return fma_attention(query, key, value, *summaries, hierarchy, query_summaries=query_summaries, **options)


def _of_grid(query: Tensor, key: Tensor, value: Tensor, num_global_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens behind the global ones. Without any, no view stands between gradients that could be added in place."""
    if not num_global_tokens:
        return query, key, value
    return query[:, :, num_global_tokens:], key[:, :, num_global_tokens:], value[:, :, num_global_tokens:]


def scale_of(query: Tensor, scale: float | None) -> float:
    """The factor of the products; by default 1 / sqrt(d)."""
    return query.shape[-1] ** -0.5 if scale is None else float(scale)


def choose_backend(query: Tensor, dropout_p: float, backend: str) -> str:
    """The backend that runs the attention, ``"reference"`` if that is asked for."""
    if backend == "reference":
        return backend
    return choose("fma_attention", backend, query, cpp="attention weights are dropped" if dropout_p else None)


def _complete(
    out: Tensor,
    lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    key_padding_mask: Tensor | None,
    num_global_tokens: int,
    dropout_p: float,
    return_lse: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """Results over the tokens of the grid, completed by the global ones, as queries and as keys, if there are any."""
    if not num_global_tokens:
        return (out, lse) if return_lse else out
    mask = key_padding_mask
    global_query, query = query.tensor_split([num_global_tokens], 2)
    global_out = _full_attention(global_query, key, value, scale, mask, dropout_p)
    with torch.autocast(query.device.type, enabled=False):  # sums stay in the precision that they are made in
        if return_lse:
            readable = 0.0 if mask is None else _readable(mask, key.shape[2]).to(lse.dtype).log()
            global_lse = (global_query.to(lse.dtype) @ key.to(lse.dtype).mT * scale + readable).logsumexp(-1)
        # The log-sum-exps say how the one softmax divides its weight between the global keys and all others. Nothing
        # as large as the output is kept for the backward pass but the output itself.
        key, value = (x[:, :, :num_global_tokens].to(lse.dtype) for x in (key, value))
        logits = query.to(lse.dtype) @ key.mT * scale
        total = logits.logsumexp(-1)
        weights = F.dropout(logits.softmax(-1), dropout_p) * torch.sigmoid(total - lse)[..., None]
        out = (out * torch.sigmoid(lse - total)[..., None] + weights @ value).to(query.dtype)
        out = torch.cat([global_out, out], 2)
        return (out, torch.cat([global_lse, torch.logaddexp(total, lse)], 2)) if return_lse else out


def _full_attention(query, key, value, scale, mask, dropout_p, causal=False) -> Tensor:
    readable = None if mask is None else _readable(mask, key.shape[2], causal)
    is_causal = causal and mask is None
    return F.scaled_dot_product_attention(query, key, value, readable, dropout_p, is_causal, scale=scale)


def _readable(mask: Tensor, length: int, causal: bool = False) -> Tensor:
    """(B, 1, 1 or G + N, G + N) bool: the keys that a mask leaves; global keys always."""
    readable = F.pad(~mask, [length - mask.shape[1], 0], value=True)[:, None, None]
    return readable & torch.ones(length, length, dtype=torch.bool, device=mask.device).tril() if causal else readable


def in_autocast_dtype(*tensors: Tensor | None) -> list[Tensor | None]:
    """Under ``torch.autocast``, the inputs in its dtype, as PyTorch's own attention takes them."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype, cast = torch.get_autocast_dtype(device), (torch.float16, torch.bfloat16, torch.float32)
    return [x.to(dtype) if x is not None and x.dtype in cast else x for x in tensors]


def _check(query, key, value, hierarchy, mask, num_global_tokens, dropout_p, backend) -> None:
    refuse_jit_trace()
    require(isinstance(hierarchy, Hierarchy), "hierarchy", hierarchy, "a Hierarchy")
    count = num_global_tokens
    require_num_global_tokens(count, hierarchy.causal)
    tokens = query
    if count:
        length = count + hierarchy.num_tokens
        expected = f"dimension 2 to hold {count} global tokens and the {hierarchy.num_tokens} of grid={hierarchy.grid}"
        require(query.ndim == 4 and query.shape[2] == length, "query.shape", tuple(query.shape), expected)
        tokens = query[:, :, count:]
    require_tokens("query", tokens, hierarchy.grid)
    check_beside(query, key, value, tokens, mask, dropout_p, backend)


def check_beside(query, key, value, tokens, mask, dropout_p, backend) -> None:
    """Check what goes with the queries, of which ``tokens`` are those of the grid."""
    require_like("key", key, "query", query, query.shape[2])
    require_like("value", value, "query", query, query.shape[2])
    require_mask(mask, tokens)
    require(0 <= dropout_p < 1, "dropout_p", dropout_p, "a probability, 0 <= p < 1")
    require(backend in BACKENDS, "backend", backend, f"one of {', '.join(BACKENDS)}")
