"""A run as a whole: what is asked, what is kept, and that nothing is asked twice."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import safetensors.torch
import transformers

import longlens.bench.run
from longlens.bench.engine import EngineSettings, ModelRequest
from longlens.bench.lm_eval.backends import open_engine
from longlens.bench.prompts import Prompt
from longlens.bench.results import summarize_run
from longlens.bench.run import run_bench
from longlens.bench.samples import file_batches, task_batches, write_samples
from longlens.bench.selection import make_tasks
from longlens.bench.store import read_samples
from longlens.bench.table import results_table
from longlens.errors import LonglensWarning, UserError
from longlens.progress import Progress
from longlens.rope import YaRN, extend
from longlens.tasks.base import Builder, Sample
from tests.bench import fakes
from tests.bench.fakes import FakeEngine, bench_settings, rows
from tests.tiny import byte_tokenizer

TASKS = ("longeval_lines", "vt")
PUBLISHED = {
    "infinitebench_passkey": ("generate", "accuracy"),
    "infinitebench_longbook_choice_eng": ("choice", "choice_accuracy"),
    "scrolls_narrative_qa": ("generate", "f1"),
    "scrolls_contract_nli": ("choice", "choice_accuracy"),
    "zero_scrolls_space_digest": ("generate", "exp_similarity"),
    "leval_news_summ": ("generate", "rouge"),
    "bamboo_senhallu_4k": ("generate", "f1"),
    "bamboo_altqa_16k": ("teacher-forced", "teacher_forced"),
    "loogle_shortdep_cloze": ("generate", "exact_match"),
}
"""Tasks of published rows, how each is asked here, and its score."""


class Shown(Progress):
    def __init__(self):
        self.calls = []

    def start(self, title, *, unit, total=None, done=0.0):
        self.calls.append((title, unit, total))

    def update(self, done, *, note=""):
        self.calls[-1] += (done,)

    def finish(self):
        self.calls[-1] += ("finished",)


def bench(model, folder, engine=None, *, tasks=TASKS, engine_settings=None, **changes):
    """A run of two tasks, three samples each, with the engine's answers."""
    options = {name: changes.pop(name) for name in ("rank", "world_size", "progress") if name in changes}
    settings = bench_settings(**{"tasks": tasks, "lengths": [2000], "samples": 3} | changes)
    made = fakes.engine_settings(**{"model": str(model)} | (engine_settings or {}))
    return run_bench(made, settings, folder, open_engine=engine, **options)


def test_a_folder_is_of_one_configuration_wherever_it_lies(model, tmp_path, monkeypatch):
    """The weights of both are the same; a copy under another name is the same model, also for other versions."""
    settings = {"tasks": ["longeval_lines"], "samples": 1, "lengths": [700]}
    bench(model, tmp_path / "run", open_engine, **settings)
    before = rows(tmp_path / "run")
    extend(model, YaRN(factor=4), tmp_path / "yarn")
    shutil.copytree(model, tmp_path / "copy")
    with pytest.raises(UserError, match=r"config\.max_position_embeddings is 4096 there and 16384 here"):
        bench(str(tmp_path / "yarn"), tmp_path / "run", open_engine, **settings)
    monkeypatch.setattr("longlens.runs.folder.versions", lambda *_: {"lm_eval": "9"})
    with pytest.warns(LonglensWarning, match=r"started with other versions \(lm_eval \S+ -> 9\)"):
        bench(str(tmp_path / "copy"), tmp_path / "run", open_engine, **settings)
    assert rows(tmp_path / "run") == before


def never(*args):
    pytest.fail("the model was loaded")


@pytest.fixture
def builds(monkeypatch):
    """The samples that are built."""
    made = []
    build = Builder.sample
    monkeypatch.setattr(Builder, "sample", lambda self, at: (made.append(f"{self.name}-{at}"), build(self, at))[1])
    return made


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(longlens.bench.run, "CHUNK_SAMPLES", 4)


