"""Self-attention as modules: attention over heads with its summary bases, and the same between projections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from .backends.selection import BACKENDS
from .checks import refuse_jit_trace, require, require_finite, require_num_global_tokens
from .decoding import DecodingState, KeyValueCache
from .functional import fma
from .hierarchy import Hierarchy
from .packing import resolve_grids
from .summaries import SummaryBasis

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

#: The attentions of the modules by name: all tokens, the near field alone, FMA, FMA with summarised queries, and none.
ATTENTIONS = ("full", "near", "fma", "fma_linear", "none")


class CoreAttention(nn.Module):
    """Attention over heads, without projections: summary bases, and :func:`fma` with them.

    ``attention`` chooses among FMA and its controls, which differ in what a query reads and in nothing else:

    ==============  ==============================================================  ==================
    name            a query reads                                                   parameters
    ==============  ==============================================================  ==================
    ``full``        all tokens, by ``torch.nn.functional.scaled_dot_product_        none
                    attention``
    ``near``        the tokens of its own and the touching cells                    none
    ``fma``         these, and summaries of all other cells                         key, value bases
    ``fma_linear``  the same; summaries of queries read the summaries               and a query basis
    ``none``        itself alone: the output is its value                           none
    ==============  ==============================================================  ==================

    Args:
        num_heads: attention heads H.
        head_dim: channels per head d.

    The other arguments, and the errors, are those of :class:`FMAttention`.

    Example:
        >>> attention = CoreAttention(8, 64, cell_size=8, rank=2, ndim=2)
        >>> query, key, value = torch.randn(3, 1, 8, 32 * 48, 64)
        >>> attention(query, key, value, grid=(32, 48)).shape
        torch.Size([1, 8, 1536, 64])
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        *,
        cell_size: int,
        rank: int = 1,
        ndim: int = 1,
        causal: bool = False,
        attention: str = "fma",
        basis_kind: str = "nested",
        num_levels: int = 1,
        share_heads: bool = False,
        scale: float | None = None,
        group_bias: bool = True,
        value_gain: float = 0.0,
        num_global_tokens: int = 0,
        backend: str = "auto",
    ):
        super().__init__()
        require(attention in ATTENTIONS, "attention", attention, f"one of {', '.join(ATTENTIONS)}")
        require(backend in BACKENDS, "backend", backend, f"one of {', '.join(BACKENDS)}")
        require(not (causal and ndim > 1), "causal", causal, f"False with ndim={ndim}")
        require_num_global_tokens(num_global_tokens, causal)
        self.num_heads, self.head_dim = num_heads, head_dim
        self.cell_size, self.rank, self.ndim, self.causal = cell_size, rank, ndim, causal
        self.attention, self.basis_kind = attention, basis_kind
        self.scale, self.group_bias, self.backend = scale, group_bias, backend
        self.num_global_tokens = num_global_tokens
        self.group: ProcessGroup | None = None
        self.check_ranks = True

        def basis(**options: Any) -> SummaryBasis:
            return SummaryBasis(
                num_heads, head_dim, cell_size, rank, ndim=ndim, num_levels=num_levels, kind=basis_kind,
                share_heads=share_heads, **options,
            )  # fmt: skip

        require_finite("value_gain", value_gain)
        basis()  # checks the other arguments, of controls too
        summarised = attention in ("fma", "fma_linear")
        gain = 1.0 if basis_kind == "mean" else value_gain
        self.key_basis, self.value_basis = (basis(), basis(gain=gain)) if summarised else (None, None)
        self.query_basis = basis(causal_queries=causal) if attention == "fma_linear" else None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        grid: Sequence[int] | None = None,
        *,
        cu_seqlens: Tensor | Sequence[int] | None = None,
        grids: Sequence[int | Sequence[int]] | None = None,
        key_padding_mask: Tensor | None = None,
        dropout_p: float = 0.0,
    ) -> Tensor:
        """Make the summaries, and attend.

        Args:
            query, key, value: (B, H, G + N, d), the G global tokens first.
            grid: tokens per axis, ``ndim`` numbers whose product is N; None for a sequence of N tokens.
            cu_seqlens, grids: several sequences, images or volumes in one row, as in :func:`fma`.
            key_padding_mask: (B, N) bool, True = ignore the token; global tokens are never ignored.
            dropout_p: probability to drop an attention weight, 0 <= p < 1.

        Returns:
            (B, H, G + N, d).

        Raises:
            ValueError: the shapes do not fit together.
        """
        if self.group is not None:
            return self._over_ranks(
                query, key, value, grid=grid, packed=cu_seqlens is not None or grids is not None,
                key_padding_mask=key_padding_mask, dropout_p=dropout_p,
            )  # fmt: skip
        if cu_seqlens is None and grids is None:
            grid = self.resolve_grid(query.shape[-2], grid)
            shapes: Sequence[tuple[int, ...]] = [grid]
            places: dict[str, Any] = dict(grid=grid)
        else:
            require(grid is None, "grid", grid, "None with cu_seqlens or grids")
            shapes = resolve_grids(query.shape[-2], cu_seqlens, grids)
            require(len(shapes[0]) == self.ndim, "grids", shapes, f"{self.ndim} axes")
            places = dict(grids=shapes)
        if self.attention == "none":
            return value
        cells: dict[str, Any] = dict(cell_size=self.cell_size, rank=self.rank, backend=self.backend)
        if self.attention == "full":  # one cell holds all tokens: PyTorch's own attention
            cells = dict(cell_size=max(map(max, shapes)), backend="torch")
        out = fma(
            query, key, value, **places, causal=self.causal, key_basis=self.key_basis, value_basis=self.value_basis,
            query_basis=self.query_basis, scale=self.scale, group_bias=self.group_bias,
            near_only=self.attention in ("full", "near"), key_padding_mask=key_padding_mask,
            num_global_tokens=self.num_global_tokens, dropout_p=dropout_p, **cells,
        )  # fmt: skip
        hierarchies = [Hierarchy(shape, self.cell_size, self.rank, causal=self.causal) for shape in shapes]
        return self._with_unread(cast(Tensor, out), max(hierarchies, key=lambda hierarchy: hierarchy.num_levels))

    def _over_ranks(self, query: Tensor, key: Tensor, value: Tensor, **arguments: Any) -> Tensor:
        """:meth:`forward` of the tokens of this rank among those of all ranks of the group."""
        from .distributed.attention import Call, attend

        if self.attention == "none":
            return value
        call = Call(
            query=query, key=key, value=value, cell_size=self.cell_size, rank=self.rank, ndim=self.ndim,
            causal=self.causal, key_basis=self.key_basis, value_basis=self.value_basis, query_basis=self.query_basis,
            scale=self.scale, group_bias=self.group_bias, near_only=self.attention == "near", backend=self.backend,
            **arguments,
        )  # fmt: skip
        out, _, hierarchy = attend(call, self.group, check=self.check_ranks)
        return self._with_unread(out, hierarchy)

    def _with_unread(self, out: Tensor, hierarchy: Hierarchy) -> Tensor:
        if not torch.is_grad_enabled():
            return out
        unread = [parameter for basis in self._bases() for parameter in basis.unread(hierarchy)]
        return _WithUnread.apply(out, *unread) if unread else out

    def context_parallel(self, group: ProcessGroup, *, check: bool = True) -> None:
        """Split the tokens over ranks from now on; see :class:`fma_kernels.distributed.FMAContextParallel`.

        Args:
            group: the ranks. With a single one nothing changes.
            check: compare the arguments of all ranks at every call.
        """
        self.group, self.check_ranks = (group, check) if group.size() > 1 else (None, True)

    def resolve_grid(self, length: int, grid: Sequence[int] | None) -> tuple[int, ...]:
        """The grid of ``length`` tokens, global ones included: the given one, or that of a sequence.

        Args:
            length: G + N.
            grid: tokens per axis, or None.

        Raises:
            ValueError: there is no grid and ``ndim`` is not 1, or the grid has another number of axes.
        """
        if grid is None:
            require(self.ndim == 1, "grid", None, f"{self.ndim} axes")
            return (length - self.num_global_tokens,)
        require(len(grid) == self.ndim, "grid", tuple(grid), f"{self.ndim} axes")
        return tuple(grid)

    def decoding_state(self) -> DecodingState | KeyValueCache:
        """An empty state with which this attention decodes token by token; one per layer and generation.

        Raises:
            ValueError: the attention is not causal, or it summarises queries.
        """
        require(self.causal, "causal", self.causal, "True, to decode")
        expected = "another to decode: its query summaries belong to whole sub-blocks"
        require(self.attention != "fma_linear", "attention", self.attention, expected)
        require(self.attention != "none", "attention", self.attention, "another to decode: it reads no other token")
        if self.attention == "full":
            return KeyValueCache(scale=self.scale)
        if self.attention == "near":
            means = SummaryBasis(self.num_heads, self.head_dim, self.cell_size, self.rank, kind="mean")
            return DecodingState(means, means, near_only=True, scale=self.scale, backend=self.backend)
        return DecodingState(
            self.key_basis, self.value_basis, group_bias=self.group_bias, scale=self.scale, backend=self.backend
        )

    def extra_repr(self) -> str:
        return (
            f"num_heads={self.num_heads}, head_dim={self.head_dim}, cell_size={self.cell_size}, rank={self.rank}, "
            f"ndim={self.ndim}, causal={self.causal}, attention={self.attention!r}"
        )

    def _bases(self) -> list[SummaryBasis]:
        return [basis for basis in (self.key_basis, self.value_basis, self.query_basis) if basis is not None]


