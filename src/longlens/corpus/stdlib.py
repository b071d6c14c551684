"""``stdlib:NAME``: source files of Python's standard library, real text that is on every machine with Python."""

from __future__ import annotations

import difflib
import sys
import sysconfig
from pathlib import Path

from longlens.errors import UserError, shown

PREFIX = "stdlib:"


def module_files(name: str) -> list[tuple[str, Path]]:
    """The source files of a module, or of all modules of a package, each with its id; nothing is imported.

    Args:
        name: Such as ``typing`` (id ``stdlib:typing.py``), ``email`` (``stdlib:email/parser.py`` and so on) or
            ``email.mime``.

    Raises:
        UserError: No such module, one that is no Python text (built in, or an extension), or a Python without sources.
    """
    top, *others = name.split(".")
    if not all(part.isidentifier() for part in others):
        raise UserError(f"{shown(PREFIX + name)} is no name of a module, such as {PREFIX}email.mime")
    if top not in sys.stdlib_module_names:
        close = difflib.get_close_matches(top, sys.stdlib_module_names, n=1, cutoff=0.5)
        known = f" (nearest: {close[0]!r})" if close else ""
        raise UserError(f"{shown(PREFIX + name)}: Python's standard library has no module {shown(top)}{known}")
    library = Path(sysconfig.get_path("stdlib"))
    path = library.joinpath(top, *others)
    file = path.with_name(f"{path.name}.py")
    files = [file] if file.is_file() else sorted(path.rglob("*.py"))
    if not files and not (library / "typing.py").is_file():
        raise UserError(
            f"this Python comes without its sources (no {library / 'typing.py'}), which {shown(PREFIX + name)} stands "
            "for: name files of your own"
        )
    if not files or not (file.is_file() or (path / "__init__.py").is_file()):
        what = "no module of it" if "." in name else "built in or an extension, and has no Python source"
        raise UserError(f"{shown(PREFIX + name)} is {what}: name another module, such as {PREFIX}typing")
    return [(f"{PREFIX}{file.relative_to(library).as_posix()}", file) for file in files]
