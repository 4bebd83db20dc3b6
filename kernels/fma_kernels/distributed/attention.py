"""Fast Multipole Attention over a grid that is split over the ranks of a process group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from .. import ops
from ..checks import require
from ..functional import check_beside, choose_backend, in_autocast_dtype, scale_of
from ..hierarchy import Hierarchy
from ..slab import Slab
from ..summaries import SummaryBasis, check_basis, means, summaries_of_sums
from .agreement import agree
from .exchange import gather, send_to_neighbours
from .layout import gather_tokens
from .level_sums import exchanged_shapes, partial_sums, shared_levels, sums_of_all


@dataclass(frozen=True, kw_only=True)
class Call:
    """The arguments of one rank, as :func:`fma_kernels.fma` has them.

    ``grid`` is that of all ranks together; None: a sequence. ``ndim`` is what its number of axes has to be, if given.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    cell_size: int
    rank: int = 1
    grid: Sequence[int] | None = None
    ndim: int | None = None
    packed: bool = False
    causal: bool = False
    key_basis: SummaryBasis | None = None
    value_basis: SummaryBasis | None = None
    query_basis: SummaryBasis | None = None
    scale: float | None = None
    group_bias: bool = True
    near_only: bool = False
    key_padding_mask: Tensor | None = None
    num_global_tokens: int = 0
    dropout_p: float = 0.0
    backend: str = "auto"

    def hierarchy(self, length: int) -> Hierarchy:
        """Geometry of the whole grid, or of a sequence of so many tokens if there is none."""
        grid = (length,) if self.grid is None else self.grid
        return Hierarchy(tuple(grid), self.cell_size, self.rank, causal=self.causal)

    def bases(self) -> dict[str, SummaryBasis]:
        """The bases of the tokens that are summarised, by the name of these: queries if they have one, keys, values."""
        if self.near_only:
            return {}
        mean = means(self.query, self.hierarchy(1))
        given = {} if self.query_basis is None else dict(query=self.query_basis)
        return given | dict(key=self.key_basis or mean, value=self.value_basis or mean)

    def check(self, hierarchy: Hierarchy) -> None:
        """Check what a rank can tell by itself.

        Raises:
            ValueError: an argument does not fit.
        """
        query = self.query
        require(query.ndim == 4, "query.shape", tuple(query.shape), "four dimensions (B, H, N, d)")
        require(query.dtype.is_floating_point, "query.dtype", query.dtype, "a floating-point dtype")
        check_beside(query, self.key, self.value, query, self.key_padding_mask, self.dropout_p, self.backend)
        require(not self.packed, "cu_seqlens or grids", "given", "None with a group")
        require(self.num_global_tokens == 0, "num_global_tokens", self.num_global_tokens, "0 with a group")
        require(self.ndim in (None, hierarchy.ndim), "grid", self.grid, f"{self.ndim} axes")
        require(
            self.backend != "reference", "backend", self.backend, "another with a group: it needs all tokens at once"
        )
        choose_backend(query, self.dropout_p, self.backend)
        for name in ("query_basis", "key_basis", "value_basis"):
            basis = getattr(self, name)
            if basis is not None:
                require(isinstance(basis, SummaryBasis), name, basis, "a SummaryBasis or None")
                require(not self.near_only, name, basis, "None with near_only=True")
                check_basis(basis, query, hierarchy, queries=name == "query_basis")

    def description(self) -> dict[str, float]:
        """The arguments that have to be the same on all ranks, and the number of tokens of this one."""
        self.check(self.hierarchy(max(1, self.query.shape[2])))
        batch, heads, length, dim = self.query.shape
        sizes = (*(self.grid or ()), 0, 0, 0)[:3]
        weights = [weight for basis in self.bases().values() for weight in basis.parameters()]
        tensors = (self.query, self.key, self.value, *weights)
        numbers = {
            "own tokens": length, "query.shape[0]": batch, "query.shape[1]": heads, "query.shape[3]": dim,
            "finfo(query.dtype).max": torch.finfo(self.query.dtype).max, "len(grid)": len(self.grid or ()),
            "grid[0]": sizes[0], "grid[1]": sizes[1], "grid[2]": sizes[2], "cell_size": self.cell_size,
            "rank": self.rank, "causal": self.causal, "scale": scale_of(self.query, self.scale),
            "group_bias": self.group_bias, "near_only": self.near_only, "dropout_p": self.dropout_p,
            "key_padding_mask is given": self.key_padding_mask is not None,
            "gradients are wanted": torch.is_grad_enabled() and any(x.requires_grad for x in tensors),
            "query_basis is given": self.query_basis is not None,
        }  # fmt: skip
        for name, basis in self.bases().items():
            numbers[f"levels of a direct {name}_basis"] = basis.num_levels if basis.kind == "direct" else 0
        return {name: float(number) for name, number in numbers.items()}


