"""examples/context_parallel.py: a context over two processes learns what it learns in one, through a kill as well."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.command_line import error_of
from helpers.tool_loader import load_script

EXAMPLE = Path(__file__).parents[2] / "examples" / "context_parallel.py"
SMALL = ["--context", "300", "--batch", "2", "--layers", "1", "--channels", "16", "--heads", "2", "--cell-size", "8"]


@pytest.fixture(scope="module")
def example():
    return load_script(EXAMPLE)


def bits(folder):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [*range(1, len(rows) + 1)]
    return [row["bits"] for row in rows]


@pytest.mark.slow
def test_two_processes_killed_and_started_again_learn_what_one_learns(example, tmp_path):
    folder = tmp_path / "two"
    words = [str(EXAMPLE), *SMALL, "--save-every", "3", "--out", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        environment["MASTER_PORT"] = str(free.getsockname()[1])
    endless = [sys.executable, *words, "--steps", "1000000"]
    killed = [subprocess.Popen(endless, env=environment | {"RANK": str(rank)}) for rank in range(2)]
    until = time.monotonic() + 120
    try:
        while not (folder / "step-3" / ".metadata").exists():
            assert all(process.poll() is None for process in killed) and time.monotonic() < until
            time.sleep(0.05)
    finally:
        for process in killed:
            process.kill()
            process.wait()
    done = max(int(path.parent.name.removeprefix("step-")) for path in folder.glob("step-*/.metadata"))
    (folder / f"step-{done + 3}").mkdir(exist_ok=True)  # a checkpoint that is not complete

    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    resumed = subprocess.run([*launcher, *words, "--steps", str(done + 4)], timeout=180, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert f"2 processes, 2 for each sequence; from step {done} on" in resumed.stdout
    example.main([*SMALL, "--steps", str(done + 4), "--out", str(tmp_path / "one")])
    assert bits(folder) == pytest.approx(bits(tmp_path / "one"), rel=1e-4)


def test_mistakes(example, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "4")
    error = error_of(example.main, capsys, "--context-ranks", "3")
    assert error == "--context-ranks 3: expected a divisor of the 4 processes"
    error = error_of(example.main, capsys, "--context-ranks", "2", "--batch", "3")
    assert error == "--batch 3: expected a multiple of the 2 groups of processes"
