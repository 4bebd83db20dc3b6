"""Export of models of mmpretrain and mmseg, and tests of the files."""

from .deployed_model import INPUT_PROPERTY, PARTS, DeployedModel
from .onnx_network import OnnxNetwork, run_by_onnx

__all__ = ["INPUT_PROPERTY", "PARTS", "DeployedModel", "OnnxNetwork", "run_by_onnx"]
