"""What a training step of a model costs."""

from __future__ import annotations

import statistics
from pathlib import Path

import torch
from fairseq import utils
from loading import load

from fma_kernels.measure import milliseconds, peak_mib


class Step:
    """A model as its checkpoint has it, and one batch that it takes a training step on, again and again.

    Args:
        checkpoint: of the model.
        plugin: folder of the fairseq plugin.
        data: folder that ``fairseq-preprocess`` wrote.
        split: name of the split that the batch comes from.
        context: tokens per sample.
        samples: samples of the batch.
        device: where to train.
    """

    def __init__(
        self, checkpoint: Path, plugin: Path, data: Path, split: str, context: int, samples: int, device: torch.device
    ):
        model, cfg, task = load(checkpoint, plugin, data, split, context)
        dataset = task.dataset(split)
        batch = dataset.collater([dataset[index] for index in range(samples)])
        self.batch = utils.move_to_cuda(batch) if device.type == "cuda" else batch
        self.model, self.device = model.to(device).train(), device
        self.criterion = task.build_criterion(cfg.criterion)
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
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step.run()
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(milliseconds(step.run, step.device))
    return {name: statistics.median(found) for name, found in times.items()}
