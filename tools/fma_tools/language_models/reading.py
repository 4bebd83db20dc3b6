"""A trained model of bytes, and the tokens of a text that it reads."""

from __future__ import annotations

from pathlib import Path

import torch
from fairseq.models import BaseFairseqModel
from torch import Tensor

from fma_kernels import CoreAttention
from fma_kernels.checks import require

from .loading import open_model
from .recipes import plugin


def open_bytes(checkpoint: Path, data: Path, values: bytes) -> tuple[BaseFairseqModel, Tensor]:
    """Open a model of bytes for a text.

    Args:
        checkpoint: of fairseq.
        data: folder with the model's ``dict.txt``.
        values: the text.

    Returns:
        The model in evaluation mode, and the numbers of the tokens of the text, (1, N).

    Raises:
        ValueError: the text is empty, or longer than the model accepts, or the checkpoint or the dictionary is missing.
    """
    require(checkpoint.is_file(), "checkpoint", str(checkpoint), "a file")
    require((data / "dict.txt").is_file(), "data", str(data), "a folder with dict.txt")
    require(len(values) > 0, "text", values, "at least one byte")
    model, _, task, _ = open_model(checkpoint, plugin(), data)
    positions = model.max_positions()
    positions = positions[0] if isinstance(positions, tuple) else positions
    require(positions is None or len(values) <= positions, "bytes of the text", len(values), f"at most {positions}")
    # The newline is the end of a sentence in fairseq's corpora of bytes, and has no word of its own.
    words = ["</s>" if value == 10 else str(value) for value in values]
    return model.eval(), torch.tensor([[task.source_dictionary.index(word) for word in words]])


def attentions(model: BaseFairseqModel) -> dict[str, CoreAttention]:
    """The attentions of a model by the names of its layers, the first layer first.

    Raises:
        ValueError: its attention is one of another library.
    """
    found = [module for module in model.modules() if isinstance(module, CoreAttention)]
    require(len(found) > 0, "attention", type(model).__name__, "a model with fma, fma-linear, near or full")
    return {f"layer {number}": module for number, module in enumerate(found)}


def shown_byte(value: int) -> str:
    """A byte as a reader sees it: a newline with its sign, ASCII as it is, others by their number."""
    if value == 10:
        return "↵\n"
    return chr(value) if 32 <= value < 127 or value == 9 else f"\\x{value:02x}"
