"""``python -m benchmarks.caches`` on a tiny model: the whole pipeline, killed in the middle and run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks import caches
from benchmarks.caches import Experiment, correlations, ratio, render, run, size_steps

from longlens import open_scores

POLICIES = ("window:16", "window:64", "h2o:64", "tova:64")
SMALL = {"length": 1500, "room": 500, "contexts": (8, 32), "strides": (8, 32), "chunk": 250, "questions": 2}
OWN = {"alpha": 0.05, "beta": -20.0, "texts": 1, "documents": 2, "kinds": ("code", "header")}


@pytest.fixture(scope="module")
def experiment(models: Path) -> Experiment:
    return Experiment(model=str(models / "llama"), policies=POLICIES, **SMALL, **OWN)


@pytest.fixture(scope="module")
def undisturbed(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("caches") / "llama"
    return folder, run(experiment, folder)


def test_what_an_arm_gives(undisturbed, experiment):
    folder, result = undisturbed
    full, *arms = result["arms"]
    assert [arm["arm"] for arm in result["arms"]] == ["full", *POLICIES]
    assert full["retained_gain"] == 1
    assert all(arm["kl"] > 0 and arm["bytes_per_token"] < full["bytes_per_token"] for arm in arms)
    assert all(arm["interval"] for arm in arms)
    row = open_scores(folder / "runs" / "h2o-64" / "json_kv")[0]
    assert [row.text[start:end] for start, end in row.answer_spans] == [
        line.removeprefix("Corresponding value:") for line in row.text.splitlines()[-5:] if "value:" in line
    ]
    assert len(row.token_ids) <= experiment.length
    for start, end in row.answer_spans:
        assert row.text[start + 1 : end] in row.text[:start]
    (right, tokens), _ = json.loads((folder / "arms" / "h2o-64.json").read_text())["answers"]["json_kv"]
    answer = np.zeros(len(row.token_ids), bool)
    for start, end in row.answer_spans:  # a token a byte
        answer[start:end] = True
    assert (right, tokens) == ((row.columns["rank"][answer] == 0).sum(), answer.sum())
    assert {(step["from"], step["to"]) for step in result["sizes"]} == {("window:16", "window:64")}
    text = render({"llama": result})
    assert "| window:16 |" in text
    assert "Spearman" in text


def test_a_killed_run_gives_the_same(undisturbed, experiment, tmp_path):
    _, wanted = undisturbed
    folder = tmp_path / "llama"
    code = (
        "import json, sys; from pathlib import Path; from benchmarks.caches import Experiment, run\n"
        "run(Experiment(**json.loads(sys.argv[1])), Path(sys.argv[2]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, json.dumps(asdict(experiment)), str(folder)])
    deadline = time.monotonic() + 60
    while len(list(folder.glob("arms/*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in folder.glob("arms/*.json")}
    assert 2 <= len(done) < 5
    found = run(experiment, folder)
    assert all(path.stat().st_mtime_ns == at for path, at in done.items())
    for name in ("arms", "correlations", "sizes", "about"):
        assert found[name] == wanted[name], name
    with pytest.raises(Exception, match="length"):
        run(replace(experiment, length=1400), folder)


def arm(name, kept, right, gain=(10.0, 20.0, 30.0)):
    documents = [
        {
            "gain": g,
            "lost": g * (1 - k),
            "kl": 1 - k,
            "num_tokens": 100,
            "ppl": 3 - k,
            "longppl": 9.0,
            "num_key_tokens": 5,
        }
        for g, k in zip(gain, kept, strict=True)
    ]
    far = [{"to": 1024, "retained_gain": 1.0}, {"to": None, "retained_gain": -right}]
    text = {"documents": documents, "by_distance": far}
    return {"arm": name, "text": text, "answers": dict.fromkeys(caches.TASKS, [(right, 10)] * 3)}


def test_correlations_and_sizes_by_hand():
    arms = [arm(f"h2o:{n}", [0.1 * n] * 3, n) for n in range(1, 6)]
    found = correlations(arms)
    by = {(one["metric"], one["task"]): one for one in found}
    assert by["retained gain", "both"]["spearman"] == pytest.approx(1)
    assert by["KL", "json_kv"]["spearman"] == pytest.approx(1)
    assert by["retained gain", "both"]["interval"] == pytest.approx((1, 1))
    assert by["LongPPL", "both"]["spearman"] is None  # all alike
    assert by[caches.FAR, "json_kv"]["spearman"] == pytest.approx(-1)
    assert by[caches.FAR, "both"]["interval"] is None
    assert not any(step["falls"] for step in size_steps(arms))
    assert all(step["falls"] for step in size_steps(arms[::-1]))
    assert len(list(size_steps([arms[0], arm("tova:1", [0.1] * 3, 1)]))) == 0
    assert ratio([(5, 10), (5, 10)])["value"] == 0.5