@pytest.mark.parametrize(("keep", "again"), [(True, 0), (False, 7)])
def test_a_resumed_run_builds_only_what_is_not_stored(model, tmp_path, builds, small_chunks, keep, again):
    """Where prompts are not stored, it builds those of its chunk that have no answer."""
    asked = {"tasks": ["vt"], "samples": 11, "keep_prompts": keep}
    with pytest.raises(RuntimeError):
        bench(model, tmp_path / "run", FakeEngine(fails_after=5), **asked)
    names = [f"vt-2000-42-{number}" for number in range(11)]
    assert builds == names[:8]  # two chunks
    assert [row["id"] for _, row in read_samples(tmp_path / "run")] == names[:8]
    builds.clear()
    engine = FakeEngine()
    bench(model, tmp_path / "run", engine, **asked)
    assert engine.keys == names[5:]
    assert builds == (names[8:] if keep else names[5:])


@pytest.mark.parametrize("mode", ["generate", "choice"])
def test_a_finished_run_builds_nothing_and_loads_no_model(model, tmp_path, builds, mode):
    asked = {"tasks": ["longeval_lines"], "mode": mode, "lengths": [1800, 2000]}
    results = bench(model, tmp_path / "run", FakeEngine(), **asked)
    builds.clear()
    assert bench(model, tmp_path / "run", never, **asked) == results
    for rank in range(3):
        assert bench(model, tmp_path / "run", never, **asked, rank=rank, world_size=3) == results
    assert builds == []


def test_processes_build_their_share(model, tmp_path, builds, small_chunks):
    for rank in (1, 0, 2):
        builds.clear()
        bench(model, tmp_path / "run", FakeEngine(), samples=10, rank=rank, world_size=3)
        assert sorted(builds) == sorted(f"{task}-2000-42-{at}" for task in TASKS for at in range(rank, 10, 3))
    assert bench(model, tmp_path / "run", never, samples=10)["tasks"]["vt-2000-42"]["num_samples"] == 10


def test_a_chunk_of_prompts_is_in_memory(model, tmp_path, small_chunks):
    def living():
        gc.collect()
        return {id(one): one for one in gc.get_objects() if type(one) in (Prompt, Sample, ModelRequest)}

    others = living()  # of tests before this one

    class Counting(FakeEngine):
        most = 0

        def answer(self, requests, take):
            held = [
                one.text if type(one) is Prompt else one.prompt for key, one in living().items() if key not in others
            ]
            self.most = max(self.most, len({prompt for prompt in held if prompt}))
            super().answer(requests, take)
            self.asked.clear()

    for samples in (12, 24):
        engine = Counting()
        bench(model, tmp_path / str(samples), engine, samples=samples)
        assert engine.most <= 4 + len(TASKS)  # a chunk, and the one of each task that was checked first


def test_a_run_of_before_and_one_whose_files_were_touched_go_on(model, tmp_path, builds):
    (tmp_path / "hay.txt").write_text("The sky is wide and blue. A bird sings. " * 200)
    asked = {"tasks": ["niah_single_2"], "settings": {"haystack": str(tmp_path / "hay.txt")}}
    results = bench(model, tmp_path / "run", FakeEngine(), **asked)
    os.utime(tmp_path / "hay.txt", (1, 1))
    builds.clear()
    assert bench(model, tmp_path / "run", never, **asked) == results
    assert len(builds) == 3  # they were compared
    path = tmp_path / "run" / "samples" / "niah_single_2-2000-42.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "recipe"}) + "\n" for line in lines))
    assert bench(model, tmp_path / "run", never, **asked) == results
    (tmp_path / "hay.txt").write_text("The sky is wide and grey. A bird sings. " * 200)
    with pytest.raises(UserError, match="contains a different sample niah_single_2-2000-42-0"):
        bench(model, tmp_path / "run", never, **asked)
    # Also where what is stored need not be compared.
    with pytest.raises(UserError, match="contains a different sample niah_single_2-2000-42-"):
        bench(model, tmp_path / "run", never, **asked | {"samples": 5}, rank=3, world_size=4)


def test_of_a_file_the_longest_sample_is_checked_first_and_one_that_changes_is_said(model, tmp_path):
    batches = task_batches(make_tasks(["vt"], {}), lengths=[2000], samples=3, seed=42, tokenizer=byte_tokenizer())
    path = tmp_path / "samples.jsonl"
    write_samples(path, batches)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    longer = lines[2] | {"prompt": "word " * 1000, "length": 5030}
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines[:2], longer]))
    with pytest.raises(UserError, match="vt-2000-42-2 has 5,130 tokens plus 30 for the answer"):
        bench(model, tmp_path / "run", never, tasks=[str(path)])
    assert not (tmp_path / "run").exists()
    (batch,) = file_batches(path)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[::-1]))
    with pytest.raises(UserError, match="changed while it was read"):
        batch.sample(0)


