"""Results in trackers: what each of them has afterwards, with the real packages where they are installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from longlens.cli import main
from longlens.errors import UserError
from longlens.tracking import TrackedRun, check_trackers, log_runs

RUN = TrackedRun(
    "base [x]/y", {"context": 32}, {"ppl": 3.5, "longppl": None}, [(1, {"doc": 2.0}), (0, {"doc": 4.0, "none": None})]
)


def needs(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


def test_rows_are_in_order_and_the_summary_comes_last():
    assert list(RUN.rows()) == [(0, {"doc": 4.0}), (1, {"doc": 2.0, "ppl": 3.5})]
    assert list(RUN._replace(steps=()).rows()) == [(0, {"ppl": 3.5})]


def test_a_tracker_that_there_is_not_is_told_before_a_model_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package 'wandb', which is not installed: pip install wandb"):
        check_trackers(["wandb"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("A text.")
    for given, said in (("wandbb", "--log-to is 'wandbb'; expected one of"), ("trackio", "pip install trackio")):
        for command in (
            ["score", "a.txt", "--model", "none", "-o", "out"],
            ["perplexity", "none"],
            ["bench", "run", "vt", "--model", "none", "-o", "out"],
        ):
            assert main([*command, "--log-to", given]) == 2
            assert said in capsys.readouterr().err


def test_commands_log_what_they_print(scored, monkeypatch, capsys):
    logged: list[TrackedRun] = []
    monkeypatch.setattr("longlens.tracking.TRACKERS", {"json": logged.append})
    names = [str(scored / "llama"), str(scored / "other")]
    assert main(["perplexity", *names, "--evaluator-scores", names[0], "--log-to", "json", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [run.name for run in logged] == ["llama", "other"]
    for run, result in zip(logged, results, strict=True):
        assert run.summary["perplexity/ppl"] == result["ppl"]
        assert run.summary["perplexity/num_key_tokens"] == result["num_key_tokens"]
        assert (run.config["context"], len(run.steps)) == (32, 2)


def test_score_and_bench_run_log_their_results(work, run, monkeypatch):
    logged: list[TrackedRun] = []
    monkeypatch.setattr("longlens.tracking.TRACKERS", {"json": logged.append})
    log = ("--model", "llama", "--name", "ours", "--log-to", "json")
    assert run("score", "a.txt", "b.txt", "--context", "32", "--stride", "16", *log, "-o", "scores").code == 0
    found = run.json("bench", "run", "vt", "--length", "1750,1800", "--samples", "1", *log, "-o", "run")
    scores, bench = logged
    assert (scores.name, bench.name) == ("ours", "ours")
    assert scores.summary["score/ppl"] == pytest.approx(run.json("perplexity", "scores")["ppl"])
    wanted = [(b["length"], {"bench/vt/string_match_all": b["score"]}) for b in found["tasks"].values()]
    assert list(bench.steps) == wanted
    assert [length for length, _ in wanted] == [1750, 1800]


@needs("tensorboard")
def test_tensorboard_has_the_values(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path))
    log_runs(["tensorboard"], [RUN])
    (folder,) = Path(tmp_path).iterdir()
    assert folder.name == "base-x-y"
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [(one.step, one.value) for one in events.Scalars("doc")] == [(0, 4.0), (1, 2.0)]
    assert [(one.step, one.value) for one in events.Scalars("ppl")] == [(1, 3.5)]


@needs("wandb")
def test_wandb_has_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log_runs(["wandb"], [RUN])
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    given_up = time.monotonic() + 20
    while b"ppl" not in file.read_bytes() and time.monotonic() < given_up:  # another process of wandb's writes it
        time.sleep(0.1)
    content = file.read_bytes()
    assert all(text in content for text in (b"ppl", b"doc", b"base [x]/y"))


@needs("trackio")
def test_trackio_has_the_values(tmp_path):
    script = (
        "import trackio; from longlens.tracking import TrackedRun, log_runs\n"
        "log_runs(['trackio'], [TrackedRun('base [x]', {'context': 32}, {'ppl': 3.5}, [(1, {'doc': 2.0})])])\n"
        "(run,) = trackio.Api().runs('p')\n"
        "print('named', run.name)"
    )
    # It reads where it writes when it is imported.
    places = {"TRACKIO_DIR": str(tmp_path), "TRACKIO_PROJECT": "p"}
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | places, capture_output=True, text=True)
    assert "named base [x]" in done.stdout, done.stderr
    assert any(path.suffix == ".db" for path in tmp_path.rglob("*"))
