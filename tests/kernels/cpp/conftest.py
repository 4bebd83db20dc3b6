"""Tests of the CPU kernels need a machine that can run them."""

import pytest

from fma_kernels.backends.cpp import library


@pytest.fixture(autouse=True, scope="session")
def compiled() -> None:
    """The library, compiled at most once for the whole suite."""
    loaded = library.load()
    if isinstance(loaded, str):
        pytest.skip(f"no CPU kernels here: {loaded}")
