"""Trains, extends, fine-tunes and scores the small models of one seed."""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from longlens.losses.settings import LongCE
from longlens.rope import load_model
from longlens.study.extension.settings import Small
from longlens.study.longce import model as models
from longlens.study.longce.documents import Text
from longlens.study.longce.questions import (
    TRAINED,
    Bools,
    HeldOut,
    answered,
    held_out,
    key_tokens,
    make_batches,
    measure,
    own_forms,
    seed_text,
)
from longlens.study.longce.settings import StudyTraining
from longlens.study.reproduce import Steps

NEEDLE = "needle"
"""Name of the trained form in tables."""
_BASE, _EVALUATOR, _ARM, _CHECK = 0, 1, 2, 4
"""Offsets of a seed by use, so that no two uses share random numbers; 3 is used for questions."""


class SmallModels:
    """The models and measurements of one seed, step by step.

    Args:
        small: Settings.
        text: The whole text.
        steps: Steps of the run directory.
        seed: Determines the base model, the test text, all documents and the questions.
    """

    def __init__(self, small: Small, text: Text, steps: Steps, seed: int) -> None:
        self.small, self.steps, self.seed = small, steps, seed
        self.development = seed in small.development_seeds
        self._all = text

    @cached_property
    def text(self) -> Any:
        """The text of this seed as tokens."""
        return seed_text(self._all, self.small.words, self.seed, development=self.development)

    @cached_property
    def base(self) -> Any:
        """The small model at its trained length."""
        return load_model(str(self.steps.folder(f"small/{self.seed}/base", self._train_base)))

    def _train_base(self, path: Path) -> None:
        model = models.make_model(self.small.model, self.text.vocabulary, self.seed)
        self._train(model, self.small.base, self.small.model.length, _BASE)
        models.save_model(model, path)

    def own(self) -> dict[str, Any]:
        """Results of the base model at its trained length, and of its text."""
        return self.steps.json(f"small/{self.seed}/own.json", self._own)

    def _own(self) -> dict[str, Any]:
        small, rng = self.small, np.random.default_rng([_CHECK, self.seed])
        asked = own_forms(
            small.evaluation, self.text, distance=small.base.facts.distance, length=small.model.length, rng=rng
        )
        return {
            "seed": self.seed,
            "parameters": sum(weight.numel() for weight in self.base.parameters()),
            "text": {"shared": self.text.clean.shared, "removed": self.text.clean.removed},
            "forms": {
                NEEDLE if name == TRAINED else name: answered(self.base, self.text.vocabulary, documents)[0]
                for name, documents in asked.items()
            },
        }

    def held(self, factor: int) -> HeldOut:
        """Returns the documents to score at a length."""
        small = self.small
        lengths = {"length": small.length(factor), "short": small.model.length}
        return held_out(small.evaluation, self.text, self.seed, training=small.training.facts, **lengths)

    def _evaluator(self, factor: int) -> dict[str, Any]:
        small, held = self.small, self.held(factor)
        model = self._extended(factor, small.evaluator_method)
        self._train(model, small.evaluator, small.length(factor), _EVALUATOR)
        windows = LongCE(context=small.short_context.context, stride=small.short_context.stride)
        limits = {"alpha": small.evaluation.alpha, "beta": small.evaluation.beta}
        keys = key_tokens(model, held.documents, windows, **limits)
        return {
            "num_tokens": int(keys.size),
            "num_key_tokens": int(keys.sum()),
            "num_key_answers": int((keys & held.answers).sum()),
            "keys": [np.flatnonzero(row).tolist() for row in keys],
        }

    def evaluator(self, factor: int) -> dict[str, Any]:
        """Returns the key tokens of the long documents."""
        return self.steps.json(f"small/{self.seed}/keys-{factor}x.json", partial(self._evaluator, factor))

    def frozen(self, factor: int, method: str) -> dict[str, Any]:
        """Returns the results of the extended model without fine-tuning."""
        return self.steps.json(
            f"small/{self.seed}/frozen-{factor}x-{method}.json",
            lambda: self._measured(self._extended(factor, method), factor),
        )

    def trained(self, factor: int, method: str, rate: float) -> dict[str, Any]:
        """Returns the results of the extended model after fine-tuning."""
        return self.steps.json(
            f"small/{self.seed}/trained-{factor}x-{method}.json",
            lambda: {"learning_rate": rate, **self._measured(self._tuned(factor, method, rate), factor)},
        )

    def tried(self, factor: int, method: str, rate: float) -> dict[str, Any]:
        """Returns the results of a learning rate on development documents."""
        return self.steps.json(
            f"small/tuning/{factor}x-{method}-{rate:g}-{self.seed}.json", partial(self._try, factor, method, rate)
        )

    def _try(self, factor: int, method: str, rate: float) -> dict[str, Any]:
        model = self._tuned(factor, method, rate)
        found = {
            name: answered(model, self.text.vocabulary, documents)[0]
            for name, documents in self.held(factor).forms.items()
        }
        return {
            "factor": factor,
            "method": method,
            "seed": self.seed,
            "learning_rate": rate,
            "choice_nll": float(np.mean([form["choice_nll"] for form in found.values()])),
            "choice": float(np.mean([form["choice"] for form in found.values()])),
        }

    def _measured(self, model: Any, factor: int) -> dict[str, Any]:
        held = self.held(factor)
        keys: Bools = np.zeros(held.documents.shape, dtype=bool)
        for row, positions in enumerate(self.evaluator(factor)["keys"]):
            keys[row, positions] = True
        found = measure(model, self.text.vocabulary, held, keys, all_of_it=True)
        forms = {NEEDLE if name == TRAINED else name: answers for name, answers in found["forms"].items()}
        return {"factor": factor, "seed": self.seed, **found, "forms": forms}

    def _extended(self, factor: int, method: str) -> Any:
        return models.extend_model(self.base, self.small.method(factor, method))

    def _tuned(self, factor: int, method: str, rate: float) -> Any:
        model = self._extended(factor, method)
        self._train(model, self.small.training.replace(learning_rate=rate), self.small.length(factor), _ARM)
        return model

    def _train(self, model: Any, training: StudyTraining, length: int, use: int) -> None:
        batches = make_batches(training, self.text.vocabulary, self.text.clean.documents, length, (use, self.seed))
        models.train(model, training, batches, seed=self.seed * 2**20)
