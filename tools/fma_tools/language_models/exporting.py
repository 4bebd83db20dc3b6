"""ONNX files of language models: written, compared with the model, and described."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fma_kernels.export import export_program, open_onnx, require_onnx, require_onnxruntime, save_onnx

from ..onnx_files import difference, operators, removed_on_failure, require_difference
from .loading import open_model
from .onnx_generation import LENGTH, SYMBOLS, steps
from .recipes import plugin

#: Tokens that a step is compared on.
COMPARED = 200


def export_language_model(
    checkpoint: Path, data: Path, out: Path, *, length: int, step: bool, batch: int, tolerance: float
) -> str:
    """Write a file, compare it with the model, and remove it if it differs.

    Args:
        checkpoint: of fairseq, a model of ``fma_lm``.
        data: folder with the ``dict.txt`` of the model.
        out: the file.
        length: tokens of a sequence; of the longest one with ``step``.
        step: one token at a time.
        batch: sequences at a time.
        tolerance: largest difference, as a share of the largest logit.

    Returns:
        A description of the file.

    Raises:
        ImportError: a package that writes or runs ONNX files is missing.
        ValueError: the model cannot be exported, or the file differs from it.
    """
    require_onnx()
    require_onnxruntime()
    logging.getLogger().setLevel(logging.WARNING)  # fairseq turns every library's messages on
    model, _, task, _ = open_model(checkpoint, plugin(), data)
    from lm.deployment import DeployedLanguageModel, DeployedStep  # the plugin is a module of fairseq first

    dictionary = task.source_dictionary
    metadata = {SYMBOLS: json.dumps(dictionary.symbols), LENGTH: str(length)}
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(dictionary.nspecial, len(dictionary), (batch, length), generator=generator)
    whole = DeployedLanguageModel(model, length)
    deployed, args, inputs, outputs = whole, (tokens,), ["tokens"], ["logits"]
    if step:
        deployed = DeployedStep(model, length)
        state = deployed.empty_state(batch)
        args = (tokens[:, 0], torch.tensor(0), state)
        inputs = ["token", "position", *deployed.state_names]
        outputs += [f"next_{name}" for name in deployed.state_names]
    start = time.perf_counter()
    program = export_program(deployed, args)
    with removed_on_failure(out):
        save_onnx(program, out, inputs=inputs, outputs=outputs, metadata=metadata)
        seconds = time.perf_counter() - start
        session = open_onnx(out)
        with torch.no_grad():
            wanted = whole(tokens)
        if step:
            rows = steps(session, tokens[:, :COMPARED].numpy())
            found = torch.stack([torch.from_numpy(row) for row in rows], 1)
            wanted = wanted[:, :COMPARED]
        else:
            found = torch.from_numpy(session.run(None, {"tokens": tokens.numpy()})[0])
        largest = difference(found, wanted)
        require_difference(largest, tolerance, "logit")
    return "\n".join(
        [
            f"{out}: {out.stat().st_size / 2**20:.1f} MiB, written in {seconds:.1f} s",
            f"input      {'a token and the state' if step else 'tokens'}, {batch} sequences of up to {length} tokens",
            *(_state_size(state, batch) if step else ()),
            *operators(out),
            f"difference {largest:.2g} of the largest logit, at most {tolerance:g} allowed, "
            f"on {wanted.shape[1]} tokens",
        ]
    )


def _state_size(state: list[Tensor], batch: int) -> Iterator[str]:
    size = sum(x.nbytes for x in state) / batch
    yield f"state      {size / 2**10:.1f} KiB per sequence in {len(state)} tensors"
