"""Models by name: where this project's configs, metafiles and weights are, and how OpenMMLab's libraries find them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from mmengine.config.utils import MODULE2PACKAGE
from torch import nn

from fma_kernels.checks import require_published

# mmengine resolves ``_base_ = "fma_mm::FOLDER/NAME.py"`` through a fixed table of packages. No call adds one
# (https://github.com/open-mmlab/mmengine/issues/1410).
MODULE2PACKAGE["fma_mm"] = "fma_mm"


def files_root() -> Path:
    """The folder with ``configs``, ``tools`` and ``model-index.yml``.

    Returns:
        ``fma_mm/.mim`` of an installed package, where OpenMMLab's packages have these files; the root of a checkout.
    """
    package = Path(__file__).parent
    installed = package / ".mim"
    return installed if installed.is_dir() else package.parent


def weights_file(name: str) -> Path:
    """A file of weights that ships with the package, in ``fma_mm/weights``.

    Args:
        name: name of the file, ``MODEL-HASH.pth`` with the first eight digits of its SHA-256.

    Raises:
        ValueError: the file is missing, or is not the one that was published.
    """
    path = Path(__file__).parent / "weights" / name
    require_published(path)
    return path


@cache
def register_models() -> None:
    """Add the classifiers of ``configs/imagenet`` and ``configs/cifar10`` to mmpretrain's models.

    Afterwards mmpretrain's ``get_model``, ``inference_model`` and ``list_models`` know them by name. Further calls do
    nothing. mmpretrain is imported here, and not with ``fma_mm``, because its import takes seconds.
    """
    from mmpretrain.apis.model import ModelHub
    from modelindex.models.Model import Model

    class PublishedModel(Model):
        """Entry of a metafile. mmpretrain only warns where an entry has no weights, and goes on with random ones."""

        @property
        def weights(self) -> str:
            path = super().weights
            if path is None:
                raise ValueError(
                    f"model={self.name!r}: no weights are published; expected pretrained=False for random weights, or "
                    "pretrained=PATH of a checkpoint"
                )
            return str(weights_file(path))

    before = set(ModelHub._models_dict)
    for folder in ("imagenet", "cifar10"):
        ModelHub.register_model_index(files_root() / "configs" / folder / "metafile.yml", config_prefix=files_root())
    for name in set(ModelHub._models_dict) - before:
        ModelHub._models_dict[name].__class__ = PublishedModel


def get_model(name: str, pretrained: bool | str = False, **kwargs) -> nn.Module:
    """Build a classifier by its name, in evaluation mode.

    Args:
        name: name of a config of ``configs/imagenet`` or ``configs/cifar10``, such as ``"fma2d-tiny_8xb128_in1k"``.
        pretrained: True for the weights that ship with the package, which ``fma2d-nano_b64-33k_cifar10`` has; path
            or URL of a checkpoint; or False for random weights.
        **kwargs: further arguments of mmpretrain's ``get_model``, such as ``device``, and changes of the model's
            config, such as ``head=None``.

    Returns:
        The model.

    Raises:
        ValueError: there is no such name, or ``pretrained=True`` asks for weights and there are none.

    Example:
        >>> model = get_model("fma2d-nano_b64-33k_cifar10")  # pretrained=True: with the weights that ship
        >>> model(torch.rand(1, 3, 32, 32), mode="tensor").shape
        torch.Size([1, 10])
    """
    register_models()
    from mmpretrain import get_model

    return get_model(name, pretrained, **kwargs)
