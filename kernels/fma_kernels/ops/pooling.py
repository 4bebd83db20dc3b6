"""Operators that make summaries: all levels at once, contraction of blocks, counting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

from .. import cells
from ..backends.cpp import pooling as cpp_pooling
from ..backends.pooling_tables import Pyramid
from ..backends.torch import pooling as torch_pooling
from ..hierarchy import Hierarchy
from .forward_mode import refuse_forward_mode


def pool(
    x: Tensor,
    weight: Tensor,
    upper: Tensor,
    hierarchy: Hierarchy,
    mask: Tensor | None = None,
    windows: bool = False,
    *,
    backend: str,
) -> Tensor:
    """Summaries of all levels with fused kernels; sums are in float32.

    With P summaries of T tokens in a cell of level 1, the sum s of a cell is sum_j weight[:, s, j] * x[token j]. A cell
    of level l >= 2 joins those of its F = 2**D children: sum_i upper[l - 2, :, s, i] * below[i], children row-major,
    the P summaries of a child next to each other; beyond the end of ``upper``, its last entry serves. A summary is the
    sum * (size of its sub-block) / (tokens of it that exist).

    Args:
        x: (B, H, N, d); float32, float16 or bfloat16.
        weight: (H or 1, P, T, d) float32.
        upper: (levels, H or 1, P, F * P, d) float32, at least one level.
        hierarchy: geometry of the N tokens.
        mask: (B, N) bool, True = the token counts as zero and does not exist.
        windows: every sub-block is a cell with P = 1 that pools the T = ``cell_size / rank`` tokens that end at its
            first one, and joins the windows of sub-blocks 2b - 1 and 2b of the level below; nothing is multiplied.
        backend: "triton" or "cpp".

    Returns:
        (B, H, S, d) in the dtype of ``x``, finest level first.

    Raises:
        NotImplementedError: under forward-mode differentiation.
    """
    refuse_forward_mode(x, weight, upper)
    keep = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or upper.requires_grad)
    return _pool(x, weight, upper, mask, *hierarchy.pack(), windows, keep, backend)[0]


@torch.library.custom_op("fma_kernels::pool", mutates_args=())
def _pool(
    x: Tensor,
    weight: Tensor,
    upper: Tensor,
    mask: Tensor | None,
    grid: Sequence[int],
    cell_size: int,
    rank: int,
    causal: bool,
    windows: bool,
    keep: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    hierarchy = Hierarchy.unpack(grid, cell_size, rank, causal)
    out = x.new_empty(*x.shape[:2], hierarchy.num_summaries, x.shape[3])
    sums = torch.empty_like(out, dtype=torch.float32) if keep else out.new_empty(0, dtype=torch.float32)
    pool_forward(x, weight, upper, mask, Pyramid(hierarchy, windows), out, sums if keep else None, backend)
    return out, sums


@torch.library.custom_op("fma_kernels::pool_backward", mutates_args=())
def _pool_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    upper: Tensor,
    mask: Tensor | None,
    sums: Tensor,
    grid: Sequence[int],
    cell_size: int,
    rank: int,
    causal: bool,
    windows: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    pyramid = Pyramid(Hierarchy.unpack(grid, cell_size, rank, causal), windows)
    return pool_backward(grad, x, weight, upper, mask, sums, pyramid, backend)


def pool_forward(
    x: Tensor,
    weight: Tensor,
    upper: Tensor,
    mask: Tensor | None,
    pyramid: Pyramid,
    out: Tensor,
    sums: Tensor | None,
    backend: str,
) -> None:
    """The work of :func:`pool`, into ``out``.

    Args:
        x, weight, upper, mask: as in :func:`pool`.
        pyramid: geometry with at least one level.
        out: room for the summaries, (B, H, S, d) in the dtype of ``x``, contiguous.
        sums: room for the same without their factors in float32, which the gradients need; or None.
        backend: "triton" or "cpp".
    """
    with _backend(backend, x) as work:
        work.forward(*_dense(x, weight, upper, mask), pyramid, out, sums)


def pool_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    upper: Tensor,
    mask: Tensor | None,
    sums: Tensor,
    pyramid: Pyramid,
    backend: str,
    add_to: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`pool_forward` with respect to ``x``, ``weight`` and ``upper``.

    Args:
        grad: of the summaries, (B, H, S, d).
        x, weight, upper, mask, pyramid, sums, backend: as in the forward pass.
        add_to: a gradient of ``x``, contiguous, that this one is added to; it is the first result then.
    """
    with _backend(backend, x) as work:
        return work.backward(grad.contiguous(), *_dense(x, weight, upper, mask), sums, pyramid, add_to)


