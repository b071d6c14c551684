"""`longlens score` and `longlens longppl` with models on servers."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import longlens
from longlens import load_scorer
from tests.engines.fake import Fake, wait_until

WINDOWS = ["--context", 16, "--stride", 8]
SECRET = "sesame-open-7"


@pytest.fixture
def fake(models):
    with Fake(load_scorer(str(models / "llama"))) as server:
        yield server


@pytest.fixture
def other(models):
    with Fake(load_scorer(str(models / "other")), "sglang") as server:
        yield server


def logprobs(folder):
    return {one.id: one.long_logprobs for one in longlens.open_scores(folder)}


def same(one, other):
    ours, theirs = logprobs(one), logprobs(other)
    assert ours.keys() == theirs.keys()
    for id, values in ours.items():
        np.testing.assert_allclose(values, theirs[id], atol=2e-5)


def test_score_with_a_server(work, run, fake, monkeypatch):
    monkeypatch.setenv("LONGLENS_API_KEY", SECRET)
    fake.key = SECRET
    command = ["score", "a.txt", "b.txt", *WINDOWS]
    ended = run(*command, "--model", fake.url, "--tokenizer", "llama", "--concurrency", 2, "-o", "served")
    assert ended.code == 0, ended.err
    assert "tiny: served by vllm 0.32.0" in ended.err
    assert run(*command, "--model", "llama", "-o", "here").code == 0
    same("served", "here")
    assert SECRET not in ended.err + ended.out
    assert not [path for path in Path("served").rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert fake.most_in_flight <= 2
    assert run("perplexity", "served").code == 0


def test_longppl_with_an_evaluator_here_and_a_model_on_a_server_and_the_other_way_round(work, run, fake, other):
    command = ["longppl", "a.txt", "b.txt", *WINDOWS, "--alpha", 0.1, "--beta", -9, "--dtype", "float32"]
    wanted = run.json(*command, "--model", "llama", "--evaluator", "other", "-o", "here")
    evaluated = [*command, "--model", fake.url, "--tokenizer", "llama", "--concurrency", 3, "--evaluator", "other"]
    found = run.json(*evaluated, "-o", "evaluated")
    assert found["longppl"] == pytest.approx(wanted["longppl"], rel=1e-4)
    same("evaluated/model", "here/model")
    selecting = [*command, "--model", "llama", "--evaluator", other.url]
    selecting += ["--evaluator-tokenizer", "other", "--evaluator-engine", "sglang", "--concurrency", 3]
    found = run.json(*selecting, "-o", "selecting")
    assert found["num_key_tokens"] == wanted["num_key_tokens"]
    same("selecting/evaluator", "here/evaluator")
    manifest = json.loads(Path("selecting/model/manifest.json").read_text())
    assert manifest["settings"]["max_length_counted_by"] == "tiny"  # not where it is, which may change
    both = ["--model", fake.url, "--tokenizer", "llama", "--evaluator", other.url, "--evaluator-tokenizer", "other"]
    assert run(*command[:-2], *both, "--evaluator-engine", "sglang", "-o", "both").code == 0
    same("both/model", "here/model")


def test_what_has_no_effect_with_a_server_is_one_line(work, run, fake):
    score = ["score", "a.txt", *WINDOWS, "-o", "run", "--model"]
    longppl = ["longppl", "a.txt", *WINDOWS, "-o", "run", "--model", "llama", "--evaluator"]
    for arguments, said in (
        ([*score, fake.url, "--dtype", "float32"], "--dtype would have no effect with --engine openai: remove it"),
        ([*score, fake.url, "--device", "cpu"], "--device would have no effect with --engine openai"),
        ([*score, fake.url, "--cache", "full"], "--cache would have no effect with --engine openai"),
        ([*score, "llama", "--concurrency", 2], "--concurrency would have no effect with --engine transformers"),
        (
            [*score, "llama", "--engine", "sglang"],
            "--engine sglang is for a server: pass --model http://HOST:PORT/v1#NAME",
        ),
        ([*longppl, "other", "--concurrency", 2], "--concurrency would have no effect with --engine transformers"),
        ([*longppl, "self", "--evaluator-tokenizer", "other"], "--evaluator-tokenizer would have no effect without"),
        ([*score, f"http://user:{SECRET}@127.0.0.1:{fake.port}/v1#tiny"], "--model has a user name, a password or"),
        (
            [*score, fake.url.replace("tiny", "big")],
            "has no model 'big': it has ['another', 'tiny']; put one of them after",
        ),
    ):
        error = run(*arguments).error
        assert said in error
        assert SECRET not in error
    assert not fake.number
    assert not Path("run").exists()


def test_an_interrupt_ends_a_run_that_waits_for_a_server(work, run, fake):
    fake.fails = lambda number: "hang" if number > 40 else None

    def interrupt():
        wait_until(lambda: fake.number > 41, 60)
        time.sleep(1)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    # What a shell starts in the background ignores interrupts, and so do its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    (work / "c.txt").write_text("Many words and more of them. " * 40)
    started = time.monotonic()
    command = ["score", "a.txt", "b.txt", "c.txt", *WINDOWS, "--tokenizer", "llama", "-o", "run"]
    try:
        ended = run(*command, "--model", fake.url)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.code == 130, ended.err
    assert time.monotonic() - started < 25
    fake.fails = lambda number: None
    assert run(*command, "--model", fake.url).code == 0
    assert run(*command[:-1], "here", "--model", "llama").code == 0
    same("run", "here")
