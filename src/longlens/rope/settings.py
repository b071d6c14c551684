"""A method from its name and settings, as the command line and recipes give them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from longlens.errors import UserError, shown_value
from longlens.files import read_json
from longlens.rope.base import Method
from longlens.rope.methods import METHODS

SETTINGS = (
    "factor",
    "theta",
    "first_layer",
    "original_length",
    "beta_fast",
    "beta_slow",
    "low_freq_factor",
    "high_freq_factor",
    "attention_factor",
    "width",
    "step",
)


def parse_method(name: str, settings: Mapping[str, Any], shown: Callable[[str], str]) -> Method:
    """The method of that name with these settings.

    Args:
        name: One of `methods.METHODS`.
        settings: Of `SETTINGS`; and ``factors`` for LongRoPE, a JSON file.
        shown: How a setting is called where the user gives it, for messages: ``--first-layer``.

    Raises:
        UserError: No such method, a setting that it does not have, or one that it needs.
    """
    if name not in METHODS:
        raise UserError(f"{shown('method')} is {shown_value(name)}; expected one of {', '.join(METHODS)}")
    fields = {field.name: field for field in dataclasses.fields(METHODS[name])}
    # Settings whose field is called otherwise.
    spelled = {"factor": "max_factor"} if "max_factor" in fields else {}
    options = [option for option in SETTINGS if spelled.get(option, option) in fields]
    if "short_factors" in fields:
        options.append("factors")
    known = ", ".join(shown(option) for option in options)
    for option in settings:
        if option not in options:
            raise UserError(
                f"{shown(option)} is no setting of {shown('method')} {name}, which has {known}: leave it out"
            )
    required = [option for option in options if option == "factors" or is_required(fields[spelled.get(option, option)])]
    for option in required:
        if option not in settings:
            raise UserError(f"{shown('method')} {name} needs {shown(option)}; its settings are {known}")
    values = {spelled.get(option, option): value for option, value in settings.items() if option != "factors"}
    if "factors" in settings:
        values["short_factors"], values["long_factors"] = _read_factors(settings["factors"], shown("factors"))
    return METHODS[name](**values)


def is_required(field: Any) -> bool:
    """Whether a field of a dataclass has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _read_factors(path: str | PathLike[str], option: str) -> tuple[list[float], list[float]]:
    expected = 'expected a JSON object such as {"short_factor": [1.0, ...], "long_factor": [1.0, ...]}'
    both = read_json(Path(path), f"{option}: {expected}")
    short, long = both.get("short_factor"), both.get("long_factor")
    if not isinstance(short, list) or not isinstance(long, list):
        raise UserError(f"{option} {path} lacks a list of factors; {expected}")
    return short, long
