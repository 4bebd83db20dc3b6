"""The step of causal decoding as a function of tensors of fixed shapes, for a graph whose state goes in and out.

:class:`fma_kernels.DecodingState` grows with the sequence and branches on its length. Here room is made in advance, and
what a branch would decide is a choice between two tensors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import require, require_like
from ..hierarchy import Hierarchy
from ..modules import CoreAttention
from ..precision import sum_dtype
from .tables import UNREAD


class DecodingStep:
    """One token of causal FMA at a time, from a state of O(cell_size + rank log n) rows (arXiv 2310.11960, section 3).

    The results are those of :class:`fma_kernels.DecodingState`, which says what is kept. The state is a dict of tensors
    of fixed shapes, zeros at first, with m = ``cell_size``, p = ``rank`` and L the far levels of ``max_tokens`` tokens:

    ============  =========================  ==========================================================================
    ``tokens``    (B, 2, H, 2m, d)           keys and values of the cell that is being filled, and of the one before
    ``far``       (B, 2, H, L, 2p, d)        summaries that can be read: two cells of every level
    ``latest``    (B, 2, H, L, p, d)         sums of the latest cell of every level that ended, float32 or better
    ``open``      (B, 2, H, L, p, d)         ``direct`` bases: sums of the cell of every level that is being filled
    ============  =========================  ==========================================================================

    Near attention has ``tokens`` alone; full attention has them for ``max_tokens`` tokens. All sequences of a batch
    have the same length, and no token is masked.

    Args:
        attention: causal; ``fma``, ``near`` or ``full``.
        max_tokens: length of the longest sequence.

    Raises:
        ValueError: the attention cannot decode, or a ``direct`` basis has too few levels.
    """

    def __init__(self, attention: CoreAttention, max_tokens: int):
        require(isinstance(max_tokens, int) and max_tokens >= 1, "max_tokens", max_tokens, "an integer >= 1")
        known = isinstance(attention, CoreAttention) and attention.attention in ("full", "near", "fma")
        name = attention.attention if isinstance(attention, CoreAttention) else type(attention).__name__
        require(known, "attention", name, "full, near or fma, to decode in steps of a fixed shape")
        require(attention.causal, "causal", attention.causal, "True, to decode")
        self.attention, self.max_tokens = attention, max_tokens
        self.rank = attention.rank
        hierarchy = Hierarchy((max_tokens,), attention.cell_size, attention.rank, causal=True)
        self.num_levels = hierarchy.num_levels if attention.attention == "fma" else 0
        # Full attention is a near field of two cells that hold everything.
        self.cell_size = -(-max_tokens // 2) if attention.attention == "full" else attention.cell_size
        self.bases = [basis for basis in (attention.key_basis, attention.value_basis) if basis is not None]
        self.direct = any(basis.kind == "direct" for basis in self.bases)
        for basis in self.bases if self.direct else ():
            expected = f"at least {self.num_levels} for {max_tokens} tokens"
            require(basis.num_levels >= self.num_levels, "num_levels", basis.num_levels, expected)

    def empty(self, batch: int, like: Tensor) -> dict[str, Tensor]:
        """The state of no tokens.

        Args:
            batch: sequences B.
            like: gives the dtype of the tokens, and the device.
        """
        core, p, levels = self.attention, self.rank, self.num_levels
        shape = (batch, 2, core.num_heads)
        state = dict(tokens=like.new_zeros(*shape, 2 * self.cell_size, core.head_dim))
        if levels:
            wide = sum_dtype(like)
            state["far"] = like.new_zeros(*shape, levels, 2 * p, core.head_dim)
            state["latest"] = like.new_zeros(*shape, levels, p, core.head_dim, dtype=wide)
            if self.direct:
                state["open"] = torch.zeros_like(state["latest"])
        return state

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, position: Tensor, state: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Take the next token.

        Args:
            query, key, value: (B, H, 1, d).
            position: number of tokens before it, int64 without dimensions, below ``max_tokens``.
            state: from :meth:`empty`, or the last step.

        Returns:
            (B, H, 1, d) in the dtype of ``query``, and the new state.

        Raises:
            ValueError: the shapes do not fit together.
        """
        require(query.ndim == 4 and query.shape[2] == 1, "query.shape", tuple(query.shape), "(B, H, 1, d)")
        require_like("key", key, "query", query, 1)
        require_like("value", value, "query", query, 1)
        m, device = self.cell_size, query.device
        slot = position % (2 * m)
        place = torch.arange(2 * m, device=device)
        new = torch.stack([key, value], 1)
        tokens = torch.where((place == slot)[:, None], new, state["tokens"])
        own = place // m == slot // m
        readable = (own & (place <= slot)) | (~own & (position >= m))  # onnxruntime chooses between no booleans
        wide = sum_dtype(query)
        bias = torch.zeros(2 * m, dtype=wide, device=device).masked_fill(~readable, UNREAD)
        rows = tokens
        if self.num_levels:
            rows = torch.cat([tokens, state["far"].flatten(3, 4)], 3)
            bias = torch.cat([bias, self._far_bias(position, wide)])
        keys, values = rows.to(wide).unbind(1)
        out = F.scaled_dot_product_attention(query.to(wide), keys, values, bias[None], scale=self.attention.scale)
        new_state = dict(tokens=tokens)
        if self.num_levels:
            cells = tokens.unflatten(3, (2, m)).to(wide)
            cell = torch.where(slot < m, cells[:, :, :, 0], cells[:, :, :, 1])
            new_state.update(self._far_state(position, new.to(wide), cell, state))
        return out.to(query.dtype), new_state

    def _widths(self, device: torch.device) -> Tensor:
        """Sides of the cells of all levels in tokens: (L,) int64."""
        return self.cell_size * 2 ** torch.arange(self.num_levels, device=device)

    def _far_bias(self, position: Tensor, dtype: torch.dtype) -> Tensor:
        """Bias of the rows of all levels: (L * 2p,).

        A query in cell I reads I - 2 and, if I is odd, I - 3, which stands first then.
        """
        widths = self._widths(position.device)
        cell = position // widths
        odd = cell % 2 == 1
        both = torch.stack([cell >= torch.where(odd, 3, 2), odd & (cell >= 3)], 1)  # (L, 2)
        logs = (widths.to(dtype) / self.rank).log()[:, None] if self.attention.group_bias else 0.0
        bias = torch.where(both, logs, UNREAD).to(dtype)
        return bias.repeat_interleave(self.rank, 1).flatten()

    def _far_state(
        self, position: Tensor, new: Tensor, cell: Tensor, state: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The state of the levels after a token.

        Args:
            position: number of tokens before it.
            new: its key and value, (B, 2, H, 1, d).
            cell: tokens of its level-1 cell, (B, 2, H, m, d), zeros or of an earlier cell behind it.
            state: before it.
        """
        widths, p, far, latest = self._widths(position.device), self.rank, state["far"], state["latest"]
        ends = ((position + 1) % widths == 0)[:, None, None]
        if self.direct:
            sums = state["open"] + self._weights_at(position % widths) * new[:, :, :, :, None]
        else:
            levels = [self._contract(cell, 1)]
            for level in range(2, self.num_levels + 1):
                levels.append(self._contract(torch.cat([latest[:, :, :, level - 2], levels[-1]], 3), level))
            sums = torch.stack(levels, 3)
        # Cell E = (position + 1) / width is next. The one before the latest can be read from now on: it is E - 2, and
        # takes the first place if E is even, the second behind E - 3 if E is odd. All its tokens exist: a summary is
        # its sum.
        second = ((position + 1) // widths % 2 == 1)[:, None]
        takes = ends & torch.stack([~second, second], 1)  # (L, 2, 1)
        before = latest.to(far.dtype)[:, :, :, :, None]
        far = torch.where(takes[..., None], before, far.unflatten(4, (2, p))).flatten(4, 5)
        found = dict(far=far, latest=torch.where(ends, sums, latest))
        return {**found, "open": torch.where(ends, 0.0, sums)} if self.direct else found

    def _contract(self, below: Tensor, level: int) -> Tensor:
        """Sums of one cell of a level: (B, 2, H, inputs, d) to (B, 2, H, p, d)."""
        weights = self._stack([basis.weight(0, level, below) for basis in self.bases], below)
        return (below[:, :, :, None] * weights).sum(4)

    def _weights_at(self, offsets: Tensor) -> Tensor:
        """Weights of the token at an offset (L,) of the cell of every level: (2, H, L, p, d)."""
        levels = []
        for level, offset in enumerate(offsets.unbind(0), start=1):
            weights = [basis.weight(0, level, offset.to(torch.float32)) for basis in self.bases]
            picked = [w.index_select(2, offset[None])[:, :, 0] for w in weights]
            levels.append(self._stack(picked, picked[0]))
        return torch.stack(levels, 2)

    def _stack(self, weights: list[Tensor], like: Tensor) -> Tensor:
        """Weights of keys and of values, (H or 1, ...), as one tensor (2, H, ...)."""
        heads = self.attention.num_heads
        return torch.stack([w.to(like.dtype).expand(heads, *w.shape[1:]) for w in weights])
