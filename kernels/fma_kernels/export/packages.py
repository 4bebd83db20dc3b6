"""The packages of the extra ``export``."""

from __future__ import annotations

import importlib.util


def require_packages(names: tuple[str, ...], purpose: str) -> None:
    """Raise ``ImportError`` unless packages are installed.

    Args:
        names: the packages.
        purpose: what they are for, the end of the message.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"{' and '.join(missing)} not installed: expected fma-mm[export] {purpose}")


def require_onnx() -> None:
    """Raise ``ImportError`` unless ONNX files can be written."""
    require_packages(("onnx", "onnxscript"), "for ONNX files")


def require_onnxruntime() -> None:
    """Raise ``ImportError`` unless ONNX files can be run."""
    require_packages(("onnxruntime",), "to run ONNX files")
