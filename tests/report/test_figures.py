import itertools
import math
import os
import struct
import sys
from xml.etree import ElementTree

import matplotlib
import pytest
from matplotlib.colors import same_color, to_hex
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.text import Text

from longlens.errors import UserError
from longlens.report.charts import Axis, Chart, Mark, Series
from longlens.report.figures import PALETTE, draw, write_figures

pytestmark = pytest.mark.filterwarnings("error")  # Of names that fonts lack as well.

HOSTILE = ["$\\frac{", "<script>", "]]>", "nul\0", "two\nlines", "_x", "W" * 300, "😀", "שלום", "\u202eevil", "\ud800"]
CLASSES = ["< 0", "0 to 2", "≥ 2"]
CONTEXTS = [64, 128, 256, 1024]


def chart(*series, name="c", title="Title", caption="Caption", x=None, y=None, marks=()):
    x, y = x or Axis(label="position, tokens"), y or Axis(label="log-probability, nats per token")
    return Chart(name=name, title=title, caption=caption, x=x, y=y, series=series, marks=marks)


def line(name="A", y=(1.0, None, 3.0, 4.0), **more):
    return Series(name=name, x=range(len(y)), y=y, **more)


def bars(name="A", y=(10.0, None, 30.0), **more):
    return Series(name=name, x=range(3), y=y, style="bars", **more)


def bar_chart(*series, **more):
    return chart(*series, x=Axis(label="LSD, nats", categories=CLASSES), **more)


def reach(marks=(), y=(0.0, 0.1, 0.4, 0.5), color=0):
    axis = Axis(label="short context K, tokens", log=True)
    low, high = (None, 0.05, 0.3, 0.4), (None, 0.15, 0.5, 0.45)  # The last value lies above its interval.
    points = Series(name="A", x=CONTEXTS, y=y, low=low, high=high, color=color, style="points")
    return chart(points, Series(name="A, fit", x=CONTEXTS, y=y, color=color), x=axis, marks=marks)


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_visible() and text.get_text()]


def legend(figure):
    return [text.get_text() for found in figure.legends for text in found.get_texts()]


def svg_texts(path):
    """The texts of an SVG, as an XML parser reads them."""
    return [element.text for element in ElementTree.parse(path).iter() if element.tag.endswith("}text")]


def test_labels_with_units_and_the_title_are_on_the_figure():
    figure = draw(chart(line()))
    (axes,) = figure.axes
    assert figure.get_suptitle() == "Title"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("position, tokens", "log-probability, nats per token")
    assert "Caption" not in texts(figure)
    assert figure.get_size_inches().tolist() == [6.4, 4.0]
    assert not axes.spines["top"].get_visible()
    assert axes.get_axisbelow() is True


def test_a_line_is_solid_or_dashed_in_one_color_with_gaps():
    (axes,) = draw(chart(line(), line("B", style="dashed"), line("C", color=1))).axes
    solid, dashed, other = axes.lines
    assert solid.get_ydata()[[0, 2, 3]].tolist() == [1, 3, 4]
    assert math.isnan(solid.get_ydata()[1])
    assert solid.get_linestyle() == "-"
    assert dashed.get_linestyle() == "--"
    assert solid.get_color() == dashed.get_color() == PALETTE[0]
    assert other.get_color() == PALETTE[1]
    assert len({line.get_marker() for line in (solid, other)}) == 2


def test_points_have_their_intervals_where_there_are_any_and_fits_no_markers():
    (axes,) = draw(reach()).axes
    (intervals,) = (found for found in axes.containers if isinstance(found, ErrorbarContainer))
    ends = [segment[:, 1].tolist() for segment in intervals.lines[2][0].get_segments() if len(segment)]
    assert [pytest.approx(pair) for pair in ends if not math.isnan(pair[0])] == [[0.05, 0.15], [0.3, 0.5], [0.4, 0.45]]
    points, fit = (drawn for drawn in axes.lines if drawn.get_marker() in ("o", "None"))
    assert (points.get_marker(), points.get_linestyle()) == ("o", "None")
    assert fit.get_marker() == "None"


def test_a_log_axis_has_a_plain_tick_at_each_x_and_no_minor_ones():
    (axes,) = draw(reach()).axes
    assert axes.get_xscale() == "log"
    assert axes.get_xticks().tolist() == CONTEXTS
    assert [label.get_text() for label in axes.get_xticklabels()] == ["64", "128", "256", "1024"]
    assert axes.get_xticks(minor=True).tolist() == []


def test_bars_of_all_series_stand_side_by_side_in_their_categories():
    (axes,) = draw(bar_chart(bars(), bars("B", color=1), bars("C", (1.0, 2.0, 3.0), color=2))).axes
    assert [len(found) for found in axes.containers if isinstance(found, BarContainer)] == [2, 2, 3]
    assert [label.get_text() for label in axes.get_xticklabels()] == CLASSES
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches)
    assert all(left[1] <= right[0] + 1e-9 for left, right in itertools.pairwise(edges))
    assert [round(bar.get_x() + bar.get_width() / 2) for bar in axes.patches] == [0, 2, 0, 2, 0, 1, 2]
    assert [bar.get_height() for bar in axes.patches] == [10, 30, 10, 30, 1, 2, 3]
    assert len({(to_hex(bar.get_facecolor()), bar.get_hatch()) for bar in axes.patches}) == 3


