"""Options that several commands share, and functions that convert their values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from longlens.cli.command import choices as choices
from longlens.cli.command import refuse as refuse
from longlens.errors import UserError
from longlens.settings.options import CONTEXT, KeyRule

MODEL_HELP = "Hub id, directory, .gguf file, smollm2 or gemma3-270m."
SCORED_HELP = f"{MODEL_HELP} Or a server: http://HOST:PORT/v1#NAME."
Docs = Annotated[
    list[str],
    typer.Argument(help="Files or directories (text, source code, JSONL, Parquet), hf:DATASET or stdlib:MODULE."),
]
PerDocument = Annotated[
    bool, typer.Option("--per-document", help="Also print one row (with --json, one entry) per document.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Bos = Annotated[
    str,
    typer.Option(
        help="window: BOS before every window. published: as in the longppl package.",
        **choices("window", "published"),
    ),
]
NoText = Annotated[bool, typer.Option("--no-text", help="Do not store the texts.")]

Name = Annotated[
    str | None,
    typer.Option("--name", help="Display name in tables and charts.  [default: last part of --model]"),
]
LogTo = Annotated[
    list[str] | None,
    typer.Option(
        "--log-to",
        help="Log the results to tensorboard, wandb or trackio; may be repeated.",
        **choices("tensorboard", "wandb", "trackio"),
    ),
]
EvaluatorScores = Annotated[
    Path | None,
    typer.Option(
        "--evaluator-scores", "-e", help="Run directory of the evaluator, from which key tokens are selected."
    ),
]
Keys = Annotated[Path | None, typer.Option("--keys", "-k", help="Key file, from longlens keys.")]
Answers = Annotated[
    Path | None,
    typer.Option(help="Rows with id and answer_spans (JSONL, JSON, Parquet). Replaces the spans in the documents."),
]


def integers(text: str, name: str) -> list[int]:
    """Converts ``"64,256"`` to ``[64, 256]``.

    Raises:
        UserError: A part of the text is not an integer.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(
            f"`{name}` is {text!r}; expected numbers of tokens, such as `{name}=4096` or `{name}=64,256,4096`"
        ) from error


def assignments(changes: Iterable[str] | None, option: str, example: str) -> dict[str, Any]:
    """Converts ``["pairs=105", "shots=0"]`` to ``{"pairs": 105, "shots": 0}``.

    Raises:
        UserError: A text is not KEY=VALUE.
    """
    from longlens.settings.recipe import assignment

    return dict(assignment(change, option, example) for change in changes or ())


def key_source(
    evaluator_scores: Path | None,
    keys: Path | None,
    rule: KeyRule,
    answers: Path | None,
    *,
    runs: Sequence[Path] = (),
) -> dict[str, Any]:
    """Returns the arguments of `longlens.perplexity` and similar functions that define key tokens and answer tokens.

    Args:
        evaluator_scores: The option --evaluator-scores.
        keys: The option --keys.
        rule: The options of key token selection.
        answers: The option --answers.
        runs: Run directories of the evaluated models, to detect that the evaluator was swapped with one of them.

    Raises:
        UserError: The scores, keys or answers do not exist, or the evaluator's run has no short contexts.
    """
    from longlens.corpus.rows import read_answers
    from longlens.keytokens.exchange import read_keys
    from longlens.scoring.reader import open_scores

    evaluator = None
    if evaluator_scores is not None:
        evaluator = open_scores(evaluator_scores, context=rule.context, stride=rule.stride)
        if not evaluator.short_contexts:
            able = next((run for run in runs if any((run / "short").glob("K*"))), None)
            step = (
                f"score it with `context={CONTEXT}`"
                if able is None
                else f"{able} has them: if the two are swapped, pass {evaluator_scores} --evaluator-scores {able}"
            )
            raise UserError(f"{evaluator_scores}: no short-context scores, so it cannot select key tokens: {step}")
    return {
        "evaluator_scores": evaluator,
        "keys": None if keys is None else read_keys(keys),
        "answers": None if answers is None else read_answers(answers),
        **rule.keywords(),
    }
