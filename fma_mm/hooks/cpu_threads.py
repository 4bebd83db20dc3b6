"""Number of CPU threads of a run."""

from __future__ import annotations

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from fma_kernels.checks import require


@HOOKS.register_module()
class CPUThreadsHook(Hook):
    """Compute on a fixed number of CPU threads while the runner runs.

    Small models are made of small operators, after each of which the threads wait for one another. As soon as another
    process claims a core, that wait costs far more than the second thread brings; one thread is steady.

    Args:
        num_threads: threads that an operator may use, at least 1.
    """

    priority = "VERY_HIGH"

    def __init__(self, num_threads: int):
        require(isinstance(num_threads, int) and num_threads >= 1, "num_threads", num_threads, "an integer >= 1")
        self.num_threads = num_threads

    def before_run(self, runner: Runner) -> None:
        """Set the number, and remember what it was."""
        self._before = torch.get_num_threads()
        torch.set_num_threads(self.num_threads)

    def after_run(self, runner: Runner) -> None:
        """Put it back."""
        torch.set_num_threads(self._before)
