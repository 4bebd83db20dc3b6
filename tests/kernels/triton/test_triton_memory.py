"""The Triton kernels read and write elements of their tensors alone, and leave nothing of their results unwritten.

In the interpreter: it says what the kernels do with their indices, which is the same on a GPU.
"""

import math

import pytest
import torch

from fma_kernels import CoreAttention, Hierarchy, ops
from fma_kernels.slab import Slab

pytest.importorskip("triton")
import triton
import triton.language as tl

if torch.cuda.is_available():
    pytest.skip("with a GPU, Triton's interpreter is off", allow_module_level=True)
from helpers.watched_memory import watched

pytestmark = pytest.mark.usefixtures("poisoned")

#: grid, cell size, rank, causal, head dimension, heads, attentions. Small: the interpreter takes its time.
SHAPES = {
    "causal": ((37,), 8, 4, True, 20, 1, ("fma", "fma_linear")),
    "odd cells": ((27,), 6, 3, False, 17, 1, ("fma", "fma_linear")),
    "tiny cells": ((11,), 2, 1, True, 16, 2, ("near", "fma", "fma_linear")),
    "cells above a tile": ((200,), 96, 1, False, 16, 1, ("fma",)),
    "narrow image": ((2, 18), 4, 2, False, 16, 1, ("near", "fma_linear")),
    "image of partial cells": ((9, 7), 4, 1, False, 24, 1, ("fma", "fma_linear")),
    "volume": ((3, 2, 1), 1, 1, False, 16, 1, ("fma",)),
}
CASES = {f"{name}-{attends}": (*shape, attends) for name, (*shape, several) in SHAPES.items() for attends in several}


@pytest.mark.parametrize(
    ("grid", "cell_size", "rank", "causal", "dim", "heads", "attends"), CASES.values(), ids=CASES
)  # fmt: skip
def test_nothing_beyond_a_tensor_is_touched(grid, cell_size, rank, causal, dim, heads, attends):
    torch.manual_seed(0)
    core = CoreAttention(
        heads, dim, cell_size=cell_size, rank=rank, ndim=len(grid), causal=causal, attention=attends, num_levels=3,
        backend="triton",
    )  # fmt: skip
    count = math.prod(grid)
    # Views of larger tensors: rows between those of the view are out of bounds.
    tokens = [torch.randn(1, count, heads, 2 * dim)[..., :dim].transpose(1, 2).requires_grad_() for _ in range(3)]
    mask = torch.rand(1, count) < 0.3
    with watched() as checked:
        out = core(*tokens, grid, key_padding_mask=mask)
        leaves = [*tokens, *core.parameters()]
        grads = torch.autograd.grad(out, leaves, torch.randn(out.shape), allow_unused=True)
    assert all(x is None or x.isfinite().all() for x in (out, *grads))
    assert checked["loads"] > checked["stores"] > out.numel()


def test_nor_on_a_slab():
    """The tokens of a rank with its halo, of which only its own are queries."""
    hierarchy = Hierarchy((45,), 4, 2, causal=True)
    slab = Slab(hierarchy, 1, 3)
    frame, own = len(slab.read_tokens), slab.own
    tokens = [torch.randn(1, 1, frame, 16, requires_grad=True) for _ in range(3)]
    summaries = [torch.randn(1, 1, hierarchy.num_summaries, 16, requires_grad=True) for _ in range(3)]
    for far in (summaries, [None, *summaries[1:]]):
        with watched():
            out, _ = ops.attend(*tokens, *far, hierarchy, scale=0.25, backend="triton", slab=slab)
            leaves = [*tokens, *(x for x in far if x is not None)]
            query, *others = torch.autograd.grad(out[:, :, own].sum(), leaves)
        assert all(x.isfinite().all() for x in (out[:, :, own], query[:, :, own], *others))


@triton.jit
def shift(X, OUT, n, by, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(OUT + i, tl.load(X + i + by, mask=i < n, other=0.0), mask=i < n)


@pytest.mark.parametrize(("read", "written", "by", "expected"), [
    (8, 8, 0, None),
    (9, 8, 1, None),
    (8, 8, 1, "loads of 4 bytes at 1 of 8 places"),
    (8, 8, -2, "loads of 4 bytes at 2 of 8 places"),
    (8, 5, 0, "stores of 4 bytes at 3 of 8 places"),
])  # fmt: skip
def test_a_touch_would_be_seen(read, written, by, expected):
    memory = torch.zeros(64)
    x, out = memory[16 : 16 + read], torch.zeros(64)[16 : 16 + written]
    if expected is None:
        with watched() as checked:
            shift[(1,)](x, out, 8, by, BLOCK=16)
        assert checked == {"loads": 8, "stores": 8}
        return
    with watched(), pytest.raises(Exception, match=expected):
        shift[(1,)](x, out, 8, by, BLOCK=16)


def test_rows_between_those_of_a_view_are_seen():
    with watched(), pytest.raises(Exception, match="loads of 4 bytes at 4 of 8 places"):
        shift[(1,)](torch.zeros(16)[::2], torch.zeros(8), 8, 0, BLOCK=8)
