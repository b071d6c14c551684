"""YAML files of settings: read by the safe loader, and every key known, once there and of its field's type."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from longlens.errors import UserError

Made = TypeVar("Made")


def presets(kind: str) -> list[str]:
    """Names of the recipes of a kind (``mixtures``, ``train``) that come with longlens."""
    folder = resources.files("longlens") / "recipes" / kind
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_yaml(recipe: str | os.PathLike[str], kind: str, keys: str) -> dict[str, Any]:
    """The mapping that a recipe holds.

    Args:
        recipe: Name of a preset of that kind, or a YAML file.
        kind: As in `presets`.
        keys: Such keys as are expected, for the message.

    Raises:
        UserError: No such recipe, no YAML, or no mapping.
    """
    if str(recipe) in presets(kind):
        text = (resources.files("longlens") / "recipes" / kind / f"{recipe}.yaml").read_text(encoding="utf-8")
    else:
        try:
            text = Path(recipe).read_text(encoding="utf-8")
        except FileNotFoundError as error:
            known = ", ".join(presets(kind))
            raise UserError(f"no recipe {str(recipe)!r}: give a YAML file, or one of {known}") from error
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read the recipe {recipe}: {error}: expected a YAML file") from error
    content = parse_yaml(text, f"{recipe}", "mend the file")
    if not isinstance(content, dict):
        raise UserError(f"{recipe} holds a {type(content).__name__}; expected keys such as {keys}")
    return content


def parse_yaml(text: str, place: str, step: str) -> Any:
    """What a YAML text says.

    Raises:
        UserError: It is none, or a key of it is no name or there twice.
    """
    import yaml  # type: ignore[import-untyped]

    try:
        return yaml.load(text, _loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{place} is no YAML: {' '.join(str(error).split())[:300]}: {step}") from error


def assignment(change: str, option: str, example: str) -> tuple[str, Any]:
    """``"pairs=105"`` to ``("pairs", 105)``: the value is YAML, thus None where nothing stands after the sign.

    Args:
        change: What was given.
        option: Of the command line, for messages.
        example: Of such an assignment, for messages.

    Raises:
        UserError: It is no KEY=VALUE, or the value is no YAML.
    """
    key, sign, text = change.partition("=")
    if not (key and sign):
        raise UserError(f"{option} is {change!r}; expected KEY=VALUE, such as {option} {example}")
    return key, parse_yaml(text, f"{option} {key}", "quote the value as in YAML")


def write_yaml(content: Mapping[str, Any]) -> str:
    """The text that `parse_yaml` reads as the same, keys in their order."""
    import yaml

    text: str = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)
    return text


def _loader(stream: Any) -> Any:
    """The safe loader, which refuses a key that is there twice: YAML would silently take the last."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        pass

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is no name", node.start_mark)
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is there twice", node.start_mark)
        return dict(loader.construct_mapping(node, deep=True))

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    return Loader(stream)


def check_keys(values: Mapping[str, Any], kind: type, place: str) -> None:
    """Refuses a key that is no field of a dataclass.

    Raises:
        UserError: It is none; says which field is the nearest.
    """
    known = [field.name for field in fields(kind)]
    for key in values:
        if key not in known:
            raise UserError(f"{place} has an unknown key {key!r}{nearest(key, known)}; known are {', '.join(known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (nearest: 'length')``, or nothing where no known name is like it."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (nearest: {close[0]!r})" if close else ""


def made(kind: type[Made], values: Mapping[str, Any], place: str) -> Made:
    """The dataclass of these values; what it refuses is said with its place."""
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


_TYPES: dict[str, tuple[type, ...]] = {
    "float": (int, float),
    "int": (int,),
    "str": (str,),
    "bool": (bool,),
    "TooLong": (str,),
    "int | str": (int, str),
    "str | None": (str, type(None)),
    "str | os.PathLike[str] | None": (str, os.PathLike, type(None)),
    "int | None": (int, type(None)),
    "float | None": (int, float, type(None)),
    "Mapping[str, Any]": (dict,),
}


def check_types(values: Any, what: str) -> None:
    """A value of another type than its field's is refused: YAML makes numbers and booleans of what looks like them.

    Raises:
        UserError: One is of another type.
    """
    for field in fields(values):
        check_type(field.name, str(field.type), getattr(values, field.name), what)


def check_type(name: str, expected: str, value: Any, what: str) -> None:
    """Refuses a value that is not of its field's type; a type that is not known here takes all.

    Raises:
        UserError: It is of another type.
    """
    kinds, is_bool = _TYPES.get(expected), isinstance(value, bool)
    if expected == "Sequence[float]":
        is_wrong = isinstance(value, str) or not isinstance(value, Sequence) or not all(map(_is_number, value))
    else:
        is_wrong = kinds is not None and (not isinstance(value, kinds) or (is_bool and bool not in kinds))
    if is_wrong:
        raise UserError(f"{name} of {what} is {value!r}; expected {expected}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def whole_number(value: Any, what: str) -> int:
    """``1e9`` and ``"1e9"`` (which YAML takes for a string) to 1000000000.

    Raises:
        UserError: It is no whole number.
    """
    try:
        number = float(value)
        if isinstance(value, bool) or number != int(number):
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{what} is {value!r}; expected a whole number, such as 65536 or 1e9") from error
    return int(number)


def real_number(value: Any, what: str) -> float:
    """``1e-5`` and ``"1e-5"`` (which YAML takes for a string) to 0.00001.

    Raises:
        UserError: It is no finite number.
    """
    try:
        number = float(value)
        if isinstance(value, bool) or not math.isfinite(number):
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{what} is {value!r}; expected a number, such as 0.1 or 1e-5") from error
    return number


def with_numbers(values: Mapping[str, Any], kind: type, place: str) -> dict[str, Any]:
    """The values, those of number fields as numbers.

    Raises:
        UserError: A key is unknown, or what should be a number is none.
    """
    check_keys(values, kind, place)
    found = dict(values)
    for field in fields(kind):
        value, type_ = found.get(field.name), str(field.type)
        if value is not None and type_ in ("int", "int | None"):
            found[field.name] = whole_number(value, f"{place}: {field.name}")
        elif value is not None and type_ in ("float", "float | None"):
            found[field.name] = real_number(value, f"{place}: {field.name}")
    return found


def one_of(name: str, value: object, known: Iterable[str]) -> None:
    """Refuses a value that is none of those known.

    Raises:
        UserError: It is none.
    """
    known = list(known)
    if value not in known:
        raise UserError(f"{name} is {value!r}; expected {', '.join(known[:-1])} or {known[-1]}")


def at_least(name: str, value: int, least: int) -> None:
    """Refuses a smaller number.

    Raises:
        UserError: It is smaller.
    """
    if value < least:
        raise UserError(f"{name} is {value}; expected at least {least}")


def names(name: str, values: Any, *, empty: bool = False) -> None:
    """Refuses what is no list of names, and an empty one unless it may be.

    Raises:
        UserError: It is none.
    """
    is_list = isinstance(values, (list, tuple))
    if not is_list or not all(isinstance(value, str) and value for value in values) or not (empty or values):
        raise UserError(f"{name} is {values!r}; expected a list of names, such as [{name}]")
