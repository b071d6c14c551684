"""Draws the charts of a report as PNG and SVG for a paper, with matplotlib, which is imported when needed."""

from __future__ import annotations

import itertools
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longlens.errors import UserError, require
from longlens.files import cannot_write, replacing
from longlens.report.charts import Axis, Chart, Series, Values

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import BboxBase

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
"""Colors by index, modulo 8: the palette of Okabe and Ito (2008) for color-blind readers, dark colors first."""

FORMATS = ("png", "svg")

_MARKERS = "os^DvPX*"
_HATCHES = ("", "////", "\\\\\\\\", "xxxx", "----", "||||", "++++", "..")
_INCHES = (6.4, 4.0)
_LEGEND_ROW_INCHES = 0.17
_LEADER: dict[str, Any] = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.5}
_STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "errorbar.capsize": 2.5,
    "figure.constrained_layout.use": True,
    "figure.dpi": 150,
    "figure.titlesize": 11,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
    "svg.fonttype": "none",
    "svg.hashsalt": "longlens",
    "text.parse_math": False,
}


def write_figures(
    charts: Sequence[Chart], folder: str | os.PathLike[str], *, formats: Sequence[str] = FORMATS
) -> list[Path]:
    """Draws charts to ``CHART.name.FORMAT`` and replaces existing files; equal charts give identical bytes.

    A second chart with the same name gets the suffix ``-2``. Titles and captions are in the metadata of the files.

    Args:
        charts: Charts to draw.
        folder: Output directory; created if it does not exist.
        formats: Formats, from ``png`` and ``svg``.

    Raises:
        UserError: matplotlib is not installed, a format is unknown, or a file cannot be written.
    """
    check_formats(formats)
    folder = Path(folder)
    check_folder(folder)
    written = []
    with style():
        _make(folder)
        for chart, name in zip(charts, _file_names(charts), strict=True):
            written += save(draw(chart), folder, name, title=chart.title, caption=chart.caption, formats=formats)
    return written


def check_folder(folder: Path) -> None:
    """Rejects an output directory whose parent directory does not exist."""
    if not folder.parent.is_dir():
        raise UserError(f"{folder.parent} is not a folder: create it, then write {folder.name} there")


def save(
    figure: Figure, folder: Path, name: str, *, title: str, caption: str, formats: Sequence[str] = FORMATS
) -> list[Path]:
    """Writes a figure as ``NAME.FORMAT`` and replaces existing files; equal figures give identical bytes.

    Args:
        figure: A matplotlib figure.
        folder: Output directory; created if it does not exist.
        name: Name of the files.
        title: Title in the metadata of the files.
        caption: Caption in the metadata of the files.
        formats: Formats, from ``png`` and ``svg``.

    Raises:
        UserError: A format is unknown, or a file cannot be written.
    """
    check_formats(formats)
    about = {"Title": plain(title), "Description": plain(caption)}
    # Remove what changes with the date or with the version of matplotlib.
    unstable: dict[str, dict[str, None]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    written = []
    with style():
        _make(folder)
        for kind in dict.fromkeys(formats):
            path = folder / f"{name}.{kind}"
            with replacing(path) as file:
                figure.savefig(file.buffer, format=kind, metadata={**about, **unstable[kind]})
            written.append(path)
    return written


def check_formats(formats: Sequence[str]) -> None:
    """Rejects formats that are not in `FORMATS`."""
    if unknown := [name for name in formats if name not in FORMATS]:
        raise UserError(f"format {unknown[0]!r} is unknown: expected one of {', '.join(FORMATS)}")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def draw(chart: Chart) -> Figure:
    """Draws a chart as a matplotlib figure of 6.4 x 4 inches, higher if the legend is long.

    Names are drawn literally, never as formulas: whitespace becomes one blank, other control characters are escaped,
    and long names are truncated in the middle. A character that DejaVu Sans lacks is a box in PNG, unchanged in SVG.

    Raises:
        UserError: matplotlib is not installed.
    """
    with style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=_INCHES)
        figure.suptitle(plain(chart.title, 74))
        axes = figure.add_subplot()
        axes.set_xlabel(plain(chart.x.label, 80))
        axes.set_ylabel(plain(chart.y.label, 48))
        if chart.x.log:
            axes.set_xscale("log", base=2)
        handles = _draw_series(axes, chart.series)
        for (x0, y0), (x1, y1) in chart.guides or ():
            axes.plot([x0, x1], [y0, y1], color="#777777", linestyle=":", linewidth=1, zorder=0)
        for mark in chart.marks:
            # The marker at the top identifies the series if colors cannot be distinguished.
            color, top = _color(mark.color), axes.get_xaxis_transform()
            axes.axvline(mark.x, color=color, linestyle=":", linewidth=1.2, zorder=1)
            axes.plot(mark.x, 1, _turn(_MARKERS, mark.color), color=color, transform=top, markersize=4, clip_on=False)
        _set_ticks(axes, chart.x, [x for series in chart.series for x in series.x])
        if not any(math.isfinite(y) for series in chart.series for y in _numbers(series.y)):
            axes.set_yticks([])
            axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", color="#666666")
        if any(series.labels for series in chart.series):
            axes.margins(y=0.12)  # Space for names above the highest point.
        if len(handles) > 1:
            _add_legend(figure, handles, [plain(series.name, 56) for series in chart.series])
        figure.draw_without_rendering()  # From here on, positions in pixels are known.
        _label_points(axes, chart.series)
        _label_marks(axes, chart)
        return figure


