"""The one form of a complaint: argument, value, expectation."""

import pytest
import torch

from fma_kernels import checks

TOKENS = torch.zeros(2, 3, 5, 4)


def test_a_complaint_names_argument_value_and_expectation():
    checks.require(True, "rank", 3, "a divisor of 4")
    with pytest.raises(ValueError, match=r"^rank=3: expected a divisor of 4$"):
        checks.require(False, "rank", 3, "a divisor of 4")


def test_tokens_of_a_grid():
    checks.require_tokens("x", TOKENS, (5,))
    for x, message in [
        (TOKENS[0], r"x.shape=\(3, 5, 4\): expected four dimensions"),
        (TOKENS[:, :, 1:], r"x.shape=\(2, 3, 4, 4\): expected 5 tokens in dimension 2 for grid=\(5,\)"),
        (TOKENS.long(), "x.dtype=torch.int64: expected a floating-point dtype"),
    ]:
        with pytest.raises(ValueError, match=message):
            checks.require_tokens("x", x, (5,))


def test_what_goes_with_other_tokens():
    checks.require_like("y", torch.zeros(2, 3, 7, 4), "x", TOKENS, 7)
    for y, message in [
        (torch.zeros(2, 3, 6, 4), r"y.shape=\(2, 3, 6, 4\): expected \(2, 3, 7, 4\), to go with x"),
        (torch.zeros(2, 3, 7, 4).half(), "y.dtype=torch.float16: expected torch.float32, the dtype of x"),
        (torch.zeros(2, 3, 7, 4, device="meta"), "y.device=.*meta.*: expected cpu, the device of x"),
    ]:
        with pytest.raises(ValueError, match=message):
            checks.require_like("y", y, "x", TOKENS, 7)


def test_masks():
    checks.require_mask(None, TOKENS)
    checks.require_mask(torch.zeros(2, 5, dtype=torch.bool), TOKENS)
    for mask, message in [
        (torch.zeros(2, 4, dtype=torch.bool), r"key_padding_mask.shape=\(2, 4\): expected \(2, 5\)"),
        (torch.zeros(2, 5), "key_padding_mask.dtype=torch.float32: expected torch.bool, True = ignore"),
        (torch.zeros(2, 5, dtype=torch.bool, device="meta"), "key_padding_mask.device=.*meta"),
    ]:
        with pytest.raises(ValueError, match=message):
            checks.require_mask(mask, TOKENS)


def test_global_tokens():
    checks.require_num_global_tokens(2, causal=False)
    checks.require_num_global_tokens(0, causal=True)
    cases = [(-1, False, "an integer >= 0"), (1.0, False, "an integer"), (1, True, "0 with causal")]
    for count, causal, message in cases:
        with pytest.raises(ValueError, match=f"num_global_tokens={count}: expected {message}"):
            checks.require_num_global_tokens(count, causal)
