"""The fused attention kernels: on a GPU where there is one, else in Triton's interpreter."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from helpers.tensors import random

from fma_kernels import Hierarchy, fma_attention
from fma_kernels.backends.reference import _membership
from fma_kernels.cells import token_counts
from fma_kernels.measure import peak_mib

pytest.importorskip("triton")
from fma_kernels.backends.triton import attention as fused
from fma_kernels.backends.triton import attention_tables as tables

pytestmark = pytest.mark.usefixtures("poisoned")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE.type == "cuda" else [])]
ALL_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
ATTENTIONS = {name: name for name in ("fma", "fma_linear", "near")}
ALL = pytest.mark.parametrize("attends", ATTENTIONS)

#: grid, cell size, rank, causal, head dimension
SMALL = {
    "sequence": ((113,), 16, 4, False, 16),
    "causal": ((113,), 16, 4, True, 16),
    "image": ((14, 24), 7, 1, False, 16),
    "volume": ((6, 5, 3), 2, 2, False, 16),
}
ODD = {
    "long causal": ((1023,), 64, 4, True, 32),
    "padded head": ((300,), 32, 2, False, 24),
    "odd cells": ((250,), 30, 5, True, 40),
    "cells above a tile": ((400,), 96, 4, False, 16),
    "tiny cells": ((75,), 2, 1, True, 16),
    "image of partial cells": ((30, 23), 8, 2, False, 32),
    "narrow image": ((2, 90), 4, 2, False, 16),
    "large head": ((200,), 32, 4, False, 128),
}


def combined(**factors):
    """Parametrize by every combination of ``name={id: value}``.

    The interpreter, which is slow, gets every other one: any two values of different factors still meet, as long as
    there is a third factor.
    """
    return pytest.mark.parametrize(
        list(factors),
        [
            pytest.param(*(value for _, (_, value) in chosen), id="-".join(name for _, (name, _) in chosen))
            for chosen in product(*(enumerate(values.items()) for values in factors.values()))
            if DEVICE.type == "cuda" or sum(number for number, _ in chosen) % 2 == 0
        ],
    )


class Problem:
    """Random inputs, rounded to a dtype; results of any backend and precision on the very same numbers."""

    def __init__(self, shape, dtype=torch.float32, *, attends="fma", masked=False, batch=2, heads=1, group_bias=True):
        grid, cell_size, rank, causal, dim = shape
        self.hierarchy = Hierarchy(grid, cell_size, rank, causal=causal)
        n, s = self.hierarchy.num_tokens, self.hierarchy.num_summaries
        #: Names of the inputs in the order of the operator.
        far = ["far_query", "far_key", "far_value"]
        self.names = ["query", "key", "value", *dict(near=[], fma=far[1:], fma_linear=far)[attends]]
        lengths = [s if name.startswith("far") else n for name in self.names]
        self.inputs = [random(batch, heads, length, dim, seed=i).to(DEVICE, dtype) for i, length in enumerate(lengths)]
        self.grad = random(batch, heads, n, dim, seed=9).to(DEVICE, dtype)
        self.group_bias = group_bias
        self.mask = None
        if masked:
            generator = torch.Generator().manual_seed(3)
            self.mask = (torch.rand(batch, n, generator=generator) < 0.3).to(DEVICE)
            self.mask[0, : 2 * cell_size] = True  # whole cells; with a causal grid, queries that read nothing

    def run(self, backend, dtype=None, inputs=None, **options):
        inputs = [x.detach().to(dtype or x.dtype).requires_grad_() for x in inputs or self.inputs]
        out = self._sdpa(*inputs) if backend == "sdpa" else self.attention(inputs, backend, **options)
        return [out, *torch.autograd.grad(out, inputs, self.grad.to(out.dtype))]

    def attention(self, inputs, backend, **options):
        given = dict(zip(self.names, inputs, strict=True))
        tokens = [given[name] for name in self.names[:3]]
        query, *summaries = (given.get(name) for name in ("far_query", "far_key", "far_value"))
        return fma_attention(
            *tokens, *summaries, self.hierarchy, query_summaries=query, group_bias=self.group_bias,
            key_padding_mask=self.mask, backend=backend, **options,
        )  # fmt: skip

    def _sdpa(self, query, key, value, far_key, far_value):
        """FMA as one call of PyTorch's attention over tokens and summaries, with a dense bias."""
        hierarchy, group_bias, key_padding_mask = self.hierarchy, self.group_bias, self.mask
        near, far, _ = _membership(hierarchy, query.device)
        counts = token_counts(hierarchy, query.device, key_padding_mask)
        near, far = near[None].float(), torch.where(far, counts[:, None], 0.0)
        bias = torch.cat([near, far], 2).log()  # log count; -inf for what is not read
        bias = bias if group_bias else torch.where(bias > -math.inf, 0.0, -math.inf)
        keys, values = torch.cat([key, far_key], 2), torch.cat([value, far_value], 2)
        return F.scaled_dot_product_attention(query, keys, values, bias[:, None].to(query.dtype))


