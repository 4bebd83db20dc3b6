"""A run that stops at any moment and is resumed ends with the weights of the run that never stopped."""

import gc
import pickle
import random
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import loops

from fma_mm.hooks.exact_resume import NumberedBatches, SeededBatch, seed_generators


class Stop(Exception):
    """Stands for a kill in tests that stay in one process."""


@HOOKS.register_module()
class StopHook(Hook):
    priority = "LOWEST"

    def __init__(self, after: int):
        self.after = after

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.after:
            raise Stop


def state(work_dir: Path) -> dict:
    """What the last checkpoint holds: weights, averaged weights, optimizer."""
    checkpoint = torch.load((work_dir / "last_checkpoint").read_text(), weights_only=False)
    return {key: checkpoint[key] for key in ("state_dict", "ema_state_dict", "optimizer") if key in checkpoint}


def assert_same(left, right) -> None:
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    else:
        assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


@pytest.fixture
def run(train, tmp_path, monkeypatch):
    """Train in this process; the settings are lines added to the config."""
    monkeypatch.setattr(loops, "time", SimpleNamespace(sleep=lambda seconds: None))  # mmengine waits between epochs
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)  # torch waits for collected workers

    def run(config: Path, work_dir: str, *arguments: str, settings: str = "", stop: int | None = None) -> Path:
        text = f"{config.read_text()}\n{settings}\n"
        if stop is not None:
            text += f"custom_hooks = [*globals().get('custom_hooks', []), dict(type='StopHook', after={stop})]\n"
        path = tmp_path / f"{work_dir}_config.py"
        path.write_text(text + f"experiment_name = '{work_dir}{len(arguments)}'\n")
        command = [str(path), "--work-dir", str(tmp_path / work_dir), *arguments]
        if stop is None:
            train.main(command)
        else:
            with pytest.raises(Stop):
                train.main(command)
        gc.collect()  # ends the workers of the run's data loaders
        return tmp_path / work_dir

    return run


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
    """Where runs without a stop ended, by config and settings."""
    return {}


@pytest.mark.parametrize("case", CASES)
def test_resume_is_exact(run, request, uninterrupted, capfd, case):
    name, settings, only_stopped, stop, resumed = CASES[case]
    config = request.getfixturevalue(name)
    seed = ("--cfg-options", "randomness.seed=3")
    if (name, settings) not in uninterrupted:
        uninterrupted[name, settings] = state(run(config, "whole", *seed, settings=settings))
    stopped_settings = f"{settings}\n{only_stopped}"
    stopped = run(config, "stopped", *seed, "--no-validate", settings=stopped_settings, stop=stop)
    capfd.readouterr()
    run(config, "stopped", "--resume", settings=stopped_settings)  # the seed comes from the checkpoint
    assert f", iter: {resumed}\n" in capfd.readouterr().out
    assert_same(state(stopped), uninterrupted[name, settings])


def test_workers_do_not_change_the_run(run, classifier):
    """Random numbers belong to the batch and the iteration, not to the process that draws them."""
    settings = "train_cfg = dict(by_epoch=True, max_epochs=2)\n"
    alone = run(classifier, "alone", "--no-validate", "--cfg-options", "randomness.seed=5", settings=settings)
    settings += "train_dataloader.update(num_workers=3)"
    helped = run(classifier, "helped", "--no-validate", "--cfg-options", "randomness.seed=5", settings=settings)
    assert_same(state(alone), state(helped))


def test_a_changed_batch_size_resumes_at_an_epoch(run, classifier, capfd):
    stopped = run(classifier, "stopped", "--no-validate", stop=15)
    capfd.readouterr()
    run(classifier, "stopped", "--resume", "--no-validate", settings="train_dataloader.update(batch_size=8)")
    output = capfd.readouterr().out
    assert "An epoch had 6 batches and has 3 now" in output
    assert torch.load(stopped / "epoch_4.pth", weights_only=False)["meta"]["iter"] == 12 + 2 * 3


def test_without_a_checkpoint_resume_starts_from_the_configured_weights(run, classifier, tmp_path, capfd):
    done = run(classifier, "done", "--no-validate", settings="train_cfg = dict(by_epoch=True, max_epochs=1)")
    settings = f"load_from = {str(done / 'epoch_1.pth')!r}\ntrain_cfg = dict(by_epoch=True, max_epochs=1)"
    capfd.readouterr()
    run(classifier, "new", "--resume", "--no-validate", settings=settings)
    output = capfd.readouterr().out
    assert "Load checkpoint from" in output
    assert "resumed epoch" not in output


def test_a_moved_work_directory_resumes(run, classifier, tmp_path, capfd):
    stopped = run(classifier, "stopped", "--no-validate", stop=15)
    stopped.rename(tmp_path / "moved")
    run(classifier, "moved", "--resume", "--no-validate")
    assert "resumed epoch: 2, iter: 12" in capfd.readouterr().out


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


KILLER = """
import os
import resource
import signal

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class KillHook(Hook):
    def __init__(self, iteration=None, writing_epoch=None):
        self.iteration, self.writing_epoch = iteration, writing_epoch

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iteration:
            os.kill(os.getpid(), signal.SIGKILL)

    def before_save_checkpoint(self, runner, checkpoint):
        if runner.epoch + 1 == self.writing_epoch:  # the system ends the process in the middle of the file
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
"""


@pytest.mark.slow
def test_killed_runs_end_as_if_they_had_not_been(start_tool, run, classifier, tmp_path):
    """Two runs side by side are killed, while training and while writing the checkpoint of epoch 3.

    They are resumed in a process of its own and in this one, where the run is that was not killed.
    """
    (tmp_path / "killer.py").write_text(KILLER)
    settings = "randomness = dict(seed=3)\n"

    def start(work_dir: str, *arguments: str, kill: str = "") -> subprocess.Popen:
        text = classifier.read_text() + settings
        if kill:
            text += f"custom_imports['imports'].append('killer')\ncustom_hooks = [dict(type='KillHook', {kill})]\n"
        config = tmp_path / f"{work_dir}_config.py"
        config.write_text(text)
        return start_tool("train", config, "--work-dir", tmp_path / work_dir, *arguments)

    training, writing = start("training", kill="iteration=15"), start("writing", kill="writing_epoch=3")
    assert training.wait() == -signal.SIGKILL
    assert writing.wait() == -signal.SIGXFSZ
    for work_dir in ("training", "writing"):  # one checkpoint is kept, and it is a good one
        assert [path.name for path in (tmp_path / work_dir).glob("epoch_*.pth")] == ["epoch_2.pth"]
    assert any(0 < path.stat().st_size <= 150_000 for path in (tmp_path / "writing").glob(".*epoch_3*"))

    training = start("training", "--resume")
    run(classifier, "writing", "--resume", str(tmp_path / "writing" / "epoch_2.pth"), settings=settings)
    whole = state(run(classifier, "whole", settings=settings))
    assert training.wait() == 0
    assert_same(state(tmp_path / "training"), whole)
    assert_same(state(tmp_path / "writing"), whole)
