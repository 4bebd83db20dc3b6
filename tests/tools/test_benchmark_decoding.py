"""The benchmark of decoding measures what it says, and refuses to time what is wrong."""

import json
import re

import pytest
import torch
from helpers.tool_loader import load_tool

from fma_kernels import DecodingState, SummaryBasis
from fma_tools import decoding


@pytest.fixture(scope="module")
def benchmark():
    return load_tool("benchmark_decoding")


SMALL = ["--heads", "3", "--head-dim", "8", "--cell-size", "8", "--rank", "2", "--batch", "2", "--rounds", "2"]


def rows_of(folder):
    return json.loads((folder / "decoding.json").read_text())["rows"]


@pytest.mark.parametrize("kind", ["nested", "direct", "mean"])
def test_table_json_and_plot(benchmark, tmp_path, capsys, kind):
    arguments = [*SMALL, "--kind", kind, "--contexts", "400", "100", "--chunk", "70", "--out", str(tmp_path)]
    assert benchmark.main(arguments) == 0
    printed = capsys.readouterr().out
    rows = rows_of(tmp_path)
    assert [row["context"] for row in rows] == [100, 400]
    for row in rows:
        assert row["fma_slowest_ms"] >= row["fma_ms"] > 0 and row["kv_ms"] > 0
        assert row["kv_bytes"] == 2 * 4 * 2 * 3 * 8 * row["context"]
        state = DecodingState(*[SummaryBasis(3, 8, 8, 2, kind=kind, num_levels=5)] * 2)
        state.take(*torch.zeros(3, 2, 3, row["context"], 8))
        assert row["fma_bytes"] == state.nbytes
        ratio = row["kv_bytes"] / row["fma_bytes"]
        assert f"{row['context']:>9} {row['fma_ms']:>9.3f}" in printed and f"{ratio:.0f}x" in printed
    growth = rows[1]["fma_bytes"] / rows[0]["fma_bytes"]
    assert "100 -> 400 tokens" in printed and f"its memory x {growth:.2f}" in printed
    assert (tmp_path / "decoding.png").stat().st_size > 5000


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision(benchmark, tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(benchmark, "plot", lambda *_: None)
    assert benchmark.main([*SMALL, "--dtype", dtype, "--contexts", "64", "--out", str(tmp_path)]) == 0
    assert rows_of(tmp_path)[0]["kv_bytes"] == 2 * 2 * 2 * 3 * 8 * 64


@pytest.mark.parametrize(("name", "method"), [("DecodingState", "FMA"), ("KeyValueCache", "KV cache")])
@pytest.mark.parametrize("mistake", [lambda out: out + 1e-3, lambda out: out * torch.nan], ids=["off", "nan"])
def test_a_wrong_method_is_not_timed(benchmark, monkeypatch, tmp_path, capsys, name, method, mistake):
    cls = getattr(decoding, name)
    right = cls.take
    monkeypatch.setattr(cls, "take", lambda self, *tokens: mistake(right(self, *tokens)))
    assert benchmark.main([*SMALL, "--contexts", "64", "--out", str(tmp_path)]) == 1
    assert f"wrong: {method}; expected at most 0.0001" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--contexts", "0"], r"--contexts \[0\]: expected to begin at 1"),
        (["--contexts", "100", "600"], r"--contexts \[100, 600\]: .* 576 tokens or more apart"),
        (["--rank", "3"], "--rank 3: expected a divisor of --cell-size 64"),
        (["--rounds", "0"], "--rounds 0: expected at least 1"),
        (["--kv-tokens", "0"], "--kv-tokens 0: expected at least 1"),
        (["--dtype", "int8"], "invalid choice"),
    ],
)
def test_bad_arguments_are_refused(benchmark, capsys, arguments, message):
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert re.search(message, capsys.readouterr().err)
