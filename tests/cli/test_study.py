"""``longlens study reproduce`` as a user has it."""

import json
import subprocess
import sys

import pytest
import yaml

from longlens.study.reproduce import read_study
from tests.study.longce.toys import toy_recipe, write_text


def everything(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.fixture
def prose(work):
    """Words in files, and a recipe of toys."""
    write_text(work / "prose")
    content = toy_recipe(seeds=(1,), learning_rates=(1e-2,), windows=())
    (work / "toy.yaml").write_text(yaml.safe_dump(content))
    assert read_study("longce", "toy.yaml").seeds == (1,)
    return work


RULE = ("--alpha", "1", "--beta", "-20")
REPRODUCE = ("study", "reproduce", "longce", "-o", "out", "--recipe", "toy.yaml", "--set", "text=prose")


def test_help_has_an_example_and_imports_nothing_heavy(run):
    shown = run("study", "reproduce", "--help").out
    assert "Example: longlens study reproduce longce -o " in shown
    assert all(
        f" {option} " in shown.replace(",", " ") for option in ("--out", "--recipe", "--seeds", "--set", "--json")
    )
    assert "\n  reproduce " in run("study", "--help").out
    program = (
        "import sys, longlens.cli\nlonglens.cli.main(['study', 'reproduce', '--help'])\n"
        "print({'torch', 'transformers', 'pyarrow', 'longlens.study'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_reproduce_prints_a_table_or_one_object_and_runs_once(prose, run):
    first = run(*REPRODUCE)
    assert first.code == 0
    assert "runs/pi-longce-1.json: " in first.err
    rows = [line.split() for line in first.out.splitlines()]
    assert ["pi", "oracle", "2"] in [row[:3] for row in rows]
    assert ["pi", "longce", "equal", "steps", "2", "/", "2"] in [row[:7] for row in rows]
    assert first.out.splitlines()[-1] == "seeds 1; all numbers are in out/result.json"
    again = run.json(*REPRODUCE)
    assert again.items() == {"out": "out", **json.loads((prose / "out" / "result.json").read_text())}.items()
    assert again["text"]["name"] == "prose"
    assert run(*REPRODUCE).err == "next: longlens study published\n"
    more = run.json(*REPRODUCE, "--seeds", "1, 5")
    assert more["seeds"] == [1, 5]
    assert len(list((prose / "out" / "runs").iterdir())) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study", "reproduce", "longppl", "-o", "out"], "no study 'longppl'; expected one of "),
        ([*REPRODUCE, "--seeds", "1,x"], "--seeds is 'x'; expected an integer, such as "),
        (
            [*REPRODUCE, "--seeds", "-1"],
            "toy.yaml: seeds are [-1]; expected distinct integers of at least 0",
        ),
        ([*REPRODUCE[:-2], "--recipe", "nosuch"], "no recipe 'nosuch': pass a YAML file, or one of "),
        ([*REPRODUCE, "--set", "text=nosuch"], "no such file or folder: 'nosuch'"),
        ([*REPRODUCE, "--set", "text=a.txt"], "the text has "),
        ([*REPRODUCE, "-o", "a.txt"], "a.txt is a file; expected a directory for the run"),
        ([*REPRODUCE, "-o", "llama"], "llama is not empty and contains no run (it has "),
    ],
)
def test_errors_are_one_line_and_leave_nothing(arguments, message, prose, run):
    before = everything(prose)
    assert run(*arguments).error.startswith(f"error: {message}")
    assert everything(prose) == before


def test_another_recipe_in_the_same_folder_is_refused(prose, run):
    assert run(*REPRODUCE).code == 0
    text = (prose / "toy.yaml").read_text()
    (prose / "toy.yaml").write_text(text.replace("resamples: 100", "resamples: 200"))
    before = everything(prose / "out")
    assert run(*REPRODUCE).error.startswith(
        "error: out contains a different run: resamples is 100 there and 200 here. Use another "
    )
    assert everything(prose / "out") == before