class _WithUnread(torch.autograd.Function):
    """The output as it is; parameters that it was made without get gradients of zeros.

    Distributed training expects a gradient for every parameter, also for the weights of levels that a grid has not.
    """

    @staticmethod
    def forward(out: Tensor, *unread: Tensor) -> Tensor:
        return out.view_as(out)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:
        return grad, *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)


class FMAttention(nn.Module):
    """Multi-head self-attention by Fast Multipole Attention (arXiv 2310.11960).

    A drop-in for multi-head self-attention over a sequence (``ndim=1``), an image (2) or a volume (3). Where the grid
    has at most two cells per axis it is full attention, exactly. It has a projection ``qkv``, a :class:`CoreAttention`
    under the name ``attention``, and a projection ``proj``.

    Args:
        embed_dims: channels C of the tokens; a multiple of ``num_heads``.
        num_heads: attention heads H.
        cell_size: side of a level-1 cell in tokens.
        rank: summaries per cell and axis; divides ``cell_size``.
        ndim: axes of the grid.
        causal: a token reads no later token (``ndim=1``).
        attention: ``"fma"``; ``"fma_linear"``, which summarises the queries as well, O(N); or a control that has
            neither summaries nor their weights: ``"near"`` reads the near field alone, ``"full"`` reads all tokens,
            and with ``"none"`` a token reads itself alone.
        basis_kind: how summaries are made, ``"nested"``, ``"direct"`` or ``"mean"``; see :class:`SummaryBasis`.
        num_levels: levels to build weights for. ``nested`` bases reuse the last one beyond; ``direct`` ones need all.
        share_heads: share the summary weights over heads.
        qkv_bias: give the query, key and value projections a bias.
        scale: factor of the products; default 1 / sqrt(C / H).
        group_bias: add the logarithm of the number of tokens behind a summary to its logit.
        value_gain: factor of the means that learned value summaries start as. With 0 the far field adds nothing until
            its values are learned, with which models learn sooner (docs/far_field.md). 1 is the start of the paper, and
            the one for projections that were trained with another attention. No effect with ``"mean"``.
        num_global_tokens: leading tokens, such as a class token, that have no place in the grid: they read every token
            one by one, and every token reads them. 0 with ``causal``.
        attn_drop: dropout of attention weights.
        proj_drop: dropout of the output.
        backend: see :func:`fma_attention`.

    Raises:
        ValueError: an argument is outside of what is stated above.

    Example:
        >>> layer = FMAttention(512, 8, cell_size=64, rank=4, causal=True)
        >>> layer(torch.rand(2, 4096, 512)).shape
        torch.Size([2, 4096, 512])
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        *,
        cell_size: int,
        rank: int = 1,
        ndim: int = 1,
        causal: bool = False,
        attention: str = "fma",
        basis_kind: str = "nested",
        num_levels: int = 1,
        share_heads: bool = False,
        qkv_bias: bool = True,
        scale: float | None = None,
        group_bias: bool = True,
        value_gain: float = 0.0,
        num_global_tokens: int = 0,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        backend: str = "auto",
    ):
        require(isinstance(num_heads, int) and num_heads >= 1, "num_heads", num_heads, "an integer >= 1")
        require(embed_dims % num_heads == 0, "embed_dims", embed_dims, f"a multiple of num_heads={num_heads}")
        require(0 <= attn_drop < 1, "attn_drop", attn_drop, "a probability, 0 <= p < 1")
        super().__init__()
        self.embed_dims, self.attn_drop = embed_dims, attn_drop
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims, bias=qkv_bias)
        self.attention = CoreAttention(
            num_heads, embed_dims // num_heads, cell_size=cell_size, rank=rank, ndim=ndim, causal=causal,
            attention=attention, basis_kind=basis_kind, num_levels=num_levels, share_heads=share_heads, scale=scale,
            group_bias=group_bias, value_gain=value_gain, num_global_tokens=num_global_tokens, backend=backend,
        )  # fmt: skip
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self,
        x: Tensor,
        grid: Sequence[int] | None = None,
        key_padding_mask: Tensor | None = None,
        *,
        cu_seqlens: Tensor | Sequence[int] | None = None,
        grids: Sequence[int | Sequence[int]] | None = None,
    ) -> Tensor:
        """Attend over a grid of tokens.

        Args:
            x: (B, G + N, C) tokens: the G global ones, then those of the grid, row-major.
            grid: tokens per axis, ``ndim`` numbers whose product is N; None for a sequence of N tokens.
            key_padding_mask: (B, N) bool, True = ignore the token; global tokens are never ignored.
            cu_seqlens, grids: several sequences, images or volumes in one row, none of which reads another, as in
                :func:`fma`: (1, N, C) tokens, without global ones.

        Returns:
            (B, G + N, C) in the dtype of the projections.

        Raises:
            ValueError: the shapes do not fit together.
        """
        refuse_jit_trace()
        require(x.ndim == 3, "x.shape", tuple(x.shape), "three dimensions (B, N, C)")
        if cu_seqlens is None and grids is None and self.attention.group is None:
            grid, count = self.attention.resolve_grid(x.shape[1], grid), self.attention.num_global_tokens
            plus = f" and {count} global ones" if count else ""
            expected = f"the {math.prod(grid)} tokens of {grid}{plus}"
            require(x.shape[1] == count + math.prod(grid), "x.shape", tuple(x.shape), expected)
        out = self.attention(
            *self._project(x), grid, cu_seqlens=cu_seqlens, grids=grids, key_padding_mask=key_padding_mask,
            dropout_p=self.attn_drop if self.training else 0.0,
        )  # fmt: skip
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))

    def decoding_state(self) -> DecodingState | KeyValueCache:
        """An empty state for :meth:`decode`; one per layer and generation.

        Raises:
            ValueError: the attention is not causal, or it summarises queries.
        """
        return self.attention.decoding_state()

    @torch.no_grad()
    def decode(
        self, x: Tensor, state: DecodingState | KeyValueCache, key_padding_mask: Tensor | None = None
    ) -> Tensor:  # fmt: skip
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
        out = state.take(*self._project(x), key_padding_mask)
        return self.proj(out.transpose(1, 2).flatten(2))

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens, (B, H, tokens, d) each."""
        require(x.shape[2] == self.embed_dims, "x.shape", tuple(x.shape), f"{self.embed_dims} channels")
        heads = (self.attention.num_heads, self.attention.head_dim)
        parts = (part.transpose(1, 2) for part in self.qkv(x).unflatten(-1, (3, *heads)).unbind(2))
        # The fused kernels read any strides; on a CPU, rows of a head that lie together are read faster, several times.
        return tuple(part.contiguous() if part.device.type == "cpu" else part for part in parts)
