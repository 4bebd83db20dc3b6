"""Fast Multipole Attention as functions of tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends import reference
from .backends.selection import BACKENDS, choose
from .checks import require, require_like, require_mask, require_tokens
from .hierarchy import Hierarchy
from .ops import attend


def fma_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_summaries: Tensor,
    value_summaries: Tensor,
    hierarchy: Hierarchy,
    *,
    scale: float | None = None,
    group_bias: bool = True,
    key_padding_mask: Tensor | None = None,
    num_global_tokens: int = 0,
    dropout_p: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Fast Multipole Attention (arXiv 2310.11960, section 3): O(N log N).

    A query reads the tokens of its own and the touching cells one by one and everything further away through the
    summaries of ever larger cells, under one softmax::

        logit(i, j)      = scale * q_i . k_j                                near token j
        logit(i, (J, s)) = scale * q_i . k~_(J,s) + log count(J, s)         far summary s of cell J

    Where ``hierarchy.num_levels`` is 0, this is full attention, exactly.

    Tokens without a place in the grid, such as a class token, are *global*: they read every token one by one, and
    every token reads them, under the same softmax: O(G * N) for G of them.

    Args:
        query, key, value: (B, H, G + N, d), one floating-point dtype and device; the G global tokens come first.
        key_summaries, value_summaries: (B, H, S, d) from :func:`aggregate`, with S = ``hierarchy.num_summaries``.
        hierarchy: geometry of the N tokens.
        scale: factor of the products; default 1 / sqrt(d).
        group_bias: add the logarithm of the number of tokens that a summary stands for, so that keys that are constant
            give full attention exactly.
        key_padding_mask: (B, N) bool over the tokens of the grid, True = ignore the token as a key. Global tokens are
            never ignored.
        num_global_tokens: number of global tokens G, 0 if ``hierarchy`` is causal: they read later tokens.
        dropout_p: probability to drop an attention weight, 0 <= p < 1. Applied whenever it is not 0, to the weights of
            and on global tokens too.
        backend: ``"triton"`` (fused kernels: float32, float16 and bfloat16 on a CUDA GPU, head dimensions 16 to 128;
            on a CPU under ``TRITON_INTERPRET=1``), ``"torch"`` (blockwise, any device), ``"reference"`` (the dense
            definition, O(N^2)) or ``"auto"``: the fused kernels on a CUDA GPU, else ``"torch"``. Where the kernels
            cannot run on a GPU, the logger ``fma_kernels`` says once why. All but the last accumulate float16 and
            bfloat16 in float32.

    Returns:
        (B, H, G + N, d) in the dtype of ``query``; zeros for a query that reads nothing.

    Raises:
        ValueError: an argument is outside of what is stated above; the message names it.
    """
    query, key, value, key_summaries, value_summaries = _autocast(query, key, value, key_summaries, value_summaries)
    _check(query, key, value, hierarchy, key_padding_mask, num_global_tokens, dropout_p, backend)
    require_like("key_summaries", key_summaries, "query", query, hierarchy.num_summaries)
    require_like("value_summaries", value_summaries, "query", query, hierarchy.num_summaries)
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    if backend == "reference":
        return reference.attention(
            query, None, key, value, key_summaries, value_summaries, hierarchy, scale, group_bias, key_padding_mask,
            num_global_tokens, dropout_p,
        )  # fmt: skip
    backend = choose("fma_attention", backend, query)
    if hierarchy.num_levels == 0:
        return _full_attention(query, key, value, scale, key_padding_mask, dropout_p, hierarchy.causal)
    options = dict(mask=key_padding_mask, scale=scale, group_bias=group_bias, dropout_p=dropout_p, backend=backend)
    tokens = (x[:, :, num_global_tokens:] for x in (query, key, value))
    result = attend(*tokens, None, key_summaries, value_summaries, hierarchy, **options)
    return _with_global_tokens(result, query, key, value, scale, key_padding_mask, num_global_tokens, dropout_p)


