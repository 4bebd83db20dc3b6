"""The modules of the benchmark, and its cases without a command line."""

import argparse
import sys
from collections.abc import Callable

import pytest
from helpers.tool_loader import TOOLS

sys.path.insert(0, str(TOOLS / "attention_benchmark"))  # as tools/benchmark_attention.py does

from cases import Case

from fma_kernels import Hierarchy


@pytest.fixture(scope="session")
def make_case() -> Callable:
    """Make the inputs of one size: make_case(hierarchy, dtype="float32", batch=1)."""

    def make(hierarchy: Hierarchy, dtype: str = "float32", batch: int = 1) -> Case:
        args = dict(batch=batch, heads=2, head_dim=16, dtype=dtype, device="cpu", seed=0, backend="auto")
        return Case(hierarchy, argparse.Namespace(**args))

    return make
