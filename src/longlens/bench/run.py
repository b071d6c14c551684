"""``longlens bench run``: build samples, ask a model, keep its answers as they come, sum up."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from longlens.bench.engine import Answer, Engine, EngineSettings, Request, Texts, describe, open_texts
from longlens.bench.harness import check_harness, harness_notes, run_harness
from longlens.bench.names import choose
from longlens.bench.prompts import Asking, nothing_asked
from longlens.bench.samples import Batch, file_batches, left_out, make_tasks, sample_row, task_batches, too_long
from longlens.bench.settings import BenchSettings, Progress
from longlens.bench.store import (
    MANIFEST_VERSION,
    RESULTS,
    BenchRun,
    Row,
    Stored,
    identity,
    made_of,
    read_answers,
    set_think_marks,
)
from longlens.bench.summary import summarise_run
from longlens.errors import UserError
from longlens.files import write_json
from longlens.runs.folder import versions
from longlens.runs.identity import ModelIdentity
from longlens.tasks.truncation import check_policy

CHUNK_SAMPLES = 64
CHUNK_CHARACTERS = 2**23
"""Samples that are in memory at a time: so many, or those of so many characters, but `batch_size` at least."""


class _Silent:
    def asked(self, title: str, requests: int) -> None:
        pass

    def answered(self) -> None:
        pass


def run_bench(
    engine_settings: EngineSettings,
    settings: BenchSettings,
    out: str | os.PathLike[str],
    *,
    rank: int = 0,
    processes: int = 1,
    told: Callable[[str], None] = lambda line: None,
    progress: Progress | None = None,
    open_engine: Callable[[EngineSettings, Texts], Engine] | None = None,
) -> dict[str, Any]:
    """Asks a model what is not answered in the folder yet, and sums all of it up.

    The folder is opened first. A sample that is stored and made of the same things is not built again, and the model is
    loaded only if an answer is owed. Before that, one sample of each task and length is held against the model's
    length (of a file the longest one, else the first one that is owed); each other one is checked before it is asked.
    A chunk of samples is in memory at a time; each is stored before it is asked, and the answer to each prompt is on
    the disk before the next one is asked, so that the same call goes on where a killed one stopped. Several processes
    share the samples: process r builds and answers every n-th one, beginning with the r-th.

    Args:
        engine_settings: The model.
        settings: What is asked.
        out: A new folder, or one of the same model and way of asking, to which more tasks may be added.
        rank: Of this process.
        processes: How many there are.
        told: Takes lines about what was decided.
        progress: Hears about requests and answers.
        open_engine: Loads the model; `longlens.bench.lm_eval.open_engine` unless given.

    Returns:
        What results.json holds, see `longlens.bench.summary.summarise_run`: of the answers that are there when this
        process ends.

    Raises:
        UserError: As `task_batches`, `Asking.ask`, `BenchRun` and the engine say.
    """
    if settings.overlong is not None:
        check_policy(settings.overlong)
    chosen = choose(name for name in settings.tasks if not name.endswith(".jsonl"))
    if chosen.harness and processes > 1:
        raise UserError("tasks of lm-evaluation-harness run in one process: leave torchrun out, or those tasks")
    for task in chosen.harness:
        check_harness(task, settings)
    # Tasks of lm-evaluation-harness read from that folder too, and have no other settings.
    own = {key: value for key, value in settings.settings.items() if key != "data_dir" or not chosen.harness}
    shared = {key: value for key, value in settings.settings.items() if key not in own}
    if own and not chosen.tasks:
        raise UserError(f"no task has a setting {next(iter(own))!r}: files of samples have theirs in them")
    texts = open_texts(engine_settings)
    asking = Asking(
        tokenizer=texts.tokenizer,
        mode=settings.mode,
        template=settings.template,
        is_chat=engine_settings.is_chat,
        max_length=texts.max_length,
        overlong=settings.overlong,
        think_tokens=settings.think_tokens,
        template_arguments=settings.template_arguments,
    )
    batches: list[Batch] = [
        *task_batches(
            make_tasks(chosen.tasks, own, shared),
            lengths=settings.lengths,
            samples=settings.samples,
            seed=settings.seed,
            tokenizer=texts.tokenizer,
            overlong=settings.overlong,
            reserve=asking.reserve,
        )
    ]
    for name in settings.tasks:
        batches += file_batches(Path(name)) if name.endswith(".jsonl") else []
    for line in [*engine_settings.notes(), *harness_notes(chosen.harness, settings)]:
        told(line)
    engine = _Loaded(engine_settings, texts, open_engine)
    info = describe(engine_settings, texts) or engine.get().info
    run = BenchRun(out, _manifest(engine_settings, settings, info), rank=rank)
    try:
        engine.expect(info)
        work = _Work(run, engine, asking, settings, told, progress or _Silent(), rank, processes)
        for batch in batches:
            work.check(batch)
        for batch in batches:
            work.answer(batch)
        for task in chosen.harness:
            run_harness(run, engine.get, task, settings, told=told, progress=progress or _Silent())
        run.check()
        if not run.is_begun:  # by the first process, which will find these answers
            return {}
        if settings.think_marks is not None and rank == 0:
            set_think_marks(run.path, settings.think_marks)
        results = summarise_run(run.path)
        write_json(run.path / RESULTS, results)  # each process: the last one finds the answers of all
        return results
    finally:
        run.release()


class _Loaded:
    """A model that is loaded when it is asked for, once."""

    def __init__(
        self, settings: EngineSettings, texts: Texts, opened: Callable[[EngineSettings, Texts], Engine] | None
    ) -> None:
        self.settings, self._texts, self._opened = settings, texts, opened
        self._expected: Mapping[str, Any] = {}

    def expect(self, info: Mapping[str, Any]) -> None:
        """What the model has to be."""
        self._expected = info

    def get(self) -> Any:
        """The engine.

        Raises:
            UserError: It cannot be loaded, or is not the model that the run was begun with.
        """
        weights = [info.get("weights_sha256") for info in (self._engine.info, self._expected)]
        if None not in weights and weights[0] != weights[1]:
            raise UserError(f"the weights of {self.settings.model} changed meanwhile: run the same command again")
        return self._engine

    @cached_property
    def _engine(self) -> Engine:
        if self._opened is None:
            from longlens.bench.lm_eval import open_engine

            return open_engine(self.settings, self._texts)
        return self._opened(self.settings, self._texts)


class _Question(NamedTuple):
    """A sample that is about to be asked: its row, whether that is new, and the requests without an answer."""

    row: Row
    is_new: bool
    owed: list[Request]


class _Work:
    def __init__(
        self,
        run: BenchRun,
        engine: _Loaded,
        asking: Asking,
        settings: BenchSettings,
        told: Callable[[str], None],
        progress: Progress,
        rank: int,
        processes: int,
    ) -> None:
        self._run, self._engine, self._asking, self._settings = run, engine, asking, settings
        self._told, self._progress, self._rank, self._processes = told, progress, rank, processes
        self._done = {row["key"]: row["prompt_sha256"] for row in read_answers(run.path, settings.mode)}
        self._checked: dict[str, _Question] = {}

    def check(self, batch: Batch) -> None:
        """Makes one of the samples that something is owed of, so that what is wrong with all of them is said early."""
        stored = self._run.stored(batch.name)
        mine = set(self._share(batch))
        at = next((at for at in batch.first() if at in mine and not self._is_complete(batch, at, stored)), None)
        if at is not None:
            self._checked[batch.id(at)] = self._question(batch, at, stored)

    def answer(self, batch: Batch) -> None:
        """Stores what is not stored, and asks what has no answer, a chunk at a time."""
        stored = self._run.stored(batch.name)
        counts = {"skipped": 0, "cut": 0}
        chunk: list[_Question] = []
        for at in self._share(batch):
            known = stored.get(batch.id(at))
            if known is not None and self._is_complete(batch, at, stored):
                is_skipped, is_cut = known.is_skipped, known.is_cut
            else:
                question = self._checked.pop(batch.id(at), None) or self._question(batch, at, stored)
                is_skipped, is_cut = question.row["skipped"], "cut" in question.row["metadata"]
                chunk.append(question)
            counts["skipped"] += is_skipped
            counts["cut"] += is_cut and not is_skipped
            if self._is_full(chunk):
                self._ask(batch, chunk)
                chunk = []
        self._ask(batch, chunk)
        for line in too_long(batch.name, len(self._share(batch)), counts["skipped"], counts["cut"]):
            self._told(line)

    def _share(self, batch: Batch) -> range:
        return range(self._rank, len(batch), self._processes)

    def _is_complete(self, batch: Batch, at: int, stored: Mapping[str, Stored]) -> bool:
        known = stored.get(batch.id(at))
        if known is None or known.recipe != self._recipe(batch, at):
            return False
        return known.is_skipped or all(self._done.get(key) == known.prompt_sha256 for key in known.keys)

    def _recipe(self, batch: Batch, at: int) -> str:
        # All else that decides a prompt is the manifest's.
        return hashlib.sha256(f"{batch.recipe(at)} {self._asking.max_length}".encode()).hexdigest()

    def _question(self, batch: Batch, at: int, stored: Mapping[str, Stored]) -> _Question:
        known = stored.get(batch.id(at))
        if known is not None and known.recipe == self._recipe(batch, at) and not known.is_skipped:
            row = known.read()
            if row.get("prompt") is not None:
                return _Question(row, False, self._owed(row["prompt_sha256"], list(_stored_requests(row))))
        sample = batch.sample(at)
        if sample is None:
            question = nothing_asked(left_out(batch, at))
        else:
            question = self._asking.ask(batch.task, sample, own_tokens=batch.own_tokens)
        row = sample_row(
            question,
            batch,
            self._asking.template_of(batch.task),
            recipe=self._recipe(batch, at),
            keep_prompt=self._settings.keep_prompts,
        )
        # Data of the hub may have changed, of which no file here says anything.
        others = () if question.skipped else (one for one in stored.values() if not one.is_skipped)
        data = made_of(row["metadata"])
        if any(one.made_of != data for one in others) or (known is not None and identity(row) != known.identity):
            raise UserError(
                f"{self._run.path} holds another sample {batch.id(at)} (other settings, data or haystack): give a new "
                "folder"
            )
        return _Question(row, known is None, self._owed(question.sha256, list(question.requests)))

    def _owed(self, sha256: str, requests: list[Request]) -> list[Request]:
        return [request for request in requests if self._done.get(request.key) != sha256]

    def _is_full(self, chunk: Sequence[_Question]) -> bool:
        settings = self._engine.settings
        at_once = settings.arguments.get("num_concurrent", 1)
        least = max(size for size in (1, settings.batch_size, at_once) if isinstance(size, int))
        size = sum(len(question.owed[0].prompt) for question in chunk if question.owed)
        return len(chunk) >= max(CHUNK_SAMPLES, least) or (len(chunk) >= least and size >= CHUNK_CHARACTERS)

    def _ask(self, batch: Batch, chunk: Sequence[_Question]) -> None:
        owed = [request for question in chunk for request in question.owed]
        hashes = {request.key: question.row["prompt_sha256"] for question in chunk for request in question.owed}
        if owed:
            self._run.begin(self._engine.get().info)
        for question in chunk:
            if question.is_new:
                self._run.keep(batch.name, question.row)
        if not owed:
            return
        self._progress.asked(batch.name, len(owed))

        def take(answer: Answer) -> None:
            said = {name: value for name, value in answer._asdict().items() if value is not None}
            self._run.append("answers", {**said, "prompt_sha256": hashes[answer.key]})
            self._done[answer.key] = hashes[answer.key]
            self._progress.answered()

        self._engine.get().answer(owed, take)


def _stored_requests(row: Row) -> Iterator[Request]:
    if not row["continuations"]:
        tokens = row["max_new_tokens"]
        yield Request(row["id"], row["prompt"], None, tokens, tuple(row["stop"]), row["prompt_tokens"])
    for number, text in enumerate(row["continuations"]):
        yield Request(f"{row['id']}#{number}", row["prompt"], text)


def _manifest(engine: EngineSettings, settings: BenchSettings, info: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name: value for name, value in asdict(engine).items() if name not in ("arguments", "max_length")}
    identified = {"backend": info.get("backend"), **ModelIdentity.read(info).to_json()}
    return {
        "schema_version": MANIFEST_VERSION,
        "model": engine.model,
        "engine": {**identified, "arguments": engine.written_arguments()},
        "engine_settings": plain,
        "engine_info": dict(info),
        "mode": settings.mode,
        "template": settings.template,
        "template_arguments": dict(settings.template_arguments),
        "overlong": settings.overlong,
        "think_tokens": settings.think_tokens,
        "versions": versions("lm_eval"),
    }
