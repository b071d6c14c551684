"""Tables of results: written to benchmarks/results and into the page of docs/ that shows them, never by hand."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from longlens.study.reproduce import machine as hardware

ROOT = Path(__file__).parent.parent


def machine() -> str:
    """What the numbers were measured on."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))
    return f"{hardware()}, {versions}"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[object]], *, left: int = 1) -> str:
    """A Markdown table whose first ``left`` columns are text; the others are to the right."""
    lines = [
        "| " + " | ".join(columns) + " |",
        "| " + " | ".join(["---"] * left + ["---:"] * (len(columns) - left)) + " |",
        *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def write_table(
    name: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    page: str,
    *,
    by: str | None = None,
    left: int = 1,
) -> None:
    """Writes ``benchmarks/results/NAME.md`` and the block ``<!-- NAME: generated -->`` of a page.

    Args:
        name: Name of the table.
        columns: Its head.
        rows: Its cells.
        page: The page with the block.
        by: Module of `benchmarks` that makes it, where it is not called like the table.
        left: How many of the first columns are text.
    """
    today = datetime.datetime.now(tz=datetime.UTC).date()
    table = markdown(columns, rows, left=left)
    text = f"Measured on {today} with `python -m benchmarks.{by or name}`: {machine()}.\n\n{table}"
    print(text)
    results = ROOT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    (results / f"{name}.md").write_text(text, encoding="utf-8")
    fill_block(page, name, text)


def fill_block(page: str, name: str, text: str) -> None:
    """Puts text between ``<!-- NAME: generated -->`` and ``<!-- end -->`` of a page."""
    path = ROOT / page
    block = re.compile(rf"(<!-- {name}: generated -->\n).*?(<!-- end -->)", re.DOTALL)
    old = path.read_text(encoding="utf-8")
    new, found = block.subn(lambda match: f"{match[1]}{text}{match[2]}", old)
    if not found:
        raise SystemExit(f"{page} has no block <!-- {name}: generated --> ... <!-- end -->")
    path.write_text(new, encoding="utf-8")
