"""``longlens study reproduce longce``: the runs of a study, in a folder that a killed one goes on from.

::

    OUT/recipe.yaml                all settings, and which text; written first, and another recipe is refused
    OUT/base/                      the small model at its own length
    OUT/base.json                  whether it retrieves there
    OUT/evaluator.json             key tokens of the held-out documents
    OUT/timing.json                seconds of a CE and a LongCE step, by method
    OUT/start.json                 what is scored at checkpoints, of the extended models before training
    OUT/runs/METHOD-ARM-SEED.json  one finished run: its numbers at checkpoints
    OUT/result.json                what `summary.summarise` makes of the runs
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from longlens.errors import UserError
from longlens.files import cannot_write, read_json, write_json
from longlens.study import reproduce as models
from longlens.study.arms import ARMS
from longlens.study.evaluation import (
    Batch,
    Questions,
    held_out_questions,
    key_tokens,
    make_batches,
    make_questions,
    measure,
)
from longlens.study.settings import Study, Training
from longlens.study.summary import equal_time_step, summarise
from longlens.study.text import Text, make_vocabulary
from longlens.train.folder import RunFolder

SCHEMA_VERSION = 1
TIMED_PAIRS = 8
TELL_SECONDS = 10.0
_BASE, _EVALUATOR, _ARM = 0, 1, 2
"""What a seed is of, so that no two uses draw the same numbers."""


def reproduce_longce(
    study: Study,
    out: str | os.PathLike[str],
    *,
    text: Text,
    seeds: Sequence[int] | None = None,
    told: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Trains and scores what is not in the folder yet, and sums it up.

    Args:
        study: All settings.
        out: A new folder, or one of the same study.
        text: Prose, of which held-out documents are set aside.
        seeds: Instead of the study's; its development seed is scored on the documents for development.
        told: Takes lines about the progress.

    Returns:
        What result.json holds, see `summary.summarise`.

    Raises:
        UserError: The text is too short, the folder holds something else or another study, a full disk.
    """
    chosen = tuple(study.seeds if seeds is None else seeds)
    if not chosen or len(set(chosen)) != len(chosen) or min(chosen) < 0:
        raise UserError(f"seeds are {list(chosen)}; expected different whole numbers from 0 on, such as 1,2,3")
    work = _Work(study, text, told)
    settings = {name: value for name, value in study.resolved().items() if name != "seeds"}
    settings["text"] = {"name": text.name, "sha256": text.sha256}
    with RunFolder(Path(out), settings) as folder:
        try:
            return work.do(folder.path, chosen)
        except OSError as error:
            raise cannot_write(folder.path, error, resumes=True) from error


