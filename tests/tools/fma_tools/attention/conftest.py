"""Cases of the benchmark, without a command line."""

from collections.abc import Callable

import pytest

from fma_kernels import Hierarchy
from fma_tools.attention.cases import AttentionCase
from fma_tools.attention.settings import Settings


@pytest.fixture(scope="session")
def make_case() -> Callable:
    """Make the inputs of one size: make_case(hierarchy, dtype="float32", batch=1)."""

    def make(hierarchy: Hierarchy, dtype: str = "float32", batch: int = 1) -> AttentionCase:
        return AttentionCase(hierarchy, Settings(batch, heads=2, head_dim=16, dtype=dtype))

    return make
