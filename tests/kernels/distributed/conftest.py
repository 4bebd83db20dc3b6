"""Ranks that the tests of this folder share."""

from collections.abc import Iterator

import pytest
from helpers.ranks import Ranks


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Four processes with gloo between them."""
    started = Ranks(4, tmp_path_factory.mktemp("ranks"))
    yield started
    started.stop()
