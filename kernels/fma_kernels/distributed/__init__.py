"""Context parallelism: sequences, images and volumes that are split over the ranks of a process group."""

from .layout import own_tokens, shard, sum_gradients, unshard
from .style import FMAContextParallel

__all__ = ["FMAContextParallel", "own_tokens", "shard", "sum_gradients", "unshard"]
