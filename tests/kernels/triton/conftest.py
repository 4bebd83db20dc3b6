"""Fixtures of the tests of the fused kernels."""

import pytest
import torch


@pytest.fixture
def poisoned():
    """Memory that a kernel does not write is NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before)
