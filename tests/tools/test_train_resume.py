"""tools/train.py --resume: which checkpoint it takes, and runs in processes of their own that are killed."""

import signal
import subprocess

import pytest
from helpers.small_trainings import assert_same, state


def test_without_a_checkpoint_resume_starts_from_the_configured_weights(run_training, classifier, tmp_path, capfd):
    done = run_training(classifier, "done", "--no-validate", settings="train_cfg = dict(by_epoch=True, max_epochs=1)")
    settings = f"load_from = {str(done / 'epoch_1.pth')!r}\ntrain_cfg = dict(by_epoch=True, max_epochs=1)"
    capfd.readouterr()
    run_training(classifier, "new", "--resume", "--no-validate", settings=settings)
    output = capfd.readouterr().out
    assert "Load checkpoint from" in output
    assert "resumed epoch" not in output


def test_a_moved_work_directory_resumes(run_training, classifier, tmp_path, capfd):
    stopped = run_training(classifier, "stopped", "--no-validate", stop=15)
    stopped.rename(tmp_path / "moved")
    run_training(classifier, "moved", "--resume", "--no-validate")
    assert "resumed epoch: 2, iter: 12" in capfd.readouterr().out


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
def test_killed_runs_end_as_if_they_had_not_been(start_tool, run_training, classifier, tmp_path):
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
    run_training(classifier, "writing", "--resume", str(tmp_path / "writing" / "epoch_2.pth"), settings=settings)
    whole = state(run_training(classifier, "whole", settings=settings))
    assert training.wait() == 0
    assert_same(state(tmp_path / "training"), whole)
    assert_same(state(tmp_path / "writing"), whole)
