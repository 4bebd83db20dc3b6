"""Config, weights and inputs of a model that a tool looks into, and the file of its picture."""

from __future__ import annotations

import logging
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from torch import Tensor

from .. import cli
from ..cli import CommandError


def add_arguments(parser: ArgumentParser, out: str) -> None:
    """Add the options that these tools have in common.

    Args:
        parser: the parser to extend.
        out: default name of the picture.
    """
    parser.add_argument("--out", metavar="PNG", help=f"the picture to write; {out} by default")
    parser.add_argument("--force", action="store_true", help="overwrite the file if it exists")
    cli.add_config_options(parser)


def output_path(option: str, path: str, suffix: str, force: bool) -> Path:
    """Path of a file to write.

    Args:
        option: the option that names the file.
        path: the file.
        suffix: the ending that its name has to have, such as ``.png``.
        force: overwrite a file that exists.

    Raises:
        CommandError: the name has another ending, or the file exists and is not to be overwritten.
    """
    if Path(path).suffix.lower() != suffix:
        raise CommandError(f"{option} {path}: expected the name of a {suffix} file")
    if Path(path).is_dir():
        raise CommandError(f"{option} {path}: is a folder")
    if Path(path).exists() and not force:
        raise CommandError(f"{option} {path}: exists already; choose another name, or overwrite it with --force")
    return Path(path)


def write_picture(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, with the folders that it needs, and tell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, format="png")
    print(f"wrote {path}")


def read_config(path: str, options: dict) -> Config:
    """Read the config of a model with a backbone.

    Args:
        path: the config file.
        options: values by key, from ``--cfg-options``.

    Raises:
        CommandError: there is no such file, or it has no such model.
    """
    cfg = cli.read_config(path, options)
    if not (cfg.get("model") or {}).get("backbone"):
        raise CommandError(f"config {path}: it has no model with a backbone")
    return cfg


def backbone_class(cfg: Config) -> type | None:
    """Class of a config's backbone, as the config's library finds it; None if it knows no such name."""
    kind = cfg.model.backbone.type
    with MODELS.switch_scope_and_registry(cli.scope(cfg)) as registry:
        return registry.get(kind) if isinstance(kind, str) else kind


def weights_origin(cfg: Config, checkpoint: str | None) -> str:
    """Origin of the weights that :func:`build_model` gives, in words for the user."""
    if checkpoint is not None:
        return f"weights of {Path(checkpoint).name}"
    return "initial weights of the config's init_cfg" if "Pretrained" in str(cfg.model) else "random initial weights"


def require_checkpoint(checkpoint: str) -> None:
    """Raise :class:`CommandError` unless the checkpoint is there."""
    if not cli.exists(checkpoint):
        raise CommandError(f"--checkpoint {checkpoint}: no such file")


def build_model(cfg: Config, checkpoint: str | None = None) -> BaseModel:
    """Build a config's model for evaluation, on the device that mmengine finds.

    Args:
        cfg: from :func:`read_config`.
        checkpoint: path or URL of its weights, which have to fit exactly. Without one the model gets the weights that
            its training starts from.

    Raises:
        CommandError: the config builds no model, or the checkpoint is missing or that of another model.
    """
    if checkpoint is not None:
        require_checkpoint(checkpoint)
    with _quiet():
        model = cli.build_model(cfg)
        try:
            if checkpoint is None:
                model.init_weights()
            else:
                load_checkpoint(model, checkpoint, map_location="cpu", strict=True, logger="silent")
        except Exception as error:  # what unpickling an arbitrary file raises is arbitrary too
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if checkpoint is None:
                raise CommandError(f"config {cfg.filename}: no initial weights: {reason}") from error
            raise CommandError(
                f"--checkpoint {checkpoint}: does not load into the model of {cfg.filename}: {reason}"
            ) from error
    return model.eval().to(get_device())


def read_image(path: str | Path) -> np.ndarray:
    """Read an image: (H, W, 3) uint8 in BGR, as mm pipelines read it.

    Raises:
        CommandError: there is no such file, or it is no image.
    """
    if not Path(path).is_file():
        raise CommandError(f"image {path}: no such file")
    image = error = None
    try:
        image = mmcv.imread(str(path))
    except cv2.error as raised:
        error = raised
    if image is None:
        raise CommandError(f"image {path}: not an image that OpenCV reads") from error
    return image


def preprocess(model: BaseModel, images: Sequence[np.ndarray]) -> Tensor:
    """Normalise images as the model's ``data_preprocessor`` does in testing.

    Args:
        model: the model.
        images: of one size, each (H, W, 3) uint8 in BGR.

    Returns:
        (B, 3, H', W') on the model's device; larger than the images if the preprocessor pads.
    """
    tensors = [torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))) for image in images]
    return model.data_preprocessor(dict(inputs=tensors), training=False)["inputs"]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without mmengine's pages of notes about how each parameter was initialised."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
