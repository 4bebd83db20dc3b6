"""Fast Multipole Attention."""

from __future__ import annotations

from torch import Tensor

from fma_kernels import DecodingState, Hierarchy
from fma_kernels.modules import CoreAttention

from .base import HeadAttention, State


class Multipole(HeadAttention):
    """Fast Multipole Attention over a sequence (arXiv 2310.11960).

    Args:
        num_heads: attention heads H.
        head_dim: channels per head d.
        max_tokens: number of tokens for which every level has weights of its own. ``nested`` summaries serve longer
            sequences too, ``direct`` ones do not.
        cell_size, rank, aggregation, query_summaries, group_bias: as in :class:`fma_kernels.FMAttention`.
        causal, dropout: as in :class:`HeadAttention`.

    Raises:
        ValueError: an argument does not fit, see :class:`fma_kernels.FMAttention`.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        max_tokens: int,
        *,
        cell_size: int,
        rank: int,
        aggregation: str,
        query_summaries: bool,
        group_bias: bool,
        causal: bool,
        dropout: float = 0.0,
    ):
        super().__init__(causal, dropout)
        self.core = CoreAttention(
            num_heads, head_dim, cell_size, rank, causal=causal, aggregation=aggregation,
            query_summaries=query_summaries, group_bias=group_bias,
            num_levels=max(1, Hierarchy((max_tokens,), cell_size, rank, causal).num_levels),
        )  # fmt: skip

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        mask = None if self.causal else key_padding_mask
        return self.core.attend(query, key, value, query.shape[2:3], mask, self.dropout_now)

    def decoding_state(self) -> State:
        if self.core.query_basis is not None:
            return super().decoding_state()
        return Streaming(self.core.decoding_state())


class Streaming:
    """The state of causal FMA: memory and time per token grow with the logarithm of the number of tokens."""

    def __init__(self, state: DecodingState):
        self._state = state

    @property
    def num_tokens(self) -> int:
        return self._state.num_tokens

    def take(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        take = self._state.step if self._state.num_tokens else self._state.prefill
        return take(query, key, value)

    def reorder(self, index: Tensor) -> None:
        self._state.reorder(index)