def fma_linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_summaries: Tensor,
    key_summaries: Tensor,
    value_summaries: Tensor,
    hierarchy: Hierarchy,
    *,
    scale: float | None = None,
    group_bias: bool = True,
    key_padding_mask: Tensor | None = None,
    num_global_tokens: int = 0,
    dropout_p: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """FMA-linear (arXiv 2310.11960, section 3.4): queries have summaries as well, O(N).

    At every level the query summaries of a cell read its interaction list. Each token takes, at every level, the
    partial result of the sub-block it lies in, under one softmax with its exact near field::

        logit(i, (J, s)) = scale * q~_b(i) . k~_(J,s) + log count(J, s)     b(i): sub-block of token i at J's level

    Sub-blocks nest, so the partial results are merged once through the levels, coarse to fine.

    Args:
        query_summaries: (B, H, S, d) from :func:`aggregate` with ``queries=True``.
        dropout_p: probability to drop an attention weight; the tokens of a sub-block share those of its summary.

    The other arguments, the result and the errors are those of :func:`fma_attention`.
    """
    query, key, value, query_summaries, key_summaries, value_summaries = _autocast(
        query, key, value, query_summaries, key_summaries, value_summaries
    )
    _check(query, key, value, hierarchy, key_padding_mask, num_global_tokens, dropout_p, backend)
    require_like("query_summaries", query_summaries, "query", query, hierarchy.num_summaries)
    require_like("key_summaries", key_summaries, "query", query, hierarchy.num_summaries)
    require_like("value_summaries", value_summaries, "query", query, hierarchy.num_summaries)
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    if backend == "reference":
        return reference.attention(
            query, query_summaries, key, value, key_summaries, value_summaries, hierarchy, scale, group_bias,
            key_padding_mask, num_global_tokens, dropout_p,
        )  # fmt: skip
    backend = choose("fma_linear_attention", backend, query)
    if hierarchy.num_levels == 0:
        return _full_attention(query, key, value, scale, key_padding_mask, dropout_p, hierarchy.causal)
    options = dict(mask=key_padding_mask, scale=scale, group_bias=group_bias, dropout_p=dropout_p, backend=backend)
    tokens = (x[:, :, num_global_tokens:] for x in (query, key, value))
    result = attend(*tokens, query_summaries, key_summaries, value_summaries, hierarchy, **options)
    return _with_global_tokens(result, query, key, value, scale, key_padding_mask, num_global_tokens, dropout_p)


def _with_global_tokens(result, query, key, value, scale, mask, num_global_tokens, dropout_p) -> Tensor:
    """Add the global tokens, as queries and as keys, to the result (output, log-sum-exp) of the tokens of the grid."""
    out, lse = result
    if not num_global_tokens:
        return out
    global_query, query = query.tensor_split([num_global_tokens], 2)
    global_out = _full_attention(global_query, key, value, scale, mask, dropout_p)
    # The log-sum-exp says how the one softmax divides its weight between the global keys and all others.
    key, value = (x[:, :, :num_global_tokens].to(lse.dtype) for x in (key, value))
    with torch.autocast(query.device.type, enabled=False):  # sums stay in the precision that they are made in
        logits = query.to(lse.dtype) @ key.mT * scale
        read = F.dropout(logits.softmax(-1), dropout_p) @ value
        share = torch.sigmoid(logits.logsumexp(-1) - lse)[..., None]
        out = torch.lerp(out.to(lse.dtype), read, share).to(query.dtype)
    return torch.cat([global_out, out], 2)


def _full_attention(query, key, value, scale, mask, dropout_p, causal=False) -> Tensor:
    if mask is None:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout_p, is_causal=causal, scale=scale)
    readable = F.pad(~mask, [key.shape[2] - mask.shape[1], 0], value=True)[:, None, None]  # global keys always
    if causal:
        readable = readable & torch.ones(*[query.shape[2]] * 2, dtype=torch.bool, device=query.device).tril()
    return F.scaled_dot_product_attention(query, key, value, readable, dropout_p, scale=scale)


def _autocast(*tensors: Tensor) -> list[Tensor]:
    """Under ``torch.autocast``, the inputs in its dtype, as PyTorch's own attention takes them."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [x.to(dtype) if x.dtype in (torch.float16, torch.bfloat16, torch.float32) else x for x in tensors]


def _check(query, key, value, hierarchy, mask, num_global_tokens, dropout_p, backend) -> None:
    require(isinstance(hierarchy, Hierarchy), "hierarchy", hierarchy, "a Hierarchy")
    count = num_global_tokens
    require(isinstance(count, int) and count >= 0, "num_global_tokens", count, "an integer >= 0")
    require(not (count and hierarchy.causal), "num_global_tokens", count, "0 with a causal hierarchy")
    tokens = query
    if count:
        length = count + hierarchy.num_tokens
        expected = f"dimension 2 to hold {count} global tokens and the {hierarchy.num_tokens} of grid={hierarchy.grid}"
        require(query.ndim == 4 and query.shape[2] == length, "query.shape", tuple(query.shape), expected)
        tokens = query[:, :, count:]
    require_tokens("query", tokens, hierarchy.grid)
    require_like("key", key, "query", query, query.shape[2])
    require_like("value", value, "query", query, query.shape[2])
    require_mask(mask, tokens)
    require(0 <= dropout_p < 1, "dropout_p", dropout_p, "a probability, 0 <= p < 1")
    require(backend in BACKENDS, "backend", backend, f"one of {', '.join(BACKENDS)}")
