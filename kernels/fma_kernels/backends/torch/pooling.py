"""Contraction of blocks along one axis with one weight per channel, in PyTorch, block by block inside the cache."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .chunks import Scratch, chunk_size, head_groups


def contract_forward(x: Tensor, weight: Tensor, axis: int) -> Tensor:
    """See :func:`fma_kernels.ops.contract`."""
    blocks = _blocks(x, weight, axis)  # (B, H, outer, width, inner, d)
    outputs, dtype = weight.shape[1], torch.promote_types(x.dtype, weight.dtype)
    result = x.new_empty(*blocks.shape[:3], outputs, *blocks.shape[4:], dtype=dtype)
    scratch = Scratch(dtype, x.device)
    for part, heads in _parts(blocks, weight):
        product = _product(blocks[part][:, :, :, None], weight[heads][:, None, :, :, None], scratch)
        torch.sum(product, 4, out=result[part])
    return result.view(output_shape(x, weight, axis))


def contract_backward(grad: Tensor, x: Tensor, weight: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`contract_forward` with respect to ``x`` and ``weight``."""
    blocks = _blocks(x, weight, axis)
    grad = grad.reshape(*blocks.shape[:3], weight.shape[1], *blocks.shape[4:])
    grad_x = torch.empty_like(blocks, dtype=grad.dtype, memory_format=torch.contiguous_format)
    grad_weight = torch.zeros_like(weight, memory_format=torch.contiguous_format)
    scratch = Scratch(grad.dtype, x.device)
    for part, heads in _parts(blocks, weight):
        x_part, x_grad = blocks[part], grad_x[part]
        for i in range(weight.shape[1]):
            g, w = grad[part][:, :, :, i, None], weight[heads][:, None, i, :, None]
            if i == 0:
                torch.mul(g, w, out=x_grad)
            else:
                x_grad.addcmul_(g, w)
            by_head = _product(g, x_part, scratch)
            for dim in (4, 2, 0):  # one after the other: sums over several dimensions at once are slow
                by_head = by_head.sum(dim) if by_head.shape[dim] > 1 else by_head.squeeze(dim)
            grad_weight[heads, i] += by_head if len(weight) > 1 else by_head.sum(0, keepdim=True)
    return grad_x.to(x.dtype).view(x.shape), grad_weight


def _product(a: Tensor, b: Tensor, scratch: Scratch) -> Tensor:
    return torch.mul(a, b, out=scratch("product", *torch.broadcast_shapes(a.shape, b.shape)))


def _blocks(x: Tensor, weight: Tensor, axis: int) -> Tensor:
    """View the grid (B, H, *grid, d) as (B, H, outer, width, inner, d) around the contracted axis."""
    before, after = x.shape[2 : 2 + axis], x.shape[3 + axis : -1]
    width = weight.shape[2]
    outer = math.prod(before) * (x.shape[2 + axis] // width)
    return x.reshape(*x.shape[:2], outer, width, math.prod(after), x.shape[-1])


def output_shape(x: Tensor, weight: Tensor, axis: int) -> list[int]:
    """Shape of the contracted grid."""
    shape = list(x.shape)
    shape[2 + axis] = shape[2 + axis] // weight.shape[2] * weight.shape[1]
    return shape


def _parts(blocks: Tensor, weight: Tensor) -> Iterator[tuple[tuple[slice, slice, slice], slice]]:
    """Slices (batch, heads, outer) whose products fit the working set, and the heads' slice of the weight."""
    outer, block = blocks.shape[2], weight.shape[1] * math.prod(blocks.shape[3:])
    for sequences, heads in head_groups(blocks, outer * block):
        group = blocks[sequences, heads]
        step = chunk_size(blocks.device, group.shape[0] * group.shape[1] * block)
        for start in range(0, outer, step):
            part = (sequences, heads, slice(start, start + step))
            yield part, heads if len(weight) > 1 else slice(None)
