"""The page 'Add your own': its examples are a package that pip installs here, and work by name everywhere."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import longlens
from longlens import Document, UserError, load_scorer, score
from longlens.models import load_tokenizer
from longlens.plugins import list_plugins
from longlens.rope import load_model
from longlens.rope.settings import Extension
from longlens.tasks import get_task

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "tests" / "plugin_package"
TEXT = "The cat sat on the mat. The dog sat on the cat, and the mat was gone. " * 4


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toys")
    shutil.copytree(PACKAGE, folder / "source")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([*pip, "--target", str(folder / "site"), str(folder / "source")], check=True)
    return folder / "site"


@pytest.fixture
def toys(installed, monkeypatch):
    monkeypatch.syspath_prepend(installed)


@pytest.fixture
def toy_work(toys, work):
    (work / "counts.txt").write_text(TEXT)
    (work / "a.txt").write_text(TEXT)
    return work


def test_the_page_shows_the_files_of_the_package():
    page = (ROOT / "docs" / "add_your_own.md").read_text(encoding="utf-8")
    shown = {block.strip() for block in re.findall(r"```\w+\n(.*?)```", page, re.DOTALL)}
    files = [file for file in PACKAGE.rglob("*") if file.suffix in (".py", ".toml") and file.name != "__init__.py"]
    assert len(files) == 7
    for file in files:
        assert file.read_text(encoding="utf-8").strip() in shown, file.name


def test_the_names_are_found(toys):
    assert list_plugins("longlens.scorers") == {"bigram": "longlens-toys"}
    assert list_plugins("longlens.rope_methods") == {"ramp": "longlens-toys"}
    assert list_plugins("longlens.caches") == {"recent": "longlens-toys"}
    assert list_plugins("longlens.statistics") == {"likeliest": "longlens-toys"}
    assert list_plugins("longlens.tasks") == {"pass_key": "longlens-toys"}


def test_its_own_tests_pass(toy_work):
    tests = {
        name: test for name, test in runpy.run_path(str(PACKAGE / "test_toys.py")).items() if name.startswith("test_")
    }
    assert len(tests) == 5
    for test in tests.values():
        test()


def test_an_engine_in_python_and_on_the_command_line(toy_work, run):
    scorer = load_scorer("counts.txt", engine="bigram")
    scores = score([Document(id="a.txt", text=TEXT)], scorer, context=40, stride=10)
    assert scores[0].long_logprobs[1:].mean() > np.log(1 / 256)
    ended = run(
        "score", "a.txt", "--engine", "bigram", "--model", "counts.txt", "--context", 40, "--stride", 10, "-o", "run"
    )
    assert ended.code == 0, ended.err
    np.testing.assert_array_equal(longlens.open_scores("run")[0].long_logprobs, scores[0].long_logprobs)
    assert json.loads(Path("run/manifest.json").read_text())["model"]["architecture"] == "Bigram"
    assert run("perplexity", "run").code == 0


def test_a_method_in_python_on_the_command_line_and_in_a_folder(toy_work, run):
    from longlens_toys.method import Ramp
    from transformers import AutoConfig, AutoModelForCausalLM

    ended = run("extend", "llama", "--method", "ramp", "--factor", 4, "--set", "power=1", "-o", "extended")
    assert ended.code == 0, ended.err
    config = longlens.rope.extend_config(AutoConfig.from_pretrained("llama"), Ramp(factor=4, power=1))
    wanted = load_model("llama", config=config)
    ids = torch.arange(1, 200)[None]
    for model in (load_model("extended"), AutoModelForCausalLM.from_pretrained("extended")):
        torch.testing.assert_close(model(ids).logits, wanted(ids).logits)
    assert (
        "`pwoer` is not a setting"
        in run("extend", "llama", "--method", "ramp", "--factor", 4, "--set", "pwoer=1", "-o", "x").error
    )


def test_a_cache_policy_in_python_and_on_the_command_line(toy_work, run):
    scorer = load_scorer("llama", cache="recent:16", cache_chunk=8)
    scores = score([Document(id="a.txt", text=TEXT)], scorer, context=40, stride=10)
    command = ["score", "a.txt", "--model", "llama", "--context", 40, "--stride", 10]
    ended = run(*command, "--cache", "recent:16", "--cache-chunk", 8, "-o", "run")
    assert ended.code == 0, ended.err
    np.testing.assert_allclose(longlens.open_scores("run")[0].long_logprobs, scores[0].long_logprobs, atol=1e-4)
    assert json.loads(Path("run/manifest.json").read_text())["model"]["cache"] == "recent:16@8"
    assert (
        "cache is 'recent:16@8' there and 'recent:9@8' here"
        in run(*command, "--cache", "recent:9", "--cache-chunk", 8, "-o", "run").error
    )


def test_a_statistic_on_the_command_line(toy_work, run):
    from transformers import AutoModelForCausalLM

    command = ["score", "a.txt", "--model", "llama", "--long-only", "--statistics", "likeliest,entropy", "-o", "run"]
    ended = run(*command)
    assert ended.code == 0, ended.err
    (row,) = longlens.open_scores("run")
    assert set(row.columns) == {"top1", "top10", "entropy"}
    tokenizer = load_tokenizer("llama")
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    with torch.no_grad():
        p = AutoModelForCausalLM.from_pretrained("llama")(ids).logits[0, :-1].softmax(-1)
    np.testing.assert_allclose(row.columns["top1"], p.max(-1).values, atol=1e-5)
    np.testing.assert_allclose(row.columns["top10"], p.topk(10).values.sum(-1), atol=1e-5)
    assert "expected of entropy, rank, divergence, likeliest" in run(*command[:5], "--statistics", "x", "-o", "b").error


def test_a_task_in_python_and_on_the_command_line(toy_work, run):
    wanted = get_task("pass_key", digits=7).build(length=1000, samples=2, tokenizer=load_tokenizer("llama"))
    settings = ["--length", 1000, "--samples", 2, "--tokenizer", "llama", "--set", "digits=7"]
    ended = run("bench", "build", "pass_key", *settings, "-o", "samples.jsonl")
    assert ended.code == 0, ended.err
    rows = [json.loads(line) for line in Path("samples.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [sample.prompt for sample in wanted]
    assert len(wanted[0].answers[0]) == 7
    assert "pass_key" in run("bench", "list").out


def test_what_they_do_not_take_is_one_line(toy_work, run):
    command = ["score", "a.txt", "--context", 40, "--stride", 10, "-o", "run"]
    for options, message in (
        (["--engine", "nonsense", "--model", "x"], "sglang, vllm, llama-cpp, bigram, or install"),
        (["--engine", "bigram", "--model", "x"], "'x' is no file; the engine bigram takes a text file"),
        (["--engine", "bigram", "--model", "."], "'.' is no file"),
        (
            ["--engine", "bigram", "--model", "a.txt", "--cache", "full"],
            "--cache, --cache-chunk and --cache-protocol are for",
        ),
        (
            ["--model", "llama", "--cache", "recent:x"],
            "--cache is 'recent:x', whose settings are invalid: ",
        ),
        (
            ["--model", "llama", "--cache", "nonsense"],
            "expected one of full, window, sink, random, knorm, h2o, snapkv, tova, fp8, quanto, hqq, recent, or",
        ),
        (["--model", "llama", "--cache-chunk", 8], "--cache-chunk would have no effect without --cache"),
    ):
        assert message in run(*command, *options).error


def test_a_method_in_a_recipe(toys):
    from longlens_toys.method import Ramp

    extension = Extension(method="ramp", factor=4, power=0.5)
    assert extension.build() == Ramp(factor=4, power=0.5)
    assert Extension(**extension.model_dump(exclude_none=True)) == extension
    for settings, message in (
        ({"method": "ramp", "factor": 4, "pwoer": 1}, "`pwoer` is not a setting of `method` ramp, which has `factor`"),
        ({"method": "ramp"}, "`method` ramp needs `factor`; its settings are `factor`, `original_length`, `power`"),
        ({"method": "ramp", "factor": "x"}, "factor"),
        ({"method": "pi", "factor": 4, "power": 1}, "unknown key 'power'"),
        ({"method": "rmap", "factor": 4}, "expected one of pi, ntk, dynamic-ntk, .*clex, ramp"),
    ):
        with pytest.raises(UserError, match=message):
            Extension(**settings)
