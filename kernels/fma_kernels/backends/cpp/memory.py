"""Memory for the results of the CPU kernels."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_size_t

import torch
from torch import Tensor

from . import library
from .structures import pointer

#: Bytes from which a tensor is worth a system call. The C library keeps blocks of less than 32 MiB for the next call;
#: larger ones come from the operating system each time, which makes their pages of 4 KiB one by one at the first write.
LARGE = 2**25


def empty(shape: Sequence[int]) -> Tensor:
    """A float32 tensor of any numbers, on huge pages where it is large and the operating system has them."""
    x = torch.empty(shape, dtype=torch.float32)
    if x.nbytes >= LARGE:
        library.loaded().fma_use_huge_pages(pointer(x), c_size_t(x.nbytes))
    return x


def zeros(shape: Sequence[int]) -> Tensor:
    """The same of zeros."""
    return empty(shape).zero_()
