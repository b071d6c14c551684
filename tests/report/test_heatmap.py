"""The map of lengths and depths: what is in a cell, and that what is missing does not look like a score."""

import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from longlens.errors import UserError
from longlens.report.heatmap import grid, heatmap, write_heatmap

pytestmark = pytest.mark.filterwarnings("error")

CELLS = [
    (8192, 100, 60.0),
    (4096, 0, 100.0),
    (4096, 0, 50.0),
    (4096, 0, None),
    (8192, 0, 0.0),
    (4096, 100, None),
]


def drawn(cells, **more):
    """The axes of the map, its color bar's, and its cells."""
    figure = heatmap(cells, **more)
    axes, bar = figure.axes
    return axes, bar, axes.collections[0]


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def many(size):
    return [(1000 + 10 * column, 100 * row / (size - 1), 50.0) for column in range(size) for row in range(size)]


def test_a_cell_is_the_mean_of_its_scored_samples_and_the_grid_is_full():
    found = grid([*CELLS, (16384, 0, 20.0)])
    assert found.lengths == [4096, 8192, 16384]
    assert found.depths == [0, 100]
    np.testing.assert_equal(found.means, [[75.0, 0.0, 20.0], [np.nan, 60.0, np.nan]])


def test_a_zero_and_a_missing_cell_do_not_look_alike():
    axes, _, cells = drawn(CELLS)
    (missing,) = (patch for patch in axes.patches if isinstance(patch, Rectangle))
    assert missing.get_xy() == (0, 1)  # the first length, the second depth
    assert missing.get_hatch()
    colors = {to_hex(cells.to_rgba(value)) for value in np.linspace(0, 100, 101)}
    assert to_hex(missing.get_facecolor()) not in colors
    assert np.ma.getmaskarray(cells.get_array()).tolist() == [[False, False], [True, False]]
    (legend,) = axes.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["no scored sample"]
    assert drawn(CELLS[1:3])[0].figure.legends == []


def test_the_colors_are_of_0_to_100_percent_whatever_the_scores():
    _, bar, cells = drawn([(4096, 0, 40.0), (4096, 50, 41.0)])
    assert cells.get_clim() == (0, 100)
    assert cells.get_cmap().name == "cividis"
    assert bar.get_ylabel() == "mean score, %"
    assert labels(bar.yaxis) == ["0", "20", "40", "60", "80", "100"]


def test_the_text_begins_above_and_lengths_grow_to_the_right():
    axes, _, _ = drawn(CELLS, title="A grid")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("length, tokens", "depth, % of the text")
    assert labels(axes.xaxis) == ["4,096", "8,192"]
    assert labels(axes.yaxis) == ["0", "100"]
    assert axes.get_ylim() == (2, 0)
    assert axes.figure.get_suptitle() == "A grid"


def test_cells_of_a_small_map_have_their_numbers_in_an_ink_that_is_seen():
    axes, _, cells = drawn([*CELLS, (16384, 0, 200 / 3)])
    found = {text.get_position(): (text.get_text(), text.get_color()) for text in axes.texts}
    assert {place: said for place, (said, _) in found.items()} == {
        (0.5, 0.5): "75",
        (1.5, 0.5): "0",
        (2.5, 0.5): "66.7",
        (1.5, 1.5): "60",
    }
    for value, (_, ink) in zip((75, 0, 200 / 3, 60), found.values(), strict=True):
        assert contrast(cells.to_rgba(value), ink) >= 4.5
    assert not drawn(many(13))[0].texts


def contrast(rgba, ink):
    """WCAG 2's, of a color and black or white."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in rgba[:3]]
    luminance = float(np.dot([0.2126, 0.7152, 0.0722], linear))
    return (luminance + 0.05) / 0.05 if ink == "black" else 1.05 / (luminance + 0.05)


@pytest.mark.parametrize("size", [3, 12, 35])
def test_ticks_do_not_touch_and_name_the_first_and_the_last(size):
    axes, _, _ = drawn(many(size))
    figure = axes.figure
    figure.draw_without_rendering()
    for axis, first, last in ((axes.xaxis, "1,000", f"{990 + 10 * size:,}"), (axes.yaxis, "0", "100")):
        said = labels(axis)
        assert (said[0], said[-1]) == (first, last)
        assert len(said) == min(size, 12)
    turned = axes.get_xticklabels()[0].get_rotation() > 0
    boxes = [label.get_window_extent() for label in (axes.get_yticklabels() if turned else axes.get_xticklabels())]
    assert not any(box.count_overlaps(boxes[:place]) for place, box in enumerate(boxes))


def test_files_are_the_same_each_time_and_say_what_they_are(tmp_path):
    paths = write_heatmap(CELLS, tmp_path / "new", name="grid", title="A grid", caption="Of <two> lengths.")
    assert [path.name for path in paths] == ["grid.png", "grid.svg"]
    first = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in write_heatmap(CELLS, tmp_path / "new", name="grid", title="A grid",
                                                        caption="Of <two> lengths.")] == first  # fmt: skip
    said = [element.text for element in ElementTree.fromstring(first[1]).iter() if element.text]
    assert {"A grid", "Of <two> lengths.", "no scored sample", "depth, % of the text"} <= set(said)
    assert [path.name for path in write_heatmap(CELLS, tmp_path, formats=["svg"])] == ["heatmap.svg"]


@pytest.mark.parametrize(
    ("cells", "more", "message"),
    [
        ([], {}, "no cells to draw"),
        ([(4096, 50, 100.1)], {}, r"score=100\.1 at length 4096, depth 50; expected 0 to 100, or None if missing"),
        ([(4096, 50, float("nan"))], {}, "score=nan"),
        (CELLS, {"formats": ["pdf"]}, "format 'pdf' is unknown: expected one of png, svg"),
    ],
)
def test_what_cannot_be_drawn_is_refused(cells, more, message, tmp_path):
    with pytest.raises(UserError, match=message):
        write_heatmap(cells, tmp_path, **more)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_and_a_missing_package_are_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file"):
        write_heatmap(CELLS, tmp_path / "file")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'longlens\[figures\]'"):
        heatmap(CELLS)
