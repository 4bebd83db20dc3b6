"""Fused attention on the CPU: calls of the kernels of ``source/attention.h``.

The two functions take and give what those of :mod:`..torch.attention` do. float16 and bfloat16 are converted before and
after; sums are in float32. Memory beyond inputs, outputs and gradients: scratch of a few hundred KiB per thread.
"""

from __future__ import annotations

from ctypes import byref
from typing import NamedTuple

import torch
from torch import Tensor

from ...caches import cached
from ...hierarchy import EMPTY
from ..level_pass import LevelPass, Options
from ..row_tables import all_rows, carry_rows, key_bias, query_rows, summary_rows
from . import library, memory
from .structures import Gradients, Inputs, Pass, pointer, rows, strides

#: The gradients of keys are made by so many heads, or parts of heads, at a time: as many as there are for one sequence
#: of 8 heads. Their number follows from the shapes alone, so that sums have one order for any number of threads.
PARTS = 8

CPU = torch.device("cpu")


class CellTables(NamedTuple):
    """Rows of queries and keys by cell, and the key cells of every query cell; int32, as ``struct Pass`` has them."""

    query_first: Tensor
    query_rows: Tensor
    key_cells: Tensor
    key_first: Tensor
    key_rows: Tensor


@cached
def tables(level_pass: LevelPass) -> CellTables:
    """The tables of a pass: near cells first, then the summary cells of all levels."""
    queries, keys, key_cells = query_rows(level_pass), [all_rows(level_pass)], [level_pass.near_cells()]
    if level_pass.far:
        far = level_pass.far_cells()
        key_cells.append(torch.where(far == EMPTY, EMPTY, far + len(keys[0])))
        keys.append(summary_rows(level_pass, also_empty=True) + level_pass.num_keys)
    exists = [part != EMPTY for part in keys]
    key_first = torch.cat([mask.sum(1) for mask in exists]).cumsum(0)
    query_exists = queries != EMPTY
    parts = (
        torch.nn.functional.pad(query_exists.sum(1).cumsum(0), [1, 0]),
        queries[query_exists],
        torch.cat(key_cells, 1),
        torch.nn.functional.pad(key_first, [1, 0]),
        torch.cat([part[mask] for part, mask in zip(keys, exists, strict=True)]),
    )
    return CellTables(*(part.to(torch.int32).contiguous() for part in parts))


@cached
def _geometry(level_pass: LevelPass, group_bias: bool, carried: bool) -> Pass:
    """The geometry of a pass without a mask as the kernels take it."""
    return _make_geometry(level_pass, key_bias(level_pass, None, group_bias, CPU), carried)


def _make_geometry(level_pass: LevelPass, bias: Tensor, carried: bool) -> Pass:
    table, hierarchy, level = tables(level_pass), level_pass.hierarchy, level_pass.level
    count, carry = level_pass.num_keys, {}
    if carried:
        carry = dict(carry_rows=carry_rows(level_pass, CPU)[0], carries=hierarchy.level_sizes[level])
    return Pass(
        cells=table.key_cells.shape[0], slots=table.key_cells.shape[1], causal=level_pass.diagonal, queries=count,
        keys=count, far=hierarchy.num_summaries if level_pass.far else 0, **table._asdict(), bias=bias,
        bias_stride=bias.shape[1] if len(bias) > 1 else 0, **carry,
    )  # fmt: skip


class _Call:
    """The inputs of one call as the kernels take them."""

    def __init__(
        self, level_pass: LevelPass, query: Tensor, keys: list[Tensor], values: list[Tensor], options: Options
    ):
        self.library, self.threads = library.loaded(), library.threads()
        carried = options.carry is not None
        if options.mask is None:
            self.geometry = _geometry(level_pass, options.group_bias, carried)
        else:
            bias = key_bias(level_pass, options.mask, options.group_bias, CPU)
            self.geometry = _make_geometry(level_pass, bias, carried)
        query, key, value, far_key, far_value = (rows(x) for x in (query, keys[0], values[0], keys[-1], values[-1]))
        carry = {}
        if carried:
            carry = dict(carry=rows(options.carry).contiguous(), carry_lse=options.carry_lse.float().contiguous())
        self.batch, self.heads, self.queries, self.dim = query.shape
        self.inputs = Inputs(
            batch=self.batch, heads=self.heads, dim=self.dim, scale=options.scale, query=query, key=key, value=value,
            far_key=far_key, far_value=far_value, query_at=strides(query), key_at=strides(key),
            value_at=strides(value), far_key_at=strides(far_key), far_value_at=strides(far_value), **carry,
        )  # fmt: skip


def forward(
    level_pass: LevelPass,
    query: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    options: Options,
    into: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of every query over what its cell reads: output, and log-sum-exp in float32, written to ``into``."""
    out, lse = into or (
        memory.empty(query.shape),
        memory.empty(query.shape[:-1]),
    )
    if out.numel():
        call = _Call(level_pass, query, keys, values, options)
        call.library.fma_forward(
            byref(call.geometry), byref(call.inputs), pointer(out), byref(strides(out)), pointer(lse), call.threads
        )  # fmt: skip
    return (out, lse) if into else (out.to(query.dtype), lse)


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
    if not query.numel():
        return [torch.zeros(x.shape, dtype=x.dtype) for x in (query, *sources, *carry)]
    call = _Call(level_pass, query, keys, values, options)
    panel = call.library.fma_panel()
    padded = -(-call.dim // panel) * panel
    ranges = min(call.geometry.cells, -(-PARTS // (call.batch * call.heads)))

    def sums_of(x: Tensor) -> Tensor:
        return memory.zeros([*([ranges] if ranges > 1 else []), *x.shape[:3], padded])

    names = ("key", "value", "far_key", "far_value")
    made = dict(zip(names, map(sums_of, sources), strict=False))
    made["query"] = memory.empty(query.shape)
    for name, x in zip(("carry", "carry_lse"), carry, strict=False):
        made[name] = memory.empty(x.shape)
    grad_out, out = rows(grad_out), rows(out)
    gradients = Gradients(
        grad_out=grad_out, grad_lse=grad_lse.float().contiguous(), out=out, lse=lse.contiguous(),
        grad_out_at=strides(grad_out), out_at=strides(out), ranges=ranges, **made,
    )  # fmt: skip
    arguments = (byref(call.geometry), byref(call.inputs), byref(gradients))
    call.library.fma_backward(*arguments, call.threads)
    if carry:
        members = carry_rows(level_pass, CPU)[1]
        call.library.fma_backward_carry(*arguments, pointer(members), members.shape[1], call.threads)

    def of_rows(name: str, x: Tensor) -> Tensor:
        total = made[name] if ranges == 1 else made[name].sum(0)
        if padded > call.dim:
            total = total[..., : call.dim].contiguous()
        return total.to(x.dtype)

    by_source = [of_rows(name, x) for name, x in zip(names, sources, strict=False)]
    return [made["query"].to(query.dtype), *by_source, *(made[name] for name in ("carry", "carry_lse") if carry)]
