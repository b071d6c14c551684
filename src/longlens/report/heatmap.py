"""Lengths by depths: the map of a needle grid, as PNG and SVG. matplotlib is imported where it is used."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from longlens.errors import UserError
from longlens.report.figures import FORMATS, check_formats, plain, save, style, tilt_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = "cividis"
"""Of matplotlib: perceptually uniform, and the same to the colour-blind (Nuñez, Anderton and Renslow, 2018)."""

_MISSING = {"facecolor": "#F2F2F2", "edgecolor": "#A0A0A0", "hatch": "////", "linewidth": 0.0}
_WITH_NUMBERS = 12
"""Lengths, and depths, up to which each cell has its number; and ticks that an axis has at most."""


class Grid(NamedTuple):
    """Mean scores by depth and length.

    Attributes:
        lengths: All there are, in order.
        depths: All there are, in order.
        means: ``(len(depths), len(lengths))``, in percent; NaN where no sample has a score.
    """

    lengths: list[int]
    depths: list[float]
    means: np.ndarray[tuple[int, int], np.dtype[np.float64]]


def grid(cells: Iterable[tuple[int, float, float | None]]) -> Grid:
    """``means[d, l]`` = mean of the scores of all cells of depth d and length l that have one.

    Args:
        cells: Length in tokens, depth in percent of the text, and score in percent or None where there is none; one for
            each sample.

    Raises:
        UserError: There are none, or a score is not from 0 to 100.
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
    """A matplotlib figure of `grid`: lengths from left to right, depths from the begin of the text down to its end.

    Cells are of equal size, whatever lies between two lengths or depths. A cell without a scored sample is hatched
    grey, which no score looks like.

    Raises:
        UserError: There are no cells, or a score is not from 0 to 100; matplotlib is not installed.
    """
    drawn = grid(cells)
    with style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.0 if len(drawn.depths) <= _WITH_NUMBERS else 4.8))
        if title:
            figure.suptitle(plain(title, 74))
        axes = figure.add_subplot()
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=2)
        _draw_cells(axes, drawn)
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
    """Draws `heatmap` into ``NAME.FORMAT``, which replaces a file of that name; the same cells give the same bytes.

    Args:
        cells: Length in tokens, depth in percent and score in percent or None, one for each sample.
        folder: Where; created if it is missing.
        name: Of the files.
        title: Above the map, and in the metadata of the files.
        caption: In the metadata of the files.
        formats: Of ``png`` and ``svg``.

    Raises:
        UserError: What `heatmap` refuses; a format is unknown, or a file cannot be written.
    """
    check_formats(formats)
    return save(heatmap(cells, title=title), Path(folder), name, title=title, caption=caption, formats=formats)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _draw_cells(axes: Axes, cells: Grid) -> None:
    from matplotlib.patches import Patch, Rectangle

    rows, columns = cells.means.shape
    numbered = max(rows, columns) <= _WITH_NUMBERS
    drawn = axes.pcolormesh(
        np.arange(columns + 1),
        np.arange(rows + 1),
        np.ma.masked_invalid(cells.means),
        cmap=COLOURS,
        vmin=0,
        vmax=100,
    )
    bar = axes.figure.colorbar(drawn, ax=axes, label="mean score, %", ticks=range(0, 101, 20), pad=0.02)
    bar.outline.set_visible(False)
    missing = [(int(row), int(column)) for row, column in np.argwhere(np.isnan(cells.means))]
    look: dict[str, Any] = _MISSING
    for row, column in missing:
        axes.add_patch(Rectangle((column, row), 1, 1, **look))
    if missing:
        axes.figure.legend(
            handles=[Patch(**look)], labels=["no scored sample"], loc="outside lower center", frameon=False
        )
    lines: dict[str, Any] = {"colors": "white", "linewidth": 1.5 if numbered else 0.8}
    axes.hlines(np.arange(1, rows), 0, columns, **lines)
    axes.vlines(np.arange(1, columns), 0, rows, **lines)
    if numbered:
        for (row, column), mean in np.ndenumerate(cells.means):
            if not math.isnan(mean):
                ink = _ink(drawn.to_rgba(np.asarray(mean)))
                axes.text(column + 0.5, row + 0.5, f"{round(mean, 1):g}", ha="center", va="center", color=ink)
    axes.set(xlim=(0, columns), ylim=(rows, 0))


def _set_ticks(axes: Axes, cells: Grid) -> None:
    """At the middle of cells: of each of them where there is room, else of the first, the last and some between."""
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
    """Black or white, whichever stands out more on a colour: by its relative luminance, as WCAG 2 defines contrast."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in rgba[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "white"
