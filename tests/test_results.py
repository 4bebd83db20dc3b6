"""The tables of docs/results.md are those that the measurements wrote."""

import json
from pathlib import Path

import pytest

from fma_tools.language_models.comparison import table

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "benchmarks/results").glob("lm-*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_tables_of_language_models(path):
    found = json.loads(path.read_text())
    expected = table(found["rows"], masked="masked" in path.stem)
    text = (ROOT / "docs/results.md").read_text()
    assert expected in text
    assert f"benchmarks/results/{path.name}" in text
    assert str(ROOT) not in path.read_text(), "a path of the machine"


def test_there_are_results():
    assert len(RESULTS) >= 5
