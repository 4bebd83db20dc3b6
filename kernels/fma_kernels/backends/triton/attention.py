"""Fused attention: launches of the kernels of :mod:`.attention_kernels`.

The two functions take and give what those of :mod:`..torch.attention` do. Device memory beyond inputs, outputs and
gradients: 8 bytes per query in the backward pass (log-sum-exp and delta), a few numbers per summary, and the partial
gradients of far summaries, of as many sequences at a time as :data:`PARTIAL_BYTES` hold.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..level_pass import LevelPass, Options
from ..row_tables import carry_rows, key_bias
from . import attention_kernels as kernels
from .attention_tables import Schedule, far_key_schedule, key_schedule, query_schedule
from .attention_tilings import Tiling, padded, tiling

#: Most bytes of partial gradients at a time (at least those of one sequence).
PARTIAL_BYTES = 2**27

#: Queries whose part in the gradient of a far summary one item computes, at least.
_CHUNK_TOKENS = 1024

#: Rows that a program of the small kernels (sums of partial results, gradient of the carry) makes.
_WIDTH = 16


def forward(
    level_pass: LevelPass,
    query: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    options: Options,
    into: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of every query over what its cell reads: output, and log-sum-exp in float32, written to ``into``."""
    out, lse = into or (query.new_empty(query.shape), query.new_empty(query.shape[:-1], dtype=torch.float32))
    if not out.numel():
        return out, lse
    call = _KernelCall(level_pass, query, keys, values, options)
    config = call.tiling("masked_forward" if level_pass.diagonal or options.dropout_p else "forward")
    schedule = query_schedule(level_pass, config.own, query.device)
    carry = carry_lse = carry_of_query = call.dummy
    if options.carry is not None:
        carry, carry_lse = _floats(options.carry), _floats(options.carry_lse)
        carry_of_query = carry_rows(level_pass, query.device)[0]
    kernels.attend_forward[(schedule.items * call.sequences,)](
        *call.inputs(), call.bias, carry, carry_lse, carry_of_query, call.seed, out, lse, *_tables(schedule),
        *call.numbers(schedule), carry.shape[-2], *call.input_strides(),
        HAS_FAR=level_pass.far, HAS_CARRY=options.carry is not None, **call.constants(schedule, config),
    )  # fmt: skip
    return out, lse


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
    grads = [x.new_empty(x.shape) for x in (query, *sources, *carry)]
    if not query.numel():
        return [grad.zero_() for grad in grads]
    call = _KernelCall(level_pass, query, keys, values, options)
    grad_out, grad_lse = _rows(grad_out), grad_lse.contiguous()
    delta = torch.empty_like(lse)
    call.grad_queries(grad_out, grad_lse, out.contiguous(), lse, grads[0], delta)
    given = (lse, delta, grad_out)
    call.grad_keys(*given, *grads[1:3])
    if level_pass.far:
        call.grad_far_keys(*given, *grads[3:5])
    if carry:
        call.grad_carry(*given, *grads[-2:])
    return grads


