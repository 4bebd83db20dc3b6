"""Blockwise attention in PyTorch: gather what a cell reads, one softmax over it, a few cells at a time.

The queries of one cell read the same keys, which index tables name. So a chunk of cells is a gather, two batched
matrix products and a softmax between them, all inside the cache. The backward pass recomputes the probabilities from
the saved log-sum-exp. Extra memory is that of one chunk, plus copies of the inputs where their layout is not cell by
cell already.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layout import from_cells, to_cells
from .chunks import Scratch, chunk_size
from .torch_geometry import Geometry, bias, sub_block_of_query, tables


@dataclass(frozen=True)
class Options:
    """What both directions of one call take beside the tensors that attend to each other.

    ``carry`` and ``carry_lse`` are a partial result (output and log-sum-exp) over keys that the queries have read
    already, one per sub-block of the query's cell: (B, H, summaries of the level, d) and (B, H, summaries).
    """

    scale: float
    group_bias: bool
    mask: Tensor | None
    carry: Tensor | None
    carry_lse: Tensor | None
    dropout_p: float
    seed: Tensor | None


class _Chunk(NamedTuple):
    """Some blocks: their rows, the rows of each source that they read, and their bias (blocks, 1, K)."""

    rows: slice
    index: list[Tensor]
    bias: Tensor


class _Call:
    """The inputs of one call, cell by cell, and what both directions compute for a chunk of query cells.

    A block is one query cell of one head, T queries that read the same K keys.
    """

    def __init__(self, geometry: Geometry, query: Tensor, keys: list[Tensor], values: list[Tensor], options: Options):
        self.geometry, self.options = geometry, options
        self.batch, self.heads, _, self.head_dim = query.shape
        self.dtype = torch.promote_types(query.dtype, torch.float32)  # of logits and sums
        self.scratch = Scratch(self.dtype, query.device)
        self.query = self.to_blocks(query)
        self.bias = bias(geometry, options.mask, options.group_bias, query.new_empty(0, dtype=self.dtype))
        # Near and far: rows of keys and values by cell, the cells that each query cell reads, its columns of the K.
        self.keys, self.values = self._to_rows(keys), self._to_rows(values)
        self.tables, _ = tables(geometry, query.device)
        self.columns, start = [], 0
        for rows, table in zip(self.keys, self.tables, strict=True):
            self.columns.append(slice(start, start + table.shape[1] * rows.shape[1] // self.head_dim))
            start = self.columns[-1].stop
        self.carry = self.carry_lse = None
        if options.carry is not None:
            self.carry, self.carry_lse = map(self._carry_to_blocks, (options.carry, options.carry_lse[..., None]))
            self.sub_block = sub_block_of_query(geometry).to(query.device)
            self.sub_block_sum = F.one_hot(self.sub_block).mT.to(self.dtype)
        queries = self.query.shape[1]
        self.future = self.bias.new_full((queries, queries), -math.inf).triu(1) if geometry.diagonal else None
        self.generator = None
        if options.dropout_p:
            self.generator = torch.Generator(query.device).manual_seed(int(options.seed))

    # ------------------------------------------------------------------ layout

    def to_blocks(self, x: Tensor) -> Tensor:
        """(B, H, n, d) to (blocks, T, d)."""
        return self.geometry.query_to_cells(x).flatten(0, 1)

    def from_blocks(self, x: Tensor) -> Tensor:
        """Inverse of :meth:`to_blocks`."""
        return self.geometry.query_from_cells(x.unflatten(0, (self.batch * self.heads, -1)), self.batch)

    def _to_rows(self, sources: list[Tensor]) -> list[Tensor]:
        """Near and far keys (or values), one row per cell: (B * H * cells of the source, tokens per cell * d)."""
        convert = (self.geometry.query_to_cells, self.geometry.far_to_cells)
        return [to_rows(x).flatten(0, 1).flatten(1) for to_rows, x in zip(convert, sources, strict=False)]

    def from_rows(self, gradients: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """Inverse of the layout of ``keys`` and ``values``, in ``dtype``."""
        convert = (self.geometry.query_from_cells, self.geometry.far_from_cells)
        shape = (self.batch * self.heads, -1)
        cells = [x.view(*shape, x.shape[1] // self.head_dim, self.head_dim) for x in gradients]
        return [from_rows(x, self.batch).to(dtype) for from_rows, x in zip(convert, cells, strict=False)]

    def _carry_to_blocks(self, x: Tensor) -> Tensor:
        hierarchy = self.geometry.hierarchy
        return to_cells(x, hierarchy.cells(max(1, self.geometry.level)), hierarchy.rank).flatten(0, 2).to(self.dtype)

    def carry_from_blocks(self, x: Tensor, like: Tensor) -> Tensor:
        """Gradient of the carry in the layout and dtype of the carry."""
        hierarchy = self.geometry.hierarchy
        x = x.unflatten(0, (self.batch, self.heads, -1))
        x = from_cells(x, hierarchy.cells(max(1, self.geometry.level)), hierarchy.rank)
        return x.reshape(like.shape).to(like.dtype).contiguous()

    # ------------------------------------------------------------------ chunks

    def chunks(self) -> Iterator[_Chunk]:
        """All blocks in order, as many at a time as the working set holds."""
        cells, (queries, width) = self.geometry.cells, (self.query.shape[1], self.bias.shape[-1])
        step = chunk_size(self.query.device, width * (queries + 2 * self.head_dim))
        bias = self.bias.flatten(0, 1)
        for start in range(0, len(self.query), step):
            rows = slice(start, min(start + step, len(self.query)))
            block = torch.arange(rows.start, rows.stop, device=self.query.device)
            cell, head = block % cells, block // cells
            index = []
            for source, table in zip(self.keys, self.tables, strict=True):
                per_head = len(source) // (self.batch * self.heads)
                index.append((table[cell] + head[:, None] * per_head).flatten())
            bias_row = cell if len(self.bias) == 1 else head // self.heads * cells + cell
            yield _Chunk(rows, index, bias[bias_row][:, None])

    def part(self, x: Tensor, chunk: _Chunk) -> Tensor:
        """The chunk's rows of a tensor by blocks, in the dtype of sums."""
        return x[chunk.rows].to(self.dtype)

    def read(self, name: str, rows: list[Tensor], chunk: _Chunk) -> list[Tensor]:
        """The keys or values of each source that the blocks of a chunk read: (blocks, K of the source, d)."""
        parts = []
        for i, (source, index) in enumerate(zip(rows, chunk.index, strict=True)):
            part = self.scratch(f"{name}{i}", len(index), source.shape[1], dtype=source.dtype)
            torch.index_select(source, 0, index, out=part)
            parts.append(part.view(chunk.rows.stop - chunk.rows.start, -1, self.head_dim).to(self.dtype))
        return parts

    def weights(self, query: Tensor, keys: list[Tensor], chunk: _Chunk, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        """exp(logits - shift), (blocks, T, K), and the shift; None shifts by the largest logit of each query."""
        logits = self.scratch("weights", len(query), query.shape[1], chunk.bias.shape[-1])
        for columns, k in zip(self.columns, keys, strict=True):
            torch.baddbmm(chunk.bias[..., columns], query, k.mT, alpha=self.options.scale, out=logits[..., columns])
        if self.future is not None:
            logits[:, :, : len(self.future)] += self.future
        if shift is None:
            shift = logits.amax(-1, keepdim=True)
            if self.carry is not None:
                shift = torch.maximum(shift, self.carry_lse[chunk.rows][:, self.sub_block])
            shift = shift.masked_fill(shift == -math.inf, 0)  # a query that reads nothing
        return logits.sub_(shift).exp_(), shift

    def dropout(self, like: Tensor) -> Tensor | None:
        """The next chunk's dropout factors, 0 or 1 / (1 - p); None without dropout."""
        if self.generator is None:
            return None
        keep = 1 - self.options.dropout_p
        return self.scratch("dropout", *like.shape).bernoulli_(keep, generator=self.generator).div_(keep)


def forward(
    geometry: Geometry, query: Tensor, keys: list[Tensor], values: list[Tensor], options: Options
) -> tuple[Tensor, Tensor]:
    """Attention of every query over what its cell reads; see :func:`fma_kernels.ops.attend`."""
    call = _Call(geometry, query, keys, values, options)
    # What is carried on to the next finer level keeps the precision of sums.
    dtype = call.dtype if geometry.level else query.dtype
    out = torch.empty_like(call.query, dtype=dtype, memory_format=torch.contiguous_format)
    lse = torch.empty(*out.shape[:2], 1, dtype=call.dtype, device=out.device)
    for chunk in call.chunks():
        q = call.part(call.query, chunk)
        p, shift = call.weights(q, call.read("k", call.keys, chunk), chunk, None)
        total = p.sum(-1, keepdim=True)
        factors = call.dropout(p)
        p = p if factors is None else p.mul_(factors)
        o = call.scratch("out", *q.shape).zero_()
        for columns, v in zip(call.columns, call.read("v", call.values, chunk), strict=True):
            o.baddbmm_(p[..., columns], v)
        if call.carry is not None:
            weight = (call.carry_lse[chunk.rows][:, call.sub_block] - shift).exp_()
            total += weight
            o += weight * call.carry[chunk.rows][:, call.sub_block]
        out[chunk.rows] = o.div_(total.masked_fill(total == 0, 1))
        lse[chunk.rows] = total.log_().add_(shift)
    return call.from_blocks(out), call.from_blocks(lse).squeeze(-1)


def backward(
    geometry: Geometry,
    grad_out: Tensor,
    grad_lse: Tensor,
    out: Tensor,
    lse: Tensor,
    query: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    options: Options,
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """Gradients of :func:`forward`: query, keys, values, and (carry, its log-sum-exp) where there is a carry."""
    call = _Call(geometry, query, keys, values, options)
    grad_out, out = call.to_blocks(grad_out), call.to_blocks(out)
    grad_lse, lse = call.to_blocks(grad_lse[..., None]), call.to_blocks(lse[..., None])
    lse = lse.masked_fill(lse == -math.inf, math.inf)  # such a query has read nothing: its weights are 0
    grad_query = torch.empty_like(call.query, memory_format=torch.contiguous_format)
    grad_keys = [torch.zeros_like(x, dtype=call.dtype) for x in call.keys]
    grad_values = [torch.zeros_like(x, dtype=call.dtype) for x in call.values]
    grad_carry = [] if call.carry is None else [torch.empty_like(call.carry), torch.empty_like(call.carry_lse)]
    scale = options.scale
    for chunk in call.chunks():
        rows = chunk.rows
        q, go, o = (call.part(x, chunk) for x in (call.query, grad_out, out))
        k = call.read("k", call.keys, chunk)
        p, _ = call.weights(q, k, chunk, lse[rows])
        delta = torch.mul(go, o, out=call.scratch("go * o", *go.shape)).sum(-1, keepdim=True) - grad_lse[rows]
        factors = call.dropout(p)
        dropped = p if factors is None else torch.mul(p, factors, out=call.scratch("dropped", *p.shape))
        ds = call.scratch("ds", *p.shape)
        for i, v in enumerate(call.read("v", call.values, chunk)):
            columns = call.columns[i]
            grad = torch.bmm(dropped[..., columns].mT, go, out=call.scratch(f"gradient{i}", *v.shape))
            grad_values[i].index_add_(0, chunk.index[i], grad.view(len(chunk.index[i]), -1))
            torch.bmm(go, v.mT, out=ds[..., columns])
        ds = (ds if factors is None else ds.mul_(factors)).sub_(delta).mul_(p)
        dq = call.scratch("out", *q.shape).zero_()
        for i, columns in enumerate(call.columns):
            dq.baddbmm_(ds[..., columns], k[i], alpha=scale)
            grad = call.scratch(f"gradient{i}", *k[i].shape)
            torch.baddbmm(grad, ds[..., columns].mT, q, beta=0, alpha=scale, out=grad)
            grad_keys[i].index_add_(0, chunk.index[i], grad.view(len(chunk.index[i]), -1))
        grad_query[rows] = dq
        if call.carry is not None:
            weight = (call.carry_lse[rows][:, call.sub_block] - lse[rows]).exp_()
            gain = (go * call.carry[rows][:, call.sub_block]).sum(-1, keepdim=True) - delta
            grad_carry[0][rows] = call.sub_block_sum @ (weight * go)
            grad_carry[1][rows] = call.sub_block_sum @ (weight * gain)
    carries = zip(grad_carry, (options.carry, options.carry_lse), strict=False)
    return (
        call.from_blocks(grad_query),
        call.from_rows(grad_keys, query.dtype),
        call.from_rows(grad_values, query.dtype),
        [call.carry_from_blocks(grad, like) for grad, like in carries],
    )
