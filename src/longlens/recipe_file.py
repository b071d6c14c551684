"""YAML files of settings: read by the safe loader, and every key known, once there and of its field's type."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from longlens.errors import UserError, library_errors, one_line, shown, shown_value

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
            raise UserError(f"no recipe {shown(recipe)}: give a YAML file, or one of {known}") from error
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else one_line(error)
            raise UserError(f"cannot read the recipe {shown(recipe)}: {reason}: expected a YAML file") from error
    content = parse_yaml(text, f"{recipe}", "mend the file")
    if not isinstance(content, dict):
        raise UserError(f"{recipe} holds a {type(content).__name__}; expected keys such as {keys}")
    return content


def parse_yaml(text: str, place: str, step: str) -> Any:
    """What a YAML text says: mappings, lists, strings, integers below 2^63, floats, booleans and null.

    Raises:
        UserError: It is not YAML, has another type, a key that is no name or there twice, an alias to a mapping or a
            list (a few hundred bytes of them expand to gigabytes), or a string with NUL or invalid Unicode.
    """
    import yaml  # type: ignore[import-untyped]

    # Constructors of PyYAML raise what int(), float() and their own tables raise.
    with library_errors(f"{place} is no YAML", step):
        return yaml.load(text, _loader)


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
        raise UserError(f"{option} is {shown_value(change)}; expected KEY=VALUE, such as {option} {example}")
    return key, parse_yaml(text, f"{option} {key}", "quote the value as in YAML")


def write_yaml(content: Mapping[str, Any]) -> str:
    """The text that `parse_yaml` reads as the same, keys in their order."""
    import yaml

    text: str = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)
    return text


def _loader(stream: Any) -> Any:
    """PyYAML's safe loader, restricted as `parse_yaml` says; of a key that is there twice YAML would take the last."""
    import yaml

    def refuse(node: Any, reason: str) -> NoReturn:
        raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark)

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        # Dates are strings here, so that a name such as 2001-01-01 needs no quotes.
        yaml_implicit_resolvers: ClassVar = {
            first: [(tag, pattern) for tag, pattern in rules if not tag.endswith(":timestamp")]
            for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }
        yaml_constructors: ClassVar = {
            tag: constructor
            for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
            if tag is None or tag.rpartition(":")[2] not in ("timestamp", "binary", "set", "omap", "pairs")
        }

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                event = self.peek_event()
                if isinstance(self.anchors.get(event.anchor), yaml.CollectionNode):
                    refuse(event, f"the alias *{event.anchor} is of a mapping or a list: write it out")
            return super().compose_node(parent, index)

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        keys: set[str] = set()
        for key in (loader.construct_object(key, deep=True) for key, _ in node.value):
            if not isinstance(key, str):
                refuse(node, f"the key {shown_value(key)} is no name")
            if key in keys:
                refuse(node, f"the key {shown_value(key)} is there twice")
            keys.add(key)
        return dict(loader.construct_mapping(node, deep=True))

    def integer(loader: Any, node: Any) -> int:
        value: int = loader.construct_yaml_int(node)
        if value.bit_length() > 63:
            refuse(node, f"{shown_value(value)} is too large")
        return value

    def string(loader: Any, node: Any) -> str:
        value: str = loader.construct_yaml_str(node)
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            refuse(node, f"the string {shown_value(value)} has NUL or half of a surrogate pair")
        return value

    for tag, constructor in (("map", mapping), ("int", integer), ("str", string)):
        Loader.add_constructor(f"tag:yaml.org,2002:{tag}", constructor)
    return Loader(stream)


def check_keys(values: Mapping[str, Any], kind: type, place: str) -> None:
    """Refuses a key that is no field of a dataclass.

    Raises:
        UserError: It is none; says which field is the nearest.
    """
    known = [field.name for field in fields(kind)]
    for key in values:
        if key not in known:
            raise UserError(
                f"{place} has an unknown key {shown_value(key)}{nearest(key, known)}; known are {', '.join(known)}"
            )


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (nearest: 'length')``, or nothing where no known name is like it."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (nearest: {close[0]!r})" if close else ""


def made(kind: type[Made], values: Mapping[str, Any], place: str) -> Made:
    """The dataclass of these values, their types checked first; what it refuses is said with its place."""
    try:
        check_fields(values, kind)
        return kind(**values)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def check_types(values: Any) -> None:
    """A value of another type than its field's is refused: YAML makes numbers and booleans of what looks like them.

    Raises:
        UserError: One is of another type.
    """
    check_fields({field.name: getattr(values, field.name) for field in fields(values)}, type(values))


def check_fields(values: Mapping[str, Any], kind: type, of: str = "") -> None:
    """`check_types` of values that a dataclass is about to be made of.

    Args:
        values: By the names of fields.
        kind: The dataclass.
        of: What follows a field's name in messages.

    Raises:
        UserError: One is of another type than its field.
    """
    types, spelled = get_type_hints(kind), {field.name: field.type for field in fields(kind)}
    for name, value in values.items():
        if not _fits(value, types[name]):
            choices = get_args(types[name]) if get_origin(types[name]) is Literal else ()
            expected = " or ".join((", ".join(choices[:-1]), choices[-1])) if choices else spelled[name]
            raise UserError(f"{name}{of} is {shown_value(value)}; expected {expected}")


def _fits(value: Any, expected: Any) -> bool:
    """Whether a value has a type as annotations write it; a boolean is no number, an integer is a float."""
    origin, parts = get_origin(expected), get_args(expected)
    if expected is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if isinstance(value, bool) and expected in (int, float):
        return False
    if origin in (Sequence, tuple, list):
        is_list = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
        return is_list and all(_fits(item, parts[0]) for item in value)
    if origin in (Mapping, dict):
        return isinstance(value, Mapping) and all(
            _fits(name, parts[0]) and _fits(item, parts[1]) for name, item in value.items()
        )
    if expected is float:
        return isinstance(value, (int, float))
    return isinstance(value, origin or expected)


def whole_number(value: Any, what: str) -> int:
    """``1e9`` and ``"1e9"`` (which YAML takes for a string) to 1000000000.

    Raises:
        UserError: It is no whole number.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        number = float(value)
        if isinstance(value, bool) or number != int(number):
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{what} is {shown_value(value)}; expected a whole number, such as 65536 or 1e9") from error
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
        raise UserError(f"{what} is {shown_value(value)}; expected a number, such as 0.1 or 1e-5") from error
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
        raise UserError(f"{name} is {shown_value(value)}; expected {', '.join(known[:-1])} or {known[-1]}")


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
        raise UserError(f"{name} is {shown_value(values)}; expected a list of names, such as [{name}]")
