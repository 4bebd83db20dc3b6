#!/usr/bin/env python
"""Draw what one query of an FMA2D backbone reads of an image, level by level, and with which weights.

    python tools/visualize_attention.py IMAGE --config CONFIG --checkpoint PTH --point x,y

The image enters the model in its own size, normalised by the config's data_preprocessor: no pipeline resizes or crops
it. x,y is a pixel of it, counted from the top left corner; the query is the token that the pixel lies in. Without a
checkpoint the weights are those that training starts from, and the picture says so.
"""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from mmengine.model import BaseModel
from mmengine.runner import set_random_seed
from torch import Tensor

from fma_mm import FMA2D, cli
from fma_mm.analysis import inspection
from fma_mm.analysis.attention_map import QueryAttention, capture_inputs, query_attention
from fma_mm.analysis.drawing import draw_boxes, level_color
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


@dataclass
class Drawing:
    """What is drawn of one head, or of the mean of all.

    Attributes:
        image: (H, W, 3) uint8 in RGB.
        attention: what the query reads.
        weights: the weights of each level, (m,).
        token_map: the weights over the tokens, (rows, columns).
        stride: side of a token in pixels.
    """

    image: np.ndarray
    attention: QueryAttention
    weights: list[Tensor]
    token_map: Tensor
    stride: int

    @property
    def names(self) -> list[str]:
        """What each level is called."""
        if not self.attention.hierarchy.num_levels:
            return ["all tokens"]
        return ["near field", *(f"level {reading.level}" for reading in self.attention.readings[1:])]

    @property
    def shares(self) -> list[float]:
        """Share of the weight that each level has."""
        return [weights.sum().item() for weights in self.weights]

    def frame(self, axis: Axes, title: str) -> None:
        """Make an axis one over the pixels of the image, and mark the query on it."""
        height, width = self.image.shape[:2]
        x, y = ((i + 0.5) * self.stride for i in reversed(self.attention.query))
        axis.plot(x, y, marker="P", ms=9, mfc="black", mec="white", mew=1.2)
        axis.set(xlim=(0, width), ylim=(height, 0), aspect="equal", xticks=[], yticks=[])
        axis.set_title(title, fontsize=10)

    def draw_readings(self, axis: Axes) -> None:
        """The image, and on it what the query reads."""
        height, width = self.image.shape[:2]
        axis.imshow(self.image, extent=(0, width, height, 0))
        for reading in self.attention.readings:
            color = level_color(reading.level)
            draw_boxes(axis, reading.boxes, self.stride, fc=(color, 0.35), ec=color, lw=0.8)
        self.frame(axis, "What the query (cross) reads")

    def draw_level(self, axis: Axes, level: int) -> None:
        """The weight of each thing that is read at a level, on a scale of its own."""
        reading, weights = self.attention.readings[level], self.weights[level]
        what = "tokens" if level == 0 else "summaries"
        self.frame(axis, f"{self.names[level]}: {len(weights)} {what}, {100 * self.shares[level]:.1f} %")
        axis.set_facecolor("#dddddd")
        if not len(weights):  # a map can be too small for this query to have anything that far
            return
        colors = LinearSegmentedColormap.from_list("level", ["#f7f7f7", level_color(level)])
        drawn = draw_boxes(axis, reading.boxes, self.stride, cmap=colors, ec="white", lw=0.3)
        drawn.set_array(weights.cpu().numpy())
        drawn.set_clim(0, weights.max().item())
        bar = axis.figure.colorbar(drawn, ax=axis, shrink=0.8)
        bar.ax.tick_params(labelsize=8)
        bar.set_label("softmax weight", fontsize=8)

    def draw_map(self, axis: Axes) -> None:
        """The attention over the tokens, on the image."""
        height, width = self.image.shape[:2]
        axis.imshow(self.image.mean(-1), cmap="gray", extent=(0, width, height, 0), vmin=0, vmax=255)
        rows, columns = self.token_map.shape
        relative = (self.token_map * rows * columns).cpu().numpy()
        extent = (0, columns * self.stride, rows * self.stride, 0)
        drawn = axis.imshow(relative, cmap="inferno", alpha=0.7, extent=extent, vmin=0, interpolation="nearest")
        bar = axis.figure.colorbar(drawn, ax=axis, shrink=0.8)
        bar.ax.tick_params(labelsize=8)
        bar.set_label("weight per token, 1 = uniform", fontsize=8)
        self.frame(axis, "Attention over the image")

    def draw_shares(self, axis: Axes) -> None:
        """The share of the weight that each level has."""
        percent = [100 * share for share in self.shares]
        bars = axis.barh(self.names, percent, color=[level_color(level) for level in range(len(percent))])
        axis.bar_label(bars, fmt="%.1f %%", padding=3, fontsize=9)
        axis.set(xlim=(0, 115), xticks=[0, 50, 100], xlabel="% of the attention")
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title("Share of each level", fontsize=10)

    def figure(self, title: str) -> Figure:
        """All panels."""
        levels = len(self.weights)
        columns = max(3, levels)
        figure = Figure(figsize=(3.7 * columns, 7.2), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12)
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(2, columns)
        self.draw_readings(figure.add_subplot(grid[0, 0]))
        self.draw_map(figure.add_subplot(grid[0, 1]))
        self.draw_shares(figure.add_subplot(grid[0, 2]))
        for level in range(levels):
            self.draw_level(figure.add_subplot(grid[1, level]), level)
        figure.suptitle(title, fontsize=11)
        return figure


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
    drawing = Drawing(image[..., ::-1], attention, weights, token_map, stride)

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