def test_a_prompt_is_tokenized_once_after_it_is_built(chat_model, tmp_path, monkeypatch):
    asked = {"tasks": ["longeval_lines"], "samples": 2, "lengths": [900]}
    for template, count in (("none", 0), ("prefill", 1)):
        bench(chat_model, tmp_path / template, engine := FakeEngine(), **asked, template=template)
        prompts = [request.prompt for request in engine.asked]
        counted = Counter()
        encode = transformers.PreTrainedTokenizerFast.__call__

        def counting(self, text, *args, encode=encode, counted=counted, **kwargs):
            counted.update([text] if isinstance(text, str) else text)
            return encode(self, text, *args, **kwargs)

        monkeypatch.setattr(transformers.PreTrainedTokenizerFast, "__call__", counting)
        bench(chat_model, tmp_path / f"{template} again", FakeEngine(), **asked, template=template)
        built = 1 if template == "none" else 0  # to fit it into the length, several sizes are tried
        assert [counted[prompt] for prompt in prompts] == [count + built] * 2
        monkeypatch.undo()


def test_each_sample_is_asked_once_with_its_exact_prompt(model, tmp_path):
    engine, progress = FakeEngine(), Shown()
    results = bench(model, tmp_path / "run", engine, progress=progress)
    names = [f"{task}-2000-42-{number}" for task in TASKS for number in range(3)]
    assert engine.keys == names
    stored = {row["id"]: row for _, row in read_samples(tmp_path / "run")}
    for request in engine.asked:
        row = stored[request.key]
        assert row["prompt"] == request.prompt
        assert row["prompt_tokens"] == len(byte_tokenizer()(request.prompt)["input_ids"])
        assert (row["max_new_tokens"], tuple(row["stop"])) == (request.max_new_tokens, request.stop)
    assert progress.calls == [(f"{task}-2000-42", "samples", 3, 1, 2, 3, "finished") for task in TASKS]
    assert list(results["tasks"]) == [f"{task}-2000-42" for task in sorted(TASKS)]
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == json.loads(json.dumps(results))


@pytest.mark.parametrize("mode", ["generate", "choice"])
def test_nothing_is_asked_when_all_is_answered(model, tmp_path, mode):
    tasks = ("longeval_lines",)
    first = bench(model, tmp_path / "run", FakeEngine(), tasks=tasks, mode=mode)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.jsonl")}
    engine, progress = FakeEngine(), Shown()
    assert bench(model, tmp_path / "run", engine, tasks=tasks, mode=mode, progress=progress) == first
    assert (engine.calls, progress.calls) == (0, [])
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.jsonl")} == before


def test_samples_tasks_lengths_and_seeds_may_be_added(model, tmp_path):
    engine = FakeEngine()
    folder = tmp_path / "run"
    bench(model, folder, engine, tasks=["vt"])
    bench(model, folder, engine, tasks=["vt"], samples=5)
    assert engine.keys == [f"vt-2000-42-{number}" for number in range(5)]
    bench(model, folder, engine, tasks=["vt", "longeval_lines"], lengths=[2000, 2500], samples=2)
    bench(model, folder, engine, tasks=["vt"], seed=7, samples=1)
    results = bench(model, folder, engine, tasks=["vt"])
    assert max(Counter(engine.keys).values()) == 1
    sizes = {name: batch["num_samples"] for name, batch in results["tasks"].items()}
    assert sizes == {
        "longeval_lines-2000-42": 2,
        "longeval_lines-2500-42": 2,
        "vt-2000-42": 5,
        "vt-2000-7": 1,
        "vt-2500-42": 2,
    }


