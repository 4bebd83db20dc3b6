"""Attention over heads, between the projections of a self-attention."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn


class State(Protocol):
    """The tokens that generation has seen so far, in the form that an attention needs.

    ``fma_kernels.DecodingState`` and ``fma_kernels.KeyValueCache`` are such states as well.
    """

    num_tokens: int

    def take(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend from the next T tokens, given their queries, keys and values: (B, H, T, d) each, as is the result."""

    def reorder(self, index: Tensor) -> None:
        """Replace the batch by its rows ``index``."""


class HeadAttention(nn.Module):
    """An attention over heads, with the interface of ``fma_kernels.CoreAttention``.

    Args:
        causal: a token reads no later token.
    """

    def __init__(self, causal: bool):
        super().__init__()
        self.causal = causal

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        key_padding_mask: Tensor | None = None,
        dropout_p: float = 0.0,
    ) -> Tensor:
        """Attend.

        Args:
            query, key, value: (B, H, N, d).
            key_padding_mask: (B, N) bool, True = padding, on the right. None if causal: padding comes later.
            dropout_p: probability to drop an attention weight, 0 in evaluation.

        Returns:
            (B, H, N, d).
        """
        raise NotImplementedError

    def decoding_state(self) -> State:
        """An empty state for generation."""
        return Recomputation(self)


class Recomputation:
    """State of an attention that has no other: all tokens, from which every step computes all outputs anew.

    Args:
        attention: maps queries, keys and values of all tokens to outputs, as :class:`HeadAttention` does.
    """

    def __init__(self, attention: nn.Module):
        self._attention, self._kept = attention, None

    @property
    def num_tokens(self) -> int:
        return 0 if self._kept is None else self._kept.shape[3]

    def take(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        new = torch.stack([query, key, value])
        self._kept = new if self._kept is None else torch.cat([self._kept, new], 3)
        return self._attention(*self._kept)[:, :, -query.shape[2] :]

    def reorder(self, index: Tensor) -> None:
        self._kept = self._kept.index_select(1, index)
