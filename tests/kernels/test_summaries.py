"""Summaries against their definition, written out cell by cell."""

import itertools
import math

import pytest
import torch
from helpers.tensors import random
from hypothesis import given, settings
from hypothesis import strategies as st

from fma_kernels import Hierarchy, SummaryBasis, aggregate


def make_basis(hierarchy, kind, heads=2, dim=3, num_levels=None, noise=0.3, **options):
    levels = max(1, hierarchy.num_levels) if num_levels is None else num_levels
    basis = SummaryBasis(
        heads, dim, hierarchy.cell_size, hierarchy.rank, ndim=hierarchy.ndim, num_levels=levels, kind=kind, **options
    ).double()
    for seed, parameter in enumerate(basis.parameters()):
        parameter.data += noise * random(*parameter.shape, seed=seed)
    return basis


def sub_blocks(hierarchy, level):
    """Tokens of every summary of a level, row-major."""
    width = hierarchy.cell_width(level) // hierarchy.rank
    for block in itertools.product(*map(range, hierarchy.summary_grid(level))):
        spans = [range(i * width, min((i + 1) * width, n)) for i, n in zip(block, hierarchy.grid, strict=True)]
        yield block, list(itertools.product(*spans))


def flat(token, grid):
    return int(sum(i * math.prod(grid[axis + 1 :]) for axis, i in enumerate(token)))


