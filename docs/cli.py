"""Writes docs/cli.md from the help of the commands: python -m docs.cli."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("cli.md")


def render() -> str:
    """The page, from the code."""
    os.environ["COLUMNS"] = os.environ["TERMINAL_WIDTH"] = "100"
    import typer

    from longlens.cli.app import app

    group = typer.main.get_command(app)
    parts = [
        "# Command line\n",
        "Results are printed to stdout, progress and notes to stderr. Exit codes: 0 success, 2 invalid input (one line",
        "with the problem and the next step), 130 interrupted. Generated from the code by `python -m docs.cli`.\n",
    ]
    for name, command in _commands("longlens", group):
        context = command.make_context(name, [], resilient_parsing=True)
        parts.append(f"## {name}\n\n```\n{command.get_help(context).strip()}\n```\n")
    return "\n".join(parts)


def _commands(name: str, group: Any) -> Iterator[tuple[str, Any]]:
    """Every command with its whole name, those of groups as well."""
    for own, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(f"{name} {own}", command)
        else:
            yield f"{name} {own}", command


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
