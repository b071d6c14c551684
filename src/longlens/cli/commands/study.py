"""``longlens study``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longlens.cli import options as o
from longlens.cli.command import App
from longlens.settings.options import KeyRule

study = App("study", "Studies: do the claims of the paper and of the lecture hold?")


@study.callback()
def _root() -> None:
    """Studies: do the claims of the paper and of the lecture hold?"""


@study.command()
def reproduce(
    name: Annotated[
        str,
        typer.Argument(
            help="correlation: does LongPPL follow long-context scores? cost: time of PPL and of LongPPL; "
            "longce: does LongCE help, in a model that two cores train?"
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for models, runs and result.json.")],
    recipe: Annotated[Path | None, typer.Option(help="A YAML file with other settings.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Instead of the recipe's, such as text=prose.", metavar="KEY=VALUE"),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Such as 1,2,3.  [default: the recipe's]")] = None,
    as_json: o.Json = False,
) -> None:
    """Run an experiment from scratch. The same command resumes an unfinished run.

    Example: longlens study reproduce longce -o longce-study
    """
    from longlens.cli.console import print_json, print_table, printable
    from longlens.cli.progress import ProgressBar
    from longlens.settings.recipe import parse_integer
    from longlens.study.reproduce import find_study, read_study
    from longlens.study.reproduce import reproduce as run

    chosen = None if seeds is None else [parse_integer(seed.strip(), "seeds") for seed in seeds.split(",")]
    settings = read_study(name, recipe, seeds=chosen, changes=changes or [])
    result = run(name, settings, out, progress=ProgressBar())
    if as_json:
        print_json({"out": str(out), **result})
        return
    for table in find_study(name).tables(result):
        print(table.title)
        print_table(table.columns, table.rows)
        print()
    print(f"seeds {', '.join(map(str, settings.seeds))}; all numbers are in {printable(str(out / 'result.json'))}")


@study.command()
def published(
    command: typer.Context,
    table: Annotated[
        str | None, typer.Argument(help="Such as 5, figure-5 or lecture-18.  [default: list all]", show_default=False)
    ] = None,
    with_: Annotated[
        list[Path] | None,
        typer.Option("--with", help="A run of longlens longppl or bench run, for a row of its own; may be repeated."),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Print a published table of the paper or of the lecture. With your own models in it, and what differs.

    Example: longlens study published 5 --with RUN --with BENCH
    """
    from longlens.cli.console import print_json, print_table, printable
    from longlens.study import published as known
    from longlens.study.published.beside import beside, read_models
    from longlens.study.published.show import (
        listing,
        notes_of,
        own_rows,
        table_rows,
        to_json,
    )

    if table is None:
        o.refuse(command, "without a table", "with_")
        if as_json:
            print_json({"schema_version": 1, "tables": {id: to_json(found) for id, found in known.tables().items()}})
            return
        print_table(("table", "place", "shows", "numbers"), listing())
        return
    found = known.table(table)
    own = beside(found, read_models(with_)) if with_ else None
    if as_json:
        print_json({"schema_version": 1, **to_json(found, own)})
        return
    print(f"{found.place}: {found.title}")
    print_table(*table_rows(found, own))
    if own is not None and not own.is_same_table:
        print("\nYour models:")
        print_table(*own_rows(own))
    for line in notes_of(found, own):
        print(printable(line))


@study.command()
def correlate(
    *,
    runs: Annotated[list[Path], typer.Argument(help="Folders of longlens longppl or of longlens score, one a model.")],
    benchmarks: Annotated[
        list[Path],
        typer.Option(help="Folders of longlens bench run, or a CSV: model, family, benchmarks.", metavar="RUN|FILE..."),
    ],
    evaluator_scores: o.EvaluatorScores = None,
    keys: o.Keys = None,
    rule: KeyRule,
    families: Annotated[
        list[str] | None,
        typer.Option("--family", help="Family of a model; may be repeated.", metavar="MODEL=FAMILY"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of resamples and random orders.")] = 0,
    figures: Annotated[
        Path | None, typer.Option("--figures", "-o", help="Folder for scatter plots and the map of tasks, PNG and SVG.")
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Correlate LongPPL and PPL with benchmark scores over models. Intervals, tests, and how benchmarks agree.

    Example: longlens study correlate runs/* --benchmarks bench/* --figures figures
    """
    from longlens.cli.commands.correlation import print_correlations
    from longlens.cli.console import message, print_json, say, without_warnings
    from longlens.cli.progress import ProgressBar
    from longlens.errors import UserError, require
    from longlens.report.figures import check_folder
    from longlens.study.correlate import correlate as compute
    from longlens.study.correlate import write_correlation_figures

    if figures is not None:
        require("matplotlib", extra="figures", purpose="--figures")
        check_folder(figures)
    named = dict(part.rpartition("=")[::2] for part in families or ())
    if not all(model and family for model, family in named.items()):
        raise UserError("--family is not MODEL=FAMILY: give it as --family smollm2=SmolLM2")
    chosen = o.key_source(evaluator_scores, keys, rule, None)
    del chosen["answers"]
    with without_warnings():
        table = compute(runs, benchmarks, families=named, seed=seed, progress=ProgressBar(), **chosen)
    drawn = [] if figures is None else write_correlation_figures(table, figures)
    for note in table.notes:
        say(f"note: {message(note)}")
    if as_json:
        print_json({**table.to_json(), "figures": [str(path) for path in drawn]})
        return
    print_correlations(table)
    for path in drawn:
        print(path)
