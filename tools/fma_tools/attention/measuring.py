"""Time and memory of the methods on one size, in rounds in which they take turns."""

from __future__ import annotations

import statistics
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from fma_kernels import Hierarchy
from fma_kernels.measure import milliseconds, peak_mib, take_turns

from .cases import KINDS, AttentionCase, Kind, Method, work
from .floors import Ceilings
from .gate import Gate
from .settings import Settings

FLUSHED_BYTES = 2**28  # beyond any second-level cache
TIMED_MS = 50  # of each method and pass in a round on a GPU
LONG_MS = 1000  # of a pass on a CPU that needs no run before the one that counts


@dataclass
class MethodRow:
    """One method on one size; what was not measured is None.

    Attributes:
        method: title of the method.
        grid: the size.
        tokens: number of tokens.
        forward_ms: time of the forward pass.
        backward_ms: time of the backward pass alone, on a GPU.
        forward_backward_ms: time of both together.
        forward_mib: peak of what the forward pass allocates, output included.
        forward_backward_mib: peak of what both passes allocate, output and gradients included.
        forward_extra_mib: the part of ``forward_mib`` beyond the output.
        forward_backward_extra_mib: the part of ``forward_backward_mib`` beyond output and gradients.
        held_mib: inputs, output and gradients.
        forward_floor_ms: the least time of the forward pass, where the ceilings are known.
        backward_floor_ms: that of the backward pass.
        reason: why the row has no figures.
        failed: the method is wrong, or does not run although it should.
    """

    method: str
    grid: list[int]
    tokens: int
    forward_ms: float | None = None
    backward_ms: float | None = None
    forward_backward_ms: float | None = None
    forward_mib: float | None = None
    forward_backward_mib: float | None = None
    forward_extra_mib: float | None = None
    forward_backward_extra_mib: float | None = None
    held_mib: float | None = None
    forward_floor_ms: float | None = None
    backward_floor_ms: float | None = None
    reason: str | None = None
    failed: bool = False


