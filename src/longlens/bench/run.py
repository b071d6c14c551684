"""``longlens bench run``: build samples, ask a model, keep its answers as they come, sum up."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from longlens.bench.engine import SECRET, Answer, Engine, EngineSettings, Request, Texts, open_texts
from longlens.bench.harness import check_harness, run_harness
from longlens.bench.names import HarnessTask, choose
from longlens.bench.prompts import Asking, Prompted, nothing_asked
from longlens.bench.samples import Batch, build_batches, file_batches, make_tasks, sample_row
from longlens.bench.settings import BenchSettings, Progress
from longlens.bench.store import MANIFEST_VERSION, RESULTS, BenchRun
from longlens.bench.summary import summarise_run
from longlens.errors import UserError
from longlens.files import write_json
from longlens.runs.folder import versions
from longlens.runs.identity import ModelIdentity
from longlens.tasks.overlong import check_policy


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

    Samples are built and held against the model's length before its weights are loaded. The answer to each prompt is
    on the disk before the next one is asked, so that the same call goes on where a killed one stopped. Several
    processes share the samples: process r answers every n-th one, beginning with the r-th.

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
        UserError: As `build_batches`, `Asking.ask`, `BenchRun` and the engine say.
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
    batches = build_batches(
        make_tasks(chosen.tasks, own, shared),
        lengths=settings.lengths,
        samples=settings.samples,
        seed=settings.seed,
        tokenizer=texts.tokenizer,
        overlong=settings.overlong,
        reserve=asking.reserve,
    )
    for name in settings.tasks:
        batches += file_batches(Path(name)) if name.endswith(".jsonl") else []
    prompted = [[asking.ask(batch.task, sample) for sample in batch.samples] for batch in batches]
    if open_engine is None:
        from longlens.bench.lm_eval import open_engine as opened

        open_engine = opened
    engine = open_engine(engine_settings, texts)
    run = BenchRun(out, _manifest(engine_settings, settings, engine.info), rank=rank)
    try:
        work = _Work(run, engine, asking, told, progress or _Silent())
        pairs = list(zip(batches, prompted, strict=True))
        for batch, questions in pairs:
            work.keep(batch, questions, keep_prompts=settings.keep_prompts)
        for batch, questions in pairs:
            work.answer(batch, questions, rank, processes)
        for task in chosen.harness:
            work.harness(task, settings)
        if not run.is_begun:  # by the first process, which will find these answers
            return {}
        results = summarise_run(run.path)
        write_json(run.path / RESULTS, results)  # each process: the last one finds the answers of all
        return results
    finally:
        run.release()


class _Work:
    def __init__(
        self, run: BenchRun, engine: Engine, asking: Asking, told: Callable[[str], None], progress: Progress
    ) -> None:
        self._run, self._engine, self._asking, self._told, self._progress = run, engine, asking, told, progress
        self._done = {row["key"]: row["prompt_sha256"] for row in run.read("answers")}

    def keep(self, batch: Batch, questions: Sequence[Prompted], *, keep_prompts: bool) -> None:
        """Writes down all that is asked before any of it is answered."""
        template = self._asking.template_of(batch.task)
        left_out = [nothing_asked(sample) for sample in batch.left_out]
        rows = [sample_row(question, batch, template, keep_prompt=keep_prompts) for question in [*questions, *left_out]]
        self._run.keep_samples(batch.name, rows)
        for line in batch.too_long(questions):
            self._told(line)

    def answer(self, batch: Batch, questions: Sequence[Prompted], rank: int, processes: int) -> None:
        """Asks what has no answer yet."""
        mine = [question for question in questions[rank::processes] if not question.skipped]
        owed: list[Request] = []
        hashes: dict[str, str] = {}
        for question in mine:
            for request in question.requests:
                if self._done.get(request.key) != question.sha256:
                    owed.append(request)
                    hashes[request.key] = question.sha256
        if not owed:
            return
        self._progress.asked(batch.name, len(owed))

        def take(answer: Answer) -> None:
            said = {name: value for name, value in answer._asdict().items() if value is not None}
            self._run.append("answers", {**said, "prompt_sha256": hashes[answer.key]})
            self._done[answer.key] = hashes[answer.key]
            self._progress.answered()

        self._engine.answer(owed, take)

    def harness(self, task: HarnessTask, settings: BenchSettings) -> None:
        """A task of lm-evaluation-harness, whose prompts and scores are its own."""
        run_harness(self._run, self._engine, task, settings, told=self._told, progress=self._progress)


def _manifest(engine: EngineSettings, settings: BenchSettings, info: Mapping[str, Any]) -> dict[str, Any]:
    plain = {name: value for name, value in asdict(engine).items() if name not in ("arguments", "max_length")}
    arguments = {name: "(not written down)" if name in SECRET else value for name, value in engine.arguments.items()}
    identity = {"backend": info.get("backend"), **ModelIdentity.read(info).to_json()}
    return {
        "schema_version": MANIFEST_VERSION,
        "model": engine.model,
        "engine": {**identity, "arguments": arguments},
        "engine_settings": plain,
        "engine_info": dict(info),
        "mode": settings.mode,
        "template": settings.template,
        "template_arguments": dict(settings.template_arguments),
        "overlong": settings.overlong,
        "think_tokens": settings.think_tokens,
        "versions": versions("lm_eval"),
    }
