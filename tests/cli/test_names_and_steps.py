"""Names of models in tables, the commands that come next, choices and completion, and exported tables."""

from __future__ import annotations

import csv
import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pyarrow.parquet
import pytest

import longlens
from longlens.cli import main
from longlens.scoring.scores import short_name
from longlens.settings.options import Loading

RULE = ("--context", 32, "--stride", 16)
LOW = ("--alpha", 0.05, "--beta", -20)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("smollm2", "smollm2"),
        ("/models/llama-8b/", "llama-8b"),
        ("meta-llama/Llama-3.1-8B", "Llama-3.1-8B"),
        ("models/a.gguf", "a.gguf"),
        ("http://host:8000/v1#org/NAME", "NAME"),
        ("/", "/"),
    ],
)
def test_a_model_is_called_by_the_last_part_of_its_name(model, name):
    assert short_name(model) == name


def test_names_fill_tables_and_paths_are_in_settings(scored, run, models):
    found = run.json("perplexity", scored / "llama")
    assert (found["model"], found["settings"]["model"]) == ("llama", str(models / "llama"))
    shown = run("perplexity", scored / "llama", scored / "other")
    assert shown.out.splitlines()[0].split() == ["llama", "other"]


def test_a_name_of_ones_own_is_no_part_of_the_identity(work, run):
    score = ("score", "a.txt", "--model", "llama", *RULE, "-o", "run")
    assert run(*score, "--name", "base").code == 0
    assert run.json("perplexity", "run")["model"] == "base"
    assert run(*score).code == 0  # the name stays
    assert run.json("perplexity", "run")["model"] == "base"
    assert run(*score, "--name", "mine").code == 0
    assert run.json("perplexity", "run")["model"] == "mine"
    assert "--name is empty" in run(*score, "--name", "").error


def steps(ended) -> list[list[str]]:
    lines = ended.err.splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith("next: "))
    return [shlex.split(line[6:])[1:] for line in lines[first:]]


def test_what_comes_next_can_be_pasted(scored, run, work):
    (work / "runs").symlink_to(scored)
    shown = run("perplexity", "runs/llama", "runs/other", "-e", "runs/other", *LOW)
    found = steps(shown)
    assert [step[0] for step in found] == ["compare", "report"]
    assert found[0][1:] == [
        "runs/llama",
        "runs/other",
        "--evaluator-scores",
        "runs/other",
        "--alpha",
        "0.05",
        "--beta",
        "-20.0",
    ]
    for step in found:
        assert main(step) == 0


def test_score_finds_the_evaluator_beside_it(work, run):
    assert (
        run("score", "a.txt", "--model", "llama", "--context", "32,64,128", "--stride", 16, "-o", "my runs/llama").code
        == 0
    )
    ended = run("score", "a.txt", "--model", "other", "--long-only", "-o", "my runs/other")
    chosen = ["my runs/other", "--evaluator-scores", "my runs/llama"]
    assert steps(ended) == [["perplexity", *chosen], ["report", *chosen, "-o", "report.html"]]
    again = run("score", "a.txt", "--model", "llama", "--context", "32,64,128", "--stride", 16, "-o", "my runs/llama")
    assert [step[0] for step in steps(again)] == ["perplexity", "reach", "report"]
    assert steps(again)[0] == ["perplexity", *chosen]


def test_compare_says_who_is_better(scored, run):
    shown = run("compare", scored / "llama", scored / "other", "-e", scored / "other", *LOW)
    assert "other minus llama (below 0: other is better)" in shown.out
    pair = run.json("compare", scored / "llama", scored / "other", "-e", scored / "other", *LOW)["pairs"][0]
    last = shown.out.splitlines()[-1]
    for field, where in (("log_ppl", "all tokens"), ("log_longppl", "key tokens")):
        better = "other" if pair[field]["value"] < 0 else "llama"
        expected = (
            f"{better} is better on {where}." if pair[field]["significant"] else f"Inconclusive on {where}: {better} is"
        )
        assert expected in last


