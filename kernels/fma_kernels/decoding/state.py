"""The state of causal FMA between tokens: tokens and summaries that later queries read."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import require, require_like, require_mask, require_tokens
from ..functional import fma_attention
from ..hierarchy import Hierarchy
from ..precision import sum_dtype
from ..summaries import SummaryBasis, aggregate
from .sums import Sums


class DecodingState:
    """The tokens and summaries that causal FMA keeps, to attend from the next tokens (arXiv 2310.11960, section 3).

    The level of a pair of tokens does not depend on how many there are, and a causal query reads only far cells that
    have ended. So the outputs are those of :func:`fma_attention` on the whole sequence, whichever way :meth:`take` cuts
    it: the first tokens go to :meth:`prefill`, those that follow to :meth:`step`.

    A query in level-l cell I reads cell I - 2 and, if I is odd, I - 3. Kept are, with m = ``cell_size``, p = ``rank``
    and L the number of levels that the next token has, for keys and values of every head:

    * 2m tokens, of the cell that is being filled and the one before;
    * 2p summaries per level, those that can be read, in the dtype of the tokens;
    * p sums for each of L + 1 levels, of the latest cell that ended, in float32 or better. Its summaries are read
      later, and its sums become part of those of its parent. A ``direct`` basis has p more for each of its levels, of
      the cell that is being filled.

    A token costs O(m + p log n): it reads the rows above. Sums are made once per cell.

    It makes no gradients. Everything lies where the tokens are. Under ``torch.autocast`` the dtypes stay as they come.

    Args:
        key_basis: weights of the key summaries; one axis, no ``causal_queries``.
        value_basis: weights of the value summaries; same heads, head dimension, cell size and rank.
        near_only: read the near field alone, the two cells of tokens. Of the bases, only the geometry matters then.
        group_bias: as in :func:`fma_attention`.
        scale: factor of the products; default 1 / sqrt(d).
        backend: of :func:`fma_attention` for the prompt; a step is plain PyTorch.

    Raises:
        ValueError: the bases cannot serve causal attention, or do not fit together.

    Example:
        >>> key_basis, value_basis = (SummaryBasis(8, 64, cell_size=16) for _ in range(2))
        >>> state = DecodingState(key_basis, value_basis)
        >>> state.take(*torch.randn(3, 1, 8, 1000, 64)).shape  # the prompt
        torch.Size([1, 8, 1000, 64])
        >>> state.take(*torch.randn(3, 1, 8, 1, 64)).shape  # the next token
        torch.Size([1, 8, 1, 64])
    """

    def __init__(
        self,
        key_basis: SummaryBasis,
        value_basis: SummaryBasis,
        *,
        near_only: bool = False,
        group_bias: bool = True,
        scale: float | None = None,
        backend: str = "auto",
    ):
        for name, basis in dict(key_basis=key_basis, value_basis=value_basis).items():
            require(isinstance(basis, SummaryBasis), name, basis, "a SummaryBasis")
            require(basis.ndim == 1, f"{name}.ndim", basis.ndim, "1, as decoding goes along a sequence")
            require(not basis.causal_queries, f"{name}.causal_queries", basis.causal_queries, "False")
        for name in ("num_heads", "head_dim", "cell_size", "rank"):
            mine, expected = getattr(value_basis, name), getattr(key_basis, name)
            require(mine == expected, f"value_basis.{name}", mine, f"{expected}, that of key_basis")
        self.cell_size, self.rank = key_basis.cell_size, key_basis.rank
        self.near_only, self.group_bias, self.scale, self.backend = near_only, group_bias, scale, backend
        self._sums = {"key_basis": Sums(key_basis), "value_basis": Sums(value_basis)}
        self._num_levels = min(sums.num_levels for sums in self._sums.values())
        self._num_tokens = 0
        # Keys and values (B, 2, H, rows, d): the two cells in turn, then for every level two cells of summaries.
        self._rows: Tensor | None = None
        # What is added to the logits of a row (B, rows); -inf where there is nothing to read.
        self._bias: Tensor | None = None
        # The latest cell of every level that ended: sums (B, 2, H, p, d), numbers of tokens (B, p).
        self._latest: list[tuple[Tensor, Tensor]] = []

    @property
    def num_tokens(self) -> int:
        """Number of tokens taken so far, masked ones included."""
        return self._num_tokens

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that are kept; the weights of the bases are not counted."""
        kept = [x for pair in self._latest for x in pair] + [x for s in self._sums.values() for x in s.open.values()]
        kept += [] if self._rows is None else [self._rows, self._bias]
        return sum(x.untyped_storage().nbytes() for x in kept)

    def take(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """Take the prompt in parallel, or the tokens that follow: :meth:`prefill` first, then :meth:`step`.

        Args:
            query, key, value: (B, H, T, d), T >= 1.
            key_padding_mask: (B, T) bool, True = ignore the token as a key.

        Returns:
            (B, H, T, d) in the dtype of ``query``; zeros for a query that reads nothing.

        Raises:
            ValueError: as :meth:`prefill` and :meth:`step`; the state is as it was before.
        """
        return (self.step if self.num_tokens else self.prefill)(query, key, value, key_padding_mask)

    @torch.no_grad()
    def prefill(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """Take a whole prompt in parallel, by :func:`aggregate` and :func:`fma_attention`.

        The memory for that grows with the prompt. :meth:`step` takes a long one in chunks.

        Args:
            query, key, value: (B, H, N, d), one floating-point dtype and device.
            key_padding_mask: (B, N) bool, True = ignore the token as a key. Prompts of several lengths are padded on
                the left.

        Returns:
            (B, H, N, d) in the dtype of ``query``.

        Raises:
            ValueError: the state has tokens already, or an argument is outside of what is stated above.
        """
        require(self.num_tokens == 0, "num_tokens", self.num_tokens, "0 before prefill(); step() takes further tokens")
        self._check(query, key, value, key_padding_mask)
        hierarchy = Hierarchy((key.shape[2],), self.cell_size, self.rank, causal=True)
        with torch.autocast(key.device.type, enabled=False):
            options: dict[str, Any] = dict(scale=self.scale, group_bias=self.group_bias, backend=self.backend)
            options["key_padding_mask"] = mask = key_padding_mask
            if self.near_only:
                out = fma_attention(query, key, value, None, None, hierarchy, **options)
                self._take_tokens(key, value, mask)
                return cast(Tensor, out)
            # Summaries of a prompt in low precision are rounded only after those of the levels above were made.
            wide = [x.to(sum_dtype(key)) for x in (key, value)]
            summaries = [
                aggregate(x, sums.basis, hierarchy, key_padding_mask=mask)
                for x, sums in zip(wide, self._sums.values(), strict=True)
            ]
            keys, values = (x.to(key.dtype) for x in summaries)
            out = fma_attention(query, key, value, keys, values, hierarchy, **options)
            self._take_tokens(key, value, mask)
            self._take_summaries(wide, summaries, hierarchy, mask)
        return cast(Tensor, out)

    @torch.no_grad()
    def step(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """Take the next token, or any number of them: those of one cell at a time.

        Args:
            query, key, value: (B, H, T, d), T >= 1; batch, dtype and device of the tokens before.
            key_padding_mask: (B, T) bool, True = ignore the token as a key.

        Returns:
            (B, H, T, d) in the dtype of ``query``; zeros for a query that reads nothing.

        Raises:
            ValueError: an argument is outside of what is stated above, or a ``direct`` basis has too few levels for so
                many tokens; the state is as it was before.
        """
        self._check(query, key, value, key_padding_mask)
        outputs, start = [], 0
        with torch.autocast(key.device.type, enabled=False):
            if self._rows is None:
                self._allocate(key)
            while start < key.shape[2]:
                stop = min(start + self.cell_size - self.num_tokens % self.cell_size, key.shape[2])
                mask = None if key_padding_mask is None else key_padding_mask[:, start:stop]
                now = slice(start, stop)
                outputs.append(self._attend(query[:, :, now], key[:, :, now], value[:, :, now], mask))
                self._num_tokens += stop - start
                if self.num_tokens % self.cell_size == 0:
                    self._end_cell()
                start = stop
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)

    def reorder(self, index: Tensor) -> None:
        """Replace the batch by some of its rows, as beam search does: rows may repeat, move or be left out.

        Args:
            index: (B',) int64 on the device of the tokens: the rows, numbered from 0, that become 0 .. B' - 1.

        Raises:
            ValueError: there are no tokens yet, or ``index`` is not as stated above.
        """
        require(self._rows is not None, "num_tokens", self.num_tokens, "at least 1 before reorder()")
        batch, device = self._rows.shape[0], self._rows.device
        require(index.ndim == 1 and len(index) > 0, "index.shape", tuple(index.shape), "one dimension, not empty")
        require(index.dtype == torch.int64, "index.dtype", index.dtype, "torch.int64")
        require(index.device == device, "index.device", index.device, f"{device}, where the tokens are")
        require(bool(((index >= 0) & (index < batch)).all()), "index", index.tolist(), f"rows 0 to {batch - 1}")

        def pick(x: Tensor) -> Tensor:
            return x.index_select(0, index)

        self._rows, self._bias = pick(self._rows), pick(self._bias)
        self._latest = [(pick(sums), pick(count)) for sums, count in self._latest]
        for sums in self._sums.values():
            sums.open = {level: pick(x) for level, x in sums.open.items()}

    # ------------------------------------------------------------------ checks and layout

    def _check(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
        shape, basis = tuple(query.shape), self._sums["key_basis"].basis
        expected = f"(B, {basis.num_heads}, T, {basis.head_dim}) with T >= 1, to go with key_basis"
        fits = len(shape) == 4 and shape[1::2] == (basis.num_heads, basis.head_dim) and shape[2] >= 1
        require(fits, "query.shape", shape, expected)
        require_tokens("query", query, shape[2:3])
        require_like("key", key, "query", query, shape[2])
        require_like("value", value, "query", query, shape[2])
        require_mask(mask, query)
        if self._rows is None:
            for name, sums in self._sums.items():
                for weight in sums.basis.parameters():
                    expected = f"weights on {query.device}, where query is"
                    require(weight.device == query.device, name, weight.device, expected)
        else:
            require_like("query", query, "the tokens before", self._rows[:, 0], shape[2])
        total = self.num_tokens + shape[2]
        for name, sums in self._sums.items():
            if not self.near_only and total > 2 * self.cell_size * 2**sums.num_levels:
                levels = Hierarchy((total,), self.cell_size, self.rank).num_levels
                require(False, f"{name}.num_levels", sums.num_levels, f"at least {levels} for {total} tokens")

    def _allocate(self, like: Tensor) -> None:
        batch, heads, _, dim = like.shape
        self._rows = like.new_zeros(batch, 2, heads, 2 * self.cell_size, dim)
        self._bias = like.new_full((batch, 2 * self.cell_size), -math.inf, dtype=sum_dtype(like))

    # ------------------------------------------------------------------ tokens

    def _write(self, rows: slice | Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
        keys, values = self._rows.unbind(1)
        keys[:, :, rows], values[:, :, rows] = key, value
        self._bias[:, rows] = 0.0 if mask is None else _bias_of(~mask, self._bias.dtype)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Outputs of tokens that lie in one cell, and so read the same far summaries; keeps their keys and values."""
        count, first = query.shape[2], self.num_tokens % (2 * self.cell_size)
        own = slice(first, first + count)
        self._write(own, key, value, mask)
        bias = self._bias[:, None, None]
        if count > 1:
            bias = bias.repeat(1, 1, count, 1)
            bias[..., own] += bias.new_full((count, count), -math.inf).triu(1)
        query, keys, values = (x.to(bias.dtype) for x in (query, *self._rows.unbind(1)))
        out = F.scaled_dot_product_attention(query, keys, values, bias, scale=self.scale)
        return out.to(key.dtype)

    def _end_cell(self) -> None:
        """Sums of the cells that end with the latest token, one of every level up to some."""
        m, ended = self.cell_size, self.num_tokens // self.cell_size
        first = (ended - 1) % 2 * m
        self._bias[:, m - first : 2 * m - first] = -math.inf  # the rows that the next cell is going to take
        if self.near_only:
            return
        exists = self._bias[:, first : first + m] == 0
        tokens = self._rows[:, :, :, first : first + m].to(self._bias.dtype)
        below = tokens.masked_fill(~exists[:, None, None, :, None], 0).unbind(1)
        for sums, x in zip(self._sums.values(), below, strict=True):
            sums.add_cell(x, (ended - 1) * m)
        count = exists.unflatten(1, (self.rank, -1)).sum(-1).to(self._bias.dtype)
        level = 1
        while level <= self._num_levels:
            ending = torch.stack([s.end_cell(level, x) for s, x in zip(self._sums.values(), below, strict=True)], 1)
            before = self._keep(level, ended, ending, count)
            if ended % 2:  # the parent goes on
                break
            below = torch.cat([before[0], ending], 3).unbind(1)
            count = _pair_sums(torch.cat([before[1], count], 1))
            level, ended = level + 1, ended // 2

    # ------------------------------------------------------------------ summaries

    def _keep(self, level: int, ended: int, sums: Tensor, count: Tensor) -> tuple[Tensor, Tensor] | None:
        """Keep the sums of the latest cell of a level; the one before, which is returned, can be read from now on.

        Args:
            level: the level.
            ended: number of its cells that have ended, this one included.
            sums: (B, 2, H, p, d).
            count: (B, p) tokens that exist in each sub-block.
        """
        if level > len(self._latest):
            self._latest.append((sums, count))
            return None
        before, self._latest[level - 1] = self._latest[level - 1], (sums, count)
        p, row = self.rank, 2 * self.cell_size + 2 * self.rank * (level - 1)
        if row == self._rows.shape[3]:
            self._rows = F.pad(self._rows, [0, 0, 0, 2 * p])
            self._bias = F.pad(self._bias, [0, 2 * p], value=-math.inf)
        # Cell I = ended is next. If it is even, it reads I - 2; if it is odd, I - 3, which is there already, and I - 2.
        if ended % 2:
            row += p
        else:
            self._bias[:, row + p : row + 2 * p] = -math.inf
        sums, count = before
        size = self.cell_size * 2 ** (level - 1) / p
        self._rows[:, :, :, row : row + p] = sums * (size / count.clamp(min=1))[:, None, None, :, None]
        self._bias[:, row : row + p] = count.log() if self.group_bias else _bias_of(count > 0, count.dtype)
        return before

    def _take_tokens(self, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
        """Fill the empty state with the latest tokens of a prompt."""
        self._allocate(key)
        n, m = key.shape[2], self.cell_size
        first = max(0, n // m - 1) * m
        rows = torch.arange(first, n, device=key.device) % (2 * m)
        self._write(rows, key[:, :, first:], value[:, :, first:], None if mask is None else mask[:, first:])
        self._num_tokens = n

    def _take_summaries(
        self, wide: list[Tensor], summaries: list[Tensor], hierarchy: Hierarchy, mask: Tensor | None
    ) -> None:
        """Fill the state from a prompt, its tokens in the dtype of sums, and its summaries in that dtype."""
        n, m, p = hierarchy.num_tokens, self.cell_size, self.rank
        ended = n // m
        if mask is not None:
            wide = [x.masked_fill(mask[:, None, :, None], 0) for x in wide]
        tokens = [x[:, :, : ended * m] for x in wide]
        for sums, x in zip(self._sums.values(), tokens, strict=True):
            sums.add_prompt(x)
        made = [x.split(hierarchy.level_sizes, 2) for x in summaries]
        exists = wide[0].new_ones(len(wide[0]), n, dtype=torch.bool) if mask is None else ~mask
        count = exists[:, : ended * m].unflatten(1, (-1, m // p)).sum(-1).to(self._bias.dtype)
        below = tokens
        for level in range(1, int(min(ended.bit_length(), self._num_levels)) + 1):
            cells = ended >> (level - 1)
            if level > 1:
                count = _pair_sums(count[:, : 2 * cells * p])
            if level <= hierarchy.num_levels:
                share = (count.clamp(min=1) * (p / hierarchy.cell_width(level)))[:, None, :, None]
                below = [x[level - 1][:, :, : cells * p] * share for x in made]
            else:
                sources = zip(self._sums.values(), tokens, below, strict=True)
                below = [s.of_cells(level, x if s.direct else y, cells) for s, x, y in sources]
            for cell in range(max(0, cells - 3), cells):  # what can be read, and the latest
                own = slice(cell * p, (cell + 1) * p)
                self._keep(level, cell + 1, torch.stack([x[:, :, own] for x in below], 1), count[:, own].clone())


def _pair_sums(count: Tensor) -> Tensor:
    """(B, 2n) to (B, n): tokens in the sub-blocks of parents from those of their children."""
    return count.unflatten(1, (-1, 2)).sum(-1)


def _bias_of(exists: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where there is something to read, else -inf."""
    return torch.zeros_like(exists, dtype=dtype).masked_fill_(~exists, -math.inf)
