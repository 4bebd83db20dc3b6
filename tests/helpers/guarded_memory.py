"""Runs the CPU kernels on tensors between protected pages: a read or write beyond a tensor ends the process.

    python guarded_memory.py before|behind

Inputs, results and gradients lie next to the page before or behind them. What is not initialised is NaN, and must not
reach a result.
"""

import ctypes
import math
import sys
from itertools import product

import torch

from fma_kernels import CoreAttention
from fma_kernels.backends.cpp import attention, pooling

PAGE, PROTECTED, WRITABLE, PRIVATE_ANONYMOUS = 4096, 0, 3, 0x22
LIBC = ctypes.CDLL(None)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

#: grid, cell size, rank, causal, head dimension
SHAPES = [
    ((300,), 16, 4, False, 32),
    ((200,), 16, 4, True, 64),
    ((500,), 64, 4, True, 20),
    ((30, 23), 7, 1, False, 24),
    ((2, 90), 4, 2, False, 16),
    ((9, 7, 8), 2, 2, False, 8),
    ((400,), 96, 4, False, 16),
    ((75,), 2, 1, True, 17),
    ((200,), 32, 4, False, 128),
    ((70,), 4, 2, False, 1),
    ((75,), 18, 9, False, 7),
    ((1,), 4, 2, True, 33),
]


def guarded(shape, dtype, fill, before):
    """A tensor at the start or at the end of memory with a protected page on either side; it is never freed."""
    count = math.prod(shape)
    size = count * dtype.itemsize
    pages = max(1, -(-size // PAGE))
    base = LIBC.mmap(None, (pages + 2) * PAGE, WRITABLE, PRIVATE_ANONYMOUS, -1, 0)
    LIBC.mprotect(base, PAGE, PROTECTED)
    LIBC.mprotect(base + (pages + 1) * PAGE, PAGE, PROTECTED)
    if not count:
        return torch.empty(shape, dtype=dtype)
    start = base + PAGE if before else base + (pages + 1) * PAGE - size
    memory = (ctypes.c_byte * size).from_address(start)
    return torch.frombuffer(memory, dtype=dtype, count=count).view(*shape).fill_(fill)


class GuardedTorch:
    """PyTorch as the modules of the kernels see it, with guarded memory."""

    def __init__(self, before):
        self.before = before

    def __getattr__(self, name):
        return getattr(torch, name)

    def _make(self, shape, dtype, fill):
        shape = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        return guarded(tuple(shape), dtype, fill, self.before)

    def empty(self, *shape, dtype=torch.float32):
        return self._make(shape, dtype, math.nan)

    def zeros(self, *shape, dtype=torch.float32):
        return self._make(shape, dtype, 0)

    def empty_like(self, x):
        return self._make(x.shape, x.dtype, math.nan)

    def zeros_like(self, x):
        return self._make(x.shape, x.dtype, 0)

    def copy(self, x):
        return self._make(x.shape, x.dtype, 0).copy_(x)


def main(before):
    memory = attention.torch = pooling.torch = GuardedTorch(before)
    for (grid, cell_size, rank, causal, dim), attends, masked in product(
        SHAPES, ("near", "fma", "fma_linear"), (False, True)
    ):
        core = CoreAttention(
            2, dim, cell_size=cell_size, rank=rank, ndim=len(grid), causal=causal, attention=attends, num_levels=3,
            backend="cpp",
        )  # fmt: skip
        count = math.prod(grid)
        tokens = [memory.copy(torch.randn(1, 2, count, dim)).requires_grad_() for _ in range(3)]
        mask = memory.copy(torch.rand(1, count) < 0.3) if masked else None
        out = core(*tokens, grid, key_padding_mask=mask)
        leaves = [*tokens, *core.parameters()]
        grads = torch.autograd.grad(out, leaves, memory.copy(torch.randn(out.shape)), allow_unused=True)
        assert all(x is None or x.isfinite().all() for x in (out, *grads)), (grid, attends, masked)


if __name__ == "__main__":
    main(sys.argv[1] == "before")
    print("done")
