"""Tables of results: written to benchmarks/results and into the page of docs/ that shows them, never by hand."""

from __future__ import annotations

import datetime
import os
import platform
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent


def machine() -> str:
    """What the numbers were measured on."""
    import torch

    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} cores ({model[1] if model else platform.machine()}), {gpu}, {versions}"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [
        "| " + " | ".join(columns) + " |",
        "| " + " | ".join(["---"] + ["---:"] * (len(columns) - 1)) + " |",
        *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def write_table(
    name: str, columns: Sequence[str], rows: Sequence[Sequence[object]], page: str, *, by: str | None = None
) -> None:
    """Writes ``benchmarks/results/NAME.md`` and the block ``<!-- NAME: generated -->`` of a page.

    Args:
        name: Of the table.
        columns: Its head.
        rows: Its cells.
        page: The page with the block.
        by: Module of `benchmarks` that makes it, where it is not called like the table.
    """
    today = datetime.datetime.now(tz=datetime.UTC).date()
    text = f"Measured on {today} with `python -m benchmarks.{by or name}`: {machine()}.\n\n{markdown(columns, rows)}"
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
