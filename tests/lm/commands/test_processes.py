"""Training in two processes on one CPU."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers.fairseq_commands import free_port, training_flags

UPDATES = "--max-update 24 --save-interval-updates 10"


def weights(folder: Path) -> dict:
    return torch.load(folder / "checkpoint_last.pt", weights_only=False)["model"]


@pytest.fixture
def train_in_two_processes(start, corpus):
    def train(folder: Path, flags: str) -> list[str]:
        flags = f"{flags} --distributed-world-size 2 --distributed-init-method tcp://127.0.0.1:{free_port()} "
        flags += "--distributed-no-spawn --distributed-backend gloo --ddp-backend legacy_ddp --distributed-rank"
        ranks = [start("train", corpus, *training_flags("fma_lm", folder, f"{flags} {rank}")) for rank in (0, 1)]
        return [rank.output() for rank in ranks]

    return train


@pytest.mark.slow
def test_two_processes_train_as_one_on_twice_the_batches(train_in_two_processes, train, tmp_path):
    train_in_two_processes(tmp_path / "two", UPDATES)
    one, _ = train("fma_lm", f"{UPDATES} --update-freq 2")
    torch.testing.assert_close(weights(tmp_path / "two"), weights(one), rtol=1e-4, atol=1e-5)

    (tmp_path / "again").mkdir()
    shutil.copy(tmp_path / "two" / "checkpoint_1_10.pt", tmp_path / "again" / "checkpoint_last.pt")
    output, _ = train_in_two_processes(tmp_path / "again", f"{UPDATES} --load-checkpoint-on-all-dp-ranks")
    assert '"num_updates": "11"' in output
    assert '"num_updates": "10"' not in output
    torch.testing.assert_close(weights(tmp_path / "again"), weights(tmp_path / "two"), rtol=0, atol=0)
