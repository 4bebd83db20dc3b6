"""The comparison of layers measures what it says, refuses to time what is wrong, and tells when a goal is missed."""

import json
import re
import sys
from dataclasses import replace

import pytest
import torch
from helpers.tool_loader import load_tool
from torch import nn

from fma_kernels import CoreAttention
from fma_tools import layers

PEERS = {
    "h-transformer-1d": "h_transformer_1d",
    "local-attention": "local_attention",
    "nystrom-attention": "nystrom_attention",
    "linear-attention-transformer": "linear_attention_transformer",
}
OWN = ["FMA", "FMA-linear", "SDPA"]
SMALL = ["--tokens", "256", "--dim", "16", "--heads", "2", "--cell-size", "8", "--rank", "2", "--rounds", "1"]


@pytest.fixture(scope="module")
def benchmark():
    return load_tool("benchmark_layers")


def result_of(folder):
    return json.loads((folder / "layers.json").read_text())


def rows_of(folder):
    return result_of(folder)["rows"]


def set_limit(monkeypatch, name, limit):
    monkeypatch.setitem(layers.KINDS, name, replace(layers.KINDS[name], limit=limit))


def test_tables_and_json(benchmark, tmp_path, capsys):
    for module in PEERS.values():
        pytest.importorskip(module)
    assert benchmark.main([*SMALL, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    rows = rows_of(tmp_path)
    assert [(row["direction"], row["layer"]) for row in rows] == [
        *(("bidirectional", layer) for layer in [*OWN, *PEERS]),
        *(("causal", layer) for layer in [*OWN, *PEERS] if layer != "nystrom-attention"),
    ]
    assert set(result_of(tmp_path)["libraries"]) == set(PEERS)
    for row in rows:
        assert row["parameters"] >= 4 * 16 * 16  # four projections
        tokens = 256 * 16 * 4 / 2**20  # of the output, or of the gradient of the input, in MiB
        assert row["forward_mib"] >= 0.99 * tokens
        assert row["forward_backward_mib"] >= 0.99 * (2 * tokens + 4 * row["parameters"] / 2**20)
        fma = rows[0] if row["direction"] == "bidirectional" else rows[len(OWN) + len(PEERS)]
        for label in ("forward", "forward_backward"):
            assert row[f"{label}_ms"] > 0
            assert row[f"{label}_ratio"] == pytest.approx(row[f"{label}_ms"] / fma[f"{label}_ms"])
        assert f"| {row['layer']} | {row['forward_ms']:.0f} | {row['forward_ratio']:.2f} |" in printed
    assert rows[0]["setting"] == "cell 8, rank 2, nested summaries"


def test_a_missed_goal_fails_the_check_alone(benchmark, monkeypatch, tmp_path, capsys):
    arguments = [*SMALL, "--layers", "fma", "sdpa", "--out", str(tmp_path)]
    set_limit(monkeypatch, "sdpa", 1e6)
    assert benchmark.main([*arguments, "--check"]) == 0
    assert "FMA takes at most 1e+06 times as long: met" in capsys.readouterr().out
    set_limit(monkeypatch, "sdpa", 1e-6)
    assert benchmark.main(arguments) == 0
    assert benchmark.main([*arguments, "--check"]) == 1
    printed = capsys.readouterr()
    assert "FMA takes at most 1e-06 times as long: missed" in printed.out
    assert printed.err == "missed: SDPA, bidirectional; SDPA, causal\n"
    assert [row["met"] for row in rows_of(tmp_path)] == [True, False, True, False]


@pytest.mark.parametrize("name", list(PEERS))
def test_a_missing_library_is_named(benchmark, monkeypatch, capsys, tmp_path, name):
    for module in [*sys.modules]:
        if module.split(".")[0] == PEERS[name]:
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, PEERS[name], None)
    arguments = [*SMALL, "--directions", "bidirectional", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as exit:
        benchmark.main([*arguments, "--layers", "fma", name])
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(rf"error: --layers {name}: its library .*{PEERS[name]}.*fma-mm\[baselines\]", line)
    assert not list(tmp_path.iterdir())
    assert benchmark.main([*arguments, "--layers", "fma"]) == 0
    assert [row["layer"] for row in rows_of(tmp_path)] == ["FMA"]


class Leaky(nn.Linear):
    """Lets every token read the last one."""

    def forward(self, x):
        return super().forward(x) + 1e-2 * x[:, -1:]


class Ahead(nn.Linear):
    """Lets every token read the next one."""

    def forward(self, x):
        return super().forward(x) + 1e-2 * x.roll(-1, 1)


class Short(nn.Linear):
    """Loses a token."""

    def forward(self, x):
        return super().forward(x[:, 1:])


class Infinite(nn.Linear):
    """Has finite outputs, and gradients that are not."""

    def forward(self, x):
        return super().forward(x) + (x - x.detach()).abs().sqrt()


@pytest.mark.parametrize(
    ("layer", "direction", "message"),
    [
        (Leaky, "causal", "outputs before token 85 depend on later tokens"),
        (Ahead, "causal", "outputs before token 85 depend on later tokens"),
        (Short, "bidirectional", r"output.shape (1, 255, 16), expected (1, 256, 16)"),
        (Infinite, "bidirectional", "output or gradients are not finite"),
    ],
)
def test_a_wrong_layer_is_not_timed(benchmark, monkeypatch, capsys, tmp_path, layer, direction, message):
    wrong = replace(layers.KINDS["sdpa"], build=lambda settings, causal: layer(settings.dim, settings.dim))
    monkeypatch.setitem(layers.KINDS, "sdpa", wrong)
    arguments = [*SMALL, "--layers", "fma", "sdpa", "--directions", direction, "--out", str(tmp_path)]
    assert benchmark.main(arguments) == 1
    assert capsys.readouterr().err == f"wrong: sdpa, {direction}: {message}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["fma", "fma-linear"])
def test_fma_is_held_to_its_definition(benchmark, monkeypatch, capsys, tmp_path, name):
    right = CoreAttention.forward

    def forward(self, query, *rest, **options):
        return right(self, query * (1 if self.backend == "reference" else 1.1), *rest, **options)

    monkeypatch.setattr(CoreAttention, "forward", forward)
    assert benchmark.main([*SMALL, "--layers", "fma", name, "--out", str(tmp_path)]) == 1
    assert f"wrong: {name}, bidirectional: " in (error := capsys.readouterr().err)
    assert "from the definition in float64, expected at most 0.0001" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "1000"], "--tokens 1000: expected a power of two, at least 256"),
        (["--tokens", "128"], "--tokens 128: expected a power of two, at least 256"),
        (["--dim", "100"], "--dim 100: expected a multiple of --heads 8"),
        (["--rank", "3"], "--rank 3: expected a divisor of --cell-size 32"),
        (["--rounds", "0"], "--rounds 0: expected at least 1"),
        (["--layers", "sdpa"], "--layers sdpa: expected fma among them"),
        (["--layers", "reformer"], "invalid choice"),
    ],
)
def test_bad_arguments_are_refused(benchmark, capsys, arguments, message):
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--device", "cuda"])
    assert "--device cuda: PyTorch sees no GPU on this machine" in capsys.readouterr().err
