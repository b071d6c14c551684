"""Runs unmodified tasks of lm-evaluation-harness, stores answers as they arrive, and reads data from a directory."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lm_eval
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import HfHubHTTPError
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import TaskFactory

from longlens.bench.engine import prompt_tokens
from longlens.bench.lm_eval.engine import PENALTY, HarnessEngine, quiet
from longlens.bench.samples import files_sha256
from longlens.bench.selection import BenchSettings, HarnessTask
from longlens.bench.store import BenchRun, read_harness
from longlens.errors import UserError, library_errors, one_line, shown
from longlens.files import cache_folder
from longlens.metrics.uncertainty import Estimate, bounded_interval
from longlens.progress import Progress
from longlens.runs.identity import canonical_sha256
from longlens.tasks.fitting import Draft, TokenCounter
from longlens.tasks.truncation import truncate

_LOGGER = logging.getLogger(__name__)
OFFLINE = (ConnectionError, TimeoutError, DatasetNotFoundError, HfHubHTTPError)
"""Parts of error messages if a dataset cannot be loaded from the Hub."""


def run_harness(
    run: BenchRun, get_engine: Callable[[], Any], task: HarnessTask, settings: BenchSettings, progress: Progress
) -> None:
    """Runs a task or group, and stores its answers as they arrive, and its results.

    A stored answer is found by a hash of the request with all options, so that the same call resumes a killed run. A
    task is not run again if its result with the same settings and files is stored.

    Args:
        run: The run directory.
        get_engine: Loads the model on first use.
        task: Task that `longlens.bench.selection.check_harness` accepted.
        settings: Settings; ``data_dir`` is a directory with copies of the Hub datasets, ``DIR/owner/name``.
        progress: Shows the number of answered requests.

    Raises:
        UserError: The task does not exist, its data is not available, or a prompt is too long.
    """
    data_dir = settings.settings.get("data_dir")
    asked: dict[str, Any] = {
        "samples": settings.samples,
        "few_shot": task.few_shot if settings.few_shot is None else settings.few_shot,
        "chat_template": settings.prompts.template not in ("none", "auto"),
        "overlong": settings.prompts.overlong or "error",
    }
    files = files_sha256(Path(data_dir)) if data_dir is not None and Path(data_dir).exists() else None
    results = {row["name"]: row for row in read_harness(run.path, "result")}
    for length in [f"{length // 1024}k" for length in settings.lengths] if task.by_length else [None]:
        name = task.name if length is None else f"{task.name}-{length}"
        result = results.get(name, {})
        if result.get("asked") != asked | {"files": files}:
            engine = get_engine()
            run.begin(engine.info)
            recorded = RecordingLM(run, engine, name, asked["overlong"], progress)
            result = evaluate(recorded, task, length, data_dir, asked) | {"num_cut": recorded.num_cut}
            run.append("harness", {"kind": "result", "name": name, "asked": asked | {"files": files}, **result})
        if result["num_cut"]:
            _LOGGER.info(f"{name}: {result['num_cut']} prompts were too long and were truncated")


def evaluate(
    recorded: RecordingLM, task: HarnessTask, length: str | None, data_dir: str | None, asked: Mapping[str, Any]
) -> dict[str, Any]:
    """Evaluates a task with lm-evaluation-harness.

    Args:
        recorded: The model.
        task: Task to run.
        length: Length of the data, such as ``4k``, if the data comes in lengths.
        data_dir: Directory with copies of the Hub datasets; the Hub by default.
        asked: ``samples``, the first N of each subtask; ``few_shot``, examples in a prompt, the task's own number
            if None; ``chat_template``, whether the tokenizer's chat template is applied.

    Returns:
        ``results``: task -> metric -> score and interval in percent; ``num_samples``, ``versions`` of tasks and
        ``few_shot``.

    Raises:
        UserError: The task does not exist, its data is not available, or a prompt is too long.
    """
    engine = recorded.engine
    metadata: dict[str, Any] = {"tokenizer": engine.info["model"]}
    if length is not None:
        metadata["max_seq_lengths"] = length
    manager = TaskManager(metadata=metadata)
    if data_dir is not None:
        manager._factory = LocalFactory(Path(data_dir), meta=metadata)
    names = task.task.split(",")
    for name in names:
        if name not in manager.all_tasks:
            raise UserError(f"lm-evaluation-harness has no task {name!r}: see lm_eval ls tasks")
    options = {"gen_kwargs": {PENALTY: 1.0}} if engine.takes_penalty else {}
    place = "the Hub dataset" if data_dir is None else f"the folders in {shown(data_dir)}"
    step = f"check the columns of {place}, or choose another task (longlens bench list)"
    with library_errors(f"{task.name}: lm-evaluation-harness {lm_eval.__version__} cannot run it", step), quiet():
        try:
            found = lm_eval.simple_evaluate(
                model=recorded,
                tasks=names,
                task_manager=manager,
                num_fewshot=asked["few_shot"],
                limit=asked["samples"],
                apply_chat_template=asked["chat_template"],
                fewshot_as_multiturn=asked["chat_template"],
                log_samples=False,
                # Do not let the harness seed the process's global random number generators.
                random_seed=None,
                numpy_random_seed=None,
                torch_random_seed=None,
                **options,
            )
        except OFFLINE as error:
            if data_dir is not None:
                raise
            raise UserError(
                f"{task.name}: cannot get its data ({one_line(error)}): check the network, or pass as `data_dir` a "
                "folder with copies of the Hub datasets as owner/name"
            ) from error
    return {
        "results": {
            name: _scores(row, found["n-samples"].get(name, {}).get("effective", 0))
            for name, row in found["results"].items()
        },
        "num_samples": found["n-samples"],
        "versions": found["versions"],
        "few_shot": found["n-shot"],
        "metric": task.metric,
        "length": length,
    }


def _scores(row: Mapping[str, Any], num_samples: int) -> dict[str, dict[str, Any]]:
    """Returns the metrics of a task in percent, with intervals from their standard errors (see `bounded_interval`)."""
    scores = {}
    for key, value in row.items():
        metric, _, which = key.partition(",")
        if not which or "_stderr" in metric or not isinstance(value, (int, float)):
            continue
        error = row.get(f"{metric}_stderr,{which}")
        name = metric if which == "none" else f"{metric} ({which})"
        interval = None
        if isinstance(error, (int, float)) and math.isfinite(error) and num_samples > 1:
            both = Estimate(value, error, num_samples - 1).interval()
            if 0 <= value <= 1:
                both = bounded_interval(value, error**2 * num_samples, num_samples)
            interval = None if both is None else [100 * end for end in both]
        scores[name] = {"score": 100 * value, "interval": interval}
    return scores


class LocalFactory(TaskFactory):  # type: ignore[misc]
    """Loads datasets from a directory: ``DIR/owner/name`` replaces ``owner/name`` on the Hub."""

    def __init__(self, folder: Path, *, meta: dict[str, Any]) -> None:
        super().__init__(meta=meta)
        self._folder = folder

    def _load_full_config(self, entry: Any, overrides: dict[str, Any] | None) -> dict[str, Any]:
        config: dict[str, Any] = super()._load_full_config(entry, overrides)
        name = config.get("dataset_path")
        if isinstance(name, str):
            if not (self._folder / name).is_dir():
                raise UserError(
                    f"{shown(self._folder)} has no folder {name}: it needs a copy of the Hub dataset {name}, which "
                    f"{config.get('task', 'the task')} reads"
                )
            config["dataset_path"] = str(self._folder / name)
            kwargs = dict(config.get("dataset_kwargs") or {})
            if config.pop("custom_dataset", None) is not None:
                # BABILong's custom function loads rows of a length and question from the Hub, whatever the path.
                if kwargs.pop("qa_split", None) is None:
                    raise UserError(f"{config.get('task')} loads its data with custom code: leave `data_dir` out")
                config["dataset_name"] = self._meta["max_seq_lengths"]
            config["dataset_kwargs"] = {**kwargs, "cache_dir": str(_rows_cache(self._folder / name))}
        return config


def _rows_cache(folder: Path) -> Path:
    """Returns the cache directory of `datasets` for a data directory, which depends on the state of its files.

    The default cache depends on the directory's name, and could return rows of another or an outdated directory.
    """
    return cache_folder() / "datasets" / files_sha256(folder.resolve())[:16]


class RecordingLM(LM):  # type: ignore[misc]
    """A backend that stores answers in the run directory as they arrive, and does not request them again.

    Attributes:
        engine: The model.
        num_cut: Number of prompts that were too long and were truncated.
    """

    def __init__(self, run: BenchRun, engine: HarnessEngine, name: str, overlong: str, progress: Progress) -> None:
        super().__init__()
        self.engine = engine
        self._run, self._name, self._overlong, self._progress = run, name, overlong, progress
        self._known = {row["key"]: row["answer"] for row in read_harness(run.path, "answer")}
        self.num_cut = 0

    def generate_until(self, requests: Sequence[Any], **options: Any) -> list[str]:
        """See `lm_eval.api.model.LM`."""
        return self._answers("generate_until", [self._fitting(request) for request in requests])

    def loglikelihood(self, requests: Sequence[Any], **options: Any) -> list[tuple[float, bool]]:
        """See `lm_eval.api.model.LM`."""
        found = self._answers("loglikelihood", [self._fitting(request) for request in requests])
        return [(float(logprob), bool(is_greedy)) for logprob, is_greedy in found]

    def loglikelihood_rolling(self, requests: Sequence[Any], **options: Any) -> list[float]:
        """See `lm_eval.api.model.LM`; texts are split into windows, so no request is too long."""
        return self._answers("loglikelihood_rolling", requests)

    def _answers(self, kind: str, requests: Sequence[Any]) -> list[Any]:
        # The key of a request is a hash of its arguments, with all options.
        keys = [
            canonical_sha256([kind, *(getattr(argument, "prompt", argument) for argument in request.args)])
            for request in requests
        ]
        owed = {key: request.args for key, request in zip(keys, requests, strict=True) if key not in self._known}
        num_known = len(self._known)

        def keep(key: str, answer: Any, has_ended: bool | None) -> None:
            self._known[key] = answer
            self._run.append("harness", {"kind": "answer", "key": key, "answer": answer})
            self._progress.update(len(self._known) - num_known)

        if owed:
            self.engine.lm.exact_pairs = False
            self._progress.start(self._name, unit="samples", total=len(owed))
            try:
                with library_errors(
                    "the model could not answer", "the same command resumes; see `batch_size` for memory"
                ):
                    self.engine.ask(kind, owed, keep)
            finally:
                self._progress.finish()
        return [self._known[key] for key in keys]

    def _fitting(self, request: Any) -> Any:
        """Returns the request, with its prompt truncated if it would be too long for the backend."""
        context, other = request.args
        text, limit = getattr(context, "prompt", context), self.engine.limit
        count = len(prompt_tokens(limit.tokenizer, text))
        if isinstance(other, str):
            room = limit.max_length - len(limit.tokenizer(other, add_special_tokens=False)["input_ids"])
        else:
            room = limit.max_length - int(other.get("max_gen_toks", self.engine.lm.max_gen_toks))
        if count <= room:
            return request
        if self._overlong == "error" or text is not context:
            raise UserError(
                f"a prompt of {request.task_name} has {count:,} tokens, but only {max(0, room):,} are available: set "
                "`overlong` to middle or left to truncate it, or use a model with a longer context"
            )
        draft = Draft(prompt=text, answer_prefix="", answers=[], answer_spans=[])
        cut, _ = truncate(draft, TokenCounter(limit.tokenizer), room, self._overlong)
        self.num_cut += 1
        return replace(request, arguments=(cut.prompt, other), resps=[], filtered_resps={})

    @property
    def tokenizer_name(self) -> str:
        """See `lm_eval.api.model.TemplateLM`."""
        return str(self.engine.lm.tokenizer_name)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """See `lm_eval.api.model.TemplateLM`."""
        found: str | None = self.engine.lm.chat_template(chat_template)
        return found

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> Any:
        """See `lm_eval.api.model.LM`."""
        return self.engine.lm.apply_chat_template(chat_history, add_generation_prompt=add_generation_prompt)
