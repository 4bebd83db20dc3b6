"""The tables of docs/results.md and docs/far_field*.md are those that the measurements wrote."""

import json
import statistics
from pathlib import Path

import pytest

from fma_tools import traffic
from fma_tools.language_models import sequences
from fma_tools.language_models.comparison import distance_table, table

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "benchmarks/results").glob("lm-*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_tables_of_language_models(path):
    found = json.loads(path.read_text())
    masked = "masked" in path.stem
    expected = table(found["rows"], masked=masked)
    text = "".join((ROOT / "docs" / name).read_text() for name in ("results.md", "far_field.md"))
    assert expected in text
    assert masked or "curve" not in found["rows"][0] or distance_table(found["rows"]) in text
    assert f"benchmarks/results/{path.name}" in text
    assert str(ROOT) not in path.read_text(), "a path of the machine"


@pytest.mark.parametrize(
    "name",
    [
        *("recall", "recall-others", "recall-128", "recall-128-linear", "recall-128-seed-1", "recall-128-cells"),
        *("listops-40", "listops-40-seeds", "listops-40-five-seeds", "listops-40-ideas", "listops-40-means"),
        *("listops", "listops-others", "listops-500", "listops-500-linear", "listops-500-reformer", "listops-2000"),
        *("listops-mixed", "listops-mixed-seeds", "listops-mixed-linear", "listops-mixed-means", "listops-mixed-ideas"),
    ],
)
def test_tables_of_sequences(name):
    found = json.loads((ROOT / f"benchmarks/results/{name}-cpu.json").read_text())
    text = (ROOT / "docs/far_field_sequences.md").read_text()
    assert sequences.table(found["rows"]) in text and f"benchmarks/results/{name}-cpu.json" in text


def test_table_of_what_the_far_field_adds():
    names = ("lm-far-field-gain-cpu", "lm-far-field-cells-gain-cpu")
    found = [json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())["rows"] for name in names]
    bits = {row["name"]: row["bits_by_seed"] for rows in found for row in rows}
    text = (ROOT / "docs/far_field.md").read_text()
    for cell, rank in ((4, 1), (8, 2), (16, 4), (32, 8)):
        near, far = bits[f"near:cell={cell}"], bits[f"fma:cell={cell},rank={rank}"]
        added = [x - y for x, y in zip(near, far, strict=True)]
        shown = " | ".join(f"{x:.3f}" for x in (*added, statistics.fmean(added)))
        assert f"| {cell}, {rank} | {shown} |" in text


def test_table_of_ideas():
    found = json.loads((ROOT / "benchmarks/results/ideas-masked-cpu.json").read_text())
    text = (ROOT / "docs/far_field.md").read_text()
    near = found["rows"][0]["bits_by_seed"]
    for row in found["rows"]:
        bits = row["bits_by_seed"]
        perplexities, mean = [2**x for x in bits.values()], 2 ** statistics.fmean(bits.values())
        shown = ", ".join(f"{x:.1f}" for x in perplexities)
        above = ", ".join(f"{x - near[seed]:+.2f}" for seed, x in bits.items())
        assert f"| {row['text']} | {shown} | {mean:.1f} | {above} |" in text
    assert (ROOT / found["patch"]).is_file()


def test_table_of_ideas_for_listops():
    found = json.loads((ROOT / "benchmarks/results/ideas-listops-cpu.json").read_text())
    text = (ROOT / "docs/far_field_sequences.md").read_text()
    for row in found["rows"]:
        shown = ", ".join(f"{100 * x:.1f}" for x in row["accuracy_by_seed"].values())
        assert list(row["accuracy_by_seed"]) == [str(seed) for seed in range(len(row["accuracy_by_seed"]))]
        assert f"| {row['text']} | {shown} |" in text
    assert (ROOT / found["patch"]).is_file()


def test_there_are_results():
    assert len(RESULTS) >= 5


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/results").glob("*.json")), ids=lambda path: path.stem)
def test_files_are_json_to_any_reader(path):
    """JSON has no NaN and no infinity; Python's reader takes them all the same."""

    def refuse(constant):
        pytest.fail(f"{constant} is no JSON")

    json.loads(path.read_text(), parse_constant=refuse)


def test_table_of_targets():
    rows = json.loads((ROOT / "benchmarks/results/kernel-targets.json").read_text())
    text = (ROOT / "docs/hardware.md").read_text()
    for target, allowed in {"sm_100": 227, "sm_120": 99, "gfx90a": 64, "gfx942": 64}.items():
        mine = [row for row in rows if row["target"] == target]
        most, spilling = max(row["shared"] for row in mine), [row for row in mine if row["spills"]]
        line = f"| {target} | {len(mine)} | {most / 1024:.1f} | {allowed} | {len(spilling)} | "
        assert line + f"{max(row['spills'] for row in mine)} " in text and most <= allowed * 1024


def test_table_of_traffic():
    rows = json.loads((ROOT / "benchmarks/results/plan-parallel.json").read_text())["rows"]
    text = (ROOT / "docs/parallel.md").read_text()
    shown = 0
    for line in map(str.strip, traffic.report([traffic.Row(**row) for row in rows]).splitlines()[2:]):
        beginning = " | ".join(line.split(" | ")[:7])
        shown += f"{beginning} |" in text
    assert shown == sum(line[:3].strip("| ").isdigit() for line in text.splitlines()) == 5
