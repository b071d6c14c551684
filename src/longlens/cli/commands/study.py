"""``longlens study``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longlens.cli import options as o
from longlens.cli.command import App, Part
from longlens.settings.options import KeyRule

study = App("study", "Reproduce experiments of the paper and of the lecture.")


@study.callback()
def _root() -> None:
    """Reproduce experiments of the paper and of the lecture."""


@study.command()
def ablate(
    *,
    scores: Annotated[list[Path], typer.Argument(help="Run directories of the models, on the same documents.")],
    evaluator_scores: Annotated[
        list[Path], typer.Option(help="Run directory of an evaluator; every scored K is used. May be repeated.")
    ],
    benchmarks: Annotated[
        list[Path] | None,
        typer.Option(
            help="Run directories of longlens bench run, or a CSV file: model, benchmarks.", metavar="RUN|FILE..."
        ),
    ] = None,
    alphas: Annotated[
        str | None, typer.Option(metavar="NATS[,NATS...]", help="Grid of alpha.  [default: 0.5,1,2,3]")
    ] = None,
    betas: Annotated[
        str | None,
        typer.Option(metavar="NATS[,NATS...]", help="Grid of beta, in addition to none.  [default: -4,-2,-1]"),
    ] = None,
    rule: Annotated[KeyRule, Part(("alpha", "beta", "gamma"))],
    context: Annotated[int | None, typer.Option(help="Use only this K.  [default: all that were scored]")] = None,
    stride: Annotated[int | None, typer.Option(help="Use only this d.  [default: all that were scored]")] = None,
    self_evaluation: Annotated[
        bool | None,
        typer.Option(
            "--self-evaluation/--no-self-evaluation",
            help="Also use each model as its own evaluator.  [default: models scored at the evaluator's K]",
        ),
    ] = None,
    draws: Annotated[int, typer.Option(help="Number of random draws of documents.")] = 1000,
    seed: Annotated[int, typer.Option(help="Random seed of the draws.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Directory for ablation.json, tables as CSV, and figures.")
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Ablate LongPPL from stored scores. By thresholds, evaluator, K, weights and documents; no model is run.

    Example: longlens study ablate scores/* --evaluator-scores scores/gemma3 -o ablation
    """
    from dataclasses import replace

    from longlens.cli.console import message, print_json, print_table, printable, say, without_warnings
    from longlens.cli.next_step import after_results
    from longlens.cli.progress import ProgressBar
    from longlens.errors import require
    from longlens.report.figures import check_folder, write_figures
    from longlens.scoring.reader import open_scores
    from longlens.study import ablation as a
    from longlens.study.ablation_tables import charts, tables, write_ablation
    from longlens.study.benchmarks import join_benchmarks

    if out is not None:
        require("matplotlib", extra="figures", purpose="drawing figures (`out`)")
        check_folder(out)
    runs = [open_scores(path) for path in scores]
    joined = join_benchmarks(benchmarks, runs) if benchmarks else None
    for note in joined.notes if joined else ():
        say(f"note: {message(note)}")
    with without_warnings():
        found = a.ablate(
            runs,
            [open_scores(path, context=context, stride=stride) for path in evaluator_scores],
            benchmarks=joined.scores if joined else None,
            alphas=a.ALPHAS if alphas is None else _parse_nats(alphas, "alphas"),
            betas=a.BETAS if betas is None else _parse_nats(betas, "betas"),
            rule=replace(rule, context=context, stride=stride),
            self_evaluation=self_evaluation,
            draws=draws,
            seed=seed,
            progress=ProgressBar(),
        )
    if out is not None:
        written = [*write_ablation(found, out), *write_figures(charts(found), out)]
        say(f"{len(written)} files in {out}")
    if as_json:
        print_json(found.to_json())
        return
    for number, table in enumerate(tables(found)):
        print(("\n" if number else "") + printable(table.title))
        print_table(table.columns, table.rows)
    for warning in found.warnings:
        say(f"note: {message(warning)}")
    after_results(scores, evaluator_scores[0], None, rule, compares=False)


def _parse_nats(listed: str, name: str) -> list[float]:
    """Converts ``"1,2"`` to ``[1.0, 2.0]``.

    Raises:
        UserError: A part of the text is not a number.
    """
    from longlens.errors import UserError

    try:
        return [float(value) for value in listed.split(",")]
    except ValueError as error:
        raise UserError(f"`{name}` is {listed!r}; expected numbers in nats, such as `{name}=1,2`") from error


@study.command()
def reproduce(
    name: Annotated[
        str,
        typer.Argument(
            help="answers: does the perplexity of answers follow accuracy? correlation: does LongPPL follow long "
            "prompts' scores? cost: time of PPL and of LongPPL; longce: does LongCE help, in a model that two cores "
            "train?"
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for models, runs and result.json.")],
    recipe: Annotated[Path | None, typer.Option(help="YAML file with other settings.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a recipe setting, such as text=prose.", metavar="KEY=VALUE"),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Random seeds, such as 1,2,3.  [default: the recipe's]")] = None,
    as_json: o.Json = False,
) -> None:
    """Run an experiment from scratch. Rerun the same command to resume an unfinished run.

    Example: longlens study reproduce longce -o longce-study
    """
    from longlens.cli.console import print_json, print_table, printable
    from longlens.cli.next_step import suggest
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
    suggest(("study", "published"))


@study.command()
def published(
    command: typer.Context,
    table: Annotated[
        str | None,
        typer.Argument(help="Table, such as 5, figure-5 or lecture-18.  [default: list all]", show_default=False),
    ] = None,
    with_: Annotated[
        list[Path] | None,
        typer.Option("--with", help="Run directory of longlens longppl or bench run to add as a row; may be repeated."),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Print a published table of the paper or of the lecture. Optionally with rows for your own models.

    Example: longlens study published 5 --with RUN --with BENCH
    """
    from longlens.cli.console import print_json, print_table, printable
    from longlens.cli.next_step import suggest
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
        suggest(("study", "published", "5"))
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
    runs: Annotated[
        list[Path], typer.Argument(help="Run directories of longlens longppl or longlens score, one per model.")
    ],
    benchmarks: Annotated[
        list[Path],
        typer.Option(
            help="Run directories of longlens bench run, or a CSV file: model, family, benchmarks.",
            metavar="RUN|FILE...",
        ),
    ],
    evaluator_scores: o.EvaluatorScores = None,
    keys: o.Keys = None,
    rule: KeyRule,
    families: Annotated[
        list[str] | None,
        typer.Option(
            "--family", help="Model family, for leave-one-family-out; may be repeated.", metavar="MODEL=FAMILY"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of resampling and permutations.")] = 0,
    figures: Annotated[
        Path | None,
        typer.Option("--figures", "-o", help="Directory for scatter plots and the task map, as PNG and SVG."),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Correlate LongPPL and PPL with benchmark scores across models. With intervals, tests and benchmark agreement.

    Example: longlens study correlate runs/* --benchmarks bench/* --figures figures
    """
    from longlens.cli.commands.correlation import print_correlations
    from longlens.cli.console import message, print_json, say, without_warnings
    from longlens.cli.next_step import suggest
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
        raise UserError("--family is not MODEL=FAMILY: use for example --family smollm2=SmolLM2")
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
    given = [word for path in benchmarks for word in ("--benchmarks", path)]
    if evaluator_scores is not None:
        suggest(("study", "ablate", *runs, "--evaluator-scores", evaluator_scores, *given, "-o", "ablation"))
    elif figures is None:
        suggest(("study", "correlate", *runs, *given, "--figures", "figures"))
