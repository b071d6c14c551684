"""Recipes of training runs: from YAML and ``--set`` to settings, every key known and used; and sweeps over them."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from longlens import recipe_file
from longlens.data.recipe import Mixture, read_mixture
from longlens.errors import UserError, shown_value
from longlens.losses.settings import ChunkedLongCE, LongCE, SampledLongCE
from longlens.recipe_file import assignment, made, nearest, read_yaml, real_number, whole_number, with_numbers
from longlens.rope.base import Method
from longlens.rope.settings import SETTINGS, is_required, parse_method
from longlens.train.data_settings import ChatData, DocumentsData, MixtureData, PackedData
from longlens.train.settings import Evaluation, Evaluator, Load, Lora, Offline, Training

Data = MixtureData | PackedData | DocumentsData | ChatData
DATA: dict[str, type[Data]] = {
    "mixture": MixtureData,
    "packed": PackedData,
    "documents": DocumentsData,
    "chat": ChatData,
}
LOSSES: dict[str, type[Any] | None] = {
    "longce": LongCE,
    "sampled-longce": SampledLongCE,
    "chunked-longce": ChunkedLongCE,
    "offline": Offline,
    "ce": None,
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run.

    Attributes:
        model: Hub id, folder, ``.gguf`` file, ``smollm2`` or ``gemma3-270m``.
        data: What is trained on.
        training: How.
        loss: LongCE in one of its forms; None for CE.
        load: How the model is loaded.
        extend: Position extrapolation before training: ``method`` and its settings, those of ``longlens extend``.
        lora: Adapters in place of all weights.
        evaluation: Held-out documents.
        after: Position extrapolation after training, of a second folder.

    Raises:
        UserError: The short context of LongCE is not shorter than the rows, or held-out documents are trained on.
    """

    model: str
    data: Data
    training: Training
    loss: LongCE | Offline | None
    load: Load
    extend: Mapping[str, Any] | None = None
    lora: Lora | None = None
    evaluation: Evaluation | None = None
    after: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("extend", "after"):
            self.method(name)
        length = self.length
        if length is not None:
            self.check_length(length)
        if isinstance(self.data, DocumentsData) and self.evaluation is not None:
            both = set(self.data.documents) & set(self.evaluation.documents)
            if both:
                raise UserError(
                    f"{shown_value(min(both))} is in data and in evaluation: evaluate on documents not trained on"
                )

    @property
    def length(self) -> int | None:
        """Tokens of a row; None where a folder says it."""
        if isinstance(self.data, MixtureData):
            return mixture_of(self.data).length
        return None if isinstance(self.data, PackedData) else self.data.length

    def check_length(self, length: int) -> None:
        """Refuses rows in which no token would have a short score.

        Raises:
            UserError: K is not shorter than the rows.
        """
        if isinstance(self.loss, LongCE) and self.loss.context >= length:
            raise UserError(
                f"the context K of the loss is {self.loss.context} and rows have {length} tokens, so that no token "
                "would have a short score and LongCE were CE: make data.length larger or the context smaller"
            )

    def method(self, name: str) -> Method | None:
        """The method of ``extend`` or ``after``.

        Raises:
            UserError: No such method, or settings that it does not have.
        """
        values = getattr(self, name)
        if values is None:
            return None
        settings = {key: value for key, value in values.items() if key != "method"}
        return parse_method(str(values["method"]), settings, lambda setting: f"{name}.{setting}")

    def resolved(self) -> dict[str, Any]:
        """All settings as JSON; `make_recipe` makes the same recipe of them."""
        content: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "loss":
                value = {_loss_name(value): {} if value is None else asdict(value)}
            if value is not None:
                content[field.name] = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        plain: dict[str, Any] = json.loads(json.dumps(content))  # tuples become lists
        return plain


@dataclass(frozen=True, kw_only=True)
class RecipeFile:
    """A recipe as it was read: one run, or those of a sweep.

    Attributes:
        name: Of the recipe.
        out: The folder that it names; None where it names none.
        runs: By the folder in that one: ``"."`` for one run, ``extend.theta=500000.0`` and so on for a sweep.
        shares_data: Whether all runs of a sweep are trained on the same rows.
    """

    name: str
    out: str | None
    runs: Mapping[str, Recipe]
    shares_data: bool = False


