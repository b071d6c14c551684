"""Our tasks in lm-evaluation-harness's own command: the same prompts, answers and scores as in `longlens bench run`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from lm_eval.tasks._yaml_loader import load_yaml

from longlens.bench.engine import EngineSettings
from longlens.bench.lm_eval.backends import open_engine
from longlens.bench.lm_eval.export import dataset, export_tasks, process_results
from longlens.bench.run import run_bench
from longlens.bench.selection import BenchSettings
from longlens.errors import UserError
from longlens.tasks import get_task, list_tasks
from tests.bench.fakes import rows
from tests.tiny import byte_tokenizer

LENGTHS = [2000, 2300]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_each_task_has_a_file(cache):
    folder = export_tasks()
    assert folder.is_relative_to(cache)
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"longlens_{name}.yaml" for name in list_tasks())
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert export_tasks() == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    next(folder.iterdir()).unlink()
    export_tasks()
    assert len(list(folder.iterdir())) == len(list_tasks())


@pytest.mark.parametrize("name", ["longeval_lines", "helmet_nq", "longbench_samsum", "niah_grid"])
def test_a_file_says_what_the_task_does(cache, name):
    found, task = load_yaml(export_tasks() / f"longlens_{name}.yaml"), get_task(name)
    assert (found["task"], found["tag"]) == (f"longlens_{name}", f"longlens_{task.suite}")
    options = found["generation_kwargs"]
    assert (options["max_gen_toks"], options["until"], options["do_sample"]) == (
        task.max_new_tokens,
        list(task.stop),
        False,
    )
    assert [metric["metric"] for metric in found["metric_list"]] == [task.metric]
    assert (found["custom_dataset"], found["process_results"]) == (dataset, process_results)


def given(name, **changes):
    return {"pretrained": name, "longlens_task": "longeval_lines", "version": 1.0, "samples": 2} | changes


def test_lengths_come_in_turn(model):
    """So that --limit does not drop whole lengths."""
    found = dataset(**given(model, lengths=LENGTHS, samples=3))["test"]
    assert found["id"] == [f"longeval_lines-{length}-42-{index}" for index in range(3) for length in LENGTHS]
    task = get_task("longeval_lines")
    made = {one.id: one for size in LENGTHS for one in task.build(length=size, samples=3, tokenizer=byte_tokenizer())}
    for row in found:
        assert (row["input"], row["prefix"]) == (made[row["id"]].prompt, made[row["id"]].answer_prefix)


@pytest.mark.parametrize(
    ("changes", "ids"),
    [
        ({"max_seq_lengths": 1500, "seed": 7}, ["longeval_lines-1500-7-0", "longeval_lines-1500-7-1"]),
        ({"lengths": [1500], "ids": "LRT", "samples": 1}, ["longeval_lines-1500-42-0"]),
        ({"samples": 1}, ["longeval_lines-4096-42-0"]),
        ({"samples": 1, "pretrained": None, "model": "M", "tokenizer": "T"}, ["longeval_lines-4096-42-0"]),
    ],
)
def test_metadata_say_what_is_built(model, changes, ids):
    named = {"M": model, "T": model}
    made = {key: named.get(value, value) if isinstance(value, str) else value for key, value in changes.items()}
    found = dataset(**given(model, **made))["test"]
    assert found["id"] == ids
    if changes.get("ids"):
        assert "line 1:" in found[0]["input"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": [1000, 5000]}, "length 5000 is more than the 4096 tokens that the model supports: use less"),
        ({"lengths": [1000], "max_length": 900}, "length 1000 is more than the 900 tokens that the model supports"),
        ({"max_length": 4000}, "length 4096 is more than the 4000 tokens"),
        ({"pretrained": None}, "no tokenizer to count tokens: pass --metadata"),
        ({"lengths": [50]}, "`length=50` is too short"),
        ({"longlens_task": "helmet_nq", "data_dir": "nowhere"}, "'nowhere' lacks 2 files: put kilt"),
    ],
)
def test_what_cannot_be_built_is_refused(model, changes, message):
    with pytest.raises(UserError, match=message):
        dataset(**given(model, **changes))


def test_scores_are_those_of_the_task(model):
    (row,) = dataset(**given(model, lengths=[1500], samples=1))["test"]
    answer = json.loads(row["sample"])["answers"][0]
    assert process_results(row, [f"It is {answer}."]) == {"accuracy": 1.0, "accuracy@1500": 1.0}
    assert process_results(row, ["no"]) == {"accuracy": 0.0, "accuracy@1500": 0.0}


def test_the_real_command_asks_and_scores_as_we_do(model, data, tmp_path, cache):
    tasks = ("vt", "longbench_lcc")
    metadata = {"lengths": LENGTHS, "samples": 2, "data_dir": str(data)}
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={model}"]
    command += ["--include_path", str(export_tasks()), "--tasks", ",".join(f"longlens_{name}" for name in tasks)]
    command += ["--metadata", json.dumps(metadata), "--output_path", str(tmp_path / "out"), "--log_samples"]
    command += ["--device", "cpu", "--batch_size", "4"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "datasets")}
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | offline | {"OMP_NUM_THREADS": "1"}
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    (results,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(results.read_text())["results"]
    ours = run_bench(
        EngineSettings(model=model, batch_size=4),
        BenchSettings(tasks=tasks, lengths=LENGTHS, samples=2, settings={"data_dir": str(data)}),
        tmp_path / "run",
        open_engine=open_engine,
    )["tasks"]
    prompts = {row["id"]: row["prompt"] for row in rows(tmp_path / "run", "samples")}
    texts = {row["key"]: row["text"] for row in rows(tmp_path / "run")}
    assert ours["longbench_lcc-2000-42"]["score"] > 0  # a share, which is hardly ever 0
    for name in tasks:
        metric = get_task(name).metric
        scores = {length: ours[f"{name}-{length}-42"]["score"] / 100 for length in LENGTHS}
        theirs = found[f"longlens_{name}"]
        assert {length: theirs[f"{metric}@{length},none"] for length in LENGTHS} == pytest.approx(scores, abs=1e-4)
        assert theirs[f"{metric},none"] == pytest.approx(sum(scores.values()) / 2, abs=1e-4)
        (logged,) = Path(tmp_path / "out").rglob(f"samples_longlens_{name}_*.jsonl")
        lines = [json.loads(line) for line in logged.read_text().splitlines()]
        assert [line["doc"]["id"] for line in lines] == [f"{name}-{size}-42-{n}" for n in range(2) for size in LENGTHS]
        for line in lines:
            key = line["doc"]["id"]
            assert line["arguments"]["gen_args_0"]["arg_0"] == prompts[key]
            assert line["resps"][0][0] == texts[key]


@pytest.mark.parametrize("name", ["scrolls_gov_report", "leval_news_summ", "bamboo_abshallu_4k"])
def test_a_score_of_all_samples_together_is_that_of_the_task(name, cache, data):
    found, task = load_yaml(export_tasks() / f"longlens_{name}.yaml"), get_task(name, data_dir=data)
    samples = task.build(samples=2, tokenizer=byte_tokenizer())
    docs = [{"id": one.id, "sample": json.dumps({**asdict(one), "prompt": None})} for one in samples]
    answers = [samples[0].answers[0], "Yes, Ben of Elm waits at the mill"]
    items = [process_results(doc, [answer])[task.metric] for doc, answer in zip(docs, answers, strict=True)]
    wanted = task.aggregate([task.score(*pair) for pair in zip(samples, answers, strict=True)])[task.metric]
    (metric,) = found["metric_list"]
    assert (metric["metric"], 100 * metric["aggregation"](items)) == (task.metric, pytest.approx(wanted))
    assert wanted > 0
