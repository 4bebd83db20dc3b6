"""Choice of a backend, and the reasons why another cannot run.

A call chooses in this order. :func:`fma_kernels.fma` asks for ``"torch"`` to make the summaries of ``direct`` bases.
``fma_attention`` and ``aggregate`` answer ``"reference"`` themselves: by the dense definition, and by ``"torch"``.
:func:`choose` turns ``"auto"`` into ``"triton"``, ``"cpp"`` or ``"torch"``. The operators of :mod:`fma_kernels.ops` get
one of these three names, as it stands in graphs, and import the module behind it.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from contextvars import ContextVar
from typing import TypeVar

import torch
from torch import Tensor

from ..caches import cached
from ..checks import require

F = TypeVar("F", bound=Callable)

BACKENDS = ("auto", "triton", "cpp", "torch", "reference")

#: The Triton kernels were written for these; earlier releases lack features that they use.
MIN_TRITON = (3, 6)
MIN_CAPABILITY = (8, 0)
HEAD_DIMS = range(16, 129)

#: Head dimensions of the CPU kernels: beyond, their working set leaves the second-level cache.
CPP_HEAD_DIMS = range(1, 257)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

#: Whether a program for export is being traced: its operators are replaced afterwards, and none runs.
exporting: ContextVar[bool] = ContextVar("exporting", default=False)

_said: set[tuple[str, str]] = set()
_logger = logging.getLogger("fma_kernels")


def constant(function: F) -> F:
    """Mark a function that ``torch.compile`` calls while it traces, to keep the result.

    :func:`torch.compiler.assume_constant_result` does the same, after an import of the compiler that takes a second.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on tensors of the CPU (``TRITON_INTERPRET=1``)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def why_not_triton(x: Tensor) -> str | None:
    """The first reason why the Triton kernels cannot work on ``x``, None where they can.

    Args:
        x: (B, H, n, d), one of the inputs; the others have its dtype and device.
    """
    return _why_not_triton(x.device.type, x.device.index, x.dtype, x.shape[-1])


def why_not_cpp(x: Tensor) -> str | None:
    """The first reason why the CPU kernels cannot work on ``x``, None where they can.

    The first call on a machine compiles them.

    Args:
        x: (B, H, n, d), one of the inputs; the others have its dtype and device.
    """
    return _why_not_cpp(x.device.type, x.dtype, x.shape[-1])


@constant
def _why_not_cpp(device: str, dtype: torch.dtype, head_dim: int) -> str | None:
    if device != "cpu":
        return f"the tensors are on {device}, not on a CPU"
    if dtype not in DTYPES:
        return f"the dtype is {dtype}, not float32, float16 or bfloat16"
    if head_dim not in CPP_HEAD_DIMS:
        return f"the head dimension is {head_dim}, not {CPP_HEAD_DIMS.start} to {CPP_HEAD_DIMS.stop - 1}"
    from .cpp import library

    loaded = library.load()
    return loaded if isinstance(loaded, str) else None


@constant
def _why_not_triton(device: str, index: int | None, dtype: torch.dtype, head_dim: int) -> str | None:
    return _cached_why_not_triton(device, index, dtype, head_dim, interpreted())


@cached
def _cached_why_not_triton(
    device: str, index: int | None, dtype: torch.dtype, head_dim: int, interpreted: bool
) -> str | None:
    if not importlib.util.find_spec("triton"):
        return "triton is not installed"
    import triton

    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < MIN_TRITON:
        return f"triton is {triton.__version__}, older than {'.'.join(map(str, MIN_TRITON))}"
    if device != "cuda" and not interpreted:
        return f"the tensors are on {device}, not on a CUDA GPU (TRITON_INTERPRET=1 runs the kernels on a CPU, slowly)"
    if device == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(index) < MIN_CAPABILITY:
        return f"{torch.cuda.get_device_name(index)} is older than compute capability 8.0"
    if dtype not in DTYPES:
        return f"the dtype is {dtype}, not float32, float16 or bfloat16"
    if interpreted and dtype == torch.bfloat16:
        return "Triton's interpreter has no bfloat16 products"
    if head_dim not in HEAD_DIMS:
        return f"the head dimension is {head_dim}, not {HEAD_DIMS.start} to {HEAD_DIMS.stop - 1}"
    return None


def choose(operation: str, backend: str, x: Tensor, reason: str | None = None, *, cpp: str | None = None) -> str:
    """The backend that runs an operation: ``"triton"``, ``"cpp"`` or ``"torch"``.

    ``"auto"`` takes the fused kernels of the device where they can run, and says once per reason where they cannot.

    Args:
        operation: name of the function, for messages.
        backend: ``"auto"``, ``"triton"``, ``"cpp"`` or ``"torch"``.
        x: (B, H, n, d), one of the inputs.
        reason: a reason of the operation's own against any fused kernel.
        cpp: a reason of the operation's own against the CPU kernels.

    Raises:
        ValueError: ``backend`` asks for fused kernels that cannot run.
    """
    if exporting.get():
        return "torch" if reason else "export"
    fused = {"cuda": "triton", "cpu": "cpp"}.get(x.device.type) if backend == "auto" else backend
    if fused is None or fused == "torch":
        return "torch"
    found = why_not_triton(x) if fused == "triton" else why_not_cpp(x)
    found = found or reason or (cpp if fused == "cpp" else None)
    if found is None:
        return fused
    require(backend == "auto", "backend", backend, f"another one for {operation}: {found}")
    _say_once(operation, found)
    return "torch"


@constant
def _say_once(operation: str, reason: str) -> None:
    if (operation, reason) not in _said:
        _said.add((operation, reason))
        _logger.warning("%s runs without the fused kernels: %s", operation, reason)
