"""Writes the page: one self-contained HTML file that makes no network requests."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from longlens.errors import UserError
from longlens.files import replacing
from longlens.keytokens.selection import KeySource
from longlens.metrics.comparison import Difference
from longlens.metrics.corpus import AnswerSpans
from longlens.metrics.cost import CostResult, PolicyCost
from longlens.report.answer import answer
from longlens.report.charts import charts
from longlens.report.documents import PageDocuments, base64_of, embedded
from longlens.report.summary import ReportSummary, summarize_runs
from longlens.scoring.scores import Scores
from longlens.settings.options import KeyRule
from longlens.study.correlation import METRICS, BenchmarkScores

SCRIPTS = ("tokens", "uplot", "pane", "download", "charts", "tables", "cost", "where", "links", "main")
STYLES = ("uplot", "style")
MAX_ROWS = 5000
"""Maximum number of rows in the table of documents."""
GENERATOR = '<meta name="generator" content="longlens">'


def write_report(
    path: str | os.PathLike[str],
    runs: Sequence[Scores],
    *,
    evaluator_scores: Scores | None = None,
    keys: KeySource | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    gamma: float | None = None,
    use_lcl: bool | None = None,
    context: int | None = None,
    stride: int | None = None,
    answers: AnswerSpans | None = None,
    benchmarks: BenchmarkScores | Mapping[str, Mapping[str, float]] | None = None,
    cost: CostResult | None = None,
    by: str | None = None,
    documents: Sequence[str] = (),
    num_documents: int | None = None,
) -> ReportSummary:
    """Writes one self-contained HTML page, atomically; an existing report is replaced.

    Stored documents are read once, one at a time.

    Args:
        path: File to write.
        runs: Scores of one or more models on the same documents; the first is the baseline.
        evaluator_scores: Scores of the evaluator, which selects the key tokens. Without these and keys, the first run
            that has short-context scores is the evaluator, and a note reports it.
        keys: Key tokens, instead of evaluator scores.
        alpha: Threshold of the long-short difference, nats; 2 by default.
        beta: Threshold of the long-context likelihood, nats; -2 by default.
        gamma: Maximum weight in `longppl_soft`; 5 by default.
        use_lcl: False selects by LSD only, without beta.
        context: K to use, if the evaluator has several.
        stride: d to use, if this K has several.
        answers: ``[start, end)`` in characters of the answers, by document id; replaces the stored ones.
        benchmarks: Scores by name of the benchmark and name of the run; or those of
            `longlens.study.benchmarks.join_benchmarks`.
        cost: Lost gain of the other runs relative to the first (`longlens.cost` of the same runs), shown as its own
            view.
        by: A field of the rows of the documents, such as their source; the gain from long context is shown by its
            values.
        documents: Ids of the documents to include with text and tokens.
        num_documents: Otherwise the number of documents to include; None for as many as fit in 10 MB. Numbers always
            cover all documents.

    Returns:
        The data of the page, for `longlens.report.charts.charts`; its ``documents`` are the ids of those with text.

    Raises:
        UserError: The file cannot be written; no runs; a document was not scored; errors of `longlens.compare`.
    """
    path = Path(path)
    check_place(path)
    ids = runs[0].ids if runs else []
    if unknown := sorted(set(documents).difference(ids)):
        raise UserError(f"document {unknown[0]!r} was not scored: expected an id such as one of {list(ids[:3])}")
    with closing(PageDocuments(path, documents, num_documents)) as page:
        summary = summarize_runs(
            runs,
            evaluator_scores=evaluator_scores,
            keys=keys,
            rule=KeyRule(alpha=alpha, beta=beta, gamma=gamma, lcl=use_lcl, context=context, stride=stride),
            answers=answers,
            benchmarks=benchmarks,
            cost=cost,
            by=by,
            page=page,
        )
        with replacing(path) as file:
            # A directory name may contain bytes that are not UTF-8, and a model may be named after the directory.
            file.writelines(piece.encode("utf-8", "replace").decode("utf-8") for piece in render(summary, page))
    return summary


def check_place(path: Path) -> None:
    """Rejects a path where no report can be written, or where another file exists.

    Raises:
        UserError: The parent directory does not exist, or the path exists and is not a report.
    """
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is not a folder: create it, then write {path.name} there")
    if path.exists() and not _is_report(path):
        raise UserError(f"{path} exists and is not a report of longlens: use another file name")


def _is_report(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return GENERATOR.encode() in file.read(4096)


def render(summary: ReportSummary, documents: PageDocuments) -> Iterator[str]:
    """Yields the parts of the page."""
    style = _joined(f"{name}.css" for name in STYLES)
    license = "/*\n" + _joined(["uplot.LICENSE.txt"]) + "\n*/\n"
    script = license + "(() => {\n" + _joined(f"{name}.js" for name in SCRIPTS) + "\n})();\n"
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"number": _number, "interval": _interval, "difference": _difference}
    template = environment.from_string(_joined(["page.html"]))
    return template.generate(
        summary=summary,
        answer=answer(summary),
        titles=METRICS,
        shown=summary.documents,
        generator=Markup(GENERATOR),
        # Files of longlens, which must be in the page exactly as they were hashed.
        style=Markup(style),
        script=Markup(script),
        policy=_content_security_policy(script, style),
        page=embedded(_page_data(summary)),
        documents=documents,
    )


def _joined(names: Iterable[str]) -> str:
    """Concatenates files of longlens."""
    folder = resources.files("longlens.report") / "page"
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)


def _content_security_policy(script: str, style: str) -> str:
    """Allows only the page's own script and style: no requests, no other scripts, no markup from text."""
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