@pytest.fixture
def correlated(scored, run, work):
    """Two runs of longppl, and a benchmark run of each model."""
    for name in ("llama", "other"):
        asked = ["--model", name, "--mode", "teacher-forced", "-o", f"bench-{name}"]
        assert run("bench", "run", "longeval_lines", "--length", "700", "--samples", "2", *asked).code == 0
        options = ["--evaluator", "other", "--context", "32", "--stride", "16", "--alpha", "0.001", "--beta", "-20"]
        assert run("longppl", "a.txt", "b.txt", "--model", name, *options, "-o", f"run-{name}").code == 0
    return work


def test_correlate_joins_runs_of_longppl_and_bench_by_the_model(correlated, run):
    found = run.json("study", "correlate", "run-llama", "run-other", "--benchmarks", "bench-other", "bench-llama")
    assert found["num_models"] == 2
    assert [one["model"] for one in found["models"]] == ["llama", "other"]
    assert {one["family"] for one in found["models"]} == {"llama"}
    names = list(found["models"][0]["benchmarks"])
    assert names[0] == "longeval_lines 700 (teacher-forced)"
    assert all(value is not None for one in found["models"] for value in one["benchmarks"].values())
    # the thresholds that both folders were made with, and not the paper's
    assert (found["settings"]["alpha"], found["settings"]["beta"], found["settings"]["context"]) == (0.001, -20.0, 32)
    expected = json.loads((correlated / "run-llama" / "perplexity.json").read_text())
    assert found["models"][0]["metrics"]["longppl"] == expected["longppl"]
    one = found["metrics"]["longppl"][names[0]]
    assert {"pearson", "interval", "spearman", "kendall", "p", "n"} <= one.keys()
    assert (one["n"], one["pearson"]) == (2, None)
    assert any(
        "no family was set for llama, other" in warning and "--family" in warning for warning in found["warnings"]
    )


def test_correlate_prints_the_papers_table_and_draws(correlated, run):
    (correlated / "s.csv").write_text("model,RULER,family\nllama,40,A\nother,20,B\nnosuch,1,C\n")
    folders = ("run-llama", "run-other")
    shown = run("study", "correlate", *folders, "--benchmarks", "s.csv", "bench-llama", "bench-other", "-o", "drawn")
    assert shown.code == 0
    assert shown.out.startswith("Pearson's r over 2 models, with 95 % intervals\n")
    assert "RULER: 2 models with both values, and 3 or more are needed" in shown.out
    assert "note: s.csv: 1 of its 3 models are not among the scored models ('nosuch')" in shown.err
    assert {"longppl-1-ruler.png", "ppl-1-ruler.svg", "benchmarks.svg"} <= {
        p.name for p in (correlated / "drawn").iterdir()
    }


def test_what_cannot_be_correlated_is_one_line(correlated, run):
    again = run("study", "correlate", "run-llama", "run-llama/model", "--benchmarks", "bench-llama").error
    assert "are runs of the same model: pass one of them" in again
    options = ("--evaluator", "llama", "--context", "32", "--stride", "16")
    assert run("longppl", "a.txt", "b.txt", "--model", "other", *options, "-o", "run-3").code == 0
    other = run("study", "correlate", "run-llama", "run-3", "--benchmarks", "bench-llama").error
    assert "key tokens of llama are by 'other' and those of other by 'llama'" in other
    assert "--evaluator-scores" in other
    options = ("--evaluator", "other", "--context", "32", "--stride", "16", "--alpha", "1")
    assert run("longppl", "a.txt", "b.txt", "--model", "other", *options, "-o", "run-4").code == 0
    rule = run("study", "correlate", "run-llama", "run-4", "--benchmarks", "bench-llama").error
    assert "alpha is 0.001 in llama and 1.0 in other: choose one with --alpha" in rule
    assert run("study", "correlate", "run-llama", "run-4", "--benchmarks", "bench-llama", *RULE).code == 0
    wrong = run("study", "correlate", "run-llama", "--benchmarks", "bench-llama", "--family", "llama").error
    assert wrong == "error: --family is not MODEL=FAMILY: use for example --family smollm2=SmolLM2"
    assert "nosuch" in run("study", "correlate", "run-llama", "--benchmarks", "nosuch").error
