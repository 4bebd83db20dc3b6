#!/usr/bin/env python
"""Draw what one query of an FMA2D backbone reads of an image, level by level, and with which weights.

    python tools/visualize_attention.py IMAGE --config CONFIG --checkpoint PTH --point x,y    # a PNG
    python tools/visualize_attention.py IMAGE --config CONFIG --checkpoint PTH --html FILE    # a page

The HTML file is one page without a server: move the pointer over the image, and it shows the weights of that query, for
all stages, blocks and heads (or for those of --stage and --block alone).

The image enters the model in its own size, normalised by the config's data_preprocessor: no pipeline resizes or crops
it. x,y is a pixel of it, counted from the top left corner; the query is the token that the pixel lies in. Without a
checkpoint the weights are those that training starts from, and the picture says so.
"""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from math import prod
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import set_random_seed

from fma_kernels import CoreAttention
from fma_mm import FMA2D, cli
from fma_mm.analysis import inspection
from fma_mm.analysis.attention_map import QueryAttention, capture_inputs, query_attention
from fma_mm.analysis.drawing import AttentionDrawing
from fma_mm.cli import CommandError
from fma_tools.explorer import ImageInput, record, write_page


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
    asks = parser.add_mutually_exclusive_group(required=True)
    asks.add_argument("--point", type=pixel, metavar="x,y", help="pixel of the image that asks; writes a PNG")
    asks.add_argument("--html", metavar="FILE", help="write a page in which a pointer asks instead")
    parser.add_argument("--stage", type=int, help="stage, from 0; by default the first, with --html all")
    parser.add_argument("--block", type=int, help="block of a stage, from 0; by default the last, with --html all")
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
    stage = args.stage or 0
    require_choice("--stage", stage, len(stages), "the backbone's stages")
    blocks = stages[stage].blocks
    block = len(blocks) - 1 if args.block is None else args.block
    require_choice("--block", block, len(blocks), f"the blocks of stage {stage}")
    module = blocks[block].attn
    if args.head is not None:
        require_choice("--head", args.head, module.attention.num_heads, f"the heads of stage {stage}, or mean")

    inputs = inspection.preprocess(model, [image])
    tokens, hw_shape = capture_inputs(module, lambda: model.backbone(inputs))
    stride = token_side(model, stage)
    row, column = (min(i // stride, n - 1) for i, n in zip(reversed(args.point), hw_shape, strict=True))
    return query_attention(module, tokens[0], hw_shape, (row, column)), block, stride


def token_side(model: BaseModel, stage: int) -> int:
    """Side of a token of a stage in pixels: the patch embeddings' strides make it; their overlap is at its edges."""
    return prod(stage.patch_embed.projection.stride[0] for stage in model.backbone.stages[: stage + 1])


def chosen_blocks(model: BaseModel, args: Namespace) -> dict[tuple[int, int], CoreAttention]:
    """The attentions by stage and block: those of ``--stage`` and ``--block``, or all.

    Raises:
        CommandError: there is no such stage or block.
    """
    stages = model.backbone.stages
    if args.stage is not None:
        require_choice("--stage", args.stage, len(stages), "the backbone's stages")
    chosen = range(len(stages)) if args.stage is None else [args.stage]
    if args.block is not None:
        most = max(len(stages[stage].blocks) for stage in chosen)
        require_choice("--block", args.block, most, "the blocks of the stages")
    return {
        (stage, number): block.attn.attention
        for stage in chosen
        for number, block in enumerate(stages[stage].blocks)
        if args.block in (None, number)
    }


def explore(args: Namespace) -> None:
    """Write the page of ``--html``.

    Args:
        args: parsed arguments.

    Raises:
        CommandError: something that the command line names is missing or does not fit.
    """
    for option, value in (("--head", args.head), ("--out", args.out)):
        if value is not None:
            raise CommandError(f"{option} {value}: expected with --point alone; the page has all heads")
    out = inspection.output_path("--html", args.html, ".html", args.force)
    image = inspection.read_image(args.image)
    cfg, model = read_model(args)
    blocks = chosen_blocks(model, args)
    names = {f"stage {stage}, block {block}": attention for (stage, block), attention in blocks.items()}
    inputs = inspection.preprocess(model, [image])
    try:
        recordings = record(names, lambda: model.backbone(inputs))
        shown = ImageInput(image[..., ::-1], [token_side(model, stage) for stage, _ in blocks])
        origin = inspection.weights_origin(cfg, args.checkpoint)
        write_page(out, recordings, shown, f"{Path(args.config).stem}, {origin}, {Path(args.image).name}")
    except ValueError as error:
        raise CommandError(f"--html {args.html}: {error}; --stage and --block choose layers") from error
    print(f"wrote {out}")


def read_model(args: Namespace) -> tuple[Config, BaseModel]:
    """The config and its model, whose backbone is FMA2D.

    Raises:
        CommandError: the backbone is another one, or the config or the checkpoint does not fit.
    """
    cfg = inspection.read_config(args.config, args.cfg_options)
    kind = inspection.backbone_class(cfg)
    if kind is None or not issubclass(kind, FMA2D):
        raise CommandError(f"config {args.config}: its backbone is {cli.type_name(cfg.model.backbone)}, not FMA2D")
    set_random_seed(0)
    return cfg, inspection.build_model(cfg, args.checkpoint)


def visualize(args: Namespace) -> None:
    """Carry the command out.

    Args:
        args: parsed arguments.

    Raises:
        CommandError: something that the command line names is missing or does not fit.
    """
    if args.html is not None:
        return explore(args)
    out = inspection.output_path("--out", args.out or f"{Path(args.image).stem}_attention.png", ".png", args.force)
    image = inspection.read_image(args.image)
    height, width = image.shape[:2]
    x, y = args.point
    if not (0 <= x < width and 0 <= y < height):
        raise CommandError(f"--point {x},{y}: expected x from 0 to {width - 1} and y from 0 to {height - 1}, the image")
    cfg, model = read_model(args)
    attention, block, stride = look(model, image, args)

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
        f"stage {args.stage or 0}, block {block}, {heads}: pixel ({x}, {y}) of {Path(args.image).name}, "
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
