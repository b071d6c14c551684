"""Tasks that lm-evaluation-harness has as it is, with answers kept as they come and data from a folder."""

from __future__ import annotations

import hashlib
import json
import math
import os
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
from longlens.bench.names import HarnessTask
from longlens.errors import UserError, library_errors, one_line, shown
from longlens.files import cache_folder
from longlens.metrics.uncertainty import Estimate, bounded_interval
from longlens.tasks.fitting import Draft, TokenCounter
from longlens.tasks.truncation import truncate

Keep = Callable[[str, Any], None]
OFFLINE = (ConnectionError, TimeoutError, DatasetNotFoundError, HfHubHTTPError)
"""What is said where a data set cannot be had from the hub."""


def run_task(
    engine: HarnessEngine,
    task: HarnessTask,
    *,
    length: str | None,
    samples: int | None,
    few_shot: int | None,
    chat_template: bool,
    overlong: str,
    data_dir: str | None,
    known: Mapping[str, Any],
    keep: Keep,
    asked: Callable[[int], None],
) -> dict[str, Any]:
    """Runs a task or group.

    Args:
        engine: The model.
        task: What is run.
        length: Of its data, such as ``4k``, where that comes in lengths.
        samples: The first so many of each of its tasks.
        few_shot: Examples in a prompt; its own number unless given.
        chat_template: Whether prompts are put into the tokenizer's chat template.
        overlong: ``error``, ``middle`` or ``left``.
        data_dir: Folder with copies of the hub's data sets, ``DIR/owner/name``; the hub unless given.
        known: Answers of before, by `request_key`.
        keep: Takes each new answer.
        asked: Hears how many requests are about to be answered.

    Returns:
        ``results``: task -> metric -> score and interval in percent; ``num_samples``, ``versions`` of tasks,
        ``few_shot`` and ``num_cut``.

    Raises:
        UserError: There is no such task, its data cannot be had, or a prompt is too long.
    """
    recorded = Recorded(engine, known, keep, asked, overlong)
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
    place = "the hub's data set" if data_dir is None else f"the folders in {shown(data_dir)}"
    step = f"check the columns of {place}, or take another task (longlens bench list)"
    with library_errors(f"{task.name}: lm-evaluation-harness {lm_eval.__version__} cannot run it", step), quiet():
        try:
            found = lm_eval.simple_evaluate(
                model=recorded,
                tasks=names,
                task_manager=manager,
                num_fewshot=few_shot,
                limit=samples,
                apply_chat_template=chat_template,
                fewshot_as_multiturn=chat_template,
                log_samples=False,
                # Its seeding of the whole process's random numbers is switched off.
                random_seed=None,
                numpy_random_seed=None,
                torch_random_seed=None,
                **options,
            )
        except OFFLINE as error:
            if data_dir is not None:
                raise
            raise UserError(
                f"{task.name}: cannot get its data ({one_line(error)}): check the network, or pass --data-dir DIR with "
                "copies of the hub's data sets as DIR/owner/name"
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
        "num_cut": recorded.num_cut,
    }


def _scores(row: Mapping[str, Any], num_samples: int) -> dict[str, dict[str, Any]]:
    """Metrics of a task in percent, each with the interval that its standard error gives (see `bounded_interval`)."""
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
    """Takes data sets from a folder: ``DIR/owner/name`` in the place of the hub's ``owner/name``."""

    def __init__(self, folder: Path, *, meta: dict[str, Any]) -> None:
        super().__init__(meta=meta)
        self._folder = folder

    def _load_full_config(self, entry: Any, overrides: dict[str, Any] | None) -> dict[str, Any]:
        config: dict[str, Any] = super()._load_full_config(entry, overrides)
        name = config.get("dataset_path")
        if isinstance(name, str):
            if not (self._folder / name).is_dir():
                raise UserError(
                    f"{shown(self._folder)} has no folder {name}: put there a copy of the hub's data set {name}, which "
                    f"{config.get('task', 'the task')} reads"
                )
            config["dataset_path"] = str(self._folder / name)
            kwargs = dict(config.get("dataset_kwargs") or {})
            if config.pop("custom_dataset", None) is not None:
                # A function that asks the hub, whatever the path: BABILong's, for the rows of a length and a question.
                if kwargs.pop("qa_split", None) is None:
                    raise UserError(
                        f"{config.get('task')} reads the hub by a function of its own: leave --data-dir out"
                    )
                config["dataset_name"] = self._meta["max_seq_lengths"]
            config["dataset_kwargs"] = {**kwargs, "cache_dir": str(_rows_cache(self._folder / name))}
        return config