class Clock:
    """Milliseconds that a function takes, until its results are there.

    On a CPU it runs once, after one run that does not count unless it takes long: during the turn of a slow method the
    system may take back memory that the others freed, and no method should pay for that. On a GPU it is the median of
    repetitions between two events, each after the second-level cache was flushed. While the device flushes, the next
    calls are queued: their overhead counts only where it is longer than the flush.

    Args:
        device: where the functions run.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._cache = torch.empty(FLUSHED_BYTES if device.type == "cuda" else 0, dtype=torch.uint8, device=device)

    def __call__(self, run: Callable[[], object]) -> float:
        if self.device.type != "cuda":
            first = milliseconds(run, self.device)
            return first if first >= LONG_MS else milliseconds(run, self.device)
        once = event_milliseconds(run, 1, self._cache)
        if once >= TIMED_MS:
            return once
        return event_milliseconds(run, min(20, int(TIMED_MS / max(once, 1e-3))), self._cache)


def event_milliseconds(run: Callable[[], object], repetitions: int, cache: torch.Tensor) -> float:
    """Median time between events around a function on a GPU, after a write that flushes the second-level cache.

    Args:
        run: the function to time.
        repetitions: how often.
        cache: the tensor that is written, larger than the cache.
    """
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repetitions)]
    for start, end in pairs:
        cache.zero_()
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in pairs)


@dataclass
class Entry:
    """A method that is measured, and its row."""

    row: MethodRow
    method: Method

    def forward(self) -> torch.Tensor:
        """The forward pass alone."""
        with torch.no_grad():
            return self.method.run()

    def forward_backward(self) -> tuple[torch.Tensor | None, ...]:
        """Both passes."""
        return self.method.gradients(self.method.run(), self.method.grad)

    def time(self, clock: Clock, label: str) -> float:
        """Milliseconds of one pass: ``"forward"``, ``"backward"`` or ``"forward_backward"``."""
        run = self.forward if label == "forward" else self.forward_backward
        if label == "backward":
            out = self.method.run()

            def run() -> object:
                return self.method.gradients(out, self.method.grad, retain_graph=True)

        return clock(run)

    def weigh(self, device: torch.device) -> None:
        """Peaks of the memory; also the warm-up."""
        row, method = self.row, self.method
        gradients = [x for x in self.forward_backward() if x is not None]
        self.forward()
        inputs, output = _mib(*method.leaves.values(), method.grad), _mib(method.grad)
        row.held_mib = inputs + output + _mib(*gradients)
        results = output, output + _mib(*gradients)
        del gradients
        row.forward_mib = peak_mib(self.forward, device)
        row.forward_backward_mib = peak_mib(self.forward_backward, device)
        row.forward_extra_mib = row.forward_mib - results[0]
        row.forward_backward_extra_mib = row.forward_backward_mib - results[1]


def _mib(*tensors: torch.Tensor) -> float:
    return sum(x.numel() * x.element_size() for x in tensors) / 2**20


def measure(
    hierarchy: Hierarchy,
    methods: Sequence[str],
    settings: Settings,
    ceilings: Ceilings | None = None,
    memory: int | None = None,
) -> list[MethodRow]:
    """Check and measure the methods on one size.

    A method that is wrong is not timed, and one that cannot run is left out; their rows say why.

    Args:
        hierarchy: geometry.
        methods: keys of :data:`~fma_tools.attention.cases.KINDS`.
        settings: the settings that all methods share.
        ceilings: limits of the device. With them, rows have floors, and a method whose rounds take longer than the
            budget at the least is left out.
        memory: bytes of the device; a method that does not fit is left out.
    """
    rows, entries, case, gate = [], [], None, None
    device = torch.device(settings.device)
    for name in methods:
        row = MethodRow(KINDS[name].title, list(hierarchy.grid), hierarchy.num_tokens)
        rows.append(row)
        if ceilings is not None:
            row.forward_floor_ms, row.backward_floor_ms = work(name, hierarchy, settings).floors_ms(ceilings)
        row.reason = _too_much(name, hierarchy, settings, ceilings, memory)
        if row.reason:
            continue
        with _Attempt(row, KINDS[name]):
            if case is None:
                case = AttentionCase(hierarchy, settings)
                gate = Gate(case)
            method = case.method(name)
            row.reason = gate.problem(KINDS[name], method)
            row.failed = row.reason is not None
            if not row.failed:
                entry = Entry(row, method)
                entry.weigh(device)
                entries.append(entry)
    _time(entries, settings, Clock(device))
    return rows


def _time(entries: list[Entry], settings: Settings, clock: Clock) -> None:
    # On a CPU the backward pass alone would make a long run longer, and tell nothing that the two do not.
    alone = ["backward"] if clock.device.type == "cuda" else []
    for label in ["forward", *alone, "forward_backward"]:
        clocks = {entry.row.method: partial(entry.time, clock, label) for entry in entries}
        times = take_turns(clocks, settings.rounds, settings.budget)
        for entry in entries:
            setattr(entry.row, f"{label}_ms", statistics.median(times[entry.row.method]))


def _too_much(
    name: str, hierarchy: Hierarchy, settings: Settings, ceilings: Ceilings | None, memory: int | None
) -> str | None:
    """Why a method is not tried: it does not fit into memory, or takes too long."""
    needed = work(name, hierarchy, settings)
    if memory is not None and needed.held_bytes > 0.9 * memory:
        gib = [x / 2**30 for x in (needed.held_bytes, memory)]
        return f"skipped: inputs, output and gradients take {gib[0]:.0f} GiB, the device has {gib[1]:.0f}"
    if ceilings is None:
        return None
    # A round is each pass alone, and both together.
    seconds = 2 * settings.rounds * sum(needed.floors_ms(ceilings)) / 1e3
    if seconds > settings.budget:
        estimate = f"{settings.rounds} rounds take {seconds:.0f} s or more (estimate)"
        return f"skipped: {estimate}, the budget is {settings.budget:g} s"
    return None


class _Attempt:
    """Lets a method fail without the others: its row says why. One of this project's fails the run."""

    def __init__(self, row: MethodRow, kind: Kind):
        self.row, self.kind = row, kind
        self._warnings = warnings.catch_warnings(record=True)

    def __enter__(self) -> None:
        self._seen = self._warnings.__enter__()
        warnings.simplefilter("always")

    def __exit__(self, kind, error, trace) -> bool:
        self._warnings.__exit__(kind, error, trace)
        if error is None or not isinstance(error, Exception):
            return False
        if isinstance(error, torch.OutOfMemoryError):
            self.row.reason = "skipped: out of memory"
            return True
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        if self.kind.own:
            self.row.reason, self.row.failed = f"failed: {type(error).__name__}: {message}", True
            traceback.print_exception(error)
            return True
        # PyTorch warns why a backend of SDPA does not take the input, before it raises that there is none left.
        why = dict.fromkeys(str(warning.message).partition(" (Triggered")[0] for warning in self._seen)
        self.row.reason = f"refused: {' '.join([message, *why])}"
        return True
