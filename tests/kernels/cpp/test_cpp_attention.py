"""The CPU kernels of the attention against the dense definition in float64, on random and on awkward problems."""

import copy
import math

import pytest
import torch
from helpers.attention_problems import make_problem, problems
from helpers.tensors import random
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fma_kernels import CoreAttention, FMAttention, Hierarchy, SummaryBasis, fma, fma_attention, ops, summaries
from fma_kernels.backends.cpp import attention as fused
from fma_kernels.backends.cpp import library
from fma_kernels.backends.level_pass import LevelPass

ALL = pytest.mark.parametrize("attends", ["near", "fma", "fma_linear"])

#: grid, cell size, rank, causal, head dimension
SHAPES = {
    "sequence": ((300,), 16, 4, False, 32),
    "causal": ((300,), 16, 4, True, 64),
    "long causal": ((1000,), 64, 4, True, 20),
    "cells of 49 tokens": ((30, 23), 7, 1, False, 24),
    "image": ((30, 23), 8, 2, False, 32),
    "narrow image": ((2, 90), 4, 2, False, 16),
    "volume": ((9, 7, 8), 2, 2, False, 8),
    "odd cells": ((250,), 30, 5, True, 40),
    "cells above a tile": ((400,), 96, 4, False, 16),
    "tiny cells": ((75,), 2, 1, True, 17),
    "large head": ((200,), 32, 4, False, 128),
    "one channel": ((70,), 4, 2, False, 1),
    "a single token": ((1,), 4, 2, True, 8),
}


def in_float32(problem):
    """The same problem in float32, and its numbers in float64."""
    low = copy.copy(problem)
    low.tensors = [x.detach().float().requires_grad_() for x in problem.tensors]
    low.bases = [copy.deepcopy(basis).float() for basis in problem.bases]
    exact = copy.copy(problem)
    exact.tensors = [x.detach().double().requires_grad_() for x in low.tensors]
    exact.bases = [copy.deepcopy(basis).double() for basis in low.bases]
    return low, exact


def results(problem, backend, grad, **options):
    out, lse = problem.attention(backend, return_lse=True, **options)
    finite = lse.masked_fill(lse == -math.inf, 0)
    total = (out * grad.to(out.dtype)).sum() + finite.sum()
    grads = torch.autograd.grad(total, problem.leaves, allow_unused=True)
    return [out, lse, *(torch.zeros_like(x) if g is None else g for x, g in zip(problem.leaves, grads, strict=True))]


def assert_as_precise(mine, peers, exact):
    """Errors are at most twice those of the blockwise backend, by their root mean square, and a few roundings."""
    for number, (a, b, truth) in enumerate(zip(mine, peers, exact, strict=True)):
        known = truth.isfinite()
        assert torch.equal(a.isfinite(), known)
        size = truth[known].square().mean().sqrt().item() if known.any() else 0.0
        error, allowed = ((x.double() - truth)[known].square().mean().sqrt().item() if size else 0.0 for x in (a, b))
        message = f"{number}: {error:.1e}, blockwise {allowed:.1e}, of {size:.1e}"
        assert error <= 2 * allowed + 3e-7 * max(size, 1e-2), message


@settings(max_examples=120)
@given(problems(), st.integers(1, 40))
def test_outputs_and_all_gradients(problem, dim):
    hierarchy = problem.hierarchy
    problem = make_problem(
        hierarchy, kind=problem.bases[0].kind, share_heads=problem.bases[0].share_heads, dim=dim,
        masked=problem.mask is not None, group_bias=problem.group_bias, attends=problem.attends,
        num_global_tokens=problem.num_global_tokens,
    )  # fmt: skip
    low, exact = in_float32(problem)
    grad = random(*problem.tensors[0].shape, seed=7)
    for mine, truth in zip(results(low, "cpp", grad), results(exact, "reference", grad), strict=True):
        size = truth[truth.isfinite()].abs().max().item() if truth.isfinite().any() else 0.0
        torch.testing.assert_close(mine.double(), truth, rtol=0, atol=3e-5 * max(size, 1))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])
