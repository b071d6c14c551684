"""Settings of a study, from a YAML recipe: every key known, every value checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import partial
from typing import Any, TypeVar

from longlens.errors import UserError, shown_value
from longlens.keytokens.influence import ALPHA, BETA, check_thresholds
from longlens.losses.settings import LongCE
from longlens.recipe_file import made, read_yaml, real_number, whole_number, with_numbers
from longlens.rope.base import Method
from longlens.rope.settings import parse_method
from longlens.study.documents import Facts

Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True, slots=True)
class Words:
    """The vocabulary and the split of the text.

    Attributes:
        words: Words that have an id.
        keys: Keys that facts can have.
        values: Values that a fact with some key can have.
        held_out: Share of the text's words whose documents are held out for testing, and as many for development.
    """

    words: int
    keys: int
    values: int
    held_out: float

    def __post_init__(self) -> None:
        """Checks the values."""
        for name in ("words", "keys", "values"):
            _at_least(1, self, name)
        if not 0 < self.held_out < 0.5:
            raise UserError(f"held_out is {self.held_out}; expected a share of the words between 0 and 0.5")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A small Llama with tied embeddings.

    Attributes:
        length: Tokens that it is trained at.
        hidden: Width.
        intermediate: Width inside a feed-forward layer.
        layers: Layers.
        heads: Attention heads, each with keys and values of its own.
        theta: Base of the rotary embedding.
    """

    length: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    theta: float

    def __post_init__(self) -> None:
        """Checks the values."""
        for name in ("length", "hidden", "intermediate", "layers", "heads"):
            _at_least(1, self, name)
        if self.hidden % (2 * self.heads):
            raise UserError(f"hidden is {self.hidden} and heads {self.heads}: a head needs an even, equal share of it")


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """A training run with AdamW (betas 0.9 and 0.95, gradient norm at most 1).

    Attributes:
        steps: Optimiser steps.
        documents: Documents of a step.
        learning_rate: The largest; linear warm-up, then a cosine down to ``end`` of it.
        warmup: Steps of the warm-up.
        end: What is left of the learning rate at the end; 1 keeps it as it is.
        weight_decay: Of AdamW.
        facts: Of a document.
        drills: In the first half of the steps this share of a step's documents is nothing but a few facts, again and
            again (`documents.make_drill`), from which a model learns to retrieve.
    """

    steps: int
    documents: int
    learning_rate: float
    warmup: int
    facts: Facts
    end: float = 1.0
    weight_decay: float = 0.0
    drills: float = 0.0

    def __post_init__(self) -> None:
        """Checks the values."""
        for name in ("steps", "documents"):
            _at_least(1, self, name)
        _at_least(0, self, "warmup")
        for name in ("end", "drills"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; expected a share between 0 and 1")
        if self.learning_rate <= 0 or self.weight_decay < 0:
            raise UserError("learning_rate must be above 0, and weight_decay not below 0")

    def lasting(self, steps: int) -> Training:
        """The same for another number of steps."""
        return replace(self, steps=steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What is scored at checkpoints.

    Attributes:
        documents: Long documents with a question at their end, and as many short ones of prose alone.
        facts: Of a long document; ``distance`` is from the statement at depth 1 to the question.
        alpha: Of key tokens, nats.
        beta: Of key tokens, nats.
    """

    documents: int
    facts: Facts
    alpha: float = ALPHA
    beta: float = BETA

    def __post_init__(self) -> None:
        """Checks the values."""
        _at_least(2, self, "documents")
        _at_least(1, self.facts, "stated")
        check_thresholds(self.alpha, self.beta)


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """All settings of ``longlens study reproduce longce``.

    Attributes:
        words: The vocabulary and the split of the text.
        model: The small model.
        base: How it is trained at its own length.
        base_seed: Of that.
        extensions: Methods that extend its context, by the name that the table has; all to one length.
        longce: Settings of LongCE.
        training: How the arms train the extended model; ``steps`` are those of the arms with a short pass.
        ce_steps: Steps of CE, which goes on so that it can be read at equal time.
        checkpoints: Steps after which the arms are scored; CE also where it has taken the same time.
        evaluation: What is scored.
        evaluator: How the evaluator of LongPPL, the extended model of `evaluator_method`, is trained (with CE).
        evaluator_method: One of `extensions`.
        seeds: Of the runs that count.
        development_seed: The one that settings were chosen on; it is scored on other documents.
    """

    words: Words
    model: Shape
    base: Training
    base_seed: int
    extensions: Mapping[str, Method]
    longce: LongCE
    training: Training
    ce_steps: int
    checkpoints: tuple[int, ...]
    evaluation: Evaluation
    evaluator: Training
    evaluator_method: str
    seeds: tuple[int, ...]
    development_seed: int

    def __post_init__(self) -> None:
        """Checks what the parts have to do with each other."""
        factors = {getattr(method, "factor", None) for method in self.extensions.values()}
        if len(factors) != 1 or None in factors:
            raise UserError(f"extensions have the factors {sorted(map(str, factors))}; expected one that all share")
        if self.evaluator_method not in self.extensions:
            raise UserError(
                f"evaluator_method is {shown_value(self.evaluator_method)}; expected one of "
                f"{', '.join(self.extensions)}"
            )
        if self.training.end != 1 or self.training.drills:
            raise UserError(
                "training has end or drills: CE goes on for longer than LongCE, and both must take the same steps as "
                "far as both go: leave them out"
            )
        steps = self.training.steps
        if not self.checkpoints or list(self.checkpoints) != sorted(set(self.checkpoints)):
            raise UserError(f"checkpoints are {list(self.checkpoints)}; expected steps in order, such as [20, 40]")
        if self.checkpoints[0] < 1 or self.checkpoints[-1] != steps or self.ce_steps < steps:
            raise UserError(
                f"checkpoints are {list(self.checkpoints)}, steps {steps} and ce_steps {self.ce_steps}: expected the "
                "last checkpoint at the last step, and CE to go on from there"
            )
        if self.development_seed in self.seeds or len(set(self.seeds)) != len(self.seeds) or not self.seeds:
            raise UserError(
                f"seeds are {list(self.seeds)} and development_seed is {self.development_seed}: expected different "
                "seeds, none of them the one that settings were chosen on"
            )
        self.base.facts.check(self.model.length)
        for facts in (self.training.facts, self.evaluator.facts, self.evaluation.facts):
            facts.check(self.length)
        if self.longce.context >= self.length:
            raise UserError(f"context of longce is {self.longce.context}; documents have {self.length} tokens")

    @property
    def length(self) -> int:
        """Tokens of long documents: the extended length."""
        return int(self.model.length * next(iter(self.extensions.values())).factor)  # type: ignore[attr-defined]

    def resolved(self) -> dict[str, Any]:
        """All settings as JSON."""
        plain = asdict(self)
        for name, method in self.extensions.items():
            plain["extensions"][name] = {"method": method.name, **asdict(method)}
        return plain | {"checkpoints": list(self.checkpoints), "seeds": list(self.seeds)}


def read_study(recipe: str | os.PathLike[str]) -> Study:
    """Reads a recipe.

    Args:
        recipe: ``longce``, or a YAML file with the keys of `Study`.

    Raises:
        UserError: No such recipe, no YAML, a key that is unknown or missing, or a value that cannot be.
    """
    return _read(Study, read_yaml(recipe, "studies", "model and training"), f"{recipe}")


def _read(kind: type[Made], values: Any, place: str) -> Made:
    """A dataclass from a mapping, and its parts likewise."""
    if not isinstance(values, dict):
        raise UserError(f"{place} is {shown_value(values)}; expected keys such as {fields(kind)[0].name}")  # type: ignore[arg-type]
    found = with_numbers(values, kind, place)
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name not in found:
            if field.default is MISSING:
                raise UserError(f"{place} has no {field.name}: give it")
        elif field.type in _PARTS:
            found[field.name] = _PARTS[str(field.type)](found[field.name], f"{place}: {field.name}")
    return made(kind, found, place)


def _numbers(values: Any, place: str) -> tuple[int, ...]:
    if not isinstance(values, list):
        raise UserError(f"{place} is {shown_value(values)}; expected a list of whole numbers")
    return tuple(whole_number(value, place) for value in values)


def _methods(values: Any, place: str) -> dict[str, Method]:
    if not isinstance(values, dict) or not all(isinstance(value, dict) for value in values.values()):
        raise UserError(f"{place} is {shown_value(values)}; expected names, each with its method and factor")
    return {
        name: parse_method(
            str(settings.get("method")),
            {key: real_number(value, f"{place}: {name}: {key}") for key, value in settings.items() if key != "method"},
            lambda key, name=name: f"{place}: {name}: {key}",  # type: ignore[misc]
        )
        for name, settings in values.items()
    }


_PARTS: dict[str, Callable[[Any, str], Any]] = {
    "Words": partial(_read, Words),
    "Shape": partial(_read, Shape),
    "Facts": partial(_read, Facts),
    "Training": partial(_read, Training),
    "Evaluation": partial(_read, Evaluation),
    "LongCE": partial(_read, LongCE),
    "tuple[int, ...]": _numbers,
    "Mapping[str, Method]": _methods,
}


def _at_least(least: int, settings: Any, name: str) -> None:
    if getattr(settings, name) < least:
        raise UserError(f"{name} is {getattr(settings, name)}; expected at least {least}")
