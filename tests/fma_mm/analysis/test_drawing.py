"""Contents of the pictures."""

import pytest
import torch
from matplotlib.figure import Figure

from fma_kernels import Hierarchy
from fma_mm.analysis.attention_map import QueryAttention, query_readings
from fma_mm.analysis.drawing import COLORS, AttentionDrawing, draw_boxes, draw_receptive_fields, level_color


def test_levels_beyond_the_last_colour_share_it():
    assert [level_color(level) for level in range(6)] == COLORS
    assert level_color(17) == COLORS[-1]


def test_boxes_are_where_they_are():
    axis = Figure().subplots()
    drawn = draw_boxes(axis, torch.tensor([[1, 2, 3, 6], [0, 0, 1, 1]]), scale=10)
    (first, second) = (path.get_extents().bounds for path in drawn.get_paths())
    assert first == (20, 10, 40, 20), "x, y, width and height of columns 2 to 6 of the rows 1 to 3"
    assert second == (0, 0, 10, 10)


@pytest.fixture
def drawing():
    """A query of 13 x 9 tokens of 4 pixels, all of whose keys have the same weight."""
    hierarchy = Hierarchy((9, 13), 2)
    readings = query_readings(hierarchy, (4, 6))
    count = sum(len(reading.index) for reading in readings)
    weights = [torch.full((len(reading.index),), 1 / count, dtype=torch.float64) for reading in readings]
    attention = QueryAttention(hierarchy, (4, 6), readings, [level[None] for level in weights])
    image = torch.zeros(36, 52, 3, dtype=torch.uint8).numpy()
    return AttentionDrawing(image, attention, weights, attention.token_map()[0], stride=4)


def test_a_panel_for_the_image_the_map_the_shares_and_each_level(drawing):
    assert drawing.names == ["near field", "level 1", "level 2"]
    assert sum(drawing.shares) == pytest.approx(1)
    figure = drawing.figure("the title")
    titles = [axis.get_title() for axis in figure.axes]
    for level, (name, share) in enumerate(zip(drawing.names, drawing.shares, strict=True)):
        count, what = len(drawing.weights[level]), "summaries" if level else "tokens"
        assert f"{name}: {count} {what}, {100 * share:.1f} %" in titles
    assert {"What the query (cross) reads", "Attention over the image", "Share of each level"} <= set(titles)
    readings = next(axis for axis in figure.axes if axis.get_title().startswith("What the query"))
    assert readings.get_xlim() == (0, 52) and readings.get_ylim() == (36, 0), "pixels"
    (cross,) = readings.lines
    assert (cross.get_xdata()[0], cross.get_ydata()[0]) == (26, 18), "the middle of the token in column 6, row 4"


def test_receptive_fields_have_one_scale_and_their_squares():
    point, even = torch.zeros(2, 9, 9, dtype=torch.float64)
    point[4, 4], even[:] = 1, 1 / 81
    figure = draw_receptive_fields({"a": point, "b": even}, "the title")
    axes = figure.axes[:2]
    assert [axis.get_title() for axis in axes] == ["a", "b"]
    assert "50 % of the energy (solid): 1 x 1" in axes[0].get_xlabel()
    assert "95 % of the energy (dotted): 9 x 9" in axes[1].get_xlabel()
    assert axes[0].images[0].norm is axes[1].images[0].norm
    assert axes[0].images[0].norm.vmax == 81, "relative to the same everywhere"
    box = axes[0].patches[0]
    assert (box.get_xy(), box.get_width(), box.get_height()) == ((3.5, 3.5), 1, 1)
