"""``longlens study published`` as a user has it: published tables, and models of one's own in them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from longlens.cli import main
from longlens.runs.identity import ModelIdentity
from longlens.study import published
from longlens.study.published.beside import PERPLEXITY, OwnModel, beside, read_models

PUBLISHED = ("study", "published")
LONGPPL = ("longppl", "a.txt", "b.txt", "--context", "16", "--stride", "8", "--alpha", "0.1", "--beta", "-9")


@pytest.fixture(scope="module")
def runs(models, tmp_path_factory):
    """LongPPL of one model by another and by itself, and benchmark runs of both."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for model in ("llama", "other"):
            (folder / model).symlink_to(models / model)
        for name in ("a.txt", "b.txt"):
            (folder / name).write_text(f"It was the best of times, {name}, it was the worst of times. " * 4)
        for arguments in (
            (*LONGPPL, "--model", "llama", "--evaluator", "other", "-o", "ppl"),
            (*LONGPPL, "--model", "llama", "--evaluator", "self", "-o", "own"),
            (*LONGPPL[:2], *LONGPPL[3:], "--model", "llama", "--evaluator", "other", "-o", "fewer"),
            (
                "bench",
                "run",
                "longeval_lines",
                "--length",
                "900,1300",
                "--samples",
                "2",
                "--model",
                "llama",
                "-o",
                "two",
            ),
            ("bench", "run", "longeval_lines", "--length", "900", "--samples", "2", "--model", "other", "-o", "one"),
        ):
            assert main([str(argument) for argument in arguments]) == 0
    return folder


@pytest.fixture
def here(runs, monkeypatch):
    monkeypatch.chdir(runs)
    return runs


def cells(printed, name):
    return next(line for line in printed.splitlines() if name in line).split()


def test_all_tables_are_listed(run):
    listed = run(*PUBLISHED)
    assert listed.code == 0
    assert [line.split()[0] for line in listed.out.splitlines()[1:]] == list(published.tables())
    assert run.json(*PUBLISHED)["tables"].keys() == published.tables().keys()


def test_a_table_is_printed_as_it_is_published_with_what_is_wrong_in_it(run):
    shown = run(*PUBLISHED, "4").out
    assert shown.startswith("Table 4, section 4.2: ")
    assert cells(shown, "Gain")[1:5] == ["Gain", "0.8", "2.0", "2.7"]
    assert "printed gain +0.8, recomputed +1.2" in shown
    assert "computed by: longlens train longce-mistral -o RUN" in shown
    found = run.json(*PUBLISHED, "figure-5")
    assert found["rows"][0] == {"name": "Mixtral-8x7B-32k", "group": "", "values": [None, None, None]}
    assert found["section"] == "1, 4.1"


def test_an_own_model_stands_below_the_published_rows_with_what_differs(here, run):
    shown = run(*PUBLISHED, "5", "--with", "ppl", "--with", "own").out
    head, row = cells(shown, "LongPPL, Qwen"), cells(shown, "yours")
    assert head[0] == "group"
    assert head[-4:] == ["LongPPL,", "other", "LongPPL,", "llama"]
    stored = json.loads((here / "ppl" / PERPLEXITY).read_text())
    assert row[:5] == ["yours", "llama", "-", "-", "-"]
    assert row[5] == f"{stored['ppl']:.2f}"
    for sentence in (
        "llama: number of documents is 2, the paper's is 50",
        "llama: context is 16, the paper's is 4096",
        "llama: LongPPL is by other, no evaluator of the table",
        "llama: documents: the paper's are 50 of GovReport",
    ):
        assert sentence in shown


def test_a_column_of_self_evaluated_longppl_takes_such_runs_alone(here):
    own = beside(published.table(6), read_models([here / "own", here / "ppl"]))
    stored = {name: json.loads((here / name / PERPLEXITY).read_text()) for name in ("own", "ppl")}
    assert own.models["llama"]["LongPPL, self"][0].value == stored["own"]["longppl"]
    assert own.models["llama"]["LongPPL, other"][0].value == stored["ppl"]["longppl"]
    assert stored["own"]["longppl"] != stored["ppl"]["longppl"]


def test_scores_of_one_model_beside_their_perplexity_are_a_run_too(here, tmp_path):
    """As longlens demo writes them."""
    for name, source in ((PERPLEXITY, here / "own" / PERPLEXITY), ("manifest.json", here / "own/model/manifest.json")):
        (tmp_path / name).write_text(source.read_text())
    assert beside(published.table(6), read_models([tmp_path])).models.keys() == {"llama"}


def test_a_run_by_an_evaluator_of_the_table_stands_in_its_column(here, tmp_path):
    stored = json.loads((here / "ppl" / PERPLEXITY).read_text())
    (tmp_path / "model").mkdir()
    manifest = (here / "ppl" / "model" / "manifest.json").read_text()
    (tmp_path / "model" / "manifest.json").write_text(manifest)
    settings = stored["settings"] | {"context": 4096, "stride": 1024, "alpha": 2.0, "beta": -2.0, "max_length": 32767}
    paper = {"evaluator": "meta-llama/Llama-3.1-8B", "num_documents": 50, "settings": settings | {"bos": "published"}}
    (tmp_path / PERPLEXITY).write_text(json.dumps(stored | paper))
    own = beside(published.table(5), read_models([tmp_path]))
    assert own.models["llama"]["LongPPL, Llama-3.1-8B"][0].value == stored["longppl"]
    assert set(own.models["llama"]) == {"LongPPL, Llama-3.1-8B", "PPL"}
    assert len(own.differs["llama"]) == 1, "the corpus alone"


