"""``longlens train``, ``train list``, ``train show`` and ``train schema``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longlens.cli import options as o
from longlens.cli.command import Part
from longlens.settings.options import Hardware, Loading

if TYPE_CHECKING:
    from longlens.train.recipe import Recipe, RecipeFile


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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Train nothing: print steps, tokens, memory and time on this machine.")
    ] = False,
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
    if dry_run:
        _print_plan(found, loading, as_json=as_json)
        where: list[object] = [] if out is None and found.out is not None else ["-o", out or "RUN"]
        given = [word for change in changes or [] for word in ("--set", change)]
        suggest(("train", recipe, *given, *where), ("plan", "train", recipe, "--device", "h100", "--devices", 8))
        return
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


def _print_plan(found: RecipeFile, loading: Loading, *, as_json: bool) -> None:
    """Prints what the runs of a recipe need; no model is trained."""
    from longlens.cli.console import print_json, print_table
    from longlens.planning.report import duration, size
    from longlens.planning.train import plan_recipe

    rows, plans = [], {}
    for label, run in found.runs.items():
        plan, tokens = plan_recipe(run, Hardware(measure=True), loading, **_packed_length(run))
        steps = run.training.steps
        rate, there = plan.tokens_per_second, plan.device.memory_bytes
        hours = None if tokens is None or not rate else tokens / rate / 3600
        plans[label] = {"steps": steps, "tokens": tokens, "hours": hours, **plan.to_json()}
        rows.append(
            (
                found.name if label == "." else label,
                f"{run.training.epochs:g} epochs" if steps is None else f"{steps:,}",
                f"{plan.batch_size * plan.length:,}",
                "-" if tokens is None else f"{tokens:,.0f}",
                size(plan.memory_bytes) + ("" if there is None else f" of {size(there)}"),
                "-" if plan.seconds is None else duration(plan.seconds),
                "-" if hours is None else duration(hours * 3600),
            )
        )
    if as_json:
        print_json({"schema_version": 1, "runs": plans})
        return
    print_table(("run", "steps", "tokens a step", "tokens", "memory", "a step", "in all"), rows, turned=len(rows) == 1)


def _packed_length(run: Recipe) -> dict[str, Any]:
    """Returns row length and total tokens of a recipe with packed data; the data directory records the length."""
    from longlens.errors import UserError
    from longlens.runs.folder import read_manifest
    from longlens.train.settings import PackedData

    if not isinstance(run.data, PackedData):
        return {}
    settings = read_manifest(Path(run.data.packed)).get("settings")
    length = settings.get("length") if isinstance(settings, dict) else None
    if not isinstance(length, int):
        raise UserError(f"{run.data.packed} does not record its row length: pack it again with longlens data pack")
    steps = run.training.steps
    return {"length": length, "tokens": None if steps is None else steps * run.training.batch_size * length}


def train_list(as_json: o.Json = False) -> None:
    """List the recipes that come with longlens.

    Example: longlens train list
    """
    from longlens.cli.console import print_json
    from longlens.cli.next_step import suggest
    from longlens.settings.recipe import preset_summary, presets

    listed = {name: preset_summary("train", name) for name in presets("train")}
    if as_json:
        print_json({"schema_version": 1, "recipes": [{"recipe": name, "summary": s} for name, s in listed.items()]})
        return
    width = max(map(len, listed))
    for name, summary in listed.items():
        print(f"{name:{width}}  {summary}")
    suggest(("train", "show", "smollm2-cpu"), ("train", "smollm2-cpu", "--dry-run"))


def train_show(
    command: typer.Context,
    recipe: Annotated[str, typer.Argument(help="YAML file or preset, from longlens train list.")],
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Print all settings with their defaults, after --set.")
    ] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a recipe setting, such as training.steps=20.", metavar="KEY=VALUE"),
    ] = None,
    loading: Annotated[Loading, Part(("trust_remote_code", "allow_pickle"))] = Loading(),  # noqa: B008  frozen
    as_json: o.Json = False,
) -> None:
    """Print a recipe, to read it or to start one of your own. The output is the YAML file.

    Example: longlens train show smollm2-cpu
    """
    from longlens.cli.console import print_json, printable
    from longlens.cli.next_step import suggest
    from longlens.settings.recipe import recipe_text, write_yaml
    from longlens.train.recipe import read_recipe

    if not (resolved or as_json):
        o.refuse(command, "without --resolved", "changes")
    found = read_recipe(
        recipe, changes or [], trust_remote_code=loading.trust_remote_code, allow_pickle=loading.allow_pickle
    )
    runs = {label: run.resolved() for label, run in found.runs.items()}
    if as_json:
        print_json({"schema_version": 1, "recipe": found.name, "out": found.out, "runs": runs})
        return
    if resolved:
        print(write_yaml(runs["."] if list(runs) == ["."] else runs), end="")
    else:
        print("\n".join(map(printable, recipe_text(recipe, "train").rstrip("\n").split("\n"))))
    suggest(("train", recipe, "--dry-run"), ("train", recipe, "-o", "RUN"))


def train_schema() -> None:
    """Print the JSON Schema of recipes, for completion and checks in an editor.

    Example: longlens train schema > recipe.schema.json
    """
    import json

    from longlens.train.recipe import recipe_schema

    print(json.dumps(recipe_schema(), indent=2))
