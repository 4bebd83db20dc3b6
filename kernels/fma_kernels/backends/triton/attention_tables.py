"""Pairs of queries and keys as index tables; the fused kernels know nothing else of the geometry.

A kernel works on *items*. An item owns a tile of rows (queries, or keys whose gradients it makes) and walks through a
list of partners (the keys that they read, or the queries that read them). Rows are numbers of tokens or summaries in
the layout of the caller, so nothing is brought into another order, whatever the number of axes. Where an item owns the
rows of several cells, one bit per cell says for every partner which of them it is paired with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...caches import cached
from ...hierarchy import EMPTY
from ..level_pass import LevelPass
from ..row_tables import all_rows, key_rows, lists, query_rows, summary_rows

#: Cells that one item may own: the bits of an int32.
_MAX_GROUPS = 32


@dataclass(frozen=True)
class Schedule:
    """Items of one kernel; int32 tables on the device of the tensors.

    Attributes:
        rows: (items, slots) rows that an item owns, -1 = none.
        first: (items + 1,) where each item's partners begin.
        partners: (entries,) rows of the other side.
        bits: (entries,) bit g is set where the partner is paired with the g-th group of the item's rows; None where
            each item owns one group, with which all its partners are paired.
        group: slots per group.
    """

    rows: Tensor
    first: Tensor
    partners: Tensor
    bits: Tensor | None
    group: int

    @property
    def items(self) -> int:
        """Number of items."""
        return len(self.rows)

    @property
    def slots(self) -> int:
        """Rows that an item owns, at most."""
        return self.rows.shape[1]


@dataclass(frozen=True)
class Reduction:
    """The partial results of each row, in a fixed order: a sliced ELLPACK matrix of ones, ``width`` rows a slice.

    Attributes:
        first: (slices + 1,) where the steps of each slice begin.
        entries: (steps, width) number of a partial result for each row of the slice, -1 = none.
    """

    first: Tensor
    entries: Tensor


@cached
def query_schedule(level_pass: LevelPass, tile: int, device: torch.device) -> Schedule:
    """Queries own; their partners are all keys that they read: near rows, then n + row for the far summaries."""
    owner, partner = _pairs(level_pass)
    partner_rows = [key_rows(level_pass)]
    if level_pass.far:
        far_owner, far_partner = _far_pairs(level_pass)
        owner, partner = torch.cat([owner, far_owner]), torch.cat([partner, far_partner + len(partner_rows[0])])
        far_rows = summary_rows(level_pass)
        partner_rows.append(torch.where(far_rows == EMPTY, EMPTY, far_rows + level_pass.num_keys))
    return _schedule(owner, partner, query_rows(level_pass), partner_rows, _query_order(level_pass), tile, device)


@cached
def key_schedule(level_pass: LevelPass, tile: int, device: torch.device) -> Schedule:
    """Keys (of :func:`query_schedule`, without the far ones) own; their partners are the queries that read them."""
    query, key = _pairs(level_pass)
    shape = level_pass.hierarchy.cell_grid(level_pass.level) if level_pass.level else level_pass.tokens.cell_grid(1)
    return _schedule(key, query, all_rows(level_pass), [query_rows(level_pass)], _morton_order(shape), tile, device)


@cached
def far_key_schedule(
    level_pass: LevelPass, tile: int, chunk_tokens: int, width: int, device: torch.device
) -> tuple[Schedule, Reduction]:
    """Far summaries own, once per chunk of queries: coarse ones have too many readers for a single item.

    The partial results of all (item, slot) are numbered in order; the reduction names those that make a summary.
    """
    query, summary = _far_pairs(level_pass)
    queries, summaries = query_rows(level_pass), summary_rows(level_pass, also_empty=True)
    cells_per_chunk = max(1, chunk_tokens // queries.shape[1])
    chunk = _inverse(_query_order(level_pass)) // cells_per_chunk
    order = torch.arange(len(summaries))
    schedule = _schedule(summary, query, summaries, [queries], order, tile, device, chunk)
    return schedule, _reduction(schedule, level_pass.hierarchy.num_summaries, width)


# ---------------------------------------------------------------------- pairs of cells


def _pairs(level_pass: LevelPass) -> tuple[Tensor, Tensor]:
    """(query cell, key cell) of all pairs that read each other's rows one by one."""
    return _entries(level_pass.near_cells())


def _far_pairs(level_pass: LevelPass) -> tuple[Tensor, Tensor]:
    """(query cell, summary cell) of all pairs at level 0."""
    return _entries(level_pass.far_cells())


def _entries(table: Tensor) -> tuple[Tensor, Tensor]:
    row, column = (table != EMPTY).nonzero(as_tuple=True)
    return row, table[row, column]


def _query_order(level_pass: LevelPass) -> Tensor:
    """Query cells in the order of their items."""
    return _morton_order(level_pass.query_grid)


def _morton_order(shape: tuple[int, ...]) -> Tensor:
    """Cells along a Morton curve, so that cells of one item lie together and read much the same."""
    code = torch.zeros(shape, dtype=torch.int64)
    for axis, n in enumerate(shape):
        index = torch.arange(n).view(-1, *[1] * (len(shape) - 1 - axis))
        for bit in range(n.bit_length()):
            code += (index >> bit & 1) << (bit * len(shape) + axis)
    return code.flatten().argsort()


def _inverse(permutation: Tensor) -> Tensor:
    inverse = torch.empty_like(permutation)
    inverse[permutation] = torch.arange(len(permutation))
    return inverse


