"""Measures a published model with a modified rotary embedding, without training: NLL by position, and questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np

from longlens.corpus import Document
from longlens.metrics.uncertainty import mean_interval
from longlens.models import load_transformers
from longlens.scoring.transformers import ContinuationScorer
from longlens.settings.options import Loading
from longlens.study.correlation_study.questions import CHANCE, Question, accuracy, ask, make_questions
from longlens.study.extension.settings import NONE, Pretrained
from longlens.study.longce import model as models
from longlens.study.reproduce import Steps

DTYPE = "float32"


class Extended:
    """A model extended with one method; it is loaded when a step needs it.

    Args:
        settings: Settings of this part.
        name: Name of the method.
        steps: Steps of the run directory.
    """

    def __init__(self, settings: Pretrained, name: str, steps: Steps) -> None:
        self.settings, self.name, self.steps = settings, name, steps

    @cached_property
    def _base(self) -> Any:
        return load_transformers(self.settings.model, Loading(dtype=DTYPE))

    @cached_property
    def _scorer(self) -> ContinuationScorer:
        model = models.extend_model(self._base.model, self.settings.methods[self.name])
        return ContinuationScorer(model, self._base.tokenizer, name=f"{self.settings.model} {self.name}")

    def nll(self, number: int, document: Document) -> dict[str, Any]:
        """Mean NLL of each block of a document, nats, from its beginning on; never NaN."""
        return self.steps.json(f"pretrained/nll/{self.name}-{number}.json", partial(self._nll, document))

    def _nll(self, document: Document) -> dict[str, Any]:
        ids = self._ids(document)
        return {"document": document.id, "blocks": self._blocks(self._scorer.model, ids)}

    def own(self, number: int, document: Document) -> dict[str, Any]:
        """The same for the last tokens of a document, as many as the model's trained length, by the unchanged model."""
        return self.steps.json(f"pretrained/nll/own-{number}.json", partial(self._own, document))

    def _own(self, document: Document) -> dict[str, Any]:
        length = int(self._base.model.config.max_position_embeddings)
        ids = self._ids(document)[-length:]
        return {"document": document.id, "length": length, "blocks": self._blocks(self._base.model, ids)}

    def _ids(self, document: Document) -> list[int]:
        ids: list[int] = self._base.tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids[: self.settings.tokens]

    def _blocks(self, model: Any, ids: Sequence[int]) -> list[float]:
        logprobs = models.score(model, np.array([ids], dtype=np.int64)).long[0]
        size = self.settings.block
        return [
            -float(np.nanmean(logprobs[start : start + size], dtype=np.float64)) for start in range(0, len(ids), size)
        ]

    def answers(self, task: str) -> list[dict[str, Any]]:
        """Returns the answers to the questions of a task, with one step per text."""
        spec, count = self.settings.tasks[task], self.settings.questions[task]
        texts = spec.texts or count
        found = []
        for number in range(texts):
            step = f"pretrained/tasks/{self.name}-{task}-{number}.json"
            rows = self.steps.json(step, lambda number=number: {"rows": self._ask(task, number)})["rows"]  # type: ignore[misc]
            found += rows
        return found

    def _ask(self, task: str, number: int) -> list[dict[str, Any]]:
        return ask(self._scorer, self._questions(task)[number])

    def _questions(self, task: str) -> list[list[Question]]:
        spec, count = self.settings.tasks[task], self.settings.questions[task]
        return make_questions(spec, count=count, seed=self.settings.seed, tokenizer=self._scorer.tokenizer)


def measure_pretrained(settings: Pretrained, documents: Sequence[Document], steps: Steps) -> dict[str, Any]:
    """Measures all methods on all documents and tasks.

    Returns:
        ``nll``, one row per method and document, and ``own``, one row per document; ``rise``, one row per method: the
        NLL of the last block of documents minus that of the unchanged model for the same tokens with no more context
        than its trained length, nats, ``mean`` over documents with Student's ``low`` and ``high``; ``tasks``, one row
        per method and task with ``right`` of ``n`` choices, their share ``choice`` with Wilson's ``low`` and ``high``,
        ``nll`` (of the whole right answer) and ``num_tokens``; ``chance``.
    """
    nll, tasks = [], []
    first = Extended(settings, NONE, steps)
    own = [first.own(number, document) for number, document in enumerate(documents)]
    for name in settings.methods:
        model = first if name == NONE else Extended(settings, name, steps)
        steps.progress.start(f"{settings.model} {name}", unit="texts", total=len(documents) + len(settings.tasks))
        try:
            for number, document in enumerate(documents):
                nll.append({"method": name, **model.nll(number, document)})
                steps.progress.update(number + 1)
            for number, task in enumerate(settings.tasks):
                tasks.append({"method": name, "task": task, **_counted(model.answers(task))})
                steps.progress.update(len(documents) + number + 1)
        finally:
            steps.progress.finish()
        del model
    rise = []
    for name in settings.methods:
        mine = [row["blocks"][-1] for row in nll if row["method"] == name]
        gaps = [last - row["blocks"][-1] for last, row in zip(mine, own, strict=True)]
        low, high = mean_interval(gaps) or (None, None)
        rise.append({"method": name, "mean": float(np.mean(gaps)), "low": low, "high": high})
    return {"model": settings.model, "nll": nll, "own": own, "rise": rise, "tasks": tasks, "chance": CHANCE}


def _counted(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    from scipy.stats import binomtest

    n, right = len(rows), round(accuracy(rows)["choice"] * len(rows))
    interval = binomtest(right, n).proportion_ci(method="wilson")
    return {
        "n": n,
        "right": right,
        "choice": right / n,
        "low": float(interval.low),
        "high": float(interval.high),
        "nll": -float(np.mean([row["target"] for row in rows])),
        "num_tokens": float(np.mean([row["num_tokens"] for row in rows])),
    }
