"""Settings of a study, from a YAML recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, InstanceOf, TypeAdapter, model_validator

from longlens.errors import UserError, shown_value
from longlens.losses.settings import LongCE
from longlens.rope.base import Method
from longlens.rope.settings import Extension
from longlens.settings.options import ALPHA, BETA
from longlens.settings.recipe import Integer, Real, Settings
from longlens.study.longce.documents import Facts
from longlens.study.reproduce import StudySettings

Count = Annotated[Integer, Field(ge=1)]
Share = Annotated[Real, Field(ge=0, le=1)]


class Words(Settings):
    """The vocabulary and the split of the text.

    Attributes:
        words: Words that have an id.
        keys: Keys that facts can have.
        values: Values that a fact with some key can have.
        held_out: Share of the text's words whose documents are held out for testing, and as many for development.
    """

    words: Count
    keys: Count
    values: Count
    held_out: Real = Field(gt=0, lt=0.5)


class Shape(Settings):
    """A small Llama with tied embeddings.

    Attributes:
        length: Tokens that it is trained at.
        hidden: Width.
        intermediate: Width inside a feed-forward layer.
        layers: Layers.
        heads: Attention heads, each with keys and values of its own.
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

    steps: Count
    documents: Count
    learning_rate: Real = Field(gt=0)
    warmup: Integer = Field(ge=0)
    facts: Facts
    end: Share = 1.0
    weight_decay: Real = Field(default=0.0, ge=0)
    drills: Share = 0.0

    def lasting(self, steps: int) -> StudyTraining:
        """The same for another number of steps."""
        return self.replace(steps=steps)


class StudyEvaluation(Settings):
    """What is scored at checkpoints.

    Attributes:
        documents: Long documents with a question at their end, and as many short ones of prose alone.
        facts: Of a long document; ``distance`` is from the statement at depth 1 to the question.
        alpha: Of key tokens, nats.
        beta: Of key tokens, nats.
    """

    documents: Integer = Field(ge=2)
    facts: Facts
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


class Study(StudySettings):
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
        text: Prose: a file or a folder; Python's standard library unless given.
    """

    free: ClassVar[frozenset[str]] = StudySettings.free | {"text"}

    words: Words
    model: Shape
    base: StudyTraining
    base_seed: Integer
    extensions: Annotated[Mapping[str, InstanceOf[Method]], BeforeValidator(_to_methods)]
    longce: LongCE
    training: StudyTraining
    ce_steps: Integer
    checkpoints: tuple[Integer, ...] = Field(strict=False)
    evaluation: StudyEvaluation
    evaluator: StudyTraining
    evaluator_method: str
    development_seed: Integer
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
        if self.development_seed in self.seeds and len(self.seeds) > 1:
            raise UserError(
                f"seeds are {list(self.seeds)} and development_seed is {self.development_seed}: expected it alone, or "
                "others, since settings were chosen on it"
            )
        self.base.facts.check(self.model.length)
        for facts in (self.training.facts, self.evaluator.facts, self.evaluation.facts):
            facts.check(self.length)
        if self.longce.context >= self.length:
            raise UserError(f"context of longce is {self.longce.context}; documents have {self.length} tokens")
        return self

    @property
    def length(self) -> int:
        """Tokens of long documents: the extended length."""
        return int(self.model.length * next(iter(self.extensions.values())).factor)  # type: ignore[attr-defined]

    def resolved(self) -> dict[str, Any]:
        """All settings as JSON."""
        methods = {name: {"method": m.name, **asdict(m)} for name, m in self.extensions.items()}
        return self.model_dump(mode="json", exclude={"extensions"}) | {"extensions": methods}
