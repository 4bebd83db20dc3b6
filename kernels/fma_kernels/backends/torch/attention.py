"""Blockwise attention in PyTorch: gather what a cell reads, one softmax over it, a few cells at a time.

The queries of one cell read the same keys, which index tables name. So a chunk of cells is a gather, two batched
matrix products and a softmax between them, all inside the cache. The backward pass recomputes the probabilities from
the saved log-sum-exp. Extra memory is that of one chunk, plus copies of the inputs of a few heads at a time where their
layout is not cell by cell already.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...cells import from_cells, to_cells, to_coarser_level, to_finer_level
from ...precision import sum_dtype
from ..level_pass import LevelPass, Options
from .chunks import Scratch, chunk_size, head_groups
from .geometry import bias, sub_block_of_query, tables


@dataclass(frozen=True)
class _Source:
    """Near or far keys: where each block finds the K rows that it reads.

    A block is one query cell of one head, T queries that read the same keys.
    """

    keys: Tensor  # (B * H * cells of the source, tokens per cell * d)
    values: Tensor
    index: Tensor  # (blocks, slots): rows of keys and values
    bias: Tensor  # (B or 1 times query cells, 1, K): added to the logits


class _BlockCall:
    """The inputs of one call, block by block, and what both directions compute for a chunk of blocks."""

    def __init__(
        self,
        level_pass: LevelPass,
        query: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
        options: Options,
        generator: torch.Generator | None,
        scratch: Scratch,
    ):
        self.level_pass, self.options, self.generator, self.scratch = level_pass, options, generator, scratch
        self.batch, self.heads, _, self.head_dim = query.shape
        self.dtype = scratch.dtype  # of logits and sums
        self.query = self.to_blocks(query)
        self.sources = self._sources(keys, values)
        # Without a mask all sequences have the same bias.
        block = torch.arange(len(self.query), device=query.device)
        per_sequence = self.heads * level_pass.cells if options.mask is not None else len(self.query)
        self.bias_row = block // per_sequence * level_pass.cells + block % level_pass.cells
        self.carry = self.carry_lse = None
        if options.carry is not None:
            self.carry, self.carry_lse = map(self._carry_to_blocks, (options.carry, options.carry_lse[..., None]))
            self.sub_block = sub_block_of_query(level_pass).to(query.device)
            self.sub_block_sum = F.one_hot(self.sub_block).mT.to(self.dtype)
        self.future = None
        if level_pass.diagonal:
            queries = self.query.shape[1]
            self.future = torch.full((queries, queries), -math.inf, dtype=self.dtype, device=query.device).triu(1)

    # ------------------------------------------------------------------ layout

    def to_blocks(self, x: Tensor) -> Tensor:
        """(B, H, n, d) to (blocks, T, d)."""
        return self.level_pass.query_to_cells(x).flatten(0, 1)

    def from_blocks(self, x: Tensor) -> Tensor:
        """Inverse of :meth:`to_blocks`."""
        return self.level_pass.query_from_cells(x.unflatten(0, (self.batch * self.heads, -1)), self.batch)

    def _sources(self, keys: list[Tensor], values: list[Tensor]) -> list[_Source]:
        level_pass, options = self.level_pass, self.options
        like = self.query.new_empty(0, dtype=self.dtype)
        biases = bias(level_pass, options.mask, options.group_bias, like)
        sources = []
        for i, (k, v) in enumerate(zip(keys, values, strict=True)):
            to_cells = level_pass.far_to_cells if i else level_pass.key_to_cells
            k, v = (to_cells(x) for x in (k, v))  # (B * H, cells, tokens per cell, d)
            first_row = torch.arange(k.shape[0], device=k.device)[:, None, None] * k.shape[1]
            index = (tables(level_pass, k.device)[0][i] + first_row).flatten(0, 1)
            keys_of_rows, values_of_rows = (x.flatten(0, 1).flatten(1) for x in (k, v))
            sources.append(_Source(keys_of_rows, values_of_rows, index, biases[i].flatten(0, 1)[:, None]))
        return sources

    def from_rows(self, i: int, x: Tensor) -> Tensor:
        """A gradient in the layout of keys and values of one source, in that of the input."""
        from_cells = self.level_pass.far_from_cells if i else self.level_pass.key_from_cells
        return from_cells(x.view(self.batch * self.heads, -1, x.shape[1] // self.head_dim, self.head_dim), self.batch)

    def _carry_to_blocks(self, x: Tensor) -> Tensor:
        hierarchy, level = self.level_pass.hierarchy, self.level_pass.level
        x = to_finer_level(x, hierarchy, level) if level else x
        x = to_cells(x, hierarchy.cell_grid(max(1, level)), hierarchy.rank)
        x = x[:, :, self.level_pass.slab.cells] if self.level_pass.slab else x
        return x.flatten(0, 2).to(self.dtype)

    def carry_from_blocks(self, x: Tensor) -> Tensor:
        """Gradient of the carry in its own layout."""
        hierarchy, level = self.level_pass.hierarchy, self.level_pass.level
        x = x.unflatten(0, (self.batch, self.heads, -1))
        if self.level_pass.slab:  # no query of this rank took what is beyond
            cells = self.level_pass.slab.cells
            x = F.pad(x, [0, 0, 0, 0, cells.start, math.prod(hierarchy.cell_grid(1)) - cells.stop])
        x = from_cells(x, hierarchy.cell_grid(max(1, level)), hierarchy.rank).flatten(2, -2)
        return to_coarser_level(x, hierarchy, level) if level else x

    # ------------------------------------------------------------------ chunks

    def chunks(self) -> Iterator[slice]:
        """All blocks in order, as many at a time as the working set holds."""
        keys = sum(source.bias.shape[-1] for source in self.sources)
        step = chunk_size(self.query.device, keys * (self.query.shape[1] + 2 * self.head_dim))
        for start in range(0, len(self.query), step):
            yield slice(start, min(start + step, len(self.query)))

    def part(self, x: Tensor, chunk: slice) -> Tensor:
        """A chunk of a tensor by blocks, in the dtype of sums."""
        return x[chunk].to(self.dtype)

    def read(self, name: str, rows: Tensor, index: Tensor) -> Tensor:
        """The keys or values that each block of a chunk reads from one source: (blocks, K, d)."""
        gathered = self.scratch(name, index.numel(), rows.shape[1], dtype=rows.dtype)
        torch.index_select(rows, 0, index.flatten(), out=gathered)
        return gathered.view(len(index), -1, self.head_dim).to(self.dtype)

    def logits(self, i: int, query: Tensor, keys: Tensor, chunk: slice) -> Tensor:
        """Scaled and biased logits of a chunk and one source: (blocks, T, K)."""
        bias = self.sources[i].bias.index_select(0, self.bias_row[chunk])
        out = self.scratch(f"logits{i}", len(query), query.shape[1], keys.shape[1])
        torch.baddbmm(bias, query, keys.mT, alpha=self.options.scale, out=out)
        if i == 0 and self.future is not None:
            out[:, :, : len(self.future)] += self.future
        return out

    def dropout(self, like: Tensor) -> Tensor | None:
        """The next dropout factors, 0 or 1 / (1 - p); None without dropout. Both directions draw in one order."""
        if self.generator is None:
            return None
        keep = 1 - self.options.dropout_p
        return self.scratch("dropout", *like.shape).bernoulli_(keep, generator=self.generator).div_(keep)


def _scratch(query: Tensor) -> Scratch:
    return Scratch(sum_dtype(query), query.device)


def _head_groups(query: Tensor) -> Iterator[tuple[slice, slice]]:
    # Query, key, value and output of a head are brought into cell order.
    return head_groups(query, 4 * math.prod(query.shape[2:]))


def forward(
    level_pass: LevelPass,
    query: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    options: Options,
    into: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of every query over what its cell reads: output and log-sum-exp, written to ``into`` if given.

    The log-sum-exp is in the precision of sums, and so is what is written into buffers that are.
    """
    scratch = _scratch(query)
    out, lse = into or (query.new_empty(query.shape), query.new_empty(query.shape[:-1], dtype=scratch.dtype))
    generator = options.generator(query.device, level_pass.level)
    for part in _head_groups(query):
        cut = [x[part] for x in keys], [x[part] for x in values]
        call = _BlockCall(level_pass, query[part], *cut, options.of(part), generator, scratch)
        out[part], lse[part] = _forward(call)
    return out, lse