def test_a_crash_of_the_engine_loses_no_answer(model, tmp_path):
    for fails_after in (0, 2, 3):
        failing = FakeEngine(fails_after=fails_after)
        with pytest.raises(RuntimeError, match="out of memory"):
            bench(model, tmp_path / str(fails_after), failing, tasks=["vt"], samples=4)
        assert [row["key"] for row in rows(tmp_path / str(fails_after))] == failing.keys
        after = FakeEngine()
        results = bench(model, tmp_path / str(fails_after), after, tasks=["vt"], samples=4)
        assert failing.keys + after.keys == [f"vt-2000-42-{number}" for number in range(4)]
        assert results["tasks"]["vt-2000-42"]["num_missing"] == 0


def test_of_a_choice_only_what_is_missing_is_asked_again(model, tmp_path):
    failing = FakeEngine(fails_after=7)
    with pytest.raises(RuntimeError):
        bench(model, tmp_path / "run", failing, tasks=["longeval_lines"], mode="choice")
    after = FakeEngine()
    bench(model, tmp_path / "run", after, tasks=["longeval_lines"], mode="choice")
    assert max(Counter(failing.keys + after.keys).values()) == 1
    assert len(failing.keys) == 7


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_processes_share_the_samples(model, tmp_path, order):
    engines = [FakeEngine(), FakeEngine()]
    for rank in order:
        bench(model, tmp_path / "run", engines[rank], rank=rank, world_size=2)
    asked = [[int(key.rpartition("-")[2]) for key in engine.keys if key.startswith("vt")] for engine in engines]
    assert asked == [[0, 2], [1]]
    alone = FakeEngine()
    results = bench(model, tmp_path / "alone", alone)
    assert sorted(engines[0].keys + engines[1].keys) == sorted(alone.keys)
    # Whoever ends last sums all up.
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == json.loads(json.dumps(results))
    assert {path.name.split("-")[1] for path in (tmp_path / "run" / "answers").iterdir()} == {"0", "1"}
    nobody = FakeEngine()
    for processes in (1, 3):
        for rank in range(processes):
            bench(model, tmp_path / "run", nobody, rank=rank, world_size=processes)
    assert nobody.keys == []


def test_prompts_may_be_left_out(model, tmp_path):
    bench(model, tmp_path / "with", FakeEngine())
    results = bench(model, tmp_path / "without", FakeEngine("never written"), keep_prompts=False)
    prompts = [row["prompt"] for _, row in read_samples(tmp_path / "with")]
    text = "".join(path.read_text() for path in (tmp_path / "without").rglob("*.json*"))
    begins = [json.dumps(prompt)[1:60] for prompt in prompts]
    assert all(begin not in text for begin in begins)
    assert any(begin in path.read_text() for path in (tmp_path / "with").rglob("*.jsonl") for begin in begins)
    hashes = [[row["prompt_sha256"] for _, row in read_samples(tmp_path / name)] for name in ("with", "without")]
    assert hashes[0] == hashes[1]
    engine = FakeEngine()
    assert bench(model, tmp_path / "without", engine, keep_prompts=False) == results
    assert engine.keys == []


SECRETS = {
    "auth_token": "sesame-1",
    "header": {"Authorization": "Bearer sesame-2"},
    "api_key": "sesame-3",
    "hf_token": "sesame-4",
}


