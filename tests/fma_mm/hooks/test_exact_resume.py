"""A run that stops at any moment and is resumed ends with the weights of the run that never stopped."""

import pickle
import random

import numpy as np
import pytest
import torch
from helpers.small_trainings import assert_same, state

from fma_mm.hooks.exact_resume import NumberedBatches, SeededBatch, seed_generators


def by_iteration(interval: int) -> str:
    return f"default_hooks['checkpoint'] = dict(type='CheckpointHook', by_epoch=False, interval={interval})"


FINITE = "train_dataloader.update(sampler=dict(type='DefaultSampler', shuffle=True))"
FLEXIBLE = """
runner_type = "FlexibleRunner"
env_cfg = dict()
randomness = dict(seed=3)
default_hooks["checkpoint"].update(save_best=None)
"""
CASES = {
    # name: (config, settings of all runs, settings of the stopped run alone, stop after and resume at iteration)
    "between checkpoints": ("classifier", "", "", 15, 12),
    "workers": ("classifier", "", "train_dataloader.update(num_workers=2)", 15, 12),
    "inside an epoch": ("classifier", "", by_iteration(4), 11, 8),
    "at the end of an epoch": ("classifier", "", by_iteration(6), 14, 12),
    "averaged weights": ("classifier", "custom_hooks = [dict(type='EMAHook', momentum=0.1)]", "", 9, 6),
    "accumulated gradients": ("classifier", "optim_wrapper.update(accumulative_counts=4)", "", 11, 6),
    "repeated samples": ("classifier", "train_dataloader.update(sampler=dict(type='RepeatAugSampler'))", "", 15, 12),
    "flexible runner": ("classifier", FLEXIBLE, "", 15, 12),
    "by iteration": ("segmentor", "", "", 11, 8),
    "by iteration, workers": ("segmentor", "", "train_dataloader.update(num_workers=2)", 11, 8),
    "by iteration, finite sampler": ("segmentor", FINITE, "", 11, 8),
}


@pytest.fixture(scope="module")
def uninterrupted() -> dict[tuple[str, str], dict]:
    """Final states of runs without a stop, by config and settings."""
    return {}


@pytest.mark.parametrize("case", CASES)
def test_resume_is_exact(run_training, request, uninterrupted, capfd, case):
    name, settings, only_stopped, stop, resumed = CASES[case]
    config = request.getfixturevalue(name)
    seed = ("--cfg-options", "randomness.seed=3")
    if (name, settings) not in uninterrupted:
        uninterrupted[name, settings] = state(run_training(config, "whole", *seed, settings=settings))
    stopped_settings = f"{settings}\n{only_stopped}"
    stopped = run_training(config, "stopped", *seed, "--no-validate", settings=stopped_settings, stop=stop)
    capfd.readouterr()
    run_training(config, "stopped", "--resume", settings=stopped_settings)  # the seed comes from the checkpoint
    assert f", iter: {resumed}\n" in capfd.readouterr().out
    assert_same(state(stopped), uninterrupted[name, settings])


def test_workers_do_not_change_the_run(run_training, classifier):
    """Random numbers belong to the batch and the iteration, not to the process that draws them."""
    settings = "train_cfg = dict(by_epoch=True, max_epochs=2)\n"
    alone = run_training(classifier, "alone", "--no-validate", "--cfg-options", "randomness.seed=5", settings=settings)
    settings += "train_dataloader.update(num_workers=3)"
    helped = run_training(
        classifier, "helped", "--no-validate", "--cfg-options", "randomness.seed=5", settings=settings
    )
    assert_same(state(alone), state(helped))


def test_a_changed_batch_size_resumes_at_an_epoch(run_training, classifier, capfd):
    stopped = run_training(classifier, "stopped", "--no-validate", stop=15)
    capfd.readouterr()
    run_training(classifier, "stopped", "--resume", "--no-validate", settings="train_dataloader.update(batch_size=8)")
    output = capfd.readouterr().out
    assert "An epoch had 6 batches and has 3 now" in output
    assert torch.load(stopped / "epoch_4.pth", weights_only=False)["meta"]["iter"] == 12 + 2 * 3


def test_seeded_batches():
    batches = NumberedBatches([[3, 1], [2, 0]], key=(7, 8), position=5, skip=1)
    (batch,) = batches
    assert batch == [2, 0] and batch.key == (7, 8, 5)
    assert [b.key for b in batches] == [(7, 8, 6), (7, 8, 7)]  # skipped once only

    def drawn() -> tuple:
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert list(batch) == [2, 0]
    first = drawn()
    assert len(set(first)) == 3
    assert drawn() != first
    copy = pickle.loads(pickle.dumps(batch))
    assert isinstance(copy, SeededBatch)
    state = random.getstate()
    pickle.dumps(batch)
    assert random.getstate() == state, "handing a batch to a worker must not touch this process"
    assert [i for i in copy] == [2, 0]  # noqa: C416
    assert drawn() == first


def test_seeds_are_unrelated():
    keys = [(0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0)]
    draws = []
    for key in keys:
        seed_generators(*key)
        draws += [random.random(), np.random.rand(), torch.rand(1, dtype=torch.float64).item()]
    assert len(set(draws)) == len(draws)
