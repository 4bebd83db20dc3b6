"""One form for every complaint about an argument: its name, its value, what was expected."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def require(condition: bool, name: str, value: Any, expected: str) -> None:
    """Raise ``ValueError`` naming the argument, its value and the expectation unless ``condition`` holds."""
    if not condition:
        raise ValueError(f"{name}={value!r}: expected {expected}")


def require_finite(name: str, value: Any) -> None:
    """``value`` is a finite number."""
    require(isinstance(value, (int, float)) and math.isfinite(value), name, value, "a finite number")


def refuse_jit_trace() -> None:
    """Refuse ``torch.jit.trace``, under which sizes are tensors, while the geometry needs numbers.

    Raises:
        NotImplementedError: a trace is being recorded.
    """
    if torch.jit.is_tracing():
        raise NotImplementedError("torch.jit.trace cannot record fma_kernels: use torch.export.export or torch.compile")


def require_tokens(name: str, x: Tensor, grid: tuple[int, ...]) -> None:
    """``x`` is (B, H, N, d), floating point, with the N tokens of the grid."""
    require(x.ndim == 4, f"{name}.shape", tuple(x.shape), "four dimensions (B, H, N, d)")
    require(
        x.shape[2] == math.prod(grid),
        f"{name}.shape",
        tuple(x.shape),
        f"{math.prod(grid)} tokens in dimension 2 for grid={grid}",
    )
    require(x.dtype.is_floating_point, f"{name}.dtype", x.dtype, "a floating-point dtype")


def require_like(name: str, x: Tensor, like_name: str, like: Tensor, length: int) -> None:
    """``x`` is (B, H, length, d) with batch, heads, head dimension, dtype and device of ``like``."""
    expected = (*like.shape[:2], length, like.shape[3])
    require(tuple(x.shape) == expected, f"{name}.shape", tuple(x.shape), f"{expected}, to go with {like_name}")
    require(x.dtype == like.dtype, f"{name}.dtype", x.dtype, f"{like.dtype}, the dtype of {like_name}")
    require(x.device == like.device, f"{name}.device", x.device, f"{like.device}, the device of {like_name}")


def require_mask(mask: Tensor | None, x: Tensor) -> None:
    """``mask`` is None or a (B, N) bool tensor on the device of ``x`` (B, H, N, d)."""
    if mask is None:
        return
    expected = (x.shape[0], x.shape[2])
    require(tuple(mask.shape) == expected, "key_padding_mask.shape", tuple(mask.shape), f"{expected}, which is (B, N)")
    require(mask.dtype == torch.bool, "key_padding_mask.dtype", mask.dtype, "torch.bool, True = ignore")
    require(mask.device == x.device, "key_padding_mask.device", mask.device, f"{x.device}, where the tokens are")


def require_num_global_tokens(count: int, causal: bool) -> None:
    """``count`` is a number of global tokens, 0 where attention is causal: global tokens read later ones."""
    require(isinstance(count, int) and count >= 0, "num_global_tokens", count, "an integer >= 0")
    require(not (causal and count), "num_global_tokens", count, "0 with causal=True")


def require_published(path: Path) -> None:
    """``path`` is a file of weights whose name ends with the first digits of its SHA-256, ``NAME-HASH.pth``."""
    expected = "the file that the package came with; install it anew"
    require(path.is_file(), "weights", str(path), expected)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    require(digest.startswith(path.stem.rpartition("-")[2]), "weights", str(path), f"{expected}: its hash is {digest}")
