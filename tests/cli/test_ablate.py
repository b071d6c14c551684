"""``longlens study ablate`` on tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longlens.cli import main

CONTEXTS = ("--context", "8,16", "--stride", "4,8")


@pytest.fixture(scope="session")
def ablated(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of run folders: `llama` and `other` at two K on 5 texts, `long` without, and `few` on one text."""
    folder = tmp_path_factory.mktemp("ablated")
    texts = []
    for number in range(5):
        texts.append(f"{number}.txt")
        (folder / texts[-1]).write_text(f"{number} text with some words in it, some words in it. " * (1 + number % 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for model in ("llama", "other"):
            assert main(["score", *texts, "--model", str(models / model), *CONTEXTS, "-o", model]) == 0
        assert main(["score", *texts, "--model", str(models / "other"), "--long-only", "-o", "long"]) == 0
        assert main(["score", "2.txt", "--model", str(models / "llama"), *CONTEXTS, "-o", "few"]) == 0
    return folder


def command(folder, *runs, evaluators=("other",), **options):
    given = [value for name in evaluators for value in ("--evaluator-scores", folder / name)]
    more = [value for name, value in options.items() for value in (f"--{name}", value)]
    return ["study", "ablate", *(folder / run for run in runs), *given, "--alpha", -3, "--beta", -9, *more]


def test_help_has_an_example(run):
    ended = run("study", "ablate", "--help")
    assert (ended.code, ended.err) == (0, "")
    assert "Example: longlens study ablate scores/* --evaluator-scores scores/gemma3" in ended.out


def test_one_object_with_every_setting(ablated, run):
    found = run.json(*command(ablated, "llama", "other", evaluators=("llama", "other"), draws=20))
    assert [(s["context"], s["stride"]) for s in found["settings"]] == [(16, 8), (8, 4)] * 2
    assert [Path(s["evaluator"]).name for s in found["settings"]] == ["llama", "llama", "other", "other"]
    assert found["num_documents"] == 5
    grid = [m for m in found["measures"] if m["metric"] == "longppl" and m["setting"] == found["settings"][0]]
    assert [(m["alpha"], m["beta"]) for m in grid] == [
        (alpha, beta) for alpha in (-3, 0.5, 1, 2, 3) for beta in (-9, -4, -2, -1)
    ]
    assert len(found["agreement"]) == 6
    assert len(run.json(*command(ablated, "llama", "other", context=8, draws=20))["settings"]) == 1


def test_tables_and_a_folder_with_figures(ablated, run, work):
    names = run.json(*command(ablated, "llama", "other", draws=5))["models"]
    Path("scores.csv").write_text("model,RULER\n" + "".join(f"{name},{place}\n" for place, name in enumerate(names)))
    options = {"alphas": "0,1", "betas": "-4", "draws": 20}
    ended = run(*command(ablated, "llama", "other", **options), "--benchmarks", "scores.csv", "-o", "out")
    assert ended.code == 0, ended.err
    assert "Metrics, alpha -3, beta -9, " in ended.out
    assert "r with RULER" in ended.out
    assert "is its own evaluator" in ended.err
    written = {path.name for path in Path("out").iterdir()}
    assert {"ablation.json", "values.csv", "documents.csv", "documents.png", "correlation-2-1.svg"} <= written
    content = json.loads(Path("out/ablation.json").read_text())
    assert content["benchmarks"] == {"RULER": [0, 1]}


def test_what_is_refused_names_flags(ablated, run, work):
    assert (
        "--alphas is 'x'; expected numbers in nats, such as --alphas 1,2"
        in run(*command(ablated, "llama", "other", alphas="x")).error
    )
    error = run(*command(ablated, "llama", "long"), "--self-evaluation").error
    assert "has no short-context scores at K=16, d=8" in error
    assert error.endswith("score it with --context 16 and --stride 8")
    assert (
        "4 of 5 documents were not scored with the evaluator"
        in run(*command(ablated, "llama", "other", evaluators=("few",))).error
    )
    assert (
        "no scores at K=9; scored short contexts: K=8, d=4, K=16, d=8"
        in run(*command(ablated, "llama", "other", context=9)).error
    )
    assert "has no short-context scores" in run(*command(ablated, "llama", evaluators=("long",))).error
    assert "missing is not a folder: create it" in run(*command(ablated, "llama"), "-o", "missing/out").error
    assert not Path("missing").exists()
