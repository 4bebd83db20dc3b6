"""Efficient attentions of other libraries, to compare with; ``pip install 'fma-mm[baselines]'``.

Only the attention between the projections comes from these libraries: the projections are the same in all models, and
start the same.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import HeadAttention


def library(module: str, attention: str) -> ModuleType:
    """Import a library.

    Args:
        module: its module.
        attention: the attention that needs it.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"fma_attention: {attention!r}, expected its library {module}: pip install 'fma-mm[baselines]' ({error})"
        ) from error


class Local(HeadAttention):
    """local-attention: tokens read their own window and the one before; if not causal, also the one behind.

    Args:
        window: tokens per window.
        causal: as in :class:`HeadAttention`.
    """

    def __init__(self, window: int, causal: bool):
        super().__init__(causal)
        attention = library("local_attention", "local").LocalAttention
        self.local = attention(window, causal=causal, autopad=True, use_rotary_pos_emb=False)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        key_padding_mask: Tensor | None = None,
        dropout_p: float = 0.0,
    ) -> Tensor:
        self.local.dropout.p = dropout_p
        return self.local(query, key, value, mask=None if self.causal else _exists(query, key_padding_mask))


class Linear(HeadAttention):
    """linear-attention-transformer (arXiv 1812.01243), causal with a blind spot of one token, the library's default.

    It has no attention weights to drop. A causal one takes (B, H, N, d, d) memory.
    """

    def __init__(self, causal: bool):
        super().__init__(causal)
        module = library("linear_attention_transformer.linear_attention_transformer", "linear")
        self._attend = module.causal_linear_attn if causal else module.linear_attn

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        key_padding_mask: Tensor | None = None,
        dropout_p: float = 0.0,
    ) -> Tensor:
        if self.causal:
            return self._attend(query, key, value, bucket_size=1)
        mask = None if key_padding_mask is None else ~key_padding_mask
        return self._attend(query, key.clone(), value.clone(), mask)  # it masks in place


class HTransformer(HeadAttention):
    """h-transformer-1d (arXiv 2107.11906) with its default blocks of 16 tokens; no attention weights are dropped.

    If not causal, a block that is all padding counts as keys of value 0: outputs depend on the amount of padding, but
    not on its contents.

    Args:
        num_heads: attention heads H.
        head_dim: channels per head d.
        causal: as in :class:`HeadAttention`. The library then masks most of its coarse levels.
    """

    BLOCK = 16

    def __init__(self, num_heads: int, head_dim: int, causal: bool):
        super().__init__(causal)
        module = library("h_transformer_1d.h_transformer_1d", "h-transformer")
        self._attention = module.CausalHAttention1D if causal else module.HAttention1D
        self._sizes = dict(dim=num_heads * head_dim, heads=num_heads, dim_head=head_dim, block_size=self.BLOCK)
        self._layers: dict[tuple[int, torch.device], nn.Module] = {}  # without parameters, so nothing to save

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        key_padding_mask: Tensor | None = None,
        dropout_p: float = 0.0,
    ) -> Tensor:
        count = query.shape[2]
        length = max(4 * self.BLOCK, 1 << (count - 1).bit_length())
        exists = None
        if not self.causal:
            exists = F.pad(_exists(query, key_padding_mask), (0, length - count))
            value = _overwritten(value, key_padding_mask, 0)
        x = torch.cat([x.transpose(1, 2).flatten(2) for x in (query, key, value)], -1)
        layer = self._layer(length, query.device)
        out = layer(F.pad(x, (0, 0, 0, length - count)), mask=exists)[:, :count]
        return out.unflatten(-1, (self._sizes["heads"], -1)).transpose(1, 2)

    def _layer(self, length: int, device: torch.device) -> nn.Module:
        if (length, device) not in self._layers:
            layer = self._attention(max_seq_len=length, **self._sizes)
            layer.to_qkv, layer.to_out = nn.Identity(), nn.Identity()
            self._layers[length, device] = layer.to(device)
        return self._layers[length, device]


class Reformer(HeadAttention):
    """reformer-pytorch (arXiv 2001.04451): buckets of 64 tokens, 4 rounds of hashing, queries and keys shared.

    The hashes are random, also in evaluation. Padding takes places in the buckets: outputs depend on the amount of
    padding, but not on its contents. ``key`` is not read: keys are the queries.
    """

    BUCKET, ROUNDS = 64, 4

    def __init__(self):
        super().__init__(causal=False)
        attention = library("reformer_pytorch.reformer_pytorch", "reformer").LSHAttention
        self.hashing = attention(bucket_size=self.BUCKET, n_hashes=self.ROUNDS)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        key_padding_mask: Tensor | None = None,
        dropout_p: float = 0.0,
    ) -> Tensor:
        heads, count = query.shape[1:3]
        padding = (0, -count % (2 * self.BUCKET))
        exists = F.pad(_exists(query, key_padding_mask), padding).repeat_interleave(heads, 0)
        query = F.pad(_overwritten(query, key_padding_mask, 1), (0, 0, *padding), value=1)  # float16 has no norm of 0
        query, value = query.flatten(0, 1), F.pad(value, (0, 0, *padding)).flatten(0, 1)
        self.hashing.dropout.p = dropout_p
        out, *_ = self.hashing(query, value, input_mask=exists)
        return out[:, :count].unflatten(0, (-1, heads))


def _exists(like: Tensor, key_padding_mask: Tensor | None) -> Tensor:
    """(B, N) bool, True = a token. The libraries pad by themselves, and then need a mask."""
    if key_padding_mask is None:
        return like.new_ones(like.shape[0], like.shape[2], dtype=torch.bool)
    return ~key_padding_mask


def _overwritten(x: Tensor, key_padding_mask: Tensor | None, number: float) -> Tensor:
    """``x`` (B, H, N, d) with a number in place of padding, which the libraries read in some places despite masks."""
    return x if key_padding_mask is None else x.masked_fill(key_padding_mask[:, None, :, None], number)
