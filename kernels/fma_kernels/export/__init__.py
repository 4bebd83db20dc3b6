"""Export: the operators of the library as standard ones, and files that stock runtimes run without it."""

from .decoding import DecodingStep
from .packages import require_onnx, require_onnxruntime
from .program import decompositions, export_program, save_onnx
from .runtime import open_onnx

__all__ = [
    "DecodingStep",
    "decompositions",
    "export_program",
    "open_onnx",
    "require_onnx",
    "require_onnxruntime",
    "save_onnx",
]
