"""Defines the settings of the experiment, from a YAML recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from longlens.errors import UserError
from longlens.rope.base import Method
from longlens.settings.recipe import Integer, Name, Names, Real, Settings
from longlens.study.correlation_study.questions import TaskSettings
from longlens.study.longce.settings import Count, Methods, Shape, StudyEvaluation, StudyTraining, Windows, Words
from longlens.study.reproduce import StudySettings

NONE = "none"
"""The method that does not change the rotary embedding."""


class Reach(Settings):
    """Methods that extend a model to a multiple of its trained length.

    Attributes:
        factor: Extension factor.
        methods: Methods by name; `NONE` is NTK with the model's own base (``theta``), so that only the length changes.
    """

    factor: Count
    methods: Methods

    @model_validator(mode="after")
    def _check_none(self) -> Reach:
        if NONE not in self.methods:
            raise UserError(f"methods are {', '.join(self.methods)}; expected {NONE} among them, as a baseline")
        return self


class Small(Settings):
    """The part on small models, which are trained at a short length, extended and fine-tuned.

    Attributes:
        words: The vocabulary and the split of the text.
        model: The small model.
        base: Training at its own length.
        reaches: Lengths and methods of extension.
        trained: Methods that are also fine-tuned; all methods are measured frozen.
        training: Fine-tuning, with CE.
        learning_rates: Learning rates to try for each method and length with the development seeds; a method uses the
            one with the lowest choice NLL, averaged over forms.
        evaluation: What is scored. The trained form is the needle if it states one fact.
        short_context: K and d of the key tokens of LongPPL.
        evaluator: Training of the evaluator of LongPPL, with CE.
        evaluator_method: Extension method of the evaluator, which every length must have.
        development_seeds: Seeds for choosing learning rates; they are scored on development documents.
    """

    words: Words
    model: Shape
    base: StudyTraining
    reaches: tuple[Reach, ...] = Field(strict=False, min_length=1)
    trained: Names
    training: StudyTraining
    learning_rates: tuple[Real, ...] = Field(strict=False, min_length=1)
    evaluation: StudyEvaluation
    short_context: Windows
    evaluator: StudyTraining
    evaluator_method: Name
    development_seeds: tuple[Integer, ...] = Field(strict=False, min_length=1)

    @model_validator(mode="after")
    def _check_together(self) -> Small:
        factors = [reach.factor for reach in self.reaches]
        if min(factors) < 2 or len(set(factors)) < len(factors):
            raise UserError(f"factors of reaches are {factors}; expected distinct ones of at least 2")
        for reach in self.reaches:
            wanted = {*self.trained, self.evaluator_method, NONE}
            if not wanted <= set(reach.methods):
                raise UserError(
                    f"methods of factor {reach.factor} are {', '.join(reach.methods)}; expected all of "
                    f"{', '.join(sorted(wanted))}, which are fine-tuned"
                )
            for facts in (self.training.facts, self.evaluator.facts, self.evaluation.facts):
                facts.check(self.length(reach.factor))
        if NONE not in self.trained:
            raise UserError(f"trained is {', '.join(self.trained)}; expected {NONE} among them, as a baseline")
        if self.training.learning_rate is not None:
            raise UserError("training has a learning_rate, but learning_rates are tried: leave it out")
        for name in ("base", "evaluator"):
            if getattr(self, name).learning_rate is None:
                raise UserError(f"{name} has no learning_rate: set one, such as 1e-3")
        self.base.facts.check(self.model.length)
        return self

    def length(self, factor: int) -> int:
        """Number of tokens of extended documents."""
        return self.model.length * factor

    def method(self, factor: int, name: str) -> Method:
        """Returns a method of a length."""
        return next(reach for reach in self.reaches if reach.factor == factor).methods[name]


class Pretrained(Settings):
    """The part on a published model, whose extension is not trained.

    Attributes:
        model: Its name.
        methods: Methods by name, including `NONE`, see `Reach`.
        kinds: Kinds of text (`texts.four_kinds`) on which PPL is measured, with one document each.
        tokens: Number of tokens of a document.
        block: Tokens per block, by which NLL is reported.
        tasks: Tasks by name, with lengths below and above the trained one.
        questions: Number of questions of each task, by name.
        seed: Seed of the questions.
    """

    model: Name
    methods: Methods
    kinds: Names
    tokens: Count
    block: Count
    tasks: Mapping[str, TaskSettings]
    questions: Mapping[str, Count]
    seed: Annotated[Integer, Field(ge=0)]

    @model_validator(mode="after")
    def _check(self) -> Pretrained:
        if NONE not in self.methods:
            raise UserError(f"methods are {', '.join(self.methods)}; expected {NONE} among them, as a baseline")
        if set(self.questions) != set(self.tasks):
            raise UserError(f"questions are of {', '.join(self.questions)}; expected those of {', '.join(self.tasks)}")
        if self.tokens % self.block:
            raise UserError(f"tokens are {self.tokens} and block {self.block}: expected a multiple of the block")
        return self


class ExtensionStudy(StudySettings):
    """All settings of ``longlens study reproduce extension``.

    Attributes:
        seeds: Each seed determines a small base model, the test text, all documents, and the questions.
        small: The part on small models.
        pretrained: The part on a published model; skipped if it is not set.
        resamples: Number of resamples of the bootstrap.
        text: Prose for the small models: a file or a directory; Python's standard library by default.
    """

    free: ClassVar[frozenset[str]] = StudySettings.free | {"text"}

    small: Small
    pretrained: Pretrained | None = None
    resamples: Integer = Field(default=2000, ge=100)
    text: str | None = None

    @model_validator(mode="after")
    def _check_development(self) -> ExtensionStudy:
        if set(self.small.development_seeds) & set(self.seeds):
            raise UserError(
                f"seeds are {list(self.seeds)} and development_seeds {list(self.small.development_seeds)}: expected "
                "different seeds, because learning rates are chosen with these"
            )
        return self
