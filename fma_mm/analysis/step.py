"""One training step of a config, for measuring what it costs."""

from __future__ import annotations

import gc
from copy import deepcopy

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, set_random_seed
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from torch import Tensor

from fma_kernels.measure import peak_mib
from fma_mm import cli


def first_batch(cfg: Config, seed: int) -> dict:
    """The first batch of the training data, loaded in this process.

    Configs that agree about their data get the same batch.

    Args:
        cfg: the config.
        seed: of the order of the data and of their augmentation.

    Returns:
        What the config's training dataloader yields.
    """
    init_default_scope(cli.scope(cfg))
    loader = deepcopy(cfg.train_dataloader)
    loader.update(num_workers=0, persistent_workers=False)
    loader.pop("prefetch_factor", None)
    loader = Runner.build_dataloader(loader, seed=seed)
    set_random_seed(seed)
    return next(iter(loader))


class TrainingStep:
    """A fresh model and optimizer of a config, and one batch that they take a training step on, again and again.

    Args:
        cfg: the config: its model, preprocessor, losses, optimizer wrapper and activation checkpointing take part.
        batch: the batch.
        device: where to train.
    """

    def __init__(self, cfg: Config, batch: dict, device: torch.device):
        self.model = cli.build_model(cfg).to(device).train()
        if cfg.get("activation_checkpointing"):
            turn_on_activation_checkpointing(self.model, cfg.activation_checkpointing)
        self.optim_wrapper = build_optim_wrapper(self.model, cfg.optim_wrapper)
        self.batch = batch

    def prepare(self) -> dict:
        """A copy of the batch: preprocessors may change theirs."""
        return deepcopy(self.batch)

    def run(self, batch: dict) -> None:
        """Take the step: preprocessing, forward and backward pass, update."""
        self.model.train_step(batch, optim_wrapper=self.optim_wrapper)

    def inputs(self) -> Tensor:
        """The input of the model for the first sample, (1, ...)."""
        with torch.no_grad():
            return self.model.data_preprocessor(self.prepare(), training=True)["inputs"][:1]


def training_memory(cfg: Config, batch: dict, device: torch.device) -> float:
    """Peak memory of training, in MiB.

    Args:
        cfg: the config.
        batch: the batch.
        device: where to train.

    Returns:
        The peak of all tensors (see :func:`fma_kernels.measure.peak_mib`) from the building of the model to the end of
        its second step: weights, gradients, the optimizer's state, activations, the preprocessed batch.
    """

    def train() -> None:
        step = TrainingStep(cfg, batch, device)
        for _ in range(2):  # the first one makes the optimizer's state
            step.run(step.prepare())

    gc.collect()
    return peak_mib(train, device)
