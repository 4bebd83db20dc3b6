"""Between row-major grids and cells, against walks over tokens."""

import itertools

import torch
from helpers.tensors import random
from hypothesis import given
from hypothesis import strategies as st

from fma_kernels import Hierarchy, cells


@st.composite
def hierarchies(draw):
    ndim = draw(st.integers(1, 3))
    grid = tuple(draw(st.integers(1, {1: 50, 2: 12, 3: 6}[ndim])) for _ in range(ndim))
    rank = draw(st.integers(1, 2))
    return Hierarchy(grid, rank * draw(st.integers(1, 2)), rank)


def members(grid, side):
    """Tokens of every block of a grid, by the block's place."""
    blocks = {}
    for number, token in enumerate(itertools.product(*map(range, grid))):
        blocks.setdefault(tuple(i // side for i in token), []).append(number)
    return blocks


@given(hierarchies())
def test_tokens_by_cell(hierarchy):
    x = random(2, 1, hierarchy.num_tokens, 3) + 10  # nothing is 0 but what lies beyond the grid
    by_cell = cells.tokens_to_cells(x, hierarchy)
    inside = members(hierarchy.grid, hierarchy.cell_size)
    places = itertools.product(*map(range, hierarchy.cell_grid(1)))
    for number, place in enumerate(places):
        rows = by_cell[:, :, number]
        assert torch.equal(rows[(rows != 0).any(-1)].view(2, 1, -1, 3), x[:, :, inside[place]])
    assert torch.equal(cells.tokens_from_cells(by_cell, hierarchy), x)


@given(hierarchies().filter(lambda hierarchy: hierarchy.num_levels))
def test_summaries_by_cell_and_back(hierarchy):
    x = random(2, 1, hierarchy.num_summaries, 3)
    by_cell = cells.summaries_to_cells(x, hierarchy)
    assert by_cell.shape[3] == hierarchy.rank**hierarchy.ndim
    assert torch.equal(cells.summaries_from_cells(by_cell, hierarchy), x)
    number = 0
    for level, rows in zip(hierarchy.levels, x.split(hierarchy.level_sizes, 2), strict=True):
        for _, summaries in sorted(members(hierarchy.summary_grid(level), hierarchy.rank).items()):
            assert torch.equal(by_cell[:, :, number], rows[:, :, summaries])
            number += 1


@given(hierarchies(), st.booleans())
def test_counts_of_tokens(hierarchy, masked):
    mask = random(2, hierarchy.num_tokens) > 0.5 if masked else None
    counts = cells.token_counts(hierarchy, torch.device("cpu"), mask)
    exists = torch.ones(1, hierarchy.num_tokens) if mask is None else (~mask).float()
    expected = []
    for level in hierarchy.levels:
        inside = members(hierarchy.grid, hierarchy.cell_width(level) // hierarchy.rank)
        for place in itertools.product(*map(range, hierarchy.summary_grid(level))):
            expected.append(exists[:, inside.get(place, [])].sum(1))
    assert torch.equal(counts, torch.stack(expected, 1) if expected else torch.zeros(len(exists), 0))


@given(hierarchies())
def test_a_coarser_level_is_the_transpose_of_a_finer_one(hierarchy):
    for level in hierarchy.levels[:-1]:
        fine, coarse = (random(1, 2, hierarchy.level_sizes[i], 3, seed=i) for i in (level - 1, level))
        finer, coarser = cells.to_finer_level(coarse, hierarchy, level), cells.to_coarser_level(fine, hierarchy, level)
        torch.testing.assert_close((finer * fine).sum(), (coarse * coarser).sum())
        places = itertools.product(*map(range, hierarchy.summary_grid(level)))
        grid = coarse.unflatten(2, hierarchy.summary_grid(level + 1))
        for number, place in enumerate(places):
            assert torch.equal(finer[:, :, number], grid[(..., *(i // 2 for i in place), slice(None))])
