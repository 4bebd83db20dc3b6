"""Models that take their logits from an ONNX file, to test the file as its checkpoint is tested."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fma_kernels.checks import require
from fma_kernels.export import open_onnx

from .deployed_model import INPUT_PROPERTY, PIXELS


class OnnxNetwork:
    """An ONNX file with one image as its input, run by onnxruntime on a CPU.

    Args:
        path: the file.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: the file cannot be read, or its input is no image.
    """

    def __init__(self, path: Path | str):
        self.session = open_onnx(path, torch.get_num_threads())
        inputs = self.session.get_inputs()
        fits = len(inputs) == 1 and len(inputs[0].shape) == 4
        require(fits, "path", str(path), "a file with one input (B, 3, H, W), as tools/export.py writes it")
        self.name, (self.batch, _, *self.size) = inputs[0].name, inputs[0].shape
        self.takes_pixels = self.session.get_modelmeta().custom_metadata_map.get(INPUT_PROPERTY) == PIXELS

    def __call__(self, image: Tensor) -> list[Tensor]:
        """The outputs for a batch of any size; a file with a fixed batch gets the images in parts.

        Args:
            image: (B, 3, H, W).

        Raises:
            ValueError: the images have another size than that of the file.
        """
        size = list(image.shape[2:])
        require(size == self.size, "image.shape", tuple(image.shape), f"images of {self.size}, the size of the file")
        image = image.cpu().numpy()
        step = self.batch if isinstance(self.batch, int) else len(image)
        missing = -len(image) % step
        padded = np.concatenate([image, image[-1:].repeat(missing, 0)]) if missing else image
        parts = [self.session.run(None, {self.name: padded[i : i + step]}) for i in range(0, len(padded), step)]
        joined = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
        return [torch.from_numpy(x[: len(image)]) for x in joined]


def run_by_onnx(model: nn.Module, path: Path | str) -> None:
    """Let a classifier or a segmentor take its logits from a file, and keep all that is before and behind them.

    Args:
        model: changed in place; its weights are not used any more.
        path: the file, of the whole model.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: the file cannot be read, or the model is neither a classifier nor a segmentor.
    """
    network = OnnxNetwork(path)
    preprocessor = model.data_preprocessor
    if network.takes_pixels:
        for name in ("_enable_normalize", "to_rgb", "_channel_conversion"):
            setattr(preprocessor, name, False)
    if hasattr(model, "encode_decode"):
        model.encode_decode = lambda inputs, _: network(inputs)[0].to(inputs.device)
        return
    expected = "a classifier or a segmentor"
    require(hasattr(model, "head") and hasattr(model, "extract_feat"), "model", type(model).__name__, expected)
    model.extract_feat = lambda inputs, *_: network(inputs)[0].to(inputs.device)
    model.head.forward = lambda logits: logits
