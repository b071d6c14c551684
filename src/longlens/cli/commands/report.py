"""``longlens report``."""

from __future__ import annotations

import webbrowser
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longlens.cli import options as o
from longlens.settings.options import KeyRule

if TYPE_CHECKING:
    from longlens.scoring.scores import Scores
    from longlens.study.correlate import OpenedRun


def report(
    command: typer.Context,
    *,
    scores: Annotated[
        list[Path],
        typer.Argument(help="Run directories of longlens score or longlens longppl; the first is the baseline."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file to write; replaces an existing report.")],
    evaluator_scores: o.EvaluatorScores = None,
    keys: o.Keys = None,
    rule: KeyRule,
    answers: o.Answers = None,
    benchmarks: Annotated[
        list[Path] | None,
        typer.Option(
            help="Run directory of longlens bench run, or a CSV file (model, benchmarks); may be repeated.",
            metavar="RUN|FILE",
        ),
    ] = None,
    document: Annotated[
        list[str] | None, typer.Option(help="Id of a document to include with its text; may be repeated.")
    ] = None,
    num_documents: Annotated[
        int | None, typer.Option(help="Number of documents to include.  [default: as many as fit in 10 MB]")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(help="Field of the documents' rows, such as their source; shows the gain for each of its values."),
    ] = None,
    figures: Annotated[Path | None, typer.Option(help="Directory for the charts as PNG and SVG.")] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the default browser.")] = False,
    as_json: o.Json = False,
) -> None:
    """Write a self-contained HTML report from stored scores. Texts with key tokens, and charts; no model is run.

    Example: longlens report scores/smollm2 --evaluator-scores scores/gemma3 -o report.html
    """
    from longlens.cli.console import message, print_json, printable, say, without_warnings
    from longlens.errors import UserError, require
    from longlens.report import write_report
    from longlens.report.answer import answer
    from longlens.report.charts import charts
    from longlens.report.figures import check_folder, write_figures
    from longlens.report.html import check_place
    from longlens.study.benchmarks import join_benchmarks
    from longlens.study.correlate import open_run

    if document:
        o.refuse(command, "with --document, which selects the documents to show", "num_documents")
    if num_documents is not None and num_documents < 1:
        raise UserError(f"--num-documents is {num_documents}; expected at least 1")
    if figures is not None:
        require("matplotlib", extra="figures", purpose="--figures")
        check_folder(figures)
    check_place(out)
    opened = [open_run(path, rule.context, rule.stride) for path in scores]
    if evaluator_scores is None and keys is None:
        found, rule = _found(opened, rule)
    else:
        found = None
    chosen = o.key_source(evaluator_scores, keys, rule, answers, runs=scores)
    if found is not None:
        chosen["evaluator_scores"] = found
    runs = [each.scores for each in opened]
    with without_warnings():
        summary = write_report(
            out,
            runs,
            benchmarks=join_benchmarks(benchmarks, runs) if benchmarks else None,
            documents=document or (),
            num_documents=num_documents,
            by=by,
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
    if open_page:
        webbrowser.open(out.resolve().as_uri())


def _found(opened: list[OpenedRun], rule: KeyRule) -> tuple[Scores | None, KeyRule]:
    """Returns evaluator and thresholds of run directories of longlens longppl, used if no other evaluator is set.

    Raises:
        UserError: Two run directories have different evaluators.
    """
    from longlens.errors import UserError
    from longlens.scoring.scores import same_model

    made = [(each, each.evaluator) for each in opened if each.evaluator is not None]
    if not made:
        return None, rule
    first, evaluator = made[0]
    for other, its_evaluator in made[1:]:
        if not same_model(evaluator, its_evaluator):
            raise UserError(
                f"{first.folder} and {other.folder} have different evaluators: select one with --evaluator-scores "
                f"{first.folder}/evaluator"
            )
    used = first.settings
    if used is not None and rule.alpha is None and rule.beta is None and rule.lcl is None:
        rule = replace(rule, alpha=used["alpha"], **({"beta": used["beta"]} if used["lcl"] else {"lcl": False}))
    return evaluator, rule
