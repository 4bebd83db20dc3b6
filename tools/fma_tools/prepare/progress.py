"""Progress of a long piece of work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Say what is done now and, on a terminal, how much of it is done.

    Args:
        description: name of the work.
        total: bytes to go through.

    Yields:
        A function to call with the number of bytes done since the last call.
    """
    print(description, flush=True)
    columns = BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    console, disable = Console(stderr=True), not sys.stderr.isatty()
    with Progress(*columns, console=console, transient=True, disable=disable) as bar:
        yield partial(bar.advance, bar.add_task(description, total=total))