def assert_as_precise(problem, results, exact=None):
    """Errors are at most twice those of PyTorch's own attention, by their root mean square, and a rounding.

    The largest error of a few thousand is that of the unluckiest roundings: among implementations that are equally
    precise, and among devices, it differs by more than that factor.
    """
    exact = exact or problem.run("reference", torch.float64)
    plain = len(problem.names) == 5 and problem.mask is None
    peers = problem.run("sdpa" if plain else "reference")
    for name, mine, peer, truth in zip(["out", *problem.names], results, peers, exact, strict=True):
        assert mine.dtype == peer.dtype and mine.shape == peer.shape
        error, allowed, size = (x.square().mean().sqrt().item() for x in (mine - truth, peer - truth, truth))
        rounding = torch.finfo(mine.dtype).eps * size
        assert error <= 2 * allowed + rounding, f"{name}: {error:.2e}, PyTorch {allowed:.2e}"


@combined(attends=ATTENTIONS, dtype=ALL_DTYPES, shape=SMALL, masked={"full": False, "masked": True})
def test_small_outputs_and_gradients(shape, dtype, attends, masked):
    problem = Problem(shape, dtype, attends=attends, masked=masked, batch=2 if masked else 1)
    assert_as_precise(problem, problem.run("triton"))


@combined(attends=ATTENTIONS, dtype={"full": torch.float32, "low": DTYPES[-1]}, shape=ODD)
def test_odd_outputs_and_gradients(shape, dtype, attends):
    problem = Problem(shape, dtype, attends=attends, batch=1, group_bias=False)
    assert_as_precise(problem, problem.run("triton"))


@ALL
@pytest.mark.parametrize("shape", [SMALL["causal"], ((30,), 16, 4, False, 16)], ids=["far", "near alone"])
def test_the_log_sum_exp_and_its_gradients(attends, shape):
    problem = Problem(shape, attends=attends)
    step = random(2, 1, shape[0][0], seed=8).to(DEVICE)
    results = []
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        inputs = [x.detach().to(dtype).requires_grad_() for x in problem.inputs]
        lse = problem.attention(inputs, backend, return_lse=True)[1]
        assert lse.dtype == dtype
        grads = torch.autograd.grad((lse * step).sum(), inputs, allow_unused=True)
        results.append([lse, *(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, grads, strict=True))])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-4)


def test_a_query_that_reads_nothing_gives_zeros():
    problem = Problem(SMALL["causal"], masked=True)
    results = problem.run("triton")
    assert not results[0][0, :, :32].any() and not results[1][0, :, :32].any()


