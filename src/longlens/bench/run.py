"""Runs ``longlens bench run``: builds samples, queries a model, stores answers as they arrive, and summarizes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from longlens.bench.engine import (
    BenchEngine,
    EngineSettings,
    ModelAnswer,
    ModelRequest,
    PromptLimit,
    describe,
    load_prompt_limit,
)
from longlens.bench.prompts import Prompt, PromptBuilder
from longlens.bench.results import summarize_run
from longlens.bench.samples import SampleBatch, file_batches, log_lengths, sample_row, task_batches
from longlens.bench.selection import BenchSettings, check_harness, make_tasks
from longlens.bench.store import (
    RESULTS,
    BenchRun,
    Row,
    StoredSample,
    data_hashes,
    read_answers,
    sample_identity,
    set_think_marks,
)
from longlens.errors import UserError, require
from longlens.files import write_json
from longlens.progress import Progress
from longlens.runs.folder import make_manifest
from longlens.runs.identity import ModelIdentity
from longlens.runs.processes import Processes
from longlens.runs.sharing import balance, forward_cost

OpenEngine = Callable[[EngineSettings, PromptLimit], BenchEngine]
CHUNK_SAMPLES = 64
CHUNK_CHARACTERS = 2**23
"""Maximum number of samples, and of characters, in memory at a time, but at least `batch_size` samples."""


def run_bench(
    engine_settings: EngineSettings,
    settings: BenchSettings,
    out: str | os.PathLike[str],
    *,
    rank: int | None = None,
    world_size: int | None = None,
    name: str | None = None,
    progress: Progress | None = None,
    open_engine: OpenEngine | None = None,
) -> dict[str, Any]:
    """Runs the model on all samples that have no answer in the folder yet, and summarizes the results.

    The folder is opened first. Stored samples with the same inputs are not rebuilt, and the model is loaded only if an
    answer is missing. Before that, one sample per task and length (for a file the longest, else the first without an
    answer) is checked against the model's length; every other sample is checked before it is sent. One chunk of samples
    is in memory at a time. Each sample is stored before it is sent, and each answer before the next prompt, so the same
    call resumes a killed run.

    Processes started by torchrun share the samples by the length of their prompts, see `longlens.runs.sharing`: each
    builds and answers its own, and rank 0 summarizes when all have finished. Missing answers are distributed again at
    each call, over the processes that it has.

    Args:
        engine_settings: The model.
        settings: Tasks, lengths and prompts.
        out: A new folder, or a run of the same model and prompt settings, to which more tasks may be added.
        rank: Rank of this process, if several share the samples independently: it uses every n-th sample of each task
            and length, from this one on. Requires ``world_size``. By default torchrun's processes share the samples.
        world_size: Number of such processes.
        name: Display name in tables; by default the last part of the model's path or id.
        progress: Shows requests and answers, task after task.
        open_engine: Loads the model; by default `longlens.bench.lm_eval.backends.open_engine`.

    Returns:
        The content of results.json, see `longlens.bench.results.summarize_run`, for the answers at the end of the call.
        Empty in torchrun's other processes than rank 0.

    Raises:
        UserError: Tasks, folder, model and prompt settings that do not fit together, or a sample that is too long.
    """
    if name is not None and not name.strip():
        raise UserError("`name` is empty: pass a name for tables and charts, or leave it out")
    processes = Processes() if rank is None else Processes.alone()
    turns = (rank or 0, 1 if world_size is None else world_size)
    with processes:
        with processes.after_first():
            limit = load_prompt_limit(engine_settings, settings.lengths)
            builder = PromptBuilder(settings.prompts, limit, is_chat=engine_settings.is_chat)
            batches = _batches(settings, limit, builder, shares=max(processes.size, turns[1]) > 1)
            engine_settings.log_unsent_key()
            engine = _LazyEngine(engine_settings, limit, open_engine)
            info = describe(engine_settings, limit)
        info = info or engine.get().info
        own_rank = processes.rank if rank is None else rank
        run = BenchRun(out, _manifest(engine_settings, settings, info, name), rank=own_rank)
        try:
            engine.expected = info
            progress = progress or Progress()
            asker = _Asker(run, engine, builder, settings, progress)
            asker.share(batches, processes, turns)
            for batch in batches:
                asker.check(batch)
            for batch in batches:
                asker.answer(batch)
            for task in settings.selected.harness:
                require("lm_eval", extra="tasks", purpose="running benchmarks")
                from longlens.bench.lm_eval.tasks import run_harness

                run_harness(run, engine.get, task, settings, progress)
            run.check()
            processes.wait_for_all()
            if processes.rank > 0 or not run.is_begun:  # rank 0 summarizes, and includes these answers
                return {}
            if settings.think_marks is not None and own_rank == 0:
                set_think_marks(run.path, settings.think_marks)
            results = summarize_run(run.path)
            write_json(run.path / RESULTS, results)  # of independent processes, the last to finish sees all answers
            return results
        finally:
            run.release()


def _batches(settings: BenchSettings, limit: PromptLimit, builder: PromptBuilder, *, shares: bool) -> list[SampleBatch]:
    """Returns all batches, task after task; no sample is built yet."""
    selected = settings.selected
    if selected.harness and shares:
        raise UserError("tasks of lm-evaluation-harness run in one process: start without torchrun, or leave them out")
    check_harness(settings)
    # Tasks of lm-evaluation-harness also read `data_dir`, and have no other settings.
    own = {key: value for key, value in settings.settings.items() if key != "data_dir" or not selected.harness}
    shared = {key: value for key, value in settings.settings.items() if key not in own}
    if own and not selected.tasks:
        raise UserError(f"no task has a setting {next(iter(own))!r}: sample files contain their settings")
    batches = task_batches(
        make_tasks(selected.tasks, own, shared, settings.lengths),
        lengths=settings.lengths,
        samples=settings.samples,
        seed=settings.seed,
        tokenizer=limit.tokenizer,
        overlong=settings.prompts.overlong,
        reserve=builder.reserve,
    )
    for name in settings.files:
        batches += file_batches(Path(name))
    return batches


class _LazyEngine:
    """Loads a model on first use, only once, and checks that it is the `expected` model."""

    def __init__(self, settings: EngineSettings, limit: PromptLimit, open_engine: OpenEngine | None) -> None:
        self.settings, self._limit, self._open_engine = settings, limit, open_engine
        self.expected: Mapping[str, Any] = {}

    def get(self) -> Any:
        """Returns the engine, and loads it on first use.

        Raises:
            UserError: The model cannot be loaded, or is not the model with which the run was started.
        """
        weights = [info.get("weights_sha256") for info in (self._engine.info, self.expected)]
        if None not in weights and weights[0] != weights[1]:
            raise UserError(f"the weights of {self.settings.model} changed meanwhile: run the same command again")
        return self._engine

    @cached_property
    def _engine(self) -> BenchEngine:
        if self._open_engine is None:
            require("lm_eval", extra="tasks", purpose="running benchmarks")
            from longlens.bench.lm_eval.backends import open_engine

            return open_engine(self.settings, self._limit)
        return self._open_engine(self.settings, self._limit)


class _PendingSample(NamedTuple):
    """A sample that will be sent to the model: its row, whether it is new, and its requests without an answer."""

    row: Row
    is_new: bool
    owed: list[ModelRequest]


class _Asker:
    """Requests the missing answers of the batches of a run."""

    def __init__(
        self,
        run: BenchRun,
        engine: _LazyEngine,
        builder: PromptBuilder,
        settings: BenchSettings,
        progress: Progress,
    ) -> None:
        self._run, self._engine, self._builder, self._settings = run, engine, builder, settings
        self._progress = progress
        self._shares: dict[str, list[int]] = {}
        self._answered = {row["key"]: row["prompt_sha256"] for row in read_answers(run.path, settings.prompts.mode)}
        self._checked: dict[str, _PendingSample] = {}

    def share(self, batches: Sequence[SampleBatch], processes: Processes, turns: tuple[int, int]) -> None:
        """Assigns samples of each batch to this process.

        Args:
            batches: All batches.
            processes: If there are several, the missing answers are distributed over them by cost.
            turns: ``(r, n)``: otherwise, this process uses every n-th sample, starting with the r-th.
        """
        if processes.size == 1:
            self._shares = {batch.name: list(range(len(batch.ids)))[turns[0] :: turns[1]] for batch in batches}
            return
        ids = hashlib.sha256("\n".join(id for batch in batches for id in batch.ids).encode()).hexdigest()
        if processes.rank > 0:
            plan = processes.receive()
            if plan["samples"] != ids:
                raise UserError(
                    f"process {processes.rank} (from 0) has different samples than rank 0: pass the same files "
                    "and data to all processes"
                )
        else:
            costs = []
            for batch in batches:
                stored = self._run.stored(batch.name)
                for at, size in enumerate(batch.sizes):
                    costs.append(0.0 if self._is_complete(batch, at, stored) else forward_cost(size))
            plan = {"samples": ids, "owners": balance(costs, processes.size)}
            processes.broadcast(plan)
        self._shares = {batch.name: [] for batch in batches}
        places = ((batch.name, at) for batch in batches for at in range(len(batch.ids)))
        for (name, at), owner in zip(places, plan["owners"], strict=True):
            if owner == processes.rank:
                self._shares[name].append(at)

    def check(self, batch: SampleBatch) -> None:
        """Builds the first sample with a missing answer, to report errors that affect the whole batch early."""
        stored = self._run.stored(batch.name)
        share = set(self._share(batch))
        for at in batch.order:
            if at in share and not self._is_complete(batch, at, stored):
                self._checked[batch.ids[at]] = self._pending(batch, at, stored)
                return

    def answer(self, batch: SampleBatch) -> None:
        """Stores new samples and requests missing answers, one chunk at a time."""
        stored = self._run.stored(batch.name)
        num_skipped = num_cut = 0
        chunk: list[_PendingSample] = []
        for at in self._share(batch):
            known = stored.get(batch.ids[at])
            if known is not None and self._is_complete(batch, at, stored):
                is_skipped, is_cut = known.is_skipped, known.is_cut
            else:
                pending = self._checked.pop(batch.ids[at], None) or self._pending(batch, at, stored)
                is_skipped, is_cut = pending.row["skipped"], "cut" in pending.row["metadata"]
                chunk.append(pending)
            num_skipped += is_skipped
            num_cut += is_cut and not is_skipped
            if self._is_full(chunk):
                self._ask(batch, chunk)
                chunk = []
        self._ask(batch, chunk)
        log_lengths(batch.name, len(self._share(batch)), num_skipped, num_cut)

    def _share(self, batch: SampleBatch) -> list[int]:
        return self._shares[batch.name]

    def _is_complete(self, batch: SampleBatch, at: int, stored: Mapping[str, StoredSample]) -> bool:
        known = stored.get(batch.ids[at])
        if known is None or known.recipe != self._recipe(batch, at):
            return False
        return known.is_skipped or all(self._answered.get(key) == known.prompt_sha256 for key in known.keys)

    def _recipe(self, batch: SampleBatch, at: int) -> str:
        # The manifest records everything else that determines a prompt.
        return hashlib.sha256(f"{batch.recipe(at)} {self._builder.max_length}".encode()).hexdigest()

    def _pending(self, batch: SampleBatch, at: int, stored: Mapping[str, StoredSample]) -> _PendingSample:
        known = stored.get(batch.ids[at])
        if known is not None and known.recipe == self._recipe(batch, at) and not known.is_skipped:
            row = known.read()
            if row.get("prompt") is not None:
                return _PendingSample(row, False, self._owed(row["prompt_sha256"], _stored_requests(row)))
        sample = batch.sample(at)
        if sample is None:
            prompt = Prompt(sample=batch.skipped_sample(at), skipped=True)
        else:
            prompt = self._builder.build(batch.task, sample, own_tokens=batch.own_tokens)
        row = sample_row(
            prompt,
            batch,
            self._builder.template_of(batch.task),
            recipe=self._recipe(batch, at),
            keep_prompt=self._settings.keep_prompts,
        )
        # The data on the Hub may have changed, which no local file shows.
        others = () if prompt.skipped else (one for one in stored.values() if not one.is_skipped)
        data = data_hashes(row["metadata"])
        if any(one.data != data for one in others) or (known is not None and sample_identity(row) != known.identity):
            raise UserError(
                f"{self._run.path} contains a different sample {batch.ids[at]} (other settings, data or haystack): use "
                "a new folder"
            )
        return _PendingSample(row, known is None, self._owed(prompt.sha256, prompt.requests))

    def _owed(self, sha256: str, requests: Iterable[ModelRequest]) -> list[ModelRequest]:
        return [request for request in requests if self._answered.get(request.key) != sha256]

    def _is_full(self, chunk: Sequence[_PendingSample]) -> bool:
        settings = self._engine.settings
        at_once = settings.arguments.get("num_concurrent", 1)
        least = max(size for size in (1, settings.batch_size, at_once) if isinstance(size, int))
        size = sum(len(pending.owed[0].prompt) for pending in chunk if pending.owed)
        return len(chunk) >= max(CHUNK_SAMPLES, least) or (len(chunk) >= least and size >= CHUNK_CHARACTERS)

    def _ask(self, batch: SampleBatch, chunk: Sequence[_PendingSample]) -> None:
        hashes = {request.key: pending.row["prompt_sha256"] for pending in chunk for request in pending.owed}
        if hashes:
            self._run.begin(self._engine.get().info)
        for pending in chunk:
            if pending.is_new:
                self._run.store(batch.name, pending.row)
        if not hashes:
            return
        count = 0

        def keep(answer: ModelAnswer) -> None:
            nonlocal count
            said = {name: value for name, value in answer._asdict().items() if value is not None}
            self._run.append("answers", {**said, "prompt_sha256": hashes[answer.key]})
            self._answered[answer.key] = hashes[answer.key]
            count += 1
            self._progress.update(count)

        self._progress.start(batch.name, unit="samples", total=len(hashes))
        try:
            self._engine.get().answer([request for pending in chunk for request in pending.owed], keep)
        finally:
            self._progress.finish()


def _stored_requests(row: Row) -> Iterator[ModelRequest]:
    if not row["continuations"]:
        tokens = row["max_new_tokens"]
        yield ModelRequest(row["id"], row["prompt"], None, tokens, tuple(row["stop"]), row["prompt_tokens"])
    for number, text in enumerate(row["continuations"]):
        yield ModelRequest(f"{row['id']}#{number}", row["prompt"], text)


def _manifest(
    engine: EngineSettings, settings: BenchSettings, info: Mapping[str, Any], name: str | None
) -> dict[str, Any]:
    identified = {"backend": info.get("backend"), **ModelIdentity.read(info).to_json()}
    record = ({} if name is None else {"name": name}) | {
        "model": engine.model,
        "engine": {**identified, "arguments": engine.recorded_arguments()},
        "engine_settings": engine.to_json(),
        "engine_info": dict(info),
        **asdict(settings.prompts),
    }
    return make_manifest(record, "lm_eval")
