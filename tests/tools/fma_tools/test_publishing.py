"""Files of weights to publish: what they keep, what they do not, and their names."""

import hashlib
from pathlib import Path

import pytest
import torch

from fma_tools.command import CommandError
from fma_tools.publishing import publish


def save(path: Path, **state) -> Path:
    torch.save(state, path)
    return path


def test_of_mmengine(tmp_path):
    meta = dict(iter=7, epoch=1, seed=0, cfg="work_dir = '/home/someone'", dataset_meta=dict(classes=("cat",)))
    weights = dict(x=torch.rand(3))
    checkpoint = save(tmp_path / "iter_7.pth", state_dict=weights, meta=meta, optimizer=dict(state=torch.rand(9)))
    path = publish(checkpoint, "cats", tmp_path / "out")
    assert path.name == f"cats-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"
    assert [*path.parent.iterdir()] == [path]
    found = torch.load(path, weights_only=True)
    assert torch.equal(found["state_dict"]["x"], weights["x"]) and set(found) == {"state_dict", "meta"}
    assert found["meta"]["dataset_meta"] == dict(classes=("cat",)) and "cfg" not in found["meta"]
    assert b"someone" not in path.read_bytes()


def test_of_fairseq(tmp_path):
    cfg = dict(task=dict(data="/home/someone/data", seed=1), common=dict(user_dir="/home/someone/lm"))
    history = [dict(num_updates=5), dict(num_updates=9)]
    state = dict(args=None, cfg=cfg, model=dict(x=torch.rand(2)), optimizer_history=history, last_optimizer_state=[1])
    path = publish(save(tmp_path / "last.pt", **state), "lm", tmp_path)
    found = torch.load(path, weights_only=True)
    assert found["cfg"] == dict(task=dict(data="", seed=1), common=dict(user_dir=""))
    assert found["last_optimizer_state"] is None and found["optimizer_history"] == history[-1:]
    assert b"someone" not in path.read_bytes()


def test_mistakes_are_named(tmp_path):
    with pytest.raises(CommandError, match="expected a file"):
        publish(tmp_path / "none.pth", "x", tmp_path)
    with pytest.raises(CommandError, match="expected one of mmengine or fairseq"):
        publish(save(tmp_path / "else.pth", weights=1), "x", tmp_path / "out")
    assert not (tmp_path / "out").exists()