@torch.compiler.disable  # ranks talk in it
def attend(call: Call, group: ProcessGroup, *, check: bool = True) -> tuple[Tensor, Tensor, Hierarchy]:
    """:func:`fma_kernels.fma` of the tokens of this rank among those of all ranks of a group.

    Every rank gathers the sums of the lowest level (with ``direct`` bases of every level) of keys and values, and of
    queries with a basis; it makes all summaries of them, as the others do. Neighbours send each other the keys and
    values of one layer of cells.

    Args:
        call: the arguments; queries, keys and values (B, H, own tokens, d) and mask (B, own tokens) are those of the
            rank's :class:`fma_kernels.slab.Slab`.
        group: the ranks, which hold the slabs of the grid in their order.
        check: compare the arguments of all ranks first. Without it, ranks that do not do the same wait for each other
            forever, and ``grid`` has to be given.

    Returns:
        Output (B, H, own tokens, d), log-sum-exp (B, H, own tokens), and the geometry of the whole grid.

    Raises:
        ValueError: an argument does not fit, or ranks differ: on all ranks.
    """
    if check:
        lengths = [int(of_rank["own tokens"]) for of_rank in agree(call.description, group, call.query.device)]
    else:
        require(call.grid is not None, "grid", None, "the tokens of the whole grid per axis, with check=False")
        lengths = None
    hierarchy = call.hierarchy(sum(lengths or ()))
    call.check(hierarchy)
    slab = Slab(hierarchy, group.rank(), group.size())
    _check_lengths(slab, dict(enumerate(lengths)) if lengths else {slab.rank: call.query.shape[2]})
    query, key, value = in_autocast_dtype(call.query, call.key, call.value)
    mask = None if call.key_padding_mask is None else gather_tokens(call.key_padding_mask, slab, group, 1)
    summaries: dict[str, Tensor] = {}
    if hierarchy.num_levels and not call.near_only:
        summaries = _summaries(dict(query=query, key=key, value=value), call, mask, slab, group)
    # After the summaries: the backward passes of all ranks then talk in one order, whichever neighbours they have.
    key, value = _with_halo(key, value, slab, group)
    own = slab.own
    framed = F.pad(query, [0, 0, own.start, key.shape[2] - own.stop])  # numbered as keys are; nobody reads the zeros
    out, lse = ops.attend(
        framed, key, value, summaries.get("query"), summaries.get("key"), summaries.get("value"), hierarchy, mask=mask,
        scale=scale_of(query, call.scale), group_bias=call.group_bias, dropout_p=call.dropout_p,
        backend=choose_backend(query, call.dropout_p, call.backend), slab=slab,
    )  # fmt: skip
    return out[:, :, own], lse[:, :, own], hierarchy


def _summaries(
    tokens: dict[str, Tensor], call: Call, mask: Tensor | None, slab: Slab, group: ProcessGroup
) -> dict[str, Tensor]:
    """Summaries of the whole grid, (B, H, S, d), of all tokens that have a basis."""
    batch, heads, _, dim = tokens["query"].shape
    bases, made = call.bases(), []
    for name, basis in bases.items():
        x = tokens[name]
        if call.key_padding_mask is not None:
            x = x.masked_fill(call.key_padding_mask[:, None, :, None], 0)
        made += [level.make(x.unflatten(2, slab.grid)) for level in partial_sums(basis, slab)]
    shapes = [exchanged_shapes(bases.values(), slab.of(i), batch, heads, dim) for i in range(slab.size)]
    parts = [iter(of_rank) for of_rank in gather(made, shapes, group)]
    summaries = {}
    for name, basis in bases.items():
        levels = len(shared_levels(basis, slab.hierarchy))
        sums = sums_of_all([[*islice(of_rank, levels)] for of_rank in parts], basis, slab)
        summaries[name] = summaries_of_sums(sums, basis, slab.hierarchy, mask).to(tokens[name].dtype)
    return summaries


def _with_halo(key: Tensor, value: Tensor, slab: Slab, group: ProcessGroup) -> tuple[Tensor, Tensor]:
    """Keys and values of the tokens that the slab reads, (B, H, tokens of the frame, d)."""
    own, (to_before, to_after) = torch.stack([key, value]), slab.lent
    first, last = own[..., :to_before, :], own[..., slab.num_tokens - to_after :, :]
    shapes = [(*own.shape[:3], tokens, own.shape[4]) for tokens in slab.halo]
    before, after = send_to_neighbours(first, last, shapes, group)
    key, value = torch.cat([before, own, after], 3)
    return key, value


def _check_lengths(slab: Slab, lengths: dict[int, int]) -> None:
    """Ranks have the tokens of their slabs. All that know of the same ranks raise together."""
    for rank, length in lengths.items():
        other = slab.of(rank)
        expected = (
            f"{other.num_tokens} on rank {rank} of {slab.size}: the layers {other.layers.start} to "
            f"{other.layers.stop - 1} of whole cells of side {slab.hierarchy.cell_size} along the first axis of "
            f"grid={slab.hierarchy.grid}, as fma_kernels.distributed.shard cuts it"
        )
        require(length == other.num_tokens, "query.shape[2]", length, expected)
