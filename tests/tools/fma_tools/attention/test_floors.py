"""The least time of an attention, by hand."""

import pytest
import torch

from fma_kernels import Hierarchy
from fma_tools.attention.floors import Ceilings, Work, measure_ceilings, pairs_and_summaries


def test_floors_by_hand():
    work = Work(tokens=10, pairs=30, summaries=6, heads=2, head_dim=4, element_bytes=2)
    assert (work.forward_flops, work.backward_flops) == (4 * 4 * 30 * 2, 10 * 4 * 30 * 2)
    # 36 rows of 4 numbers in, 10 out, with 10 log-sum-exps of 4 bytes; times 2 heads.
    assert work.forward_bytes == 2 * (36 * 4 * 2 + 10 * 4 * 2 + 10 * 4) == 816
    # Those again, the gradient of the output, and the gradients of what comes in.
    assert work.backward_bytes == 816 + 2 * (10 * 4 * 2 + 36 * 4 * 2) == 1552
    assert work.floors_ms(Ceilings(bytes_per_s=1e6, flops_per_s=1e6)) == pytest.approx((0.96, 2.4))
    assert work.floors_ms(Ceilings(bytes_per_s=1e6, flops_per_s=1e9)) == pytest.approx((0.816, 1.552))


def test_pairs_and_summaries_by_hand():
    """Eight tokens in four cells: ten pairs of cells touch, six do not."""
    count = pairs_and_summaries
    bidirectional, causal = Hierarchy((8,), 2, 1), Hierarchy((8,), 2, 1, causal=True)
    assert bidirectional.level_sizes == [4]
    assert count("full", bidirectional) == (64, 0)
    assert count("near", bidirectional) == (10 * 4, 0)
    assert count("fma", bidirectional) == (10 * 4 + 6 * 2, 2 * 4)
    assert count("fma_linear", bidirectional) == (10 * 4 + 6, 3 * 4)
    assert count("full", causal) == (36, 0)
    assert count("near", causal) == (4 * 3 + 3 * 4, 0)
    assert count("fma", causal) == (24 + 3 * 2, 2 * 4)


def test_ceilings():
    times = iter([2.0, 0.5])

    def clock(run):
        run()
        return next(times)

    ceilings = measure_ceilings(torch.device("cpu"), torch.float32, clock, copied_bytes=1000, side=10)
    assert ceilings.bytes_per_s == pytest.approx(2 * 1000 / 2e-3)
    assert ceilings.flops_per_s == pytest.approx(2 * 10**3 / 0.5e-3)
