"""Layers on their input: goals, and reading of later tokens."""

from dataclasses import replace

import pytest

from fma_tools import layers
from fma_tools.layers import KINDS, Settings

SETTINGS = Settings((), tokens=256, batch=1, dim=16, heads=2, cell_size=8, rank=2, device="cpu", rounds=1, seed=0)


@pytest.mark.parametrize(("forward", "both", "met"), [(0.9, 0.9, True), (0.9, 0.8, False), (0.8, 0.9, False)])
def test_a_goal_holds_for_both_times(monkeypatch, forward, both, met):
    monkeypatch.setitem(layers.KINDS, "sdpa", replace(layers.KINDS["sdpa"], limit=1.2))
    settings = replace(SETTINGS, layers=("fma", "sdpa"))
    times = iter([1.0, forward, 1.0, both])
    monkeypatch.setattr(layers, "milliseconds", lambda run, device: next(times))
    fma, full = layers.measure(layers.make_entries(settings, causal=False), settings, "bidirectional")
    assert (full.forward_ratio, full.forward_backward_ratio, full.met) == (forward, both, met)
    assert (fma.forward_ratio, fma.goal, fma.met) == (1, "", True)


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.library and kind.causal])
def test_causal_layers_read_no_later_token_but_the_others_do(name):
    pytest.importorskip(name.replace("-", "_"))
    settings = replace(SETTINGS, layers=("fma", name))
    assert layers.make_entries(settings, causal=True)[name].problem() is None
    bidirectional = layers.make_entries(settings, causal=False)[name]
    assert bidirectional.problem() is None
    bidirectional.causal = True
    assert "depend on later tokens" in bidirectional.problem()
