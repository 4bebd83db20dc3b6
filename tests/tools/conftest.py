"""Runs of the tools on small models and data sets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.tool_loader import TOOLS


@pytest.fixture
def start_tool(tmp_path: Path):
    """Start a tool in a process of its own, from another directory: start_tool("train", *arguments)."""
    processes = []

    def start(name: str, *arguments: object) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, TOOLS / f"{name}.py", *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)},
            stdout=(tmp_path / f"output_{len(processes)}.txt").open("w"),
            stderr=subprocess.STDOUT,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture(autouse=True)
def small_models(one_thread):
    """The models are too small for more than a thread."""
