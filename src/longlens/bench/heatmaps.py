"""Heatmaps of needle grids, from the results of runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longlens.errors import UserError

GRID = "niah_grid"


def write_heatmaps(results: Mapping[str, Mapping[str, Any]], folder: Path) -> list[Path]:
    """A heatmap of each run that has a needle grid.

    Args:
        results: Name of a run -> what `longlens.bench.summary.summarise_run` says of it.
        folder: Where the files go.

    Raises:
        UserError: No run has a needle grid, or matplotlib is not installed.
    """
    from longlens.report.heatmap import write_heatmap

    written: list[Path] = []
    stems: list[str] = []
    for name, result in results.items():
        cells = [
            (batch["length"], part["from"], part["score"])
            for batch in result["tasks"].values()
            if batch["suite"] == GRID and batch["length"] is not None
            for part in batch["depths"]
        ]
        if cells:
            stem = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"
            stems.append(stem)
            stem += f"-{stems.count(stem)}" if stems.count(stem) > 1 else ""
            title = f"{Path(str(result['model'])).name}, needle in a haystack"
            written += write_heatmap(cells, folder, name=f"heatmap-{stem}", title=title)
    if not written:
        raise UserError(f"no run has a needle grid to draw: run {GRID} first, with several --length")
    return written
