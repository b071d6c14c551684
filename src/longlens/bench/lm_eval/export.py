"""Exports tasks of longlens to lm-evaluation-harness's command line, as YAML files that call functions of this module.

That command line warns about a prompt that is too long, and truncates it. Here, samples longer than the model supports
are rejected when they are built. Other checks exist only in `longlens bench run`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from longlens.bench.results import answer_text
from longlens.bench.samples import parse_sample
from longlens.bench.selection import make_tasks, task_of
from longlens.errors import UserError
from longlens.files import cache_folder, replacing
from longlens.runs.identity import canonical_sha256
from longlens.settings.options import SEED
from longlens.tasks import get_task, task_settings, usable_tasks
from longlens.tasks.base import Task

PREFIX = "longlens_"
LENGTH = 4096


def export_tasks() -> Path:
    """Returns a directory in the user's cache with a YAML file for each usable task, and creates it if needed."""
    texts = {f"{PREFIX}{name}.yaml": _yaml(task) for name, task in usable_tasks()[0].items()}
    folder = cache_folder() / f"lm_eval-{canonical_sha256(texts)[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        if not (folder / name).is_file():
            with replacing(folder / name) as file:
                file.write(text)
    return folder


def _yaml(task: Task) -> str:
    here = "longlens.bench.lm_eval.export"
    summed_up = f"!function {here}.joint_score" if task.joint else "mean"
    return f"""task: {PREFIX}{task.name}
tag: longlens_{task.suite}
custom_dataset: !function {here}.dataset
output_type: generate_until
test_split: test
doc_to_text: "{{{{input}}}}"
doc_to_target: ""
gen_prefix: "{{{{prefix}}}}"
target_delimiter: ""
process_results: !function {here}.process_results
metric_list:
  - {{metric: {json.dumps(task.metric)}, aggregation: {summed_up} , higher_is_better: true}}
generation_kwargs: {{do_sample: false, max_gen_toks: {task.max_new_tokens}, until: {json.dumps(list(task.stop))},
  repetition_penalty: 1.0}}
metadata: {{version: 1.0, longlens_task: {task.name}}}
"""


def dataset(**given: Any) -> dict[str, Any]:
    """Returns samples in the format of lm-evaluation-harness.

    Args:
        given: Metadata of the YAML, ``--model_args`` and ``--metadata``: ``lengths`` (or ``max_seq_lengths``), default
            4096; ``samples``, default the benchmark's own number; ``seed``; settings of the task.

    Raises:
        UserError: There is no tokenizer, the model does not support a length, or a sample cannot be built.
    """
    import datasets

    from longlens.models import load_max_length, load_tokenizer

    model = given.get("pretrained") or given.get("model")
    name = given.get("tokenizer") or model
    if not isinstance(name, str):
        raise UserError('no tokenizer to count tokens: pass --metadata \'{"tokenizer": "NAME"}\'')
    lengths = given.get("lengths") or given.get("max_seq_lengths") or [LENGTH]
    lengths = [int(length) for length in (lengths if isinstance(lengths, list) else [lengths])]
    limit = given.get("max_length") or (load_max_length(model) if isinstance(model, str) else None)
    if limit is not None and max(lengths) > int(limit):
        raise UserError(f"length {max(lengths)} is more than the {limit} tokens that the model supports: use less")
    own = task_settings(str(given["longlens_task"]))
    settings = {key: value for key, value in given.items() if key in own}
    (task,) = make_tasks([str(given["longlens_task"])], settings)
    tokenizer = load_tokenizer(name)
    count, seed = given.get("samples"), int(given.get("seed", SEED))
    built = [task.build(length=length, samples=count, seed=seed, tokenizer=tokenizer) for length in lengths]
    # Lengths alternate, so that `--limit`, which uses the first samples, does not drop whole lengths.
    rows = [_row(sample) for of_all in zip(*built, strict=True) for sample in of_all]
    return {"test": datasets.Dataset.from_list(rows)}


def _row(sample: Any) -> dict[str, str]:
    plain = asdict(sample) | {"prompt": None}
    return {"id": sample.id, "input": sample.prompt, "prefix": sample.answer_prefix, "sample": json.dumps(plain)}


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Returns the scores of an answer, from 0 to 1, over all lengths and as ``metric@length``.

    A joint score exists only over all lengths, see `joint_score`.
    """
    sample = parse_sample(json.loads(doc["sample"]), doc["id"])
    task = task_of(sample)
    scores = dict(task.score(sample, answer_text(results[0], task.stop)))
    length = sample.metadata.get("requested_length")
    joint = {task.metric: (task.name, scores)} if task.joint else {}
    return scores | {f"{name}@{length}": score for name, score in scores.items() if length is not None} | joint


def joint_score(items: Sequence[tuple[str, Mapping[str, float]]]) -> float:
    """Computes the task's own score over all samples, from 0 to 1, from the output of `process_results`."""
    task = get_task(items[0][0])
    return task.aggregate([scores for _, scores in items])[task.metric] / 100