def test_the_lectures_perplexity_is_not_held_against_the_papers_protocol(here):
    own = beside(published.table("lecture-extension"), read_models([here / "ppl"]))
    assert own.differs["llama"] == ["the slide does not say of which text and length PPL is: it cannot be compared"]


def test_models_are_told_apart_and_lengths_have_rows(here, run):
    found = run.json(*PUBLISHED, "9", "--with", "two", "--with", "one", "--with", "ppl")["models"]
    assert [model["model"] for model in found] == ["llama", "other"]
    assert [one["length"] for one in found[0]["values"]["LongEval accuracy"]] == [900, 1300]
    assert found[0]["values"].keys() == {"LongEval accuracy"}, "this run has no answer spans"
    assert "longeval_lines at 900 tokens: 2 samples" in found[1]["differs"]
    shown = run(*PUBLISHED, "9", "--with", "two").out
    assert "llama, 900 tokens" in shown
    assert "llama, 1,300 tokens" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("99",), "error: no published table '99'; known are 1, 2, 3, "),
        (
            ("5", "--with", "nosuch"),
            "error: 'nosuch' is not a run (no such folder): give folders of longlens longppl -o RUN",
        ),
        (("5", "--with", "ppl/model"), "is not a run (neither perplexity.json nor samples in it)"),
        (("1", "--with", "ppl"), "error: Table 1 has no column that run directories contain: use one of 3, 4, 5, "),
        (("10", "--with", "ppl"), "error: the runs hold nothing of Table 10, which is of MMLU, ARC-C"),
        (("5", "--with", "ppl", "--with", "fewer"), "error: two runs of llama hold different values of PPL ("),
        (("--with", "ppl"), "error: --with would have no effect without a table: leave it out"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(here, run, arguments, message):
    assert message in run(*PUBLISHED, *arguments).error


@pytest.mark.parametrize(
    "change",
    [
        {"ppl": "x"},
        {"model": None},
        {"settings": []},
        {"settings": {"context": "4096"}},
        {"settings": {"max_length": 1.5}},
        {"intervals": {"ppl": [1]}},
        {"intervals": 7},
        {"num_documents": None},
    ],
)
def test_a_damaged_run_is_one_line(here, tmp_path, run, change):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "manifest.json").write_text((here / "ppl" / "model" / "manifest.json").read_text())
    stored = json.loads((here / "ppl" / PERPLEXITY).read_text())
    (tmp_path / PERPLEXITY).write_text(json.dumps(stored | change))
    assert "perplexity.json" in run(*PUBLISHED, "5", "--with", tmp_path).error


def test_several_seeds_of_a_task_are_more_samples():
    batch = {"task": "longeval_lines_1350", "suite": "longeval", "length": None, "interval": None}
    results = {"model": "m", "mode": "choice", "suites": {}, "harness": {}}
    results["tasks"] = {
        "a": {**batch, "score": 100.0, "num_scored": 1, "interval": (20.0, 100.0)},
        "b": {**batch, "score": 20.0, "num_scored": 4},
    }
    own = beside(published.table(3), [OwnModel(name="m", identity=ModelIdentity(), benches=[results])])
    assert [one.value for one in own.models["m"]["LongEval"]] == [36.0]
    assert "longeval_lines_1350: 5 samples" in own.differs["m"]
    assert "longeval_lines_1350 is asked by choice, the table's by generation" in own.differs["m"]


def test_suites_and_tasks_of_the_harness_come_from_their_own_averages():
    results = {
        "model": "m",
        "mode": "generate",
        "tasks": {"ruler": {"suite": "ruler", "task": "vt"}},
        "suites": {
            "ruler": {"means": {4096: 80.0, 32768: 50.0}},
            "longbench": {
                "0": {"overall": {"en": 30.0, "zh": 9.0}, "domains": {"en": {"code": 60.0, "few-shot": None}}}
            },
            "helmet": {
                str(length): {"categories": dict.fromkeys(("recall", "rag", "rerank", "icl", "longqa", "summ"), score)}
                for length, score in ((32768, 10.0), (65536, 20.0), (131072, 90.0))
            },
        },
        "harness": {
            "hellaswag": {"results": {"hellaswag": {"acc": {"score": 1.0}, "acc_norm": {"score": 2.0}}}},
            "gsm8k": {"results": {"gsm8k": {"exact_match (strict-match)": {"score": 7.0}}}},
        },
    }

    def values(which):
        own = beside(published.table(which), [OwnModel(name="m", identity=ModelIdentity(), benches=[results])])
        return {name: [one.value for one in found] for name, found in own.models["m"].items()}, own.differs["m"]

    assert values(3)[0] == {"LongBench": [30.0], "RULER": [50.0]}
    assert values(8)[0] == {"Code Completion": [60.0], "Avg.": [30.0]}
    assert values("lecture-18")[0]["Avg."] == [15.0]
    assert values("lecture-prolong")[0]["RAG"] == [40.0]
    short, differs = values("lecture-short")
    assert short == {"HellaSwag": [2.0], "GSM8K": [7.0]}
    assert any("how many examples" in one for one in differs)
    results["suites"]["ruler"]["means"].pop(32768)
    assert any("ruler at 4,096 tokens, the table's at 32,768" in one for one in values(3)[1])


def test_help_has_an_example_and_imports_nothing_heavy(run):
    assert "Example: longlens study published 5 --with RUN" in run(*PUBLISHED, "--help").out
    program = (
        "import sys, longlens.cli\nlonglens.cli.main(['study', 'published', '5'])\n"
        "print({'torch', 'transformers', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
