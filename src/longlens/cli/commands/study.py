"""``longlens study reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longlens.cli import options as o
from longlens.cli.command import App

study = App("study", "Studies: experiments that anyone can repeat.")
STUDIES = ("longce",)


@study.callback()
def _root() -> None:
    """Studies: experiments that anyone can repeat."""


@study.command()
def reproduce(
    name: Annotated[str, typer.Argument(help="longce: does LongCE help, in a model that two cores train?")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for models, runs and result.json.")],
    recipe: Annotated[str, typer.Option(help="A YAML file with other settings.")] = "longce",
    seeds: Annotated[str | None, typer.Option(help="Such as 1,2,3.  [default: the recipe's]")] = None,
    text: Annotated[
        Path | None, typer.Option(help="Prose: a file or a folder.  [default: Python's standard library]")
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Run a small experiment from scratch. The same command resumes an unfinished run.

    Example: longlens study reproduce longce -o longce-study
    """
    from longlens.cli.console import print_json, print_table, printable
    from longlens.cli.progress import ProgressBar
    from longlens.errors import UserError
    from longlens.study.documents import read_text
    from longlens.study.longce import reproduce_longce
    from longlens.study.settings import read_study
    from longlens.study.summary import difference_table, mean_table

    if name not in STUDIES:
        raise UserError(f"no study {name!r}; expected one of {', '.join(STUDIES)}")
    chosen = None if seeds is None else _parse_seeds(seeds)
    settings = read_study(recipe)
    result = reproduce_longce(settings, out, text=read_text(text), seeds=chosen, progress=ProgressBar())
    if as_json:
        print_json({"out": str(out), **result})
        return
    print_table(*mean_table(result))
    print()
    print_table(*difference_table(result))
    print(f"{len(result['seeds'])} seeds, all numbers in {printable(str(out / 'result.json'))}")


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


def _parse_seeds(listed: str) -> list[int]:
    """``"1,2,3"`` to ``[1, 2, 3]``.

    Raises:
        UserError: One is no whole number.
    """
    from longlens.settings.recipe import parse_integer

    return [parse_integer(seed.strip(), "seeds") for seed in listed.split(",")]
