"""The entry point of the command line: runs a command and turns errors into one line and an exit code."""

from __future__ import annotations

import difflib
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        The exit code: 0 on success, 2 on a user error (one line on stderr), 130 if the command was interrupted.
    """
    try:
        return _run(arguments)
    except KeyboardInterrupt:  # this can also happen during imports, so nothing else is used here
        print(_INTERRUPTED, file=sys.stderr)
        return 130


def _tell_torchrun(message: str) -> None:
    """Writes a message to torchrun's error file, so that torchrun's summary names the process and the reason."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        with suppress(OSError):  # the message is already on stderr
            Path(path).write_text(json.dumps({"message": message, "timestamp": int(time.time())}), encoding="utf-8")


_INTERRUPTED = "interrupted; finished work is kept, and the same command resumes from there"


def _run(arguments: Sequence[str] | None) -> int:
    if sys.stderr is None:  # stderr is closed: without this, its output would go to stdout
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    import typer

    from longlens.cli.app import app
    from longlens.cli.console import drop, say
    from longlens.errors import UserError, broken_package, one_line
    from longlens.runs.processes import ProcessStopped

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    if sys.stdout is None:  # otherwise the next file that is opened would get stdout's descriptor, and its output
        say("error: the output (stdout) is closed: redirect it to a file, or to /dev/null")
        return 2
    command = typer.main.get_command(app)
    if "_LONGLENS_COMPLETE" in os.environ:  # a shell requests completions
        command.main(prog_name="longlens")
    try:
        with command.make_context("longlens", list(sys.argv[1:] if arguments is None else arguments)) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as ended:
        return ended.exit_code
    except ProcessStopped:  # another process has reported the reason
        return 2
    except UserError as error:
        say(f"error: {error}")
        _tell_torchrun(f"error: {error}")
        return 2
    except typer.TyperException as error:
        at = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError" and at is not None:  # a command group without a command
            print(at.get_help())
            return 0
        text = getattr(error, "format_message", error.__str__)().rstrip(".")
        near = difflib.get_close_matches(
            getattr(error, "option_name", ""), getattr(error, "possibilities", None) or (), 1
        )
        if near:
            text = f"No such option: {error.option_name}. Did you mean {near[0]!r}?"  # type: ignore[attr-defined]
        end = "" if text.endswith("?") else "."
        say(f"error: {text}{end} See {'longlens' if at is None else at.command_path} --help")
        return 2
    except typer.Abort:
        raise KeyboardInterrupt from None
    except BrokenPipeError:
        # The reader of the pipe has closed it, as `| head` does.
        drop(sys.stdout)
    except Exception as error:
        if said := broken_package(error):
            say(f"error: {said}")
            _tell_torchrun(f"error: {said}")
            return 2
        if not isinstance(error, OSError):
            raise
        name = error.filename2 or error.filename
        if name is None:
            drop(sys.stdout)
        # An error without a file name is most often about stdout; some libraries raise OSError without errno.
        what = "the output" if name is None else os.fsdecode(name)
        reason = error.strerror or one_line(error)
        say(f"error: {what}: {reason}. Check the name, the permissions and the free disk space")
        return 2
    return 0
