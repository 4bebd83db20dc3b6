"""What is between the projections of a self-attention: the interface, and full attention."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class State(Protocol):
    """What an attention keeps of the tokens seen so far, to attend from the next ones."""

    num_tokens: int

    def take(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The outputs (B, H, T, d) of the next T tokens, of which queries, keys and values are given."""

    def reorder(self, index: Tensor) -> None:
        """Let rows ``index`` of the batch become its rows."""


class HeadAttention(nn.Module):
    """An attention over heads.

    Args:
        causal: a token reads no later token.
        dropout: probability to drop an attention weight in training.
    """

    #: Keys are the queries: no projection makes them.
    shared_query_key = False

    def __init__(self, causal: bool, dropout: float = 0.0):
        super().__init__()
        self.causal, self.dropout = causal, dropout

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            query, key, value: (B, H, N, d).
            key_padding_mask: (B, N) bool, True = padding, on the right. Ignored if causal: what is padding comes later.

        Returns:
            (B, H, N, d).
        """
        raise NotImplementedError

    def decoding_state(self) -> State:
        """An empty state for generation."""
        return Recomputation(self)

    @property
    def dropout_now(self) -> float:
        return self.dropout if self.training else 0.0


class Recomputation:
    """The state of an attention that has no other: all tokens, from which every step computes all outputs anew."""

    def __init__(self, attention: HeadAttention):
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


class Full(HeadAttention):
    """Scaled dot-product attention of all tokens, by PyTorch's kernels."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        mask = None
        if key_padding_mask is not None and not self.causal:
            mask = ~key_padding_mask[:, None, None]
        return F.scaled_dot_product_attention(
            query, key, value, mask, dropout_p=self.dropout_now, is_causal=self.causal
        )

    def decoding_state(self) -> State:
        return KeyValueCache()


class KeyValueCache:
    """The state of full attention: keys and values of all tokens."""

    def __init__(self):
        self._kept: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        return 0 if self._kept is None else self._kept.shape[3]

    def take(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        before, count = self.num_tokens, query.shape[2]
        new = torch.stack([key, value])
        self._kept = new if self._kept is None else torch.cat([self._kept, new], 3)
        mask = None
        if before and count > 1:
            mask = query.new_ones(count, before + count, dtype=torch.bool).tril(before)
        return F.scaled_dot_product_attention(query, *self._kept, mask, is_causal=not before)

    def reorder(self, index: Tensor) -> None:
        self._kept = self._kept.index_select(1, index)
