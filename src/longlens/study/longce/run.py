"""``longlens study reproduce longce``: the runs of the experiment.

::

    OUT/base/                      the small model at its own length
    OUT/base.json                  whether it retrieves there
    OUT/evaluator.json             key tokens of the held-out documents
    OUT/timing.json                seconds of a CE and a LongCE step, by method
    OUT/start.json                 what is scored at checkpoints, of the extended models before training
    OUT/runs/METHOD-ARM-SEED.json  one finished run: its numbers at checkpoints
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from longlens.errors import UserError
from longlens.keytokens.influence import hard_influence
from longlens.losses.settings import LongCE
from longlens.rope import load_model
from longlens.study import reproduce
from longlens.study.longce import model as models
from longlens.study.longce.documents import (
    FactBatch,
    Facts,
    Ids,
    Prose,
    Text,
    Vocabulary,
    make_document,
    make_drill,
    make_question,
    make_vocabulary,
    read_text,
)
from longlens.study.longce.settings import Study, StudyTraining
from longlens.study.longce.summary import equal_time_step, summarize, tables
from longlens.study.reproduce import Steps

_LOGGER = logging.getLogger(__name__)
TIMED_PAIRS = 8
QUARTERS = 4
_BASE, _EVALUATOR, _ARM = 0, 1, 2
"""What a seed is of, so that no two uses draw the same numbers."""
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


def run(study: Study, steps: Steps) -> dict[str, Any]:
    """Trains and scores what is not in the folder yet, and sums it up, see `summary.summarize`.

    Raises:
        UserError: The text is too short.
    """
    return _Experiment(study, read_text(study.text), steps).run(study.seeds)


def inputs(study: Study) -> dict[str, Any]:
    """Which text it is."""
    text = read_text(study.text)
    return {"text": {"name": text.name, "sha256": text.sha256}}


class _Experiment:
    """The text of a study in tokens, and what its runs have in common."""

    def __init__(self, study: Study, text: Text, steps: Steps) -> None:
        self.study, self.text, self.steps = study, text, steps
        parts = text.split(study.words.held_out)
        words = study.words
        self.vocabulary = make_vocabulary(parts["train"], words=words.words, keys=words.keys, values=words.values)
        self.documents = {name: self.vocabulary.encode(documents) for name, documents in parts.items()}
        self.questions = {
            name: held_out_questions(study, self.vocabulary, self.documents[name]) for name in ("test", "development")
        }

    def run(self, seeds: Sequence[int]) -> dict[str, Any]:
        """All runs of these seeds, and their summary."""
        step = self.steps.json
        base = self._base_model()
        found = step("evaluator.json", lambda: self._train_evaluator(base))
        keys = self._key_tokens(found)
        timing = step("timing.json", lambda: {"methods": self._time(base)})["methods"]
        start = step("start.json", lambda: self._measure_start(base, keys))
        runs = []
        for seed, method, arm in product(seeds, self.study.extensions, models.ARMS):
            make = partial(self._train_arm, base, keys, method, arm, seed, timing[method]["ratio"])
            runs.append(step(f"runs/{method}-{arm}-{seed}.json", make))
        return {
            "text": {"name": self.text.name, "sha256": self.text.sha256},
            "base": step("base.json", lambda: self._measure_base(base)),
            "evaluator": {name: value for name, value in found.items() if name != "keys"},
            "timing": timing,
            **summarize(self.study, runs, timing, start),
        }

    def _base_model(self) -> Any:
        study = self.study

        def make(path: Path) -> None:
            model = models.make_model(study.model, self.vocabulary, study.base_seed)
            batches = self._batches(study.base, study.model.length, (_BASE, study.base_seed))
            self._train("base", model, study.base, batches)
            models.save_model(model, path)

        return load_model(str(self.steps.folder("base", make)))

    def _measure_base(self, base: Any) -> dict[str, Any]:
        """Whether the small model answers at its own length, on development documents."""
        study, documents = self.study, self.documents["development"]
        facts = study.evaluation.facts.replace(distance=study.base.facts.distance, repeated=0)
        rng, length, count = np.random.default_rng(study.base_seed), study.model.length, study.evaluation.documents
        questions = _make_questions(facts, self.vocabulary, documents, length=length, count=count, rng=rng)
        found = models.score(base, questions)
        return {
            "parameters": sum(weight.numel() for weight in base.parameters()),
            "accuracy": float((found.predicted == questions[:, -1]).mean()),
            "answer_nll": float(-found.long[:, -1].mean()),
        }

    def _key_tokens(self, found: Mapping[str, Any]) -> dict[str, Bools]:
        masks = {}
        for name, questions in self.questions.items():
            masks[name] = np.zeros(questions.long.shape, dtype=bool)
            for row, positions in enumerate(found["keys"][name]):
                masks[name][row, positions] = True
        return masks

    def _train_evaluator(self, base: Any) -> dict[str, Any]:
        """Trains the evaluator and selects key tokens of all held-out documents."""
        study = self.study
        model = models.extend_model(base, study.extensions[study.evaluator_method])
        batches = self._batches(study.evaluator, study.length, (_EVALUATOR, study.development_seed))
        self._train("evaluator", model, study.evaluator, batches)
        found: dict[str, Any] = {"keys": {}}
        for name, questions in self.questions.items():
            short = models.score_under_short_context(model, questions.long, study.longce)
            scores = models.score(model, questions.long)
            keys = key_tokens(scores.long, short, alpha=study.evaluation.alpha, beta=study.evaluation.beta)
            found["keys"][name] = [np.flatnonzero(row).tolist() for row in keys]
            found[name] = {
                **self._measure(model, questions, keys),
                "num_key_tokens": int(keys.sum()),
                "num_key_answers": int(keys[:, -1].sum()),
            }
        return found

    def _time(self, base: Any) -> dict[str, Any]:
        study = self.study
        batch = next(self._batches(study.training, study.length, (_ARM, study.development_seed))).token_ids
        found = {}
        for name, method in study.extensions.items():
            pairs = models.time_steps(models.extend_model(base, method), batch, study.longce, TIMED_PAIRS)
            ce, longce = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(after / before for before, after in pairs)
            found[name] = {"ce_seconds": ce, "longce_seconds": longce, "ratio": ratio}
            _LOGGER.info(f"{name}: a step takes {ce:.3f} s with CE and {longce:.3f} s with LongCE, ratio {ratio:.2f}")
        return found

    def _measure_start(self, base: Any, keys: Any) -> dict[str, Any]:
        """The extended models before training, by held-out documents and method."""
        found: dict[str, Any] = {}
        for part, questions in self.questions.items():
            found[part] = {
                name: self._measure(models.extend_model(base, method), questions, keys[part])
                for name, method in self.study.extensions.items()
            }
        return found

    def _train_arm(self, base: Any, keys: Any, method: str, arm: str, seed: int, ratio: float) -> dict[str, Any]:
        """One arm of one method with one seed."""
        study, name = self.study, f"{method} {arm} seed {seed}"
        part = "development" if seed == study.development_seed else "test"
        model = models.extend_model(base, study.extensions[method])
        training, looks = study.training, set(study.checkpoints)
        if arm == "ce":
            looks |= {equal_time_step(step, ratio) for step in study.checkpoints} | {study.ce_steps}
            training = training.lasting(max(looks))
        batches = self._batches(training, study.length, (_ARM, seed))
        points, weights = [], _Weights()

        def look(step: models.Step) -> None:
            weights.add(step)
            if step.number in looks:
                point = {"step": step.number, **self._measure(model, self.questions[part], keys[part])}
                points.append(point)
                _LOGGER.info(
                    f"{name}: step {step.number}, answers {point['accuracy']:.3f}, answer NLL "
                    f"{point['answer_nll']:.3f}, short PPL {point['short_ppl']:.2f}"
                )

        # No step of another seed has the same number, of any run that is thought of.
        first = seed * 2**20
        self._train(
            name, model, training, batches, loss=lambda step: models.ARMS[arm](study.longce, first + step), look=look
        )
        run = {"method": method, "arm": arm, "seed": seed, "documents": part}
        return {**run, "weights": weights.means(), "points": points}

    def _measure(self, model: Any, questions: Questions, keys: Bools) -> dict[str, Any]:
        long, short = models.score(model, questions.long), models.score(model, questions.short)
        return measure(questions, long.long, short.long, long.predicted, keys)

    def _batches(self, training: StudyTraining, length: int, seed: Sequence[int]) -> Iterator[FactBatch]:
        return make_batches(training, self.vocabulary, self.documents["train"], length, seed)

    def _train(
        self,
        name: str,
        model: Any,
        training: StudyTraining,
        batches: Iterator[FactBatch],
        *,
        loss: Callable[[int], LongCE | None] = lambda step: None,
        look: Callable[[models.Step], None] = lambda step: None,
    ) -> None:
        """Trains a model, and shows how far that is."""

        def after_step(step: models.Step) -> None:
            self.steps.progress.update(step.number, note=f"loss {step.loss:.3f}")
            look(step)

        self.steps.progress.start(name, unit="steps", total=training.steps)
        try:
            models.train(model, training, batches, loss=loss, after_step=after_step)
        finally:
            self.steps.progress.finish()


class _Weights:
    """Mean weights of the tokens of a run."""

    def __init__(self) -> None:
        self._sums = np.zeros(4)

    def add(self, step: models.Step) -> None:
        """The weights of a step."""
        weights, answers = step.weights, step.weights[step.answers]
        self._sums += weights.sum(dtype=np.float64), weights.size, answers.sum(dtype=np.float64), answers.size

    def means(self) -> dict[str, float | None]:
        """Of all tokens, of answers, and the share that answers have of all weight."""
        total, count, answers, number = self._sums.tolist()
        return {
            "mean": total / count,
            "mean_of_answers": answers / number if number else None,
            "share_of_answers": answers / total,
        }


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What is scored at checkpoints.

    Attributes:
        long: ``(N, n)`` token ids; the last token is the answer, whose fact stands nearer from document to document.
        short: ``(N, L0)`` token ids of prose alone, as long as the model's own context.
    """

    long: Ids
    short: Ids


