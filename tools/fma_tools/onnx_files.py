"""Exported files: what they contain, and how far their results are from those of PyTorch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from fma_kernels.checks import require


@contextmanager
def removed_on_failure(path: Path) -> Iterator[None]:
    """Remove a file unless what is done with it succeeds."""
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def require_difference(found: float, tolerance: float, what: str) -> None:
    """Raise ``ValueError`` if results differ more than they may.

    Args:
        found: from :func:`difference`.
        tolerance: the most.
        what: largest of these.
    """
    require(found <= tolerance, "difference", found, f"at most {tolerance:g} of the largest {what}")


def difference(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, as a share of the largest number that is wanted."""
    return float((found - wanted).abs().max().detach() / wanted.abs().max().clamp(min=1e-6))


def operators(path: Path) -> list[str]:
    """Two lines about an ONNX file: its opset, and its operators with how often they are used."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    version = ", ".join(f"{x.domain or 'ai.onnx'} opset {x.version}" for x in model.opset_import)
    return [f"format     onnx, {version}", counts(node.op_type for node in model.graph.node)]


def counts(names: Iterable[str]) -> str:
    """A line about operators: how many, and how many of each."""
    names = list(names)
    listed = ", ".join(f"{name} {count}" for name, count in Counter(names).most_common())
    return f"operators  {len(names)}: {listed}"
