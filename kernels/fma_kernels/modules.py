"""Self-attention as a module: projections, summaries, attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .backends.selection import BACKENDS
from .checks import require
from .decoding import DecodingState
from .functional import fma_attention, fma_linear_attention
from .hierarchy import Hierarchy
from .summaries import SummaryBasis, aggregate


class CoreAttention(nn.Module):
    """What a module of Fast Multipole Attention has between its projections: summary bases, and attention over heads.

    Args:
        num_heads: attention heads H.
        head_dim: channels per head d.

    The other arguments, and the errors, are those of :class:`FMAttention`.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        cell_size: int,
        rank: int = 1,
        ndim: int = 1,
        causal: bool = False,
        aggregation: str = "nested",
        query_summaries: bool = False,
        *,
        num_levels: int = 1,
        share_heads: bool = False,
        qk_scale: float | None = None,
        group_bias: bool = True,
        num_global_tokens: int = 0,
        backend: str = "auto",
    ):
        super().__init__()
        require(backend in BACKENDS, "backend", backend, f"one of {', '.join(BACKENDS)}")
        require(not (causal and ndim > 1), "causal", causal, f"False with ndim={ndim}")
        count = num_global_tokens
        require(isinstance(count, int) and count >= 0, "num_global_tokens", count, "an integer >= 0")
        require(not (causal and count), "num_global_tokens", count, "0 with causal=True")
        self.num_heads, self.head_dim = num_heads, head_dim
        self.cell_size, self.rank, self.ndim, self.causal = cell_size, rank, ndim, causal
        self.qk_scale, self.group_bias, self.backend = qk_scale, group_bias, backend
        self.num_global_tokens = num_global_tokens

        def basis(causal_queries: bool = False) -> SummaryBasis:
            return SummaryBasis(
                num_heads, head_dim, cell_size, rank, ndim=ndim, num_levels=num_levels, kind=aggregation,
                share_heads=share_heads, causal_queries=causal_queries,
            )  # fmt: skip

        self.key_basis, self.value_basis = basis(), basis()
        self.query_basis = basis(causal_queries=causal) if query_summaries else None

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        grid: Sequence[int],
        key_padding_mask: Tensor | None = None,
        dropout_p: float = 0.0,
    ) -> Tensor:
        """Summarise, and attend.

        Args:
            query, key, value: (B, H, G + N, d), the G global tokens first.
            grid: tokens per axis, ``ndim`` numbers whose product is N.
            key_padding_mask: (B, N) bool, True = ignore the token; global tokens are never ignored.
            dropout_p: probability to drop an attention weight.

        Returns:
            (B, H, G + N, d).

        Raises:
            ValueError: the shapes do not fit together.
        """
        hierarchy = Hierarchy(tuple(grid), self.cell_size, self.rank, self.causal)
        q, k, v = (x[:, :, self.num_global_tokens :] for x in (query, key, value))
        # Direct bases have no fused kernel; who asks for the fused attention still has it.
        options = dict(backend="torch" if self.key_basis.kind == "direct" else self.backend)
        summaries = [
            aggregate(k, self.key_basis, hierarchy, key_padding_mask, **options),
            aggregate(v, self.value_basis, hierarchy, key_padding_mask, **options),
        ]
        attention = fma_attention
        if self.query_basis is not None:
            summaries.insert(0, aggregate(q, self.query_basis, hierarchy, key_padding_mask, queries=True, **options))
            attention = fma_linear_attention
        out = attention(
            query, key, value, *summaries, hierarchy, scale=self.qk_scale, group_bias=self.group_bias,
            key_padding_mask=key_padding_mask, num_global_tokens=self.num_global_tokens, dropout_p=dropout_p,
            backend=self.backend,
        )  # fmt: skip
        # Distributed training expects a gradient for every parameter, also for the weights of levels that this grid
        # does not have.
        unread = self._unread_weights(hierarchy) if torch.is_grad_enabled() else []
        return out + sum(0 * parameter.sum() for parameter in unread) if unread else out

    def decoding_state(self) -> DecodingState:
        """An empty state with which this attention decodes token by token; one per layer and generation.

        Raises:
            ValueError: the attention is not causal, or it summarises queries.
        """
        require(self.causal, "causal", self.causal, "True, to decode")
        require(self.query_basis is None, "query_summaries", True, "False, to decode")
        return DecodingState(
            self.key_basis, self.value_basis, group_bias=self.group_bias, scale=self.qk_scale, backend=self.backend
        )

    def _bases(self) -> dict[str, SummaryBasis]:
        return {name: module for name, module in self.named_children() if isinstance(module, SummaryBasis)}

    def _unread_weights(self, hierarchy: Hierarchy) -> list[nn.Parameter]:
        return [parameter for basis in self._bases().values() for parameter in basis.unread(hierarchy)]

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args):
        # A checkpoint made for smaller grids may have fewer levels. Its last one served all beyond, so copies of that
        # make the same function.
        for name, basis in self._bases().items():
            if basis.kind == "nested":
                for axis in range(basis.ndim):
                    for level in range(3, basis.num_levels + 1):
                        key = f"{prefix}{name}.axis{axis}_level{level}"
                        below = f"{prefix}{name}.axis{axis}_level{level - 1}"
                        if key not in state_dict and below in state_dict:
                            state_dict[key] = state_dict[below]
        super()._load_from_state_dict(state_dict, prefix, *args)