def held_out_questions(study: Study, vocabulary: Vocabulary, documents: Sequence[Ids]) -> Questions:
    """What is scored at checkpoints: the same for every run, and no run has seen it.

    Raises:
        UserError: The documents are too few.
    """
    rng, count = np.random.default_rng(study.base_seed), study.evaluation.documents
    facts = study.evaluation.facts
    long = _make_questions(facts, vocabulary, documents, length=study.length, count=count, rng=rng)
    prose = Prose(documents, rng)
    return Questions(long=long, short=np.stack([prose.sample(study.model.length) for _ in range(count)]))


def _make_questions(
    facts: Facts,
    vocabulary: Vocabulary,
    documents: Sequence[Ids],
    *,
    length: int,
    count: int,
    rng: np.random.Generator,
) -> Ids:
    """``(count, length)`` token ids: `make_question` at equally spaced depths, from 0 to 1."""
    prose = Prose(documents, rng)
    depths = np.linspace(0, 1, count)
    return np.stack([make_question(prose, vocabulary, facts, length, float(d), rng).token_ids for d in depths])


def make_batches(
    training: StudyTraining, vocabulary: Vocabulary, documents: Sequence[Ids], length: int, seed: Sequence[int]
) -> Iterator[FactBatch]:
    """The documents of each step; a function of the seed alone, so that all arms of a seed learn from the same ones.

    Raises:
        UserError: The documents are too few, or the facts do not fit.
    """
    rng = np.random.default_rng(seed)
    prose = Prose(documents, rng)
    for step in range(training.steps):
        drills = round(training.drills * training.documents) if 2 * step < training.steps else 0
        rows = [make_drill(vocabulary, length, rng) for _ in range(drills)]
        rows += [
            make_document(prose, vocabulary, training.facts, length, rng) for _ in range(training.documents - drills)
        ]
        answers = np.zeros((len(rows), length), dtype=bool)
        for row, document in enumerate(rows):
            answers[row, [answer.position for answer in document.answers]] = True
        yield FactBatch(token_ids=np.stack([row.token_ids for row in rows]), answers=answers)


