"""Fast Multipole Attention: operators and modules that need PyTorch alone (arXiv 2310.11960)."""

from . import flops as _flops  # noqa: F401  for PyTorch's FLOP counter
from .decoding import DecodingState
from .functional import fma_attention, fma_linear_attention
from .hierarchy import Hierarchy
from .modules import FMAttention
from .summaries import SummaryBasis, aggregate
from .version import __version__

__all__ = [
    "DecodingState",
    "FMAttention",
    "Hierarchy",
    "SummaryBasis",
    "__version__",
    "aggregate",
    "fma_attention",
    "fma_linear_attention",
]
