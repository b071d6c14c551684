"""Packages that are installed for a test: metadata with entry points, and modules, on the path."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest


def install(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    package: str,
    entry_points: Mapping[str, Mapping[str, str]],
    modules: Mapping[str, str] | None = None,
) -> None:
    """Puts a package into an empty folder and the folder on the path, as pip does.

    Args:
        monkeypatch: Undoes it.
        folder: Is made.
        package: Name of the distribution.
        entry_points: By group, ``{"longlens.tasks": {"NAME": "MODULE:OBJECT"}}``.
        modules: Their source by their names.
    """
    metadata = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    sections = []
    for group, names in entry_points.items():
        sections.append("\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in names.items())]))
    (metadata / "entry_points.txt").write_text("\n".join(sections))
    for name, source in (modules or {}).items():
        (folder / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(folder)
