"""Decoding with full attention, to compare with: all keys and values are kept."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import require, require_like, require_mask, require_tokens


class KeyValueCache:
    """Keys and values of all tokens so far, for causal full attention from the next ones.

    It decodes as :class:`DecodingState` does, with the same methods: O(n) memory, and O(n) time per token. It makes no
    gradients.

    Args:
        scale: factor of the products; default 1 / sqrt(d).
        capacity: tokens to reserve memory for. More tokens double the memory when it is full.

    Example:
        >>> cache = KeyValueCache()
        >>> cache.take(*torch.randn(3, 1, 8, 1000, 64)).shape  # the prompt
        torch.Size([1, 8, 1000, 64])
        >>> cache.take(*torch.randn(3, 1, 8, 1, 64)).shape
        torch.Size([1, 8, 1, 64])
    """

    def __init__(self, *, scale: float | None = None, capacity: int = 0):
        require(isinstance(capacity, int) and capacity >= 0, "capacity", capacity, "an integer >= 0")
        self.scale, self._capacity, self._num_tokens = scale, capacity, 0
        self._rows: Tensor | None = None  # keys and values (2, B, H, capacity, d)
        self._exists: Tensor | None = None  # (B, capacity) bool, once a mask was given

    @property
    def num_tokens(self) -> int:
        """Number of tokens taken so far, masked ones included."""
        return self._num_tokens

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values of the tokens so far."""
        return 0 if self._rows is None else self._rows[:, :, :, : self.num_tokens].nbytes

    @torch.no_grad()
    def take(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """Keep the next tokens, and attend from them to all tokens that are not later.

        Args:
            query, key, value: (B, H, T, d), T >= 1; batch, heads, channels, dtype and device of the tokens before.
            key_padding_mask: (B, T) bool, True = ignore the token as a key.

        Returns:
            (B, H, T, d); zeros for a query that reads nothing.

        Raises:
            ValueError: an argument is outside of what is stated above; the cache is as it was before.
        """
        fits = query.ndim == 4 and query.shape[2] >= 1
        require(fits, "query.shape", tuple(query.shape), "(B, H, T, d) with T >= 1")
        require_tokens("query", query, query.shape[2:3])
        require_like("key", key, "query", query, query.shape[2])
        if self._rows is not None:
            require_like("query", query, "the tokens before", self._rows[0], query.shape[2])
        before, count = self.num_tokens, query.shape[2]
        self.append(key, value, key_padding_mask)
        total = self.num_tokens
        mask = None if self._exists is None else self._exists[:, None, None, :total]
        if count > 1 and (before or mask is not None):
            earlier = query.new_ones(count, total, dtype=torch.bool).tril(before)
            mask = earlier if mask is None else mask & earlier
        is_causal = count > 1 and mask is None
        keys, values = self._rows[:, :, :, :total]
        return F.scaled_dot_product_attention(query, keys, values, mask, is_causal=is_causal, scale=self.scale)

    @torch.no_grad()
    def append(self, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None) -> None:
        """Keep the next tokens without attending from them.

        Args:
            key, value, key_padding_mask: as in :meth:`take`.

        Raises:
            ValueError: an argument is outside of what is stated there; the cache is as it was before.
        """
        require(key.ndim == 4, "key.shape", tuple(key.shape), "(B, H, T, d)")
        require_like("value", value, "key", key, key.shape[2])
        require_mask(key_padding_mask, key)
        if self._rows is not None:
            require_like("key", key, "the tokens before", self._rows[0], key.shape[2])
        before, total = self.num_tokens, self.num_tokens + key.shape[2]
        self._reserve(key, total)
        self._rows[0, :, :, before:total], self._rows[1, :, :, before:total] = key, value
        if key_padding_mask is not None and self._exists is None:
            self._exists = torch.ones(len(key), self._rows.shape[3], dtype=torch.bool, device=key.device)
        if self._exists is not None:
            self._exists[:, before:total] = True if key_padding_mask is None else ~key_padding_mask
        self._num_tokens = total

    def reorder(self, index: Tensor) -> None:
        """Replace the batch by some of its rows, as beam search does: rows may repeat, move or be left out.

        Args:
            index: (B',) int64 on the device of the tokens: the rows, numbered from 0, that become 0 .. B' - 1.

        Raises:
            ValueError: there are no tokens yet.
        """
        require(self._rows is not None, "num_tokens", self.num_tokens, "at least 1 before reorder()")
        self._rows = self._rows.index_select(1, index)
        if self._exists is not None:
            self._exists = self._exists.index_select(0, index)

    def _reserve(self, like: Tensor, total: int) -> None:
        """Make room for ``total`` tokens."""
        room = 0 if self._rows is None else self._rows.shape[3]
        if total <= room:
            return
        batch, heads, _, dim = like.shape
        rows = like.new_empty(2, batch, heads, max(total, 2 * room, self._capacity), dim)
        if room:
            rows[:, :, :, :room] = self._rows
        if self._exists is not None:
            self._exists = F.pad(self._exists, [0, rows.shape[3] - room], value=True)
        self._rows = rows