@ALL
def test_awkward_shapes(shape, masked, attends):
    grid, cell_size, rank, causal, dim = shape
    hierarchy, batch = Hierarchy(grid, cell_size, rank, causal=causal), 2 if masked else 1
    problem = make_problem(hierarchy, dim=dim, masked=masked, attends=attends, batch=batch)
    if masked:
        problem.mask[0, : 3 * cell_size] = True  # whole cells; with a causal grid, queries that read nothing
    low, exact = in_float32(problem)
    grad = random(*problem.tensors[0].shape, seed=7)
    assert_as_precise(*(results(low, backend, grad) for backend in ("cpp", "torch")), results(exact, "reference", grad))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@ALL
def test_low_precision_rounds_inputs_and_results_alone(dtype, attends):
    problem = make_problem(Hierarchy((19, 22), 4, 2), attends=attends, dim=16)
    tokens = [x.detach().to(dtype) for x in problem.tensors]
    made = [random(2, 2, problem.hierarchy.num_summaries, 16, seed=i).to(dtype) for i in range(3)]
    far = [None, None] if attends == "near" else made[1:]
    query = dict(query_summaries=made[0]) if attends == "fma_linear" else {}
    out = fma_attention(*tokens, *far, problem.hierarchy, backend="cpp", **query)
    wide = [None if x is None else x.double() for x in (*tokens, *far)]
    query = {name: x.double() for name, x in query.items()}
    expected = fma_attention(*wide, problem.hierarchy, backend="reference", **query)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("layout", ["packed", "channels apart", "expanded"])
@ALL
def test_any_strides(layout, attends):
    """Views of packed projections are read where they lie; other layouts are copied."""
    problem = make_problem(Hierarchy((113,), 16, 4), attends=attends, dim=16)
    low, _ = in_float32(problem)
    with torch.no_grad():
        if layout == "packed":
            packed = torch.stack([x.transpose(1, 2) for x in low.tensors], 2)
            low.tensors = [x.transpose(1, 2) for x in packed.unbind(2)]
        elif layout == "channels apart":
            low.tensors = [x.repeat_interleave(2, -1)[..., ::2] for x in low.tensors]
        else:
            low.tensors = [x[:, :1].expand(-1, 2, -1, -1) for x in low.tensors]
    low.tensors = [x.requires_grad_() for x in low.tensors]
    assert not all(x.is_contiguous() for x in low.tensors)
    grad = random(*low.tensors[0].shape, seed=7).float().transpose(1, 2).contiguous().transpose(1, 2)
    mine, theirs = (results(low, backend, grad) for backend in ("cpp", "torch"))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@ALL
@pytest.mark.parametrize("heads", [1, 3, 8])
def test_the_same_bits_for_any_number_of_threads_and_in_every_run(attends, heads, monkeypatch):
    problem = make_problem(Hierarchy((500,), 16, 4, causal=True), attends=attends, dim=24, heads=heads, batch=1)
    low, _ = in_float32(problem)
    grad = random(*low.tensors[0].shape, seed=7)
    runs = []
    for threads in (1, 2, 5, 2):
        monkeypatch.setattr(library, "threads", lambda threads=threads: threads)
        runs.append(results(low, "cpp", grad))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


