"""Which tokens each rank holds: whole layers of cells along the first axis, one slab of them after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from ..checks import require
from ..hierarchy import Hierarchy
from ..slab import Slab
from .exchange import gather


def own_tokens(grid: Sequence[int] | int, cell_size: int, group: ProcessGroup) -> range:
    """Numbers of the tokens that this rank holds, in the row-major order of the grid.

    Of c layers of level-1 cells along the first axis, rank i of W holds the layers i * c // W to (i + 1) * c // W.

    Args:
        grid: tokens of the whole grid per axis; a number for a sequence.
        cell_size: side of a level-1 cell in tokens.
        group: the ranks.

    Raises:
        ValueError: there are fewer layers of cells than ranks.

    Example::

        own_tokens(1000, 64, group)  # range(512, 1000) on rank 1 of 2
    """
    return _slab(grid, cell_size, group).tokens


def shard(x: Tensor, group: ProcessGroup, *, grid: Sequence[int] | int, cell_size: int, dim: int = 1) -> Tensor:
    """The part of a tensor of all tokens, the same on all ranks, that belongs to this rank; a view.

    Args:
        x: tokens in dimension ``dim``, in row-major order.
        group: the ranks.
        grid, cell_size: as in :func:`own_tokens`.
        dim: the dimension of the tokens; 1 for (B, N, C), 2 for (B, H, N, d).

    Raises:
        ValueError: the tensor has another number of tokens than the grid, or there are fewer layers than ranks.
    """
    slab = _slab(grid, cell_size, group)
    require(x.shape[dim] == slab.hierarchy.num_tokens, "x.shape", tuple(x.shape), f"the tokens of {grid} in {dim=}")
    return x.narrow(dim, slab.tokens.start, slab.num_tokens)


def unshard(x: Tensor, group: ProcessGroup, *, grid: Sequence[int] | int, cell_size: int, dim: int = 1) -> Tensor:
    """The tensor of all tokens on every rank, of the parts of all: the inverse of :func:`shard`.

    It has gradients: a rank gets the sum of those of all ranks. So where all ranks compute one loss of the whole,
    divide it by their number.

    Args:
        x: tokens of this rank in dimension ``dim``; the other sizes and the dtype are the same on all ranks.
        group, grid, cell_size, dim: as in :func:`shard`.

    Raises:
        ValueError: the tensor has another number of tokens than this rank holds.
    """
    slab = _slab(grid, cell_size, group)
    require(x.shape[dim] == slab.num_tokens, "x.shape", tuple(x.shape), f"{slab.num_tokens} own tokens in {dim=}")
    return gather_tokens(x, slab, group, dim % x.ndim)


def gather_tokens(x: Tensor, slab: Slab, group: ProcessGroup, dim: int) -> Tensor:
    """The tensor of all tokens, of the parts of all ranks.

    Args:
        x: tokens of this rank in dimension ``dim``.
        slab: geometry of these tokens.
        group: the ranks.
        dim: the dimension, from 0.
    """
    shapes = [[(*x.shape[:dim], slab.of(rank).num_tokens, *x.shape[dim + 1 :])] for rank in range(slab.size)]
    return torch.cat([part for (part,) in gather([x], shapes, group)], dim)


def sum_gradients(parameters: Iterable[nn.Parameter], group: ProcessGroup) -> None:
    """Add up the gradients of all ranks, in place: those of one process with all tokens, if losses add up to its loss.

    DistributedDataParallel and FSDP over the ranks do the same, and divide by their number. Call this where there is
    neither of them.

    Args:
        parameters: parameters that all ranks have, with gradients on all ranks or on none.
        group: the ranks.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for dtype in dict.fromkeys(grad.dtype for grad in gradients):
        same = [grad for grad in gradients if grad.dtype == dtype]
        flat = torch.cat([grad.reshape(-1) for grad in same])
        dist.all_reduce(flat, group=group)
        for grad, part in zip(same, flat.split([grad.numel() for grad in same]), strict=True):
            grad.copy_(part.view_as(grad))


def _slab(grid: Sequence[int] | int, cell_size: int, group: ProcessGroup) -> Slab:
    return Slab(Hierarchy((grid,) if isinstance(grid, int) else tuple(grid), cell_size), group.rank(), group.size())
