"""The benchmark measures what it says, and refuses to time what is wrong."""

import json

import pytest
from tool_loader import load_tool


@pytest.fixture(scope="module")
def benchmark():
    return load_tool("benchmark_attention")


SMALL = ["--heads", "1", "--head-dim", "8", "--cell-size", "8", "--rank", "2", "--cell-size-2d", "4", "--rounds", "2"]


@pytest.mark.parametrize("causal", [[], ["--causal"]])
def test_table_json_and_plot(benchmark, tmp_path, capsys, causal):
    benchmark.main([*SMALL, *causal, "--sizes", "64", "128", "--grids", "16x20", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "attention.json").read_text())
    assert [(row["method"], row["grid"]) for row in result["rows"]] == [
        (method, grid)
        for grid in ([64], [128], [16, 20])
        for method in ("SDPA", "FMA", "FMA-linear", "FMA, summaries given")
    ]
    for row in result["rows"]:
        assert row["method"] in printed
        assert min(row["forward_ms"], row["forward_backward_ms"]) > 0
        # The output of the forward pass, and three gradients more after the backward pass, in MiB.
        output = row["tokens"] * 8 * 4 / 2**20
        assert row["forward_mib"] >= 0.99 * output
        assert row["forward_backward_mib"] >= 0.99 * 4 * output
    assert "64 -> 128" in printed
    assert (tmp_path / "attention.png").stat().st_size > 5000


@pytest.mark.parametrize("name", ["fma_attention", "fma_linear_attention"])
def test_a_wrong_result_is_not_timed(benchmark, monkeypatch, tmp_path, name):
    right = getattr(benchmark, name)

    def wrong(*args, backend="auto", **options):
        return right(*args, backend=backend, **options) + (1e-3 if backend == "auto" else 0)

    monkeypatch.setattr(benchmark, name, wrong)
    with pytest.raises(AssertionError, match="wrong on"):
        benchmark.main([*SMALL, "--sizes", "64", "--grids", "--out", str(tmp_path)])
    assert not (tmp_path / "attention.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grids", "64"], "expected HEIGHTxWIDTH"),
        (["--sizes", "--grids"], "nothing to measure"),
        (["--dtype", "int8"], "invalid choice"),
    ],
)
def test_bad_arguments_are_refused(benchmark, capsys, arguments, message):
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert message in capsys.readouterr().err


def test_the_picture_of_the_method_is_drawn(tmp_path, monkeypatch):
    drawing = load_tool("draw_method")
    monkeypatch.setattr("sys.argv", ["draw_method.py", str(tmp_path / "fma.png")])
    drawing.main()
    assert (tmp_path / "fma.png").stat().st_size > 10000