def test_many_categories_are_turned_so_that_they_do_not_touch():
    many = chart(bars(), x=Axis(label="x", categories=[f"class number {n}" for n in range(12)]))
    assert {label.get_rotation() for label in draw(many).axes[0].get_xticklabels()} == {35}


def test_marks_have_their_labels_above_the_axes_and_none_covers_another():
    marks = [Mark(x=x, label=f"{x} tokens", color=color) for color, x in enumerate((1024, 1000, 64, 900))]
    figure = draw(reach(marks))
    (axes,) = figure.axes
    figure.draw_without_rendering()
    labels = [text for text in axes.texts if text.get_text().endswith(" tokens")]
    boxes = [text.get_window_extent() for text in labels]
    assert len(boxes) == 4
    assert not any(box.count_overlaps(boxes[:n]) for n, box in enumerate(boxes))
    assert all(axes.bbox.y1 < box.y0 and box.y1 < figure.get_tightbbox().y1 * figure.dpi for box in boxes)
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)
    dotted = [drawn for drawn in axes.lines if drawn.get_linestyle() == ":"]
    assert [(drawn.get_xdata()[0], drawn.get_color()) for drawn in dotted] == [
        (mark.x, PALETTE[mark.color]) for mark in marks
    ]


def test_names_stand_beside_their_points_and_do_not_cover_each_other():
    at = [(5.1, 88.1), (5.2, 87.9), (5.3, 85.0), (7.0, 72.0), (7.05, 71.5), (12.1, 20.0)]
    named = [
        Series(name=f"model-{n}", x=[x], y=[y], labels=[f"model-{n}"], color=n, style="points")
        for n, (x, y) in enumerate(at)
    ]
    (axes,) = draw(chart(*named)).axes
    assert [text.get_text() for text in axes.texts] == [series.name for series in named]
    axes.figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    assert not any(box.count_overlaps(boxes[:n]) for n, box in enumerate(boxes))


def test_a_point_without_a_value_has_no_name():
    (axes,) = draw(chart(Series(name="A", x=[1, 2], y=[None, 3.0], labels=["one", "two"], style="points"))).axes
    assert [text.get_text() for text in axes.texts] == ["two"]


def test_only_several_series_have_a_legend_and_the_figure_grows_with_it():
    assert legend(draw(chart(line()))) == []
    assert legend(draw(chart(line(), line("B")))) == ["A", "B"]
    names = [f"organization/a-model-with-a-long-name-{n}" for n in range(16)]
    figure = draw(chart(*(line(name, color=n) for n, name in enumerate(names))))
    assert legend(figure) == names
    assert figure.get_figheight() > 4.5
    assert figure.legends[0].get_window_extent().width <= figure.bbox.width


def test_colors_are_eight_different_ones_and_begin_again_with_other_markers():
    assert len({color.lower() for color in PALETTE}) == 8
    assert not any(same_color(color, "white") for color in PALETTE)
    (axes,) = draw(chart(*(line(str(n), color=n) for n in range(10)))).axes
    looks = [(drawn.get_color(), drawn.get_marker()) for drawn in axes.lines]
    assert [color for color, _ in looks] == [*PALETTE, *PALETTE[:2]]
    assert len(set(looks)) == 10
    assert len({marker for _, marker in looks[:8]}) == 8


@pytest.mark.parametrize(
    "empty",
    [
        chart(line(y=(None, None))),
        chart(line(y=())),
        chart(line(y=(float("nan"), float("inf")))),
        bar_chart(bars(y=(None, None, None))),
        reach(y=(None, None, None, None)),
        chart(x=Axis(label="position, tokens", log=True)),
    ],
)
def test_without_numbers_there_are_axes_with_their_labels(empty, tmp_path):
    (path,) = write_figures([empty], tmp_path, formats=["svg"])
    assert {empty.x.label, empty.y.label, "Title"} <= set(svg_texts(path))


def test_no_number_at_all_is_said():
    assert "no values" in texts(draw(chart(line(y=(None, None)))))
    assert "no values" not in texts(draw(chart(line())))


def test_svg_is_xml_whose_title_and_labels_are_text(tmp_path):
    (path,) = write_figures([bar_chart(bars(), bars("B", color=1))], tmp_path, formats=["svg"])
    found = svg_texts(path)
    assert {"Title", "LSD, nats", "log-probability, nats per token", "A", "B", *CLASSES} <= set(found)
    assert "Caption" not in found
    assert ">Caption</" in path.read_text(encoding="utf-8")


def test_png_has_its_size_and_the_caption_as_metadata(tmp_path):
    (path,) = write_figures([chart(line(), caption="Zeichen: ≥ 2")], tmp_path, formats=["png"])
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == (960, 600)
    assert b"Description" in content
    assert "Zeichen: ≥ 2".encode() in content
    assert b"Software" not in content


