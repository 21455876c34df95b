"""One figure for every way to save: what it shows, and what it refuses."""

import pytest

from lightning_compress.errors import CompressionError
from lightning_compress.report import CostPoint, draw_cost_curves, to_svg

POINTS = [CostPoint(50, 98.0, 0.4), CostPoint(10, 96.0, 0.2)]


def test_points_are_joined_by_cost_whatever_their_order():
    figure = draw_cost_curves({"exits": POINTS, "widths": POINTS[:1]}, reference=CostPoint(100, 98.5))
    axes = figure.axes[0]
    lines = {tuple(line.get_xdata()): tuple(line.get_ydata()) for line in axes.lines}
    assert lines[10, 50] == (96.0, 98.0)
    assert lines[50,] == (98.0,)
    assert lines[100,] == (98.5,)
    assert {"exits", "widths", "plain 98.5"} <= {text.get_text() for text in axes.texts}
    assert "exits" in to_svg(figure, "curves")


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({}, "0 curves"),
        ({str(number): POINTS for number in range(6)}, "6 curves"),
        ({"exits": []}, "'exits' needs points"),
        ({"exits": [CostPoint(0.0, 90.0)]}, "cost above 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(curves, message):
    with pytest.raises(CompressionError, match=message):
        draw_cost_curves(curves)
