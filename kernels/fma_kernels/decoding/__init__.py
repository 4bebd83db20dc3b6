"""Decoding: causal Fast Multipole Attention token by token, in memory that grows with the logarithm of the context."""

from .state import DecodingState

__all__ = ["DecodingState"]