def test_secrets_are_written_nowhere(model, tmp_path, log):
    arguments = {**SECRETS, "num_concurrent": 8}
    for _ in range(2):
        settings = {"arguments": arguments, "backend": "local-completions"}
        results = bench(model, tmp_path / "run", FakeEngine(), engine_settings=settings)
    for path in (tmp_path / "run").rglob("*"):
        assert path.is_dir() or b"sesame" not in path.read_bytes(), path
    assert "sesame" not in json.dumps(results) + "".join(log)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["engine"]["arguments"]["num_concurrent"] == 8
    # Another key is not another run.
    settings = {"arguments": arguments | {"auth_token": "new"}, "backend": "local-completions"}
    bench(model, tmp_path / "run", FakeEngine(), engine_settings=settings)
    settings = {"arguments": arguments | {"num_concurrent": 4}, "backend": "local-completions"}
    with pytest.raises(UserError, match="contains a different benchmark run: "):
        bench(model, tmp_path / "run", FakeEngine(), engine_settings=settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine_settings": {"dtype": "bfloat16"}}, "contains a different benchmark run: dtype is 'float32' there"),
        (
            {"engine_settings": {"arguments": {"logits_cache": False}}},
            "contains a different benchmark run: arguments is",
        ),
        (
            {"mode": "teacher-forced", "tasks": ["longeval_lines"]},
            "mode is 'generate' there and",
        ),
        ({"think_tokens": 9}, "think_tokens is 0 there and 9 here"),
        ({"overlong": "skip"}, "overlong is None there and 'skip' here"),
        ({"template": "none"}, "template is 'auto' there and"),
        ({"template_arguments": {"a": 1}}, "template_arguments is "),
        ({"settings": {"hops": 2}}, r"contains a different sample vt-2000-42-\d \(other settings, data or haystack\)"),
        (
            {"tasks": ["longeval_lines"], "settings": {"ids": "LRT"}},
            "contains a different sample longeval_lines-2000-42-",
        ),
    ],
)
def test_a_folder_is_of_one_model_asked_in_one_way(model, tmp_path, changes, message):
    bench(model, tmp_path / "run", FakeEngine())
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.json*")}
    other = FakeEngine()
    with pytest.raises(UserError, match=message):
        bench(model, tmp_path / "run", other, **changes)
    assert other.keys == []
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.json*")} == before


@pytest.mark.parametrize("part", ["weights", "tokenizer"])
def test_another_model_of_the_same_name_is_refused_before_it_is_loaded(model, tmp_path, part):
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    bench(folder, tmp_path / "run", FakeEngine(), tasks=["vt"])
    if part == "weights":
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        weights["model.norm.weight"] *= 2
        safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        tokenizer = byte_tokenizer()
        tokenizer.add_tokens(["<other>"])
        tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="contains a different benchmark run: "):
        bench(folder, tmp_path / "run", never, tasks=["vt"])


def test_another_answer_in_the_data_is_another_sample(model, tmp_path):
    conversations = tmp_path / "conversations.jsonl"
    row = {"topic": "old mills", "conversation": "USER: I would like to discuss the topic of old mills. \n "}
    asked = {"tasks": ["longeval_topics"], "settings": {"data_dir": str(tmp_path), "topics": 1}, "samples": 1}
    conversations.write_text(json.dumps(row))
    bench(model, tmp_path / "run", FakeEngine(), **asked)
    conversations.write_text(json.dumps(row | {"topic": "the mills"}))
    with pytest.raises(UserError, match="contains a different sample longeval_topics-2000-42-0"):
        bench(model, tmp_path / "run", FakeEngine(), **asked)


def test_all_is_checked_before_the_model_is_loaded(model, tmp_path):
    for changes, message in [
        ({"tasks": ["vt", "nosuch"]}, "no task or suite 'nosuch'"),
        ({"lengths": [100]}, "`length=100` is too short for 3 samples of"),
        ({"lengths": [5000]}, "has .* tokens plus .* for the answer, but the model supports 4,096"),
        ({"mode": "choose"}, "`mode` is 'choose'"),
        ({"mode": "choice"}, "vt has no wrong answers to choose from"),
        ({"template": "chat"}, "this tokenizer has no chat template"),
        ({"overlong": "cut"}, "`overlong` is 'cut'"),
        ({"settings": {"nosuch": 1}}, "none of longeval_lines, vt has a setting 'nosuch'"),
        ({"samples": 0}, "`samples=0`; expected at least 1"),
        ({"tasks": [str(tmp_path / "none.jsonl")]}, "cannot read"),
        ({"tasks": ["gsm8k"], "mode": "choice"}, "gsm8k is a task of lm-evaluation-harness with its own mode"),
        ({"tasks": ["vt", "gsm8k"], "overlong": "skip"}, "`overlong=skip` is not possible"),
        ({"tasks": ["babilong"], "lengths": []}, "babilong has data of several lengths: pass `lengths`"),
        ({"tasks": ["lm_eval:coqa"]}, "lm_eval:coqa has prompts of one length, which `lengths` does not change"),
        ({"tasks": ["gsm8k"], "lengths": [], "samples": 0}, "`samples=0`; expected at least 1"),
        ({"tasks": ["gsm8k"], "lengths": [], "settings": {"nosuch": 1}}, "no task has a setting 'nosuch'"),
        ({"tasks": ["gsm8k"], "lengths": [], "world_size": 2}, "run in one process"),
    ]:
        with pytest.raises(UserError, match=message):
            bench(model, tmp_path / "run", never, **changes)
        assert not (tmp_path / "run").exists()