class _KernelCall:
    """The inputs of one call as the kernels take them."""

    def __init__(
        self, level_pass: LevelPass, query: Tensor, keys: list[Tensor], values: list[Tensor], options: Options
    ):
        self.level_pass, self.options = level_pass, options
        self.query, self.device = _rows(query), query.device
        self.sources = [(_rows(k), _rows(v)) for k, v in zip(keys, values, strict=True)]
        self.batch, self.heads, self.queries, self.dim = query.shape
        self.sequences, self.keys = self.batch * self.heads, keys[0].shape[2]
        self.bias = key_bias(level_pass, options.mask, options.group_bias, query.device)
        self.bias_stride = self.bias.shape[1] if len(self.bias) > 1 else 0
        self.dummy = self.bias  # for arguments that a kernel does not read
        self.seed = self.dummy if options.seed is None else options.seed
        self.precision = _precision()

    def tiling(self, kernel: str) -> Tiling:
        return tiling(kernel, self.query.dtype, self.dim)

    def inputs(self) -> list[Tensor]:
        """Query, near and far keys and values."""
        return [self.query, *(x for source in (self.sources[0], self.sources[-1]) for x in source)]

    def input_strides(self) -> list[int]:
        return [stride for x in self.inputs() for stride in x.stride()[:3]]

    def numbers(self, schedule: Schedule) -> list[float | int]:
        """Arguments of every launch of an attention kernel between its tables and its strides."""
        options, level_pass = self.options, self.level_pass
        sizes = (schedule.items, schedule.slots, schedule.group, self.heads, self.queries, self.keys, self.bias_stride)
        return [options.scale, options.dropout_p, level_pass.level, *sizes]

    def constants(self, schedule: Schedule, config: Tiling) -> dict:
        """Constants that kernels are compiled for."""
        return dict(
            DIM=self.dim, BLOCK_OWN=padded(schedule.slots),
            BLOCK=config.block, BLOCK_DIM=padded(self.dim), HAS_BITS=schedule.bits is not None,
            HAS_DROPOUT=self.options.dropout_p > 0, CAUSAL=self.level_pass.diagonal, PRECISION=self.precision,
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip

    def grad_queries(
        self, grad_out: Tensor, grad_lse: Tensor, out: Tensor, lse: Tensor, grad_query: Tensor, delta: Tensor
    ) -> None:
        config = self.tiling("queries")
        schedule = query_schedule(self.level_pass, config.own, self.device)
        kernels.attend_backward_queries[(schedule.items * self.sequences,)](
            *self.inputs(), self.bias, self.seed, out, lse, grad_out, grad_lse, grad_query, delta, *_tables(schedule),
            *self.numbers(schedule), *self.input_strides(), *grad_out.stride()[:3],
            HAS_FAR=self.level_pass.far, **self.constants(schedule, config),
        )  # fmt: skip

    def grad_keys(self, lse: Tensor, delta: Tensor, grad_out: Tensor, grad_key: Tensor, grad_value: Tensor) -> None:
        config = self.tiling("keys")
        schedule = key_schedule(self.level_pass, config.own, self.device)
        self._grad_keys(
            self.sources[0], self.bias, schedule, config, (lse, delta, grad_out), (grad_key, grad_value),
            schedule.items * self.sequences, partial=False,
        )  # fmt: skip

    def grad_far_keys(self, lse: Tensor, delta: Tensor, grad_out: Tensor, grad_key: Tensor, grad_value: Tensor) -> None:
        """Partial results by chunk of queries, then their sums: no atomics, so that every run gives the same bits."""
        config = self.tiling("far_keys")
        schedule, reduction = far_key_schedule(self.level_pass, config.own, _CHUNK_TOKENS, _WIDTH, self.device)
        partials, rows = schedule.items * schedule.slots, grad_key.shape[2]
        at_once = min(self.sequences, max(1, PARTIAL_BYTES // (2 * 4 * partials * self.dim)))
        partial = grad_key.new_empty(2, at_once, partials, self.dim, dtype=torch.float32)
        slices = len(reduction.first) - 1
        bias = self.bias[:, self.keys :]
        for first in range(0, self.sequences, at_once):
            count = min(at_once, self.sequences - first)
            self._grad_keys(
                self.sources[1], bias, schedule, config, (lse, delta, grad_out), partial, schedule.items * count,
                partial=True, partials=partials, first_sequence=first,
            )  # fmt: skip
            kernels.sum_partials[(slices * count,)](
                *partial, grad_key, grad_value, reduction.first, reduction.entries, slices, rows, partials, first,
                DIM=self.dim, WIDTH=_WIDTH, BLOCK_DIM=padded(self.dim), num_warps=2,
            )  # fmt: skip

    def _grad_keys(
        self, source, bias, schedule, config, given, grads, programs, *, partial, partials=0, first_sequence=0
    ) -> None:
        (key, value), (lse, delta, grad_out) = source, given
        kernels.attend_backward_keys[(programs,)](
            self.query, key, value, bias, self.seed, lse, delta, grad_out, *grads, *_tables(schedule),
            *self.numbers(schedule), partials, first_sequence,
            *(stride for x in (self.query, key, value, grad_out) for stride in x.stride()[:3]),
            PARTIAL=partial, **self.constants(schedule, config) | dict(CAUSAL=self.level_pass.diagonal and not partial),
        )  # fmt: skip

    def grad_carry(self, lse: Tensor, delta: Tensor, grad_out: Tensor, grad_carry: Tensor, grad_lse: Tensor) -> None:
        carry, carry_lse = _floats(self.options.carry), _floats(self.options.carry_lse)
        members = carry_rows(self.level_pass, self.device)[1]
        carries, most = members.shape
        blocks = -(-carries // _WIDTH)
        kernels.attend_backward_carry[(blocks * self.sequences,)](
            carry, carry_lse, lse, delta, grad_out, grad_carry, grad_lse, members,
            blocks, self.heads, self.queries, carries, most, *grad_out.stride()[:3],
            DIM=self.dim, WIDTH=_WIDTH, BLOCK_DIM=padded(self.dim), num_warps=2,
        )  # fmt: skip


def _precision() -> str:
    """Of products of float32 numbers: as PyTorch's own matrix products are set."""
    matmul = torch.backends.cuda.matmul
    tf32 = matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32
    # Triton has no TF32 for AMD's GPUs, whatever PyTorch allows there.
    return "tf32" if tf32 and torch.version.hip is None else "ieee"


def _tables(schedule: Schedule) -> tuple[Tensor, ...]:
    bits = schedule.partners if schedule.bits is None else schedule.bits
    return schedule.rows, schedule.first, schedule.partners, bits


def _rows(x: Tensor) -> Tensor:
    """With channels next to each other, and rows that are aligned as the kernels assume.

    They begin at multiples of the power of two that divides their length, up to 16 bytes. The strides are otherwise
    for the kernels to follow, without a copy.
    """
    size, length = x.element_size(), x.shape[-1] * x.element_size()
    alignment = min(16, length & -length)
    aligned = x.data_ptr() % alignment == 0 and all(stride * size % alignment == 0 for stride in x.stride()[:3])
    return x if x.stride(-1) == 1 and aligned else x.clone(memory_format=torch.contiguous_format)


def _floats(x: Tensor) -> Tensor:
    return x.to(torch.float32).contiguous()