def test_views_of_packed_projections_need_no_copy(monkeypatch):
    """Queries, keys and values as a module makes them: slices of one tensor, heads and tokens exchanged."""
    problem = Problem(SMALL["sequence"], heads=2)
    expected = problem.run("triton")
    packed = torch.stack([x.transpose(1, 2) for x in problem.inputs[:3]], 2).contiguous()
    views = [x.transpose(1, 2) for x in packed.unbind(2)]
    assert all(not x.is_contiguous() for x in views)
    monkeypatch.setattr(torch.Tensor, "clone", lambda *args, **options: pytest.fail("a copy was made"))
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda x, *_: x if x.is_contiguous() else pytest.fail("a copy"))
    leaves = [x.requires_grad_() for x in (*views, *problem.inputs[3:])]
    out = problem.attention(leaves, "triton")
    grads = torch.autograd.grad(out, leaves, problem.grad)
    for mine, theirs in zip([out, *grads], expected, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("change", [lambda x: x[..., ::2], lambda x: x[..., 1:-15]], ids=["strided", "unaligned"])
def test_other_layouts_are_copied(change):
    problem = Problem(((113,), 16, 4, False, 32))
    wide = [change(x) for x in problem.inputs]
    problem.inputs = wide
    problem.grad = problem.grad[..., :16]
    for mine, theirs in zip(problem.run("triton"), problem.run("torch"), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@ALL
def test_small_runs_give_the_same_bits(attends):
    """No atomics: sums have one order."""
    problem = Problem(SMALL["causal"], DTYPES[-1], attends=attends)
    first = problem.run("triton")
    for _ in range(3 if DEVICE.type == "cuda" else 1):
        assert all(torch.equal(a, b) for a, b in zip(first, problem.run("triton"), strict=True))


def test_partial_gradients_of_few_sequences_at_a_time(monkeypatch):
    """Far gradients are made for as many sequences at once as memory allows: one gives the same bits as all."""
    problem = Problem(SMALL["sequence"], heads=2)
    expected = problem.run("triton")
    monkeypatch.setattr(fused, "PARTIAL_BYTES", 1)
    assert all(torch.equal(a, b) for a, b in zip(problem.run("triton"), expected, strict=True))


def test_long_chunks_and_short_ones_agree(monkeypatch):
    problem = Problem(ODD["tiny cells"])
    expected = problem.run("triton")
    monkeypatch.setattr(fused, "_CHUNK_TOKENS", 8)
    for mine, theirs in zip(problem.run("triton"), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "heads"),
    [(((16384,), 64, 4, False, 64), 4), (((128, 128), 8, 2, False, 64), 4)],
    ids=["sequence", "image"],
)
@ALL
def test_extra_memory_is_a_quarter_of_inputs_outputs_and_gradients_at_most(monkeypatch, shape, heads, attends):
    """Of what the host code allocates, launches left out: device memory does not depend on what the kernels compute."""

    class Nothing:
        def __getitem__(self, grid):
            return lambda *args, **options: None

    for name in [name for name in vars(fused.kernels) if name.startswith(("attend_", "sum_"))]:
        monkeypatch.setattr(fused.kernels, name, Nothing())
    torch.use_deterministic_algorithms(False)
    problem = Problem(shape, torch.float16, attends=attends, batch=1, heads=heads)
    problem.run("triton")  # tables are made once per geometry
    leaves = [x.requires_grad_() for x in problem.inputs]
    bytes_of = lambda tensors: sum(x.numel() * x.element_size() for x in tensors)  # noqa: E731
    given = bytes_of([*leaves, problem.grad])

    def step():
        problem.attention(leaves, "triton").backward(problem.grad)

    peak = peak_mib(step, DEVICE) * 2**20
    results = bytes_of([*leaves, problem.grad])  # gradients and output
    assert results <= peak <= results + 0.25 * (given + results)


def test_precision_of_float32_is_that_of_matrix_products(monkeypatch):
    assert fused._precision() == "ieee"
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert fused._precision() == "tf32"
        monkeypatch.setattr(torch.version, "hip", "6.2")  # AMD's GPUs have none
        assert fused._precision() == "ieee"
    finally:
        torch.set_float32_matmul_precision(before)
    assert fused._precision() == "ieee"


@ALL
def test_dropout_is_the_same_in_both_passes(attends):
    """Weights, read off by one-hot values, are those of the exact softmax, kept with the given probability and scaled;
    the gradients are those of exactly these weights."""
    p, shape = 0.4, ((40,), 4, 1, False, 64)
    problem = Problem(shape, attends=attends, batch=1)
    n, s = problem.hierarchy.num_tokens, 0 if attends == "near" else problem.hierarchy.num_summaries

    def weights(probability):
        one_hot = torch.eye(n + s, device=DEVICE)[None, None]
        columns = []
        for block in one_hot.split(64, -1):
            inputs = [x.clone() for x in problem.inputs]
            block = F.pad(block, [0, 64 - block.shape[-1]])
            inputs[2] = block[:, :, :n].contiguous()
            if s:
                inputs[-1] = block[:, :, n:].contiguous()
            torch.manual_seed(5)
            columns.append(problem.run("triton", inputs=inputs, dropout_p=probability)[0])
        return torch.cat(columns, -1)[0, 0, :, : n + s]

    exact, dropped = weights(0.0), weights(p)
    assert exact.sum(-1).allclose(torch.ones(n, device=DEVICE), atol=1e-4)
    factor = dropped[exact > 1e-4] / exact[exact > 1e-4]
    kept = factor > 0.5
    torch.testing.assert_close(factor, kept.float() / (1 - p), rtol=1e-3, atol=1e-3)
    assert abs(kept.float().mean().item() - (1 - p)) < 5 * math.sqrt(p * (1 - p) / len(kept))

    torch.manual_seed(5)
    out, *grads = problem.run("triton", dropout_p=p)

    def of_values(tensors):
        return torch.cat([tensors[2], tensors[-1]], 2) if s else tensors[2]

    torch.testing.assert_close(out, dropped @ of_values(problem.inputs), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(of_values(grads), dropped.mT @ problem.grad, rtol=1e-3, atol=1e-4)
    # The gradient of the queries, by the difference along one direction.
    step = 1e-2 * torch.sign(grads[0])
    shifted = []
    for sign in (1, -1):
        torch.manual_seed(5)
        inputs = [problem.inputs[0] + sign * step, *problem.inputs[1:]]
        shifted.append((problem.run("triton", inputs=inputs, dropout_p=p)[0].double() * problem.grad).sum())
    expected = 2 * (grads[0].double() * step).sum()
    torch.testing.assert_close(shifted[0] - shifted[1], expected, rtol=2e-2, atol=0)


def test_lists_name_every_pair_once():
    """Tables of all kernels, whatever the tile, against who reads whom by definition."""
    for grid, cell_size, rank, causal, _ in (SMALL | ODD).values():
        hierarchy = Hierarchy(grid, cell_size, rank, causal=causal)
        if hierarchy.num_tokens > 700:
            continue
        near, far, _ = _membership(hierarchy, torch.device("cpu"))
        in_order = torch.ones_like(near).tril() if causal else torch.ones_like(near)
        exists = token_counts(hierarchy, torch.device("cpu"))[0] > 0
        level_pass = tables.LevelPass(hierarchy, 0, far=True)
        sizes = len(near), len(near) + len(exists)
        for tile in (16, 64):
            reads = pairs(tables.query_schedule(level_pass, tile, torch.device("cpu")), *sizes)
            assert torch.equal(reads[:, : len(near)] * in_order, near.long())
            assert torch.equal(reads[:, len(near) :], (far & exists).long())
            read_by = pairs(tables.key_schedule(level_pass, tile, torch.device("cpu")), *near.shape)
            assert torch.equal(read_by.T * in_order, near.long())
            parts, _ = tables.far_key_schedule(level_pass, tile, 40, 16, torch.device("cpu"))
            assert torch.equal(pairs(parts, *far.T.shape).T, far.long())


def pairs(schedule, owners, partners):
    """Number of times that each (owner row, partner row) is named."""
    count = torch.zeros(owners, partners, dtype=torch.int64)
    for item, (first, last) in enumerate(zip(schedule.first[:-1], schedule.first[1:], strict=True)):
        rows, entries = schedule.rows[item], schedule.partners[first:last].long()
        bits = -torch.ones_like(entries) if schedule.bits is None else schedule.bits[first:last].long()
        for slot in (rows >= 0).nonzero()[:, 0].tolist():
            mine = entries[(bits >> (slot // schedule.group) & 1).bool()]
            count[rows[slot]].index_add_(0, mine, torch.ones_like(mine))
    return count
