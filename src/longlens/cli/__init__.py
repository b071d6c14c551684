"""The command line: each command parses, calls one function, and prints."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        The exit code: 0 done, 2 user error (one line on stderr), 130 interrupted.
    """
    import typer

    from longlens.cli.app import app
    from longlens.cli.console import say
    from longlens.errors import LonglensWarning, UserError

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    command = typer.main.get_command(app)
    with warnings.catch_warnings():
        warnings.simplefilter("once", LonglensWarning)
        warnings.showwarning = lambda message, category, *_: say(
            f"warning: {message}" if issubclass(category, LonglensWarning) else f"{category.__name__}: {message}"
        )
        try:
            code = command.main(
                args=list(sys.argv[1:] if arguments is None else arguments), prog_name="longlens", standalone_mode=False
            )
        except UserError as error:
            say(f"error: {error}")
            return 2
        except typer.TyperException as error:
            text = getattr(error, "format_message", error.__str__)()
            say(f"error: {text} See longlens --help")
            return 2
        except (KeyboardInterrupt, typer.Abort):
            code = 130
        except BrokenPipeError:
            # The reader of a pipe has gone, as with `| head`; there is nobody to tell.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        if code == 130:
            say("interrupted; what was finished is kept, and the same command goes on from there")
        return int(code or 0)
