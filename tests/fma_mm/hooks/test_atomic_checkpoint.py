"""Checkpoints are there as a whole or not at all, and one is there at every moment."""

import inspect
import os
from pathlib import Path

import pytest
import torch
from mmengine.fileio import get_file_backend
from mmengine.hooks import CheckpointHook
from mmengine.model import BaseModel
from mmengine.runner import Runner

from fma_mm import AtomicCheckpointHook
from fma_mm.hooks.atomic_checkpoint import AtomicLocalBackend


class Line(BaseModel):
    """A model of one weight."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, inputs, data_samples=None, mode="tensor"):
        return dict(loss=(self.weight * torch.stack(list(inputs))).sum())


def make_runner(work_dir: Path, iterations: int = 5, resume: bool = False, **options) -> Runner:
    """A run that saves after every iteration."""
    return Runner(
        Line(),
        str(work_dir),
        train_dataloader=dict(
            batch_size=1,
            dataset=[dict(inputs=torch.ones(1))] * 2,
            sampler=dict(type="InfiniteSampler", shuffle=False),
            collate_fn=dict(type="pseudo_collate"),
        ),
        train_cfg=dict(by_epoch=False, max_iters=iterations),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)),
        default_hooks=dict(checkpoint=dict(type="AtomicCheckpointHook", interval=1, by_epoch=False, **options)),
        experiment_name=f"{work_dir.name}{iterations}",
        resume=resume,
    )


def checkpoints(work_dir: Path) -> list[str]:
    return sorted(path.name for path in work_dir.glob("iter_*.pth"))


@pytest.mark.parametrize("kept", [1, 2])
def test_a_good_checkpoint_is_named_while_the_next_one_is_written(tmp_path, monkeypatch, kept):
    found = []
    put = AtomicLocalBackend.put

    def spy(self, content, path):
        named = tmp_path / "last_checkpoint"
        if Path(path) != named and named.exists():
            torch.load(named.read_text(), weights_only=False)  # whole
            found.append(checkpoints(tmp_path))
        put(self, content, path)

    monkeypatch.setattr(AtomicLocalBackend, "put", spy)
    make_runner(tmp_path, max_keep_ckpts=kept).train()
    numbers = [list(range(max(1, i - kept + 1), i + 1)) for i in range(1, 5)]
    assert found == [[f"iter_{i}.pth" for i in row] for row in numbers]
    assert checkpoints(tmp_path) == [f"iter_{i}.pth" for i in range(6 - kept, 6)]
    assert (tmp_path / "last_checkpoint").read_text() == str(tmp_path / "iter_5.pth")


def test_a_resumed_run_deletes_what_the_earlier_one_kept(tmp_path):
    make_runner(tmp_path, iterations=3, max_keep_ckpts=2).train()
    assert checkpoints(tmp_path) == ["iter_2.pth", "iter_3.pth"]
    make_runner(tmp_path, iterations=4, resume=True, max_keep_ckpts=2).train()
    assert checkpoints(tmp_path) == ["iter_3.pth", "iter_4.pth"]


def test_an_interrupted_write_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    backend = get_file_backend(backend_args=dict(backend="atomic_local"))
    path = tmp_path / "folder" / "file"
    backend.put_text("before", path)

    def full(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        backend.put(b"after", path)
    assert path.read_text() == "before"


def test_the_overridden_private_method_is_still_mmengines():
    """The hook replaces a private method: another signature in a new mmengine must not pass unnoticed."""
    parameters = [
        list(inspect.signature(hook._save_checkpoint_with_step).parameters)
        for hook in (CheckpointHook, AtomicCheckpointHook)
    ]
    assert parameters[0] == parameters[1] == ["self", "runner", "step", "meta"]
    assert "self._save_checkpoint_with_step(" in inspect.getsource(CheckpointHook._save_checkpoint)


def test_other_storage_keeps_its_backend(tmp_path):
    assert AtomicCheckpointHook().backend_args == dict(backend="atomic_local")
    assert AtomicCheckpointHook(out_dir="s3://bucket").backend_args is None
    assert AtomicCheckpointHook(backend_args=dict(backend="petrel")).backend_args == dict(backend="petrel")


def test_outdated_checkpoints_may_be_folders(tmp_path, monkeypatch):
    """DeepSpeed writes folders."""
    monkeypatch.setattr(Runner, "save_checkpoint", lambda runner, folder, name, *_, **__: Path(folder, name).mkdir())
    make_runner(tmp_path, max_keep_ckpts=1).train()
    assert checkpoints(tmp_path) == ["iter_5.pth"]
