#!/usr/bin/env python3
"""Draw Fast Multipole Attention: the readings of one query, and the level that covers each pair of a sequence.

    python tools/draw_method.py docs/fma.png

The picture is read off the tables that the attention itself runs on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from fma_kernels import Hierarchy
from fma_mm.analysis.attention_map import query_readings
from fma_mm.analysis.drawing import COLORS, draw_boxes


def cell_bounds(hierarchy: Hierarchy, level: int, cell: tuple[int, ...]) -> list[tuple[int, int]]:
    """First token and one past the last of a cell, per axis."""
    width = hierarchy.cell_width(level)
    return [(i * width, min((i + 1) * width, n)) for i, n in zip(cell, hierarchy.grid, strict=True)]


def draw_image(axis: Axes, hierarchy: Hierarchy, query: tuple[int, int]) -> None:
    """Readings of one query of an image: each square is read as one, the near field token by token."""
    for reading in query_readings(hierarchy, query):
        draw_boxes(axis, reading.boxes, fc=COLORS[reading.level], ec="white", lw=0.8 if reading.level else 0.4)
    axis.add_patch(Rectangle((query[1], query[0]), 1, 1, fc="black"))
    height, width = hierarchy.grid
    axis.set(xlim=(0, width), ylim=(height, 0), aspect="equal", xticks=[], yticks=[])
    axis.set_title(f"One query (black) of an image of {height} x {width} tokens")


def meeting_cells(hierarchy: Hierarchy, level: int) -> Iterator[tuple[range, range]]:
    """Queries and keys of the pairs of cells of a sequence that meet at a level; at level 0, those that touch."""
    for cell in range(hierarchy.cell_grid(max(level, 1))[0]):
        partners = hierarchy.interaction_list(level, (cell,)) if level else hierarchy.near_list((cell,))
        for partner in partners:
            queries, keys = (cell_bounds(hierarchy, max(level, 1), which)[0] for which in ((cell,), partner))
            yield range(*queries), range(*keys)


def draw_sequence(axis: Axes, hierarchy: Hierarchy) -> None:
    """The level that covers each (query, key) pair of a causal sequence, and its summaries."""
    (n,) = hierarchy.grid
    for level in (0, *hierarchy.levels):
        width = hierarchy.cell_width(level) // hierarchy.rank if level else 1
        for queries, keys in meeting_cells(hierarchy, level):
            for x, y in ((x, y) for y in queries for x in keys[::width] if x <= y):
                axis.add_patch(Rectangle((x, y), width, 1, fc=COLORS[level], ec="white", lw=0.4 if level else 0.2))
    axis.set(xlim=(0, n), ylim=(n, 0), aspect="equal", xticks=[], yticks=[], xlabel="key", ylabel="query")
    axis.set_title(f"Every pair of a causal sequence of {n} tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="PNG to write")
    args = parser.parse_args()
    image, sequence = Hierarchy((64, 64), 4, 2), Hierarchy((64,), 4, 2, causal=True)
    figure = Figure(figsize=(11, 6.3), layout="constrained")
    axes = figure.subplots(1, 2)
    draw_image(axes[0], image, (22, 26))
    draw_sequence(axes[1], sequence)
    labels = ["near field: token by token"]
    labels += [
        f"level {level}: summaries of {image.cell_width(level) // image.rank} tokens per axis" for level in image.levels
    ]
    handles = [Patch(color="black", label="query")]
    handles += [Patch(color=color, label=label) for color, label in zip(COLORS, labels, strict=False)]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    args.path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.path, dpi=100)
    print(f"wrote {args.path}")


if __name__ == "__main__":
    main()
