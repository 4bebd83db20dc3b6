"""mmengine components built on Fast Multipole Attention.

Importing this package registers everything in mmengine's root registries, so that the plain names (``type="FMA2D"``)
are found under any ``default_scope``: mmpretrain, mmseg, mmdet or a project's own.
"""

import warnings

try:
    with warnings.catch_warnings():
        # Without its compiled operators mmcv warns about one that nothing here uses.
        warnings.filterwarnings("ignore", message="Fail to import ``MultiScaleDeformableAttention``")
        import mmcv.cnn.bricks.transformer  # noqa: F401
        import mmengine  # noqa: F401
except ImportError as error:
    raise ImportError('fma_mm needs mmengine and mmcv; install them with: pip install "fma-mm[mm]"') from error

from fma_kernels.version import __version__

from .datasets import HandwrittenDigits
from .evaluation import ClassificationReport
from .hooks import AtomicCheckpointHook, CPUThreadsHook, ExactResumeHook, RunSummaryHook
from .models import FMA2D, FMA2DAttention

__all__ = [
    "FMA2D",
    "AtomicCheckpointHook",
    "CPUThreadsHook",
    "ClassificationReport",
    "ExactResumeHook",
    "FMA2DAttention",
    "HandwrittenDigits",
    "RunSummaryHook",
    "__version__",
]
