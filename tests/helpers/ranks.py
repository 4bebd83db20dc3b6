"""Processes that work together through torch.distributed, for tests."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Seconds after which ranks count as hanging.
PATIENCE = 120


class Ranks:
    """Processes with gloo between them, started once; the first 2, 3, ... of them are groups as well.

    Args:
        size: number of processes.
        folder: where they meet.
    """

    def __init__(self, size: int, folder: Path):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "fma_kernels.distributed"])
        self._pipes, self._processes = [], []
        for rank in range(size):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, size, folder / "meeting", there), daemon=True)
            process.start()
            self._pipes.append(here)
            self._processes.append(process)

    def run(self, size: int, work: Callable, *args: Any) -> list[Any]:
        """Results of ``work(group, *args)`` on each of the first ``size`` ranks.

        Args:
            size: number of ranks, 2 or more.
            work: a function of a module; what it returns is pickled.
            args: its other arguments.

        Raises:
            AssertionError: a rank raised something, or hangs.
        """
        results, failures = self.outcomes(size, work, *args)
        assert not failures, "\n".join(text for _, text in failures.values())
        return results

    def outcomes(self, size: int, work: Callable, *args: Any) -> tuple[list[Any], dict[int, tuple[str, str]]]:
        """As :meth:`run`: the results, and by rank the message and the traceback of what was raised."""
        for pipe in self._pipes[:size]:
            pipe.send((size, work, args))
        results, failures = [], {}
        for rank, pipe in enumerate(self._pipes[:size]):
            assert pipe.poll(PATIENCE), f"rank {rank} of {size} hangs"
            result, failure = pipe.recv()
            results.append(result)
            if failure:
                failures[rank] = failure
        return results, failures

    def stop(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.terminate()
            process.join()


def _serve(rank: int, size: int, meeting: Path, pipe: Any) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    groups = {count: dist.new_group(range(count)) for count in range(2, size + 1)}
    while True:
        count, work, args = pipe.recv()
        try:
            pipe.send((work(groups[count], *args), None))
        except Exception as error:
            pipe.send((None, (str(error), traceback.format_exc())))
