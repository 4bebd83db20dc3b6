"""Self-attention as a module: projections, summaries, attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .checks import require
from .functional import BACKENDS, fma_attention, fma_linear_attention
from .hierarchy import Hierarchy
from .summaries import SummaryBasis, aggregate


class FMAttention(nn.Module):
    """Multi-head self-attention by Fast Multipole Attention (arXiv 2310.11960).

    A drop-in for multi-head self-attention over a sequence (``ndim=1``), an image (2) or a volume (3). Where the grid
    has at most two cells per axis it is full attention, exactly.

    Args:
        embed_dims: channels C of the tokens; a multiple of ``num_heads``.
        num_heads: attention heads H.
        cell_size: side of a level-1 cell in tokens.
        rank: summaries per cell and axis; divides ``cell_size``.
        ndim: axes of the grid.
        causal: a token reads no later token (``ndim=1``).
        aggregation: how summaries are made, ``"nested"``, ``"direct"`` or ``"mean"``; see :class:`SummaryBasis`.
        query_summaries: summarise the queries as well: FMA-linear, O(N).
        num_levels: levels to build weights for. ``nested`` bases reuse the last one beyond; ``direct`` ones need all.
        share_heads: share the summary weights over heads.
        qkv_bias: give the query, key and value projections a bias.
        qk_scale: factor of the products; default 1 / sqrt(C / H).
        group_bias: add the logarithm of the number of tokens behind a summary to its logit.
        attn_drop: dropout of attention weights.
        proj_drop: dropout of the output.
        backend: see :func:`fma_attention`.

    Raises:
        ValueError: an argument is outside of what is stated above.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        cell_size: int,
        rank: int = 1,
        ndim: int = 1,
        causal: bool = False,
        aggregation: str = "nested",
        query_summaries: bool = False,
        *,
        num_levels: int = 1,
        share_heads: bool = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        group_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        backend: str = "auto",
    ):
        super().__init__()
        require(isinstance(num_heads, int) and num_heads >= 1, "num_heads", num_heads, "an integer >= 1")
        require(embed_dims % num_heads == 0, "embed_dims", embed_dims, f"a multiple of num_heads={num_heads}")
        require(0 <= attn_drop < 1, "attn_drop", attn_drop, "a probability, 0 <= p < 1")
        require(backend in BACKENDS, "backend", backend, f"one of {', '.join(BACKENDS)}")
        require(not (causal and ndim > 1), "causal", causal, f"False with ndim={ndim}")
        self.embed_dims, self.num_heads, self.head_dim = embed_dims, num_heads, embed_dims // num_heads
        self.cell_size, self.rank, self.ndim, self.causal = cell_size, rank, ndim, causal
        self.qk_scale, self.group_bias, self.attn_drop, self.backend = qk_scale, group_bias, attn_drop, backend

        def basis(causal_queries: bool = False) -> SummaryBasis:
            return SummaryBasis(
                num_heads, self.head_dim, cell_size, rank, ndim=ndim, num_levels=num_levels, kind=aggregation,
                share_heads=share_heads, causal_queries=causal_queries,
            )  # fmt: skip

        self.qkv = nn.Linear(embed_dims, 3 * embed_dims, bias=qkv_bias)
        self.key_basis, self.value_basis = basis(), basis()
        self.query_basis = basis(causal_queries=causal) if query_summaries else None
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, grid: Sequence[int], key_padding_mask: Tensor | None = None) -> Tensor:
        """Attend over a grid of tokens.

        Args:
            x: (B, N, C) tokens, row-major.
            grid: tokens per axis, ``ndim`` numbers whose product is N.
            key_padding_mask: (B, N) bool, True = ignore the token.

        Returns:
            (B, N, C) in the dtype of the projections.

        Raises:
            ValueError: the shapes do not fit together.
        """
        require(len(grid) == self.ndim, "grid", tuple(grid), f"{self.ndim} axes")
        hierarchy = Hierarchy(tuple(grid), self.cell_size, self.rank, self.causal)
        require(x.ndim == 3, "x.shape", tuple(x.shape), "three dimensions (B, N, C)")
        require(
            x.shape[1] == hierarchy.num_tokens,
            "x.shape",
            tuple(x.shape),
            f"the {hierarchy.num_tokens} tokens of {grid}",
        )
        require(x.shape[2] == self.embed_dims, "x.shape", tuple(x.shape), f"{self.embed_dims} channels")
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, N, d) each

        summaries = [
            aggregate(k, self.key_basis, hierarchy, key_padding_mask),
            aggregate(v, self.value_basis, hierarchy, key_padding_mask),
        ]
        attention = fma_attention
        if self.query_basis is not None:
            summaries.insert(0, aggregate(q, self.query_basis, hierarchy, key_padding_mask, queries=True))
            attention = fma_linear_attention
        out = attention(
            q, k, v, *summaries, hierarchy, scale=self.qk_scale, group_bias=self.group_bias,
            key_padding_mask=key_padding_mask, dropout_p=self.attn_drop if self.training else 0.0, backend=self.backend,
        )  # fmt: skip
        out = self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))
        # Distributed training expects a gradient for every parameter, also for the weights of levels that this grid
        # does not have.
        unread = self._unread_weights(hierarchy) if torch.is_grad_enabled() else []
        return out + sum(0 * parameter.sum() for parameter in unread) if unread else out

    def _unread_weights(self, hierarchy: Hierarchy) -> list[nn.Parameter]:
        bases = (self.key_basis, self.value_basis, self.query_basis)
        return [parameter for basis in bases if basis is not None for parameter in basis.unread(hierarchy)]
