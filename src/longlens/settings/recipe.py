"""Recipes: YAML files of settings, and the pydantic models that validate them.

A recipe is untrusted input. It is read by a loader that creates only plain values (`parse_yaml`) and validated by a
pydantic model (`Settings`); errors are one line that contains the key (`parse`).
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, NoReturn, TypeVar, get_type_hints

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    create_model,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from longlens.errors import QUOTED, UserError, library_errors, one_line, shown, shown_value

S = TypeVar("S", bound="Settings")


class Settings(BaseModel):
    """Base class of recipe settings: frozen, without unknown keys, validated on construction.

    A boolean is not a number, an integer is accepted as a float, and other conversions are done only by the fields'
    types.

    Raises:
        UserError: A key is unknown or missing, or a value is invalid.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    def __init__(self, **values: Any) -> None:
        with _one_line_errors():
            super().__init__(**values)

    # Nested settings are validated without `__init__`, so that their errors keep the path of the key.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, values: Any) -> Any:
        """Rejects unknown keys like ``extra="forbid"``, and suggests the most similar known key."""
        known = list(cls.model_fields)
        if not isinstance(values, (Mapping, cls)):
            raise expected(f"keys such as {known[0]}")
        for key in values if isinstance(values, Mapping) else ():
            if key not in known:
                raise UserError(f"unknown key {shown_value(key)}{nearest(key, known)}; known are {', '.join(known)}")
        return values

    def replace(self: S, **changes: Any) -> S:
        """Returns a copy with other values, which are validated."""
        return type(self)(**{**dict(self), **changes})


def parse(kind: type[S], values: Any, place: str) -> S:
    """Parses the settings of a recipe.

    Args:
        kind: The model.
        values: The values as read.
        place: The recipe, for messages.

    Raises:
        UserError: A key is unknown or missing, or a value is invalid.
    """
    with _one_line_errors(place):
        return kind.model_validate(values)


def parse_integer(value: Any, name: str, place: str = "") -> int:
    """Converts ``1e9`` and ``"1e9"`` to 1000000000.

    Args:
        value: The value.
        name: Name of the parameter, for messages.
        place: The recipe, for messages.

    Raises:
        UserError: The value is not an integer.
    """
    with _one_line_errors(place):
        return TypeAdapter(dict[str, Integer]).validate_python({name: value}, strict=True)[name]


def check_values(values: Mapping[str, Any], kind: type, spelling: str) -> None:
    """Checks values against the types of a dataclass's fields, without conversion.

    Args:
        values: Values by names of fields.
        kind: The dataclass.
        spelling: Format of a field's name in messages: ``training.arguments.{}``.

    Raises:
        UserError: A value has the wrong type.
    """
    types, spelled = get_type_hints(kind), {field.name: field.type for field in fields(kind)}
    config = ConfigDict(strict=True, arbitrary_types_allowed=True)
    fields_: dict[str, Any] = {name: (types[name], ...) for name in values}
    try:
        create_model("Values", __config__=config, **fields_)(**values)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        type_ = getattr(spelled[name], "__name__", spelled[name])
        raise UserError(f"{spelling.format(name)} is {shown_value(values[name])}; expected {type_}") from error


def expected(what: str) -> PydanticCustomError:
    """Returns the error to raise in a field's validator, which is reported as ``KEY is VALUE; expected WHAT``."""
    return PydanticCustomError("expected", "{what}", {"what": what})


@contextmanager
def _one_line_errors(place: str = "") -> Iterator[None]:
    """Converts pydantic's errors to a UserError: the first error, and the number of further errors."""
    try:
        yield
    except ValidationError as error:
        first, *more = error.errors(include_url=False)
        start, end = f"{place}: " if place else "", f" (and {len(more)} more)" if more else ""
        raise UserError(f"{start}{_describe(first, place)}{end}") from error


def _describe(error: ErrorDetails, place: str) -> str:
    """Describes one error; the key is written as in a recipe, or as a parameter in backticks."""
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{_shown_key(part)}" for part in error["loc"])[1:]
    kind, context = error["type"], error.get("ctx", {})
    if kind == "value_error":
        text = str(context["error"])
        text = _QUOTED_OR_PARAMETER.sub(lambda found: found[1] or found[0], text) if place else text
        return f"{key}: {text}" if key else text
    name = key if place else f"`{key}`"
    if kind == "missing":
        return f"{name} is missing: set it"
    if kind in _EXPECTED:
        wanted = _EXPECTED[kind].format(**context)
    else:
        wanted = error["msg"].removeprefix("Input should be ").replace("'", "")
    return f"{name} is {shown_value(error['input'])}; expected {wanted}"


def _shown_key(key: str) -> str:
    return key if len(key) <= 100 and key.isprintable() else shown_value(key)


_QUOTED_OR_PARAMETER = re.compile(rf"{QUOTED}|`(\w+)`")
_EXPECTED = {
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "int_type": "an integer, such as 65536 or 1e9",
    "float_type": "a number, such as 0.1 or 1e-5",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "text",
    "tuple_type": "a list",
    "too_short": "at least one",
    "dict_type": "keys with values",
}


def _to_integer(value: Any) -> Any:
    if isinstance(value, (str, float)):
        with suppress(ValueError, OverflowError):
            if int(float(value)) == float(value):
                return int(float(value))
    return value


def _to_float(value: Any) -> Any:
    if isinstance(value, str):
        with suppress(ValueError):
            return float(value)
    return value


