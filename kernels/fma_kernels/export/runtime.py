"""ONNX files run by onnxruntime, to test what was exported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..checks import require
from .packages import require_onnxruntime

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


def open_onnx(path: Path | str, threads: int = 1) -> InferenceSession:
    """Open an ONNX file on the CPU.

    Args:
        path: the file.
        threads: that an operator may use.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: there is no such file, or onnxruntime cannot read it.
    """
    require_onnxruntime()
    import onnxruntime

    require(Path(path).is_file(), "path", str(path), "an ONNX file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # its warnings are about nodes that it simplifies
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for every cause
        reason = " ".join(str(error).split())
        raise ValueError(f"path={str(path)!r}: expected an ONNX file: {reason}") from error
