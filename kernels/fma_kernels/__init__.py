"""Fast Multipole Attention: operators and modules that need PyTorch alone (arXiv 2310.11960)."""

from . import flops as _flops  # noqa: F401  for PyTorch's FLOP counter
from .caches import clear_caches
from .decoding import DecodingState, KeyValueCache
from .functional import fma, fma_attention, fma_linear_attention
from .hierarchy import Hierarchy
from .modules import ATTENTIONS, CoreAttention, FMAttention
from .summaries import SummaryBasis, aggregate
from .version import __version__

__all__ = [
    "ATTENTIONS",
    "CoreAttention",
    "DecodingState",
    "FMAttention",
    "Hierarchy",
    "KeyValueCache",
    "SummaryBasis",
    "__version__",
    "aggregate",
    "clear_caches",
    "fma",
    "fma_attention",
    "fma_linear_attention",
]
