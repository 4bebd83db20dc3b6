"""Results of a comparison, in their file, in tables and pictures."""

import pytest

from fma_mm.analysis.comparison import ConfigRow, Results, describe, failures_of, plot, smooth, table
from fma_mm.cli import CommandError

SETTINGS = dict(device="a CPU", iterations=0, batch_size=4, seed=1)


@pytest.fixture
def rows():
    fast = ConfigRow("a.py", 2_000_000, 1_500_000_000, [3, 32, 32], 100.0, [10.0, 12.0, 11.0])
    slow = ConfigRow("b.py", 500_000, 500_000_000, [3, 32, 32], 250.0, [33.0, 22.0, 44.0], metrics={"top1": 61.23456})
    return {"a": fast, "b": slow}


def test_table(rows):
    """Medians, minima, ratios to the first, and metrics that not all have."""
    header, rule, first, second = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in table(rows).splitlines()
    )
    costs = ["parameters, M", "FLOPs, G", "step memory, MiB", "ratio", "step time, ms", "minimum", "ratio"]
    assert header == ["config", *costs, "top1"]
    assert rule[0].strip("-") == "" and all(cell.strip("-") == ":" for cell in rule[1:])
    assert first == ["a", "2.00", "1.500", "100", "1.00", "11.0", "10.0", "1.00", ""]
    assert second == ["b", "0.50", "0.500", "250", "2.50", "33.0", "22.0", "3.00", "61.23"]
    assert len({len(line) for line in table(rows).splitlines()}) == 1, "columns are aligned in the source, too"


def test_conditions_in_a_line():
    assert describe(SETTINGS) == "a CPU; batch size 4, seed 1"
    assert describe({**SETTINGS, "iterations": 9}) == "a CPU; 9 iterations, batch size 4, seed 1"


def test_smooth():
    assert smooth([3.0, 1.0, 2.0]) == [3.0, 1.0, 2.0]
    values = smooth([float(i % 2) for i in range(100)])
    assert values == [0.0] + [0.5] * 99


def test_plot_with_and_without_losses(rows, tmp_path):
    from PIL import Image

    plot(rows, "title", tmp_path / "costs.png")
    rows["a"].loss, rows["a"].seconds = [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]
    plot(rows, "title", tmp_path / "losses.png")
    widths = []
    for name in ("costs", "losses"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            widths.append(picture.width)
            assert len(picture.convert("RGB").getcolors(2**24)) > 20
    assert widths[0] < widths[1], "two panels more"


def test_results_come_back(rows, tmp_path):
    folder = tmp_path / "out"
    results = Results(folder, SETTINGS, ["python", "x"], resume=False)
    results.rows = rows
    results.save()
    assert Results(folder, SETTINGS, [], resume=True).rows == rows
    assert [path.name for path in folder.iterdir()] == ["comparison.json"]
    with pytest.raises(CommandError, match=r"the comparison in .* has another seed"):
        Results(folder, {**SETTINGS, "seed": 2}, [], resume=True)
    with pytest.raises(CommandError, match="it is there and not empty; give another folder, or --resume"):
        Results(folder, SETTINGS, [], resume=False)


def test_a_failure_has_one_line_and_its_cause():
    with pytest.raises(CommandError, match=r"^config a\.py: KeyError: 'the key'$") as failed, failures_of("a.py"):
        raise KeyError("the key")
    assert isinstance(failed.value.__cause__, KeyError)
    with pytest.raises(CommandError, match=r"^said already$"), failures_of("a.py"):
        raise CommandError("said already")
