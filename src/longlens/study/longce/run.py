"""``longlens study reproduce longce``: the runs of the experiment.

::

    OUT/seeds/SEED/base/                   the small model at its trained length
    OUT/seeds/SEED/start.json              its text, its key tokens, and results of the models before training
    OUT/timing.json                        seconds of a step of CE and of LongCE, by method and short context
    OUT/tuning/METHOD-ARM-RATE-SEED.json   a development run: its results at the last checkpoint
    OUT/runs/METHOD-ARM-SEED.json          a finished run: its results at checkpoints
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
import torch

from longlens.losses.settings import LongCE
from longlens.progress import Progress
from longlens.rope import load_model
from longlens.study import reproduce
from longlens.study.longce import model as models
from longlens.study.longce.arms import ARMS, Arm
from longlens.study.longce.documents import (
    FactBatch,
    Text,
    read_text,
)
from longlens.study.longce.questions import (
    TRAINED,
    Bools,
    answered,
    held_out,
    key_tokens,
    make_batches,
    measure,
    own_forms,
    seed_text,
)
from longlens.study.longce.settings import Study, StudyTraining
from longlens.study.longce.summary import choose_rates, equal_time_step, summarize, tables
from longlens.study.reproduce import Inputs, Steps

_LOGGER = logging.getLogger(__name__)
TIMED_PAIRS = 8
POLL = 2.0
"""Seconds between checks of the progress of other processes."""
_BASE, _EVALUATOR, _ARM, _CHECK = 0, 1, 2, 4
"""Offsets of a seed by use, so that no two uses share random numbers; 3 is used for questions."""


def run(study: Study, steps: Steps, text: Text) -> dict[str, Any]:
    """Trains and scores missing steps, and summarizes all steps, see `summary.summarize`.

    Raises:
        UserError: The text is too short.
    """
    _work(study, steps, [_Job(seed=seed) for seed in study.development_seeds])
    timing = steps.json("timing.json", lambda: _Seed(study, text, steps, study.development_seeds[0]).time())
    arms = {method: arms_of(study, method) for method in study.extensions}
    pairs = [(method, arm) for method, found in arms.items() for arm in found]
    tries = [
        _Job(seed=seed, method=method, arm=arm, rate=rate, looks=(study.training.steps,), tuning=True)
        for seed in study.development_seeds
        for method, arm in pairs
        for rate in study.learning_rates
    ]
    _work(study, steps, tries)
    tried = [steps.json(job.name, dict) for job in tries]
    rates = choose_rates(tried)
    jobs = [
        _Job(seed=seed, method=method, arm=arm, rate=rates[method][arm], looks=looks_of(study, method, arm, timing))
        for seed in study.seeds
        for method, arm in pairs
    ]
    _work(study, steps, [_Job(seed=seed) for seed in study.seeds])
    _work(study, steps, jobs)
    every = (*study.development_seeds, *study.seeds)
    starts = {seed: steps.json(_Job(seed=seed).name, dict) for seed in every}
    return {
        "text": {"name": text.name, "sha256": text.sha256},
        "timing": timing,
        "rates": rates,
        "tuning": [{name: value for name, value in row.items() if name != "forms"} for row in tried],
        **summarize(study, [steps.json(job.name, dict) for job in jobs], timing, starts),
    }


def read(study: Study) -> Inputs:
    """The text."""
    text = read_text(study.text)
    return Inputs({"text": {"name": text.name, "sha256": text.sha256}}, text)


def arms_of(study: Study, method: str) -> list[str]:
    """Returns the arms of a method, with other short contexts of LongCE at the end."""
    windows = [w.name for w in study.windows] if method == study.evaluator_method else []
    return [*study.arms[method], *windows]


def looks_of(study: Study, method: str, arm: str, timing: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the steps after which an arm is scored; for CE also the steps at equal time with each of the others."""
    if arm != "ce":
        return study.checkpoints
    ratios = [found["ratio"] for found in timing[method].values()]
    return tuple(sorted({*study.checkpoints, *(equal_time_step(study.training.steps, ratio) for ratio in ratios)}))


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A part of the experiment that uses a single seed: its start, or a run.

    Attributes:
        seed: The seed.
        method: Method, one of `Study.extensions`; empty for the seed's start.
        arm: The loss.
        rate: Learning rate.
        looks: Steps after which the run is scored; the last step ends the run.
        tuning: Whether it is a development run for choosing learning rates.
    """

    seed: int
    method: str = ""
    arm: str = ""
    rate: float = 0.0
    looks: tuple[int, ...] = ()
    tuning: bool = False

    @property
    def name(self) -> str:
        """Name of the result file."""
        arm = self.arm.replace(" ", "-").replace("=", "")
        if not self.method:
            return f"seeds/{self.seed}/start.json"
        if self.tuning:
            return f"tuning/{self.method}-{arm}-{self.rate:g}-{self.seed}.json"
        return f"runs/{self.method}-{arm}-{self.seed}.json"


def _work(study: Study, steps: Steps, jobs: Sequence[_Job]) -> None:
    """Runs the jobs whose files are missing, in the study's number of processes."""

    def missing() -> list[_Job]:
        return [job for job in jobs if not (steps.path / job.name).exists()]

    left = missing()
    if not left:
        return
    title = "development runs" if left[0].tuning else "runs" if left[0].method else "base models"
    steps.progress.start(title, unit="runs", total=len(jobs), done=len(jobs) - len(left))
    try:
        if study.processes == 1:
            for part in _parts(left, 1):
                _do(study, steps.path, part, torch.get_num_threads(), steps.progress)
            return
        # Running two small models at the same time is faster than running one on two threads.
        threads = max(1, torch.get_num_threads() // study.processes)
        with ProcessPoolExecutor(study.processes, mp_context=get_context("spawn")) as pool:
            running = {pool.submit(_do, study, steps.path, part, threads) for part in _parts(left, study.processes)}
            try:
                shown = len(left)
                while running:
                    ended, running = wait(running, timeout=POLL, return_when=FIRST_EXCEPTION)
                    for future in ended:
                        future.result()
                    if len(missing()) < shown:
                        shown = len(missing())
                        steps.progress.update(len(jobs) - shown)
            finally:
                pool.shutdown(cancel_futures=True)
    finally:
        steps.progress.finish()


def _parts(jobs: Sequence[_Job], processes: int) -> list[list[_Job]]:
    """Splits jobs into parts of one seed, which share text and base model; at least one part per process, if possible.

    Long and short jobs alternate in the parts of a seed.
    """
    seeds = list(dict.fromkeys(job.seed for job in jobs))
    ways = max(1, math.ceil(processes / len(seeds)))
    parts = [[job for job in jobs if job.seed == seed][start::ways] for seed in seeds for start in range(ways)]
    return [part for part in parts if part]


def _do(study: Study, path: Path, jobs: Sequence[_Job], threads: int, progress: Progress | None = None) -> None:
    """Runs jobs of one seed, possibly in a separate process."""
    torch.set_num_threads(threads)
    steps = Steps(path, Progress() if progress is None else progress)
    seed = _Seed(study, read_text(study.text), steps, jobs[0].seed)
    parent = parent_process()
    for job in jobs:
        if parent is not None and not parent.is_alive():
            return  # the parent process was killed; another run may resume
        steps.json(job.name, partial(seed.train_arm, job) if job.method else seed.start)


class _Seed:
    """Shared state of the runs of one seed: its text as tokens, its base model, its scored documents."""

    def __init__(self, study: Study, text: Text, steps: Steps, seed: int) -> None:
        self.study, self.steps, self.seed = study, steps, seed
        development = seed in study.development_seeds
        self.part = "development" if development else "test"
        self.text = seed_text(text, study.words, seed, development=development)
        self.vocabulary = self.text.vocabulary
        facts, lengths = study.training.facts, {"length": study.length, "short": study.model.length}
        self.held = held_out(study.evaluation, self.text, seed, training=facts, **lengths)

    @cached_property
    def base(self) -> Any:
        """The small model at its trained length."""
        return load_model(str(self.steps.folder(f"seeds/{self.seed}/base", self._train_base)))

    def _train_base(self, path: Path) -> None:
        study = self.study
        model = models.make_model(study.model, self.vocabulary, self.seed)
        self._train(model, study.base, study.model.length, _BASE)
        models.save_model(model, path)

    def start(self) -> dict[str, Any]:
        """Returns the state before the arms: the text, the base model, the evaluator, and the extended models."""
        study, length = self.study, self.study.model.length
        rng = np.random.default_rng([_CHECK, self.seed])
        forms = own_forms(study.evaluation, self.text, distance=study.base.facts.distance, length=length, rng=rng)
        found = {}
        for name, asked in forms.items():
            answers, _ = answered(self.base, self.vocabulary, asked)
            found[name] = {key: value for key, value in answers.items() if key != "questions"}
        evaluator = models.extend_model(self.base, study.extensions[study.evaluator_method])
        self._train(evaluator, study.evaluator, study.length, _EVALUATOR)
        limits = {"alpha": study.evaluation.alpha, "beta": study.evaluation.beta}
        keys = key_tokens(evaluator, self.held.documents, study.longce, **limits)
        return {
            "seed": self.seed,
            "documents": self.part,
            "text": {"shared": self.text.clean.shared, "removed": self.text.clean.removed},
            "base": {"parameters": sum(weight.numel() for weight in self.base.parameters()), "forms": found},
            "evaluator": {
                "num_tokens": int(keys.size),
                "num_key_tokens": int(keys.sum()),
                "num_key_answers": int((keys & self.held.answers).sum()),
            },
            "keys": [np.flatnonzero(row).tolist() for row in keys],
            "start": {
                name: measure(models.extend_model(self.base, method), self.vocabulary, self.held, keys, all_of_it=True)
                for name, method in study.extensions.items()
            },
        }

    @cached_property
    def _keys(self) -> Bools:
        """Returns the evaluator's key tokens of the scored documents."""
        rows = self.steps.json(f"seeds/{self.seed}/start.json", self.start)["keys"]
        mask = np.zeros(self.held.documents.shape, dtype=bool)
        for row, positions in enumerate(rows):
            mask[row, positions] = True
        return mask

    def time(self) -> dict[str, Any]:
        """Measures seconds of a step of CE and of LongCE, by method and K and d."""
        study = self.study
        training = study.training.replace(learning_rate=1.0)
        batch = next(self._batches(training, study.length, _ARM)).token_ids
        found: dict[str, Any] = {}
        for name, method in study.extensions.items():
            found[name] = {}
            for arm in ("longce", *(a for a in arms_of(study, name) if a not in ARMS)):
                model = models.extend_model(self.base, method)
                pairs = models.time_steps(model, batch, study.longce_of(arm), TIMED_PAIRS)
                ce, longce = (statistics.median(column) for column in zip(*pairs, strict=True))
                ratio = statistics.median(after / before for before, after in pairs)
                found[name][arm] = {"ce_seconds": ce, "longce_seconds": longce, "ratio": ratio}
                _LOGGER.info(f"{name} {arm}: {ce:.3f} s a step with CE, {longce:.3f} s with LongCE, ratio {ratio:.2f}")
        return found

    def train_arm(self, job: _Job) -> dict[str, Any]:
        """Trains one arm of one method, and scores it at its checkpoints."""
        study = self.study
        model = models.extend_model(self.base, study.extensions[job.method])
        training = study.training.replace(steps=job.looks[-1], learning_rate=job.rate)
        points, weights, keys = [], Weights(), None if job.tuning else self._keys

        def look(step: models.Step) -> None:
            weights.add(step)
            if step.number in job.looks:
                found = measure(model, self.vocabulary, self.held, keys, all_of_it=step.number >= study.training.steps)
                points.append({"step": step.number, **found})

        arm = ARMS.get(job.arm, ARMS["longce"])
        self._train(model, training, study.length, _ARM, arm=arm, longce=study.longce_of(job.arm), look=look)
        run = {"method": job.method, "arm": job.arm, "seed": self.seed, "learning_rate": job.rate}
        if job.tuning:
            (point,) = points
            trained = point["forms"][TRAINED]
            return (
                run | {name: trained[name] for name in ("accuracy", "answer_nll", "choice_nll")} | {"ppl": point["ppl"]}
            )
        return {**run, "documents": self.part, "weights": weights.means(), "points": points}

    def _batches(self, training: StudyTraining, length: int, use: int) -> Iterator[FactBatch]:
        return make_batches(training, self.vocabulary, self.text.clean.documents, length, (use, self.seed))

    def _train(
        self,
        model: Any,
        training: StudyTraining,
        length: int,
        use: int,
        *,
        arm: Arm = models.CE,
        longce: LongCE | None = None,
        look: Callable[[models.Step], None] = lambda step: None,
    ) -> None:
        # No step of another seed has the same number, of any run that is thought of.
        first, batches = self.seed * 2**20, self._batches(training, length, use)
        models.train(model, training, batches, arm=arm, longce=longce, seed=first, after_step=look)


class Weights:
    """Accumulates mean weights of the tokens of a run."""

    def __init__(self) -> None:
        self._sums = np.zeros(4)

    def add(self, step: models.Step) -> None:
        """Adds the weights of a step."""
        weights, answers = step.weights, step.weights[step.answers]
        self._sums += weights.sum(dtype=np.float64), weights.size, answers.sum(dtype=np.float64), answers.size

    def means(self) -> dict[str, float | None]:
        """Returns the mean weight of all tokens and of answers, and the answers' share of the total weight."""
        total, count, answers, number = self._sums.tolist()
        return {
            "mean": total / count,
            "mean_of_answers": answers / number if number else None,
            "share_of_answers": answers / total,
        }


STUDY = reproduce.Study(settings=Study, run=run, tables=tables, read=read)
