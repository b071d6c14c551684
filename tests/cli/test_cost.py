"""``longlens diverge`` and ``longlens cost`` on tiny models under cache policies."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from longlens import open_scores
from longlens.cli import main
from longlens.metrics.cost import LostToken

RULE = ("--no-lcl", "--alpha", -5)
SHORT = ("--context", "8,16,32", "--stride", "4,8,16")


@pytest.fixture(scope="session")
def cached(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders: `full` at three K, `window` and `h2o` in chunks of 8, `wide` in others, `tail`, and `diverged`."""
    folder = tmp_path_factory.mktemp("cached")
    llama = str(models / "llama")
    texts = []
    for number in range(6):
        texts.append(f"{number}.txt")
        (folder / texts[-1]).write_text(f"{number} text with some words in it. " * (3 + number % 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["score", *texts, "--model", llama, *SHORT, "--cache", "full", "-o", "full"]) == 0
        for name, policy, chunk in (("window", "window:8", 8), ("h2o", "h2o:0.5", 8), ("wide", "window:8", 16)):
            command = ["score", *texts, "--model", llama, "--long-only", "--cache", policy, "--cache-chunk", str(chunk)]
            assert main([*command, "-o", name]) == 0
        tail = ["--cache", "tova:8", "--cache-chunk", "24", "--cache-protocol", "prefill+tail"]
        assert main(["score", *texts, "--model", llama, "--long-only", *tail, "-o", "tail"]) == 0
        small = ["--cache", "window:8", "--cache-chunk", "8"]
        assert main(["diverge", llama, llama, *texts, *small, "-o", "diverged"]) == 0
    return folder


def test_a_table_and_json(cached, run):
    runs = [cached / name for name in ("window", "h2o")]
    ended = run("cost", cached / "full", *runs, "--evaluator-scores", cached / "full", *RULE)
    assert ended.code == 0, ended.err
    for said in ("retained gain", "bytes per token", "LongPPL", "by the context that is needed", "more than 32"):
        assert said in ended.out
    found = run.json("cost", cached / "full", *runs, "--evaluator-scores", cached / "full", *RULE)
    policies = found["policies"]
    assert [policy["policy"] for policy in policies] == ["window:8@8", "h2o:0.5@8"]
    keys = {"policy", "retained_gain", "interval", "bytes_per_token", "kl", "top1_agreement", "by_distance"}
    assert keys <= policies[0].keys()
    assert policies[0]["kl"] is None
    assert policies[0]["bytes_per_token"] < found["bytes_per_token"]
    assert {"from", "to", "retained_gain", "num_tokens"} <= policies[0]["by_distance"][0].keys()
    assert sum(bracket["num_tokens"] for bracket in policies[0]["by_distance"]) <= found["num_key_tokens"]


def test_a_report(cached, run, tmp_path):
    page = tmp_path / "cost.html"
    command = ("cost", cached / "full", cached / "window", cached / "h2o", "--evaluator-scores", cached / "full", *RULE)
    ended = run(*command, "--report", page)
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[-1] == str(page)
    content = page.read_text(encoding="utf-8")
    assert 'id="cost-tokens"' in content
    assert "of the gain from long context on key tokens" in content
    assert "Policies read the text in chunks of 8 tokens." in content
    tokens = run.json(*command, "--per-document")["tokens"]
    assert tokens[0].keys() == {field.name for field in fields(LostToken)}
    assert "tokens" not in run.json(*command)
    (tmp_path / "other.html").write_text("mine")
    assert "is not a report of longlens" in run(*command, "--report", tmp_path / "other.html").error


def test_a_gate(cached, run):
    gate = ("cost", cached / "full", cached / "window", "--evaluator-scores", cached / "full", *RULE)
    kept = run.json(*gate)["policies"][0]["retained_gain"]
    assert run(*gate, "--fail-under", 0.001).code == (1 if kept < 0.001 else 0)
    ended = run(*gate, "--fail-under", 1)
    assert ended.code == (1 if kept < 1 else 0)
    if kept < 1:
        assert ended.err.splitlines()[-1].startswith("failed: ")
        assert "of the gain, below 1" in ended.err
    assert "expected a fraction of the gain" in run(*gate, "--fail-under", 2).error


def test_a_gate_without_a_gain(cached, run, tmp_path):
    (tmp_path / "a.txt").write_text("a random model gains nothing " * 9)
    llama = cached / "full"
    model = json.loads((llama / "manifest.json").read_text())["model"]["name"]
    command = ["score", tmp_path / "a.txt", "--model", model, "--cache", "full", *SHORT, "-o", tmp_path / "full"]
    assert run(*command).code == 0
    gate = ["cost", tmp_path / "full", tmp_path / "full", "--evaluator-scores", tmp_path / "full", *RULE]
    found = run.json(*gate)
    ended = run(*gate, "--fail-under", 0.5)
    assert (ended.code == 1) == (found["gain"] <= 0)
    if found["gain"] <= 0:
        assert "has no retained gain, because the key tokens gain nothing from the long context" in ended.err


def test_a_tail_and_figures(cached, run, tmp_path):
    pytest.importorskip("matplotlib")
    ended = run(
        "cost",
        cached / "full",
        cached / "tail",
        "--evaluator-scores",
        cached / "full",
        *RULE,
        "--figures",
        tmp_path / "f",
    )
    assert ended.code == 0, ended.err
    assert sorted(path.name for path in (tmp_path / "f").iterdir()) == [
        *("cost-bytes.png", "cost-bytes.svg", "cost-distance.png", "cost-distance.svg")
    ]
    assert (
        "different chunks"
        in run("cost", cached / "full", cached / "tail", cached / "wide", "--evaluator-scores", cached / "full").error
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--engine", "llama-cpp", "--cache", "window:8"),
            "--cache would have no effect with --engine llama-cpp",
        ),
        (("--engine", "vllm"), "comparing two models needs distributions over the whole vocabulary, which require "),
        (("--reference-engine", "vllm"), "require --engine transformers or --engine llama-cpp in one process: use one"),
        (("--engine", "llama-cpp"), "--engine llama-cpp runs .gguf files, but "),
        (("--reference-engine", "llama-cpp"), "--engine llama-cpp runs .gguf files, but "),
    ],
)
def test_diverge_with_engines_that_cannot_be(options, said, cached, run, models, tmp_path):
    ended = run("diverge", models / "llama", models / "other", cached / "1.txt", *options, "-o", tmp_path / "out")
    assert said in ended.error
    assert ended.code == 2
    assert not (tmp_path / "out").exists()


