"""``longlens report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longlens.cli import options as o
from longlens.settings.options import KeyRule


def report(
    command: typer.Context,
    *,
    scores: Annotated[list[Path], typer.Argument(help="Run folders of longlens score; the first is the baseline.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page; an older report there is replaced.")],
    evaluator_scores: o.EvaluatorScores = None,
    keys: o.Keys = None,
    rule: KeyRule,
    answers: o.Answers = None,
    benchmarks: Annotated[
        list[Path] | None,
        typer.Option(
            help="A folder of longlens bench run, or a CSV (model, benchmarks); may be repeated.", metavar="RUN|FILE"
        ),
    ] = None,
    document: Annotated[
        list[str] | None, typer.Option(help="Id of a document to show with its text; may be repeated.")
    ] = None,
    num_documents: Annotated[
        int | None, typer.Option(help="Number of documents shown.  [default: as many as keep it below 10 MB]")
    ] = None,
    figures: Annotated[Path | None, typer.Option(help="Folder for the charts as PNG and SVG.")] = None,
    as_json: o.Json = False,
) -> None:
    """Write one self-contained HTML page from stored scores. The text with its key tokens, and charts; no model is run.

    Example: longlens report scores/smollm2 --evaluator-scores scores/gemma3 -o report.html
    """
    from longlens.cli.console import message, print_json, printable, say, without_warnings
    from longlens.errors import UserError, require
    from longlens.report import write_report
    from longlens.report.answer import answer
    from longlens.report.charts import charts
    from longlens.report.figures import check_folder, write_figures
    from longlens.report.html import check_place
    from longlens.scoring.reader import open_scores
    from longlens.study.benchmarks import join_benchmarks

    if document:
        o.refuse(command, "with --document, which names the documents to show", "num_documents")
    if num_documents is not None and num_documents < 1:
        raise UserError(f"--num-documents is {num_documents}, expected 1 or more")
    if figures is not None:
        require("matplotlib", extra="figures", purpose="--figures")
        check_folder(figures)
    check_place(out)
    chosen = o.key_source(evaluator_scores, keys, rule, answers)
    runs = [open_scores(path) for path in scores]
    with without_warnings():
        summary = write_report(
            out,
            runs,
            benchmarks=join_benchmarks(benchmarks, runs) if benchmarks else None,
            documents=document or (),
            num_documents=num_documents,
            **chosen,
        )
    drawn = [] if figures is None else write_figures(charts(summary), figures)
    for note in summary.notes:
        say(f"note: {message(note)}")
    said = [str(sentence) for sentence in answer(summary)]
    if as_json:
        print_json(
            {
                "report": str(out),
                "documents": summary.documents,
                "figures": [str(path) for path in drawn],
                "answer": said,
                **summary.to_json(),
            }
        )
        return
    for sentence in said:
        print(printable(sentence))
    num_shown = len(summary.documents)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, {num_shown} of {len(runs[0])} documents with their text")
    for path in drawn:
        print(path)
