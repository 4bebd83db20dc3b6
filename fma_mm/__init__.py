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

from .conversion import convert_attention
from .datasets import CuedScenes, DigitScenes, HandwrittenDigits
from .evaluation import ClassificationReport
from .hooks import AtomicCheckpointHook, ConvertAttentionHook, CPUThreadsHook, ExactResumeHook, RunSummaryHook
from .model_zoo import get_model, register_models
from .models import FMA2D, FMA2DAttention
from .optim import LayerDecayOptimWrapperConstructor
from .strategies import FullyShardedStrategy

__all__ = [
    "FMA2D",
    "AtomicCheckpointHook",
    "CPUThreadsHook",
    "ClassificationReport",
    "ConvertAttentionHook",
    "CuedScenes",
    "DigitScenes",
    "ExactResumeHook",
    "FMA2DAttention",
    "FullyShardedStrategy",
    "HandwrittenDigits",
    "LayerDecayOptimWrapperConstructor",
    "RunSummaryHook",
    "__version__",
    "convert_attention",
    "get_model",
    "register_models",
]
