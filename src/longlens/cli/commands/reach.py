"""``longlens reach``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longlens.cli import options as o
from longlens.cli.command import Part
from longlens.settings.options import KeyRule

if TYPE_CHECKING:
    from longlens.metrics.context_reach import ReachResult
    from longlens.metrics.gains import Curve
    from longlens.scoring.reader import StoredScores


def reach(
    *,
    scores: Annotated[
        list[Path], typer.Argument(help="Run directories, each scored with at least three K and d <= K/2.")
    ],
    evaluator_scores: o.EvaluatorScores = None,
    keys: o.Keys = None,
    rule: Annotated[KeyRule, Part(("alpha", "beta", "lcl"))],
    answers: o.Answers = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="Run directory of the model whose gain is 100 %.  [default: the first of several runs]"),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Measure context reach: up to which K predictions improve. On all tokens, key tokens and answer tokens.

    Example: longlens reach scores/smollm2 --evaluator-scores scores/gemma3
    """
    from dataclasses import replace

    from longlens.cli.console import message, print_json, say, without_warnings
    from longlens.cli.next_step import after_results
    from longlens.corpus.rows import read_answers
    from longlens.keytokens.exchange import read_keys
    from longlens.metrics.context_reach import reach as compute
    from longlens.scoring.reader import open_scores
    from longlens.scoring.scores import names_of

    runs = [open_scores(path) for path in scores]
    evaluator = None if evaluator_scores is None else _open_evaluator(evaluator_scores, runs[0])
    selected = None if keys is None else read_keys(keys)
    spans = None if answers is None else read_answers(answers)
    measure = open_scores(reference) if reference is not None else runs[0] if len(runs) > 1 else None
    names = names_of(runs)
    results = []
    for run, name in zip(runs, names, strict=True):
        with without_warnings():
            found = compute(
                run,
                evaluator_scores=evaluator,
                keys=selected,
                alpha=rule.alpha,
                beta=rule.beta,
                use_lcl=rule.lcl,
                answers=spans,
                reference_scores=None if run is measure else measure,
            )
        if found.reference is not None and measure is runs[0]:
            found = replace(found, reference=names[0])
        results.append(replace(found, model=name))
    if as_json:
        listed = [result.to_json() for result in results]
        print_json(listed[0] if len(listed) == 1 else {"schema_version": 1, "results": listed})
        return
    print_results(results)
    for warning in dict.fromkeys(warning for result in results for warning in result.warnings):
        say(f"note: {message(warning)}")
    after_results(scores, evaluator_scores, keys, rule, compares=True)


def _open_evaluator(path: Path, run: StoredScores) -> StoredScores:
    """Opens the evaluator's scores, at the smallest K of the run if the evaluator has short contexts at this K."""
    from longlens.scoring.reader import open_scores

    found = open_scores(path)
    smallest = min((short.context for short in run.short_contexts), default=None)
    scored = any(short.context == smallest for short in found.short_contexts)
    return open_scores(path, context=smallest) if scored else found


def print_results(results: Sequence[ReachResult]) -> None:
    """Prints a table for each set of tokens, the gains at every K, and the steps at which gains decrease."""
    from longlens.cli.console import interval, number, print_table, printable

    named = next((result.reference for result in results if result.reference is not None), None)
    curves: list[tuple[str, Curve]] = []
    for which, tokens in (("all", "all tokens"), ("keys", "key tokens"), ("answers", "answers")):
        rows = []
        for result in results:
            curve: Curve | None = getattr(result, which)
            if curve is not None:
                curves.append((f"{result.model}, {tokens}", curve))
                share = "reference" if named and result.reference is None else number(curve.reference_share, 2)
                gain = [number(curve.max_gain), interval(curve.max_gain_interval)]
                rows.append(
                    [result.model, number(curve.num_tokens, 0), *reaches(curve), *gain, *([share] if named else [])]
                )
        if rows:
            columns = [tokens, "tokens", "R", "95 % interval", "max gain, nats", "95 % interval"]
            print_table([*columns, *([f"of {named}"] if named else [])], rows)
            print()
    contexts = [f"K={context}" for context in results[0].all.contexts]
    print_table(
        ["gain in nats, at", *contexts, "whole"],
        [[name, *map(number, curve.gains), number(curve.whole_gain)] for name, curve in curves],
    )
    for name, curve in curves:
        for drop in curve.drops:
            step = f"from K={drop.from_context} to K={drop.to_context}"
            print(printable(f"{name}: falls by {number(drop.nats)} nats {step}, {interval(drop.interval)}"))


def reaches(curve: Curve) -> list[str]:
    """Returns R and its interval, with ``>=`` before values that a larger K could increase."""
    from longlens.cli.console import number

    shown = (">= " if curve.censored else "") + number(curve.reach, 0)
    if curve.reach_interval is None:
        return [shown, "-"]
    low, high = curve.reach_interval
    return [shown, f"[{number(low, 0)}, {'>= ' if curve.reach_interval_censored else ''}{number(high, 0)}]"]