@contextmanager
def style() -> Iterator[None]:
    """Sets the style of all figures, whatever the user's matplotlibrc, and hides warnings about missing glyphs."""
    require("matplotlib", extra="figures", purpose="drawing figures")
    import matplotlib.style

    with warnings.catch_warnings(), matplotlib.style.context(_STYLE, after_reset=True):
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from|Matplotlib currently does not support")
        yield


def _draw_series(axes: Axes, all_series: Sequence[Series]) -> list[Artist]:
    """Draws all series, and returns the legend handle of each."""
    num_bars = sum(series.style == "bars" for series in all_series)
    has_points = any(series.style == "points" for series in all_series)
    handles: list[Artist] = []
    bars = 0
    for series in all_series:
        if series.style == "bars":
            width = 0.8 / num_bars
            handles.append(_draw_bars(axes, series, (bars + 0.5) * width - 0.4, width))
            bars += 1
        else:
            handles.append(_draw_line(axes, series, marked=not has_points))
    return handles


def _draw_bars(axes: Axes, series: Series, shift: float, width: float) -> Artist:
    from matplotlib.patches import Patch

    look: dict[str, Any] = {
        "facecolor": _color(series.color),
        "edgecolor": "white",
        "hatch": _turn(_HATCHES, series.color),
        "linewidth": 0.4,
    }
    there = [(x + shift, y) for x, y in zip(series.x, _numbers(series.y), strict=True) if math.isfinite(y)]
    axes.bar([x for x, _ in there], [y for _, y in there], width, **look)
    _draw_intervals(axes, series, shift, "#333333")
    return Patch(**look)


def _draw_intervals(axes: Axes, series: Series, shift: float, color: str) -> None:
    if series.low is None or series.high is None:
        return
    both = list(zip(_numbers(series.low), _numbers(series.high), strict=True))
    # The bar is centered on the interval: a value may be outside of its interval.
    middle, half = [(low + high) / 2 for low, high in both], [abs(high - low) / 2 for low, high in both]
    axes.errorbar([x + shift for x in series.x], middle, half, fmt="none", ecolor=color, elinewidth=1)


def _draw_line(axes: Axes, series: Series, *, marked: bool) -> Artist:
    """Draws a line or points; lines also have markers (`marked`) unless they could be confused with points."""
    color, y = _color(series.color), _numbers(series.y)
    points = series.style == "points"
    _draw_intervals(axes, series, 0, color)
    (line,) = axes.plot(
        series.x,
        y,
        color=color,
        linestyle={"points": "none", "dashed": (0, (4, 2))}.get(series.style, "-"),
        marker=_turn(_MARKERS, series.color) if points or marked else None,
        markersize=5.5 if points else 3.5,
        markerfacecolor="white" if series.style == "dashed" else color,
        markeredgecolor=_ink(series.color) if points else color,
        markeredgewidth=0.8,
    )
    return line


def _set_ticks(axes: Axes, axis: Axis, xs: Sequence[float]) -> None:
    axes.update_datalim([(x, 0) for x in xs], updatey=False)  # Include positions without a value.
    axes.autoscale_view(scaley=False)
    if axis.categories:
        places: list[float] = list(range(len(axis.categories)))
        labels = [plain(name, 16) for name in axis.categories]
        axes.set_xlim(-0.5, len(places) - 0.5)
    elif axis.log:
        places = sorted({x for x in xs if x > 0})
        labels = [f"{x:.12g}" for x in places]
        axes.xaxis.minorticks_off()
    else:
        axes.grid(axis="x")
        return
    crowded = len(places) * max(map(len, labels), default=0) > 90
    axes.set_xticks(places, labels)
    if crowded:
        tilt_labels(axes)


def tilt_labels(axes: Axes) -> None:
    """Tilts the labels of the x axis if they are too long to fit next to each other."""
    for label in axes.get_xticklabels():
        label.set(rotation=35, horizontalalignment="right", rotation_mode="anchor")


