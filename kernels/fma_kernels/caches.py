"""Caches of the library, and how to empty them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar, cast

F = TypeVar("F", bound=Callable)

_caches: list[Callable[[], None]] = []


def cached(function: F) -> F:
    """Keep the latest 64 results of a function of hashable arguments; :func:`clear_caches` forgets them.

    Args:
        function: what makes a result that nobody changes.
    """
    wrapped = lru_cache(maxsize=64)(function)
    _caches.append(wrapped.cache_clear)
    return cast(F, wrapped)


def clear_caches() -> None:
    """Free the tables that the library keeps per geometry and device: index tables, counts, biases.

    The next call on a geometry makes its tables anew. Results do not change. A CUDA graph reads the tables that it
    was captured with: keep the caches as long as the graph.
    """
    for clear in _caches:
        clear()
