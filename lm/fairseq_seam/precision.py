"""Precision flags of fairseq's command line, with the meaning that their names have."""

from __future__ import annotations

import importlib.util
from argparse import Namespace

import torch


def resolve_precision(args: Namespace) -> None:
    """Let ``--bf16`` mean bfloat16 on the device at hand, and refuse ``--fp16`` where it cannot run.

    fairseq takes ``--bf16`` on the command line for a request to run on a TPU (``parse_args_and_arch`` sets ``tpu``).
    Without PyTorch/XLA there is no TPU. A configuration of hydra sets ``tpu`` by name and needs no correction.

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
