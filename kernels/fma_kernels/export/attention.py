"""The attention in standard operators: gathers by constant tables, two matrix products and one softmax per pass."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cells import token_counts
from ..checks import require
from ..hierarchy import Hierarchy
from ..precision import sum_dtype
from .tables import UNREAD, PassTables, bias_of_keys, carry_tables, constant, gather, summary_tables, token_tables


def attend(
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
    """``fma_kernels::attend``, arguments and results as there; the last two results, for its gradients, are empty.

    Products are in the dtype of the query, logits and softmax in float32 or better.

    Raises:
        ValueError: ``dropout_p`` is not 0, or the sequence is split over ranks.
    """
    require(not slab, "group", slab, "None for export")
    require(dropout_p == 0, "dropout_p", dropout_p, "0 for export: call eval() on the model first")
    hierarchy = Hierarchy.unpack(grid, cell_size, rank, causal)
    query = query * scale
    if mask is not None:  # whatever is there: no number outweighs the bias of what is not read
        key, value = (x.masked_fill(mask[:, None, :, None], 0) for x in (key, value))
    none = query.new_empty(0, dtype=sum_dtype(query))
    counts = None if mask is None else _counts(mask, hierarchy, far_key is not None)
    if far_query is None:
        far = far_key is not None
        keys, values = (torch.cat([key, far_key], 2), torch.cat([value, far_value], 2)) if far else (key, value)
        tables = constant(token_tables, hierarchy, far)
        bias = _bias(tables, counts, hierarchy, far, True, group_bias, sum_dtype(query))
        logits = _logits(query, keys, tables, bias)
        out, lse = _read(logits, values, tables.keys)
    else:
        tables, carries = constant(token_tables, hierarchy, False), constant(carry_tables, hierarchy)
        far_counts = None if counts is None else counts[:, hierarchy.num_tokens :]
        far_out, far_lse = _far(far_query * scale, far_key, far_value, far_counts, hierarchy, group_bias)
        near_counts = None if counts is None else counts[:, : hierarchy.num_tokens]
        bias = _bias(tables, near_counts, hierarchy, False, True, group_bias, sum_dtype(query))
        # What comes from the query summaries joins the near keys: as keys of zeros, whose bias is its log-sum-exp. So
        # nothing as large as the logits is put together.
        rows = torch.full_like(carries.rows, hierarchy.num_tokens)
        keys = F.pad(key, [0, 0, 0, 1])
        carried = gather(far_lse, carries.rows).mT  # (B, H, cells, 1, P * L)
        near = tables.unread.to(carried.dtype) if bias is None else bias
        bias = torch.cat([near.expand(*carried.shape[:-1], -1), carried], -1)
        joined = tables._replace(keys=torch.cat([tables.keys, rows], 1), future=carries.by_query)
        logits = _logits(query, keys, joined, bias)
        rows = torch.cat([tables.keys, carries.rows + hierarchy.num_tokens], 1)
        out, lse = _read(logits, torch.cat([value, far_out], 2), rows)
    out, lse = (_in_order(x, tables) for x in (out, lse))
    if mask is not None:  # a query that reads nothing
        nothing = lse < UNREAD / 2
        out, lse = out.masked_fill(nothing, 0), lse.masked_fill(nothing, -math.inf)
    return out, lse[..., 0], none, none.clone()


def _far(
    query: Tensor, key: Tensor, value: Tensor, counts: Tensor | None, hierarchy: Hierarchy, group_bias: bool
) -> tuple[Tensor, Tensor]:
    """Results of the query summaries of all levels, (B, H, S, d) and (B, H, S, 1)."""
    tables = constant(summary_tables, hierarchy)
    bias = _bias(tables, counts, hierarchy, True, False, group_bias, sum_dtype(query))
    results = _read(_logits(query, key, tables, bias), value, tables.keys)
    out, lse = results
    return _in_order(out, tables), _in_order(lse, tables)


def _logits(query: Tensor, keys: Tensor, tables: PassTables, bias: Tensor | None) -> Tensor:
    """(B, H, cells, T, K) in float32 or better, of queries that were multiplied by the scale."""
    logits = gather(query, tables.queries) @ gather(keys, tables.keys).mT
    logits = logits.to(sum_dtype(logits))
    if bias is not None:
        logits = logits + bias
    return logits if tables.future is None else logits + tables.future.to(logits.dtype)


def _read(logits: Tensor, values: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs (B, H, cells, T, d) and log-sum-exps (B, H, cells, T, 1)."""
    out = logits.softmax(-1).to(values.dtype) @ gather(values, rows)
    return out, logits.logsumexp(-1, keepdim=True)


def _in_order(x: Tensor, tables: PassTables) -> Tensor:
    """Results by cell, (B, H, cells, T, d), in the order of the queries, (B, H, n, d)."""
    return x.flatten(2, 3).index_select(2, tables.outputs)


def _bias(
    tables: PassTables,
    counts: Tensor | None,
    hierarchy: Hierarchy,
    far: bool,
    tokens: bool,
    group_bias: bool,
    dtype: torch.dtype,
) -> Tensor | None:
    """Bias of the logits: (cells, 1, K), or (B, 1, cells, 1, K) with ``counts`` of a mask; None for zeros."""
    if counts is None:
        return constant(bias_of_keys, hierarchy, far, tokens, group_bias, dtype)
    counts = counts.to(dtype)
    logs = counts.clamp(min=1).log() if group_bias else torch.zeros_like(counts)
    bias = logs.masked_fill(counts == 0, UNREAD).index_select(1, tables.keys.flatten())
    bias = bias.unflatten(1, (1, -1, 1, tables.keys.shape[1]))
    return torch.minimum(bias, tables.unread.to(dtype).masked_fill(tables.unread == 0, math.inf))


def _counts(mask: Tensor, hierarchy: Hierarchy, far: bool) -> Tensor:
    """Tokens that each key stands for: (B, N), or (B, N + S) with summaries, float32."""
    counts = (~mask).to(torch.float32)
    return torch.cat([counts, token_counts(hierarchy, mask.device, mask)], 1) if far else counts
