"""Padding moved from the left to the right, because the start of a sequence decides which tokens share a cell."""

from __future__ import annotations

import torch
from torch import Tensor


def to_right(tokens: Tensor, padding_idx: int) -> tuple[Tensor, Tensor | None]:
    """Roll every row to move its leading padding to the end.

    A sequence then has the same cells, and the same outputs, in every batch.

    Args:
        tokens: (B, N) token numbers.
        padding_idx: the number of the padding token.

    Returns:
        The rolled tokens, and their former places in the rows, (B, N) int64, or None if no row was rolled.
    """
    leading = tokens.ne(padding_idx).cumsum(1).eq(0).sum(1)
    if tokens.shape[1] == 0 or not leading.any():
        return tokens, None
    origin = (torch.arange(tokens.shape[1], device=tokens.device) + leading[:, None]) % tokens.shape[1]
    return tokens.gather(1, origin), origin


def put_back(x: Tensor, origin: Tensor | None) -> Tensor:
    """Undo :func:`to_right` in tensors that were computed from the rolled tokens.

    Args:
        x: (B, N, ...).
        origin: second result of :func:`to_right`.

    Returns:
        (B, N, ...), rows in the order of the tokens that :func:`to_right` was given.
    """
    if origin is None:
        return x
    index = origin.reshape(*origin.shape, *[1] * (x.ndim - 2)).expand_as(x)
    return torch.empty_like(x).scatter(1, index, x)
