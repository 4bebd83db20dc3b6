"""Figures of the benchmark of decoding."""

from dataclasses import replace

import pytest

from fma_tools import decoding
from fma_tools.decoding import Benchmark, ContextRow, Settings

SETTINGS = Settings(
    contexts=(20, 60), batch=2, heads=3, head_dim=8, cell_size=4, rank=2, kind="nested", device="cpu", dtype="float32",
    rounds=3, kv_tokens=2, chunk=7, seed=0,
)  # fmt: skip


def test_both_methods_are_right():
    errors = Benchmark(SETTINGS).errors()
    assert list(errors) == ["FMA", "KV cache"]
    assert max(errors.values()) < decoding.TOLERANCE["float32"]


def test_a_round_is_a_cell(monkeypatch):
    """Every token of a cell is timed for FMA, some for the cache; medians of means, and of the slowest."""
    times = iter(range(1000))

    def milliseconds(run, device):
        run()
        return float(next(times))

    monkeypatch.setattr(decoding, "milliseconds", milliseconds)
    first, second = Benchmark(SETTINGS).rows()
    # Rounds of 4 + 2 tokens: 0 to 3 and 4, 5; 6 to 9 and 10, 11; 12 to 15 and 16, 17.
    assert (first.fma_ms, first.fma_slowest_ms, first.kv_ms) == (7.5, 9, 10.5)
    assert second.fma_ms == 18 + 7.5
    for row, context in ((first, 20), (second, 60)):
        assert row.context == context
        assert row.kv_bytes == 2 * 2 * 3 * 8 * 4 * context, "keys and values, two sequences, three heads of 8 numbers"
    assert first.fma_bytes <= second.fma_bytes < second.kv_bytes


@pytest.mark.parametrize("kind", ["direct", "mean"])
def test_states_know_enough_levels(kind):
    settings = replace(SETTINGS, kind=kind, contexts=(400,))
    (row,) = Benchmark(settings).rows()
    assert row.context == 400


def test_a_line_of_the_table():
    row = ContextRow(context=1024, fma_ms=2.0, fma_slowest_ms=3.0, fma_bytes=2**11, kv_ms=5.0, kv_bytes=2**20)
    assert str(row).split() == ["1024", "2.000", "3.000", "2.0", "5.000", "1024", "2.5x", "512x"]
    assert len(decoding.HEADER.splitlines()[1]) == len(str(row))
