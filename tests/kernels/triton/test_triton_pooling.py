"""The fused kernels for summaries: on a GPU where there is one, else in Triton's interpreter."""

import copy
import inspect

import pytest
import torch
from helpers.tensors import random
from torch.utils.flop_counter import FlopCounterMode

from fma_kernels import Hierarchy, SummaryBasis, aggregate, summaries

pytest.importorskip("triton")
from fma_kernels.backends.triton import compile_cases, pooling, pooling_kernels

pytestmark = pytest.mark.usefixtures("poisoned")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LOW = [torch.float16, *([torch.bfloat16] if DEVICE.type == "cuda" else [])]
OPS = torch.ops.fma_kernels
GPU_ONLY = pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU: the interpreter compiles nothing")

#: grid, cell size, rank; options of the problem
SHAPES = {
    "sequence": ((113,), 16, 4, {}),
    "several launches": ((140,), 2, 2, {}),
    "one level": ((29,), 8, 2, {}),
    "levels that share weights": ((100,), 4, 2, dict(num_levels=1)),
    "shared heads": ((70,), 8, 2, dict(share_heads=True, heads=2)),
    "mean": ((113,), 8, 4, dict(kind="mean")),
    "rank 1, padded head": ((75,), 6, 1, dict(dim=20)),
    "two parts of channels": ((40,), 8, 2, dict(dim=40)),
    "rank of five": ((43,), 5, 5, {}),
    "several parts of summaries": ((75,), 18, 9, {}),
    "image of 49-token cells": ((30, 23), 7, 1, {}),
    "image": ((11, 18), 4, 2, {}),
    "narrow image": ((2, 50), 2, 1, {}),
    "image, shared heads": ((9, 17), 4, 2, dict(share_heads=True, heads=2)),
    "image, mean": ((30, 23), 6, 2, dict(kind="mean")),
    "volume": ((7, 9, 5), 2, 1, {}),
    "volume, rank 2": ((5, 4, 3), 2, 2, {}),
    "causal queries": ((113,), 16, 4, dict(queries=True)),
    "causal queries, several launches": ((133,), 2, 1, dict(queries=True)),
    # 10, 5 and 3 cells: a window that does not exist has a child and a parent; the last token is in no window.
    "causal queries, odd numbers of cells": ((40,), 4, 2, dict(queries=True)),
    "causal queries, mean": ((113,), 8, 4, dict(queries=True, kind="mean")),
}
SOME = ["sequence", "shared heads", "image of 49-token cells", "mean", "volume", "causal queries"]


class Problem:
    """Random inputs, rounded to a dtype; results of both backends in any precision on the very same numbers."""

    def __init__(
        self, grid, cell_size, rank, options, dtype=torch.float32, *, masked=False, batch=1, heads=1, dim=16,
    ):  # fmt: skip
        options = dict(options)
        heads, dim, self.queries = options.pop("heads", heads), options.pop("dim", dim), options.pop("queries", False)
        self.hierarchy = Hierarchy(grid, cell_size, rank, causal=self.queries)
        options.setdefault("num_levels", max(1, self.hierarchy.num_levels))
        basis = SummaryBasis(
            heads, dim, cell_size, rank, ndim=len(grid), causal_queries=self.queries, **options
        ).double()
        for seed, parameter in enumerate(basis.parameters()):
            parameter.data += 0.3 * random(*parameter.shape, seed=seed)
        self.basis = basis.to(DEVICE, torch.float32)
        self.x = random(batch, heads, self.hierarchy.num_tokens, dim, seed=50).to(DEVICE, dtype)
        self.grad = random(batch, heads, self.hierarchy.num_summaries, dim, seed=51).to(DEVICE, dtype)
        self.mask = None
        if masked:  # half of the tokens, among them all of the first cells
            self.mask = random(batch, self.hierarchy.num_tokens, seed=52).to(DEVICE) > 0
            self.mask[0, : 2 * cell_size * grid[-1] if len(grid) > 1 else 2 * cell_size] = True

    def run(self, backend, dtype=None, x=None):
        """Summaries, and the gradients of the tokens and of all weights that have one."""
        x = self.x.to(dtype or self.x.dtype).clone() if x is None else x
        x.requires_grad_()
        basis = copy.deepcopy(self.basis) if dtype is None else copy.deepcopy(self.basis).to(dtype)
        out = aggregate(
            x, basis, self.hierarchy, key_padding_mask=self.mask, queries=self.queries, backend=backend
        )
        out.backward(self.grad.to(out.dtype))
        weights = {name: parameter.grad for name, parameter in basis.named_parameters()}
        return {"out": out.detach(), "x": x.grad, **{name: g for name, g in weights.items() if g is not None}}


