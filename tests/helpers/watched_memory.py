"""A memory checker for Triton's kernels without a GPU: the interpreter may touch elements of its arguments alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from triton.runtime import interpreter


@contextmanager
def watched() -> Iterator[dict[str, int]]:
    """While this is open, kernels that the interpreter runs are checked.

    Every active lane of a load or store has to point at an element of one of the tensors that the kernel was called
    with, of the size of what is read or written. Elements are those of the view, not of the memory behind it: with a
    view of every second row, the rows between are out of bounds.

    Yields:
        The number of "loads" and "stores" that were checked so far, by lanes.

    Raises:
        InterpreterError: a lane touches anything else.
    """
    executor, builder = interpreter.GridExecutor, interpreter.InterpreterBuilder
    take, load, store = executor._init_args_hst, builder.create_masked_load, builder.create_masked_store
    elements: dict[int, np.ndarray] = {}
    checked = {"loads": 0, "stores": 0}

    def taking(self, args_dev, kwargs):
        args, more = take(self, args_dev, kwargs)
        elements.clear()
        elements.update(_elements([x for x in (*args, *more.values()) if isinstance(x, torch.Tensor)]))
        return args, more

    def check(kind, pointers, mask, size):
        active = pointers[mask.astype(bool)]
        known = elements.get(size, np.empty(0, np.uint64))
        inside = np.isin(active, known)
        assert inside.all(), f"{kind} of {size} bytes at {(~inside).sum()} of {active.size} places out of bounds"
        checked[kind] += active.size

    def loading(self, ptrs, mask, *rest):
        check("loads", ptrs.data, mask.data, _size(ptrs))
        return load(self, ptrs, mask, *rest)

    def storing(self, ptrs, value, mask, *rest):
        check("stores", ptrs.data, mask.data, _size(ptrs))
        return store(self, ptrs, value, mask, *rest)

    executor._init_args_hst, builder.create_masked_load, builder.create_masked_store = taking, loading, storing
    try:
        yield checked
    finally:
        executor._init_args_hst, builder.create_masked_load, builder.create_masked_store = take, load, store


def _size(pointers: interpreter.TensorHandle) -> int:
    return max(1, pointers.get_element_ty().primitive_bitwidth // 8)


def _elements(tensors: list[torch.Tensor]) -> dict[int, np.ndarray]:
    """Addresses of all elements, by size in bytes."""
    found: dict[int, list[np.ndarray]] = {}
    for x in tensors:
        offsets = np.zeros(1, np.int64)
        for size, stride in zip(x.shape, x.stride(), strict=True):
            offsets = (offsets[:, None] + np.arange(size) * stride).ravel()
        addresses = (x.data_ptr() + offsets * x.itemsize).astype(np.uint64)
        found.setdefault(x.itemsize, []).append(addresses)
    return {size: np.unique(np.concatenate(parts)) for size, parts in found.items()}
