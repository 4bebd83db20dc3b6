"""Makes a resumed training run continue exactly."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import Sampler

#: Independent streams of random numbers: what the model draws, and what loading the data draws.
MODEL, DATA = 0, 1


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Let a resumed run end with the weights of the uninterrupted run, bit by bit.

    mmengine restores weights, optimizer, schedulers and averages. It starts the random generators of the training
    process and of the loader's workers anew, shuffles anew when the config names no seed, begins an interrupted epoch
    from its first batch, and forgets gradients that were still being accumulated. This hook

    * makes random numbers a function of the seed and the iteration: the generators of Python, numpy and torch are set
      before every training iteration, and in whichever process loads a batch, before that batch. There is no state to
      restore, validation and the number of workers change nothing, and every epoch has augmentations of its own;
    * keeps the seed in the checkpoint and gives it to the sampler;
    * leaves out the batches that an interrupted epoch has already seen;
    * keeps gradients that are still being accumulated in the checkpoint (those of the first process, for all).

    It works for loops by epoch and by iteration, under every ``default_scope``. Exact means exact on the same hardware
    and with the same number of processes; on a GPU, ``randomness=dict(deterministic=True)`` is needed as well. A
    validation that was interrupted is not repeated. Transforms with generators of their own are out of reach.
    """

    priority = "VERY_HIGH"  # other hooks may draw random numbers

    def before_train(self, runner: Runner) -> None:
        """Number the batches of the training data, from where the run stands.

        Args:
            runner: the runner, its checkpoint loaded.
        """
        loop, hub = runner.train_loop, runner.message_hub
        loader = loop.dataloader
        sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
        earlier = hub.get_info("exact_resume", {})
        self.seed = int(earlier.get("seed", getattr(sampler, "seed", runner.seed)))
        if hasattr(sampler, "seed"):
            sampler.seed = self.seed
        hub.update_info("exact_resume", dict(seed=self.seed, batches_per_epoch=len(loader)))
        # As everywhere in mmengine, processes draw alike in the model unless the config wants them to differ.
        self.model_rank = get_rank() if runner.cfg.get("randomness", {}).get("diff_rank_seed") else 0

        if loader.batch_sampler is None:
            return  # the data set makes the batches itself
        position, skip = runner.iter, 0
        if isinstance(loop, EpochBasedTrainLoop):
            before = earlier.get("batches_per_epoch")
            if before == len(loader):
                skip = runner.iter - runner.epoch * len(loader)
            elif runner.iter:
                runner.logger.warning(
                    f"An epoch had {before or 'an unknown number of'} batches and has {len(loader)} now: "
                    "the run continues at the start of an epoch, and not exactly."
                )
        elif not hasattr(loader.sampler, "skip"):
            position = 0  # the loop itself replays the batches, through these numbers
        batches = NumberedBatches(loader.batch_sampler, (self.seed, DATA, get_rank()), position, skip)
        # torch's DataLoader refuses a new batch sampler after its construction, because its other arguments might
        # contradict it. This one repeats the batches of the old one. Without it, a loader would have to be built again
        # from arguments that DataLoader does not keep.
        object.__setattr__(loader, "batch_sampler", batches)
        if hasattr(loop, "dataloader_iterator"):
            loop.dataloader_iterator = type(loop.dataloader_iterator)(loader)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Set the random generators for this iteration.

        Args:
            runner: the runner.
            batch_idx: number of the batch in the epoch; not used.
            data_batch: the batch; not used.
        """
        seed_generators(self.seed, MODEL, self.model_rank, runner.iter)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add gradients that are still being accumulated; a step of the optimizer leaves none.

        Args:
            runner: the runner.
            checkpoint: content of the checkpoint that the runner is about to save, extended in place.
        """
        gradients = {name: p.grad.cpu() for name, p in _unwrap(runner.model).named_parameters() if p.grad is not None}
        if gradients:
            checkpoint["gradients"] = gradients

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Restore accumulated gradients, if the run is being resumed.

        Args:
            runner: the runner.
            checkpoint: content of the loaded checkpoint.
        """
        if not runner._resume:  # private; mmengine does not tell hooks otherwise whether it resumes or loads weights
            return
        if "optimizer" not in checkpoint:
            runner.logger.warning("The checkpoint has no optimizer state: the run continues, but not exactly.")
        gradients = checkpoint.get("gradients", {})
        for name, parameter in _unwrap(runner.model).named_parameters():
            if name in gradients:
                parameter.grad = gradients[name].to(parameter)


class NumberedBatches(Sampler):
    """Batches of a batch sampler; each batch knows its number in the run.

    Args:
        batch_sampler: yields the lists of sample indices.
        key: integers that distinguish this stream of batches from other streams.
        position: number of the first batch, counted from the start of the run.
        skip: number of batches to leave out in the first iteration over the sampler.
    """

    def __init__(self, batch_sampler: Sampler, key: tuple[int, ...], position: int, skip: int):
        self.batch_sampler = batch_sampler
        self.sampler = getattr(batch_sampler, "sampler", None)
        self.batch_size = getattr(batch_sampler, "batch_size", None)
        self.key = key
        self.position = position
        self.skip = skip

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[SeededBatch]:
        skip, self.skip = self.skip, 0
        for i, indices in enumerate(self.batch_sampler):
            if i < skip:
                continue
            batch = SeededBatch(indices, (*self.key, self.position))
            self.position += 1
            yield batch


class SeededBatch(list):
    """Sample indices of one batch that set the random generators when they are iterated over.

    A data loader iterates over them once: in the process that loads the batch, right before it does.

    Args:
        indices: the indices.
        key: integers that determine the state of the generators.
    """

    def __init__(self, indices: list[int], key: tuple[int, ...]):
        super().__init__(indices)
        self.key = key

    def __iter__(self) -> Iterator[int]:
        seed_generators(*self.key)
        return super().__iter__()

    def __reduce__(self):
        return SeededBatch, (self[:], self.key)  # the default would iterate


def seed_generators(*key: int) -> None:
    """Set the generators of Python, numpy and torch (all devices) to a state that depends on ``key`` alone.

    Args:
        key: non-negative integers. Different keys give unrelated states.
    """
    words = np.random.SeedSequence(key).generate_state(4, np.uint64)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]) & 0xFFFFFFFF)
    torch.manual_seed(int(words[2]))


def _unwrap(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model