def test_lists_name_every_pair_once():
    """The tables of the kernels against who reads whom by definition."""
    from fma_kernels.backends.reference import _membership

    for grid, cell_size, rank, causal, _ in SHAPES.values():
        hierarchy = Hierarchy(grid, cell_size, rank, causal=causal)
        if not hierarchy.num_levels or hierarchy.num_tokens > 500:
            continue
        near, far, _ = _membership(hierarchy, torch.device("cpu"))
        table, n = fused.tables(LevelPass(hierarchy, 0, far=True)), hierarchy.num_tokens
        count = torch.zeros(n, n + hierarchy.num_summaries, dtype=torch.int64)
        for cell, key_cells in enumerate(table.key_cells.tolist()):
            queries = table.query_rows[table.query_first[cell] : table.query_first[cell + 1]].long()
            for key_cell in (c for c in key_cells if c >= 0):
                keys = table.key_rows[table.key_first[key_cell] : table.key_first[key_cell + 1]].long()
                count[queries[:, None], keys] += 1
        order = torch.ones_like(near).tril() if causal else torch.ones_like(near)
        assert torch.equal(count[:, :n] * order, near.long())
        assert torch.equal(count[:, n:], far.long())


def test_extra_memory_is_scratch_alone():
    """Beyond output, gradients and their sums nothing of the size of the inputs is made."""
    from fma_kernels.measure import peak_mib

    hierarchy = Hierarchy((16384,), 64, 4)
    tokens = [torch.randn(1, 8, 16384, 64, requires_grad=True) for _ in range(3)]
    far = [torch.randn(1, 8, hierarchy.num_summaries, 64, requires_grad=True) for _ in range(2)]
    grad = torch.randn(1, 8, 16384, 64)
    fma_attention(*tokens, *far, hierarchy, backend="cpp")  # tables are made once per geometry

    def step():
        fma_attention(*tokens, *far, hierarchy, backend="cpp").backward(grad)

    results = sum(x.nbytes for x in (*tokens, *far, grad)) / 2**20  # gradients and the output
    assert results <= peak_mib(step, torch.device("cpu")) <= 1.05 * results


def test_extra_memory_of_summaries_and_attention():
    """The gradients by way of the summaries are added in place: no further tensor as large as the keys."""
    from fma_kernels.measure import peak_mib

    module = CoreAttention(8, 64, cell_size=64, rank=4, num_levels=8, backend="cpp")
    x = [torch.randn(1, 8, 16384, 64, requires_grad=True) for _ in range(3)]
    grad = torch.randn(1, 8, 16384, 64)
    module(*x)

    def step():
        module(*x).backward(grad)

    results = sum(part.nbytes for part in (*x, grad)) / 2**20
    assert results <= peak_mib(step, torch.device("cpu")) <= 1.3 * results  # summaries are an eighth


