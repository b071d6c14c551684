"""``longlens compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longlens.cli import options as o
from longlens.settings.options import KeyRule

if TYPE_CHECKING:
    from longlens.metrics.comparison import Difference, PairComparison


def compare(
    *,
    scores: Annotated[list[Path], typer.Argument(help="Run directories; the first is the baseline.")],
    evaluator_scores: o.EvaluatorScores = None,
    keys: o.Keys = None,
    rule: KeyRule,
    answers: o.Answers = None,
    as_json: o.Json = False,
) -> None:
    """Compare models on the same documents and key tokens. Paired differences, their significance, documents needed.

    Example: longlens compare scores/base scores/extended --evaluator-scores scores/gemma3
    """
    from longlens.cli.commands.perplexity import print_results
    from longlens.cli.console import (
        interval,
        message,
        number,
        print_json,
        print_table,
        printable,
        say,
        without_warnings,
    )
    from longlens.cli.next_step import after_results
    from longlens.metrics.comparison import compare as compute
    from longlens.scoring.reader import open_scores

    chosen = o.key_source(evaluator_scores, keys, rule, answers, runs=scores)
    with without_warnings():
        found = compute([open_scores(path) for path in scores], **chosen)
    if as_json:
        print_json(found.to_json())
        return
    print_results(found.results)
    names = {
        "log_ppl": "log PPL, nats/token",
        "log_longppl": "log LongPPL, nats/token",
        "bits_per_character": "bits/character",
        "key_bits_per_character": "bits/character, key",
    }
    for pair in found.pairs:
        print()
        rows = []
        for field, name in names.items():
            difference = getattr(pair, field)
            if difference is not None:
                needed = number(difference.documents_to_settle, 0)
                verdict = {None: "-", True: "significant", False: "inconclusive"}[difference.significant]
                value = number(difference.value, signed=True)
                rows.append([name, value, interval(difference.interval), verdict, needed])
        print(printable(f"{pair.model} minus {pair.baseline} (below 0: {pair.model} is better)"))
        print_table(["", "difference", "95 % interval", "", "documents needed"], rows)
        print(printable(in_words(pair, found.num_documents)))
    listed = {warning for result in found.results for warning in result.warnings}  # with the results
    for warning in found.warnings:
        if warning not in listed:
            say(f"note: {message(warning)}")
    after_results(scores, evaluator_scores, keys, rule, compares=True)


def in_words(pair: PairComparison, num_documents: int) -> str:
    """Says in words which model is better on all tokens and on key tokens, and how many documents are needed."""
    by_characters = pair.same_tokenizer is False  # then PPL and LongPPL refer to different tokens
    fields = ("bits_per_character", "key_bits_per_character") if by_characters else ("log_ppl", "log_longppl")
    sentences = []
    for field, where in zip(fields, ("all tokens", "key tokens"), strict=True):
        found: Difference | None = getattr(pair, field)
        if found is None:
            continue
        better = pair.model if found.value < 0 else pair.baseline
        if found.significant:
            sentences.append(f"{better} is better on {where}.")
        elif found.interval is None or not found.value:
            sentences.append(f"No conclusion on {where}: {num_documents} documents are too few.")
        else:
            needed = f"about {found.documents_to_settle:,} documents" if found.documents_to_settle else "more documents"
            sentences.append(f"Inconclusive on {where}: {better} is ahead, and {needed} would be needed.")
    return " ".join(sentences)
