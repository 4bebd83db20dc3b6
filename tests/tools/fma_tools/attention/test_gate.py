"""Right results pass in every dtype, and mistakes do not."""

import math

import pytest
import torch
import torch.nn.functional as F

from fma_kernels import Hierarchy, fma_attention
from fma_tools.attention.cases import KINDS, Method
from fma_tools.attention.gate import Gate


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    "hierarchy",
    [
        Hierarchy((300,), 16, 4),
        Hierarchy((300,), 16, 4, causal=True),
        Hierarchy((21, 34), 4, 2),
        Hierarchy((20,), 16, 4),
    ],
    ids=str,
)
def test_right_results_pass_in_every_dtype(make_case, hierarchy, dtype):
    case = make_case(hierarchy, dtype, batch=2)
    gate = Gate(case)
    for name in ("sdpa", "flash", "fma", "linear", "given"):
        assert gate.problem(KINDS[name], case.method(name)) is None


@pytest.mark.parametrize(
    "hierarchy", [Hierarchy((300,), 16, 4), Hierarchy((300,), 16, 4, causal=True), Hierarchy((21, 34), 4, 2)], ids=str
)
def test_mistakes_are_seen_in_low_precision_too(make_case, hierarchy):
    """A near token that is left out, a summary of one level, a later sequence, a NaN."""
    case = make_case(hierarchy, "bfloat16", batch=2)
    gate, right = Gate(case), case.method("given")
    token = torch.zeros_like(case.value)
    token[:, :, -1] = 1
    level = torch.cat([torch.full((n,), i / 10) for i, n in enumerate(hierarchy.level_sizes)]).bfloat16()[:, None]

    def attend(value=case.value, value_summaries=case.given["value_summaries"]):
        key_summaries = case.given["key_summaries"]
        return fma_attention(case.query, case.key, value, key_summaries, value_summaries, hierarchy)

    for wrong in (
        lambda: attend(value=case.value * (1 - token)),
        lambda: attend(value_summaries=case.given["value_summaries"] * (1 + level)),
        lambda: attend().roll(1, 0),
        lambda: attend() * torch.where(token == 1, math.nan, 1),
    ):
        method = Method(wrong, right.leaves, right.grad)
        assert gate.problem(KINDS["given"], method).startswith("wrong: ")


def test_full_attention_that_is_wrong_is_no_yardstick(make_case, monkeypatch):
    case = make_case(Hierarchy((64,), 8, 2))
    right = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args, **options: 2 * right(*args, **options))
    problem = Gate(case).problem(KINDS["sdpa"], case.method("sdpa"))
    assert problem.startswith("wrong: output has an error of 1.0e+00, 5.0e-02 allowed")
