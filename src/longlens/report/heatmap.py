"""Draws heatmaps as PNG and SVG: needle grids (length by depth), and rank correlations between tasks.

matplotlib is imported when needed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from longlens.errors import UserError
from longlens.report.figures import FORMATS, check_formats, plain, save, style, tilt_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = "cividis"
"""A matplotlib colormap: perceptually uniform, also for color-blind readers (Nuñez, Anderton and Renslow, 2018)."""

SIGNED_COLORS = "PuOr"
"""Colormap for values from -1 to 1, white at 0; safe for color-blind readers (Brewer and Harrower, 2003)."""

_MISSING = {"facecolor": "#F2F2F2", "edgecolor": "#A0A0A0", "hatch": "////", "linewidth": 0.0}
_WITH_NUMBERS = 12
"""Maximum number of lengths, and of depths, for which cells show numbers; also the maximum number of ticks."""
_MAX_NAMES = 60
"""Maximum number of task names on an axis."""


class Grid(NamedTuple):
    """Mean scores by depth and length.

    Attributes:
        lengths: All lengths, in ascending order.
        depths: All depths, in ascending order.
        means: ``(len(depths), len(lengths))``, in percent; NaN if no sample has a score.
    """

    lengths: list[int]
    depths: list[float]
    means: np.ndarray[tuple[int, int], np.dtype[np.float64]]


def grid(cells: Iterable[tuple[int, float, float | None]]) -> Grid:
    """Computes ``means[d, l]``, the mean score of all cells of depth d and length l that have a score.

    Args:
        cells: Length in tokens, depth in percent of the text, and score in percent or None if there is no score; one
            for each sample.

    Raises:
        UserError: There are no cells, or a score is not from 0 to 100.
    """
    scores: dict[tuple[float, int], list[float]] = {}
    for length, depth, score in cells:
        own = scores.setdefault((depth, length), [])
        if score is None:
            continue
        if not 0 <= score <= 100:
            raise UserError(f"score={score} at length {length}, depth {depth:g}; expected 0 to 100, or None if missing")
        own.append(score)
    if not scores:
        raise UserError("no cells to draw: give at least one (length, depth, score)")
    depths, lengths = (sorted(set(values)) for values in zip(*scores, strict=True))
    means = [[_mean(scores.get((depth, length), [])) for length in lengths] for depth in depths]
    return Grid([int(length) for length in lengths], depths, np.array(means))


def heatmap(cells: Iterable[tuple[int, float, float | None]], *, title: str = "") -> Figure:
    """Draws a `grid` as a matplotlib figure: lengths from left to right, depths from the start of the text downwards.

    All cells have equal size, whatever the distances between lengths or depths. A cell without a scored sample is
    hatched gray, so that it differs from every score.

    Raises:
        UserError: There are no cells, a score is not from 0 to 100, or matplotlib is not installed.
    """
    drawn = grid(cells)
    with style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.0 if len(drawn.depths) <= _WITH_NUMBERS else 4.8))
        if title:
            figure.suptitle(plain(title, 74))
        axes = figure.add_subplot()
        _plain_axes(axes)
        numbered = max(drawn.means.shape) <= _WITH_NUMBERS
        _draw_cells(axes, drawn.means, _PERCENT, numbered=numbered, missing="no scored sample")
        _set_ticks(axes, drawn)
        return figure


def write_heatmap(
    cells: Iterable[tuple[int, float, float | None]],
    folder: str | os.PathLike[str],
    *,
    name: str = "heatmap",
    title: str = "",
    caption: str = "",
    formats: Sequence[str] = FORMATS,
) -> list[Path]:
    """Draws `heatmap` to ``NAME.FORMAT`` and replaces existing files; equal cells give identical bytes.

    Args:
        cells: Length in tokens, depth in percent and score in percent or None, one for each sample.
        folder: Output directory; created if it does not exist.
        name: Name of the files.
        title: Title above the map, and in the metadata of the files.
        caption: Caption in the metadata of the files.
        formats: Formats, from ``png`` and ``svg``.

    Raises:
        UserError: `heatmap` rejects the cells, a format is unknown, or a file cannot be written.
    """
    check_formats(formats)
    return save(heatmap(cells, title=title), Path(folder), name, title=title, caption=caption, formats=formats)


def correlation_map(matrix: Sequence[Sequence[float | None]], names: Sequence[str], *, title: str = "") -> Figure:
    """Draws pairwise correlations, from -1 to 1, as a matplotlib figure; a cell of None is hatched.

    Args:
        matrix: ``(k, k)``.
        names: Names of its rows and columns, in order.
        title: Title above the map.

    Raises:
        UserError: There are no names, their number differs from the rows or columns, or matplotlib is not installed.
    """
    if not names or len(matrix) != len(names) or any(len(row) != len(names) for row in matrix):
        raise UserError(f"{len(names)} names for {len(matrix)} rows; expected a square matrix, with one name per row")
    cells = np.array([[math.nan if value is None else value for value in row] for row in matrix], dtype=np.float64)
    labels = [plain(name, 40) for name in names]
    numbered = len(names) <= 2 * _WITH_NUMBERS
    with style():
        from matplotlib.figure import Figure

        side = min(16.0, 2.4 + 0.42 * len(names) if numbered else 8.0)
        figure = Figure(figsize=(side + 1.2, side))
        if title:
            figure.suptitle(plain(title, 74))
        axes = figure.add_subplot()
        _plain_axes(axes)
        axes.set_aspect("equal")
        _draw_cells(axes, cells, _SIGNED, numbered=numbered, missing="no correlation")
        places = [place + 0.5 for place in range(len(names))]
        if len(names) > _MAX_NAMES:  # not enough space for all names
            step = math.ceil(len(names) / _MAX_NAMES)
            places, labels = places[::step], labels[::step]
        axes.set_xticks(places, labels)
        axes.set_yticks(places, labels)
        tilt_labels(axes)
        return figure


def write_correlation_map(
    matrix: Sequence[Sequence[float | None]],
    names: Sequence[str],
    folder: str | os.PathLike[str],
    *,
    name: str = "tasks",
    title: str = "",
    caption: str = "",
    formats: Sequence[str] = FORMATS,
) -> list[Path]:
    """Draws `correlation_map` to ``NAME.FORMAT`` and replaces existing files.

    Args:
        matrix: ``(k, k)``.
        names: Names of its rows and columns.
        folder: Output directory; created if it does not exist.
        name: Name of the files.
        title: Title above the map, and in the metadata of the files.
        caption: Caption in the metadata of the files.
        formats: Formats, from ``png`` and ``svg``.

    Raises:
        UserError: `correlation_map` rejects the matrix, a format is unknown, or a file cannot be written.
    """
    check_formats(formats)
    drawn = correlation_map(matrix, names, title=title)
    return save(drawn, Path(folder), name, title=title, caption=caption, formats=formats)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


class _Look(NamedTuple):
    """How cells are colored and numbered."""

    low: float
    high: float
    ticks: Sequence[float]
    label: str
    colors: str
    number: Callable[[float], str]


_PERCENT = _Look(
    low=0,
    high=100,
    ticks=range(0, 101, 20),
    label="mean score, %",
    colors=COLORS,
    number=lambda value: f"{round(value, 1):g}",
)
_SIGNED = _Look(
    low=-1,
    high=1,
    ticks=(-1, -0.5, 0, 0.5, 1),
    label="Spearman's rho over models",
    colors=SIGNED_COLORS,
    number=lambda value: f"{value:.2f}",
)


def _plain_axes(axes: Axes) -> None:
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=2)


def _draw_cells(
    axes: Axes, cells: np.ndarray[tuple[int, int], np.dtype[np.float64]], look: _Look, *, numbered: bool, missing: str
) -> None:
    """Draws cells of equal size, the first row on top; NaN cells are hatched, with the legend entry ``missing``."""
    from matplotlib.patches import Patch, Rectangle

    rows, columns = cells.shape
    drawn = axes.pcolormesh(
        np.arange(columns + 1),
        np.arange(rows + 1),
        np.ma.masked_invalid(cells),
        cmap=look.colors,
        vmin=look.low,
        vmax=look.high,
    )
    bar = axes.figure.colorbar(drawn, ax=axes, label=look.label, ticks=look.ticks, pad=0.02)
    bar.outline.set_visible(False)
    hatched: dict[str, Any] = _MISSING
    without = [(int(row), int(column)) for row, column in np.argwhere(np.isnan(cells))]
    for row, column in without:
        axes.add_patch(Rectangle((column, row), 1, 1, **hatched))
    if without:
        axes.figure.legend(handles=[Patch(**hatched)], labels=[missing], loc="outside lower center", frameon=False)
    lines: dict[str, Any] = {"colors": "white", "linewidth": 1.5 if numbered else 0.8}
    axes.hlines(np.arange(1, rows), 0, columns, **lines)
    axes.vlines(np.arange(1, columns), 0, rows, **lines)
    if numbered:
        for (row, column), value in np.ndenumerate(cells):
            if not math.isnan(value):
                ink = _ink(drawn.to_rgba(np.asarray(value)))
                axes.text(column + 0.5, row + 0.5, look.number(value), ha="center", va="center", color=ink)
    axes.set(xlim=(0, columns), ylim=(rows, 0))


def _set_ticks(axes: Axes, cells: Grid) -> None:
    """Sets ticks at the centers of cells: all of them if there is space, else the first, the last and some between."""
    for axis, what, names in (
        (axes.xaxis, "length, tokens", [f"{length:,}" for length in cells.lengths]),
        (axes.yaxis, "depth, % of the text", [f"{depth:.4g}" for depth in cells.depths]),
    ):
        ticks = min(len(names), _WITH_NUMBERS)
        places = [round((len(names) - 1) * tick / max(1, ticks - 1)) for tick in range(ticks)]
        axis.set_ticks([place + 0.5 for place in places], [names[place] for place in places])
        axis.set_label_text(what)
    if sum(len(label.get_text()) for label in axes.get_xticklabels()) > 60:
        tilt_labels(axes)


def _ink(rgba: Any) -> str:
    """Returns black or white, whichever has more contrast with the color as defined by WCAG 2 (relative luminance)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in rgba[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "white"