@settings(max_examples=60)
@given(problems(), st.integers(1, 40), st.sampled_from([torch.float32, torch.bfloat16]))
def test_summaries_and_attention_in_one_operator(problem, dim, dtype):
    """The same bits as by two operators; in the gradients the sum of both parts is rounded otherwise."""
    hierarchy = problem.hierarchy
    assume(problem.attends != "near" and problem.bases[0].kind != "direct")
    problem = make_problem(
        hierarchy, kind=problem.bases[0].kind, share_heads=problem.bases[0].share_heads, dim=dim,
        masked=problem.mask is not None, group_bias=problem.group_bias, attends=problem.attends,
        num_global_tokens=problem.num_global_tokens,
    )  # fmt: skip
    problem, _ = in_float32(problem)
    problem.tensors = [x.detach().to(dtype).requires_grad_() for x in problem.tensors]
    query, key, value = problem.bases
    bases = dict(query_basis=query if problem.attends == "fma_linear" else None, key_basis=key, value_basis=value)
    together = fma(
        *problem.tensors, grid=hierarchy.grid, cell_size=hierarchy.cell_size, rank=hierarchy.rank,
        causal=hierarchy.causal, **bases, group_bias=problem.group_bias, key_padding_mask=problem.mask,
        num_global_tokens=problem.num_global_tokens, return_lse=True, backend="cpp",
    )  # fmt: skip
    apart, made = problem.attention("cpp", return_lse=True), []
    for out, lse in (together, apart):
        total = out.float().square().sum() + lse.masked_fill(lse == -math.inf, 0).sum()
        made.append(torch.autograd.grad(total, problem.leaves, allow_unused=True))
    assert torch.equal(together[0], apart[0]) and torch.equal(together[1], apart[1])
    for mine, theirs in zip(*made, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            rounding = 4 * torch.finfo(dtype).eps * theirs.abs().max().item()
            torch.testing.assert_close(mine, theirs, rtol=0, atol=rounding)


@pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])
def test_the_operators_keep_their_contract(masked):
    """Schema, shapes, strides and dtypes under tracing, gradients: PyTorch's own checks."""
    hierarchy = Hierarchy((40,), 8, 2)
    x = [torch.randn(1, 2, 40, 16, requires_grad=True) for _ in range(3)]
    far = [torch.randn(1, 2, hierarchy.num_summaries, 16, requires_grad=True) for _ in range(3)]
    mask = torch.arange(40)[None] % 3 == 0 if masked else None
    for of_levels in (far, [None, *far[1:]], [None] * 3):
        inputs = (*x, *of_levels, mask, None, *hierarchy.pack(), [], 0.5, True, 0.0, "cpp")
        torch.library.opcheck(ops.attention._attend, inputs)
    weights = [w.detach().requires_grad_() for w in summaries._cell_weights(SummaryBasis(2, 16, 8, 2), hierarchy, x[0])]
    torch.library.opcheck(ops.pooling._pool, (x[0], *weights, mask, *hierarchy.pack(), False, True, "cpp"))
    for of_queries in (weights, [None, None]):
        inputs = (*x, *of_queries, *weights, *weights, mask, None, *hierarchy.pack(), 0.5, True, 0.0, True, "cpp")
        torch.library.opcheck(ops.fma_operator._fma, inputs)


@ALL
def test_modules_compile_export_and_recompute(attends):
    module = FMAttention(32, 2, cell_size=8, rank=2, attention=attends, backend="cpp", num_levels=2)
    x = torch.randn(2, 90, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def step(function):
        out = function(x)
        return [out, *torch.autograd.grad(out.square().sum(), [x, *module.parameters()])]

    expected = step(module)
    torch.compiler.reset()
    compiled = step(torch.compile(module, fullgraph=True, backend="aot_eager"))
    recomputed = step(lambda x: torch.utils.checkpoint.checkpoint(module, x, use_reentrant=False))
    for mine in (compiled, recomputed):
        for a, b in zip(mine, expected, strict=True):
            torch.testing.assert_close(a, b)
    program = torch.export.export(module.eval(), (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch", min=2)}})
    more = torch.randn(5, 90, 32)
    torch.testing.assert_close(program.module()(more), module(more))


def test_dropout_falls_back_and_says_so():
    query, key, value = torch.randn(3, 1, 2, 100, 16)
    torch.manual_seed(0)
    expected = fma(query, key, value, cell_size=8, dropout_p=0.2, backend="torch")
    torch.manual_seed(0)
    torch.testing.assert_close(fma(query, key, value, cell_size=8, dropout_p=0.2), expected)  # summaries differ by bits
    message = "backend='cpp': expected another one for fma_attention: attention weights are dropped"
    with pytest.raises(ValueError, match=message):
        fma(query, key, value, cell_size=8, dropout_p=0.2, backend="cpp")


@pytest.mark.parametrize(
    ("options", "reason"),
    [(dict(dtype=torch.float64), "the dtype is torch.float64"), (dict(dim=300), "the head dimension is 300")],
)
def test_says_why_the_kernels_cannot_run(options, reason):
    x = torch.randn(3, 1, 2, 100, options.get("dim", 16), dtype=options.get("dtype", torch.float32))
    with pytest.raises(ValueError, match=f"backend='cpp': expected another one for fma_attention: {reason}"):
        fma(*x, cell_size=8, backend="cpp")
    assert fma(*x, cell_size=8).isfinite().all()
