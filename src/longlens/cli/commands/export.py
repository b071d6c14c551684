"""``longlens export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longlens.cli import options as o
from longlens.settings.options import KeyRule


def export(
    *,
    scores: Annotated[Path, typer.Argument(help="Run directory of longlens score.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output file: .csv, .parquet or .jsonl.")],
    evaluator_scores: o.EvaluatorScores = None,
    keys: o.Keys = None,
    rule: KeyRule,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    as_json: o.Json = False,
) -> None:
    """Export scores as a table with one row per token. For pandas, a spreadsheet or another program.

    Columns: document, index, token, its characters, log-probabilities with the long and with each short context, LSD,
    LCL, key and weight. Without --evaluator-scores or --keys, the run's own short contexts select key tokens.

    Example: longlens export scores/smollm2 --evaluator-scores scores/gemma3 -o tokens.csv
    """
    from longlens.cli.console import print_json, say
    from longlens.metrics.export import check_export, export_tokens
    from longlens.scoring.reader import open_scores

    check_export(out, overwrite=overwrite)
    chosen = o.key_source(evaluator_scores, keys, rule, None)
    count = export_tokens(
        out,
        open_scores(scores, context=rule.context, stride=rule.stride) if keys is None else open_scores(scores),
        evaluator_scores=chosen["evaluator_scores"],
        keys=chosen["keys"],
        rule=rule,
        overwrite=overwrite,
    )
    if as_json:
        print_json({"schema_version": 1, "out": str(out), "num_rows": count})
        return
    say(f"{count:,} tokens in {out}")
