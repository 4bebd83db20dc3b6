"""Learned summaries, which stand for the tokens of a far cell."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial, reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backends.selection import BACKENDS, choose
from .cells import pad_to
from .checks import refuse_jit_trace, require, require_finite, require_mask, require_tokens
from .hierarchy import Hierarchy
from .ops import contract, pool, summary_counts
from .precision import sum_dtype

KINDS = ("nested", "direct", "mean")


class SummaryBasis(nn.Module):
    """Weights that turn the tokens of a cell into its ``rank**ndim`` summaries (arXiv 2310.11960, section 3.2).

    The weights are separable per axis and separate per channel; all kinds start as the mean of each sub-block, times
    ``gain``.

    * ``nested``: level 1 from tokens, every further level from the summaries of the two children per axis. O(n) for
      all levels together, and the number of weights does not depend on the input: a level beyond those that were
      built reuses the last one.
    * ``direct``: every level from its tokens, as published. Needs ``num_levels`` of the largest grid in advance.
    * ``mean``: fixed means without parameters, at any number of levels.

    Weights of axis a (0 .. ndim-1) and level l (1, 2, ...) are the parameter ``axis{a}_level{l}``, with C =
    ``num_heads * head_dim`` channels (``head_dim`` with ``share_heads``):

    ============  ======================================  ====================
    kind          shape                                   levels built
    ============  ======================================  ====================
    ``nested``    (rank, cell_size, C) at level 1,        max(2, num_levels)
                  (rank, 2 * rank, C) above
    ``direct``    (rank, cell_size * 2**(l-1), C)         num_levels
    ============  ======================================  ====================

    With ``causal_queries`` the basis serves the queries of causal FMA-linear: a sub-block pools only the tokens that
    end at its first token, with taps (1, cell_size / rank, C) at level 1 and (1, 2, C) above (nested), or
    (1, cell_size * 2**(l-1) / rank, C) (direct).

    A ``nested`` basis loads a checkpoint of fewer levels: copies of its last level make the same function.

    Args:
        num_heads: number of attention heads H.
        head_dim: channels per head d.
        cell_size: side r of a level-1 cell in tokens.
        rank: summaries per cell and axis p; divides ``cell_size``.
        ndim: number of axes of the grid, 1 to 3.
        num_levels: levels to build weights for, at least 1.
        kind: ``"nested"``, ``"direct"`` or ``"mean"``.
        share_heads: share the weights over heads.
        causal_queries: pool the queries of causal FMA-linear; needs ``ndim=1``.
        gain: factor of the first summaries, 1 with ``mean``. With 0 a fresh basis makes zeros, and learns from there.

    Raises:
        ValueError: an argument is outside of what is stated above.

    Example:
        >>> basis = SummaryBasis(8, 64, cell_size=16, rank=2)
        >>> {name: tuple(weight.shape) for name, weight in basis.named_parameters()}
        {'axis0_level1': (2, 16, 512), 'axis0_level2': (2, 4, 512)}
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        cell_size: int,
        rank: int = 1,
        *,
        ndim: int = 1,
        num_levels: int = 1,
        kind: str = "nested",
        share_heads: bool = False,
        causal_queries: bool = False,
        gain: float = 1.0,
    ):
        super().__init__()
        for name, value in dict(num_heads=num_heads, head_dim=head_dim, num_levels=num_levels).items():
            require(isinstance(value, int) and value >= 1, name, value, "an integer >= 1")
        require(kind in KINDS, "kind", kind, f"one of {', '.join(KINDS)}")
        require(ndim in (1, 2, 3), "ndim", ndim, "1, 2 or 3")
        require(not causal_queries or ndim == 1, "causal_queries", causal_queries, f"False with ndim={ndim}")
        require_finite("gain", gain)
        require(gain == 1 or kind != "mean", "gain", gain, "1 with kind='mean'")
        Hierarchy((1,) * ndim, cell_size, rank)  # checks cell_size and rank
        self.num_heads, self.head_dim = num_heads, head_dim
        self.cell_size, self.rank, self.ndim = cell_size, rank, ndim
        self.kind, self.share_heads, self.causal_queries, self.gain = kind, share_heads, causal_queries, gain
        self.num_levels = 0 if kind == "mean" else num_levels if kind == "direct" else max(2, num_levels)
        for level in range(1, self.num_levels + 1):
            for axis in range(ndim):
                self.register_parameter(self._name(axis, level), nn.Parameter(torch.empty(self._shape(level))))
        self.reset_parameters()

    @staticmethod
    def _name(axis: int, level: int) -> str:
        return f"axis{axis}_level{level}"

    def _shape(self, level: int) -> tuple[int, int, int]:
        """(outputs, inputs, channels) of the weights that make one cell's summaries along one axis."""
        summaries, width = (1, self.cell_size // self.rank) if self.causal_queries else (self.rank, self.cell_size)
        if level > 1:
            width = width * 2 ** (level - 1) if self.kind == "direct" else 2 * summaries
        return summaries, width, self.head_dim * (1 if self.share_heads else self.num_heads)

    def reset_parameters(self) -> None:
        """Set every weight to that of the mean of its sub-block, and scale what reads tokens along axis 0.

        The other weights stay as they are: where all factors of a product are zero, none of them learns.
        """
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(_mean(parameter.shape[0], parameter.shape[1], like=parameter).expand_as(parameter))
                if name.startswith("axis0_") and (self.kind == "direct" or name == self._name(0, 1)):
                    parameter.mul_(self.gain)

    def weight(self, axis: int, level: int, like: Tensor | None = None) -> Tensor:
        """Weights that make ``level`` along ``axis``, by head: (H or 1, outputs, inputs, d).

        Args:
            axis: axis of the grid, from 0.
            level: 1 from tokens; above, from the level below (``direct``: from tokens).
            like: the weights of ``mean``, which have no place of their own, get its device and its dtype, but float32
                at least. The default is float32 on the CPU. Other kinds ignore it.
        """
        if self.kind == "mean":
            outputs, inputs, _ = self._shape(level)
            return _mean(outputs, inputs, like).expand(outputs, inputs, self.head_dim)[None]
        weight = getattr(self, self._name(axis, min(level, self.num_levels)))
        return weight.unflatten(-1, (-1, self.head_dim)).permute(2, 0, 1, 3)

    def contract(self, x: Tensor, axis: int, level: int) -> Tensor:
        """Make ``level`` along one axis of a grid ``(B, H, *grid, d)``, of which cells divide that axis.

        Args:
            x: what lies below, tokens or summaries.
            axis: axis of the grid, from 0.
            level: the level.

        Returns:
            The grid with the summaries on that axis, in float32 or better where the weights are.
        """
        if self.kind != "mean":
            return contract(x, self.weight(axis, level), axis)
        outputs, inputs, _ = self._shape(level)  # block by block: most of the weights would be zeros
        return x.to(sum_dtype(x)).unflatten(2 + axis, (-1, inputs // outputs)).mean(3 + axis)

    def unread(self, hierarchy: Hierarchy) -> Iterator[nn.Parameter]:
        """Parameters that :func:`aggregate` does not read on this geometry: those of levels that it does not have."""
        for level in range(hierarchy.num_levels + 1, self.num_levels + 1):
            for axis in range(self.ndim):
                yield getattr(self, self._name(axis, level))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        if self.kind == "nested":
            for level in range(3, self.num_levels + 1):
                for axis in range(self.ndim):
                    below = prefix + self._name(axis, level - 1)
                    if below in state_dict:
                        state_dict.setdefault(prefix + self._name(axis, level), state_dict[below])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return (
            f"num_heads={self.num_heads}, head_dim={self.head_dim}, cell_size={self.cell_size}, rank={self.rank}, "
            f"ndim={self.ndim}, num_levels={self.num_levels}, kind={self.kind!r}, share_heads={self.share_heads}, "
            f"causal_queries={self.causal_queries}, gain={self.gain}"
        )


def _mean(outputs: int, inputs: int, like: Tensor | None = None) -> Tensor:
    """Weights (outputs, inputs, 1) of the mean of each sub-block."""
    dtype, device = (torch.float32, None) if like is None else (sum_dtype(like), like.device)
    block = inputs // outputs
    return (torch.eye(outputs, dtype=dtype, device=device) / block).repeat_interleave(block, 1)[..., None]


def means(x: Tensor, hierarchy: Hierarchy) -> SummaryBasis:
    """The basis of means for tokens (B, H, N, d) of a grid."""
    heads, dim = x.shape[1], x.shape[3]
    return SummaryBasis(heads, dim, hierarchy.cell_size, hierarchy.rank, ndim=hierarchy.ndim, kind="mean")


def aggregate(
    x: Tensor,
    basis: SummaryBasis,
    hierarchy: Hierarchy,
    *,
    key_padding_mask: Tensor | None = None,
    queries: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Summaries of all levels (arXiv 2310.11960, section 3.2).

    Tokens that do not exist (beyond the grid or masked) count as zero, and a summary is multiplied by (size of its
    sub-block) / (tokens of it that exist), so a fresh basis gives their mean on any shape. The causal pooling of
    queries keeps its fixed divisor instead.

    Args:
        x: keys, values or queries, (B, H, N, d), floating point.
        basis: weights; same heads, head dimension, cell size, rank and number of axes.
        hierarchy: geometry of the N tokens.
        key_padding_mask: (B, N) bool, True = ignore the token.
        queries: make the query summaries of FMA-linear; on a causal hierarchy these look backwards only and need a
            basis with ``causal_queries=True``.
        backend: ``"triton"`` and ``"cpp"`` (fused kernels that read ``x`` once for all levels; no ``direct`` bases),
            ``"torch"`` (level by level, any device) or ``"auto"`` (the fastest that runs). ``"reference"`` is the same
            as ``"torch"``. All accumulate float16 and bfloat16 in float32 where the weights are in float32; the fused
            kernels always do.

    Returns:
        (B, H, S, d) with S = ``hierarchy.num_summaries``, finest level first, in the dtype of ``x``.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together, the basis belongs to another geometry, a
            ``direct`` basis has too few levels, or ``backend`` cannot do it.

    Example:
        >>> hierarchy = Hierarchy((1024,), cell_size=16, rank=2)
        >>> basis = SummaryBasis(8, 64, cell_size=16, rank=2)
        >>> aggregate(torch.randn(1, 8, 1024, 64), basis, hierarchy).shape  # 128 + 64 + 32 + 16 + 8 summaries
        torch.Size([1, 8, 248, 64])
    """
    refuse_jit_trace()
    require(isinstance(hierarchy, Hierarchy), "hierarchy", hierarchy, "a Hierarchy")
    require(isinstance(basis, SummaryBasis), "basis", basis, "a SummaryBasis")
    require_tokens("x", x, hierarchy.grid)
    check_basis(basis, x, hierarchy, queries)
    require_mask(key_padding_mask, x)
    require(backend in BACKENDS, "backend", backend, f"one of {', '.join(BACKENDS)}")
    direct = "every level of a direct basis has weights of its own for every token" if basis.kind == "direct" else None
    work = choose("aggregate", "torch" if backend == "reference" else backend, x, direct)
    if not hierarchy.num_levels:
        return x[:, :, :0]
    if work != "torch":
        weights = _cell_weights(basis, hierarchy, x)
        return pool(x, *weights, hierarchy, key_padding_mask, basis.causal_queries, backend=work)
    if key_padding_mask is not None:
        x = x.masked_fill(key_padding_mask[:, None, :, None], 0)
    return _aggregate_by_axis(x, basis, hierarchy, key_padding_mask)


def _aggregate_by_axis(x: Tensor, basis: SummaryBasis, hierarchy: Hierarchy, key_padding_mask: Tensor | None) -> Tensor:
    """Level by level, and in a level axis by axis."""
    tokens = pad_to(x.unflatten(2, hierarchy.grid), [n * hierarchy.cell_size for n in hierarchy.cell_grid(1)])
    sums = [_pool(tokens, basis, hierarchy, 1)]
    if basis.kind == "direct":
        for level in hierarchy.levels[1:]:
            tokens = pad_to(tokens, [n * hierarchy.cell_width(level) for n in hierarchy.cell_grid(level)])
            sums.append(_pool(tokens, basis, hierarchy, level))
    else:
        sums += sums_above(sums[0], basis, hierarchy)
    return summaries_of_sums(sums, basis, hierarchy, key_padding_mask).to(x.dtype)


def sums_above(lowest: Tensor, basis: SummaryBasis, hierarchy: Hierarchy) -> list[Tensor]:
    """Sums of the levels from 2 on, each of the sums of the level below; of bases other than ``direct``.

    Args:
        lowest: sums of level 1, (B, H, *summaries, d).
        basis: weights.
        hierarchy: geometry.

    Returns:
        (B, H, *summaries, d) for each level.
    """
    levels = [lowest]
    for level in hierarchy.levels[1:]:
        below = pad_to(levels[-1], [n * 2 * hierarchy.rank for n in hierarchy.cell_grid(level)])
        levels.append(_pool(below, basis, hierarchy, level))
    return levels[1:]


def summaries_of_sums(
    sums: list[Tensor], basis: SummaryBasis, hierarchy: Hierarchy, key_padding_mask: Tensor | None
) -> Tensor:
    """The summaries (B, H, S, d) of the sums of all levels, (B, H, *summaries, d) each.

    A sum is multiplied by (size of its sub-block) / (tokens of it that exist); the windows of causal queries are not.
    """
    levels = [level.flatten(2, -2) for level in sums]
    if not basis.causal_queries:
        counts = summary_counts(hierarchy, levels[0].device, key_padding_mask).to(levels[0].dtype)
        sizes = [(hierarchy.cell_width(level) // hierarchy.rank) ** hierarchy.ndim for level in hierarchy.levels]
        parts = zip(levels, sizes, counts.split(hierarchy.level_sizes, dim=1), strict=True)
        levels = [level * (size / count.clamp(min=1))[:, None, :, None] for level, size, count in parts]
    return torch.cat(levels, dim=2)


def _pool(x: Tensor, basis: SummaryBasis, hierarchy: Hierarchy, level: int) -> Tensor:
    """One level's summaries (B, H, *summaries, d) from a padded grid (B, H, *grid, d) of what lies below."""
    if basis.causal_queries:
        # A window of w entries that ends at the first entry of its block is a block of the input delayed by w - 1.
        delay = x.shape[2] // hierarchy.summary_grid(level)[0] - 1
        x = F.pad(x, [0, 0, delay, -delay])
    for axis in reversed(range(hierarchy.ndim)):  # the last axis first: it reads the tokens in memory order
        x = basis.contract(x, axis, level)
    return x


def cell_weights(
    x: Tensor, basis: SummaryBasis, hierarchy: Hierarchy, queries: bool = False
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Weights of whole cells, the products of those of the axes, as :func:`fma_kernels.ops.pool` takes them.

    Args:
        x, basis, hierarchy, queries: as in :func:`aggregate`.

    Raises:
        ValueError: the basis belongs to another geometry.
    """
    check_basis(basis, x, hierarchy, queries)
    return _cell_weights(basis, hierarchy, x)


def _cell_weights(basis: SummaryBasis, hierarchy: Hierarchy, like: Tensor) -> tuple[Tensor, Tensor]:
    # One level above the first is needed even where it makes nothing.
    above = range(2, max(2, min(hierarchy.num_levels, basis.num_levels)) + 1)
    lowest = [basis.weight(axis, 1, like) for axis in range(basis.ndim)]
    higher = [torch.stack([basis.weight(axis, level, like) for level in above]) for axis in range(basis.ndim)]
    higher = [weight.unflatten(-2, (2, -1)) for weight in higher]  # inputs by child
    weight = reduce(partial(_combine, kinds=2), lowest)
    upper = reduce(partial(_combine, kinds=3), higher).flatten(-3, -2)
    dtype = sum_dtype(like)
    return weight.to(dtype), (upper if hierarchy.num_levels > 1 else upper.detach()).to(dtype)


def _combine(a: Tensor, b: Tensor, kinds: int) -> Tensor:
    """All products of numbers of ``a`` (..., m_1, m_2, ..., d) and ``b`` (..., n_1, n_2, ..., d).

    Returns:
        (..., m_1 * n_1, m_2 * n_2, ..., d) with ``kinds`` such dimensions, ``a`` the slower in each.
    """
    lead, dim, first = a.shape[: -kinds - 1], a.shape[-1], -kinds - 1
    a_sizes, b_sizes = a.shape[first:-1], b.shape[first:-1]
    a = a.reshape(*lead, *(size for n in a_sizes for size in (n, 1)), dim)
    b = b.reshape(*lead, *(size for n in b_sizes for size in (1, n)), dim)
    return (a * b).reshape(*lead, *(m * n for m, n in zip(a_sizes, b_sizes, strict=True)), dim)


def check_basis(basis: SummaryBasis, x: Tensor, hierarchy: Hierarchy, queries: bool) -> None:
    for name in ("cell_size", "rank", "ndim"):
        expected = getattr(hierarchy, name)
        require(getattr(basis, name) == expected, f"basis.{name}", getattr(basis, name), f"{expected}, the hierarchy's")
    for name, expected in dict(num_heads=x.shape[1], head_dim=x.shape[3]).items():
        require(getattr(basis, name) == expected, f"basis.{name}", getattr(basis, name), f"{expected}, as x has")
    require(
        basis.causal_queries == (queries and hierarchy.causal),
        "basis.causal_queries",
        basis.causal_queries,
        f"{queries and hierarchy.causal} with queries={queries} and causal={hierarchy.causal}",
    )
    if basis.kind == "direct":
        levels = hierarchy.num_levels
        require(basis.num_levels >= levels, "basis.num_levels", basis.num_levels, f"at least {levels} for {hierarchy}")
    for parameter in basis.parameters():
        require(parameter.device == x.device, "basis", parameter.device, f"weights on {x.device}, where x is")