class _Work:
    """The text of a study in tokens, and what its runs have in common."""

    def __init__(self, study: Study, text: Text, told: Callable[[str], None]) -> None:
        self.study, self.text, self.told = study, text, told
        parts = text.split(study.words.held_out)
        words = study.words
        self.vocabulary = make_vocabulary(parts["train"], words=words.words, keys=words.keys, values=words.values)
        self.documents = {name: self.vocabulary.encode(documents) for name, documents in parts.items()}
        self.questions = {
            name: held_out_questions(study, self.vocabulary, self.documents[name]) for name in ("test", "development")
        }

    def do(self, out: Path, seeds: Sequence[int]) -> dict[str, Any]:
        """All runs of these seeds, and their summary."""
        base = self._base(out / "base")
        keys = self._keys(out / "evaluator.json", base)
        timing = _kept(out / "timing.json", lambda: {"methods": self._timing(base)})["methods"]
        start = _kept(out / "start.json", lambda: self._start(base, keys))
        (out / "runs").mkdir(exist_ok=True)
        runs = []
        for seed, method, arm in product(seeds, self.study.extensions, ARMS):
            make = partial(self._run, base, keys, method, arm, seed, timing[method]["ratio"])
            runs.append(_kept(out / "runs" / f"{method}-{arm}-{seed}.json", make))
        result = {
            "schema_version": SCHEMA_VERSION,
            "text": {"name": self.text.name, "sha256": self.text.sha256},
            "base": _kept(out / "base.json", lambda: self._retrieves(base)),
            "evaluator": {name: value for name, value in read_json(out / "evaluator.json").items() if name != "keys"},
            "timing": timing,
            **summarise(self.study, runs, timing, start),
        }
        write_json(out / "result.json", result)
        return result

    def _base(self, path: Path) -> Any:
        if not path.exists():
            study = self.study
            model = models.make_model(study.model, self.vocabulary, study.base_seed)
            batches = self._batches(study.base, study.model.length, (_BASE, study.base_seed))
            for _ in self._steps("base", model, study.base, batches):
                pass
            temporary = path.with_name(".base.tmp")
            shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
            models.save(model, temporary)
            os.replace(temporary, path)
        return models.load(path)

    def _retrieves(self, base: Any) -> dict[str, Any]:
        """Whether the small model answers at its own length, on development documents."""
        study, documents = self.study, self.documents["development"]
        facts = replace(study.evaluation.facts, distance=study.base.facts.distance, repeated=0)
        rng, length, count = np.random.default_rng(study.base_seed), study.model.length, study.evaluation.documents
        questions = make_questions(facts, self.vocabulary, documents, length=length, count=count, rng=rng)
        found = models.score(base, questions)
        return {
            "schema_version": SCHEMA_VERSION,
            "parameters": sum(weight.numel() for weight in base.parameters()),
            "accuracy": float((found.predicted == questions[:, -1]).mean()),
            "answer_nll": float(-found.long[:, -1].mean()),
        }

    def _keys(self, path: Path, base: Any) -> dict[str, npt.NDArray[np.bool_]]:
        found = _kept(path, lambda: self._evaluate(base))
        masks = {}
        for name, questions in self.questions.items():
            masks[name] = np.zeros(questions.long.shape, dtype=bool)
            for row, positions in enumerate(found["keys"][name]):
                masks[name][row, positions] = True
        return masks

    def _evaluate(self, base: Any) -> dict[str, Any]:
        """Trains the evaluator and selects key tokens of all held-out documents."""
        study = self.study
        model = models.extended(base, study.extensions[study.evaluator_method])
        batches = self._batches(study.evaluator, study.length, (_EVALUATOR, study.development_seed))
        for _ in self._steps("evaluator", model, study.evaluator, batches):
            pass
        found: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "keys": {}}
        for name, questions in self.questions.items():
            short = models.score_under_short_context(model, questions.long, study.longce)
            scores = models.score(model, questions.long)
            keys = key_tokens(scores.long, short, alpha=study.evaluation.alpha, beta=study.evaluation.beta)
            found["keys"][name] = [np.flatnonzero(row).tolist() for row in keys]
            found[name] = {
                **self._measured(model, questions, keys),
                "num_key_tokens": int(keys.sum()),
                "num_key_answers": int(keys[:, -1].sum()),
            }
        return found

    def _timing(self, base: Any) -> dict[str, Any]:
        study = self.study
        batch = next(self._batches(study.training, study.length, (_ARM, study.development_seed))).token_ids
        found = {}
        for name, method in study.extensions.items():
            pairs = models.time_steps(models.extended(base, method), batch, study.longce, TIMED_PAIRS)
            ce, longce = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(after / before for before, after in pairs)
            found[name] = {"ce_seconds": ce, "longce_seconds": longce, "ratio": ratio}
            self.told(f"{name}: a step takes {ce:.3f} s with CE and {longce:.3f} s with LongCE, ratio {ratio:.2f}")
        return found

    def _start(self, base: Any, keys: Any) -> dict[str, Any]:
        """The extended models before training, by held-out documents and method."""
        found: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
        for part, questions in self.questions.items():
            found[part] = {
                name: self._measured(models.extended(base, method), questions, keys[part])
                for name, method in self.study.extensions.items()
            }
        return found

    def _run(self, base: Any, keys: Any, method: str, arm: str, seed: int, ratio: float) -> dict[str, Any]:
        """One arm of one method with one seed."""
        study = self.study
        part = "development" if seed == study.development_seed else "test"
        model = models.extended(base, study.extensions[method])
        training, looks = study.training, set(study.checkpoints)
        if arm == "ce":
            looks |= {equal_time_step(step, ratio) for step in study.checkpoints} | {study.ce_steps}
            training = training.lasting(max(looks))
        batches = self._batches(training, study.length, (_ARM, seed))
        points, weights = [], _Weights()
        for step in self._steps(f"{method} {arm} seed {seed}", model, training, batches, arm, seed):
            weights.add(step)
            if step.number in looks:
                point = {"step": step.number, **self._measured(model, self.questions[part], keys[part])}
                points.append(point)
                self.told(
                    f"{method} {arm} seed {seed}: step {step.number}, answers {point['accuracy']:.3f}, answer NLL "
                    f"{point['answer_nll']:.3f}, short PPL {point['short_ppl']:.2f}"
                )
        run = {"schema_version": SCHEMA_VERSION, "method": method, "arm": arm, "seed": seed, "documents": part}
        return {**run, "weights": weights.means(), "points": points}

    def _measured(self, model: Any, questions: Questions, keys: npt.NDArray[np.bool_]) -> dict[str, Any]:
        long, short = models.score(model, questions.long), models.score(model, questions.short)
        return measure(questions, long.long, short.long, long.predicted, keys)

    def _batches(self, training: Training, length: int, seed: Sequence[int]) -> Iterator[Batch]:
        return make_batches(training, self.vocabulary, self.documents["train"], length, seed)

    def _steps(
        self, name: str, model: Any, training: Training, batches: Iterator[Batch], arm: str = "ce", seed: int = 0
    ) -> Iterator[models.Step]:
        """The steps of a run; says every ten seconds where it is."""
        last = time.monotonic()
        # No step of another seed has the same number, of any run that is thought of.
        for step in models.train(
            model, training, batches, lambda number: ARMS[arm](self.study.longce, seed * 2**20 + number)
        ):
            yield step
            if time.monotonic() - last >= TELL_SECONDS:
                last = time.monotonic()
                self.told(f"{name}: step {step.number} of {training.steps}, loss {step.loss:.3f}")


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


def _kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the file holds, which is made and written where it is not there."""
    if not path.exists():
        write_json(path, make())
    return read_json(path)
