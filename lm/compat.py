"""What fairseq needs to run on today's NumPy and PyTorch, and to say what it would do wrong in silence."""

from __future__ import annotations

import functools
import importlib.util
from argparse import Namespace
from types import SimpleNamespace

import numpy
import torch
from fairseq.data import FairseqDataset
from fairseq.tasks.language_modeling import LanguageModelingTask

from fma_kernels.checks import require


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


def check_evaluation() -> None:
    """Let ``fairseq-eval-lm`` refuse samples that it would leave out, and contexts that it would mix up.

    fairseq's ``language_modeling`` task leaves out samples longer than the model takes: with the perplexity of no token
    at the end. And every worker process would take the samples that it has seen for the context of its next one.
    """
    load = LanguageModelingTask.eval_lm_dataloader

    @functools.wraps(load)
    def checked(
        self: LanguageModelingTask,
        dataset: FairseqDataset,
        *args,
        max_positions: int | None = None,
        num_workers: int = 1,
        context_window: int = 0,
        **kwargs,
    ):
        longest = int(dataset.sizes.max()) + context_window
        fits = max_positions is None or longest <= max_positions
        require(fits, "tokens_per_sample", longest, f"at most {max_positions}, the positions of the model")
        alone = context_window == 0 or num_workers <= 1
        require(alone, "num_workers", num_workers, f"at most 1 with context_window={context_window}")
        return load(
            self, dataset, *args, max_positions=max_positions, num_workers=num_workers, context_window=context_window,
            **kwargs,
        )  # fmt: skip

    LanguageModelingTask.eval_lm_dataloader = checked
