"""Index tables and biases of an exported attention, made from the geometry: constants of the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ..backends.level_pass import LevelPass
from ..backends.pooling_tables import Pyramid, summary_sizes
from ..backends.pooling_tables import tables as pooling_tables
from ..backends.row_tables import query_rows, summary_rows
from ..backends.torch.geometry import sub_block_of_query
from ..caches import cached
from ..cells import token_counts
from ..hierarchy import EMPTY, Hierarchy

#: Bias of a key that is not read. It is finite, so that a query that reads nothing stays a number: such are the query
#: summaries of a cell whose interaction list is empty.
UNREAD = -1e30

#: A tensor, several of them in a named tuple, or None.
T = TypeVar("T")

#: Where constants of a program lie.
CPU = torch.device("cpu")


def constant(table: Callable[..., T], *args) -> T:
    """The result of a function of the geometry, as constants of the graph that is being traced.

    The function runs outside of the trace: the caches of the library must keep real tensors.

    Args:
        table: makes a tensor, several of them, or None.
        args: its arguments.
    """
    with _disable_current_modes():
        found = table(*args)
    # Of the ways to bring a tensor into a trace, this one stays functional; torch.tensor(list) does not.
    lift = torch.ops.aten.lift_fresh_copy.default
    if isinstance(found, tuple):
        return cast(T, type(found)(*(None if x is None else lift(x) for x in found)))
    return found if found is None else lift(found)


def gather(x: Tensor, rows: Tensor) -> Tensor:
    """Rows of dimension 2 by a table of two: (B, H, n, d) and (cells, m) to (B, H, cells, m, d)."""
    return x.index_select(2, rows.flatten()).unflatten(2, rows.shape)  # one Gather; x[:, :, rows] is a GatherND


class PassTables(NamedTuple):
    """Queries of each cell, and the keys that they read; int64; places to be ignored hold the cell's own.

    Attributes:
        queries: (cells, T) rows of the queries.
        keys: (cells, K) rows of the keys: tokens, and behind the last of them the summaries of all levels.
        unread: (cells, 1, K) float32, 0 or :data:`UNREAD` for a key that is none.
        future: (T, K) float32, 0 or :data:`UNREAD` for a key that is later than the query; None where there are none.
        outputs: (n,) place of each query among those of all cells.
    """

    queries: Tensor
    keys: Tensor
    unread: Tensor
    future: Tensor | None
    outputs: Tensor


def _rows_of(cells: Tensor, rows: Tensor) -> Tensor:
    """Rows of what lies in the cells of a table: (cells, slots) and (cells', n) to (cells, slots * n), -1 = nothing."""
    found = torch.where((cells == EMPTY)[..., None], EMPTY, rows[cells.clamp(min=0)])
    return found.flatten(1)


def _pass_tables(queries: Tensor, keys: Tensor, future: Tensor | None) -> PassTables:
    exists = queries != EMPTY
    outputs = torch.empty(int(exists.sum()), dtype=torch.int64)
    outputs[queries[exists]] = exists.flatten().nonzero()[:, 0]
    # A row that is not read is the first of the own cell, so that no number of elsewhere comes near.
    own = queries[:, :1]
    unread = torch.where(keys == EMPTY, UNREAD, 0.0)[:, None]
    return PassTables(
        torch.where(exists, queries, own), torch.where(keys == EMPTY, own, keys), unread, future, outputs
    )


@cached
def token_tables(hierarchy: Hierarchy, far: bool) -> PassTables:
    """The pass of the tokens over their near field and, with ``far``, the summaries of all levels."""
    level_pass = LevelPass(hierarchy, 0, far=far)
    queries, geometry = query_rows(level_pass), hierarchy.tables()
    keys = _rows_of(geometry.near, queries)
    if far:
        summaries = _rows_of(geometry.far, summary_rows(level_pass))
        keys = torch.cat([keys, torch.where(summaries == EMPTY, EMPTY, summaries + hierarchy.num_tokens)], 1)
    future = None
    if hierarchy.causal:  # the own cell comes first
        count = queries.shape[1]
        future = torch.zeros(count, keys.shape[1])
        future[:, :count] = torch.full((count, count), UNREAD).triu(1)
    return _pass_tables(queries, keys, future)


@cached
def summary_tables(hierarchy: Hierarchy) -> PassTables:
    """The pass of the query summaries of all levels, each over the interaction list of its cell."""
    every = summary_rows(LevelPass(hierarchy, 0, far=True), also_empty=True)
    existing = summary_rows(LevelPass(hierarchy, 0, far=True))
    lists, offset = [], 0
    for level in hierarchy.levels:
        table = hierarchy.interaction_table(level)
        lists.append(torch.where(table == EMPTY, EMPTY, table + offset))
        offset += len(table)
    width = max(table.shape[1] for table in lists)
    lists = [torch.nn.functional.pad(table, [0, width - table.shape[1]], value=EMPTY) for table in lists]
    return _pass_tables(every, _rows_of(torch.cat(lists), existing), None)


class CarryTables(NamedTuple):
    """Query summaries that the tokens of a cell take from: of every level, those of the sub-blocks that they lie in.

    Attributes:
        rows: (cells, P * L) rows among the summaries of all levels, sub-block by sub-block of level 1.
        by_query: (T, K + P * L) float32, 0 or :data:`UNREAD` for a near key that is later than the query, and for what
            belongs to another sub-block than the query; None where there are none.
    """

    rows: Tensor
    by_query: Tensor | None


@cached
def carry_tables(hierarchy: Hierarchy) -> CarryTables:
    """The results of query summaries that the tokens take."""
    number = summary_rows(LevelPass(hierarchy, 0, far=True), also_empty=True)  # by cell of all levels
    numbers = number.split([len(hierarchy.interaction_table(level)) for level in hierarchy.levels])
    grid, levels, offset = hierarchy.summary_grid(1), [], 0
    coordinates = torch.cartesian_prod(*map(torch.arange, grid)).view(-1, hierarchy.ndim)[numbers[0].flatten()]
    for level in hierarchy.levels:
        row = torch.zeros_like(coordinates[:, 0])
        for axis, n in enumerate(hierarchy.summary_grid(level)):
            row = row * n + (coordinates[:, axis] >> (level - 1))
        levels.append(row + offset)
        offset += hierarchy.level_sizes[level - 1]
    rows = torch.stack(levels, -1).view(*numbers[0].shape, -1)  # (cells, P, L)
    own = sub_block_of_query(LevelPass(hierarchy, 0, far=False))
    others = torch.where(own[:, None] == torch.arange(rows.shape[1]), 0.0, UNREAD)
    near = token_tables(hierarchy, far=False)
    future = torch.zeros(len(own), near.keys.shape[1]) if near.future is None else near.future
    by_query = torch.cat([future, others.repeat_interleave(rows.shape[2], 1)], 1)
    return CarryTables(rows.flatten(1), by_query if bool((by_query != 0).any()) else None)


@cached
def bias_of_keys(hierarchy: Hierarchy, far: bool, tokens: bool, group_bias: bool, dtype: torch.dtype) -> Tensor | None:
    """Bias of the keys of a pass where no token is masked; None where it would be zeros.

    Args:
        hierarchy: geometry.
        far: there are summaries among the keys.
        tokens: the queries are tokens, and the summaries stand behind them.
        group_bias: add the logarithm of the number of tokens.
        dtype: of the result.

    Returns:
        (cells, 1, K), those that are not read included.
    """
    tables = token_tables(hierarchy, far) if tokens else summary_tables(hierarchy)
    bias = tables.unread.to(dtype)
    if far and group_bias:
        logs = token_counts(hierarchy, CPU)[0].to(dtype).clamp(min=1).log()
        logs = torch.cat([logs.new_zeros(hierarchy.num_tokens), logs]) if tokens else logs
        bias = torch.where(bias == 0, logs[tables.keys][:, None], bias)
    return bias if bool((bias != 0).any()) else None


class PoolTables(NamedTuple):
    """Rows of the level below that each cell is made of; int64, 0 for a row that does not exist.

    Attributes:
        rows: (cells, inputs) rows below: tokens, or the summaries of the level below in the order of their cells.
        exists: (cells, inputs, 1) bool; None where everything exists.
    """

    rows: Tensor
    exists: Tensor | None


@cached
def pool_tables(pyramid: Pyramid, level: int) -> PoolTables:
    """The inputs of the cells of one level."""
    made = pooling_tables(pyramid, CPU)
    if level == 1:
        rows = made.tokens.long()
    else:
        cells = pyramid.num_cells
        first = sum(cells[1 : level - 1])
        rows = made.children[first : first + cells[level - 1]].long()
        order = _order(pyramid)
        offset = sum(cells[: level - 2]) * pyramid.summaries
        rows = torch.where(rows == EMPTY, EMPTY, order[rows.clamp(min=0)] - offset)
    exists = rows != EMPTY
    return PoolTables(rows.clamp(min=0), None if bool(exists.all()) else exists[..., None])


@cached
def _order(pyramid: Pyramid) -> Tensor:
    """Place of each summary among those of all cells: (S,) int64."""
    rows = pooling_tables(pyramid, CPU).rows.long().flatten()
    return torch.empty_like(rows).scatter_(0, rows, torch.arange(len(rows)))


def summary_order(pyramid: Pyramid) -> Tensor | None:
    """Place of each summary among those of all cells, (S,) int64; None where it is the same."""
    order = _order(pyramid)
    return None if bool((order == torch.arange(len(order))).all()) else order


def scale_of_summaries(hierarchy: Hierarchy, dtype: torch.dtype) -> Tensor | None:
    """Factor of the sum of every summary where no token is masked: (S, 1); None where all are 1."""
    scale = summary_sizes(hierarchy, CPU).to(dtype) / token_counts(hierarchy, CPU)[0].clamp(min=1)
    return None if bool((scale == 1).all()) else scale[:, None]