def _add_legend(figure: Figure, handles: Sequence[Artist], names: Sequence[str]) -> None:
    """Adds a legend below the axes, with as many columns as fit; the figure grows with the number of rows."""
    for columns in (4, 3, 2, 1):
        rows = math.ceil(len(names) / columns)
        # Names are set afterwards: matplotlib ignores labels that start with "_".
        legend = figure.legend(
            handles,
            ["name"] * len(names),
            loc="outside lower center",
            ncols=math.ceil(len(names) / rows),
            frameon=False,
            handlelength=2.6,
        )
        for text, name in zip(legend.get_texts(), names, strict=True):
            text.set_text(name)
        if columns == 1 or legend.get_window_extent().width < figure.bbox.width:
            break
        legend.remove()
    figure.set_figheight(_INCHES[1] + _LEGEND_ROW_INCHES * max(0, rows - 2))


def _label_points(axes: Axes, all_series: Sequence[Series]) -> None:
    """Labels points at the nearest free position, with a thin line to the point if the label is further away."""
    from matplotlib.transforms import Bbox

    named = [
        (x, y, plain(label, 32))
        for series in all_series
        for x, y, label in zip(series.x, _numbers(series.y), series.labels or (), strict=False)
        if math.isfinite(y)
    ]
    pixels = [axes.transData.transform((x, y)) for x, y, _ in named]
    taken = [Bbox.from_extents(x - 7, y - 7, x + 7, y + 7) for x, y in pixels]
    point = axes.figure.dpi / 72
    for own, (x, y, label) in enumerate(named):
        measured = axes.text(0, 0, label)
        width, height = measured.get_window_extent().size
        measured.remove()
        others = [*taken[:own], *taken[own + 1 :]]
        boxes = {}
        for up, right in itertools.product((0, 9, -9, 18, -18, 27, -27), (6, -6)):
            left, middle = pixels[own] + (right * point - width * (right < 0), up * point)
            boxes[right, up] = Bbox.from_bounds(left, middle - height / 2, width, height)
        free = [place for place, box in boxes.items() if _inside(box, axes.bbox) and not box.count_overlaps(others)]
        right, up = free[0] if free else (6, 0)
        axes.annotate(
            label,
            (x, y),
            xytext=(right, up),
            textcoords="offset points",
            ha="left" if right > 0 else "right",
            va="center",
            color="#333333",
            arrowprops=None if abs(up) <= 9 else {**_LEADER, "relpos": (0 if right > 0 else 1, 0.5)},
        )
        taken.append(boxes[right, up])


def _inside(box: BboxBase, bounds: BboxBase) -> bool:
    return bool(bounds.x0 <= box.x0 and box.x1 <= bounds.x1 and bounds.y0 <= box.y0 and box.y1 <= bounds.y1)


def _label_marks(axes: Axes, chart: Chart) -> None:
    """Adds labels above the axes, in as many rows as needed to avoid overlap."""
    row_ends: list[float] = []
    for mark in sorted(chart.marks, key=lambda mark: mark.x):
        text = axes.annotate(
            plain(mark.label, 40),
            (mark.x, 1),
            xycoords=axes.get_xaxis_transform(),
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            color=_ink(mark.color),
            annotation_clip=False,
        )
        box = text.get_window_extent()
        shift = max(0.0, axes.bbox.x0 - box.x0) - max(0.0, box.x1 - axes.bbox.x1)
        row = next((row for row, end in enumerate(row_ends) if box.x0 + shift > end), len(row_ends))
        row_ends[row : row + 1] = [box.x1 + shift + 10]
        text.set_position((shift * 72 / axes.figure.dpi, 5 + 11 * row))


def _file_names(charts: Sequence[Chart]) -> list[str]:
    """Returns a file name for each chart that is valid on any file system; names are unique, ignoring case."""
    names: list[str] = []
    for chart in charts:
        clean = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in chart.name)
        clean = clean.lstrip(".")[:100] or "chart"
        name, number = clean, 1
        while name.lower() in map(str.lower, names):
            number += 1
            name = f"{clean}-{number}"
        names.append(name)
    return names


def plain(text: str, most: int | None = None) -> str:
    """Makes a text one line that is valid in XML and matplotlib, truncated in the middle to `most` characters."""
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    if most is None or len(line) <= most:
        return line
    tail = (most - 1) // 2
    return f"{line[: most - 1 - tail]}…{line[-tail:]}"


def _numbers(values: Values) -> list[float]:
    return [value if value is not None and math.isfinite(value) else math.nan for value in values]


def _color(index: int) -> str:
    return PALETTE[index % len(PALETTE)]


def _turn(looks: Sequence[str], index: int) -> str:
    """Returns a marker or hatch; when colors repeat, these shift by one, so that the ninth series is distinct."""
    return looks[(index + index // len(PALETTE)) % len(looks)]


def _ink(index: int) -> tuple[float, ...]:
    """Returns the color, darkened if needed for text on white."""
    from matplotlib.colors import to_rgb

    return tuple(0.55 * part for part in to_rgb(_color(index)))