def _page_data(summary: ReportSummary) -> dict[str, Any]:
    """Returns the data for the script of the page, without the documents."""
    settings = None if summary.keys is None else summary.keys.settings
    tables = [run.thresholds for run in summary.runs]
    table = next((table for table in tables if table is not None), None)
    return {
        "runs": [
            {
                "name": run.name,
                "compared": run.result is not None,
                # at the thresholds of the report; with evaluator scores, the sliders use their own values
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
        # the first position of beta is -inf, which JSON does not support: selection without the LCL criterion
        "betas": None if table is None else table.betas[1:].tolist(),
        "documents": list(summary.documents),
        "first": _first(summary),
        "judge": summary.evidence.judge,
        "key_tokens": [asdict(token) for token in summary.evidence.tokens],
        "num_key_tokens": summary.evidence.num_tokens,
        "gains": [summary.runs[place].name for place in summary.evidence.document_gains],
        "rows": _document_rows(summary),
        "num_documents": len(summary.runs[0].scores),
        "charts": [asdict(chart) for chart in charts(summary)],
        "cost": None if summary.cost is None else _cost_data(summary.cost),
    }


def _cost_data(found: CostResult) -> dict[str, Any]:
    """Returns the data of the tables in the view of costs."""
    edges = sorted({(b.above, b.up_to) for p in found.policies for b in p.by_distance}, key=lambda edge: edge[0])
    documents = zip(*(policy.documents for policy in found.policies), strict=True)
    return {
        "edges": edges,
        "rows": [_cost_row(policy, edges) for policy in found.policies],
        "documents": sorted(
            (
                {
                    "id": one[0].id,
                    "keys": one[0].num_key_tokens,
                    "retained": [_rounded(document.retained_gain) for document in one],
                    "lost": [_rounded(document.lost) for document in one],
                }
                for one in documents
            ),
            key=lambda row: -max(row["lost"]),
        )[:MAX_ROWS],
        "tokens": [asdict(token) for token in found.tokens],
    }


def _cost_row(policy: PolicyCost, edges: Sequence[tuple[int, int | None]]) -> dict[str, Any]:
    kept = {(b.above, b.up_to): b.retained_gain for b in policy.by_distance}
    values = ("retained_gain", "bytes_per_token", "ppl", "longppl", "kl", "key_top1_agreement")
    return {
        "name": policy.name,
        "interval": policy.interval,
        "distances": [_rounded(kept.get(edge)) for edge in edges],
        **{name: _rounded(getattr(policy, name)) for name in values},
    }


def _document_rows(summary: ReportSummary) -> list[dict[str, Any]]:
    """Returns one row per document for the table of documents: at most `MAX_ROWS`, those with most key tokens."""
    results = [run.result.documents for run in summary.runs if run.result is not None]
    gains = list(summary.evidence.document_gains.values())
    rows = [
        {
            "id": documents[0].id,
            "tokens": documents[0].num_tokens,
            "keys": documents[0].num_key_tokens,
            "longppl": [_rounded(document.longppl) for document in documents],
            "ppl": [_rounded(document.ppl) for document in documents],
            "gains": [_rounded(own.get(documents[0].id)) for own in gains],
        }
        for documents in zip(*results, strict=True)
    ]
    return sorted(rows, key=lambda row: -(row["keys"] or 0))[:MAX_ROWS]


def _first(summary: ReportSummary) -> int:
    """Returns the index of the document that the page shows first: of those with text, that with most key tokens."""
    assert summary.runs[0].result is not None
    keys = {document.id: document.num_key_tokens or 0 for document in summary.runs[0].result.documents}
    return max(range(len(summary.documents)), key=lambda place: keys[summary.documents[place]], default=0)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _interval(both: tuple[float, float] | None) -> str:
    return "–" if both is None else f"{both[0]:,.3f} to {both[1]:,.3f}"


def _difference(difference: Difference | None) -> tuple[str, str, str]:
    """Returns the difference, its interval, and whether the interval excludes 0."""
    if difference is None:
        return "–", "–", "–"
    needed = difference.documents_to_settle
    verdict = {None: "–", True: "significant", False: "inconclusive"}[difference.significant]
    if difference.significant is False and needed is not None:
        verdict += f"; about {needed:,} documents would make it significant"
    return f"{difference.value:+,.3f}", _interval(difference.interval), verdict
