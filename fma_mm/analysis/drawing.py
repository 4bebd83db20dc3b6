"""Pictures of Fast Multipole Attention: what a query reads and with which weights, and receptive fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from .attention_map import QueryAttention
from .receptive_field import smallest_square

#: Near field, then level 1, 2, ...
COLORS = ["#d1495b", "#edae49", "#66a182", "#2e86ab", "#8d6a9f", "#5c5c5c"]

#: Shares of the energy whose squares are drawn, and how.
SHARES = {0.5: ("solid", "-"), 0.95: ("dotted", ":")}


def level_color(level: int) -> str:
    """Colour of a level, 0 for the near field; all levels beyond the last colour share it."""
    return COLORS[min(level, len(COLORS) - 1)]


def draw_boxes(axis: Axes, boxes: Tensor, scale: int = 1, **style: Any) -> PatchCollection:
    """Draw rectangles with one style, or with one value of a colour map each.

    Args:
        axis: where to draw; x are columns and y are rows.
        boxes: (m, 4), each (top, left, bottom, right).
        scale: size of one row or column on the axis.
        **style: arguments of matplotlib's ``PatchCollection``.

    Returns:
        The rectangles, in the order of the boxes.
    """
    patches = [
        Rectangle((left, top), right - left, bottom - top) for top, left, bottom, right in (boxes * scale).tolist()
    ]
    collection = PatchCollection(patches, **style)
    axis.add_collection(collection)
    return collection


@dataclass
class AttentionDrawing:
    """Picture of the attention of one query: of one head, or of the mean of all heads.

    Attributes:
        image: (H, W, 3) uint8 in RGB.
        attention: readings and weights of the query.
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
        """Names of the levels."""
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
        grid = figure.add_gridspec(2, columns)
        self.draw_readings(figure.add_subplot(grid[0, 0]))
        self.draw_map(figure.add_subplot(grid[0, 1]))
        self.draw_shares(figure.add_subplot(grid[0, 2]))
        for level in range(levels):
            self.draw_level(figure.add_subplot(grid[1, level]), level)
        figure.suptitle(title, fontsize=11)
        return figure


def draw_receptive_fields(fields: dict[str, Tensor], title: str) -> Figure:
    """Draw the receptive fields side by side.

    Args:
        fields: by the name of the model, (H, W) each, sums to 1.
        title: the title.
    """
    figure = Figure(figsize=(3.6 * len(fields) + 1, 4.5), layout="constrained")
    axes = figure.subplots(1, len(fields), squeeze=False)[0]
    # One scale for all, relative to a field that is the same everywhere.
    relative = [field.numpy() * field.numel() for field in fields.values()]
    top = max(field.max() for field in relative)
    scale = LogNorm(max(top * 1e-8, min(field[field > 0].min() for field in relative)), top)
    for axis, (name, field), values in zip(axes, fields.items(), relative, strict=True):
        drawn = axis.imshow(np.maximum(values, scale.vmin), norm=scale, cmap="inferno", interpolation="nearest")
        sides = []
        for share, (look, style) in SHARES.items():
            top, left, side = smallest_square(field, share)
            sides.append(f"{100 * share:.0f} % of the energy ({look}): {side} x {side}")
            box = Rectangle((left - 0.5, top - 0.5), side, side, fill=False, ec="white", lw=1.5, ls=style)
            axis.add_patch(box)
        axis.set_title(name, fontsize=10)
        axis.set(xticks=[], yticks=[], xlabel="\n".join(sides))
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8)
    bar.set_label("energy per pixel, 1 = the same everywhere", fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure
