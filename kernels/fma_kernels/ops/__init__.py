"""PyTorch operators of the library: schema, shapes for tracing, gradients. The work itself is in ``backends``.

As ``torch.library`` operators they are single nodes for ``torch.compile`` and ``torch.export``, whatever the number of
chunks or kernels that a backend works in.
"""

from .attention import attend
from .fma_operator import fma
from .pooling import contract, pool, summary_counts

__all__ = ["attend", "contract", "fma", "pool", "summary_counts"]
