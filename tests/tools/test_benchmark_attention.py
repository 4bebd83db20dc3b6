"""The benchmark measures what it says, and refuses to time what is wrong."""

import json
from types import SimpleNamespace

import pytest
import torch
from helpers.tool_loader import load_tool

from fma_tools.attention import cases


@pytest.fixture(scope="module")
def benchmark():
    return load_tool("benchmark_attention")


@pytest.fixture
def without_picture(benchmark, monkeypatch):
    """The picture takes longer than a small measurement."""
    monkeypatch.setattr(benchmark, "plot", lambda *_: None)


SMALL = ["--heads", "1", "--head-dim", "8", "--cell-size", "8", "--rank", "2", "--cell-size-2d", "4", "--rounds", "2"]


def rows_of(folder):
    return json.loads((folder / "attention.json").read_text())["rows"]


@pytest.mark.parametrize("causal", [[], ["--causal"]])
def test_table_json_and_plot(benchmark, tmp_path, capsys, causal):
    status = benchmark.main([*SMALL, *causal, "--sizes", "64", "128", "--grids", "16x20", "--out", str(tmp_path)])
    assert status == 0
    printed = capsys.readouterr().out
    rows = rows_of(tmp_path)
    assert [(row["method"], row["grid"]) for row in rows] == [
        (method, grid)
        for grid in ([64], [128], [16, 20])
        for method in ("SDPA", "FMA", "FMA-linear", "FMA, summaries given")
    ]
    for row in rows:
        assert row["method"] in printed
        assert min(row["forward_ms"], row["forward_backward_ms"]) > 0
        # The output of the forward pass, and three gradients more after the backward pass, in MiB.
        output = row["tokens"] * 8 * 4 / 2**20
        assert row["forward_mib"] >= 0.99 * output
        assert row["forward_backward_mib"] >= 0.99 * 4 * output
        gradients = row["forward_backward_mib"] - row["forward_backward_extra_mib"] - output
        assert gradients >= 0.99 * 3 * output
        # Those of the inputs, and the inputs themselves: query, key, value, and the gradient of the output.
        assert row["held_mib"] == pytest.approx(2 * gradients + 2 * output)
    assert "64 -> 128" in printed
    assert (tmp_path / "attention.png").stat().st_size > 5000


def wrong_output(right, *args, **options):
    return right(*args, **options) + 1e-3


def wrong_gradient(right, *args, **options):
    out = right(*args, **options)
    return out + 1e-3 * (out - out.detach())


def without_bias(right, *args, **options):
    return right(*args, **options, group_bias=False)


@pytest.mark.usefixtures("without_picture")
@pytest.mark.parametrize("grid", [["--sizes", "200", "--grids"], ["--sizes", "--grids", "14x20"]], ids=str)
@pytest.mark.parametrize(
    ("mistake", "what"), [(wrong_output, "output"), (wrong_gradient, "gradient of"), (without_bias, "output")]
)
def test_a_wrong_result_is_not_timed(benchmark, monkeypatch, tmp_path, capsys, mistake, what, grid):
    for name, wrong, right in (
        ("fma", {"FMA", "FMA-linear"}, {"SDPA", "FMA, summaries given"}),
        ("fma_attention", {"FMA, summaries given"}, {"SDPA", "FMA", "FMA-linear"}),
    ):
        with monkeypatch.context() as patch:
            right_one = getattr(cases, name)
            patch.setattr(cases, name, lambda *args, f=right_one, **options: mistake(f, *args, **options))
            assert benchmark.main([*SMALL, *grid, "--out", str(tmp_path)]) == 1
        printed = capsys.readouterr()
        rows = {row["method"]: row for row in rows_of(tmp_path)}
        assert {method for method in rows if "forward_ms" in rows[method]} == right
        for method in wrong:
            assert rows[method]["reason"].startswith(f"wrong: {what}")
            assert rows[method]["reason"] in printed.out
            assert method in printed.err


@pytest.mark.usefixtures("without_picture")
def test_methods_may_refuse_but_those_of_this_project_may_not(benchmark, monkeypatch, tmp_path, capsys):
    arguments = [*SMALL, "--sizes", "64", "--grids", "--out", str(tmp_path)]
    assert benchmark.main([*arguments, "--methods", "cudnn", "flex", "near", "fma"]) == 0
    cudnn, flex, near, fma = rows_of(tmp_path)
    assert cudnn["reason"].startswith("refused: No viable backend")
    assert flex["reason"] == near["reason"] and "does not support backward on CPU" in flex["reason"]
    assert fma["forward_ms"] > 0
    assert "vs SDPA" in capsys.readouterr().out

    def broken(*args, **options):
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr(cases, "fma", broken)
    assert benchmark.main([*arguments, "--methods", "fma", "sdpa"]) == 1
    fma, sdpa = rows_of(tmp_path)
    assert fma == dict(method="FMA", grid=[64], tokens=64, reason="failed: RuntimeError: no such kernel", failed=True)
    assert sdpa["forward_ms"] > 0
    assert "Traceback" in capsys.readouterr().err

    def full(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(cases, "fma", full)
    assert benchmark.main([*arguments, "--methods", "fma"]) == 0
    assert rows_of(tmp_path)[0]["reason"] == "skipped: out of memory"


@pytest.mark.usefixtures("without_picture")
def test_the_time_limit_keeps_what_there_is(benchmark, tmp_path, capsys):
    arguments = [*SMALL, "--sizes", "64", "128", "--methods", "sdpa", "--out", str(tmp_path)]
    begun = iter([0, 1, 50])
    clock = SimpleNamespace(perf_counter=lambda: next(begun))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "time", clock)
        assert benchmark.main([*arguments, "--time-limit", "10"]) == 0
    assert "not begun after 10 s: 128 and what follows" in capsys.readouterr().out
    assert [row["grid"] for row in rows_of(tmp_path)] == [[64]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grids", "64"], "expected HEIGHTxWIDTH"),
        (["--sizes", "--grids"], "nothing to measure"),
        (["--dtype", "int8"], "invalid choice"),
        (["--methods", "linformer"], "invalid choice"),
    ],
)
def test_bad_arguments_are_refused(benchmark, capsys, arguments, message):
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert message in capsys.readouterr().err