def test_samples_too_long_are_counted(model, tmp_path, log):
    """Those that the length is too short for, and those that the model is."""
    asked = {"tasks": ["longeval_lines"], "lengths": [], "settings": {"lines": 20}}
    results = bench(
        model, tmp_path / "cut", FakeEngine(), **asked, overlong="middle", engine_settings={"max_length": 1200}
    )
    (batch,) = results["tasks"].values()
    assert (batch["num_samples"], batch["num_cut"], batch["num_skipped"]) == (3, 3, 0)
    assert log == ["longeval_lines-20units-42: 3 of 3 samples were too long and were truncated"]
    engine = FakeEngine()
    results = bench(model, tmp_path / "skip", engine, **asked, overlong="skip", engine_settings={"max_length": 1200})
    (batch,) = results["tasks"].values()
    assert (batch["num_samples"], batch["num_cut"], batch["num_skipped"], batch["score"]) == (0, 0, 3, None)
    assert (engine.keys, log[-1]) == ([], "longeval_lines-20units-42: 3 of 3 samples were too long and were skipped")


def sizes_of(task, count, settings):
    made = make_tasks([task], settings)[0].build(length=None, samples=count, tokenizer=byte_tokenizer())
    return [sample.length for sample in made]


def test_samples_that_are_left_out_when_they_are_built_are_counted_too(model, tmp_path, log):
    sizes = sizes_of("longeval_lines", 6, {"lines": 20})
    limit = sorted(sizes)[2]
    assert len(set(sizes)) > 3
    fits = sum(size <= limit for size in sizes)
    asked = {"tasks": ["longeval_lines"], "samples": 6, "settings": {"lines": 20}, "overlong": "skip"}
    engine = FakeEngine()
    results = bench(model, tmp_path / "run", engine, **asked, lengths=[limit])
    (batch,) = results["tasks"].values()
    assert (batch["num_samples"], batch["num_skipped"], batch["num_missing"]) == (fits, 6 - fits, 0)
    assert [int(key.rpartition("-")[2]) for key in engine.keys] == [n for n, size in enumerate(sizes) if size <= limit]
    assert log == [f"longeval_lines-{limit}-42: {6 - fits} of 6 samples were too long and were skipped"]
    # All of them, too: a task is not gone because nothing of it fits.
    results = bench(model, tmp_path / "none", FakeEngine(), **asked, lengths=[min(sizes) - 1])
    (batch,) = results["tasks"].values()
    assert (batch["task"], batch["score"], batch["num_samples"], batch["num_skipped"]) == ("longeval_lines", None, 0, 6)
    assert batch["length"] == min(sizes) - 1


def test_a_file_of_samples_is_asked_as_the_task_is(model, tmp_path):
    batches = task_batches(
        make_tasks(TASKS, {}), lengths=[2000], samples=3, seed=42, tokenizer=byte_tokenizer(), overlong=None
    )
    write_samples(tmp_path / "samples.jsonl", batches)
    engines = [FakeEngine(), FakeEngine()]
    results = [
        bench(model, tmp_path / "a", engines[0]),
        bench(model, tmp_path / "b", engines[1], tasks=[str(tmp_path / "samples.jsonl")]),
    ]
    assert engines[0].asked == engines[1].asked
    assert results[0]["tasks"] == results[1]["tasks"]


@pytest.mark.parametrize("name", ["../../outside-0", "a/b-0", "/tmp/x-0", ".-0", "a\\b-0", "..-0", ""])
def test_a_file_of_samples_writes_nothing_outside_of_the_run(model, tmp_path, name):
    (batch,) = task_batches(make_tasks(["vt"], {}), lengths=[2000], samples=1, seed=42, tokenizer=byte_tokenizer())
    write_samples(tmp_path / "samples.jsonl", [batch])
    row = json.loads((tmp_path / "samples.jsonl").read_text()) | {"id": name}
    (tmp_path / "samples.jsonl").write_text(json.dumps(row) + "\n")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="id"):
        bench(model, tmp_path / "run", FakeEngine(), tasks=[str(tmp_path / "samples.jsonl")])
    assert sorted(tmp_path.rglob("*")) == before


