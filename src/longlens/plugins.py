"""Plugins: what other installed packages add to longlens through entry points of these groups:

- ``longlens.scorers``: engines of `longlens.load_scorer`;
- ``longlens.tasks``: tasks of `longlens.tasks.get_task`;
- ``longlens.rope_methods``: methods of `longlens.rope`;
- ``longlens.caches``: cache policies of `longlens.load_scorer`;
- ``longlens.statistics``: additional values for each scored token, `longlens.scoring.statistics`.

A plugin is imported, and its errors are reported, only when its name is used.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from longlens.errors import UserError, library_errors, shown, shown_value

Group = Literal["longlens.scorers", "longlens.tasks", "longlens.rope_methods", "longlens.caches", "longlens.statistics"]


def list_plugins(group: Group) -> dict[str, str]:
    """Names that other packages add to a group, sorted, each with the package that defines it."""
    found: dict[str, str] = {}
    for entry in sorted(_entries(group), key=lambda entry: entry.name):
        found[entry.name] = f"{found[entry.name]}, {_package(entry)}" if entry.name in found else _package(entry)
    return found


def load_plugin(
    group: Group, name: str, *, own: Collection[str], is_kind: Callable[[Any], bool], expected: str
) -> Any | None:
    """Loads what another package adds under a name; None if no package does.

    Args:
        group: Entry-point group.
        name: Name of the entry point.
        own: longlens's own names in that group, which no package may use.
        is_kind: Whether an object is of the kind that the group expects.
        expected: Description of that kind, for the message, such as ``"a subclass of longlens.rope.base.Method"``.

    Raises:
        UserError: The name is one of longlens's own, is added by two packages, cannot be imported or is of the wrong
            kind.
    """
    entries = [entry for entry in _entries(group) if entry.name == name]
    if not entries:
        return None
    packages = " and ".join(sorted({_package(entry) for entry in entries}))
    named = f"{shown(name)} (entry point of {group}, from {packages})"
    if name in own:
        raise UserError(f"{named} uses a name of longlens: uninstall {packages}, or rename the entry point there")
    if len(entries) > 1:
        raise UserError(f"{named} is defined more than once: uninstall all but one, or rename the entry point")
    with library_errors(f"cannot import {named}", f"fix or uninstall {packages}"):
        loaded = entries[0].load()
    if not is_kind(loaded):
        raise UserError(f"{named} is {shown_value(loaded)}; expected {expected}: fix or uninstall {packages}")
    return loaded


def _entries(group: Group) -> tuple[EntryPoint, ...]:
    return _scan(group, tuple(sys.path))


@lru_cache(maxsize=16)
def _scan(group: Group, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Entry points of the packages on the path, cached: reading them takes milliseconds, and lookups are frequent."""
    with library_errors("cannot read the entry points of installed packages", "fix or uninstall the broken one"):
        return tuple(entry_points(group=group))


def _package(entry: EntryPoint) -> str:
    return "an unnamed package" if entry.dist is None else str(entry.dist.name)