class FMAttention(CoreAttention):
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
        num_global_tokens: leading tokens, such as a class token, that have no place in the grid: they read every token
            one by one, and every token reads them. 0 with ``causal``.
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
        num_global_tokens: int = 0,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        backend: str = "auto",
    ):
        require(isinstance(num_heads, int) and num_heads >= 1, "num_heads", num_heads, "an integer >= 1")
        require(embed_dims % num_heads == 0, "embed_dims", embed_dims, f"a multiple of num_heads={num_heads}")
        require(0 <= attn_drop < 1, "attn_drop", attn_drop, "a probability, 0 <= p < 1")
        super().__init__(
            num_heads, embed_dims // num_heads, cell_size, rank, ndim, causal, aggregation, query_summaries,
            num_levels=num_levels, share_heads=share_heads, qk_scale=qk_scale, group_bias=group_bias,
            num_global_tokens=num_global_tokens, backend=backend,
        )  # fmt: skip
        self.embed_dims, self.attn_drop = embed_dims, attn_drop
        # In front of the bases: optimizers number the parameters in this order, and so do checkpoints.
        self._modules = {"qkv": nn.Linear(embed_dims, 3 * embed_dims, bias=qkv_bias), **self._modules}
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, grid: Sequence[int], key_padding_mask: Tensor | None = None) -> Tensor:
        """Attend over a grid of tokens.

        Args:
            x: (B, G + N, C) tokens: the G global ones, then those of the grid, row-major.
            grid: tokens per axis, ``ndim`` numbers whose product is N.
            key_padding_mask: (B, N) bool, True = ignore the token; global tokens are never ignored.

        Returns:
            (B, G + N, C) in the dtype of the projections.

        Raises:
            ValueError: the shapes do not fit together.
        """
        require(len(grid) == self.ndim, "grid", tuple(grid), f"{self.ndim} axes")
        require(x.ndim == 3, "x.shape", tuple(x.shape), "three dimensions (B, N, C)")
        length = self.num_global_tokens + math.prod(grid)
        plus = f" and {self.num_global_tokens} global ones" if self.num_global_tokens else ""
        expected = f"the {math.prod(grid)} tokens of {tuple(grid)}{plus}"
        require(x.shape[1] == length, "x.shape", tuple(x.shape), expected)
        out = self.attend(*self._project(x), grid, key_padding_mask, self.attn_drop if self.training else 0.0)
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))

    @torch.no_grad()
    def decode(self, x: Tensor, state: DecodingState, key_padding_mask: Tensor | None = None) -> Tensor:
        """The outputs of :meth:`forward` for the next tokens of a sequence, without dropout and gradients.

        Args:
            x: (B, T, C) the prompt, or the tokens that follow those that ``state`` has.
            state: from :meth:`decoding_state`; takes the tokens.
            key_padding_mask: (B, T) bool, True = ignore the token.

        Returns:
            (B, T, C) in the dtype of the projections.

        Raises:
            ValueError: the shapes do not fit together.
        """
        require(x.ndim == 3, "x.shape", tuple(x.shape), "three dimensions (B, T, C)")
        take = state.step if state.num_tokens else state.prefill
        out = take(*self._project(x), key_padding_mask)
        return self.proj(out.transpose(1, 2).flatten(2))

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens, (B, H, tokens, d) each."""
        require(x.shape[2] == self.embed_dims, "x.shape", tuple(x.shape), f"{self.embed_dims} channels")
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))
        parts = (part.transpose(1, 2) for part in qkv.unbind(2))
        # The fused kernels read any strides; on a CPU, rows of a head that lie together are read faster, several times.
        return tuple(part.contiguous() if part.device.type == "cpu" else part for part in parts)
