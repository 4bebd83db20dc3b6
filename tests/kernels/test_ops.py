"""The PyTorch operators keep the contracts that compiling, exporting and differentiating rest on."""

import pytest
import torch

from fma_kernels import Hierarchy, SummaryBasis, aggregate, fma_attention, ops


@pytest.mark.parametrize("masked", [False, True])
def test_operators_keep_their_contract(masked):
    """Schema, shapes under tracing and gradients, by PyTorch's own checks."""
    hierarchy = Hierarchy((14, 9), 2)
    h = hierarchy.pack()
    x = [torch.randn(2, 2, hierarchy.num_tokens, 4, requires_grad=True) for _ in range(3)]
    far = [torch.randn(2, 2, hierarchy.num_summaries, 4, requires_grad=True) for _ in range(3)]
    mask = torch.rand(2, hierarchy.num_tokens) < 0.3 if masked else None
    for summaries in (far, [None, *far[1:]], [None] * 3):
        torch.library.opcheck(ops.attention._attend, (*x, *summaries, mask, None, *h, [], 0.5, True, 0.0, "torch"))
    torch.library.opcheck(ops.pooling._summary_counts, (mask, *h, torch.device("cpu")))
    grid, weight = torch.randn(2, 2, 5, 8, 3, requires_grad=True), torch.randn(2, 2, 4, 3, requires_grad=True)
    torch.library.opcheck(ops.pooling._contract, (grid, weight, 1))


def test_forward_mode_differentiation_raises():
    """Better no derivative than a wrong one."""
    hierarchy = Hierarchy((40,), 4)
    basis = SummaryBasis(1, 4, 4, kind="mean")

    def attention(x):
        return fma_attention(x, x, x, aggregate(x, basis, hierarchy), aggregate(x, basis, hierarchy), hierarchy)

    x = torch.randn(1, 1, 40, 4)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(attention, (x,), (x,))