def assert_as_good_as_torch(fused, problem):
    """Errors are at most twice those of the PyTorch path in the same precision, up to a few roundings of float32."""
    exact, plain = problem.run("torch", torch.float64), problem.run("torch")
    assert fused.keys() == exact.keys()
    for name, expected in exact.items():
        assert fused[name].dtype == plain[name].dtype and fused[name].shape == expected.shape
        error = (fused[name].double() - expected).abs().max()
        allowed = 2 * (plain[name].double() - expected).abs().max() + 4e-7 * expected.abs().max()
        assert error <= allowed, f"{name}: {error:.2e} > {allowed:.2e}"


@pytest.mark.parametrize("name", SHAPES)
def test_summaries_and_gradients(name):
    problem = Problem(*SHAPES[name])
    assert_as_good_as_torch(problem.run("triton"), problem)


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("name", SOME)
def test_low_precision(name, dtype):
    problem = Problem(*SHAPES[name], dtype, batch=2)
    assert_as_good_as_torch(problem.run("triton"), problem)


@pytest.mark.parametrize("name", SOME)
def test_masked_tokens_do_not_exist(name):
    problem = Problem(*SHAPES[name], masked=True, batch=2)
    result = problem.run("triton")
    assert_as_good_as_torch(result, problem)
    assert not result["x"].transpose(1, 2)[problem.mask].any()


def test_what_masked_tokens_hold_does_not_matter():
    problem = Problem(*SHAPES["shared heads"], masked=True)
    expected = problem.run("triton")
    problem.x.transpose(1, 2)[problem.mask] = float("nan")
    result = problem.run("triton")
    assert all(torch.equal(result[name], value) for name, value in expected.items())


@pytest.mark.parametrize("name", ["image of 49-token cells", "rank 1, padded head"])
def test_reads_views_of_packed_projections(name):
    problem = Problem(*SHAPES[name], batch=2, heads=2)
    expected = problem.run("triton")
    batch, heads, tokens, dim = problem.x.shape
    packed = torch.full((batch, 3 + tokens, 3, heads, dim), float("nan"), device=DEVICE)
    view = packed[:, 3:, 1].transpose(1, 2)  # behind three tokens that are not in the grid
    view.copy_(problem.x)
    result = problem.run("triton", x=view.detach())
    assert all(torch.equal(result[name], value) for name, value in expected.items())


def test_reads_tokens_whose_channels_are_apart():
    problem = Problem(*SHAPES["one level"])
    expected = problem.run("triton")
    result = problem.run("triton", x=problem.x.mT.contiguous().mT)
    assert all(torch.equal(result[name], value) for name, value in expected.items())


@pytest.mark.parametrize("name", ["causal queries, several launches", "image of 49-token cells"])
def test_the_same_bits_every_time(name):
    problem = Problem(*SHAPES[name], torch.float16)
    first, second = problem.run("triton"), problem.run("triton")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_splits_of_many_cells():
    """More cells than one split takes, in a batch: weights get the gradients of all of them."""
    problem = Problem((50,), 2, 1, {}, batch=3)
    cells = 3 * problem.hierarchy.cell_grid(1)[0]
    assert cells > 2 * pooling._MIN_ITEMS
    assert_as_good_as_torch(problem.run("triton"), problem)


def test_gradients_of_a_sum():
    """The incoming gradient is one expanded number."""
    problem = Problem(*SHAPES["sequence"])
    problem.grad = torch.ones((), device=DEVICE).expand(problem.grad.shape)
    assert_as_good_as_torch(problem.run("triton"), problem)


def test_without_gradients():
    problem = Problem(*SHAPES["causal queries, several launches"])
    with torch.no_grad():
        out = aggregate(problem.x, problem.basis, problem.hierarchy, queries=True, backend="triton")
    assert torch.equal(out, problem.run("triton")["out"])


def test_frozen_tokens_or_weights():
    problem = Problem(*SHAPES["shared heads"])
    expected = problem.run("triton")
    basis = copy.deepcopy(problem.basis)
    aggregate(problem.x, basis, problem.hierarchy, backend="triton").backward(problem.grad)
    assert torch.equal(basis.axis0_level2.grad, expected["axis0_level2"])
    x = problem.x.clone().requires_grad_()
    aggregate(x, basis.requires_grad_(False), problem.hierarchy, backend="triton").backward(problem.grad)
    assert torch.equal(x.grad, expected["x"])


def test_weights_in_low_precision():
    problem = Problem(*SHAPES["sequence"], torch.float16)
    basis = copy.deepcopy(problem.basis).half()
    out = aggregate(problem.x, basis, problem.hierarchy, backend="triton")
    out.backward(problem.grad)
    assert out.dtype == basis.axis0_level1.grad.dtype == torch.float16
    rounded = basis.float()
    torch.testing.assert_close(out, aggregate(problem.x, rounded, problem.hierarchy, backend="torch"))


