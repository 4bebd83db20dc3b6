"""What exported files contain, and how far their results are from those of PyTorch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor


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