def test_the_samples_of_a_run_are_no_file_of_samples(model, tmp_path):
    """Their prompts have template and answer prefix already, or are left out."""
    for keep in (True, False):
        bench(model, tmp_path / f"{keep}", FakeEngine(), tasks=["vt"], keep_prompts=keep)
        file = tmp_path / f"{keep}" / "samples" / "vt-2000-42.jsonl"
        with pytest.raises(UserError, match="has the prompts of a run, or none: pass a file of longlens bench build"):
            bench(model, tmp_path / "other", FakeEngine(), tasks=[str(file)])


# --- with a real model ------------------------------------------------------------------------------------------------


def opened(counted):
    """The real engine, which writes down what it is asked."""

    def open_counting(settings, texts):
        made = open_engine(settings, texts)
        answer = made.answer

        def counting(requests, take):
            counted.extend(request.key for request in requests)
            answer(requests, take)

        made.answer = counting
        return made

    return open_counting


REAL = {"tasks": ["vt"], "lengths": [1800], "samples": 24}


@pytest.fixture(scope="module")
def undisturbed(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    return folder, bench(model, folder, open_engine, **REAL)


def texts_of(folder):
    return {row["key"]: row["text"] for row in rows(folder)}


def test_a_killed_run_goes_on_where_it_was(model, tmp_path, undisturbed):
    folder = tmp_path / "run"
    command = ["bench", "run", "vt", "--length", "1800", "--samples", "24", "--model", model, "-o", folder]
    started = subprocess.Popen(
        [sys.executable, "-m", "longlens", *map(str, command)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        until = time.monotonic() + 120
        while len(rows(folder)) < 3 and started.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        started.send_signal(signal.SIGKILL)
    finally:
        _, said = started.communicate()
    assert started.returncode == -signal.SIGKILL, said.decode()
    kept = [row["key"] for row in rows(folder)]
    assert 3 <= len(kept) < 24
    assert not (folder / "results.json").exists()
    again = []
    results = bench(model, folder, opened(again), **REAL)
    assert sorted(kept + again) == sorted(f"vt-1800-42-{number}" for number in range(24))
    assert texts_of(folder) == texts_of(undisturbed[0])
    assert results == undisturbed[1]
    assert len(set(texts_of(folder).values())) > 1


def test_results_do_not_depend_on_the_size_of_a_batch(model, tmp_path, undisturbed):
    results = bench(model, tmp_path / "run", open_engine, **REAL, engine_settings={"batch_size": 5})
    assert texts_of(tmp_path / "run") == texts_of(undisturbed[0])
    assert results == undisturbed[1]


def test_likelihoods_do_not_depend_on_the_size_of_a_batch(model, tmp_path):
    asked = {"tasks": ["longeval_lines"], "mode": "choice", "samples": 2, "lengths": [800]}
    logprobs = []
    for size in (1, 7):
        bench(model, tmp_path / str(size), open_engine, **asked, engine_settings={"batch_size": size})
        logprobs.append({row["key"]: row["logprob"] for row in rows(tmp_path / str(size))})
    assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-3)
    assert len(set(logprobs[0].values())) == 2 * 10


@pytest.mark.parametrize("mode", ["generate", "choice", "teacher-forced"])
def test_suites_of_published_rows_run_with_a_model_to_their_scores(mode, model, tmp_path, data):
    names = [name for name, (way, _) in PUBLISHED.items() if way == mode]
    settings = bench_settings(tasks=names, samples=2, mode=mode, settings={"data_dir": str(data)})
    made = EngineSettings(model=model, batch_size=8)
    batches = run_bench(made, settings, tmp_path / "run")["tasks"].values()
    assert {batch["task"]: batch["metric"] for batch in batches} == {name: PUBLISHED[name][1] for name in names}
    for batch in batches:
        assert 0 <= batch["score"] <= 100
        assert (batch["num_samples"], batch["num_scored"]) == (2, 2)
    page = results_table({"run": summarize_run(tmp_path / "run")}).rows
    assert {row[0] for row in page} >= set(names)
