#!/usr/bin/env python
"""Draw the effective receptive field of backbones side by side: which pixels move the features at the centre.

    python tools/receptive_field.py CONFIG_A CONFIG_B ... [--checkpoint PTH_A PTH_B ...] [--images DIR] --out PNG

After Luo et al. (arXiv 1701.04128): the squared gradient of the features at the centre of a backbone's last map, or of
the one that --stage names, with respect to each pixel, averaged over images, as a share of the whole. All models get
the same images. The picture has one colour scale for all, and the smallest squares that hold 50 % and 95 % of the
energy. Without checkpoints the weights are those that training starts from, anew for each of --num-seeds, and the
picture says so.
"""

from __future__ import annotations

import inspect
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import set_random_seed
from torch import Tensor

from fma_mm import cli
from fma_mm.analysis import inspection
from fma_mm.analysis.drawing import SHARES, draw_receptive_fields
from fma_mm.analysis.receptive_field import receptive_field, smallest_square
from fma_mm.cli import CommandError

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def positive(text: str) -> int:
    """Parse an integer from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def make_parser() -> ArgumentParser:
    """The command line."""
    parser = ArgumentParser(description="Draw the effective receptive field of backbones side by side.")
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="config of a model with a backbone")
    parser.add_argument("--checkpoint", nargs="+", metavar="PTH", help="weights, one for each config in their order")
    parser.add_argument("--images", metavar="DIR", help="folder of images; random noise by default")
    parser.add_argument("--num-images", type=positive, default=4, help="images to average over (4)")
    parser.add_argument("--num-seeds", type=positive, help="random initialisations to average over (1)")
    parser.add_argument("--size", type=positive, default=224, help="side of the images in pixels (224)")
    parser.add_argument(
        "--stage", type=int, default=-1, help="which of the maps that the backbones return, from 0; the last by default"
    )
    inspection.add_arguments(parser, "receptive_field.png")
    return parser


def load_images(args: Namespace) -> list[np.ndarray]:
    """The images, evenly spaced over the folder and cropped to its centre square, or noise: uint8 in BGR.

    Raises:
        CommandError: the folder is missing, or has no images.
    """
    if args.images is None:
        random = np.random.default_rng(0)
        return list(random.integers(0, 256, (args.num_images, args.size, args.size, 3), dtype=np.uint8))
    if not Path(args.images).is_dir():
        raise CommandError(f"--images {args.images}: no such folder")
    paths = sorted(path for path in Path(args.images).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise CommandError(f"--images {args.images}: no images in it")
    chosen = np.linspace(0, len(paths) - 1, min(args.num_images, len(paths))).astype(int)
    images = []
    for i in chosen:
        image = inspection.read_image(paths[i])
        side = min(image.shape[:2])
        top, left = ((n - side) // 2 for n in image.shape[:2])
        images.append(mmcv.imresize(image[top : top + side, left : left + side], (args.size, args.size)))
    return images


def return_maps(cfg: Config) -> None:
    """Let a backbone that has the choice return feature maps: mmpretrain's transformers give a class token otherwise.

    Args:
        cfg: the config, changed in place.
    """
    kind = inspection.backbone_class(cfg)
    if kind is not None and "out_type" in inspect.signature(kind).parameters:
        cfg.model.backbone.out_type = "featmap"


def feature_map(cfg: Config, backbone: Callable[[Tensor], tuple[Tensor, ...]], stage: int, images: Tensor) -> Tensor:
    """One of the maps that a backbone returns.

    Args:
        cfg: the model's config.
        backbone: the backbone.
        stage: which of the maps.
        images: (B, 3, H, W).

    Raises:
        CommandError: it does not return such a map.
    """
    maps = backbone(images)
    maps = [maps] if isinstance(maps, Tensor) else maps
    if not -len(maps) <= stage < len(maps):
        raise CommandError(f"--stage {stage}: the backbone of {cfg.filename} returns {len(maps)} map(s)")
    if not isinstance(maps[stage], Tensor) or maps[stage].ndim != 4:
        raise CommandError(f"config {cfg.filename}: its backbone returns no feature map (B, C, H, W)")
    return maps[stage]


def measure(cfg: Config, checkpoint: str | None, images: list[np.ndarray], num_seeds: int, stage: int) -> Tensor:
    """Effective receptive field, mean over images and initialisations.

    Args:
        cfg: the model's config.
        checkpoint: its weights, or None for ``num_seeds`` initialisations.
        images: (size, size, 3) uint8 in BGR.
        num_seeds: number of initialisations.
        stage: which of the backbone's maps.

    Returns:
        (size, size) float64, shares of the energy: sums to 1.

    Raises:
        CommandError: the model cannot be built, or has no map.
    """

    def fields() -> Iterator[Tensor]:
        for seed in range(num_seeds):
            set_random_seed(seed)
            model = inspection.build_model(cfg, checkpoint).requires_grad_(False)
            features = partial(feature_map, cfg, model.backbone, stage)
            for image in images:  # one at a time, for the sake of memory
                inputs = inspection.preprocess(model, [image])
                try:
                    field = receptive_field(features, inputs)
                except (AssertionError, RuntimeError, ValueError) as error:
                    size = "x".join(map(str, image.shape[:2]))
                    raise CommandError(f"config {cfg.filename}, images of {size}: {error}") from error
                yield field[: image.shape[0], : image.shape[1]]  # without what the preprocessor padded

    mean = torch.stack(list(fields())).mean(0)
    return mean / mean.sum()


def counted(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def compare(args: Namespace) -> None:
    """Carry the command out.

    Args:
        args: parsed arguments.

    Raises:
        CommandError: something that the command line names is missing or does not fit.
    """
    out = inspection.output_path("--out", args.out or "receptive_field.png", ".png", args.force)
    checkpoints = args.checkpoint or [None] * len(args.configs)
    if len(checkpoints) != len(args.configs):
        raise CommandError(f"--checkpoint: expected one for each config, {len(args.configs)}, got {len(checkpoints)}")
    if args.checkpoint and args.num_seeds:
        raise CommandError("--num-seeds: is about random weights, and --checkpoint gives trained ones")
    for checkpoint in args.checkpoint or []:
        inspection.require_checkpoint(checkpoint)
    num_seeds = args.num_seeds or 1
    images = load_images(args)
    configs = [inspection.read_config(path, args.cfg_options) for path in args.configs]
    for cfg in configs:
        return_maps(cfg)

    fields = {}
    for cfg, checkpoint in zip(configs, checkpoints, strict=True):
        field = measure(cfg, checkpoint, images, num_seeds, args.stage)
        name = Path(cfg.filename).stem
        if name in fields:
            name = f"{len(fields) + 1}: {name}"
        fields[name] = field
        sides = ", ".join(f"{100 * share:.0f} % within {smallest_square(field, share).side} pixels" for share in SHARES)
        print(f"{name}, {inspection.weights_origin(cfg, checkpoint)}: {sides}")

    what = "last feature map" if args.stage == -1 else f"feature map {args.stage}"
    weights = "trained weights" if args.checkpoint else f"at initialisation ({counted(num_seeds, 'seed')})"
    source = "noise" if args.images is None else Path(args.images).resolve().name
    source = f"{counted(len(images), 'image')} of {source}"
    title = f"Effective receptive field of the centre of the {what}, {weights}, {source}"
    inspection.write_picture(draw_receptive_fields(fields, title), out)


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: the arguments; those of the process when None.
    """
    cli.run(make_parser(), argv, compare)


if __name__ == "__main__":
    main()
