"""``longlens perplexity``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longlens.cli import options as o
from longlens.settings.options import KeyRule

MODELS_AS_ROWS = 8
"""Minimum number of models for which the table has one row per model instead of one column."""

if TYPE_CHECKING:
    from longlens.metrics.longppl import PerplexityResult


def perplexity(
    *,
    scores: Annotated[list[Path], typer.Argument(help="Run directories of longlens score.")],
    evaluator_scores: o.EvaluatorScores = None,
    keys: o.Keys = None,
    rule: KeyRule,
    answers: o.Answers = None,
    ngram: Annotated[
        bool, typer.Option("--ngram", help="Also compute perplexity on repeated 3-grams (appendix B.7); slow.")
    ] = False,
    per_document: o.PerDocument = False,
    log_to: o.LogTo = None,
    as_json: o.Json = False,
) -> None:
    """Compute perplexity, LongPPL and LongPPL-soft from stored scores. No model is run.

    Example: longlens perplexity scores/smollm2 --evaluator-scores scores/gemma3
    """
    from longlens.cli.console import print_json, without_warnings
    from longlens.cli.next_step import after_results
    from longlens.cli.tracked import tracked_perplexity
    from longlens.metrics.longppl import perplexity as compute
    from longlens.scoring.reader import open_scores
    from longlens.scoring.scores import names_of
    from longlens.tracking import check_trackers, log_runs

    check_trackers(log_to or [])
    chosen = o.key_source(evaluator_scores, keys, rule, answers, runs=scores)
    with without_warnings():
        runs = [open_scores(path) for path in scores]
        results = [compute(run, ngram=ngram, **chosen) for run in runs]
    if log_to:
        log_runs(log_to, tracked_perplexity(results, names_of(runs), "perplexity"))
    if as_json:
        listed = [result.to_json(per_document=per_document) for result in results]
        print_json(listed[0] if len(listed) == 1 else {"schema_version": 1, "results": listed})
    else:
        print_results(results, per_document=per_document, names=names_of(runs))
        after_results(scores, evaluator_scores, keys, rule, compares=False)


def print_results(
    results: Sequence[PerplexityResult], *, per_document: bool = False, names: Sequence[str] | None = None
) -> None:
    """Prints the results as tables, and their warnings on stderr. The models' names are the default names."""
    from longlens.cli.console import interval, message, number, print_table, say

    names = [result.model for result in results] if names is None else names
    rows: list[tuple[str, list[str]]] = [
        ("PPL", [number(r.ppl) for r in results]),
        ("  95 % interval", [interval(r.intervals["ppl"]) for r in results]),
        ("LongPPL", [number(r.longppl) for r in results]),
        ("  95 % interval", [interval(r.intervals["longppl"]) for r in results]),
        ("LongPPL-soft", [number(r.longppl_soft) for r in results]),
        ("  95 % interval", [interval(r.intervals["longppl_soft"]) for r in results]),
        ("bits per character", [number(r.bits_per_character) for r in results]),
        ("PPL on tokens from K on", [number(r.ppl_from_context) for r in results]),
        ("PPL on re-occurring 3-grams", [number(r.ppl_ngram) for r in results]),
        ("PPL on answers", [number(r.ppl_answers) for r in results]),
        ("PPL on the rest", [number(r.ppl_rest) for r in results]),
        ("tokens", [number(r.num_tokens, 0) for r in results]),
        ("key tokens", [number(r.num_key_tokens, 0) for r in results]),
        ("documents", [number(r.num_documents, 0) for r in results]),
        ("truncated documents", [number(r.truncated_documents, 0) for r in results]),
        ("evaluator", [r.evaluator or "-" for r in results]),
    ]
    shown = [(name, cells) for name, cells in rows if any(cell != "-" for cell in cells) or name == "LongPPL"]
    table = [[name, *cells] for name, cells in shown]
    print_table(["", *names], table, turned=len(results) >= MODELS_AS_ROWS)
    for name, result in zip(names, results, strict=True):
        if per_document:
            print()
            print_table(
                ["document" if len(results) == 1 else f"document ({name})", "PPL", "LongPPL", "tokens", "key tokens"],
                [
                    [d.id, number(d.ppl), number(d.longppl), number(d.num_tokens, 0), number(d.num_key_tokens, 0)]
                    for d in result.documents
                ],
            )
        for warning in result.warnings:
            say(f"note: {name}: {message(warning)}")
