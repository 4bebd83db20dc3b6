"""Programs for export: a model traced, its operators replaced by standard ones, its constants folded."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_map

from ..backends.selection import exporting
from ..checks import require
from . import attention, pooling
from .folding import fold_constants
from .packages import require_onnx

#: Opset of ONNX files; what the translator of PyTorch writes and what runtimes of the last years read.
OPSET = 20


def decompositions() -> dict[Any, Callable]:
    """The operators of ``fma_kernels`` in terms of standard ones, for ``torch.export`` programs.

    The attention becomes gathers by constant index tables, two matrix products and one softmax; summaries become
    products and sums of blocks. All forms are covered: FMA, FMA-linear, near field, causal or not, one to three axes,
    any rank, every kind of basis, masks. The results have gradients by way of standard operators, but memory grows as
    with the blocks written out: for export, not for training.

    Returns:
        A table for ``ExportedProgram.run_decompositions``.

    Example:
        >>> program = torch.export.export(FMAttention(32, 2, cell_size=8).eval(), (torch.randn(1, 64, 32),))
        >>> program = program.run_decompositions(decompositions())
        >>> any("fma_kernels" in str(node.target) for node in program.graph.nodes)
        False
    """
    ops = torch.ops.fma_kernels
    return {
        ops.attend.default: attention.attend,
        ops.fma.default: pooling.fma,
        ops.pool.default: pooling.pool,
        ops.contract.default: pooling.contract,
        ops.summary_counts.default: pooling.summary_counts,
    }


def export_program(model: nn.Module, args: Sequence[Any], *, dynamic_batch: bool = False) -> ExportedProgram:
    """Trace a model of this library for inference, in standard operators alone.

    The program needs neither this library nor its kernels: ``torch.export.save`` and :func:`save_onnx` write it to
    files. Sizes other than the batch are numbers, as the levels of the attention depend on them: one program per size.

    Args:
        model: in evaluation mode, on one device.
        args: example inputs, tensors or lists of them; the first dimension of each is the batch, if it has any.
        dynamic_batch: any batch; otherwise that of the examples.

    Returns:
        The program.

    Raises:
        ValueError: the model is in training mode.
    """
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    require(not training, "model.training", True, f"False: call eval() on the model first (training: {training[:3]})")
    inputs: tuple[Any, ...] = tuple(args)
    shapes = None
    if dynamic_batch:
        # A batch of 1 in the example would be taken for a constant.
        inputs = tree_map(lambda x: x if x.ndim == 0 or len(x) > 1 else x.expand(2, *x.shape[1:]).contiguous(), inputs)
        shapes = tree_map(lambda x: {0: Dim("batch", min=1, max=2**20)} if x.ndim else None, inputs)
    with torch.no_grad(), _tracing():
        program = torch.export.export(model, inputs, dynamic_shapes=shapes)
        program = program.run_decompositions({**decompositions(), **_FEWER_NODES})
        module = program.module()
        fold_constants(module)
        return torch.export.export(module, inputs, dynamic_shapes=shapes)


def save_onnx(
    program: ExportedProgram,
    path: Path | str,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    metadata: dict[str, str] | None = None,
) -> None:
    """Write a program as an ONNX file with its weights inside; operators of the default domain, opset 20.

    Args:
        program: from :func:`export_program`.
        path: the file.
        inputs, outputs: names, in order.
        metadata: further properties of the file by name.

    Raises:
        ImportError: ``onnx`` or ``onnxscript`` is not installed.
        ValueError: the file would be larger than the 2 GiB that ONNX allows.
    """
    require_onnx()
    size = sum(x.nbytes for x in program.state_dict.values())
    require(size < 2**31, "model", f"{size / 2**30:.1f} GiB of weights", "less than 2 GiB, the limit of ONNX files")
    with _quiet():
        written = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, input_names=list(inputs), output_names=list(outputs),
            verbose=False,
        )  # fmt: skip
    written.model.metadata_props.update(metadata or {})
    written.save(path, external_data=False)


@contextmanager
def _tracing() -> Iterator[None]:
    """The calls inside are traced, and what they call is replaced: no kernel needs to be compiled for it."""
    token = exporting.set(True)
    try:
        with _quiet():
            yield
    finally:
        exporting.reset(token)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the notes of the tracer and of the translator about what they simplify."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The transposed weight is folded into a constant."""
    out = x @ weight.mT
    return out if bias is None else out + bias


def _unbind(x: Tensor, dim: int = 0) -> list[Tensor]:
    """One node for each part, where the translator writes two."""
    return [x.select(dim, i) for i in range(x.shape[dim])]


def _global_pooling(x: Tensor, output_size: list[int]) -> Tensor:
    """PyTorch's own way ends in strides, for which the translator writes a loop."""
    return x.mean((-2, -1), keepdim=True) if list(output_size) == [1, 1] else NotImplemented


_FEWER_NODES = {
    torch.ops.aten.linear.default: _linear,
    torch.ops.aten.unbind.int: _unbind,
    torch.ops.aten.adaptive_avg_pool2d.default: _global_pooling,
}
