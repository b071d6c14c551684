"""Defines the settings of a study, from a YAML recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, InstanceOf, PlainSerializer, TypeAdapter, model_validator

from longlens.errors import UserError, shown_value
from longlens.losses.settings import LongCE
from longlens.rope.base import Method
from longlens.rope.settings import Extension
from longlens.settings.options import ALPHA, BETA
from longlens.settings.recipe import Integer, Real, Settings
from longlens.study.longce.arms import ARMS
from longlens.study.longce.documents import Facts, Form
from longlens.study.reproduce import StudySettings

Count = Annotated[Integer, Field(ge=1)]
Share = Annotated[Real, Field(ge=0, le=1)]


class Words(Settings):
    """The vocabulary and the split of the text.

    Attributes:
        words: Number of words with an id.
        keys: Number of keys of facts.
        values: Number of values of each key.
        held_out: Share of the text's words in documents held out for testing, and the same share for development.
    """

    words: Count
    keys: Count
    values: Count
    held_out: Real = Field(gt=0, lt=0.5)


class Shape(Settings):
    """A small Llama with tied embeddings.

    Attributes:
        length: Trained length in tokens.
        hidden: Hidden size.
        intermediate: Intermediate size of a feed-forward layer.
        layers: Number of layers.
        heads: Number of attention heads, each with its own keys and values.
        theta: Base of the rotary embedding.
    """

    length: Count
    hidden: Count
    intermediate: Count
    layers: Count
    heads: Count
    theta: Real

    @model_validator(mode="after")
    def _check_heads(self) -> Shape:
        if self.hidden % (2 * self.heads):
            raise UserError(f"hidden is {self.hidden} and heads {self.heads}: a head needs an even, equal share of it")
        return self


class StudyTraining(Settings):
    """A training run with AdamW (betas 0.9 and 0.95, gradient norm at most 1).

    Attributes:
        steps: Number of optimizer steps.
        documents: Documents per step.
        learning_rate: Peak learning rate; linear warm-up, then cosine decay to ``end`` of it. None if a grid is tried.
        warmup: Number of warm-up steps.
        end: Fraction of the learning rate at the end; 1 keeps it constant.
        weight_decay: Weight decay of AdamW.
        facts: Facts of a document.
        drills: In the first half of the steps, this share of a step's documents consists only of a few repeated facts
            (`documents.make_drill`), from which a model learns to retrieve.
    """

    steps: Count
    documents: Count
    learning_rate: Real | None = Field(default=None, gt=0)
    warmup: Integer = Field(ge=0)
    facts: Facts
    end: Share = 1.0
    weight_decay: Real = Field(default=0.0, ge=0)
    drills: Share = 0.0

    def lasting(self, steps: int) -> StudyTraining:
        """Returns the same settings with another number of steps."""
        return self.replace(steps=steps)


class StudyEvaluation(Settings):
    """What is scored at checkpoints.

    Attributes:
        documents: Number of long documents with a question at the end, and of short documents of only prose.
        facts: Facts of a long document; ``distance`` is from the statement at depth 1 to the question.
        forms: Other forms of facts, which do not occur in training, by name.
        form_documents: Number of long documents of each of these forms.
        long: Number of long documents as in training, for whose key tokens LongPPL is computed.
        alpha: Alpha of key tokens, nats.
        beta: Beta of key tokens, nats.
    """

    documents: Integer = Field(ge=2)
    facts: Facts
    forms: Mapping[str, Form]
    form_documents: Integer = Field(ge=2)
    long: Integer = Field(ge=1)
    alpha: Real = ALPHA
    beta: Real = BETA

    @model_validator(mode="after")
    def _check_facts(self) -> StudyEvaluation:
        if self.facts.stated < 1:
            raise UserError(f"stated of facts is {self.facts.stated}; expected at least 1")
        return self


def _to_methods(values: Any) -> Any:
    if not isinstance(values, Mapping) or all(isinstance(value, Method) for value in values.values()):
        return values
    found = TypeAdapter(dict[str, Extension]).validate_python(values)
    return {name: extension.build() for name, extension in found.items()}


def _to_json(methods: Mapping[str, Method]) -> dict[str, Any]:
    return {name: {"method": method.name, **asdict(method)} for name, method in methods.items()}


Methods = Annotated[Mapping[str, InstanceOf[Method]], BeforeValidator(_to_methods), PlainSerializer(_to_json)]
"""Methods that extend a context, by their names in tables."""


class Windows(Settings):
    """Another short context for LongCE (the paper's table 7).

    Attributes:
        context: K, tokens.
        stride: d, tokens.
    """

    context: Count
    stride: Count

    @property
    def name(self) -> str:
        """Name of the arm."""
        return f"longce K={self.context} d={self.stride}"


class Study(StudySettings):
    """All settings of ``longlens study reproduce longce``.

    Attributes:
        words: The vocabulary and the split of the text.
        model: The small model.
        base: Training at its own length.
        extensions: Methods that extend its context, by their names in tables; all to the same length.
        arms: The losses (`arms.ARMS`) with which each of `extensions` is trained.
        longce: Settings of LongCE.
        windows: Other K and d for LongCE, with `evaluator_method`.
        training: Training of the extended model; ``steps`` applies to the arms with a short-context pass.
        learning_rates: Learning rates to try for each arm with the development seeds; an arm uses the one with the
            lowest answer NLL.
        checkpoints: Steps after which the arms are scored; CE is also scored at the steps of equal time.
        evaluation: What is scored.
        evaluator: Training (with CE) of the evaluator of LongPPL, the seed's model extended by `evaluator_method`.
        evaluator_method: One of `extensions`.
        resamples: Number of resamples of the bootstrap.
        seeds: Seeds of the reported runs: each determines a base model, the test text, all documents, and the
            questions.
        development_seeds: Seeds for choosing learning rates; they are scored on development documents.
        processes: Number of seeds that run at the same time.
        text: Prose: a file or a directory; Python's standard library by default.
    """

    free: ClassVar[frozenset[str]] = StudySettings.free | {"text", "processes"}

    words: Words
    model: Shape
    base: StudyTraining
    extensions: Methods
    arms: Mapping[str, Annotated[tuple[str, ...], Field(strict=False)]]
    longce: LongCE
    windows: tuple[Windows, ...] = Field(default=(), strict=False)
    training: StudyTraining
    learning_rates: tuple[Real, ...] = Field(strict=False, min_length=1)
    checkpoints: tuple[Integer, ...] = Field(strict=False)
    evaluation: StudyEvaluation
    evaluator: StudyTraining
    evaluator_method: str
    resamples: Integer = Field(default=2000, ge=100)
    development_seeds: tuple[Integer, ...] = Field(strict=False, min_length=1)
    processes: Count = 1
    text: str | None = None

    @model_validator(mode="after")
    def _check_together(self) -> Study:
        factors = {getattr(method, "factor", None) for method in self.extensions.values()}
        if len(factors) != 1 or None in factors:
            raise UserError(f"extensions have the factors {sorted(map(str, factors))}; expected one that all share")
        if self.evaluator_method not in self.extensions:
            raise UserError(
                f"evaluator_method is {shown_value(self.evaluator_method)}; expected one of "
                f"{', '.join(self.extensions)}"
            )
        if set(self.arms) != set(self.extensions):
            raise UserError(f"arms are of {', '.join(self.arms)}; expected those of {', '.join(self.extensions)}")
        for method, arms in self.arms.items():
            if "ce" not in arms or not set(arms) <= set(ARMS) or len(set(arms)) != len(arms):
                raise UserError(f"arms of {method} are {list(arms)}; expected ce and others of {', '.join(ARMS)}")
        self._check_training()
        if set(self.development_seeds) & set(self.seeds):
            raise UserError(
                f"seeds are {list(self.seeds)} and development_seeds {list(self.development_seeds)}: expected "
                "different seeds, because learning rates are chosen with these"
            )
        self.base.facts.check(self.model.length)
        for facts in (self.training.facts, self.evaluator.facts, self.evaluation.facts):
            facts.check(self.length)
        if max(self.longce.context, *(w.context for w in self.windows), 0) >= self.length:
            raise UserError(f"context of longce is {self.longce.context}; documents have {self.length} tokens")
        return self

    def _check_training(self) -> None:
        if self.training.end != 1 or self.training.drills or self.training.learning_rate is not None:
            raise UserError(
                "training has end, drills or learning_rate, but CE trains for longer than LongCE with the same steps "
                "up to that point, and learning rates come from learning_rates: leave them out"
            )
        for name in ("base", "evaluator"):
            if getattr(self, name).learning_rate is None:
                raise UserError(f"{name} has no learning_rate: set one, such as 1e-3")
        if not self.checkpoints or list(self.checkpoints) != sorted(set(self.checkpoints)):
            raise UserError(f"checkpoints are {list(self.checkpoints)}; expected steps in order, such as [20, 40]")
        if self.checkpoints[0] < 1 or self.checkpoints[-1] != self.training.steps:
            raise UserError(
                f"checkpoints are {list(self.checkpoints)} and steps {self.training.steps}: expected the last "
                "checkpoint at the last step"
            )

    @property
    def length(self) -> int:
        """Number of tokens of long documents: the extended length."""
        return int(self.model.length * next(iter(self.extensions.values())).factor)  # type: ignore[attr-defined]

    def longce_of(self, arm: str) -> LongCE:
        """Returns K, d and gamma of an arm."""
        for windows in self.windows:
            if windows.name == arm:
                return self.longce.replace(context=windows.context, stride=windows.stride)
        return self.longce