def _forward(call: _BlockCall) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(call.query, dtype=call.dtype, memory_format=torch.contiguous_format)
    lse = torch.empty(*out.shape[:2], 1, dtype=call.dtype, device=out.device)
    for chunk in call.chunks():
        q = call.part(call.query, chunk)
        logits, peak = [], None
        for i, source in enumerate(call.sources):
            logits.append(call.logits(i, q, call.read(f"rows{i}", source.keys, source.index[chunk]), chunk))
            largest = logits[i].amax(-1, keepdim=True)
            peak = largest if peak is None else torch.maximum(peak, largest)
        if call.carry is not None:
            carry_lse = call.carry_lse[chunk][:, call.sub_block]
            peak = torch.maximum(peak, carry_lse)
        peak = peak.masked_fill(peak == -math.inf, 0)  # a query that reads nothing
        o = out[chunk]
        total = torch.zeros_like(peak)
        for i, source in enumerate(call.sources):
            p = logits[i].sub_(peak).exp_()
            total += p.sum(-1, keepdim=True)
            factors = call.dropout(p)
            p = p if factors is None else p.mul_(factors)
            v = call.read(f"rows{i}", source.values, source.index[chunk])
            torch.baddbmm(o, p, v, beta=0 if i == 0 else 1, out=o)
        if call.carry is not None:
            weight = (carry_lse - peak).exp_()
            total += weight
            o += weight * call.carry[chunk][:, call.sub_block]
        o.div_(total.masked_fill(total == 0, 1))
        lse[chunk] = total.log_().add_(peak)
    return call.from_blocks(out), call.from_blocks(lse).squeeze(-1)


