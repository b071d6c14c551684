"""Recipes of training runs: from YAML and changes to settings, and sweeps over them."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import field_serializer, model_validator

from longlens.data.recipe import Mixture, read_mixture
from longlens.errors import UserError, shown_value
from longlens.losses.settings import LongCE
from longlens.rope.base import Method
from longlens.rope.settings import Extension
from longlens.settings.recipe import Name, Settings, assignment, nearest, parse, read_yaml, section_at
from longlens.train.settings import (
    LOSSES,
    Data,
    DocumentsData,
    Evaluation,
    Load,
    Lora,
    Loss,
    MixtureData,
    PackedData,
    Training,
)


class Recipe(Settings):
    """One training run.

    Attributes:
        model: Hub id, folder, ``.gguf`` file, ``smollm2`` or ``gemma3-270m``.
        data: Training data.
        training: Training settings.
        loss: LongCE in one of its forms; None for CE.
        load: How the model is loaded.
        extend: Position extrapolation before training.
        lora: Adapters to train instead of all weights.
        evaluation: Held-out documents.
        after: Position extrapolation after training, saved to a second folder.

    Raises:
        UserError: The short context of LongCE is not shorter than the rows, or held-out documents are in the training
            data.
    """

    model: Name
    data: Data
    training: Training
    loss: Loss
    load: Load = Load()
    extend: Extension | None = None
    lora: Lora | None = None
    evaluation: Evaluation | None = None
    after: Extension | None = None

    @model_validator(mode="after")
    def _check_together(self) -> Recipe:
        if self.length is not None:
            self.check_length(self.length)
        if isinstance(self.data, DocumentsData) and self.evaluation is not None:
            both = set(self.data.documents) & set(self.evaluation.documents)
            if both:
                raise UserError(
                    f"{shown_value(min(both))} is in data and in evaluation: evaluate on documents not trained on"
                )
        return self

    @property
    def length(self) -> int | None:
        """Tokens per row; None if the folder of rows determines it."""
        if isinstance(self.data, MixtureData):
            return mixture_of(self.data).length
        return None if isinstance(self.data, PackedData) else self.data.length

    def check_length(self, length: int) -> None:
        """Rejects rows in which no token would have a short-context score.

        Raises:
            UserError: K is not shorter than the rows.
        """
        if isinstance(self.loss, LongCE) and self.loss.context >= length:
            raise UserError(
                f"the context K of the loss is {self.loss.context} and rows have {length} tokens, so no token would "
                "have a short-context score and LongCE would equal CE: make data.length larger or the context smaller"
            )

    def method(self, name: Literal["extend", "after"]) -> Method | None:
        """The method of ``extend`` or ``after``."""
        extension: Extension | None = getattr(self, name)
        return None if extension is None else extension.build()

    @field_serializer("loss")
    def _name_loss(self, loss: Any) -> dict[str, Any]:
        name = next(name for name, kind in LOSSES.items() if kind is (None if loss is None else type(loss)))
        return {name: {} if loss is None else loss.model_dump(mode="json")}

    @field_serializer("extend", "after")
    def _leave_out_unset(self, extension: Extension | None) -> dict[str, Any] | None:
        return None if extension is None else extension.model_dump(exclude_none=True)

    def resolved(self) -> dict[str, Any]:
        """All settings as JSON, from which `parse_recipe` makes the same recipe."""
        return {name: value for name, value in self.model_dump(mode="json").items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class RecipeFile:
    """A recipe that was read: one run, or the runs of a sweep.

    Attributes:
        name: Name of the recipe.
        out: The folder set in the recipe; None if it is not set.
        runs: Runs by their subfolder: ``"."`` for one run, ``extend.theta=500000.0`` and so on for a sweep.
        shares_data: Whether all runs of a sweep are trained on the same rows.
    """

    name: str
    out: str | None
    runs: Mapping[str, Recipe]
    shares_data: bool = False


def read_recipe(
    recipe: str | os.PathLike[str],
    changes: Sequence[str] = (),
    *,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> RecipeFile:
    """Reads a recipe.

    Args:
        recipe: Name of a preset, or a YAML file: the keys of `Recipe`, ``out`` and ``sweep`` (lists of values by
            keys such as ``extend.theta``; all combinations are run).
        changes: Changes such as ``training.steps=20``; values are YAML, and null removes a key.
        trust_remote_code: Sets ``load.trust_remote_code``. A recipe cannot set it by itself, since it may come from an
            untrusted source.
        allow_pickle: The same for ``load.allow_pickle``.

    Raises:
        UserError: The recipe does not exist, is not YAML, has an unknown or missing key, an invalid value or a secret,
            or allows third-party code to run without `trust_remote_code` or `allow_pickle`.
    """
    content = read_yaml(recipe, "train", "model, data and training")
    for change in changes:
        _set(content, *assignment(change, "`changes`", "training.steps=20"), "`changes`")
    consents = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
    for name, is_given in consents.items():
        if is_given:
            _set(content, f"load.{name}", True, f"`{name}`")
    out, sweep = content.pop("out", None), content.pop("sweep", None)
    if out is not None and not (isinstance(out, str) and out):
        raise UserError(f"{recipe}: out is {shown_value(out)}; expected a folder")
    combinations = _combinations(content, sweep, f"{recipe}")
    runs = {label: parse_recipe(values, f"{recipe}") for label, values in combinations.items()}
    for run in runs.values():
        for name, is_given in consents.items():
            if getattr(run.load, name) and not is_given:
                raise UserError(
                    f"{recipe} sets load.{name}, so that code of the model's authors could run: check the recipe and "
                    f"the model, and confirm with `{name}=True`"
                )
    swept = [key.partition(".")[0] for key in sweep or {}]
    return RecipeFile(
        name=str(recipe), out=out, runs=runs, shares_data=bool(swept) and not {"data", "model", "load"} & set(swept)
    )


def parse_recipe(content: Mapping[str, Any], place: str) -> Recipe:
    """Parses the run that a recipe without a sweep describes.

    Args:
        content: Keys of `Recipe`.
        place: Name of the recipe, for messages.

    Raises:
        UserError: A key is unknown or missing, a value is invalid, or there is a secret.
    """
    _refuse_secrets(content, place)
    return parse(Recipe, content, place)


def recipe_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of recipe files, for editors: the keys of `Recipe`, ``out`` and ``sweep``.

    It has names, types and bounds; `read_recipe` checks combinations of keys. With ``sweep``, keys that the sweep sets
    may be missing.
    """
    schema = Recipe.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Recipe of longlens train"
    losses: list[dict[str, Any]] = [{"enum": list(LOSSES)}]
    for name, kind in LOSSES.items():
        own = {"type": ["object", "null"], "additionalProperties": False}
        if kind is not None:
            schema["$defs"][kind.__name__] = kind.model_json_schema()
            own = {"anyOf": [{"$ref": f"#/$defs/{kind.__name__}"}, {"type": "null"}]}
        losses.append({"type": "object", "properties": {name: own}, "required": [name], "additionalProperties": False})
    schema["properties"]["loss"] = {"anyOf": losses}
    schema["properties"]["out"] = {"type": "string", "minLength": 1}
    schema["properties"]["sweep"] = {"type": "object", "additionalProperties": {"type": "array"}}
    schema["if"], schema["else"] = {"required": ["sweep"]}, {"required": schema.pop("required")}
    said = {"out": "Directory of the run.", "sweep": "Lists of values by keys such as extend.theta, all combined."}
    for part in (schema, *schema["$defs"].values()):
        _describe_keys(part, said if part is schema else {})
    return schema


