"""``longlens train``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from longlens.cli import options as o
from longlens.cli.command import Part
from longlens.settings.options import Loading


def train(
    *,
    recipe: Annotated[str, typer.Argument(help="YAML file or preset: smollm2-cpu, longce-pg19-eabf, ...")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run directory.  [default: out in the recipe]")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a recipe setting, such as training.steps=20.", metavar="KEY=VALUE"),
    ] = None,
    loading: Annotated[Loading, Part(("trust_remote_code", "allow_pickle"))],
    as_json: o.Json = False,
) -> None:
    """Train a model from a recipe. Rerun the same command to resume an unfinished run.

    Example: longlens train smollm2-cpu --set training.steps=20 -o run
    """
    from longlens.cli.console import print_json
    from longlens.cli.next_step import suggest
    from longlens.cli.progress import ProgressBar
    from longlens.errors import UserError
    from longlens.runs.processes import Processes
    from longlens.train.recipe import read_recipe
    from longlens.train.run import run_file

    found = read_recipe(
        recipe, changes or [], trust_remote_code=loading.trust_remote_code, allow_pickle=loading.allow_pickle
    )
    folder = out or (None if found.out is None else Path(found.out))
    if folder is None:
        raise UserError(f"{recipe} sets no run directory: pass -o, such as -o run")
    is_first = Processes().rank == 0
    results = run_file(found, folder, progress=ProgressBar())
    if not is_first:
        return
    if as_json:
        is_sweep = "." not in results
        print_json({"schema_version": 1, "runs": results} if is_sweep else results["."])
        return
    _print(results)
    models = [Path(result["model"]) for result in results.values()]
    suggest(*(("score", "DOCS", "--model", model, "-o", f"scores/{model.parent.name}") for model in models))


def _print(results: Mapping[str, Mapping[str, Any]]) -> None:
    from longlens.cli.console import number, print_table, printable

    columns = ("run", "steps", "loss", "held-out loss", "PPL", "LongPPL", "key tokens")
    rows = []
    for label, result in results.items():
        loss, evaluation = result["loss"] or {}, result["evaluation"] or {}
        for end in ("first", "last"):
            held_out = evaluation.get(end, {})
            rows.append(
                (
                    f"{'' if label == '.' else f'{label}: '}{end}",
                    f"{held_out.get('step', 0 if end == 'first' else result['steps']):,}",
                    number(loss.get(end)),
                    *(number(held_out.get(name)) for name in ("loss", "ppl", "longppl")),
                    number(held_out.get("num_key_tokens"), 0),
                )
            )
    print_table(columns, rows)
    for result in results.values():
        print(f"the trained model is in {printable(result['model'])}")