@contextmanager
def _backend(name: str, x: Tensor) -> Iterator[ModuleType]:
    """The module of a fused backend, with the device of ``x`` the current one."""
    if name == "cpp":
        yield cpp_pooling
    else:
        from ..backends.triton import pooling

        with torch.cuda.device_of(x):
            yield pooling


def _dense(x, weight, upper, mask):
    """The arguments as the kernels read them; tokens, heads and sequences may lie anywhere."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    return x, weight.contiguous(), upper.contiguous(), None if mask is None else mask.contiguous()


@_pool.register_fake
def _(x, weight, upper, mask, grid, cell_size, rank, causal, windows, keep, backend):
    summaries = Hierarchy.unpack(grid, cell_size, rank, causal).num_summaries
    shape = (*x.shape[:2], summaries, x.shape[3])
    return x.new_empty(shape), x.new_empty(shape if keep else 0, dtype=torch.float32)


@_pool_backward.register_fake
def _(grad, x, weight, upper, *_):
    return x.new_empty(x.shape), weight.new_empty(weight.shape), upper.new_empty(upper.shape)


def _pool_setup(ctx, inputs, output):
    *tensors, grid, cell_size, rank, causal, windows, _, backend = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, output[1])
    ctx.rest = (grid, cell_size, rank, causal, windows, backend)


def _pool_gradients(ctx, grad, _):
    grads = (None, None, None) if grad is None else _pool_backward(grad, *ctx.saved_tensors, *ctx.rest)
    return *grads, *[None] * (1 + len(ctx.rest) + 1)


_pool.register_autograd(_pool_gradients, setup_context=_pool_setup)


def contract(x: Tensor, weight: Tensor, axis: int) -> Tensor:
    """Contract blocks along one axis of a grid with one weight per channel.

    y[..., c * p + s, ..., h, k] = sum_j weight[h, s, j, k] * x[..., c * w + j, ..., h, k]

    Args:
        x: (B, H, n_1, ..., n_D, d); w divides the axis.
        weight: (H or 1, p, w, d).
        axis: grid axis, 0 to D - 1.

    Returns:
        The grid with n_axis / w * p entries on that axis, in the promoted dtype of both.

    Raises:
        NotImplementedError: under forward-mode differentiation.
    """
    refuse_forward_mode(x, weight)
    return _contract(x, weight, axis)


@torch.library.custom_op("fma_kernels::contract", mutates_args=())
def _contract(x: Tensor, weight: Tensor, axis: int) -> Tensor:
    return torch_pooling.contract_forward(x, weight, axis)


@torch.library.custom_op("fma_kernels::contract_backward", mutates_args=())
def _contract_backward(grad: Tensor, x: Tensor, weight: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    return torch_pooling.contract_backward(grad, x, weight, axis)


@_contract.register_fake
def _(x, weight, axis):
    return x.new_empty(torch_pooling.output_shape(x, weight, axis), dtype=torch.promote_types(x.dtype, weight.dtype))


@_contract_backward.register_fake
def _(grad, x, weight, axis):
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _contract_setup(ctx, inputs, output):
    x, weight, ctx.axis = inputs
    ctx.save_for_backward(x, weight)


_contract.register_autograd(
    lambda ctx, grad: (*_contract_backward(grad, *ctx.saved_tensors, ctx.axis), None), setup_context=_contract_setup
)


@torch.library.custom_op("fma_kernels::summary_counts", mutates_args=())
def _summary_counts(
    mask: Tensor | None, grid: Sequence[int], cell_size: int, rank: int, causal: bool, device: torch.device
) -> Tensor:
    hierarchy = Hierarchy.unpack(grid, cell_size, rank, causal)
    return cells.token_counts(hierarchy, device, mask).clone()  # the cached tensor must not leave


@_summary_counts.register_fake
def _(mask, grid, cell_size, rank, causal, device):
    hierarchy = Hierarchy.unpack(grid, cell_size, rank, causal)
    return torch.empty(1 if mask is None else mask.shape[0], hierarchy.num_summaries, device=device)


def summary_counts(hierarchy: Hierarchy, device: torch.device, mask: Tensor | None = None) -> Tensor:
    """:func:`fma_kernels.cells.token_counts` as an operator, so that a trace does not see how it counts."""
    return _summary_counts(mask, *hierarchy.pack(), device)