def test_diverge(cached, run, models, monkeypatch):
    monkeypatch.chdir(cached)
    llama = models / "llama"
    texts = sorted(path.name for path in cached.glob("*.txt"))
    again = ("diverge", llama, llama, *texts, "--cache", "window:8", "--cache-chunk", 8, "-o", cached / "diverged")
    ended = run(*again, "--evaluator-scores", cached / "full", *RULE)
    assert ended.code == 0, ended.err
    for said in ("KL(reference || model), nats", "key tokens", "rest tokens", "0 to 255", "next: longlens cost"):
        assert said in ended.out
    found = run.json(*again, "--evaluator-scores", cached / "full", *RULE)
    assert found["kl"]["all"] > 0
    assert found.keys() >= {"kl", "js", "top1_agreement", "num_tokens"}
    assert found["kl"].keys() == {"all", "key", "rest"}
    costs = run.json("cost", cached / "full", cached / "diverged", "--evaluator-scores", cached / "full", *RULE)
    assert costs["policies"][0]["kl"] > 0
    same = run.json("diverge", llama, llama, *texts, "-o", cached / "same")
    assert same["kl"]["all"] < 1e-6
    assert same["top1_agreement"]["all"] == 1


@pytest.mark.parametrize("evaluator", ["other", "llama"])
def test_longppl_under_a_policy_selects_key_tokens_with_the_whole_context(cached, run, models, tmp_path, evaluator):
    command = ["longppl", cached / "1.txt", "--model", models / "llama", "--context", 8, "--stride", 4]
    policy = ["--cache", "window:8", "--cache-chunk", 8]
    ended = run(*command, "--evaluator", models / evaluator, *policy, "-o", tmp_path / "run")
    assert ended.code == 0, ended.err
    of = {
        part: json.loads((tmp_path / "run" / part / "manifest.json").read_text())["model"]
        for part in ("evaluator", "model")
    }
    assert of["evaluator"]["cache"] is None
    assert of["model"]["cache"] == "window:8@8"
    ended = run(*command, "--evaluator", models / evaluator, "-o", tmp_path / "plain")
    for one, other in zip(
        open_scores(tmp_path / "run/evaluator"), open_scores(tmp_path / "plain/evaluator"), strict=True
    ):
        np.testing.assert_array_equal(one.long_logprobs, other.long_logprobs)
    assert (
        "would select key tokens under --cache window:8"
        in run(*command, "--evaluator", "self", *policy, "-o", tmp_path / "s").error
    )


def test_statistics_of_a_score(cached, run, models):
    ended = run(
        "score",
        cached / "1.txt",
        "--model",
        models / "llama",
        "--long-only",
        "--statistics",
        "entropy,rank",
        "-o",
        cached / "s",
    )
    assert ended.code == 0, ended.err
    (row,) = open_scores(cached / "s")
    assert set(row.columns) == {"entropy", "rank"}
    assert (
        "use longlens diverge"
        in run(
            "score", cached / "1.txt", "--model", models / "llama", "--statistics", "divergence", "-o", cached / "t"
        ).error
    )