def _widen(rows: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(rows, [0, width - rows.shape[1]], value=EMPTY)


# ---------------------------------------------------------------------- building


def _schedule(
    owner: Tensor,
    partner: Tensor,
    owner_rows: Tensor,
    partner_rows: list[Tensor],
    order: Tensor,
    tile: int,
    device: torch.device,
    chunk: Tensor | None = None,
) -> Schedule:
    """Items of at most ``tile`` rows.

    Args:
        owner, partner: (pairs,) cells that are paired.
        owner_rows: (cells, T) rows of each cell, -1 = none.
        partner_rows: the same, a table after the other.
        order: owner cells in the order in which items take them.
        tile: rows of an item.
        device: where the tables shall lie.
        chunk: chunk of each partner cell; an owner then has an item per chunk that it has partners in. Without it, an
            owner is in one item, with partners or without.
    """
    parts = -(-owner_rows.shape[1] // tile)
    if parts > 1:  # a large cell: each part of it has all the partners
        owner_rows = _widen(owner_rows, parts * -(-owner_rows.shape[1] // parts)).reshape(len(owner_rows) * parts, -1)
        part = torch.arange(parts)
        owner, partner = (owner[:, None] * parts + part).flatten(), partner.repeat_interleave(parts)
        order = (order[:, None] * parts + part).flatten()
    group = owner_rows.shape[1]
    groups = min(_MAX_GROUPS, tile // group)
    place = _inverse(order)[owner]
    if chunk is None:
        item, slot, owned = _items_of_all(place, order, groups)
    else:
        item, slot, owned = _items_by_chunk(place, order, groups, chunk[partner])
    rows = torch.full((int(owned.item.max()) + 1, groups, group), EMPTY)
    rows[owned.item, owned.slot] = owner_rows[owned.cell]
    first, partners, bits = _partner_lists(item, slot, partner, partner_rows, len(rows))
    rows, first, partners, bits = (
        x.to(torch.int32).to(device) for x in (rows.flatten(1), first, partners, bits)
    )  # fmt: skip
    return Schedule(rows, first, partners, bits if groups > 1 else None, group)


class _Owned(NamedTuple):
    """Owner cells by item: which cell is in which slot of which item, (entries,) each."""

    item: Tensor
    slot: Tensor
    cell: Tensor


def _items_of_all(place: Tensor, order: Tensor, groups: int) -> tuple[Tensor, Tensor, _Owned]:
    """Every owner cell in one item, ``groups`` neighbours in the order together.

    Args:
        place: (pairs,) place of each pair's owner in the order.
        order: owner cells in the order in which items take them.
        groups: cells of an item.

    Returns:
        Item and slot of each pair's owner, and the owner cells of all items.
    """
    every = torch.arange(len(order))
    return place // groups, place % groups, _Owned(every // groups, every % groups, order)


def _items_by_chunk(place: Tensor, order: Tensor, groups: int, chunk: Tensor) -> tuple[Tensor, Tensor, _Owned]:
    """As :func:`_items_of_all`, with an item per chunk of partners for owners that have partners in it.

    Args:
        chunk: (pairs,) chunk of each pair's partner.
    """
    key, of_pair = torch.unique(chunk * len(order) + place, return_inverse=True)
    owned_chunk, cell = key // len(order), order[key % len(order)]
    per_chunk = torch.bincount(owned_chunk)
    position = torch.arange(len(cell)) - (per_chunk.cumsum(0) - per_chunk)[owned_chunk]
    items_per_chunk = -(-per_chunk // groups)
    item = (items_per_chunk.cumsum(0) - items_per_chunk)[owned_chunk] + position // groups
    slot = position % groups
    return item[of_pair], slot[of_pair], _Owned(item, slot, cell)


def _partner_lists(
    item: Tensor, slot: Tensor, partner: Tensor, partner_rows: list[Tensor], num_items: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the partner cells of each item, each cell once, with the bits of the owners that it is paired with.

    Args:
        item, slot, partner: (pairs,) of each pair.
        partner_rows: tables (cells, T), a table after the other.
        num_items: number of items.

    Returns:
        ``first``, ``partners`` and ``bits`` of a :class:`Schedule`.
    """
    exists = [rows != EMPTY for rows in partner_rows]
    flat_rows = torch.cat([rows[mask] for rows, mask in zip(partner_rows, exists, strict=True)])
    size = torch.cat([mask.sum(1) for mask in exists])
    entry, inverse = torch.unique(item * len(size) + partner, return_inverse=True)
    bits = torch.zeros(len(entry), dtype=torch.int64).index_add_(0, inverse, torch.ones_like(slot) << slot)
    entry_item, entry_cell = entry // len(size), entry % len(size)
    length = size[entry_cell]
    begin = (size.cumsum(0) - size)[entry_cell]
    offset = begin - (length.cumsum(0) - length)
    partners = flat_rows[torch.arange(int(length.sum())) + offset.repeat_interleave(length)]
    per_item = torch.zeros(num_items, dtype=torch.int64).index_add_(0, entry_item, length)
    return torch.nn.functional.pad(per_item.cumsum(0), [1, 0]), partners, bits.repeat_interleave(length)


def _reduction(schedule: Schedule, num_rows: int, width: int) -> Reduction:
    rows = schedule.rows.flatten().cpu().long()
    partial = (rows != EMPTY).nonzero()[:, 0]
    entries = lists(rows[partial], partial, -(-num_rows // width) * width)  # (rows, most)
    entries = entries.view(-1, width, entries.shape[1]).transpose(1, 2)  # (slices, most, width)
    used = (entries != EMPTY).any(2)
    first = torch.nn.functional.pad(used.sum(1).cumsum(0), [1, 0])
    device = schedule.rows.device
    return Reduction(first.to(device, torch.int32), entries[used].to(device, torch.int32).contiguous())
