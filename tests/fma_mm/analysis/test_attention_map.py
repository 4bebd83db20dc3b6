"""The attention that is shown is the attention that the module computes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fma_kernels import ATTENTIONS, Hierarchy, aggregate
from fma_mm import FMA2DAttention
from fma_mm.analysis.attention_map import capture_inputs, query_attention, query_readings

sizes = st.tuples(st.integers(1, 21), st.integers(1, 21))
cells = st.sampled_from([(1, 1), (2, 1), (2, 2), (3, 1), (4, 2)])


def make(attention="fma", cell=(2, 1), **options) -> FMA2DAttention:
    """Two heads in float64 with weights far from their start, so that the weights are far from uniform."""
    torch.manual_seed(0)
    module = FMA2DAttention(
        6, 2, cell_size=cell[0], rank=cell[1], attention=attention, num_levels=5, **options
    ).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7)
    return module


@given(sizes, cells, st.data())
def test_readings_are_a_partition_of_the_grid(grid, cell, data):
    query = tuple(data.draw(st.integers(0, n - 1)) for n in grid)
    hierarchy = Hierarchy(grid, *cell)
    times = torch.zeros(grid, dtype=torch.int64)
    readings = query_readings(hierarchy, query)
    assert [reading.level for reading in readings] == list(range(hierarchy.num_levels + 1))
    for reading in readings:
        for top, left, bottom, right in reading.boxes.tolist():
            times[top:bottom, left:right] += 1
        assert reading.counts.tolist() == [(c - a) * (d - b) for a, b, c, d in reading.boxes.tolist()]
    assert (times == 1).all()


@given(
    sizes,
    cells,
    st.sampled_from([name for name in ATTENTIONS if name != "none"]),
    st.sampled_from(["nested", "direct", "mean"]),
    st.booleans(),
    st.sampled_from([None, 0.3]),
    st.data(),
)
def test_weights_times_values_is_the_output(grid, cell, attention, basis_kind, group_bias, qk_scale, data):
    """Of the real module, before its last projection, for any query."""
    query = tuple(data.draw(st.integers(0, n - 1)) for n in grid)
    module = make(attention, cell, basis_kind=basis_kind, group_bias=group_bias, qk_scale=qk_scale).eval()
    x = torch.randn(1, grid[0] * grid[1], 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (expected,) = capture_inputs(module.proj, lambda: module(x, grid))

    found = query_attention(module, x[0], grid, query)
    hierarchy = Hierarchy(grid, *cell)
    values = module.qkv(x).unflatten(-1, (3, 2, 3))[:, :, 2].transpose(1, 2)
    sources = [values]
    if module.attention.value_basis is not None:
        sources += [aggregate(values, module.attention.value_basis, hierarchy)] * hierarchy.num_levels
    output = sum(
        torch.einsum("hm,hmd->hd", weights, source[0, :, reading.index])
        for reading, weights, source in zip(found.readings, found.weights, sources, strict=True)
    )
    actual = expected[0, query[0] * grid[1] + query[1]].view(2, 3)
    torch.testing.assert_close(output, actual, rtol=0, atol=1e-10)

    ones = torch.ones(2, dtype=torch.float64)
    torch.testing.assert_close(sum(weights.sum(1) for weights in found.weights), ones, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.token_map().sum((1, 2)), ones, rtol=0, atol=1e-12)
    assert all((weights >= 0).all() for weights in found.weights)


def test_a_small_map_shows_full_attention():
    module = make(cell=(4, 2))
    grid, query = (8, 5), (6, 1)
    x = torch.randn(40, 6, dtype=torch.float64)
    q, k, _ = module.qkv(x).unflatten(-1, (3, 2, 3)).unbind(1)
    weights = torch.einsum("hd,nhd->hn", q[6 * 5 + 1], k).mul(3**-0.5).softmax(-1)
    found = query_attention(module, x, grid, query)
    torch.testing.assert_close(found.token_map(), weights.view(2, 8, 5))
    assert len(found.weights) == 1


def test_near_shows_touching_cells_and_full_shows_the_whole_map():
    grid, query = (15, 15), (7, 7)
    x = torch.randn(225, 6, dtype=torch.float64)
    near, full = (query_attention(make(name, (3, 1)), x, grid, query).token_map() for name in ("near", "full"))
    touching = torch.zeros(grid, dtype=torch.bool)
    touching[3:12, 3:12] = True
    assert torch.equal(near > 0, touching.expand(2, -1, -1))
    assert (full > 0).all()


def test_an_attention_that_reads_nothing_is_refused():
    with pytest.raises(ValueError, match=r"module.attention='none': expected an attention that reads other tokens"):
        query_attention(make("none", (2, 1)), torch.randn(25, 6, dtype=torch.float64), (5, 5), (0, 0))


def test_constant_keys_give_uniform_attention():
    """A summary weighs as much as its tokens; what is spread over them is what each would have."""
    module = make(cell=(2, 2), basis_kind="mean")
    module.qkv.weight.data[6:12] = 0
    grid = (17, 11)
    found = query_attention(module, torch.randn(17 * 11, 6, dtype=torch.float64), grid, (3, 9))
    torch.testing.assert_close(found.token_map(), torch.full((2, *grid), 1 / (17 * 11), dtype=torch.float64))


def test_capture_gives_the_inputs_of_the_first_call_and_leaves_no_hook():
    module = nn.Linear(2, 2)
    first, second = torch.zeros(1, 2), torch.ones(1, 2)
    (captured,) = capture_inputs(module, lambda: (module(first), module(second)))
    assert captured is first
    with pytest.raises(ZeroDivisionError):
        capture_inputs(module, lambda: 1 / 0)
    assert not module._forward_pre_hooks
    with pytest.raises(ValueError, match="module='Linear': expected a module that is called"):
        capture_inputs(module, lambda: None)


@pytest.mark.parametrize(
    ("shape", "query", "message"),
    [
        ((11, 6), (0, 0), r"x.shape=\(11, 6\): expected \(12, 6\), the tokens of a map \(3, 4\)"),
        ((1, 12, 6), (0, 0), "x.shape="),
        ((12, 6), (3, 0), r"query=\(3, 0\): expected row and column in the grid \(3, 4\)"),
        ((12, 6), (0, -1), "query="),
        ((12, 6), (0,), "query="),
    ],
)
def test_bad_arguments(shape, query, message):
    with pytest.raises(ValueError, match=message):
        query_attention(make(), torch.zeros(shape, dtype=torch.float64), (3, 4), query)


def test_readings_need_two_axes():
    with pytest.raises(ValueError, match="expected a grid of two axes"):
        query_readings(Hierarchy((9,), 2), (1,))
