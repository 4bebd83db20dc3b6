"""A model of mmpretrain or mmseg as one function of an image, to be written to a file."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn

from fma_kernels.checks import require

PARTS = ("model", "backbone")
#: Property of an ONNX file that says what its input is, and the values of it.
INPUT_PROPERTY = "fma_mm.input"
PIXELS, NORMALIZED = "pixels", "normalized"


class Normalization(nn.Module):
    """Order of channels, mean and standard deviation of a data preprocessor, applied to a batch.

    Args:
        preprocessor: of a model of mmpretrain, mmseg or mmengine; one with a mean.
    """

    def __init__(self, preprocessor: nn.Module):
        super().__init__()
        # mmpretrain has the first name for it, mmengine the second.
        self.swaps = bool(getattr(preprocessor, "to_rgb", False) or getattr(preprocessor, "_channel_conversion", False))
        self.register_buffer("mean", preprocessor.mean.detach().clone().float())
        self.register_buffer("std", preprocessor.std.detach().clone().float())

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise (B, 3, H, W) float32, 0 to 255 and blue first, as the pipelines of configs load images."""
        return ((pixels.flip(1) if self.swaps else pixels) - self.mean) / self.std


class DeployedModel(nn.Module):
    """A model in evaluation mode as a function of an image alone, for one size of image.

    Args:
        model: a classifier, a segmentor, or any module of one image; it stays as it is.
        size: height and width of the image.
        part: ``"model"``: the logits of a classifier, (B, classes); the logits of a segmentor at the size of the image,
            (B, classes, H, W); the outputs of any other module. ``"backbone"``: the feature maps of ``model.backbone``.
        normalize: the image has pixels as the pipeline of the config loads them, 0 to 255, blue first; mean, standard
            deviation and order of channels of the data preprocessor are applied inside.
        half: compute in float16. In- and outputs stay float32.

    Raises:
        ValueError: the model has no such part, or no data preprocessor that normalises.
    """

    def __init__(
        self,
        model: nn.Module,
        size: tuple[int, int],
        *,
        part: str = "model",
        normalize: bool = False,
        half: bool = False,
    ):
        super().__init__()
        require(part in PARTS, "part", part, f"one of {', '.join(PARTS)}")
        preprocessor = getattr(model, "data_preprocessor", None)
        able = getattr(preprocessor, "mean", None) is not None
        require(able or not normalize, "normalize", normalize, "False: the model normalises nothing")
        self.normalization = Normalization(preprocessor) if normalize else None
        if part == "backbone":
            require(hasattr(model, "backbone"), "part", part, f"model: {type(model).__name__} has no backbone")
        self.size, self.dtype = tuple(size), torch.float16 if half else torch.float32
        network = deepcopy(model.backbone if part == "backbone" else model)
        self.network = revert_sync_batchnorm(network).eval().to(self.dtype)
        self.segments = part == "model" and hasattr(model, "encode_decode")
        self.eval()

    @property
    def input_kind(self) -> str:
        """Kind of image that the file takes: :data:`PIXELS` or :data:`NORMALIZED`."""
        return NORMALIZED if self.normalization is None else PIXELS

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Run the model.

        Args:
            image: (B, 3, H, W) float32.

        Returns:
            The outputs, in float32.
        """
        if self.normalization is not None:
            image = self.normalization(image)
        image = image.to(self.dtype)
        given = [dict(img_shape=self.size)]
        found = self.network.encode_decode(image, given) if self.segments else self.network(image)
        found = found if isinstance(found, (tuple, list)) else (found,)
        return tuple(x.float() for x in found)

    def output_names(self, outputs: Sequence[Tensor]) -> list[str]:
        """Names of the outputs: ``logits``, or ``features0`` and so on."""
        alone = len(outputs) == 1 and hasattr(self.network, "backbone")
        return ["logits"] if alone else [f"features{i}" for i in range(len(outputs))]
