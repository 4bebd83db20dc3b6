"""Patches that let fairseq run on current NumPy, and that turn two of its silent mistakes into errors.

A patch changes the library for the whole process, models of other authors included.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace

import numpy
from fairseq.data import FairseqDataset
from fairseq.tasks.language_modeling import LanguageModelingTask

from fma_kernels.checks import require


def apply() -> None:
    """Apply all patches; those that are applied already stay as they are."""
    restore_numpy_compat()
    check_evaluation()


def restore_numpy_compat() -> None:
    """Give NumPy 2 the ``numpy.compat.long`` that fairseq still reads.

    NumPy 2.0 removed ``numpy.compat``. ``TokenBlockDataset`` (``--sample-break-mode eos``) and ``LanguagePairDataset``
    of ve-fairseq 0.12.3 need it. https://github.com/facebookresearch/fairseq/issues/4945 reports other removed names,
    no issue reports this one.
    """
    if not hasattr(numpy, "compat"):
        numpy.compat = SimpleNamespace(long=int)


def check_evaluation() -> None:
    """Let ``fairseq-eval-lm`` refuse samples that it would skip, and contexts that it would mix up.

    ``LanguageModelingTask.eval_lm_dataloader`` silently skips samples that are longer than the model accepts, and may
    report the perplexity of zero tokens. With ``--context-window``, each worker process prepends the samples that it
    has seen itself, which are not the preceding ones if there are several workers. Both mistakes lie in the data loader
    and concern every model, so the checks do as well. No upstream issue was found.
    """
    load = LanguageModelingTask.eval_lm_dataloader
    if getattr(load, "refuses_what_it_would_skip", False):
        return

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

    checked.refuses_what_it_would_skip = True
    LanguageModelingTask.eval_lm_dataloader = checked
