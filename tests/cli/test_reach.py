"""``longlens reach`` on tiny models that were scored at three K."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import longlens
from longlens.cli import main

CONTEXTS = ("--context", "8,16,32", "--stride", "4,8,16")


@pytest.fixture(scope="session")
def reached(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of run folders: `llama` and `other` at three K on 11 texts, `few` on one text; `one` has one K."""
    folder = tmp_path_factory.mktemp("reached")
    texts = []
    for number in range(11):
        texts.append(f"{number}.txt")
        (folder / texts[-1]).write_text(f"{number} text with some words in it. " * (2 + number % 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for model in ("llama", "other"):
            assert main(["score", *texts, "--model", str(models / model), *CONTEXTS, "-o", model]) == 0
        assert main(["score", "2.txt", "--model", str(models / "llama"), *CONTEXTS, "-o", "few"]) == 0
        one = ["--context", "16", "--stride", "8", "-o", "one"]
        assert main(["score", *texts, "--model", str(models / "other"), *one]) == 0
    return folder


def test_help_has_an_example(run):
    ended = run("reach", "--help")
    assert (ended.code, ended.err) == (0, "")
    assert "Example: longlens reach scores/smollm2 --evaluator-scores scores/gemma3" in ended.out


def test_one_run_as_json(reached, run):
    found = run.json("reach", reached / "llama", "--evaluator-scores", reached / "other", "--alpha", -5, "--no-lcl")
    assert found.keys() == {
        *("schema_version", "model", "evaluator", "reference", "all", "keys", "answers", "num_short_documents"),
        *("settings", "warnings"),
    }
    assert (found["model"].rsplit("/")[-1], found["evaluator"].rsplit("/")[-1]) == ("llama", "other")
    assert found["reference"] is None
    assert found["settings"] == {
        **{"contexts": [8, 16, 32], "strides": [4, 8, 16], "alpha": -5.0, "beta": -2.0, "lcl": False},
        **{"bos": "window", "dtype": "float32"},
    }
    assert found["all"]["contexts"] == [8, 16, 32]
    assert found["all"]["gains"][0] == 0
    assert len(found["all"]["gain_intervals"]) == 3
    assert found["all"]["num_documents"] == found["keys"]["num_documents"] == 11
    assert 0 < found["keys"]["num_tokens"] <= found["all"]["num_tokens"]


def test_keys_give_what_the_evaluator_gives(reached, run, tmp_path):
    rule = ("--no-lcl", "--alpha", -0.05)
    by_scores = run.json("reach", reached / "llama", "--evaluator-scores", reached / "other", *rule)
    for context in (8, 16):
        evaluator = longlens.open_scores(reached / "other")
        selected = longlens.select_key_tokens(evaluator, alpha=-0.05, use_lcl=False, context=context)
        longlens.write_keys(tmp_path / f"keys{context}.jsonl", selected)
    by_keys = run.json("reach", reached / "llama", "--keys", tmp_path / "keys8.jsonl")
    assert by_keys["keys"] == by_scores["keys"]
    assert by_keys["keys"]["num_tokens"] > 0
    page = ("-o", tmp_path / "r.html")
    (in_a_report,) = run.json("report", reached / "llama", "--keys", tmp_path / "keys8.jsonl", *page)["reach"]
    assert in_a_report["keys"] == by_keys["keys"]
    elsewhere = run("reach", reached / "llama", "--keys", tmp_path / "keys16.jsonl")
    assert elsewhere.code == 0
    assert "note: the keys were selected at K=16" in elsewhere.err


def test_tables(reached, run):
    evaluator = ("--evaluator-scores", reached / "other", "--alpha", -5, "--no-lcl")
    found = run.json("reach", reached / "llama", *evaluator)
    shown = run("reach", reached / "llama", *evaluator)
    assert shown.code == 0
    tables = shown.out.split("\n\n")
    for table, tokens, name in zip(tables, ("all tokens", "key tokens"), ("all", "keys"), strict=False):
        heading, row = table.splitlines()
        assert heading.split("  ")[0] == tokens
        assert "max gain, nats" in heading
        assert " of " not in heading
        assert f" {found[name]['num_tokens']:,} " in row
        assert f" {found[name]['max_gain']:,.3f} " in row
    heading, everything, key, *drops = tables[2].splitlines()
    assert heading.split() == ["gain", "in", "nats,", "at", "K=8", "K=16", "K=32", "whole"]
    for row, name in ((everything, "all"), (key, "keys")):
        gains = [*found[name]["gains"], found[name]["whole_gain"]]
        assert row.split()[-4:] == [f"{gain:,.3f}" for gain in gains]
    fallen = [drop for name in ("all", "keys") for drop in found[name]["drops"]]
    assert len(drops) == len(fallen)
    for line, drop in zip(drops, fallen, strict=True):
        step = f"from K={drop['from_context']} to K={drop['to_context']}"
        assert f"tokens: falls by {drop['nats']:,.3f} nats {step}, [" in line


def test_several_runs_are_measured_by_the_first(reached, run):
    found = run.json("reach", reached / "llama", reached / "other")
    assert found.keys() == {"schema_version", "results"}
    first, second = found["results"]
    assert [result["model"].rsplit("/")[-1] for result in (first, second)] == ["llama", "other"]
    assert (first["reference"], second["reference"]) == (None, first["model"])
    shown = run("reach", reached / "llama", reached / "other").out
    # names are paths here, which may be so long that they take several lines
    words = shown.split("\n\n")[0].split()
    assert "reference" in words
    share = second["all"]["reference_share"]
    assert ("-" if share is None else f"{share:.2f}") in words


def test_runs_of_one_model_are_told_apart_by_their_folders(reached, run, tmp_path):
    shutil.copytree(reached / "llama", tmp_path / "again")
    first, second = run.json("reach", reached / "llama", tmp_path / "again")["results"]
    assert first["model"].endswith("llama (llama)")
    assert second["model"].endswith("llama (again)")
    assert second["reference"] == first["model"]


def test_a_named_reference(reached, run):
    found = run.json("reach", reached / "llama", "--reference", reached / "llama")
    assert found["reference"] == found["model"]
    low = (found["all"]["max_gain_interval"] or [found["all"]["max_gain"]])[0]
    share = 1 if low > 0 else None
    assert found["all"]["reference_share"] == (share and pytest.approx(share))


def test_notes_are_on_stderr(reached, run):
    shown = run("reach", reached / "few", "--evaluator-scores", reached / "llama")
    assert shown.code == 0
    assert "note: " not in shown.out
    assert "is its own evaluator" in shown.err
    assert "noise cannot be told from gain" in shown.err
    assert "key tokens" not in shown.out


def test_refusals(scored, reached, run):
    error = run("reach", scored / "llama").error
    assert "was scored at K=32, and context reach needs at least 3 different K" in error
    assert error.endswith("such as --context 64,128,256 and --stride 32,64,128")  # of longlens score
    evaluator = ("--evaluator-scores", reached / "one")
    assert "was scored at K=16, and not at K=8, the smallest K of" in run("reach", reached / "llama", *evaluator).error
    assert "not in both of the scores of" in run("reach", reached / "few", "--reference", reached / "other").error


def test_r_is_shown_as_a_lower_bound_where_it_is_one():
    from longlens.cli.commands.reach import reaches
    from longlens.metrics import reach
    from tests.metrics.test_reach import run as toy

    assert reaches(reach(toy([0, 0.1, 0.5]), resamples=20).all) == [">= 15", "[15, >= 15]"]
    assert reaches(reach(toy([0, 0.5, 0.5]), resamples=20).all) == ["7", "[7, 7]"]
    assert reaches(reach(toy([0, 0.5, 0.5], n=3)).all) == ["7", "-"]
    assert reaches(reach(toy([0, -1, -1]), resamples=20).all) == ["-", "-"]
