"""Accuracies on tasks that need the far field: a training of some steps, and the table."""

import json
from pathlib import Path

import pytest
import torch
from helpers.tool_loader import load_tool

from fma_tools.language_models import sequences
from fma_tools.prepare import listops, recall

CONFIGS = Path(__file__).parents[4] / "configs/lm"
ROWS = [
    dict(name="full", accuracy=[0.5, 0.75], by_range=[1.0, 0.5, None], count=[1, 2, 0]),
    dict(name="near", accuracy=[0.25], by_range=[1.0, 0.0, None], count=[1, 2, 0]),
]


def test_table():
    lines = sequences.table(ROWS).splitlines()
    assert lines[0] == "| attention | accuracy, % | 1-16 | 17-32 | > 32 |"
    assert lines[2] == "| full | 62.5 (50.0-75.0) | 100.0 | 50.0 | - |"
    one_range = dict(by_range=[None, None, 0.25], count=[0, 0, 3])
    whole = sequences.table([ROWS[1] | one_range]).splitlines()
    assert whole[0] == "| attention | accuracy, % |" and whole[2] == "| near | 25.0 |"


def test_accuracy_of_ranges():
    found = sequences.Accuracy([1, 3, 0], [2, 4, 0])
    assert found.total == pytest.approx(4 / 6) and found.by_range == [0.5, 0.75, None]


def test_lengths_leave_out_padding_and_special_tokens():
    tokens = torch.tensor([[0, 4, 5, 6, 7, 2], [0, 9, 4, 2, 1, 1]])
    assert sequences.lengths(tokens, special=4).tolist() == [4, 2]


@pytest.mark.parametrize("task", ["listops", "recall"])
def test_from_data_to_the_table(task, tmp_path):
    """Through the recipe: trained, tested, and not repeated."""
    sizes = dict(train=64, valid=8, test=40)
    if task == "listops":
        listops.prepare(tmp_path / "data", sizes, 10, 30, seed=0)
    else:
        recall.prepare(tmp_path / "data", sizes, length=32, pairs=2, words=5, seed=0)
    tool = load_tool("compare_sequences")
    words = [str(CONFIGS / f"{task}.yaml"), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    words += ["--attention", "fma:cell=4,rank=2", "--seeds", "1"]
    words += ["--set", "optimization.max_update=3", "lr_scheduler.warmup_updates=1"]
    for _ in range(2):
        tool.main(words)
    (row,) = json.loads((tmp_path / "out/comparison.json").read_text())["rows"]
    assert row["name"] == "fma:cell=4,rank=2" and 0 <= row["accuracy"][0] <= 1
    assert sum(row["count"]) == (40 if task == "listops" else 80)
    if task == "listops":
        lists = (tmp_path / "data/text/input0/test").read_text().splitlines()
        sizes = [len(words.split()) for words in lists]
        assert row["count"] == [sum(size <= 16 for size in sizes), sum(size > 16 for size in sizes), 0]
