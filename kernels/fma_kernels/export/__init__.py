"""Export: the operators of the library as standard ones, and files that stock runtimes run without it."""

from .program import decompositions, export_program, save_onnx

__all__ = ["decompositions", "export_program", "save_onnx"]
