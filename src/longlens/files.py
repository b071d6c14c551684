"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from longlens.errors import UserError


def cannot_write(path: Path, error: OSError, *, resumes: bool = False) -> UserError:
    """What to say where a file cannot be written; ``resumes`` for a run that keeps what it committed."""
    reason = error.strerror or str(error)
    step = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the folder and its permissions"
    if resumes:
        reason += "; what was committed before is kept"
        step += " and run the same command again, it goes on from there"
    return UserError(f"cannot write {path}: {reason}: {step}")


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A new UTF-8 file beside ``path`` that takes its place when the block ends well, and vanishes otherwise.

    Raises:
        UserError: It cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON object.

    Raises:
        UserError: It cannot be written.
    """
    with replacing(path) as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