def presets() -> list[str]:
    """Names of the recipes that come with longlens."""
    return recipe_file.presets("train")


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
        changes: Such as ``training.steps=20``; values are YAML, and null takes a key away.
        trust_remote_code: Sets ``load.trust_remote_code``. A recipe may come from anyone, so that it alone cannot.
        allow_pickle: The same for ``load.allow_pickle``.

    Raises:
        UserError: No such recipe, no YAML, a key that is unknown or missing, a value that cannot be, a secret, or a
            recipe that lets code of others run without `trust_remote_code` or `allow_pickle`.
    """
    content = read_yaml(recipe, "train", "model, data and training")
    for change in changes:
        _set(content, *assignment(change, "--set", "training.steps=20"), "--set")
    consents = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
    for name, is_given in consents.items():
        if is_given:
            _set(content, f"load.{name}", True, name)
    out, sweep = content.pop("out", None), content.pop("sweep", None)
    if out is not None and not (isinstance(out, str) and out):
        raise UserError(f"out of {recipe} is {shown_value(out)}; expected a folder")
    runs = {label: made_of(values, f"{recipe}") for label, values in _combinations(content, sweep, f"{recipe}").items()}
    for run in runs.values():
        for name, is_given in consents.items():
            if getattr(run.load, name) and not is_given:
                raise UserError(
                    f"{recipe} sets load.{name}, so that code of the model's authors could run: check the recipe and "
                    f"the model, and confirm with --{name.replace('_', '-')} ({name}=True)"
                )
    swept = [key.partition(".")[0] for key in sweep or {}]
    return RecipeFile(
        name=str(recipe), out=out, runs=runs, shares_data=bool(swept) and not {"data", "model", "load"} & set(swept)
    )


def made_of(content: Mapping[str, Any], place: str) -> Recipe:
    """The recipe of these settings.

    Raises:
        UserError: A key that is unknown or missing, or a value that cannot be.
    """
    _check_sections(content, place)
    _refuse_secrets(content, place)
    values: dict[str, Any] = {
        "model": content["model"],
        "data": _variant(content["data"], DATA, f"{place}: data"),
        "loss": _loss(content["loss"], f"{place}: loss"),
        "training": _training(content["training"], f"{place}: training"),
        "load": _section(Load, content.get("load", {}), f"{place}: load"),
    }
    if not (isinstance(values["model"], str) and values["model"]):
        raise UserError(
            f"{place}: model is {shown_value(values['model'])}; expected a hub id, folder, .gguf file or smollm2"
        )
    if content.get("lora") is not None:
        values["lora"] = _section(Lora, content["lora"], f"{place}: lora")
    if content.get("evaluation") is not None:
        values["evaluation"] = _evaluation(content["evaluation"], f"{place}: evaluation")
    for name in ("extend", "after"):
        if content.get(name) is not None:
            values[name] = _method(content[name], f"{place}: {name}")
    return made(Recipe, values, place)


def _check_sections(content: Mapping[str, Any], place: str) -> None:
    recipe_file.check_keys(content, Recipe, place)
    for name in ("model", "data", "loss", "training"):
        if content.get(name) is None:
            raise UserError(f"{place} says no {name}: see docs/recipes.md, or start from one of {', '.join(presets())}")


_SECRET_NAME = re.compile(r"(^|_)(hub_token|api_?key|password|secret|credentials?)$", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"\bhf_[A-Za-z0-9]{16,}|://[^/\s:@]+:[^/\s@]+@")


def _refuse_secrets(value: Any, place: str) -> None:
    """All of a recipe is written into the run's folder, so no secret may be in it; the message does not repeat it."""
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
            raise UserError(f"{place}: sweep: {shown_value(label)} is there twice: give each value once")
        runs[label] = settings
    return runs


def _label(pairs: Mapping[str, Any]) -> str:
    """The name of a run's folder; values that cannot be in one, such as paths, are shortened and hashed."""
    parts = [(key, v if isinstance(v, str) else json.dumps(v).replace('"', "")) for key, v in pairs.items()]
    label = ",".join(f"{key}={part}" for key, part in parts)
    if label == Path(label).name and label.isprintable() and len(label.encode()) <= 200:
        return label
    short = ",".join(f"{key}={_NO_NAME.sub('-', part).strip('-')[-40:]}" for key, part in parts)
    return f"{_NO_NAME.sub('-', short)[:160]}-{hashlib.sha256(label.encode()).hexdigest()[:6]}"


_NO_NAME = re.compile(r"[^\w.+,=-]+", re.ASCII)


