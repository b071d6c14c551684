"""The command-line application."""

from __future__ import annotations

from typing import Annotated

import typer

from longlens.cli.command import App
from longlens.cli.commands.bench import bench
from longlens.cli.commands.compare import compare
from longlens.cli.commands.cost import cost
from longlens.cli.commands.data import data
from longlens.cli.commands.demo import demo
from longlens.cli.commands.diverge import diverge
from longlens.cli.commands.export import export
from longlens.cli.commands.extend import extend
from longlens.cli.commands.keys import keys
from longlens.cli.commands.longppl import longppl
from longlens.cli.commands.perplexity import perplexity
from longlens.cli.commands.plan import plan
from longlens.cli.commands.reach import reach
from longlens.cli.commands.report import report
from longlens.cli.commands.score import score
from longlens.cli.commands.study import study
from longlens.cli.commands.train import train, train_list, train_schema, train_show

app = App(
    "longlens",
    "Measure what long context does for a language model: token scores, key tokens and LongPPL.",
    completes=True,
)
for command in (demo, score, perplexity, longppl, keys, compare, reach, cost, diverge, report, export, extend, train):
    app.command()(command)
app.command("train list")(train_list)
app.command("train show")(train_show)
app.command("train schema")(train_schema)
app.add_typer(bench)
app.add_typer(data)
app.add_typer(study)
app.add_typer(plan)


def _version(wanted: bool) -> None:
    if wanted:
        from longlens import __version__

        typer.echo(f"longlens {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Measure what long context does for a language model: token scores, key tokens and LongPPL."""
