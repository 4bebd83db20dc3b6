"""The structures that the C++ functions take, field by field as in ``source/*.h``."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor


class Strides(ctypes.Structure):
    _fields_ = [(name, c_int64) for name in ("batch", "head", "row")]


class _Named(ctypes.Structure):
    """A structure that is made by naming its fields; it keeps the tensors whose addresses it holds."""

    def __init__(self, **fields: Any):
        tensors: list[Tensor] = []
        self._kept = tensors
        for name, value in fields.items():
            if isinstance(value, Tensor):
                tensors.append(value)
                value = value.data_ptr()
            setattr(self, name, value)


class Pass(_Named):
    _fields_ = [
        *((name, c_int32) for name in ("cells", "slots", "causal", "queries", "keys", "far")),
        *((name, c_void_p) for name in ("query_first", "query_rows", "key_cells", "key_first", "key_rows", "bias")),
        ("bias_stride", c_int64),
        ("carry_rows", c_void_p),
        ("carries", c_int32),
    ]


_INPUTS = ("query", "key", "value", "far_key", "far_value")


class Inputs(_Named):
    _fields_ = [
        *((name, c_int32) for name in ("batch", "heads", "dim")),
        ("scale", c_float),
        *((name, c_void_p) for name in _INPUTS),
        *((f"{name}_at", Strides) for name in _INPUTS),
        *((name, c_void_p) for name in ("carry", "carry_lse")),
    ]


class Gradients(_Named):
    _fields_ = [
        *((name, c_void_p) for name in ("grad_out", "grad_lse", "out", "lse")),
        *((name, Strides) for name in ("grad_out_at", "out_at")),
        *((name, c_void_p) for name in (*_INPUTS, "carry", "carry_lse")),
        ("ranges", c_int32),
    ]


class Pyramid(_Named):
    _fields_ = [
        *((name, c_int32) for name in ("levels", "summaries", "taps", "fanout")),
        *((name, c_void_p) for name in ("num_cells", "tokens", "children", "rows")),
        *((name, c_int32) for name in ("num_tokens", "num_summaries")),
    ]


class PoolInputs(_Named):
    _fields_ = [
        *((name, c_int32) for name in ("batch", "heads", "dim")),
        ("x", c_void_p),
        ("x_at", Strides),
        *((name, c_void_p) for name in ("weight", "upper")),
        *((name, c_int32) for name in ("weight_heads", "upper_levels")),
        *((name, c_void_p) for name in ("mask", "scale")),
        ("scale_stride", c_int64),
    ]


class PoolGradients(_Named):
    _fields_ = [
        *((name, c_void_p) for name in ("grad", "sums", "grad_sums", "x", "weight", "upper")),
        ("add", c_int32),
    ]


def strides(x: Tensor) -> Strides:
    """Steps in numbers from one batch, head and row of a tensor (B, H, n, d) to the next."""
    return Strides(*x.stride()[:3])


def rows(x: Tensor) -> Tensor:
    """A tensor as the kernels read it: float32, with channels next to each other; rows may lie anywhere."""
    x = x if x.dtype == torch.float32 else x.to(torch.float32)
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def pointer(x: Tensor) -> c_void_p:
    """The address of a tensor, as an argument."""
    return c_void_p(x.data_ptr())
