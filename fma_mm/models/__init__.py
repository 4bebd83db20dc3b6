from .attention import FMA2DAttention
from .fma2d import FMA2D

__all__ = ["FMA2D", "FMA2DAttention"]