def backward(
    level_pass: LevelPass,
    grad_out: Tensor,
    grad_lse: Tensor,
    out: Tensor,
    lse: Tensor,
    query: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    options: Options,
) -> list[Tensor]:
    """Gradients of :func:`forward`: query, key and value of each source, then carry and its log-sum-exp if any."""
    sources = [x for pair in zip(keys, values, strict=True) for x in pair]
    carry = [] if options.carry is None else [options.carry, options.carry_lse]
    gradients = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, *sources, *carry)]
    generator, scratch = options.generator(query.device, level_pass.level), _scratch(query)
    for part in _head_groups(query):
        cut = [x[part] for x in keys], [x[part] for x in values]
        call = _BlockCall(level_pass, query[part], *cut, options.of(part), generator, scratch)
        parts = _backward(call, grad_out[part], grad_lse[part], out[part], lse[part])
        for gradient, x in zip(gradients, parts, strict=True):
            gradient[part] = x
    return gradients


def _backward(call: _BlockCall, grad_out: Tensor, grad_lse: Tensor, out: Tensor, lse: Tensor) -> Iterator[Tensor]:
    grad_out, out = call.to_blocks(grad_out), call.to_blocks(out)
    grad_lse, lse = call.to_blocks(grad_lse[..., None]), call.to_blocks(lse[..., None])
    lse = lse.masked_fill(lse == -math.inf, math.inf)  # such a query has read nothing: its weights are 0
    grad_query = torch.empty_like(call.query, dtype=call.dtype, memory_format=torch.contiguous_format)
    grad_keys = [torch.zeros_like(source.keys, dtype=call.dtype) for source in call.sources]
    grad_values = [torch.zeros_like(source.values, dtype=call.dtype) for source in call.sources]
    grad_carry = [] if call.carry is None else [torch.empty_like(call.carry), torch.empty_like(call.carry_lse)]
    scale = call.options.scale
    for chunk in call.chunks():
        q, go, o = (call.part(x, chunk) for x in (call.query, grad_out, out))
        delta = torch.mul(go, o, out=call.scratch("go * o", *go.shape)).sum(-1, keepdim=True) - grad_lse[chunk]
        dq = grad_query[chunk]
        for i, source in enumerate(call.sources):
            index = source.index[chunk]
            k, v = call.read("keys", source.keys, index), call.read("values", source.values, index)
            p = call.logits(i, q, k, chunk).sub_(lse[chunk]).exp_()
            factors = call.dropout(p)
            ds = torch.bmm(go, v.mT, out=call.scratch("ds", *p.shape))
            ds = (ds if factors is None else ds.mul_(factors)).sub_(delta).mul_(p)
            p = p if factors is None else p.mul_(factors)
            grad = call.scratch("gradient", *k.shape)
            grad_values[i].index_add_(0, index.flatten(), torch.bmm(p.mT, go, out=grad).view(index.numel(), -1))
            torch.baddbmm(grad, ds.mT, q, beta=0, alpha=scale, out=grad)
            grad_keys[i].index_add_(0, index.flatten(), grad.view(index.numel(), -1))
            torch.baddbmm(dq, ds, k, beta=0 if i == 0 else 1, alpha=scale, out=dq)
        if call.carry is not None:
            # At most 1, as the carry is a part of the whole; beyond the grid, where lse is 0, it could be infinite.
            weight = (call.carry_lse[chunk][:, call.sub_block] - lse[chunk]).clamp_(max=0).exp_()
            gain = (go * call.carry[chunk][:, call.sub_block]).sum(-1, keepdim=True) - delta
            grad_carry[0][chunk] = call.sub_block_sum @ (weight * go)
            grad_carry[1][chunk] = call.sub_block_sum @ (weight * gain)
    yield call.from_blocks(grad_query)
    for i, pair in enumerate(zip(grad_keys, grad_values, strict=True)):
        yield from (call.from_rows(i, x) for x in pair)
    if call.carry is not None:
        yield call.carry_from_blocks(grad_carry[0])
        yield call.carry_from_blocks(grad_carry[1]).squeeze(-1)
