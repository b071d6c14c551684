"""Writes docs/cli.md from the help of the commands: python -m docs.cli."""

from __future__ import annotations

import os
from pathlib import Path

PAGE = Path(__file__).with_name("cli.md")


def render() -> str:
    """The page, from the code."""
    os.environ["COLUMNS"] = os.environ["TERMINAL_WIDTH"] = "100"
    import typer

    from longlens.cli.app import app

    group = typer.main.get_command(app)
    parts = [
        "# Command line\n",
        "Made from the code by `python -m docs.cli`. Results go to stdout, progress and notes to stderr. Exit codes: 0",
        "done, 2 a user's error (one line that names the thing and the next step), 130 interrupted.\n",
    ]
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        context = command.make_context(f"longlens {name}", [], resilient_parsing=True)
        parts.append(f"## longlens {name}\n\n```\n{command.get_help(context).strip()}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
