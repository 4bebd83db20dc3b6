"""Runs of the tools on small archives."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from signal import Signals
from types import SimpleNamespace

import pytest
from helpers.prepare_archives import make_ade20k, make_imagenet

from fma_tools.prepare import unpacking
from fma_tools.prepare.dataset import Dataset
from fma_tools.prepare.preparation import main


@pytest.fixture
def small_imagenet(tmp_path: Path) -> SimpleNamespace:
    return make_imagenet(tmp_path / "downloads")


@pytest.fixture
def small_ade20k(tmp_path: Path) -> SimpleNamespace:
    return make_ade20k(tmp_path / "downloads")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Run a tool that has to refuse; gives its one line."""

    def refused(dataset: Dataset, *arguments: object, status: int = 2) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            main(dataset, list(map(str, arguments)))
        assert exit.value.code == status
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return refused


STOPPER = """
import os, shutil, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background, which ignores it
from fma_tools.prepare.archives import Archive
from fma_tools.prepare.ade20k import ADE20K
from fma_tools.prepare.preparation import main
from fma_tools.prepare.imagenet import ImageNet

copied = 0

def copyfileobj(source, file, length):
    global copied
    copied += 1
    contents = source.read()
    file.write(contents[: len(contents) // 2])
    file.flush()
    if copied == {after}:
        os.kill(os.getpid(), {signal})
    file.write(contents[len(contents) // 2 :])

shutil.copyfileobj = copyfileobj
main({dataset!r}, sys.argv[1:])
"""


@pytest.fixture
def run_stopped(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Run a tool in a process that gets a signal in the middle of writing its file number ``after``."""

    def run(dataset: Dataset, *arguments: object, after: int, signal: Signals) -> subprocess.CompletedProcess:
        script = tmp_path / "stopper.py"
        script.write_text(STOPPER.format(after=after, signal=int(signal), dataset=dataset))
        return subprocess.run([sys.executable, script, *map(str, arguments)], capture_output=True, text=True)

    return run


@pytest.fixture
def stop_at() -> Callable[[int, pytest.MonkeyPatch], None]:
    """Let Ctrl-C be pressed while file number ``n`` is written, in this process."""

    def stop_at(n: int, patch: pytest.MonkeyPatch) -> None:
        numbers = itertools.count(1)

        def copyfileobj(source, file, length):
            file.write(source.read(3))
            if next(numbers) == n:
                raise KeyboardInterrupt
            file.write(source.read())

        patch.setattr(unpacking.shutil, "copyfileobj", copyfileobj)

    return stop_at