def _set(content: dict[str, Any], key: str, value: Any, place: str) -> None:
    """Sets ``a.b.c``; sections that are not there are made, and their keys checked with all others afterwards."""
    *sections, name = key.split(".")
    known = [*(field.name for field in fields(Recipe)), "out", "sweep"]
    top = [*sections, name][0]
    if top not in known:
        raise UserError(f"{place} {key}: no such key{nearest(top, known)}; known are {', '.join(known)}")
    if top == "sweep" and sections:
        # Its keys have dots themselves.
        sections, name = ["sweep"], key.partition(".")[2]
    inner = content
    for section in sections:
        if inner.get(section) is None:
            inner[section] = {}
        inner = inner[section]
        if not isinstance(inner, dict):
            raise UserError(f"{place} {key}: {section} is {shown_value(inner)} and has no keys: set {section} itself")
    if value is None and name not in _NULLABLE:
        inner.pop(name, None)
    else:
        inner[name] = value


# Null means something else than to leave the key out.
_NULLABLE = {"clip"}


def _section(kind: type[Any], values: Any, place: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"{place} is {shown_value(values)}; expected keys such as {fields(kind)[0].name}")
    found = with_numbers(values, kind, place)
    for field in fields(kind):
        if field.name not in found and is_required(field):
            raise UserError(f"{place} says no {field.name}: it is needed")
    return made(kind, found, place)


def _variant(values: Any, kinds: Mapping[str, type[Any]], place: str) -> Any:
    """The dataclass whose own key is there."""
    found = [name for name in kinds if isinstance(values, dict) and values.get(name) is not None]
    if len(found) != 1:
        had = " and ".join(found) or "none of them"
        raise UserError(f"{place} has {had}; expected one of {', '.join(kinds)}, and the keys that go with it")
    values = {name: value for name, value in values.items() if name not in kinds or name == found[0]}
    if found[0] in ("documents", "chat") and isinstance(values[found[0]], str):
        values[found[0]] = [values[found[0]]]
    return _section(kinds[found[0]], values, place)


def _loss(values: Any, place: str) -> Any:
    if isinstance(values, str):
        values = {values: {}}
    if not isinstance(values, dict) or len(values) != 1:
        raise UserError(
            f"{place} is {shown_value(values)}; expected one of {', '.join(LOSSES)} with its keys, such as longce: {{}}"
        )
    ((name, settings),) = values.items()
    if name not in LOSSES:
        raise UserError(f"{place} is {shown_value(name)}{nearest(name, LOSSES)}; expected one of {', '.join(LOSSES)}")
    kind = LOSSES[name]
    if kind is not None:
        return _section(kind, {} if settings is None else settings, f"{place}: {name}")
    if settings:
        raise UserError(f"{place}: ce has no keys, and {', '.join(settings)} was given: leave it out")
    return None


def _loss_name(loss: Any) -> str:
    kind = None if loss is None else type(loss)
    return next(name for name, known in LOSSES.items() if known is kind)


def _training(values: Any, place: str) -> Training:
    if isinstance(values, dict) and isinstance(values.get("betas"), list):
        values = values | {"betas": [real_number(beta, f"{place}: betas") for beta in values["betas"]]}
    if isinstance(values, dict) and isinstance(values.get("report_to"), str):
        values = values | {"report_to": [values["report_to"]]}
    training: Training = _section(Training, values, place)
    return training


def _evaluation(values: Any, place: str) -> Evaluation:
    if isinstance(values, dict) and values.get("evaluator") is not None:
        values = values | {"evaluator": _section(Evaluator, values["evaluator"], f"{place}: evaluator")}
    if isinstance(values, dict) and isinstance(values.get("documents"), str):
        values = values | {"documents": [values["documents"]]}
    evaluation: Evaluation = _section(Evaluation, values, place)
    return evaluation


def _method(values: Any, place: str) -> dict[str, Any]:
    """``method`` and its settings, with numbers as numbers."""
    known = ("method", *SETTINGS, "factors")
    if not isinstance(values, dict) or not values.get("method"):
        raise UserError(
            f"{place} is {shown_value(values)}; expected a method and its settings, such as {{method: pi, factor: 8}}"
        )
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise UserError(
                f"{place} has an unknown key {shown_value(name)}{nearest(name, known)}; known are {', '.join(known)}"
            )
        if name in ("first_layer", "original_length", "width"):
            found[name] = whole_number(value, f"{place}: {name}")
        else:
            is_number = name not in ("method", "factors")
            found[name] = real_number(value, f"{place}: {name}") if is_number else value
    return found


def mixture_of(data: MixtureData) -> Mixture:
    """The mixture with what the recipe says instead of it."""
    return read_mixture(data.mixture, length=data.length, tokens=data.tokens, seed=data.seed, sources=data.sources)