def test_the_same_charts_give_the_same_bytes_whatever_the_time(tmp_path, monkeypatch):
    made = [reach([Mark(x=256, label="256 tokens", color=0)]), bar_chart(bars(), bars("B", color=1), name="b")]
    first = [path.read_bytes() for path in write_figures(made, tmp_path)]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    assert [path.read_bytes() for path in write_figures(made, tmp_path)] == first


def test_settings_of_the_user_are_neither_used_nor_changed(tmp_path):
    expected = [path.read_bytes() for path in write_figures([chart(line())], tmp_path)]
    mine = {"text.usetex": True, "font.size": 30, "svg.fonttype": "path", "savefig.dpi": 10, "axes.grid": False}
    with matplotlib.rc_context(mine):
        before = dict(matplotlib.rcParams)
        assert [path.read_bytes() for path in write_figures([chart(line())], tmp_path)] == expected
        assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_data_in_every_place(name, tmp_path):
    shown = {"nul\0": "nul\\x00", "two\nlines": "two lines", "\u202eevil": "\\u202eevil", "\ud800": "\\ud800"}
    axis = Axis(label=name, categories=[name, "b", "c"])
    mark = Mark(x=1, label=name, color=1)
    labeled = Series(name=name, x=[0], y=[1.0], labels=[name], style="points")
    made = chart(labeled, bars(name), title=name, caption=name, x=axis, y=Axis(label=name), marks=[mark])
    _, path = write_figures([made], tmp_path)
    found = svg_texts(path)
    if len(name) < 300:
        assert found.count(shown.get(name, name)) == 8  # title, two axes, category, point, mark, two in the legend
    else:
        long = [text for text in found if "…" in text]
        assert len(long) == 8
        assert all(text[0] == text[-1] == "W" and len(text) < 90 for text in long)


def test_no_text_is_taken_for_a_formula():
    figure = draw(reach([Mark(x=256, label="$x$", color=0)]))
    assert not any(text.get_parse_math() for text in figure.findobj(Text) if text.get_text())


def test_a_long_name_keeps_its_ends_in_the_legend():
    first = legend(draw(chart(line("begin" + "x" * 300 + "end"), line("B"))))[0]
    assert len(first) == 56
    assert first.startswith("begin")
    assert first.endswith("end")


def test_files_are_named_after_charts_and_formats_and_replace_what_was_there(tmp_path):
    folder = tmp_path / "figures"
    paths = write_figures([chart(line(), name="a"), chart(line(), name="b")], folder)
    assert paths == [folder / name for name in ("a.png", "a.svg", "b.png", "b.svg")]
    (folder / "a.png").write_text("old")
    assert write_figures([chart(line(), name="a")], str(folder), formats=("png", "png")) == [folder / "a.png"]
    assert (folder / "a.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(folder.iterdir()) == paths


def test_no_chart_overwrites_another_or_leaves_its_folder(tmp_path):
    names = ["a", "A", "a-2", "a", "../up", ".hidden", "", "ü\0", "x" * 300]
    paths = write_figures([chart(name=name) for name in names], tmp_path / "f", formats=["svg"])
    assert [path.stem for path in paths[:8]] == ["a", "A-2", "a-2-2", "a-3", "-up", "hidden", "chart", "--"]
    assert {path.parent for path in paths} == {tmp_path / "f"}
    assert sorted(path.name for path in (tmp_path / "f").iterdir()) == sorted(path.name for path in paths)


def test_an_unknown_format_and_a_missing_parent_folder_are_said_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="format 'gif' is unknown: expected one of png, svg"):
        write_figures([chart(line())], tmp_path / "f", formats=["png", "gif"])
    with pytest.raises(UserError, match="nosuch is not a folder: create it, then write f there"):
        write_figures([chart(line())], tmp_path / "nosuch" / "f")
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_the_folder_should_be_is_said_and_kept(tmp_path):
    (tmp_path / "f").write_text("mine")
    with pytest.raises(UserError, match=r"cannot write .*f: File exists"):
        write_figures([chart(line())], tmp_path / "f")
    assert (tmp_path / "f").read_text() == "mine"


def test_a_figure_that_cannot_be_written_leaves_the_old_one_and_no_temporary(tmp_path, monkeypatch):
    (tmp_path / "c.svg").write_text("old")

    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("longlens.files.os.replace", full)
    with pytest.raises(UserError, match=r"cannot write .*c\.svg: No space left on device: make room"):
        write_figures([chart(line())], tmp_path, formats=["svg"])
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("c.svg", "old")]


def test_without_matplotlib_the_error_has_the_pip_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"drawing figures needs .*pip install 'longlens\[figures\]'"):
        draw(chart(line()))
    with pytest.raises(UserError, match=r"pip install 'longlens\[figures\]'"):
        write_figures([chart(line())], tmp_path / "f")
    assert list(tmp_path.iterdir()) == []
