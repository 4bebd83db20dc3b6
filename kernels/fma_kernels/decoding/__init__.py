"""Causal attention token by token: Fast Multipole Attention in O(log n) memory, and full attention to compare with."""

from .key_value_cache import KeyValueCache
from .state import DecodingState

__all__ = ["DecodingState", "KeyValueCache"]
