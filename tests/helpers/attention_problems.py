"""Random problems that the tests of the operators share."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from fma_kernels import Hierarchy, SummaryBasis, aggregate, fma_attention


@dataclass
class Problem:
    """Inputs of one attention, with everything that can have a gradient as a leaf in float64."""

    hierarchy: Hierarchy
    tensors: list[torch.Tensor]
    bases: list[SummaryBasis]
    mask: torch.Tensor | None
    group_bias: bool
    attends: str
    num_global_tokens: int = 0

    @property
    def leaves(self):
        return [*self.tensors, *(p for basis in self.bases for p in basis.parameters())]

    def attention(self, backend, **options):
        query, key, value = self.tensors
        query_basis, key_basis, value_basis = self.bases
        queries, keys, values = (x[:, :, self.num_global_tokens :] for x in self.tensors)
        summaries, mask = [None, None], dict(key_padding_mask=self.mask)
        if self.attends != "near":
            summaries = [
                aggregate(x, basis, self.hierarchy, **mask) for x, basis in ((keys, key_basis), (values, value_basis))
            ]
        if self.attends == "fma_linear":
            options["query_summaries"] = aggregate(queries, query_basis, self.hierarchy, **mask, queries=True)
        return fma_attention(
            query, key, value, *summaries, self.hierarchy, group_bias=self.group_bias, **mask,
            num_global_tokens=self.num_global_tokens, backend=backend, **options,
        )  # fmt: skip


def make_problem(
    hierarchy,
    *,
    kind="nested",
    share_heads=False,
    masked=False,
    group_bias=True,
    attends="fma",
    num_global_tokens=0,
    batch=2,
    heads=2,
    dim=3,
    seed=0,
):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    bases = []
    for queries in (True, False, False):
        basis = SummaryBasis(
            heads, dim, hierarchy.cell_size, hierarchy.rank, ndim=hierarchy.ndim, kind=kind, share_heads=share_heads,
            num_levels=max(1, hierarchy.num_levels), causal_queries=queries and hierarchy.causal,
        ).double()  # fmt: skip
        for parameter in basis.parameters():
            parameter.data += 0.2 * random(*parameter.shape)
        bases.append(basis)
    length = num_global_tokens + hierarchy.num_tokens
    tensors = [random(batch, heads, length, dim).requires_grad_() for _ in range(3)]
    mask = torch.rand(batch, hierarchy.num_tokens, generator=generator) < 0.3 if masked else None
    return Problem(hierarchy, tensors, bases, mask, group_bias, attends, num_global_tokens)


@st.composite
def problems(draw, **fixed):
    ndim = draw(st.sampled_from([1, 1, 2, 3]))
    grid = tuple(draw(st.integers(1, {1: 90, 2: 17, 3: 8}[ndim])) for _ in range(ndim))
    rank = draw(st.integers(1, 2))
    hierarchy = Hierarchy(grid, rank * draw(st.integers(1, 2)), rank, causal=ndim == 1 and draw(st.booleans()))
    options = dict(
        kind=draw(st.sampled_from(["nested", "direct", "mean"])),
        share_heads=draw(st.booleans()),
        masked=draw(st.booleans()),
        group_bias=draw(st.booleans()),
        attends=draw(st.sampled_from(["near", "fma", "fma_linear"])),
        num_global_tokens=0 if hierarchy.causal else draw(st.sampled_from([0, 1, 3])),
        batch=draw(st.integers(1, 2)),
        heads=draw(st.integers(1, 2)),
        seed=draw(st.integers(0, 2**31)),
    )
    return make_problem(hierarchy, **{**options, **fixed})
