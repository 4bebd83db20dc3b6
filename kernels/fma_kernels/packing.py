"""Sequences, images and volumes of several sizes in one row of tokens, none of which reads another."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise

import torch
from torch import Tensor

from .caches import cached
from .checks import require

#: Where each part of a packed row lies: its first token, and its tokens per axis.
Part = tuple[int, tuple[int, ...]]


@dataclass(frozen=True)
class Group:
    """Parts of a row that one call attends to, as a batch: each is padded to the largest of them on every axis.

    Padding counts for nothing: neither the level of a pair of tokens nor a summary depends on tokens that a mask takes
    out, or on the size of the grid (:class:`fma_kernels.Hierarchy`).

    Attributes:
        grid: tokens per axis after padding.
        parts: the parts.
    """

    grid: tuple[int, ...]
    parts: tuple[Part, ...]

    @property
    def padded(self) -> bool:
        """Whether a part is smaller than the grid."""
        return any(grid != self.grid for _, grid in self.parts)


def resolve_grids(
    length: int, cu_seqlens: Tensor | Sequence[int] | None, grids: Sequence[int | Sequence[int]] | None
) -> tuple[tuple[int, ...], ...]:
    """The grids of the parts of a row.

    Args:
        length: tokens of the row.
        cu_seqlens: where sequences begin, and where the last one ends: 0, n_1, n_1 + n_2, ..., ``length``. A tensor on
            a GPU is read by the host.
        grids: tokens per axis of each part; a number for a sequence. One of the two arguments is None.

    Raises:
        ValueError: an argument is outside of what is stated above.
    """
    require(cu_seqlens is None or grids is None, "grids", grids, "None together with cu_seqlens")
    if cu_seqlens is not None:
        starts = cu_seqlens.tolist() if isinstance(cu_seqlens, Tensor) else list(cu_seqlens)
        rises = all(isinstance(n, int) for n in starts) and all(a < b for a, b in pairwise(starts))
        expected = f"integers that rise from 0 to the {length} tokens of the row"
        require(len(starts) > 1 and rises and (starts[0], starts[-1]) == (0, length), "cu_seqlens", starts, expected)
        return tuple((b - a,) for a, b in pairwise(starts))
    found = tuple((grid,) if isinstance(grid, int) else tuple(grid) for grid in grids)
    axes = {len(grid) for grid in found}
    fits = len(axes) == 1 and all(isinstance(n, int) and n >= 1 for grid in found for n in grid)
    require(fits, "grids", found, "grids of positive integers, as many for each")
    total = sum(map(math.prod, found))
    require(total == length, "grids", found, f"{length} tokens in all, as in the row, not {total}")
    return found


@cached
def groups(grids: tuple[tuple[int, ...], ...], cell_size: int) -> tuple[Group, ...]:
    """Which parts to attend to together: those with as many levels on every axis.

    So there are O(log n) calls, and per axis fewer than two tokens for each real one.

    Args:
        grids: tokens per axis of each part, in the order of the row.
        cell_size: side of a level-1 cell in tokens.
    """

    def levels(part: Part) -> tuple[int, ...]:
        return tuple((-(-n // cell_size) - 1).bit_length() for n in part[1])

    starts = accumulate(map(math.prod, grids), initial=0)
    parts = sorted(zip(starts, grids, strict=False), key=levels)
    found = []
    for members in (tuple(members) for _, members in groupby(parts, levels)):
        found.append(Group(tuple(map(max, zip(*(grid for _, grid in members), strict=True))), members))
    return tuple(found)


@cached
def padding_tables(group: Group, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Index tables that cut a group out of the row.

    Args:
        group: the group.
        device: where the tables are used.

    Returns:
        Place in the row of each token of the batch, (B * N,), int64. A padded place repeats the first token of its own
        part, so that nothing of another one, NaN for instance, comes near. Which tokens are padding, (B, N) bool. And
        the places in the batch of the tokens that are none, in the order of the parts, (T,), int64.
    """
    places, padding = [], []
    for start, grid in group.parts:
        place = torch.full(group.grid, -1)
        place[tuple(slice(n) for n in grid)] = torch.arange(math.prod(grid)).reshape(grid)
        padding.append(place.flatten() < 0)
        places.append(start + place.flatten().clamp(min=0))
    mask = torch.stack(padding)
    real = (~mask.flatten()).nonzero()[:, 0]
    return torch.cat(places).to(device), mask.to(device), real.to(device)


@cached
def order_of_row(found: tuple[Group, ...], device: torch.device) -> Tensor:
    """Place of each token of the row in the results of all groups, one behind the other: (T,), int64."""
    tokens = [torch.arange(start, start + math.prod(grid)) for group in found for start, grid in group.parts]
    return torch.cat(tokens).argsort().to(device)


def attend_packed(
    attend: Callable[[Tensor, Tensor, Tensor, tuple[int, ...], Tensor | None], tuple[Tensor, Tensor]],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grids: tuple[tuple[int, ...], ...],
    cell_size: int,
    key_padding_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Attend within each part of a row.

    Args:
        attend: maps queries, keys and values (B, H, N, d), their grid and a mask (B, N) or None to outputs
            (B, H, N, d) and log-sum-exps (B, H, N).
        query, key, value: (1, H, T, d).
        grids: from :func:`resolve_grids`.
        cell_size: side of a level-1 cell in tokens.
        key_padding_mask: (1, T) bool or None, True = ignore the token.

    Returns:
        Outputs (1, H, T, d) and log-sum-exps (1, H, T).
    """
    found = groups(grids, cell_size)
    outs, sums = [], []
    for group in found:
        places, padding, real = padding_tables(group, query.device)
        queries, keys, values = (
            x[0].index_select(1, places).unflatten(1, padding.shape).transpose(0, 1) for x in (query, key, value)
        )
        mask = padding if group.padded else None
        if key_padding_mask is not None:
            mask = padding | key_padding_mask[0][places].view_as(padding)
        out, lse = attend(queries, keys, values, group.grid, mask)
        outs.append(out.transpose(0, 1).flatten(1, 2).index_select(1, real))
        sums.append(lse.transpose(0, 1).flatten(1, 2).index_select(1, real))
    order = order_of_row(found, query.device)
    return torch.cat(outs, 1).index_select(1, order)[None], torch.cat(sums, 1).index_select(1, order)[None]
