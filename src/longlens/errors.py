"""Error messages for users: one line with what was received, what was expected, and the next step."""

from __future__ import annotations

import importlib
import os
import re
import reprlib
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


class UserError(ValueError):
    """An error that the user can fix; the command line prints one line and exits with code 2."""


class LonglensWarning(UserWarning):
    """A result exists, but has a limitation that its user should know."""


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Imports an optional dependency, or reports the pip command that installs it.

    Args:
        module: Name to import, such as ``"gguf"``.
        extra: The extra of this package that installs it.
        purpose: What needs it, for the message.

    Raises:
        UserError: The module is not installed, or its import fails.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:
        if said := broken_package(error):
            raise UserError(f"{purpose} needs the package {module!r}: {said}") from error
        if not isinstance(error, ImportError):
            raise
        raise UserError(
            f"{purpose} needs the package {module!r}, which is not installed: pip install 'longlens[{extra}]'"
        ) from error


def broken_package(error: BaseException) -> str | None:
    """Describes an installed package whose own import fails, and what to do; None for any other error.

    transformers imports installed packages that it does not need, so a broken one can make unrelated commands fail.
    """
    from importlib import metadata  # needed only when something is wrong
    from importlib.util import find_spec

    while True:
        before = error.__cause__ or (error.__context__ if isinstance(error, ImportError) else None)
        if before is None:
            break
        error = before
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        top = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if frame.f_code.co_name == "<module>" and top not in ("", "__main__", "longlens"):
            found = top
    missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if missing and missing != error.name and find_spec(missing) is not None:  # type: ignore[attr-defined]
        return None  # an installed package lacks a module: the two versions are incompatible
    packages = metadata.packages_distributions().get(found) if found else None
    if not packages:  # such as a module of the user
        return None
    package = packages[0]
    needs = metadata.requires("longlens") or []
    required = {re.split(r"[^\w.-]", need)[0] for need in needs if "extra ==" not in need}
    step = f"pip install {missing}" if missing not in ("", found) else f"pip install --force-reinstall {package}"
    if package not in required:
        step += f", or pip uninstall {package}"
    reason = one_line(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {one_line(error)}"
    return f"the installed package {package} cannot be imported ({reason}): {step}"


def shown(name: str | bytes | os.PathLike[str]) -> str:
    """A name for a message: quoted, one line, control characters and invalid Unicode escaped, truncated if long."""
    text = os.fsdecode(name)
    return repr(text if len(text) <= 300 else f"{text[:200]}…{text[-50:]}")


QUOTED = r"""(?<![\w`])(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
"""Pattern of a name or value from outside, as `shown` quotes it in a message. An apostrophe opens no quote."""


def one_line(error: BaseException) -> str:
    """Formats another library's error for the middle of a message: one line, at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError):
        text = f"no entry {text}"
    if "weights_only" in text:  # torch, whose message goes on to explain how to run the pickle's code
        text = "a pickle that holds more than tensors, which is not read"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:300]).rstrip(" .,:;")


def check_unicode(text: str, what: str, remedy: str) -> None:
    """Raises UserError if `what` has a lone surrogate, which cannot be written to a file or hashed."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{what} is not valid Unicode (lone surrogate {text[error.start]!r} at character {error.start}): {remedy}"
        ) from error


class _Shortened(reprlib.Repr):
    def repr_int(self, value: int, level: int) -> str:
        # repr() of an integer with thousands of digits raises an error itself.
        return repr(value) if value.bit_length() < 256 else f"<an integer of {value.bit_length()} bits>"


_shortened = _Shortened()
_shortened.maxstring = _shortened.maxother = 160
_shortened.maxlevel = 3


def shown_value(value: object) -> str:
    """Formats a value from outside for a message: its repr, one line, about 200 characters at most."""
    text = _shortened.repr(value)
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) <= 200 else f"{text[:199]}…"


@contextmanager
def library_errors(
    what: str, step: str | Callable[[BaseException], str], *, passing: tuple[type[BaseException], ...] = ()
) -> Iterator[None]:
    """Turns any exception that another library raises on external data into a one-line UserError: ``{what}: {reason}:
    {step}``.

    The step may depend on the exception.

    Rust extensions (tokenizers, safetensors) panic with a class that derives from BaseException but not from Exception.
    Interrupts, UserErrors and the types in ``passing`` are not converted.
    """
    try:
        yield
    except BaseException as error:
        is_theirs = isinstance(error, Exception) or type(error).__name__ == "PanicException"
        if not is_theirs or isinstance(error, (UserError, *passing)):
            raise
        if said := broken_package(error):
            raise UserError(said) from error
        raise UserError(f"{what}: {one_line(error)}: {step if isinstance(step, str) else step(error)}") from error


@contextmanager
def system_errors(path: Path) -> Iterator[None]:
    """Turns an operating-system error about a file into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot read {shown(path)}: {error.strerror or one_line(error)}: check the file and its permissions"
        ) from error


_PDF = b"%PDF-"
_BINARY = {
    _PDF: "a PDF: extract its text, for example with pdftotext",
    b"PK\x03\x04": "a ZIP archive (or .docx, .xlsx, .epub): unpack it, or save the document as text",
    b"\xd0\xcf\x11\xe0": "an Office document: save it as text",
    b"\x1f\x8b": "compressed by gzip: unpack it (gunzip), or let its name end in .gz",
    b"BZh": "compressed by bzip2: unpack it (bunzip2), or let its name end in .bz2",
    b"\xfd7zXZ": "compressed by xz: unpack it (unxz), or let its name end in .xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it (unzstd), or let its name end in .zst",
    b"PAR1": "Parquet: let its name end in .parquet",
    b"ARROW1": "an Arrow file: put it into a folder and pass hf:FOLDER",
    b"\xff\xfe": "UTF-16: convert it with iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16: convert it with iconv -f UTF-16 -t UTF-8",
}


def utf8(data: bytes, place: str, offset: int = 0) -> str:
    """Decodes strictly; `data` begins at byte `offset` of its file, at 0 with an optional byte order mark."""
    if offset == 0 and data.startswith(_PDF):  # a PDF may be pure ASCII
        raise UserError(f"{place} is {_BINARY[_PDF]}, or leave it out")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        for start, advice in _BINARY.items():
            if offset == 0 and data.startswith(start):
                raise UserError(f"{place} is {advice}, or leave it out") from error
        raise UserError(
            f"{place} is binary: byte 0x{data[error.start]:02x} at offset {offset + error.start} is not valid UTF-8: "
            "convert it, for example with iconv -f ENCODING -t UTF-8, or leave it out"
        ) from error
    return text.removeprefix("\ufeff") if offset == 0 else text