@pytest.mark.parametrize(
    ("given", "dtype"), [("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32"), ("auto", "auto")]
)
def test_short_names_of_a_dtype(given, dtype):
    assert Loading(dtype=given).dtype == dtype


@pytest.mark.parametrize("arguments", [(), ("bench",), ("data",)])
def test_a_group_alone_shows_its_help(arguments, run):
    ended = run(*arguments)
    assert (ended.code, ended.err) == (0, "")
    assert ended == run(*arguments, "--help")


def test_typing_errors_get_a_suggestion(run):
    assert run("scor").error == "error: No such command 'scor'. Did you mean 'score'? See longlens --help"
    assert run("score", "--modle", "x").error == (
        "error: No such option: --modle. Did you mean '--model'? See longlens score --help"
    )


def test_a_shell_completes_choices():
    environment = os.environ | {
        "_LONGLENS_COMPLETE": "complete_bash",
        "COMP_WORDS": "longlens score --bos ",
        "COMP_CWORD": "3",
    }
    ended = subprocess.run([sys.executable, "-m", "longlens"], capture_output=True, text=True, env=environment)
    assert ended.stdout.split() == ["window", "published"]


def test_groups_of_options_have_titles(run):
    shown = run("score", "--help").out
    titles = [line for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == [
        "Arguments:",
        "Options:",
        "Truncation:",
        "Loading the model:",
        "Engine:",
        "Ray:",
        "Reading documents:",
    ]
    assert shown.index("Loading the model:") < shown.index("--dtype") < shown.index("Engine:")


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_exported_tokens_are_those_of_the_scores(ending, scored, run, tmp_path):
    path = tmp_path / f"tokens{ending}"
    found = run.json("export", scored / "llama", "-e", scored / "other", *LOW, "-o", path)
    if ending == ".parquet":
        rows = pyarrow.parquet.read_table(path).to_pylist()
    elif ending == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    else:
        with path.open(newline="") as file:
            rows = [{name: cell or None for name, cell in row.items()} for row in csv.DictReader(file)]
    assert len(rows) == found["num_rows"]

    scores, evaluator = (longlens.open_scores(scored / name) for name in ("llama", "other"))
    keys = longlens.select_key_tokens(evaluator, alpha=0.05, beta=-20)
    at = 0
    for row in scores:
        runs = keys.get(row.id).char_runs.tolist()
        for index, (start, end) in enumerate(row.char_spans.tolist()):
            cells, at = rows[at], at + 1
            assert (cells["document"], int(cells["index"]), cells["token"]) == (row.id, index, row.text[start:end])
            is_key = start < end and any(first <= start and end <= last for first, last in runs)
            assert str(cells["key"]).lower() == str(is_key).lower()
            weight = np.exp(evaluator.get(row.id).lsd[index]).clip(max=5)  # one tokenizer, so that weights are its own
            assert float(cells["weight"]) == pytest.approx(0 if np.isnan(weight) else weight, rel=1e-5)
            expected = {
                "long_logprob": row.long_logprobs,
                "lcl": row.lcl,
                "short_logprob_K32": row.short_logprobs,
                "lsd_K32": row.lsd,
            }
            for name, values in expected.items():
                got = np.nan if cells[name] is None else float(cells[name])
                assert got == pytest.approx(float(values[index]), rel=1e-5, abs=1e-6, nan_ok=True)
    assert at == len(rows)


def test_what_export_refuses(scored, run, tmp_path):
    assert (
        "expected a file that ends in .csv, .parquet, .jsonl"
        in run("export", scored / "llama", "-o", tmp_path / "a.txt").error
    )
    (tmp_path / "a.csv").write_text("mine")
    assert (
        "a.csv exists: choose another file, or pass --overwrite"
        in run("export", scored / "llama", "-o", tmp_path / "a.csv").error
    )
    assert (tmp_path / "a.csv").read_text() == "mine"
    assert run("export", scored / "llama", "-o", tmp_path / "a.csv", "--overwrite").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


# --- mistakes that are told -------------------------------------------------------------------------------------------


def test_a_swapped_evaluator_is_told_from_one_without_short_contexts(scored, run, work):
    assert run("score", *sorted(scored.glob("*.txt")), "--model", "llama", "--long-only", "-o", "long").code == 0
    for command in ("perplexity", "compare", "report"):
        more = {"compare": [scored / "other"], "report": ["-o", "r.html"]}.get(command, [])
        error = run(command, scored / "llama", *more, "--evaluator-scores", "long").error
        assert error == (
            f"error: long: no short-context scores, so it cannot select key tokens: {scored / 'llama'} has them: if "
            f"the two are swapped, pass long --evaluator-scores {scored / 'llama'}"
        )
    alone = run("perplexity", "long", "--evaluator-scores", "long").error
    assert alone.endswith("it cannot select key tokens: score it with --context 4096")


@pytest.mark.parametrize("given", ["scores/llama", "scores", "scores/llama/long"])
def test_scores_are_no_documents(given, scored, run, work):
    (work / "scores").symlink_to(scored)
    error = run("score", given, "--model", "llama", "-o", "out").error
    assert error == (
        "error: 'scores/llama' is a run directory of longlens score, not documents: pass the documents that were "
        "scored, or read its scores with longlens perplexity 'scores/llama'"
    )
    assert not (work / "out").exists()


# --- bench, data, plan ------------------------------------------------------------------------------------------------


def test_a_benchmark_run_has_a_name_and_ends_with_the_table(run, work):
    asked = ("bench", "run", "vt", "--length", "1800", "--samples", "1", "--name", "base [x]")
    first = run(*asked, "--model", "llama", "-o", "runs/a")
    assert "base [x]" in first.out.splitlines()[0]
    assert first.err.splitlines()[-1] == "next: longlens bench table runs/a"
    second = run(*asked[:-2], "--model", "other", "-o", "runs/b")
    assert second.err.splitlines()[-1] == "next: longlens bench table runs/b runs/a"
    table = run(*shlex.split(second.err.splitlines()[-1])[2:])
    assert table.code == 0
    assert table.out.splitlines()[0].split()[-3:] == ["other", "base", "[x]"]
    assert run.json("bench", "table", "runs/a")["runs"]["runs/a"]["name"] == "base [x]"
    assert "name" not in run.json("bench", "table", "runs/b")["runs"]["runs/b"]
    assert run(*asked[:-1], " ", "--model", "llama", "-o", "c").error.startswith("error: --name is empty")
    refused = run(*asked, "--model", "other", "-o", "runs/a").error
    assert "runs/a contains a different benchmark run: its model is 'llama', but 'other' was given" in refused


def test_a_model_without_a_length_is_asked_at_the_lengths_given(run, work, monkeypatch):
    monkeypatch.setattr("longlens.models.load_max_length", lambda *_, **__: None)
    asked = ("bench", "run", "vt", "--samples", "1", "--model", "llama", "-o", "run")
    ended = run(*asked, "--length", "1750,1800")
    assert ended.code == 0
    assert "llama states no maximum length: 1800 tokens are used" in ended.err
    manifest = json.loads((work / "run" / "manifest.json").read_text())
    assert manifest["engine_info"]["max_length"] == 1800


def test_packed_rows_and_plans_end_with_the_command_that_uses_them(run, work):
    packed = run("data", "pack", "a.txt", "--tokenizer", "llama", "--length", "64", "-o", "my rows")
    assert shlex.split(packed.err.splitlines()[-1])[1:] == [
        *("longlens", "train", "RECIPE", "--set", 'data={"packed": "my rows"}', "-o", "RUN")
    ]
    shown = run("plan", "score", "--model", "llama", "--length", "512", "--context", "64", "--stride", "32")
    last = shown.err.splitlines()[-1]
    assert last == ("next: longlens score DOCS --model llama --context 64 --stride 32 --max-length 512 -o scores/llama")