def _describe_keys(part: dict[str, Any], said: Mapping[str, str]) -> None:
    """Adds the docstring's description of each attribute to its key."""
    text, _, attributes = part.get("description", "").partition("\n\nAttributes:\n")
    part["description"] = " ".join(text.split())
    about = re.split(r"^ {4}(\w+): ", attributes.partition("\n\n")[0], flags=re.MULTILINE)[1:]
    texts = {name: " ".join(line.split()) for name, line in zip(about[::2], about[1::2], strict=True)} | dict(said)
    for name, one in part.get("properties", {}).items():
        one.pop("title", None)
        if name in texts:
            one["description"] = texts[name]


_SECRET_NAME = re.compile(r"(^|_)(hub_token|api_?key|password|secret|credentials?)$", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"\bhf_[A-Za-z0-9]{16,}|://[^/\s:@]+:[^/\s@]+@")


def _refuse_secrets(value: Any, place: str) -> None:
    """Rejects secrets, since the whole recipe is written into the run's folder; the message does not repeat them."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if _SECRET_NAME.search(str(name)) and inner is not None:
                raise UserError(
                    f"{place} has {shown_value(name)}, a secret that would be written into the run's folder: leave it "
                    "out, and set the environment variable (HF_TOKEN, WANDB_API_KEY) or log in"
                )
            _refuse_secrets(inner, f"{place}: {name}")
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _refuse_secrets(inner, place)
    elif isinstance(value, str) and _SECRET_VALUE.search(value):
        raise UserError(
            f"{place} holds a token or a password, which would be written into the run's folder: leave it out, and set "
            "the environment variable (HF_TOKEN) or log in"
        )


def _combinations(content: dict[str, Any], sweep: Any, place: str) -> dict[str, dict[str, Any]]:
    """The settings of each run of a sweep, by the name of its folder."""
    if sweep is None:
        return {".": content}
    if not isinstance(sweep, dict) or not sweep:
        raise UserError(
            f"{place}: sweep is {shown_value(sweep)}; expected keys with lists, such as extend.theta: [8e6, 64e6]"
        )
    for key, values in sweep.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{place}: sweep.{key} is {shown_value(values)}; expected a list of values")
    runs = {}
    for chosen in itertools.product(*sweep.values()):
        pairs = dict(zip(sweep, chosen, strict=True))
        settings = json.loads(json.dumps(content))
        for key, value in pairs.items():
            _set(settings, key, value, f"{place}: sweep")
        label = _label(pairs)
        if label in runs:
            raise UserError(f"{place}: sweep: {shown_value(label)} occurs twice: remove one")
        runs[label] = settings
    return runs


def _label(pairs: Mapping[str, Any]) -> str:
    """The name of a run's folder; values that are not valid in a name, such as paths, are shortened and hashed."""
    parts = [(key, v if isinstance(v, str) else json.dumps(v).replace('"', "")) for key, v in pairs.items()]
    label = ",".join(f"{key}={part}" for key, part in parts)
    if label == Path(label).name and label.isprintable() and len(label.encode()) <= 200:
        return label
    short = ",".join(f"{key}={_NO_NAME.sub('-', part).strip('-')[-40:]}" for key, part in parts)
    return f"{_NO_NAME.sub('-', short)[:160]}-{hashlib.sha256(label.encode()).hexdigest()[:6]}"


_NO_NAME = re.compile(r"[^\w.+,=-]+", re.ASCII)


def _set(content: dict[str, Any], key: str, value: Any, place: str) -> None:
    """Sets ``a.b.c``; missing sections are created, and their keys are validated later with all others."""
    *sections, name = key.split(".")
    known = [*Recipe.model_fields, "out", "sweep"]
    top = [*sections, name][0]
    if top not in known:
        raise UserError(f"{place} {key}: no such key{nearest(top, known)}; known are {', '.join(known)}")
    if top == "sweep" and sections:
        # Its keys themselves contain dots.
        sections, name = ["sweep"], key.partition(".")[2]
    inner = section_at(content, sections, f"{place} {key}")
    if value is None and name not in _NULLABLE:
        inner.pop(name, None)
    else:
        inner[name] = value


# Null does not mean the same as omitting the key.
_NULLABLE = {"clip"}


def mixture_of(data: MixtureData) -> Mixture:
    """The mixture with the recipe's overrides."""
    return read_mixture(data.mixture, length=data.length, tokens=data.tokens, seed=data.seed, sources=data.sources)