def definition(x, basis, hierarchy, mask):
    """Direct and nested summaries by explicit loops over cells, axes and tokens; sums first, existing tokens last."""
    batch, heads, _, dim = x.shape
    exists = torch.ones(batch, hierarchy.num_tokens, dtype=torch.bool) if mask is None else ~mask
    tokens = (x * exists[:, None, :, None]).view(batch, heads, *hierarchy.grid, dim)
    below, result = tokens, []
    for level in hierarchy.levels:
        if basis.kind == "direct" or level == 1:
            source, unit = tokens, hierarchy.cell_width(level)
        else:
            source, unit = below, 2 * hierarchy.rank
        number = min(level, basis.num_levels)
        level_sums = x.new_zeros(batch, heads, *hierarchy.summary_grid(level), dim)
        for summary in itertools.product(*map(range, hierarchy.summary_grid(level))):
            cell = [i // hierarchy.rank for i in summary]
            spans = [range(i * unit, min((i + 1) * unit, n)) for i, n in zip(cell, source.shape[2:-1], strict=True)]
            for entry in itertools.product(*spans):
                weight = 1.0
                for axis in range(hierarchy.ndim):
                    parameter = getattr(basis, f"axis{axis}_level{number}")
                    weight = weight * parameter[summary[axis] % hierarchy.rank, entry[axis] - cell[axis] * unit]
                weight = weight.view(-1, dim)  # (H or 1, d)
                level_sums[(..., *summary, slice(None))] += weight * source[(..., *entry, slice(None))]
        below = level_sums
        size = (hierarchy.cell_width(level) // hierarchy.rank) ** hierarchy.ndim
        for block, members in sub_blocks(hierarchy, level):
            count = exists[:, [flat(token, hierarchy.grid) for token in members]].sum(1).clamp(min=1)
            result.append(level_sums[(..., *block, slice(None))] * (size / count)[:, None, None])
    return torch.stack(result, 2) if result else x[:, :, :0]


@pytest.mark.parametrize(
    ("grid", "cell_size", "rank"), [((27,), 4, 2), ((20,), 4, 4), ((9, 7), 2, 1), ((5, 11), 2, 2), ((5, 2, 7), 2, 1)]
)
@pytest.mark.parametrize("kind", ["direct", "nested"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("share_heads", [False, True])
def test_learned_summaries_are_the_definition(grid, cell_size, rank, kind, masked, share_heads):
    hierarchy = Hierarchy(grid, cell_size, rank)
    basis = make_basis(hierarchy, kind, share_heads=share_heads)
    x = random(2, 2, hierarchy.num_tokens, 3)
    mask = random(2, hierarchy.num_tokens) > 0.5 if masked else None
    with torch.no_grad():
        made = aggregate(x, basis, hierarchy, key_padding_mask=mask)
        torch.testing.assert_close(made, definition(x, basis, hierarchy, mask))


@settings(max_examples=60)
@given(st.data(), st.sampled_from(["nested", "direct", "mean"]), st.booleans())
def test_a_fresh_basis_gives_the_mean_of_the_existing_tokens_on_any_shape(data, kind, masked):
    ndim = data.draw(st.integers(1, 3))
    grid = tuple(data.draw(st.integers(1, {1: 70, 2: 13, 3: 7}[ndim])) for _ in range(ndim))
    rank = data.draw(st.integers(1, 3))
    hierarchy = Hierarchy(grid, rank * data.draw(st.integers(1, 2)), rank)
    basis = make_basis(hierarchy, kind, noise=0.0)
    x = random(2, 2, hierarchy.num_tokens, 3)
    mask = random(2, hierarchy.num_tokens) > 0.3 if masked else torch.zeros(2, hierarchy.num_tokens, dtype=torch.bool)
    expected = []
    for level in hierarchy.levels:
        for _, members in sub_blocks(hierarchy, level):
            index = [flat(token, grid) for token in members]
            kept = (~mask[:, index]).double()
            total = (x[:, :, index] * kept[:, None, :, None]).sum(2)
            expected.append(total / kept.sum(1).clamp(min=1)[:, None, None])
    expected = torch.stack(expected, 2) if expected else x[:, :, :0]
    torch.testing.assert_close(aggregate(x, basis, hierarchy, key_padding_mask=mask if masked else None), expected)


@pytest.mark.parametrize("kind", ["nested", "direct"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("gain", [0, 0.25, -2.0])
def test_the_gain_is_a_factor_of_the_first_summaries(kind, ndim, gain):
    hierarchy = Hierarchy({1: (70,), 2: (13, 9), 3: (7, 6, 5)}[ndim], 2, 2)
    basis, means = (make_basis(hierarchy, kind, noise=0.0, **options) for options in (dict(gain=gain), dict()))
    x = random(2, 2, hierarchy.num_tokens, 3)
    torch.testing.assert_close(aggregate(x, basis, hierarchy), gain * aggregate(x, means, hierarchy))


@pytest.mark.parametrize("kind", ["nested", "direct"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_a_basis_that_makes_zeros_learns(kind, ndim):
    """As far as one that starts as means: no weight is left behind a product of zeros."""
    hierarchy = Hierarchy((18,) * ndim, 2)
    basis = make_basis(hierarchy, kind, noise=0.0, gain=0)
    x, target = random(1, 2, hierarchy.num_tokens, 3), random(1, 2, hierarchy.num_summaries, 3, seed=1)
    for _ in range(2):  # the first step takes the factor of zeros away
        basis.zero_grad()
        (aggregate(x, basis, hierarchy) - target).square().sum().backward()
        with torch.no_grad():
            for parameter in basis.parameters():
                parameter -= 1e-3 * parameter.grad
    for name, parameter in basis.named_parameters():
        if parameter not in set(basis.unread(hierarchy)):
            assert (parameter.grad != 0).all(), name


@pytest.mark.parametrize("kind", ["nested", "direct"])
@pytest.mark.parametrize("queries", [False, True])
def test_gradcheck(kind, queries):
    hierarchy = Hierarchy((19,), 4, 2, causal=queries)
    basis = make_basis(hierarchy, kind, heads=2, dim=2, causal_queries=queries)
    x = random(2, 2, 19, 2).requires_grad_()
    leaves = (x, *basis.parameters())
    assert torch.autograd.gradcheck(lambda *_: aggregate(x, basis, hierarchy, queries=queries), leaves)


@pytest.mark.parametrize("share_heads", [False, True])
def test_gradcheck_on_a_plane(share_heads):
    hierarchy = Hierarchy((9, 5), 2, 1)
    basis = make_basis(hierarchy, "nested", heads=2, dim=2, share_heads=share_heads)
    x = random(1, 2, 45, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda *_: aggregate(x, basis, hierarchy), (x, *basis.parameters()))


def test_nested_reuses_the_last_level_and_its_size_does_not_depend_on_the_input():
    short = SummaryBasis(2, 3, 4, 2, num_levels=1)
    assert [tuple(p.shape) for p in short.parameters()] == [(2, 4, 6), (2, 4, 6)]
    hierarchy = Hierarchy((4 * 2**6,), 4, 2)
    basis = make_basis(hierarchy, "nested", num_levels=2)
    equal = make_basis(hierarchy, "nested", num_levels=hierarchy.num_levels)
    for level in range(1, hierarchy.num_levels + 1):
        getattr(equal, f"axis0_level{level}").data = getattr(basis, f"axis0_level{min(level, 2)}").data
    x = random(1, 2, hierarchy.num_tokens, 3)
    torch.testing.assert_close(aggregate(x, basis, hierarchy), aggregate(x, equal, hierarchy))


def test_mean_has_no_parameters_and_direct_has_every_level():
    assert list(SummaryBasis(2, 3, 4, 2, kind="mean").parameters()) == []
    direct = SummaryBasis(2, 3, 4, 2, kind="direct", num_levels=3, share_heads=True)
    assert [tuple(p.shape) for p in direct.parameters()] == [(2, 4, 3), (2, 8, 3), (2, 16, 3)]


def test_low_precision_tokens_keep_their_dtype():
    hierarchy = Hierarchy((50,), 4, 2)
    basis = make_basis(hierarchy, "nested").float()
    x = random(1, 2, 50, 3)
    out = aggregate(x.bfloat16(), basis, hierarchy)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), aggregate(x, basis.double(), hierarchy), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(kind="max"), "kind='max'.*nested, direct, mean"),
        (dict(ndim=4), "ndim=4"),
        (dict(num_levels=0), "num_levels=0"),
        (dict(num_heads=0), "num_heads=0"),
        (dict(rank=3), "rank=3.*divisor"),
        (dict(ndim=2, causal_queries=True), "causal_queries=True.*ndim=2"),
        (dict(gain=math.inf), "gain=inf.*finite"),
        (dict(gain="0"), "gain='0'.*finite"),
        (dict(gain=0.5, kind="mean"), "gain=0.5.*1 with kind='mean'"),
    ],
)
def test_bad_basis_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SummaryBasis(**(dict(num_heads=2, head_dim=3, cell_size=4) | arguments))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x=torch.zeros(1, 2, 63, 3)), r"x.shape=\(1, 2, 63, 3\).*64 tokens"),
        (dict(basis=SummaryBasis(2, 3, 8, 2)), "basis.cell_size=8.*4"),
        (dict(basis=SummaryBasis(2, 3, 4, 1)), "basis.rank=1.*2"),
        (dict(basis=SummaryBasis(2, 3, 4, 2, ndim=2)), "basis.ndim=2"),
        (dict(basis=SummaryBasis(3, 3, 4, 2)), "basis.num_heads=3.*2"),
        (dict(basis=SummaryBasis(2, 4, 4, 2)), "basis.head_dim=4.*3"),
        (dict(basis=SummaryBasis(2, 3, 4, 2, causal_queries=True)), "basis.causal_queries=True"),
        (dict(basis=SummaryBasis(2, 3, 4, 2, kind="direct", num_levels=2)), "basis.num_levels=2.*at least 3"),
        (dict(key_padding_mask=torch.zeros(2, 64, dtype=torch.bool)), r"key_padding_mask.shape=\(2, 64\)"),
        (dict(basis=SummaryBasis(2, 3, 4, 2).to("meta")), "basis=.*meta.*cpu"),
        (dict(backend="fast"), "backend='fast'.*auto, triton, cpp, torch, reference"),
    ],
)
def test_bad_input_is_refused_by_name(change, message):
    arguments = dict(x=torch.zeros(1, 2, 64, 3), basis=SummaryBasis(2, 3, 4, 2), hierarchy=Hierarchy((64,), 4, 2))
    aggregate(**arguments)
    with pytest.raises(ValueError, match=message):
        aggregate(**arguments | change)
