"""``longlens compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longlens.cli import options as o
from longlens.settings.options import KeyRule


def compare(
    *,
    scores: Annotated[list[Path], typer.Argument(help="Run folders; the first is the baseline.")],
    evaluator_scores: o.EvaluatorScores = None,
    keys: o.Keys = None,
    rule: KeyRule,
    answers: o.Answers = None,
    as_json: o.Json = False,
) -> None:
    """Compare models on the same documents and key tokens. Paired differences, and how many documents they need.

    Example: longlens compare scores/base scores/extended --evaluator-scores scores/gemma3
    """
    from longlens.cli.commands.perplexity import print_results
    from longlens.cli.console import interval, message, number, print_json, print_table, say, without_warnings
    from longlens.metrics.comparison import compare as compute
    from longlens.scoring.reader import open_scores

    chosen = o.key_source(evaluator_scores, keys, rule, answers)
    with without_warnings():
        found = compute([open_scores(path) for path in scores], **chosen)
    if as_json:
        print_json(found.to_json())
        return
    print_results(found.results)
    names = {
        "log_ppl": "log PPL, nats per token",
        "log_longppl": "log LongPPL, nats per key token",
        "bits_per_character": "bits per character",
        "key_bits_per_character": "bits per character of key tokens",
    }
    for pair in found.pairs:
        print()
        rows = []
        for field, name in names.items():
            difference = getattr(pair, field)
            if difference is not None:
                needed = number(difference.documents_to_settle, 0)
                verdict = {None: "-", True: "significant", False: "inconclusive"}[difference.significant]
                rows.append([name, number(difference.value), interval(difference.interval), verdict, needed])
        columns = [f"{pair.model} minus {pair.baseline}", "difference", "95 % interval", "", "documents needed"]
        print_table(columns, rows)
    listed = {warning for result in found.results for warning in result.warnings}  # with the results
    for warning in found.warnings:
        if warning not in listed:
            say(f"note: {message(warning)}")