def _rows_cache(folder: Path) -> Path:
    """Where `datasets` puts a folder's rows: a place for each state of the folder.

    Its own cache goes by the folder's name and would give the rows of another one, or those of before a change.
    """
    digest = hashlib.sha256(os.fsencode(folder.resolve()))
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found = path.stat()
        digest.update(os.fsencode(path.relative_to(folder)) + f"\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
    return cache_folder() / "datasets" / digest.hexdigest()[:16]


class Recorded(LM):  # type: ignore[misc]
    """A backend whose answers are kept as they come, and not asked for again.

    Attributes:
        num_cut: Prompts that were too long and are shortened.
    """

    def __init__(
        self, engine: HarnessEngine, known: Mapping[str, Any], keep: Keep, asked: Callable[[int], None], overlong: str
    ) -> None:
        super().__init__()
        self._engine, self._asked, self._keep, self._overlong = engine, asked, keep, overlong
        self._known = dict(known)
        self.num_cut = 0

    def generate_until(self, requests: Sequence[Any], **options: Any) -> list[str]:
        """See `lm_eval.api.model.LM`."""
        return self._answers("generate_until", [self._fitting(request) for request in requests])

    def loglikelihood(self, requests: Sequence[Any], **options: Any) -> list[tuple[float, bool]]:
        """See `lm_eval.api.model.LM`."""
        found = self._answers("loglikelihood", [self._fitting(request) for request in requests])
        return [(float(logprob), bool(is_greedy)) for logprob, is_greedy in found]

    def loglikelihood_rolling(self, requests: Sequence[Any], **options: Any) -> list[float]:
        """See `lm_eval.api.model.LM`; texts are cut into windows, so that none is too long."""
        return self._answers("loglikelihood_rolling", requests)

    def _answers(self, kind: str, requests: Sequence[Any]) -> list[Any]:
        keys = [request_key(kind, request.args) for request in requests]
        owed = {key: request for key, request in zip(keys, requests, strict=True) if key not in self._known}
        if owed:
            self._asked(len(owed))
            self._engine.lm.exact_pairs = False
            with library_errors("the model could not answer", "the same command resumes; see --batch-size for memory"):
                self._engine.ask(kind, {key: request.args for key, request in owed.items()}, self._take)
        return [self._known[key] for key in keys]

    def _take(self, key: str, answer: Any, has_ended: bool | None) -> None:
        self._known[key] = answer
        self._keep(key, answer)

    def _fitting(self, request: Any) -> Any:
        """The request with a prompt that the backend will not cut."""
        context, other = request.args
        text, texts = getattr(context, "prompt", context), self._engine.texts
        count = len(prompt_tokens(texts.tokenizer, text))
        if isinstance(other, str):
            room = texts.max_length - len(texts.tokenizer(other, add_special_tokens=False)["input_ids"])
        else:
            room = texts.max_length - int(other.get("max_gen_toks", self._engine.lm.max_gen_toks))
        if count <= room:
            return request
        if self._overlong == "error" or text is not context:
            raise UserError(
                f"a prompt of {request.task_name} has {count:,} tokens, and {max(0, room):,} are left for it: choose "
                "with --overlong middle or left what is done with it, or take a model with more"
            )
        draft = Draft(prompt=text, answer_prefix="", answers=[], answer_spans=[])
        cut, _ = truncate(draft, TokenCounter(texts.tokenizer), room, self._overlong)
        self.num_cut += 1
        return replace(request, arguments=(cut.prompt, other), resps=[], filtered_resps={})

    @property
    def tokenizer_name(self) -> str:
        """See `lm_eval.api.model.TemplateLM`."""
        return str(self._engine.lm.tokenizer_name)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """See `lm_eval.api.model.TemplateLM`."""
        found: str | None = self._engine.lm.chat_template(chat_template)
        return found

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> Any:
        """See `lm_eval.api.model.LM`."""
        return self._engine.lm.apply_chat_template(chat_history, add_generation_prompt=add_generation_prompt)


def request_key(kind: str, arguments: tuple[Any, ...]) -> str:
    """Names a request: a hash of what is asked, with all options."""
    plain = [getattr(argument, "prompt", argument) for argument in arguments]
    return hashlib.sha256(json.dumps([kind, *plain], sort_keys=True).encode()).hexdigest()
