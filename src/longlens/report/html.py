"""The page: one HTML file that holds everything it needs and asks no network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from longlens.errors import UserError
from longlens.files import replacing
from longlens.metrics.comparison import Difference
from longlens.report.charts import charts
from longlens.report.documents import base64_of, choose_documents, page_documents
from longlens.report.summary import Summary

SCRIPTS = ("tokens.js", "pane.js", "charts.js", "main.js")
GENERATOR = '<meta name="generator" content="longlens">'
MAX_BYTES = 7_000_000
"""What the documents may take of a page by default, so that it stays below 10 MB."""


def write_report(
    path: Path, summary: Summary, *, documents: Sequence[str] = (), num_documents: int | None = None
) -> list[str]:
    """Writes the page; the file appears whole or not at all, and replaces an older one.

    Args:
        path: Where to.
        summary: What it shows.
        documents: Ids of the documents whose texts and tokens are shown.
        num_documents: Else how many of the first ones; None for as many as keep the page below 10 MB. Numbers are of
            all documents in any case.

    Returns:
        Ids of the documents that are shown.

    Raises:
        UserError: The file cannot be written, or a document was not scored.
    """
    path = Path(path)
    check_place(path)
    try:
        shown = choose_documents(summary, documents, num_documents, MAX_BYTES)
    except KeyError as error:
        raise UserError(f"document {error.args[0]!r} was not scored; see the ids with --per-document") from error
    with replacing(path) as file:
        # A folder's name may hold bytes that are no UTF-8, and a model may be called after it.
        file.writelines(piece.encode("utf-8", "replace").decode("utf-8") for piece in render(summary, shown))
    return shown


def check_place(path: Path) -> None:
    """Refuses a place where no report can be written, or where something else is.

    Raises:
        UserError: Its folder does not exist, or it exists and is no report.
    """
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is not a folder: create it, then write {path.name} there")
    if path.exists() and not _is_report(path):
        raise UserError(f"{path} exists and is no report of longlens: name another file")


def _is_report(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return GENERATOR.encode() in file.read(4096)


def render(summary: Summary, shown: Sequence[str]) -> Iterator[str]:
    """The page, piece by piece, with the documents that have these ids."""
    folder = resources.files("longlens.report") / "page"
    style = (folder / "style.css").read_text(encoding="utf-8")
    script = "(() => {\n" + "\n".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS) + "\n})();\n"
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"number": _number, "interval": _interval, "difference": _difference}
    template = environment.from_string((folder / "page.html").read_text(encoding="utf-8"))
    return template.generate(
        summary=summary,
        shown=shown,
        generator=Markup(GENERATOR),
        # Our own files, which have to stand in the page as they were hashed.
        style=Markup(style),
        script=Markup(script),
        policy=content_security_policy(script, style),
        page=embedded(page_data(summary, shown)),
        documents=(embedded(document) for document in page_documents(summary, shown)),
    )


def content_security_policy(script: str, style: str) -> str:
    """Lets the page's own script and style run, and nothing else: no request, no other script, no markup from text."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src '{_hash(script)}'",
            f"style-src '{_hash(style)}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
        ]
    )


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode("ascii")


def embedded(content: Any) -> Markup:
    r"""JSON for the inside of a ``<script type="application/json">``: ASCII, with ``<``, ``>`` and ``&`` as ``\u003c``…

    So neither ``</script>`` nor ``<!--`` can be in it, whatever the content is.
    """
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def page_data(summary: Summary, shown: Sequence[str]) -> dict[str, Any]:
    """What the script of the page works with, but for the documents."""
    settings = None if summary.keys is None else summary.keys.settings
    tables = [run.thresholds for run in summary.runs]
    table = next((table for table in tables if table is not None), None)
    return {
        "runs": [
            {
                "name": run.name,
                "compared": run.result is not None,
                # at the thresholds of the report; with evaluator scores the sliders have their own
                "result": None
                if run.result is None
                else {"value": run.result.longppl, "tokens": run.result.num_key_tokens},
                "thresholds": None
                if run.thresholds is None
                else {
                    "logprob": base64_of(run.thresholds.logprob, "<f8"),
                    "tokens": base64_of(run.thresholds.num_tokens, "<i4"),
                },
            }
            for run in summary.runs
        ],
        "evaluator": None if summary.evaluator is None else list(summary.runs).index(summary.evaluator),
        "settings": None if settings is None else dict(settings),
        "alphas": None if table is None else table.alphas.tolist(),
        # the first position of beta is -inf, which JSON has not: without the second criterion
        "betas": None if table is None else table.betas[1:].tolist(),
        "documents": list(shown),
        "num_documents": len(summary.runs[0].scores),
        "charts": [asdict(chart) for chart in charts(summary)],
    }


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _interval(both: tuple[float, float] | None) -> str:
    return "–" if both is None else f"{both[0]:,.3f} to {both[1]:,.3f}"


def _difference(difference: Difference | None) -> tuple[str, str, str]:
    """The difference, its interval, and whether that excludes 0."""
    if difference is None:
        return "–", "–", "–"
    needed = difference.documents_to_settle
    verdict = {None: "–", True: "significant", False: "inconclusive"}[difference.significant]
    if difference.significant is False and needed is not None:
        verdict += f"; about {needed:,} documents would make it significant"
    return f"{difference.value:+,.3f}", _interval(difference.interval), verdict
