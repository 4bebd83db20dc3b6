"""tools/plan_parallel.py: its bytes are those that go over the wire."""

import json

import pytest
import torch
from helpers import rank_work
from helpers.command_line import error_of
from helpers.tool_loader import load_tool

from fma_tools.traffic import Attention, compare, traffic


@pytest.fixture(scope="module")
def tool():
    return load_tool("plan_parallel")


@pytest.mark.parametrize("attends", ["near", "fma", "fma_linear"])
@pytest.mark.parametrize(
    ("grid", "cell_size", "rank", "kind", "causal"),
    [((61,), 4, 2, "nested", True), ((70,), 8, 2, "direct", False), ((70,), 8, 2, "direct", True),
     ((21, 9), 2, 1, "mean", False), ((9, 5, 6), 2, 2, "nested", False)],
)  # fmt: skip
def test_bytes_are_those_on_the_wire(ranks, attends, grid, cell_size, rank, kind, causal):
    attention = Attention(cell_size, rank, causal, attends, kind, 2, 3, 5, torch.float64)
    options = dict(causal=causal, kind=kind, attends=attends, batch=2, heads=3, dim=5)
    for size in (2, 3, 4):
        counted = ranks.run(size, rank_work.counted_bytes, grid, cell_size, rank, options)
        for i, (forward, backward) in enumerate(counted):
            expected = traffic(attention, grid, i, size)
            assert forward == [expected.sent, expected.received]
            assert backward == [expected.received, expected.sent]


def test_a_row_by_hand():
    """8 cells of 4 tokens on 4 ranks; 2 heads of 3 channels in float32: 24 bytes for the key of a token."""
    row = compare(Attention(4, 1, False, "fma", "nested", 1, 2, 3, torch.float32), (32,), 4)
    assert row.halo == 2 * 8 * 24  # keys and values of a cell on each side
    assert row.sums == 2 * 6 * 24  # one sum for each cell of the three others
    assert row.fma == (row.halo + row.sums, row.halo + 2 * row.sums + row.halo)
    own = 2 * 8 * 24
    assert row.ring == (3 * own, (3 + 3 + 4) * own) and row.gathered == (3 * own, 6 * own)


def test_the_table_and_its_files(tool, tmp_path, capsys):
    tool.main(["--tokens", "4096", "--ranks", "2", "64", "128", "--causal", "--out", str(tmp_path)])
    text = capsys.readouterr().out
    assert "| 4,096 | 64 |" in text and "| 4,096 | 128 |" not in text  # there are 64 layers of cells
    rows = json.loads((tmp_path / "plan_parallel.json").read_text())["rows"]
    assert [row["ranks"] for row in rows] == [2, 64] and (tmp_path / "plan_parallel.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--ranks", "1"], "--ranks 1: expected at least 2"),
        (["--tokens", "128", "--ranks", "4"], "expected at most 2, the layers of cells"),
        (["--rank", "3"], "rank=3: expected a divisor of cell_size"),
        (["--grids", "64x64", "--causal"], "causal=True: expected False on a grid of 2 axes"),
    ],
)
def test_mistakes(tool, capsys, words, expected):
    assert expected in error_of(tool.main, capsys, *words)
