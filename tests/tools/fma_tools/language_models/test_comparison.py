"""Trainings of a comparison, its table and its picture."""

import json
import sys

import pytest

from fma_tools.command import CommandError
from fma_tools.language_models import comparison

ROWS = [
    dict(name=name, parameters=1000, bits=bits, bits_by_quarter=[bits] * 3 + [bits - 1], step_ms=ms, step_mib=10.0)
    for name, bits, ms in [("full", 2.0, 50.0), ("fma:rank=2", 3.0, 25.0)]
]


def test_table():
    lines = comparison.table(ROWS, masked=False).splitlines()
    assert "bits per character" in lines[0]
    assert lines[2] == "| full | 1,000 | 2.000 | 1.000 | 50 | 1.00 | 10 |"
    assert lines[3] == "| fma:rank=2 | 1,000 | 3.000 | 2.000 | 25 | 0.50 | 10 |"
    masked = comparison.table(ROWS, masked=True).splitlines()
    assert "perplexity" in masked[0] and "| 4.0 | 2.0 |" in masked[2]


def test_plot(tmp_path):
    comparison.plot(ROWS, tmp_path / "plot.png", "title")
    assert (tmp_path / "plot.png").stat().st_size > 5000


def test_a_training_is_not_repeated_nor_mixed_with_another(tmp_path):
    count = "import sys; from pathlib import Path; p = Path(sys.argv[1]); p.write_text(p.read_text() + 'x')"
    counter = tmp_path / "count"
    counter.touch()
    command = [sys.executable, "-c", count, str(counter)]
    for _ in range(2):
        comparison.train(command, tmp_path / "run", threads=1)
    assert counter.read_text() == "x"
    with pytest.raises(CommandError, match="another command"):
        comparison.train([*command, "more"], tmp_path / "run", threads=1)
    with pytest.raises(CommandError, match="ended with status 3"):
        comparison.train([sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "failing", threads=1)
    assert not (tmp_path / "failing/command.json").exists(), "it is tried again"
    assert json.loads((tmp_path / "run/command.json").read_text()) == command
