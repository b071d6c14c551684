"""Atomic writing of files, and how they are read."""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from longlens.errors import UserError, check_unicode, library_errors, one_line, shown, system_errors


def cannot_write(path: Path, error: OSError, *, resumes: bool = False) -> UserError:
    """The error for a file that cannot be written; ``resumes`` for a run that keeps what it has committed."""
    reason = error.strerror or str(error)
    step = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the folder and its permissions"
    if resumes:
        reason += "; what was committed before is kept"
        step += " and run the same command again, it resumes from there"
    return UserError(f"cannot write {path}: {reason}: {step}")


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """Yields a new UTF-8 file that replaces ``path`` if the block succeeds, and is deleted otherwise.

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
        with suppress(OSError):  # on a read-only disk; the first error is the one to report
            temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON object.

    Raises:
        UserError: It cannot be written.
    """
    with replacing(path) as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def create_json(path: Path, content: Mapping[str, Any]) -> bool:
    """Writes a JSON object atomically, unless the file exists; of several concurrent processes exactly one does.

    Returns:
        Whether this call wrote it.

    Raises:
        UserError: It cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    write_json(temporary, content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if not temporary.exists() or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise cannot_write(path, error) from error
        return _create_without_links(path, temporary)
    finally:
        with suppress(OSError):
            temporary.unlink()
    return True


def _create_without_links(path: Path, temporary: Path) -> bool:
    """`create_json` for a file system without hard links, where a killed process can leave a partial file."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(temporary.read_text(encoding="utf-8"))
    except FileExistsError:
        return False
    except OSError as error:
        raise cannot_write(path, error) from error
    return True


def parse_json(text: str | bytes, place: str, step: str) -> Any:
    """Parses untrusted JSON; the only place that calls ``json.loads``.

    Args:
        text: The text.
        place: Where the text is from, for the message, such as ``answers.jsonl line 3``.
        step: What to do if it is broken.

    Raises:
        UserError: It is not JSON, is nested too deeply, or has an integer with thousands of digits.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is broken (not JSON: {one_line(error)}): {step}") from error


def read_json(path: Path, step: str = "use another folder") -> dict[str, Any]:
    """Reads a JSON object from a file.

    Raises:
        UserError: The file does not contain a JSON object.
    """
    with system_errors(path):
        data = path.read_bytes()
    content = parse_json(data, str(path), step)
    if not isinstance(content, dict):
        raise UserError(f"{path} is broken (no JSON object): {step}")
    check_unicode(json.dumps(content, ensure_ascii=False), str(path), step)
    return content


COMPRESSED = frozenset({".gz", ".bz2", ".xz", ".zst"})


def ending_of(path: Path) -> str:
    """The lower-case suffix that determines a file's format: ``.jsonl`` for ``a.jsonl`` and for ``a.jsonl.gz``."""
    ending = path.suffix.lower()
    return Path(path.stem).suffix.lower() if ending in COMPRESSED else ending


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Opens a file to read, decompressed if its suffix is one of `COMPRESSED`.

    Raises:
        UserError: It cannot be read, or its compressed data is broken.
    """
    ending = path.suffix.lower()
    if ending not in COMPRESSED:
        with system_errors(path), path.open("rb") as file:
            yield file
        return
    with library_errors(f"cannot decompress {shown(path)}", "make the file again"), _decompressed(path, ending) as file:
        yield file


def _decompressed(path: Path, ending: str) -> BinaryIO:
    if ending == ".zst":
        import pyarrow as pa

        # A pyarrow stream has the methods that BufferedReader needs of a raw file.
        stream = pa.CompressedInputStream(pa.OSFile(os.fsencode(path), "rb"), "zstd")
        return BufferedReader(stream, 2**20)
    module = importlib.import_module({".gz": "gzip", ".bz2": "bz2", ".xz": "lzma"}[ending])
    found: BinaryIO = module.open(path, "rb")
    return found


def cache_folder() -> Path:
    """The user's cache folder, whose files can be recreated."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "longlens"


def content_sha256(path: Path) -> str:
    """`file_sha256`, cached: an unchanged file is read once per process."""
    status = path.stat()
    return _content_sha256(path.absolute(), status.st_size, status.st_mtime_ns)


@cache
def _content_sha256(path: Path, size: int, mtime_ns: int) -> str:
    return file_sha256(path)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()
