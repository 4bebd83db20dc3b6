"""Kernels for GPUs that they were not tuned for: what is counted, and what is complained about."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from fma_tools import other_targets

ROW = other_targets.TargetRow("forward", "gfx942", shared=65536, spills=0)


@pytest.mark.parametrize(
    ("changes", "offence"),
    [
        ({}, []),
        (dict(shared=65540), ["65540 bytes of shared memory, expected at most 65536"]),
        (dict(target="sm_120", shared=102400), ["102400 bytes of shared memory, expected at most 101376"]),
        (dict(target="sm_100", shared=102400), []),
        (dict(spills=3), ["3 spills, expected none"]),
    ],
)
def test_rules(changes, offence):
    assert list(replace(ROW, **changes).offences()) == offence


def test_spills_of_amd_are_those_of_both_kinds_of_registers(monkeypatch):
    listing = "    .sgpr_count:     40\n    .sgpr_spill_count: 2\n    .vgpr_count: 256\n    .vgpr_spill_count: 5\n"
    compiled = SimpleNamespace(asm=dict(amdgcn=listing), metadata=SimpleNamespace(shared=128))
    asked = []
    monkeypatch.setattr(other_targets, "compile_case", lambda case, *target: asked.append(target) or compiled)
    row = other_targets.compiled_for(SimpleNamespace(name="forward"), "gfx90a")
    assert row == other_targets.TargetRow("forward", "gfx90a", shared=128, spills=7)
    assert asked == [("hip", "gfx90a", 64)]
