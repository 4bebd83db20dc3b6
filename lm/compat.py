"""What fairseq needs to run on today's NumPy and PyTorch."""

from __future__ import annotations

import importlib.util
from argparse import Namespace
from types import SimpleNamespace

import numpy
import torch


def restore_numpy_compat() -> None:
    """Give NumPy 2 the ``numpy.compat.long`` that fairseq reads when samples end with sentences (``eos``)."""
    if not hasattr(numpy, "compat"):
        numpy.compat = SimpleNamespace(long=int)


def resolve_precision(args: Namespace) -> None:
    """Make the precision flags of fairseq's command line mean what they say.

    fairseq takes ``--bf16`` for a request to run on a TPU; without PyTorch/XLA it means bfloat16 on the device at hand.

    Args:
        args: the parsed command line; ``tpu`` is changed in place.

    Raises:
        ValueError: ``--fp16`` without a GPU.
    """
    if getattr(args, "bf16", False) and importlib.util.find_spec("torch_xla") is None:
        args.tpu = False
    on_gpu = torch.cuda.is_available() and not getattr(args, "cpu", False)
    if getattr(args, "fp16", False) and not getattr(args, "memory_efficient_fp16", False) and not on_gpu:
        raise ValueError(
            "--fp16: True, expected a GPU, whose kernels its loss scaling uses. "
            "On a CPU use --bf16, --memory-efficient-fp16, or neither for float32."
        )
