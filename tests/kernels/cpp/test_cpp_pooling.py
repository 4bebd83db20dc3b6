"""The CPU kernels of the summaries against the PyTorch backend in float64."""

import copy

import pytest
import torch
from helpers.tensors import random
from torch.utils.flop_counter import FlopCounterMode

from fma_kernels import Hierarchy, SummaryBasis, aggregate
from fma_kernels.backends.cpp import library

#: grid, cell size, rank; options of the basis
SHAPES = {
    "sequence": ((113,), 16, 4, {}),
    "one level": ((29,), 8, 2, {}),
    "levels that share weights": ((300,), 4, 2, dict(num_levels=1)),
    "shared heads": ((70,), 8, 2, dict(share_heads=True)),
    "mean": ((113,), 8, 4, dict(kind="mean")),
    "rank 1, channels beyond a vector": ((75,), 6, 1, dict(dim=20)),
    "rank of five": ((43,), 5, 5, {}),
    "rank of nine": ((75,), 18, 9, dict(dim=7)),
    "image of 49-token cells": ((30, 23), 7, 1, {}),
    "image": ((11, 18), 4, 2, {}),
    "narrow image": ((2, 50), 2, 1, {}),
    "image, shared heads": ((9, 17), 4, 2, dict(share_heads=True)),
    "volume": ((7, 9, 5), 2, 1, {}),
    "volume, rank 2": ((5, 4, 3), 2, 2, {}),
    "causal queries": ((113,), 16, 4, dict(causal_queries=True)),
    "causal queries, rank 1": ((133,), 2, 1, dict(causal_queries=True)),
    "causal queries, mean": ((113,), 8, 4, dict(causal_queries=True, kind="mean")),
}


class Problem:
    """Random inputs in float32; results of any backend and precision on the very same numbers."""

    def __init__(self, grid, cell_size, rank, options, masked, heads=2):
        options = dict(options)
        dim, self.queries = options.pop("dim", 16), options.get("causal_queries", False)
        self.hierarchy = Hierarchy(grid, cell_size, rank, causal=self.queries)
        options.setdefault("num_levels", self.hierarchy.num_levels)
        self.basis = SummaryBasis(heads, dim, cell_size, rank, ndim=len(grid), **options)
        for number, parameter in enumerate(self.basis.parameters()):
            parameter.data += 0.3 * random(*parameter.shape, dtype=torch.float32, seed=number)
        self.x = random(2, heads, self.hierarchy.num_tokens, dim, dtype=torch.float32)
        self.mask = random(2, self.hierarchy.num_tokens, seed=3) > 0.5 if masked else None

    def run(self, backend, dtype=torch.float32):
        basis, x = copy.deepcopy(self.basis).to(dtype), self.x.to(dtype).requires_grad_()
        out = aggregate(
            x, basis, self.hierarchy, key_padding_mask=self.mask, queries=self.queries, backend=backend
        )  # fmt: skip
        grad = random(*out.shape, seed=9).to(dtype)
        leaves = [x, *basis.parameters()]
        grads = torch.autograd.grad(out, leaves, grad, allow_unused=True)  # weights of levels that there are not
        return [out, *(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads, strict=True))]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("masked", [False, True], ids=["full", "masked"])
def test_summaries_and_gradients(shape, masked):
    problem = Problem(*shape, masked)
    exact, peers = problem.run("torch", torch.float64), problem.run("torch")
    for mine, peer, truth in zip(problem.run("cpp"), peers, exact, strict=True):
        size = truth.square().mean().sqrt()
        error, allowed = ((x.double() - truth).square().mean().sqrt() for x in (mine, peer))
        assert error <= 2 * allowed + 3e-7 * size


@pytest.mark.parametrize("name", ["sequence", "shared heads", "image", "causal queries"])
def test_the_same_bits_for_any_number_of_threads(name, monkeypatch):
    problem, runs = Problem(*SHAPES[name], True), []
    for threads in (1, 2, 7):
        monkeypatch.setattr(library, "threads", lambda threads=threads: threads)
        runs.append(problem.run("cpp"))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


def test_any_strides():
    problem = Problem(*SHAPES["image"], False)
    expected = problem.run("cpp")
    problem.x = problem.x.transpose(1, 2).contiguous().transpose(1, 2)
    assert all(torch.equal(a, b) for a, b in zip(problem.run("cpp"), expected, strict=True))
    problem.x = problem.x.repeat_interleave(2, -1)[..., ::2]
    assert all(torch.equal(a, b) for a, b in zip(problem.run("cpp"), expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_sums_in_float32(dtype):
    problem = Problem(*SHAPES["image"], False)
    x = problem.x.to(dtype)
    out = aggregate(x, problem.basis, problem.hierarchy, backend="cpp")
    expected = aggregate(x.double(), copy.deepcopy(problem.basis).double(), problem.hierarchy, backend="torch")
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_direct_bases_are_refused():
    hierarchy, basis = Hierarchy((70,), 8, 2), SummaryBasis(2, 16, 8, 2, kind="direct", num_levels=3)
    x = torch.randn(1, 2, 70, 16)
    with pytest.raises(ValueError, match="backend='cpp': expected another one for aggregate: every level of a direct"):
        aggregate(x, basis, hierarchy, backend="cpp")
    assert torch.equal(aggregate(x, basis, hierarchy), aggregate(x, basis, hierarchy, backend="torch"))


@pytest.mark.parametrize("name", ["sequence", "image", "volume", "causal queries"])
def test_flops_are_those_of_contractions(name):
    problem, counts = Problem(*SHAPES[name], False), {}
    for backend in ("cpp", "torch"):
        with FlopCounterMode(display=False) as counter:
            problem.run(backend)
        counts[backend] = counter.get_total_flops()
    assert counts["cpp"] == counts["torch"]
