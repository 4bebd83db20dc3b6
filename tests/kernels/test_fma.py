"""The one call: the same numbers as the two functions behind it, and clear words about bad arguments."""

import pytest
import torch
from helpers.tensors import random

from fma_kernels import Hierarchy, SummaryBasis, aggregate, fma, fma_attention

CASES = pytest.mark.parametrize(
    ("grid", "options"),
    [
        ((70,), dict(cell_size=4, rank=2)),
        ((70,), dict(cell_size=4, rank=2, causal=True)),
        ((9, 14), dict(cell_size=2)),
        ((5, 6, 4), dict(cell_size=2, rank=2)),
        ((9, 14), dict(cell_size=2, num_global_tokens=2)),
    ],
    ids=["sequence", "causal", "image", "volume", "global"],
)


def tokens(grid, num_global_tokens=0, **_):
    return [random(2, 2, num_global_tokens + torch.Size(grid).numel(), 3, seed=i) for i in range(3)]


def basis(grid, cell_size, rank=1, kind="nested", causal_queries=False, seed=0, **_):
    basis = SummaryBasis(
        2, 3, cell_size, rank, ndim=len(grid), num_levels=5, kind=kind, causal_queries=causal_queries
    ).double()
    for number, parameter in enumerate(basis.parameters()):
        parameter.data += 0.3 * random(*parameter.shape, seed=seed + number)
    return basis


@CASES
@pytest.mark.parametrize("kind", ["nested", "direct", "mean", None])
@pytest.mark.parametrize("masked", [False, True])
def test_it_is_the_attention_over_the_summaries(grid, options, kind, masked):
    query, key, value = tokens(grid, **options)
    bases = [basis(grid, **options, kind=kind or "mean", seed=seed) for seed in (1, 2)]
    hierarchy = Hierarchy(grid, options["cell_size"], options.get("rank", 1), causal=options.get("causal", False))
    count = options.get("num_global_tokens", 0)
    mask = torch.arange(hierarchy.num_tokens).expand(2, -1) % 3 == 1 if masked else None
    keys, values = (x[:, :, count:] for x in (key, value))
    summaries = [
        aggregate(x, b, hierarchy, key_padding_mask=mask) for x, b in zip((keys, values), bases, strict=True)
    ]
    shared = dict(num_global_tokens=count, key_padding_mask=mask, scale=0.3, group_bias=False, return_lse=True)
    expected = fma_attention(query, key, value, *summaries, hierarchy, **shared)
    given = {} if kind is None else dict(key_basis=bases[0], value_basis=bases[1])
    for mine, theirs in zip(fma(query, key, value, grid=grid, **given, **options | shared), expected, strict=True):
        assert torch.equal(mine, theirs)


@CASES
def test_a_query_basis_makes_it_linear(grid, options):
    query, key, value = tokens(grid, **options)
    pool = basis(grid, **options, causal_queries=options.get("causal", False))
    linear = fma(query, key, value, grid=grid, query_basis=pool, **options)
    exact = fma(query, key, value, grid=grid, query_basis=pool, backend="reference", **options)
    torch.testing.assert_close(linear, exact)
    assert not torch.allclose(linear, fma(query, key, value, grid=grid, **options))


@CASES
def test_the_near_field_alone_has_no_summaries(grid, options):
    query, key, value = tokens(grid, **options)
    hierarchy = Hierarchy(grid, options["cell_size"], options.get("rank", 1), causal=options.get("causal", False))
    count = options.get("num_global_tokens", 0)
    expected = fma_attention(query, key, value, None, None, hierarchy, num_global_tokens=count)
    assert torch.equal(fma(query, key, value, grid=grid, near_only=True, **options), expected)


@pytest.mark.parametrize("count", [0, 2])
def test_a_sequence_needs_no_grid(count):
    query, key, value = tokens((70,), num_global_tokens=count)
    options = dict(cell_size=4, num_global_tokens=count)
    assert torch.equal(fma(query, key, value, **options), fma(query, key, value, grid=(70,), **options))