def key_tokens(long: Floats, short: Floats, *, alpha: float, beta: float) -> Bools:
    """``(N, n)`` bool: key tokens by the evaluator's log-probabilities under both contexts (eq. 4)."""
    if not np.isfinite(short).any():
        raise UserError("no token has a short score: the short context is not shorter than the documents")
    return hard_influence(long - short, long, alpha=alpha, beta=beta)


def measure(questions: Questions, long: Floats, short: Floats, predicted: Ids, keys: Bools) -> dict[str, Any]:
    """What one checkpoint is worth.

    Args:
        questions: N documents of either kind.
        long: ``(N, n)`` nats, of `Questions.long`.
        short: ``(N, L0)`` nats, of `Questions.short`.
        predicted: ``(N,)`` the most probable last token of each long document, of the whole vocabulary.
        keys: ``(N, n)`` bool, the evaluator's key tokens.

    Returns:
        ``accuracy`` (of the answer, over the whole vocabulary), ``accuracy_by_depth`` (over quarters of the documents,
        the farthest facts first), ``answer_nll`` (nats), ``longppl``, ``ppl`` and ``short_ppl``.
    """
    right = predicted == questions.long[:, -1]
    return {
        "accuracy": float(right.mean()),
        "accuracy_by_depth": [float(part.mean()) for part in np.array_split(right, QUARTERS)],
        "answer_nll": float(-long[:, -1].mean(dtype=np.float64)),
        "longppl": _perplexity(long[keys]),
        "ppl": _perplexity(long[:, 1:]),
        "short_ppl": _perplexity(short[:, 1:]),
    }


def _perplexity(logprobs: Floats) -> float | None:
    return float(np.exp(-logprobs.mean(dtype=np.float64))) if logprobs.size else None


STUDY = reproduce.Study(settings=Study, run=run, tables=tables, inputs=inputs)
