"""tools/plan.py: figures by hand, a front that no choice beats, and clear words about mistakes."""

import json
from itertools import product

import pytest
import torch
from helpers.command_line import error_of
from helpers.tool_loader import load_tool

from fma_kernels import Hierarchy
from fma_kernels.backends.reference import _membership
from fma_kernels.cells import token_counts
from fma_kernels.measure import peak_mib
from fma_tools.planning import Choice, Problem, plan


@pytest.fixture(scope="module")
def tool():
    return load_tool("plan")


def problem(grid=(96,), causal=False, attention="fma", heads=2):
    return Problem(grid, causal, attention, 1, heads, 8, torch.float32)


@pytest.mark.parametrize("case", [dict(), dict(causal=True), dict(grid=(12, 20))], ids=["sequence", "causal", "image"])
def test_what_a_query_reads(case):
    """Against the lists of the definition, query by query."""
    wanted = problem(**case)
    for choice in plan(wanted, [2, 4, 6], [1, 2], None):
        hierarchy = Hierarchy(wanted.grid, choice.cell_size, choice.rank, causal=wanted.causal)
        near, far, _ = _membership(hierarchy, torch.device("cpu"))
        n = hierarchy.num_tokens
        read = near.tril() if wanted.causal else near
        assert choice.near == pytest.approx(read.sum().item() / n)
        exists = token_counts(hierarchy, torch.device("cpu"))[0] > 0
        assert choice.far == pytest.approx((far & exists).sum().item() / n)
        pairs = n * (n + 1) / 2 if wanted.causal else n * n
        assert choice.exact == pytest.approx(read.sum().item() / pairs)


def test_only_ranks_that_divide_the_cell():
    assert [(c.cell_size, c.rank) for c in plan(problem(), [4, 6], [1, 3, 4], None)] == [(4, 1), (4, 4), (6, 1), (6, 3)]


def test_memory_is_that_of_both_passes():
    wanted = Problem((2048,), False, "fma", 1, 8, 32, torch.float32)
    (choice,) = plan(wanted, [32], [2], None)
    module = wanted.module(32, 2)

    def step():
        inputs = wanted.inputs()
        out = module(*inputs, wanted.grid)
        out.backward(torch.ones_like(out))

    step()
    module.zero_grad()
    weights = sum(p.nbytes for p in module.parameters())
    assert choice.memory == pytest.approx(peak_mib(step, torch.device("cpu")) * 2**20 + weights, rel=0.05)


def test_no_choice_beats_those_of_the_front():
    choices = plan(problem((512,)), [4, 8, 16, 32], [1, 2, 4], None)
    front = [choice for choice in choices if choice.best]
    assert front
    for a, b in product(choices, front):
        assert not a.beats(b)
    for choice in choices:
        assert choice.best or any(other.beats(choice) for other in choices)


def test_beating_by_hand():
    base = dict(cell_size=4, rank=1, near=10, far=5, exact=0.1, flops=100, memory=100)
    one = Choice(**base)
    assert not one.beats(Choice(**base))
    assert one.beats(Choice(**base | dict(flops=101)))
    assert one.beats(Choice(**base | dict(far=4))) and one.beats(Choice(**base | dict(exact=0.09)))
    assert not one.beats(Choice(**base | dict(far=4, flops=99)))
    assert not one.beats(Choice(**base | dict(far=4, exact=0.11)))
    assert one.beats(Choice(**base | dict(near=5, far=9))), "a token and a summary are one key each"
    assert Choice(**base | dict(flops=900), ms=1.0).beats(Choice(**base, ms=2.0)), "time counts where it was measured"


def test_the_command(tool, tmp_path, capsys):
    arguments = ["--tokens", "300", "--causal", "--heads", "1", "--head-dim", "4", "--cells", "4", "16"]
    arguments += ["--ranks", "1", "2", "--budget", "90KiB", "--measure", "--rounds", "1", "--out", str(tmp_path)]
    tool.main(arguments)
    printed = capsys.readouterr().out
    assert "300 tokens, fma, causal; batch 1, 1 heads of 4, float32" in printed
    result = json.loads((tmp_path / "plan.json").read_text())
    assert len(result["choices"]) == 4 and (tmp_path / "plan.png").stat().st_size > 1000
    for choice in result["choices"]:
        assert choice["fits"] == (choice["memory"] <= 90 * 2**10)
        assert (choice["ms"] is not None) == choice["fits"]
        assert not choice["best"] or choice["fits"]
    assert any(choice["best"] for choice in result["choices"])
    assert ("over the budget" in printed) == any(not choice["fits"] for choice in result["choices"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of the arguments --grid --tokens is required"),
        (["--tokens", "0"], "--tokens 0: expected at least 1"),
        (["--grid", "8"], "'8': expected two or three numbers"),
        (["--grid", "8x8", "--causal"], "--causal: expected --tokens"),
        (["--tokens", "8", "--budget", "8GB"], "'8GB': expected a number of bytes, or one of KiB, MiB or GiB"),
        (["--tokens", "8", "--cells", "0"], "--cells 0: expected at least 1"),
    ],
)
def test_mistakes(tool, capsys, arguments, message):
    assert message in error_of(tool.main, capsys, *arguments)
