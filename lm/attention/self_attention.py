"""Self-attention as fairseq's layers call it."""

from __future__ import annotations

import math

from fairseq.incremental_decoding_utils import with_incremental_state
from fairseq.modules.quant_noise import quant_noise
from torch import Tensor, nn

from fma_kernels import CoreAttention

from .base import HeadAttention
from .rotary import rotate

STATE = "decoding"  # fairseq keeps the state of generation under this name


@with_incremental_state
class SelfAttention(nn.Module):
    """Projections around an attention over heads; parameters have the names that fairseq's own attention gives them.

    Args:
        embed_dim: channels C, a multiple of H.
        num_heads: attention heads H.
        attention: the attention between the projections. Keys of a checkpoint begin with ``attention.``.
        dropout: probability to drop an attention weight in training.
        shared_query_key: keys are the queries, and no projection makes them.
        rotary: rotate queries and keys by their positions; C / H is even.
        q_noise, qn_block_size: fairseq's quantization noise of the projections.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        attention: HeadAttention | CoreAttention,
        *,
        dropout: float = 0.0,
        shared_query_key: bool = False,
        rotary: bool = False,
        q_noise: float = 0.0,
        qn_block_size: int = 8,
    ):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, embed_dim // num_heads
        self.dropout, self.rotary = dropout, rotary

        def projection(gain: float) -> nn.Module:
            linear = nn.Linear(embed_dim, embed_dim)
            nn.init.xavier_uniform_(linear.weight, gain)
            nn.init.zeros_(linear.bias)
            return quant_noise(linear, q_noise, qn_block_size)

        self.q_proj, self.v_proj = projection(1 / math.sqrt(2)), projection(1 / math.sqrt(2))
        self.k_proj = None if shared_query_key else projection(1 / math.sqrt(2))
        self.out_proj = projection(1.0)
        self.attention = attention

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        incremental_state: dict | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        **unused,
    ) -> tuple[Tensor, None]:
        """Attend.

        Args:
            query: (N, B, C); keys and values are made of it as well.
            key, value: ignored, as fairseq's layers give ``query`` for them.
            key_padding_mask: (B, N) bool, True = padding, on the right. A causal attention ignores it: padding comes
                later.
            incremental_state: fairseq's state of generation; ``query`` has the tokens that it has not seen yet.
            need_weights: ignored: there are none to return.
            attn_mask: None; a causal attention is causal without one.

        Returns:
            (N, B, C), and None for the weights.

        Raises:
            ValueError: ``attn_mask`` is given.
        """
        if attn_mask is not None:
            raise ValueError(f"attn_mask: a tensor of shape {tuple(attn_mask.shape)}, expected None")
        x = query.transpose(0, 1)
        state = None
        if incremental_state is not None:
            state = self.get_incremental_state(incremental_state, STATE)
            if state is None:
                state = self.attention.decoding_state()
                self.set_incremental_state(incremental_state, STATE, state)
        q, v = self._heads(self.q_proj(x)), self._heads(self.v_proj(x))
        k = q if self.k_proj is None else self._heads(self.k_proj(x))
        if self.rotary:
            start = 0 if state is None else state.num_tokens
            q, k = rotate(q, start), rotate(k, start)
        out = self._attend(q, k, v, key_padding_mask) if state is None else state.take(q, k, v)
        return self.out_proj(out.transpose(1, 2).flatten(2)).transpose(0, 1), None

    def reorder_incremental_state(self, incremental_state: dict, new_order: Tensor) -> dict:
        """Replace the batch by some of its rows, as beam search does.

        Args:
            incremental_state: fairseq's.
            new_order: (B',) int64, the rows that become 0 .. B' - 1.
        """
        state = self.get_incremental_state(incremental_state, STATE)
        if state is not None:
            state.reorder(new_order)
        return incremental_state

    def _get_input_buffer(self, incremental_state: dict | None) -> dict:
        """An empty dictionary: fairseq's layers ask for one, but the state has another form."""
        return {}

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        mask = None if self.attention.causal else key_padding_mask
        return self.attention(
            query, key, value, key_padding_mask=mask, dropout_p=self.dropout if self.training else 0.0
        )

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
