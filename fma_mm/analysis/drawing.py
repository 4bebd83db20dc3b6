"""What the pictures of Fast Multipole Attention have in common."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle
from torch import Tensor

#: Near field, then level 1, 2, ...
COLORS = ["#d1495b", "#edae49", "#66a182", "#2e86ab", "#8d6a9f", "#5c5c5c"]


def level_color(level: int) -> str:
    """Colour of a level, 0 for the near field; all levels beyond the last colour share it."""
    return COLORS[min(level, len(COLORS) - 1)]


def draw_boxes(axis: Axes, boxes: Tensor, scale: int = 1, **style: Any) -> PatchCollection:
    """Draw rectangles with one style, or with one value of a colour map each.

    Args:
        axis: where to draw; x are columns and y are rows.
        boxes: (m, 4), each (top, left, bottom, right).
        scale: what one row or column measures on the axis.
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
