"""The tables of docs/results.md and docs/far_field.md are those that the measurements wrote."""

import json
from pathlib import Path

import pytest

from fma_tools.language_models import sequences
from fma_tools.language_models.comparison import distance_table, table

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "benchmarks/results").glob("lm-*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_tables_of_language_models(path):
    found = json.loads(path.read_text())
    expected = table(found["rows"], masked="masked" in path.stem)
    text = "".join((ROOT / "docs" / name).read_text() for name in ("results.md", "far_field.md"))
    assert expected in text
    assert "curve" not in found["rows"][0] or distance_table(found["rows"]) in text
    assert f"benchmarks/results/{path.name}" in text
    assert str(ROOT) not in path.read_text(), "a path of the machine"


@pytest.mark.parametrize("name", ["recall", "listops"])
def test_tables_of_sequences(name):
    found = json.loads((ROOT / f"benchmarks/results/{name}-cpu.json").read_text())
    text = (ROOT / "docs/far_field.md").read_text()
    assert sequences.table(found["rows"]) in text and f"benchmarks/results/{name}-cpu.json" in text


def test_there_are_results():
    assert len(RESULTS) >= 5
