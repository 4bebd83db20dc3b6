"""Which keys every query of FMA reads, as a function of their numbers.

Straight from the definition: compare cells by Chebyshev distance. It serves flex_attention, which takes such a
function, and the check of a few queries of an input for which the dense definition is too large.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from fma_kernels import Hierarchy

#: Queries and keys of a block of flex_attention's masks, its default.
BLOCK = 128

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Pairs:
    """Queries and keys in some order, and what decides which of them meet.

    The N queries are the tokens. The K keys are the tokens, and then the summaries of all levels unless they were left
    out. All tables but ``log_count`` are int32.

    Attributes:
        query_order: (N,), the token that each query is.
        key_order: (K,), the number of each key: that of the token, or N + that of the summary.
        query_cell: per axis (N,), level-1 cell of the query.
        key_cell: per axis (K,), level-1 cell of the token, or cell of the summary.
        key_level: (K,), 0 for tokens.
        key_start: (K,), the token, or the first one of the summary's cell along the first axis.
        log_count: (K,) float32, logarithm of the number of tokens that the key stands for, 0 for tokens; -inf where
            there are none.
        causal: a query reads no later token.
    """

    query_order: Tensor
    key_order: Tensor
    query_cell: tuple[Tensor, ...]
    key_cell: tuple[Tensor, ...]
    key_level: Tensor
    key_start: Tensor
    log_count: Tensor
    causal: bool

    def rule(self) -> Rule:
        """Whether a query reads a key: a function of (batch, head, query, key), flex_attention's ``mask_mod``."""
        # Local names, for flex_attention captures tensors and not objects.
        query_cell, key_cell, level, causal = self.query_cell, self.key_cell, self.key_level, self.causal
        position, start = self.query_order, self.key_start

        def reads(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            shift = (level[key] - 1).clamp(min=0)
            distance = parents_distance = torch.zeros_like(shift)
            for mine, theirs in zip(query_cell, key_cell, strict=True):
                mine, theirs = mine[query] >> shift, theirs[key]
                distance = torch.maximum(distance, (mine - theirs).abs())
                parents_distance = torch.maximum(parents_distance, ((mine >> 1) - (theirs >> 1)).abs())
            far = level[key] > 0
            read = (~far & (distance <= 1)) | (far & (distance > 1) & (parents_distance <= 1))
            # A far cell that starts before a query ends before it as well.
            return read & (start[key] <= position[query]) if causal else read

        return reads

    def bias(self) -> Callable[..., Tensor]:
        """The group bias: a function of (logit, batch, head, query, key), flex_attention's ``score_mod``."""
        log_count = self.log_count

        def add(logit: Tensor, _batch: Tensor, _head: Tensor, _query: Tensor, key: Tensor) -> Tensor:
            return logit + log_count[key]

        return add

    def by_cell(self) -> Pairs:
        """The same pairs, cell by cell: cells along a Morton curve, so that the keys of a block lie close together.

        Row-major images would have flex_attention read several times as many blocks.
        """
        queries = _morton(self.query_cell).argsort(stable=True)
        keys = (_morton(self.key_cell) + (self.key_level.long() << 48)).argsort(stable=True)
        return Pairs(
            query_order=self.query_order[queries],
            key_order=self.key_order[keys],
            query_cell=tuple(cell[queries] for cell in self.query_cell),
            key_cell=tuple(cell[keys] for cell in self.key_cell),
            key_level=self.key_level[keys],
            key_start=self.key_start[keys],
            log_count=self.log_count[keys],
            causal=self.causal,
        )

    def restore(self, x: Tensor, keys: bool) -> Tensor:
        """Bring what belongs to queries, or to keys, from the order of these pairs into the natural one.

        Args:
            x: (B, H, N or K, d).
            keys: it belongs to keys.
        """
        out = torch.empty_like(x)
        out[:, :, (self.key_order if keys else self.query_order).long()] = x
        return out

    def block_mask(self) -> BlockMask:
        """flex_attention's mask, for pairs :meth:`by_cell`.

        Made of the cells: the matrix of all pairs would not fit into memory.
        """
        zero = torch.zeros((), dtype=torch.int32, device=self.key_level.device)
        first_query, last_query, query_block = _runs(_morton(self.query_cell))
        first_key, last_key, key_block = _runs(_morton(self.key_cell) + (self.key_level.long() << 48))
        reads = self.rule()

        def count(query: Tensor, key: Tensor) -> Tensor:
            """Pairs of each block of queries with each block of keys, all of two runs counted if these are read."""
            return query_block @ reads(zero, zero, query[:, None], key).float() @ key_block.T

        some = count(last_query, first_key) > 0
        whole = count(first_query, last_key) == BLOCK**2
        tables = (table for blocks in (some & ~whole, whole) for table in _listed(blocks))
        lengths = len(self.query_order), len(self.key_order)
        return BlockMask.from_kv_blocks(*tables, BLOCK_SIZE=BLOCK, mask_mod=reads, seq_lengths=lengths)


def fma_pairs(hierarchy: Hierarchy, device: torch.device, summaries: bool = True) -> Pairs:
    """The pairs of FMA in natural order: tokens row-major, then the summaries of all levels.

    Args:
        hierarchy: geometry.
        device: where the tables lie.
        summaries: have the summaries among the keys; without them the near field alone is left.
    """
    h = hierarchy
    token = _coordinates(h.grid, device)
    start = torch.arange(h.num_tokens, device=device)
    cells, levels = [token // h.cell_size], [torch.zeros_like(start)]
    starts, log_counts = [start], [torch.zeros(h.num_tokens, device=device)]
    for level in h.levels if summaries else ():
        summary, width = _coordinates(h.summary_grid(level), device), h.cell_width(level)
        cells.append(summary // h.rank)
        levels.append(torch.full_like(summary[:, 0], level))
        starts.append(cells[-1][:, 0] * width)
        block = width // h.rank
        left = torch.tensor(h.grid, device=device) - summary * block  # tokens from the sub-block's first to the edge
        log_counts.append(left.clamp(0, block).prod(1).float().log())
    order = torch.arange(sum(map(len, levels)), device=device)
    axes = [[table[:, axis].int() for axis in range(h.ndim)] for table in (cells[0], torch.cat(cells))]
    return Pairs(
        query_order=start.int(),
        key_order=order.int(),
        query_cell=tuple(axes[0]),
        key_cell=tuple(axes[1]),
        key_level=torch.cat(levels).int(),
        key_start=torch.cat(starts).int(),
        log_count=torch.cat(log_counts),
        causal=h.causal,
    )


def _coordinates(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Index of every entry of a row-major grid: (entries, axes)."""
    return torch.cartesian_prod(*(torch.arange(n, device=device) for n in shape)).view(-1, len(shape))


def _morton(cell: tuple[Tensor, ...]) -> Tensor:
    """Place on the Morton curve: the bits of all axes, interleaved."""
    code = torch.zeros_like(cell[0], dtype=torch.int64)
    for bit in range(16):
        for axis, index in enumerate(reversed(cell)):
            code |= (index.long() >> bit & 1) << (bit * len(cell) + axis)
    return code


def _runs(cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first and the last entry of each run of one cell in one block, and (blocks, runs) how many each block has."""
    begins = torch.ones_like(cells, dtype=torch.bool)
    begins[1:] = cells[1:] != cells[:-1]
    begins[::BLOCK] = True
    first = begins.nonzero()[:, 0]
    last = torch.cat([first[1:], first.new_tensor([len(cells)])]) - 1
    return first, last, (F.one_hot(first // BLOCK) * (last - first + 1)[:, None]).T.float()


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix of bools as flex_attention takes it: how many are set in each row, and which, those first."""
    counts = blocks.sum(1, dtype=torch.int32)
    indices = blocks.to(torch.int8).argsort(dim=1, descending=True, stable=True).to(torch.int32)
    return counts[None, None], indices[None, None]