def test_empty_batch():
    hierarchy = Hierarchy((40,), 4, 2)
    basis = SummaryBasis(2, 16, 4, 2).to(DEVICE)
    x = torch.zeros(0, 2, 40, 16, device=DEVICE, requires_grad=True)
    out = aggregate(x, basis, hierarchy, backend="triton")
    out.sum().backward()
    assert out.shape == (0, 2, hierarchy.num_summaries, 16)
    assert not basis.axis0_level1.grad.any() and not basis.axis0_level2.grad.any()


@pytest.mark.parametrize("name", ["one level", "causal queries"])
def test_operator(name):
    problem = Problem(*SHAPES[name], batch=1)
    h = problem.hierarchy
    weight, upper = (w.detach() for w in summaries._cell_weights(problem.basis, h, problem.x))
    pyramid = (*h.pack(), problem.queries)
    mask = torch.zeros(1, h.num_tokens, dtype=torch.bool, device=DEVICE)
    leaves = [x.clone().requires_grad_() for x in (problem.x, weight, upper)]
    torch.library.opcheck(OPS.pool.default, (*leaves, mask, *pyramid, True, "triton"))
    out, sums = OPS.pool(problem.x, weight, upper, None, *pyramid, True, "triton")
    arguments = (torch.ones_like(out), problem.x, weight, upper, None, sums, *pyramid, "triton")
    torch.library.opcheck(OPS.pool_backward.default, arguments)


def test_forward_mode_is_refused():
    problem = Problem(*SHAPES["one level"])
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
        x = torch.autograd.forward_ad.make_dual(problem.x, torch.ones_like(problem.x))
        aggregate(x, problem.basis, problem.hierarchy, backend="triton")


def test_direct_bases_are_refused():
    hierarchy = Hierarchy((40,), 4, 2)
    basis = SummaryBasis(1, 16, 4, 2, kind="direct", num_levels=hierarchy.num_levels).to(DEVICE)
    x = torch.zeros(1, 1, 40, 16, device=DEVICE)
    with pytest.raises(ValueError, match=r"backend='triton': expected another one for aggregate: .*direct basis"):
        aggregate(x, basis, hierarchy, backend="triton")
    assert aggregate(x, basis, hierarchy).shape == (1, 1, hierarchy.num_summaries, 16)


@pytest.mark.parametrize("backend", ["auto", "torch", "reference", "triton"])
def test_backend(backend, monkeypatch):
    problem, calls = Problem(*SHAPES["one level"]), []
    monkeypatch.setattr(summaries, "pool", lambda x, *_, backend: calls.append(backend) or x)
    monkeypatch.setattr(summaries, "choose", lambda operation, backend, *_: "cpp" if backend == "auto" else backend)
    aggregate(problem.x, problem.basis, problem.hierarchy, backend=backend)
    assert calls == {"auto": ["cpp"], "triton": ["triton"]}.get(backend, [])


@pytest.mark.parametrize("name", ["levels that share weights", "causal queries", "image, shared heads", "volume"])
def test_flops(name):
    problem = Problem(*SHAPES[name])
    counts = {}
    for backend in ("triton", "torch"):
        with FlopCounterMode(display=False) as counter:
            problem.run(backend)
        counts[backend] = counter.get_flop_counts()["Global"]
    forward, backward = (counts["triton"].pop(op) for op in (OPS.pool, OPS.pool_backward))
    assert not counts["triton"] and backward == 2 * forward
    assert forward == counts["torch"][OPS.contract]


KERNELS = [pooling_kernels.pool, pooling_kernels.spread_gradients, pooling_kernels.input_gradients]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)
def test_no_size_is_compiled_in(kernel):
    """Sizes and strides, which are in lower case, are runtime arguments that no kernel is specialised for."""
    sizes = {name for name in inspect.signature(kernel.fn).parameters if name.islower()}
    assert sizes and sizes <= set(pooling_kernels.SIZES)


@GPU_ONLY
def test_another_length_compiles_nothing():
    def compiled():
        return [len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in KERNELS]

    Problem((1023,), 8, 2, {}).run("triton")  # two launches, the second from summaries
    before = compiled()
    for tokens in (17, 33, 300, 640):
        Problem((tokens,), 8, 2, {}).run("triton")
    assert compiled() == before


def test_every_kernel_of_every_cell_is_a_case():
    cases = list(compile_cases.pooling_cases())
    names = [case.name for case in cases]
    assert len(names) == len(set(names)) and {case.kernel for case in cases} == set(KERNELS)
    for case in cases:
        assert {*case.types, *case.constants} == set(case.kernel.arg_names)
        assert not set(case.types) & set(case.constants)
        assert (case.warps, case.stages) == (pooling.WARPS, pooling.STAGES)
