"""Measurements on a GPU, and methods that are not measured at all."""

import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fma_kernels import Hierarchy
from fma_tools.attention import measuring
from fma_tools.attention.cases import KINDS
from fma_tools.attention.floors import Ceilings
from fma_tools.attention.measuring import MethodRow
from fma_tools.attention.settings import Settings

SETTINGS = Settings(batch=1, heads=1, head_dim=8, dtype="bfloat16", rounds=2)


def test_rows_with_floors(monkeypatch):
    """As on a GPU, on a clock that takes itself for one."""

    class Clock:
        device = torch.device("cuda")

        def __init__(self, device):
            pass

        def __call__(self, run):
            assert run() is not None
            return 7.0

    monkeypatch.setattr(measuring, "Clock", Clock)
    ceilings = Ceilings(1e9, 1e9)
    hierarchy = Hierarchy((64,), 8, 2)
    rows = measuring.measure(hierarchy, ["flash", "fma"], SETTINGS, ceilings, memory=2**30)
    for row, pairs, summaries in zip(rows, [64 * 64, None], [0, 2 * hierarchy.num_summaries], strict=True):
        assert row.forward_ms == row.backward_ms == row.forward_backward_ms == 7
        moved = 8 * 2 * (4 * 64 + summaries) + 4 * 64
        assert row.forward_floor_ms >= moved / 1e6 * 0.999
        if pairs:
            assert row.forward_floor_ms == pytest.approx(4 * 8 * pairs / 1e6)
            assert row.backward_floor_ms == pytest.approx(10 * 8 * pairs / 1e6)


def test_what_takes_too_long_or_too_much_is_skipped(monkeypatch):
    def refuse(*_):
        raise AssertionError("inputs were made")

    monkeypatch.setattr(measuring, "AttentionCase", refuse)
    hierarchy = Hierarchy((4096,), 8, 2)
    (flash,) = measuring.measure(hierarchy, ["flash"], replace(SETTINGS, budget=3), Ceilings(1e12, 1e9), 2**30)
    # Two rounds of both passes apart and together: 2 * 2 * 14 * 8 * 4096**2 / 1e9 seconds.
    assert flash.reason == "skipped: 2 rounds take 8 s or more (estimate), the budget is 3 s"
    rows = measuring.measure(hierarchy, ["flash", "fma"], SETTINGS, Ceilings(1e12, 1e12), memory=2**19)
    for row in rows:
        assert row.reason == "skipped: inputs, output and gradients take 0 GiB, the device has 0"
        assert row.forward_ms is None and not row.failed


def test_the_backward_pass_is_timed_alone_and_again(make_case):
    case = make_case(Hierarchy((100,), 8, 2))
    entry = measuring.Entry(MethodRow("FMA", [100], 100), case.method("fma"))
    ran = []

    def clock(run):
        for _ in range(3):
            gradients = run()
            ran.append(gradients[0])
        return 1.0

    assert entry.time(clock, "backward") == 1.0
    expected = entry.forward_backward()[0]
    for gradient in ran:
        torch.testing.assert_close(gradient, expected)


def test_events_enclose_the_work_and_not_the_flush(monkeypatch):
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append(self)

        def elapsed_time(self, end):
            i = log.index(self)
            assert log[i - 1 : i + 3] == ["flush", self, "run", end]
            return [3.0, 9.0, 5.0][i // 4]

    cache = SimpleNamespace(zero_=lambda: log.append("flush"))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("synchronize"))
    assert measuring.event_milliseconds(lambda: log.append("run"), 3, cache) == 5
    assert log[-1] == "synchronize" and len(log) == 13


def test_sdpas_warnings_say_why_it_refuses():
    row = MethodRow("SDPA (flash)", [64], 64)
    with measuring._Attempt(row, KINDS["flash"]):
        warnings.warn("Flash attention only supports sm80. (Triggered internally at sdp_utils.cpp:1.)", stacklevel=1)
        raise RuntimeError("No available kernel. Aborting execution.")
    assert row.reason == "refused: No available kernel. Aborting execution. Flash attention only supports sm80."
    assert not row.failed