def test_small_inputs_get_full_attention():
    query, key, value = tokens((4, 6))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(fma(query, key, value, cell_size=3, grid=(4, 6)), expected)


@pytest.mark.parametrize("grid, causal", [((70,), False), ((70,), True), ((19, 26), False), ((9, 14, 11), False)])
@pytest.mark.parametrize("rank", [1, 2])
def test_a_rank_equal_to_the_cell_is_the_attention_with_cells_twice_as_large(grid, causal, rank):
    """Its summaries of level 1 are single tokens; docs/choosing.md advises against it."""
    query, key, value = tokens(grid)
    out, expected = (
        fma(query, key, value, grid=grid, cell_size=cell_size, rank=rank, causal=causal)
        for cell_size in (rank, 2 * rank)
    )
    torch.testing.assert_close(out, expected)


def test_it_compiles_in_one_graph_without_a_warning(recwarn):
    query, key, value = (x.float() for x in tokens((70,)))
    torch.compiler.reset()
    compiled = torch.compile(lambda *x: fma(*x, cell_size=4, rank=2), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(query, key, value), fma(query, key, value, cell_size=4, rank=2))
    assert not [warning for warning in recwarn if "fma" in str(warning.message)]


def test_autocast_takes_inputs_of_several_dtypes():
    """As PyTorch's own attention does: a module's projections come in bfloat16, what was rotated in float32."""
    query, key, value = (x.float() for x in tokens((70,)))
    with torch.autocast("cpu", torch.bfloat16):
        out = fma(query, key.bfloat16(), value, cell_size=4)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), fma(query, key, value, cell_size=4), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(query=torch.zeros(2, 70, 3)), r"query.shape=\(2, 70, 3\): expected four dimensions"),
        (dict(key=torch.zeros(2, 2, 69, 3)), r"key.shape=\(2, 2, 69, 3\): expected \(2, 2, 70, 3\)"),
        (dict(grid=(7, 11)), r"query.shape=\(2, 2, 70, 3\): expected 77 tokens in dimension 2 for grid=\(7, 11\)"),
        (dict(num_global_tokens=70), r"query.shape=\(2, 2, 70, 3\): expected more than 70 tokens in dimension 2"),
        (dict(num_global_tokens=-1), "num_global_tokens=-1: expected an integer >= 0"),
        (dict(num_global_tokens=1, causal=True), "num_global_tokens=1: expected 0 with causal=True"),
        (dict(cell_size=0), "cell_size=0: expected an integer >= 1"),
        (dict(rank=3), "rank=3: expected a divisor of cell_size, which is 4"),
        (dict(causal=True, grid=(7, 10)), "causal=True: expected False on a grid of 2 axes"),
        (dict(key_basis="mean"), "key_basis='mean': expected a SummaryBasis or None"),
        (dict(near_only=True, value_basis=SummaryBasis(2, 3, 4)), "value_basis=.*: expected None with near_only=True"),
        (dict(key_basis=SummaryBasis(2, 3, 8)), "basis.cell_size=8: expected 4"),
        (dict(key_basis=SummaryBasis(1, 3, 4)), "basis.num_heads=1: expected 2"),
        (dict(dropout_p=1), "dropout_p=1: expected a probability"),
        (dict(backend="cuda"), "backend='cuda': expected one of auto, triton, cpp, torch, reference"),
    ],
)
def test_bad_arguments_are_refused_by_name(change, message):
    arguments = dict(zip(("query", "key", "value"), torch.zeros(3, 2, 2, 70, 3), strict=True), cell_size=4)
    fma(**arguments)
    with pytest.raises(ValueError, match=message):
        fma(**arguments | change)


def test_everything_but_the_tokens_is_named():
    query, key, value = tokens((70,))
    with pytest.raises(TypeError):
        fma(query, key, value, 4)


def test_a_traced_model_is_refused_in_plain_words():
    query, key, value = (x.float() for x in tokens((70,)))
    with pytest.raises(NotImplementedError, match=r"torch\.jit\.trace.*torch\.export"):
        torch.jit.trace(lambda *x: fma(*x, cell_size=4), (query, key, value))
