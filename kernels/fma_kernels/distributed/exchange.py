"""Differentiable exchange of tensors between ranks: what all need of all, and what neighbours need of each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


def gather(
    parts: Sequence[Tensor], shapes: Sequence[Sequence[Sequence[int]]], group: ProcessGroup
) -> list[list[Tensor]]:
    """Every rank gets the tensors of all ranks.

    In the backward pass each rank gets the gradients of its tensors from all ranks, added in their order.

    Args:
        parts: tensors of this rank, of one dtype.
        shapes: shapes of those of each rank.
        group: the ranks.

    Returns:
        The tensors of each rank.
    """
    sizes = [sum(map(math.prod, of_rank)) for of_rank in shapes]
    own = torch.cat([x.reshape(-1) for x in parts])
    # One copy for each rank: the backward pass adds up the gradients of the copies, in the order of ranks.
    received = _AllToAll.apply(own.expand(len(sizes), -1).reshape(-1), [len(own)] * len(sizes), sizes, group)
    return [_split(x, of_rank) for x, of_rank in zip(received.split(sizes), shapes, strict=True)]


def send_to_neighbours(
    before: Tensor, after: Tensor, shapes: Sequence[Sequence[int]], group: ProcessGroup
) -> list[Tensor]:
    """Send a tensor to the rank before and one to the rank after, and get one from each.

    What has no elements is not sent. It still belongs to the graph, so that the ranks at the ends, too, take part in
    the backward pass.

    Args:
        before, after: what the rank before and the rank after get; without elements where there is none.
        shapes: shapes of what these two send.
        group: the ranks.

    Returns:
        What came from the rank before, and from the rank after.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    sent, received = [0] * size, [0] * size
    for neighbour, x, shape in ((rank - 1, before, shapes[0]), (rank + 1, after, shapes[1])):
        sent[neighbour % size] += x.numel()
        received[neighbour % size] += math.prod(shape)
    flat = torch.cat([before.reshape(-1), after.reshape(-1)])
    return _split(_AllToAll.apply(flat, sent, received, group), shapes)


def _split(x: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Tensors of the given shapes that follow each other in a flat one."""
    sizes = [math.prod(shape) for shape in shapes]
    return [part.view(*shape) for part, shape in zip(x.split(sizes), shapes, strict=True)]


class _AllToAll(torch.autograd.Function):
    """Send a part of a flat tensor to each rank, and get one from each."""

    @staticmethod
    def forward(ctx, x: Tensor, sent: list[int], received: list[int], group: ProcessGroup) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return all_to_all(x, sent, received, group)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return all_to_all(grad, ctx.received, ctx.sent, ctx.group), None, None, None


def all_to_all(x: Tensor, sent: list[int], received: list[int], group: ProcessGroup) -> Tensor:
    """Send ``sent[i]`` numbers of a flat tensor to rank i, in order, and get ``received[i]`` from it."""
    out = x.new_empty(sum(received))
    dist.all_to_all_single(out, x.contiguous(), received, sent, group=group)
    return out
