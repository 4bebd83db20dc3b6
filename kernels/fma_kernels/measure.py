"""Time and peak memory of a piece of PyTorch code, on the CPU and on a GPU alike."""

from __future__ import annotations

import gc
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def device_name(device: torch.device) -> str:
    """Name of the device for a table of figures: the GPU, or the processor and the number of threads in use.

    Args:
        device: where the work runs.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was asked to.

    Args:
        device: where the work runs.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(run: Callable[[], object], device: torch.device) -> float:
    """Time that ``run`` takes until its results are there, in milliseconds.

    Args:
        run: what to time.
        device: where it runs.
    """
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return (time.perf_counter() - start) * 1e3


def peak_mib(run: Callable[[], object], device: torch.device) -> float:
    """Peak of the memory that PyTorch allocates for tensors during ``run``, in MiB.

    On the CPU, the profiler records every allocation of a tensor; on a GPU, PyTorch's allocator keeps count. What is
    allocated before does not count, nor does the memory of libraries, of the interpreter and of data workers.

    Args:
        run: what to measure.
        device: where it runs.
    """
    gc.collect()  # garbage that is freed while it runs would hide what it allocates
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise the profiler reports its start on stderr
    with torch.autograd.profiler.profile(profile_memory=True) as profiler:
        run()
    events = [e for e in profiler.kineto_results.events() if e.name() == "[memory]"]
    current = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    return peak / 2**20


def take_turns(
    clocks: Mapping[str, Callable[[], float]], rounds: int, budget_s: float = math.inf
) -> dict[str, list[float]]:
    """Time several things in rounds: one measurement of each, then the next round, so that all meet the same machine.

    Args:
        clocks: by name, functions that do their work and return the time that it took.
        rounds: how often each is called.
        budget_s: seconds after which no further round begins; the first always does.

    Returns:
        The times of each, in the order of the rounds.
    """
    times: dict[str, list[float]] = {name: [] for name in clocks}
    start = time.perf_counter()
    for _ in range(rounds):
        for name, clock in clocks.items():
            times[name].append(clock())
        if time.perf_counter() - start > budget_s:
            break
    return times
