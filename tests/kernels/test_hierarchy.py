"""The geometry: every pair is covered exactly once, by the coarsest level that separates it."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fma_kernels import Hierarchy


@st.composite
def hierarchies(draw, max_tokens=400):
    ndim = draw(st.integers(1, 3))
    longest = {1: max_tokens, 2: 24, 3: 9}[ndim]
    grid = tuple(draw(st.integers(1, longest)) for _ in range(ndim))
    rank = draw(st.integers(1, 3))
    cell_size = rank * draw(st.integers(1, 4 if ndim == 1 else 2))
    return Hierarchy(grid, cell_size, rank, causal=draw(st.booleans()) if ndim == 1 else False)


def distance(a, b):
    return max(abs(i - j) for i, j in zip(a, b, strict=True))


def cell_of(token, hierarchy, level):
    return tuple(i // hierarchy.cell_width(level) for i in token)


@settings(max_examples=60)
@given(hierarchies(max_tokens=120))
def test_every_pair_is_covered_exactly_once(hierarchy):
    tokens = list(itertools.product(*map(range, hierarchy.grid)))
    near = {cell: set(hierarchy.near_list(cell)) for cell in itertools.product(*map(range, hierarchy.cell_grid(1)))}
    far = {
        level: {
            cell: set(hierarchy.interaction_list(level, cell))
            for cell in itertools.product(*map(range, hierarchy.cell_grid(level)))
        }
        for level in hierarchy.levels
    }
    for query, key in itertools.islice(itertools.product(tokens, tokens), 0, None, max(1, len(tokens) // 20)):
        readings = int(cell_of(key, hierarchy, 1) in near[cell_of(query, hierarchy, 1)])
        for level in hierarchy.levels:
            readings += cell_of(key, hierarchy, level) in far[level][cell_of(query, hierarchy, level)]
        later_cell = hierarchy.causal and cell_of(key, hierarchy, 1) > cell_of(query, hierarchy, 1)
        assert readings == (0 if later_cell else 1), (query, key)


@settings(max_examples=60)
@given(hierarchies())
def test_interaction_list_is_the_definition_and_bounded(hierarchy):
    bound = 2 if hierarchy.causal else {1: 3, 2: 27, 3: 189}[hierarchy.ndim]
    for level in hierarchy.levels:
        cells = list(itertools.product(*map(range, hierarchy.cell_grid(level))))
        for cell in cells[:: max(1, len(cells) // 10)]:
            expected = [
                other
                for other in cells
                if distance(cell, other) > 1
                and distance([i // 2 for i in cell], [i // 2 for i in other]) <= 1
                and not (hierarchy.causal and other > cell)
            ]
            assert hierarchy.interaction_list(level, cell) == expected
            assert len(expected) <= bound


@settings(max_examples=60)
@given(hierarchies())
def test_number_of_levels_is_the_smallest_that_leaves_two_cells_per_axis(hierarchy):
    def at_most_two_cells(level):
        return all(-(-n // (hierarchy.cell_size * 2**level)) <= 2 for n in hierarchy.grid)

    assert at_most_two_cells(hierarchy.num_levels)
    assert hierarchy.num_levels == 0 or not at_most_two_cells(hierarchy.num_levels - 1)


@settings(max_examples=60)
@given(hierarchies())
def test_sub_blocks_of_every_level_tile_its_cells(hierarchy):
    """Their number follows from the sides of cells alone: rank per cell and axis, cells enough to cover the grid."""
    total = 0
    for level in hierarchy.levels:
        width = hierarchy.cell_size * 2 ** (level - 1)
        assert hierarchy.cell_width(level) == width
        cells = [len(range(0, n, width)) for n in hierarchy.grid]
        assert hierarchy.cell_grid(level) == tuple(cells)
        assert hierarchy.summary_grid(level) == tuple(n * hierarchy.rank for n in cells)
        total += math.prod(cells) * hierarchy.rank**hierarchy.ndim
    assert hierarchy.num_summaries == sum(hierarchy.level_sizes) == total


@settings(max_examples=30)
@given(st.integers(1, 100), st.integers(1, 200), st.integers(1, 5), st.booleans())
def test_a_longer_input_only_adds_pairs(n, more, cell_size, causal):
    short, long = Hierarchy((n,), cell_size, 1, causal=causal), Hierarchy((n + more,), cell_size, 1, causal=causal)
    for level in short.levels:
        for cell in range(short.cell_grid(level)[0]):
            inside = [j for j in long.interaction_list(level, (cell,)) if j[0] < short.cell_grid(level)[0]]
            assert short.interaction_list(level, (cell,)) == inside


@settings(max_examples=30)
@given(hierarchies())
def test_tables_list_the_own_cell_first_and_then_every_level(hierarchy):
    tables = hierarchy.tables()
    cells = list(itertools.product(*map(range, hierarchy.cell_grid(1))))
    offsets = [0]
    for level in hierarchy.levels:
        offsets.append(offsets[-1] + torch.Size(hierarchy.cell_grid(level)).numel())

    def number(cell, shape):
        return int(sum(i * torch.Size(shape[axis + 1 :]).numel() for axis, i in enumerate(cell)))

    for row, cell in enumerate(cells[:: max(1, len(cells) // 10)]):
        row = cells.index(cell)
        near = [j for j in tables.near[row].tolist() if j >= 0]
        assert near[0] == row
        assert near == [number(j, hierarchy.cell_grid(1)) for j in hierarchy.near_list(cell)]
        far = [
            offsets[level - 1] + number(j, hierarchy.cell_grid(level))
            for level in hierarchy.levels
            for j in hierarchy.interaction_list(level, tuple(i >> (level - 1) for i in cell))
        ]
        assert [j for j in tables.far[row].tolist() if j >= 0] == far


@given(hierarchies())
def test_unpack_is_the_inverse_of_pack(hierarchy):
    assert Hierarchy.unpack(*hierarchy.pack()) == hierarchy


def test_whether_it_is_causal_is_named():
    with pytest.raises(TypeError):
        Hierarchy((71,), 4, 2, True)


def test_value_semantics():
    assert Hierarchy((64,), 4) == Hierarchy((64,), 4)
    assert hash(Hierarchy((8, 8), 4, 2)) == hash(Hierarchy((8, 8), 4, 2))
    assert Hierarchy([8, 8], 4).grid == (8, 8)
    assert Hierarchy(64, 4).grid == (64,)
    assert Hierarchy((64,), 4) != Hierarchy((64,), 4, causal=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(grid=(), cell_size=4), "grid"),
        (dict(grid=(4, 4, 4, 4), cell_size=4), "grid"),
        (dict(grid=(4, 0), cell_size=4), "grid"),
        (dict(grid=(4.0,), cell_size=4), "grid"),
        (dict(grid=(8,), cell_size=0), "cell_size=0"),
        (dict(grid=(8,), cell_size=2.5), "cell_size=2.5"),
        (dict(grid=(8,), cell_size=8, rank=3), "rank=3.*divisor of cell_size"),
        (dict(grid=(8,), cell_size=8, rank=0), "rank=0"),
        (dict(grid=(8, 8), cell_size=4, causal=True), "causal=True.*2 axes"),
    ],
)
def test_bad_geometry_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Hierarchy(**arguments)


def test_bad_cell_or_level_is_refused():
    hierarchy = Hierarchy((64,), 4)
    with pytest.raises(ValueError, match="level=9"):
        hierarchy.interaction_list(9, (0,))
    with pytest.raises(ValueError, match="cell="):
        hierarchy.interaction_list(1, (16,))
