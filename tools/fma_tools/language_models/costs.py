"""Time and memory of a training step."""

from __future__ import annotations

import statistics
from functools import partial

import torch
from fairseq import utils

from fma_kernels.measure import milliseconds, peak_mib, take_turns

from .loading import Trained


class Step:
    """A model, trained further from here on, and one batch that it takes a training step on, again and again.

    Args:
        trained: the model.
        split: name of the split that the batch comes from, which its task has loaded.
        samples: samples of the batch.
        device: where to train.
    """

    def __init__(self, trained: Trained, split: str, samples: int, device: torch.device):
        dataset = trained.task.dataset(split)
        batch = dataset.collater([dataset[index] for index in range(samples)])
        self.batch = utils.move_to_cuda(batch) if device.type == "cuda" else batch
        self.model, self.device = trained.model.to(device).train(), device
        self.criterion = trained.task.build_criterion(trained.cfg.criterion)
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-4)

    def run(self) -> None:
        """Forward and backward pass, and an update by Adam."""
        self.optimizer.zero_grad(set_to_none=True)
        self.criterion(self.model, self.batch)[0].backward()
        self.optimizer.step()

    def peak_mib(self) -> float:
        """Peak of the tensors that a step allocates beyond weights and the optimizer's state, in MiB."""
        self.run()
        return peak_mib(self.run, self.device)


def median_times(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """Milliseconds of a step of each, the median over rounds in which they take turns.

    Args:
        steps: by name.
        rounds: how often each is timed.
    """
    for step in steps.values():
        step.run()
    clocks = {name: partial(milliseconds, step.run, step.device) for name, step in steps.items()}
    return {name: statistics.median(times) for name, times in take_turns(clocks, rounds).items()}
