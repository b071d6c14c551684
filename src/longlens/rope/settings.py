"""A method from its name and settings, as in the command line and recipes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, model_validator

from longlens.errors import UserError, library_errors
from longlens.files import read_json
from longlens.rope.base import Method
from longlens.rope.methods import METHODS, find_method
from longlens.settings.recipe import Integer, Real, Settings


class Extension(Settings):
    """A method and its settings in a recipe; a method of another package may have other settings.

    Attributes:
        method: Name of the method.
        factors: JSON file with the factors of LongRoPE.
    """

    method: str
    factor: Real | None = None
    theta: Real | None = None
    first_layer: Integer | None = None
    original_length: Integer | None = None
    beta_fast: Real | None = None
    beta_slow: Real | None = None
    low_freq_factor: Real | None = None
    high_freq_factor: Real | None = None
    attention_factor: Real | None = None
    width: Integer | None = None
    step: Real | None = None
    factors: str | None = None

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, values: Any) -> Any:
        is_added = isinstance(values, Mapping) and str(values.get("method", "pi")) not in METHODS
        return values if is_added else super()._check_keys(values)  # type: ignore[operator]  # a classmethod

    @model_validator(mode="after")
    def _check_method(self) -> Extension:
        self.build()
        return self

    def build(self) -> Method:
        """The method with these settings."""
        return parse_method(self.method, self.model_dump(exclude={"method"}, exclude_none=True))


SETTINGS = tuple(name for name in Extension.model_fields if name not in ("method", "factors"))


def parse_method(name: str, settings: Mapping[str, Any]) -> Method:
    """The method of that name with these settings.

    Args:
        name: Name, as for `methods.find_method`.
        settings: Fields of the method, except that ``factor`` is CLEX's ``max_factor``, and ``factors`` is a JSON file
            with LongRoPE's two lists.

    Raises:
        UserError: The method does not exist, does not have a setting, or lacks a required one.
    """
    kind = find_method(name)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    # Settings whose field has another name.
    spelled = {"factor": "max_factor"} if "max_factor" in fields else {}
    options = [option for option in SETTINGS if spelled.get(option, option) in fields]
    if "short_factors" in fields:
        options.append("factors")
    if name not in METHODS:
        options += [option for option in fields if option not in options]
    known = ", ".join(f"`{option}`" for option in options)
    for option in settings:
        if option not in options:
            raise UserError(f"`{option}` is not a setting of `method` {name}, which has {known}: leave it out")
    required = [
        option for option in options if option == "factors" or _is_required(fields[spelled.get(option, option)])
    ]
    for option in required:
        if option not in settings:
            raise UserError(f"`method` {name} needs `{option}`; its settings are {known}")
    values = {spelled.get(option, option): value for option, value in settings.items() if option != "factors"}
    if "factors" in settings:
        values["short_factors"], values["long_factors"] = _read_factors(settings["factors"])
    with library_errors(f"`method` {name} does not accept these settings", f"its settings are {known}"):
        return kind(**values)


def _is_required(field: Any) -> bool:
    """Whether a field of a dataclass has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _read_factors(path: str | PathLike[str]) -> tuple[list[float], list[float]]:
    expected = 'expected a JSON object such as {"short_factor": [1.0, ...], "long_factor": [1.0, ...]}'
    both = read_json(Path(path), f"`factors`: {expected}")
    short, long = both.get("short_factor"), both.get("long_factor")
    if not isinstance(short, list) or not isinstance(long, list):
        raise UserError(f"`factors` {path} lacks a list of factors; {expected}")
    return short, long
