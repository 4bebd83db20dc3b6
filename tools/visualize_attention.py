#!/usr/bin/env python
"""Draw what one query of an FMA2D backbone reads of an image, level by level, and with which weights.

    python tools/visualize_attention.py IMAGE --config CONFIG --checkpoint PTH --point x,y

The image enters the model in its own size, normalised by the config's data_preprocessor: no pipeline resizes or crops
it. x,y is a pixel of it, counted from the top left corner; the query is the token that the pixel lies in. Without a
checkpoint the weights are those that training starts from, and the picture says so.
"""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from math import prod
from pathlib import Path

import numpy as np
from mmengine.model import BaseModel
from mmengine.runner import set_random_seed

from fma_mm import FMA2D, cli
from fma_mm.analysis import inspection
from fma_mm.analysis.attention_map import QueryAttention, capture_inputs, query_attention
from fma_mm.analysis.drawing import AttentionDrawing
from fma_mm.cli import CommandError


def pixel(text: str) -> tuple[int, int]:
    """Parse ``x,y``."""
    try:
        x, y = map(int, text.split(","))
    except ValueError:
        raise ArgumentTypeError(f"expected two whole numbers x,y, got {text!r}") from None
    return x, y


def head(text: str) -> int | None:
    """Parse the number of a head, or ``mean`` as None."""
    try:
        return None if text == "mean" else int(text)
    except ValueError:
        raise ArgumentTypeError(f"expected the number of a head or mean, got {text!r}") from None


def make_parser() -> ArgumentParser:
    """The command line."""
    parser = ArgumentParser(
        description="Draw what one query of an FMA2D backbone reads of an image, and with which weights."
    )
    parser.add_argument("image", help="image file; it enters the model in its own size")
    parser.add_argument("--config", required=True, help="config of a model whose backbone is FMA2D")
    parser.add_argument("--checkpoint", metavar="PTH", help="weights of the model; without them they are random")
    parser.add_argument("--point", type=pixel, required=True, metavar="x,y", help="pixel of the image that asks")
    parser.add_argument("--stage", type=int, default=0, help="stage of the backbone, from 0; the first by default")
    parser.add_argument("--block", type=int, help="block of the stage, from 0; the last by default")
    parser.add_argument("--head", type=head, metavar="H|mean", help="head, from 0, or mean; mean by default")
    inspection.add_arguments(parser, "IMAGE_attention.png, in this folder,")
    return parser


def require_choice(option: str, value: int, count: int, what: str) -> None:
    """Refuse the number of something that is not there."""
    if not 0 <= value < count:
        raise CommandError(f"{option} {value}: expected 0 to {count - 1}, {what}")


def look(model: BaseModel, image: np.ndarray, args: Namespace) -> tuple[QueryAttention, int, int]:
    """Run the model on the image and compute the attention that is asked for.

    Args:
        model: a model whose backbone is FMA2D.
        image: (H, W, 3) uint8 in BGR.
        args: parsed arguments.

    Returns:
        The attention, the number of the block, and the side of a token in pixels.

    Raises:
        CommandError: there is no such stage, block or head.
    """
    stages = model.backbone.stages
    require_choice("--stage", args.stage, len(stages), "the backbone's stages")
    blocks = stages[args.stage].blocks
    block = len(blocks) - 1 if args.block is None else args.block
    require_choice("--block", block, len(blocks), f"the blocks of stage {args.stage}")
    module = blocks[block].attn
    if args.head is not None:
        require_choice("--head", args.head, module.attention.num_heads, f"the heads of stage {args.stage}, or mean")

    inputs = inspection.preprocess(model, [image])
    tokens, hw_shape = capture_inputs(module, lambda: model.backbone(inputs))
    # The patch embeddings' strides make a token; their overlap is at its edges.
    stride = prod(stage.patch_embed.projection.stride[0] for stage in stages[: args.stage + 1])
    row, column = (min(i // stride, n - 1) for i, n in zip(reversed(args.point), hw_shape, strict=True))
    return query_attention(module, tokens[0], hw_shape, (row, column)), block, stride


def visualize(args: Namespace) -> None:
    """Carry the command out.

    Args:
        args: parsed arguments.

    Raises:
        CommandError: something that the command line names is missing or does not fit.
    """
    out = inspection.picture_path(args.out or f"{Path(args.image).stem}_attention.png", args.force)
    image = inspection.read_image(args.image)
    height, width = image.shape[:2]
    x, y = args.point
    if not (0 <= x < width and 0 <= y < height):
        raise CommandError(f"--point {x},{y}: expected x from 0 to {width - 1} and y from 0 to {height - 1}, the image")
    cfg = inspection.read_config(args.config, args.cfg_options)
    kind = inspection.backbone_class(cfg)
    if kind is None or not issubclass(kind, FMA2D):
        raise CommandError(f"config {args.config}: its backbone is {cli.type_name(cfg.model.backbone)}, not FMA2D")
    set_random_seed(0)
    attention, block, stride = look(inspection.build_model(cfg, args.checkpoint), image, args)

    # One head, or the mean of all; from here on there is no dimension of heads.
    chosen = slice(None) if args.head is None else slice(args.head, args.head + 1)
    weights = [weights[chosen].mean(0) for weights in attention.weights]
    token_map = attention.token_map()[chosen].mean(0)
    drawing = AttentionDrawing(image[..., ::-1], attention, weights, token_map, stride)

    heads = "mean of the heads" if args.head is None else f"head {args.head}"
    rows, columns = attention.hierarchy.grid
    origin = inspection.weights_origin(cfg, args.checkpoint)
    lines = [
        f"{Path(args.config).stem}, {origin}",
        f"stage {args.stage}, block {block}, {heads}: pixel ({x}, {y}) of {Path(args.image).name}, "
        f"the token in column {attention.query[1]}, row {attention.query[0]} of {columns} x {rows}",
    ]
    if not attention.hierarchy.num_levels:
        lines.append("there are no far levels: this is full attention")
    print("\n".join(lines))
    for name, share, reading in zip(drawing.names, drawing.shares, attention.readings, strict=True):
        print(f"  {name:<11}{len(reading.index):>6} read{100 * share:>8.2f} % of the attention")
    inspection.write_picture(drawing.figure("\n".join(lines)), out)


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: the arguments; those of the process when None.
    """
    cli.run(make_parser(), argv, visualize)


if __name__ == "__main__":
    main()
