"""The FLOP formulas against walks over tokens and cells; PyTorch counts 2 per multiply-add."""

import pytest
import torch
from helpers import flops_by_hand
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from fma_kernels import FMAttention, Hierarchy
from fma_kernels.backends import selection
from fma_kernels.flops import attend_pairs, far_pairs, near_pairs

OPS = torch.ops.fma_kernels


@st.composite
def hierarchies(draw):
    ndim = draw(st.integers(1, 3))
    grid = tuple(draw(st.integers(1, {1: 70, 2: 10, 3: 5}[ndim])) for _ in range(ndim))
    rank = draw(st.integers(1, 3))
    return Hierarchy(grid, rank * draw(st.integers(1, 2)), rank, causal=ndim == 1 and draw(st.booleans()))


@given(hierarchies())
def test_pairs(hierarchy):
    near, far, summarised = flops_by_hand.pairs_of_tokens(hierarchy)
    assert near_pairs(hierarchy) == near
    assert sum(far_pairs(hierarchy, level) for level in hierarchy.levels) == far
    assert [far_pairs(hierarchy, level, summarised_queries=True) for level in hierarchy.levels] == summarised
    assert attend_pairs(hierarchy) == near + far
    assert attend_pairs(hierarchy, summarised_queries=True) == near + sum(summarised)
    assert attend_pairs(hierarchy, near_only=True) == near


CASES = [
    dict(grid=(70,), cell_size=8, rank=2),
    dict(grid=(70,), cell_size=8, rank=2, causal=True),
    dict(grid=(128,), cell_size=4),
    dict(grid=(19, 26), cell_size=4, rank=2),
    dict(grid=(7, 9, 5), cell_size=2),
]


@pytest.mark.parametrize("attention", ["near", "fma", "fma_linear"])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_module(case, attention, backend):
    """A whole module, forward and backward: batch 3, 2 heads of 4, a bias here and there."""
    hierarchy = Hierarchy(**case)
    module = FMAttention(
        8, 2, cell_size=hierarchy.cell_size, rank=hierarchy.rank, ndim=hierarchy.ndim, causal=hierarchy.causal,
        attention=attention, num_levels=hierarchy.num_levels, backend=backend,
    )  # fmt: skip
    x = torch.rand(3, hierarchy.num_tokens, 8, requires_grad=True)
    if backend == "cpp" and selection.why_not_cpp(x[:, None]):
        pytest.skip("no CPU kernels here")
    with FlopCounterMode(display=False) as forward:
        out = module(x, hierarchy.grid)
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    forward, backward = (counter.get_flop_counts()["Global"] for counter in (forward, backward))

    projections = 2 * 3 * hierarchy.num_tokens * 8 * (3 * 8 + 8)
    assert forward.pop(torch.ops.aten.addmm) == projections
    assert backward.pop(torch.ops.aten.mm) == 2 * projections  # the gradients of inputs and weights

    near, far, summarised = flops_by_hand.pairs_of_tokens(hierarchy)
    far = dict(near=0, fma=far, fma_linear=sum(summarised))[attention]
    product = 2 * 3 * 8 * (near + far)
    products = 2 * product, 5 * product  # logits again; of values, weights, queries, keys
    if attention == "near":
        assert (forward.pop(OPS.attend), backward.pop(OPS.attend_backward)) == products
        assert not forward and not backward
        return
    made = 2 * flops_by_hand.nested_summaries(hierarchy)  # keys and values
    if attention == "fma_linear":
        # Queries as well; causal ones from windows of cell_size / rank, then of 2, one axis, in every sub-block.
        windows = sum(
            n * hierarchy.rank * (hierarchy.cell_size // hierarchy.rank if level == 1 else 2)
            for level in hierarchy.levels
            for n in hierarchy.cell_grid(level)
        )
        made += windows if hierarchy.causal else made // 2
    pooled = 2 * 3 * 8 * made
    if backend == "torch":
        assert (forward.pop(OPS.attend), backward.pop(OPS.attend_backward)) == products
        assert (forward.pop(OPS.contract), backward.pop(OPS.contract_backward)) == (pooled, 2 * pooled)
    else:  # one operator for both
        assert forward.pop(OPS.fma) == products[0] + pooled
        assert backward.pop(OPS.fma_backward) == products[1] + 2 * pooled
    assert not forward and not backward


def test_grows_as_the_method_says():
    """n log n for FMA, n for FMA-linear and the summaries: per token, a constant more per doubling, or none."""

    def per_token(tokens, attention):
        module = FMAttention(1, 1, cell_size=8, rank=2, attention=attention)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(torch.rand(1, tokens, 1), (tokens,))
        return counter.get_total_flops() / tokens

    fma, linear = ([per_token(2**k, attention) for k in (11, 12, 13)] for attention in ("fma", "fma_linear"))
    assert fma[1] - fma[0] == pytest.approx(fma[2] - fma[1], rel=0.05)
    assert fma[1] - fma[0] > 1
    assert linear[2] == pytest.approx(linear[0], rel=0.01)