def _to_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Integer = Annotated[int, BeforeValidator(_to_integer)]
"""An integer; also ``1e9``, which YAML parses as a float or a string."""
Real = Annotated[float, BeforeValidator(_to_float), Field(allow_inf_nan=False)]
"""A finite number; also ``1e-5``, which YAML parses as a string."""
Name = Annotated[str, Field(min_length=1)]
"""A string that is not empty."""
_NAMES_SCHEMA = {
    "anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string", "minLength": 1}}]
}
Names = Annotated[tuple[Name, ...], BeforeValidator(_to_list), Field(strict=False), WithJsonSchema(_NAMES_SCHEMA)]
"""A list of names; also a single name."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `` (nearest: 'length')``, or an empty text if no known name is similar."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (nearest: {close[0]!r})" if close else ""


def presets(kind: str) -> list[str]:
    """Names of the recipes of a kind (``mixtures``, ``studies``, ``train``) that come with longlens."""
    folder = resources.files("longlens") / "recipes" / kind
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_yaml(recipe: str | os.PathLike[str], kind: str, keys: str) -> dict[str, Any]:
    """Reads the mapping in a recipe.

    Args:
        recipe: Name of a preset of that kind, or a YAML file.
        kind: ``mixtures``, ``studies`` or ``train``.
        keys: Expected keys, for the message.

    Raises:
        UserError: The recipe does not exist, is not YAML, or is not a mapping.
    """
    content = parse_yaml(recipe_text(recipe, kind), f"{recipe}", "fix the file")
    if not isinstance(content, dict):
        raise UserError(f"{recipe} contains a {type(content).__name__}; expected keys such as {keys}")
    return content


def preset_summary(kind: str, name: str) -> str:
    """Description of a preset, from the comment in its first line."""
    return recipe_text(name, kind).partition("\n")[0].removeprefix("#").strip()


def recipe_text(recipe: str | os.PathLike[str], kind: str) -> str:
    """Returns the text of a preset or a file, as in `read_yaml`, comments included.

    Raises:
        UserError: The recipe does not exist, or cannot be read.
    """
    if str(recipe) in presets(kind):
        text = (resources.files("longlens") / "recipes" / kind / f"{recipe}.yaml").read_text(encoding="utf-8")
    else:
        try:
            text = Path(recipe).read_text(encoding="utf-8")
        except FileNotFoundError as error:
            known = ", ".join(presets(kind))
            raise UserError(f"no recipe {shown(recipe)}: pass a YAML file, or one of {known}") from error
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else one_line(error)
            raise UserError(f"cannot read the recipe {shown(recipe)}: {reason}: expected a YAML file") from error
    return text


def parse_yaml(text: str, place: str, step: str) -> Any:
    """Parses a YAML text into mappings, lists, strings, integers below 2^63, floats, booleans and null.

    Raises:
        UserError: It is not YAML, has another type, a key that is not a name or occurs twice, an alias to a mapping or
            a list (a few hundred bytes of them expand to gigabytes), or a string with NUL or invalid Unicode.
    """
    import yaml  # type: ignore[import-untyped]

    # PyYAML's constructors raise the errors of int(), float() and of their own lookup tables.
    with library_errors(f"{place} is not valid YAML", step):
        return yaml.load(text, _loader)


def assignment(change: str, option: str, example: str) -> tuple[str, Any]:
    """Converts ``"pairs=105"`` to ``("pairs", 105)``: the value is YAML, so it is None if nothing follows the sign.

    Args:
        change: The assignment.
        option: Name of the option, for messages.
        example: Example of such an assignment, for messages.

    Raises:
        UserError: The text is not KEY=VALUE, or the value is not valid YAML.
    """
    key, sign, text = change.partition("=")
    if not (key and sign):
        raise UserError(f"{option} is {shown_value(change)}; expected KEY=VALUE, such as {example}")
    return key, parse_yaml(text, f"{option} {key}", "quote the value as in YAML")


def section_at(content: dict[str, Any], names: Iterable[str], place: str) -> dict[str, Any]:
    """Returns the mapping at a path of a recipe, and creates missing sections.

    Args:
        content: The recipe; changed.
        names: Sections, from the outermost.
        place: The source of the path, for messages.

    Raises:
        UserError: A section on the path is a value.
    """
    for name in names:
        if content.get(name) is None:
            content[name] = {}
        content = content[name]
        if not isinstance(content, dict):
            raise UserError(f"{place}: {name} is {shown_value(content)} and has no keys: set {name} instead")
    return content


def write_yaml(content: Mapping[str, Any]) -> str:
    """Returns text that `parse_yaml` reads as the same content, with keys in their order."""
    import yaml

    text: str = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)
    return text


def _loader(stream: Any) -> Any:
    """PyYAML's safe loader with the restrictions of `parse_yaml`; for a duplicate key, YAML would use the last."""
    import yaml

    def refuse(node: Any, reason: str) -> NoReturn:
        raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark)

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        # Dates are parsed as strings, so that a name such as 2001-01-01 needs no quotes.
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
                    refuse(event, f"the alias *{event.anchor} refers to a mapping or a list: write out the value")
            return super().compose_node(parent, index)

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        keys: set[str] = set()
        for key in (loader.construct_object(key, deep=True) for key, _ in node.value):
            if not isinstance(key, str):
                refuse(node, f"the key {shown_value(key)} is not a valid name")
            if key in keys:
                refuse(node, f"the key {shown_value(key)} occurs twice")
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
