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
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return f"{os.cpu_count()} cores ({model[1] if model else platform.machine()}), no GPU, {versions}"


def write_table(name: str, columns: Sequence[str], rows: Sequence[Sequence[object]], page: str) -> None:
    """Writes ``benchmarks/results/NAME.md`` and the block ``<!-- NAME: generated -->`` of a page."""
    today = datetime.datetime.now(tz=datetime.timezone.utc).date()
    lines = [
        f"Measured on {today} with `python -m benchmarks.{name}`: {machine()}.",
        "",
        "| " + " | ".join(columns) + " |",
        "| " + " | ".join(["---"] + ["---:"] * (len(columns) - 1)) + " |",
        *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows),
    ]
    text = "\n".join(lines) + "\n"
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
