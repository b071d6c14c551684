"""``longlens bench`` as a user has it."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from longlens.bench.engine import EngineSettings
from longlens.bench.run import run_bench
from longlens.bench.selection import BenchSettings
from longlens.cli import main
from longlens.models import generate
from longlens.tasks import list_tasks
from tests.bench.fakes import FakeEngine, sample
from tests.bench.test_grading import FakeJudge
from tests.bench.test_store import opened, row
from tests.tasks.longbench import rows as longbench

VT = ("vt", "--length", "1800", "--samples", "2")
RUN = ("bench", "run", *VT, "--model", "llama", "-o", "run")
BUILD = ("bench", "build", *VT, "--tokenizer", "llama", "-o", "samples.jsonl")


def everything(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*") if path.name != ".lock"}


@pytest.fixture(scope="module")
def runs(models, tmp_path_factory):
    """Runs of two models, with and without a needle grid."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for model in ("llama", "other"):
            asked = ("longeval_lines", "vt", "--length", "1800", "--samples", "2", "--model", str(models / model))
            assert main(["bench", "run", *asked, "-o", model]) == 0
    return folder


def write_predictions(ids, text="It is 7.", name="predictions.jsonl"):
    Path(name).write_text("".join(json.dumps({"id": key, "prediction": text}) + "\n" for key in ids))


def built_ids(name="samples.jsonl"):
    return [json.loads(line)["id"] for line in Path(name).read_text().splitlines()]


# --- what each command does -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["list", "build", "run", "grade", "table", "path"])
def test_help_has_an_example_with_options_that_there_are(command, run):
    ended = run("bench", command, "--help")
    assert (ended.code, ended.err) == (0, "")
    example = re.search(rf"Example: .*?(?:longlens bench {command})(.*?)(?:Arguments|Options):", ended.out, re.DOTALL)
    assert example, ended.out
    options = ended.out.split("Options:")[1].replace(",", " ")
    if command != "path":  # its example is lm_eval's command
        for option in (word for word in example[1].split() if word.startswith("-")):
            assert f" {option} " in options, option


def test_list_has_all_tasks(run):
    found = run.json("bench", "list")
    assert sorted(row["task"] for row in found["tasks"]) == sorted(list_tasks())
    lines = next(row for row in found["tasks"] if row["task"] == "longeval_lines")
    assert lines == {
        "task": "longeval_lines",
        "suite": "longeval",
        "category": "",
        "metric": "accuracy",
        "settings": ["ids", "lines", "answer_prefix"],
        "package": "longlens",
        "description": "the number that a line registers",
        "data": "",
    }
    metrics = {row["task"]: row["metric"] for row in found["tasks"]}
    assert (metrics["helmet_narrativeqa"], metrics["helmet_infbench_sum"]) == ("judge", "judge")  # no score without one
    assert metrics["niah_grid"] == "exact"
    assert found["unusable"] == {}
    assert found["lm_eval"]["bbh"] == "bbh_cot_fewshot"
    shown = run("bench", "list").out
    assert all(name in shown for name in (*list_tasks(), *found["lm_eval"]))


def test_build_writes_samples_and_grade_scores_predictions_of_them(work, run):
    found = run.json("bench", "build", "longeval_lines", *VT, "--tokenizer", "llama", "-o", "samples.jsonl")
    batches = {"longeval_lines-1800-42": 2, "vt-1800-42": 2}
    assert found == {"schema_version": 1, "out": "samples.jsonl", "num_samples": 4, "batches": batches}
    before = Path("samples.jsonl").read_bytes()
    ended = run("bench", "build", "longeval_lines", *VT, "--tokenizer", "llama", "-o", "samples.jsonl")
    assert ended.out == "4 samples of 2 tasks and lengths are in samples.jsonl\n"
    assert ended.err == "next: longlens bench run samples.jsonl --model llama -o runs/llama\n"
    assert Path("samples.jsonl").read_bytes() == before
    rows = [json.loads(line) for line in before.splitlines()]
    lines = [{"id": row["id"], "prediction": f"<think>8</think>It is {', '.join(row['answers'])}"} for row in rows]
    lines[0]["prediction"] = "It is 0"
    Path("said.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = run.json("bench", "grade", "said.jsonl", "--samples", "samples.jsonl")
    assert {name: batch["score"] for name, batch in found["tasks"].items()} == {
        "longeval_lines-1800-42": 50.0,
        "vt-1800-42": 100.0,
    }
    assert (found["model"], found["mode"], found["harness"]) == ("said", "generate", {})
    assert found["suites"]["ruler"]["means"] == {"1800": None}
    ended = run("bench", "grade", "said.jsonl", "--samples", "samples.jsonl")
    assert "said" in ended.out.splitlines()[0]
    assert any(line.split()[:4] == ["vt", "1,800", "string_match_all", "100.0"] for line in ended.out.splitlines())
    assert any(line.startswith("said: RULER at 1800: no niah_single_1, ") for line in ended.out.splitlines())


def test_samples_that_do_not_fit_are_left_out_and_told(work, run):
    fixed = ("longeval_lines", "--set", "lines=20", "--samples", "6", "--tokenizer", "llama", "-o", "samples.jsonl")
    run("bench", "build", *fixed)
    sizes = [json.loads(line)["length"] for line in Path("samples.jsonl").read_text().splitlines()]
    limit = sorted(sizes)[2]
    left = sum(size > limit for size in sizes)
    ended = run("bench", "build", *fixed, "--length", limit, "--overlong", "skip")
    said = f"longeval_lines-{limit}-42: {left} of 6 samples were too long and were skipped"
    assert ended.err.splitlines()[0] == said
    assert len(built_ids()) == 6 - left
    ended = run("bench", "build", *fixed, "--length", limit, "--reserve", "10", "--overlong", "skip")
    assert len(built_ids()) == sum(size + 10 <= limit for size in sizes)


def test_samples_that_are_shortened_are_told(work, run):
    longbench.write(work)
    build = ("longbench_lcc", "--data-dir", ".", "--samples", "2", "--tokenizer", "llama", "-o", "samples.jsonl")
    ended = run("bench", "build", *build, "--length", "200")
    assert ended.err.splitlines()[0] == "longbench_lcc-200-42: 2 of 2 samples were too long and were truncated"


def test_run_prints_one_object_and_the_same_again(work, run):
    found = run.json(*RUN)
    assert found.keys() == {
        "schema_version",
        "out",
        "model",
        "mode",
        "template",
        "tasks",
        "dtype",
        "harness",
        "suites",
    }
    assert (found["out"], found["tasks"]["vt-1800-42"]["num_samples"]) == ("run", 2)
    results = json.loads(Path("run/results.json").read_text())
    assert {name: value for name, value in found.items() if name != "out"} == results
    before = everything(work)
    ended = run(*RUN)
    assert ended.code == 0
    assert ended.out.splitlines()[1].split()[:3] == ["vt", "1,800", "string_match_all"]
    assert "samples to answer" not in ended.err
    assert {path: content for path, content in everything(work).items() if path.name != "results.json"} == {
        path: content for path, content in before.items() if path.name != "results.json"
    }


def test_progress_and_what_was_decided_go_to_stderr(work, run):
    asked = ("longeval_lines", "--set", "lines=12", "--samples", "2", "--overlong", "middle", "--max-length", "800")
    ended = run("bench", "run", *asked, "--model", "llama", "-o", "run", "--json")
    assert ended.out.count("\n") == 1
    json.loads(ended.out)
    assert "longeval_lines-12units-42: 2 of 2 samples were too long and were truncated" in ended.err.splitlines()
    assert "longeval_lines-12units-42: 2 samples in " in ended.err


def test_run_takes_files_of_samples_modes_and_templates(work, run):
    run(
        "bench", "build", "longeval_lines", "--length", "900", "--samples", "1", "--tokenizer", "llama", "-o", "s.jsonl"
    )
    asked = ("bench", "run", "s.jsonl", "--model", "llama")
    found = run.json(*asked, "--mode", "teacher-forced", "-o", "forced")["tasks"]["longeval_lines-900-42"]
    assert (found["metric"], found["is_lower_bound"]) == ("teacher_forced", False)
    assert found["answer_nll"] > 0
    found = run.json(*asked, "--mode", "choice", "-o", "choice", "--no-prompts", "--dtype", "float32")
    found = found["tasks"]["longeval_lines-900-42"]
    (row,) = (json.loads(line) for line in Path("choice/samples/longeval_lines-900-42.jsonl").read_text().splitlines())
    assert (row["prompt"], len(row["continuations"])) == (None, found["num_choices"])
    found = run.json(*asked, "--think-tokens", "5", "--template", "none", "--batch-size", "2", "-o", "thinks")
    (row,) = (json.loads(line) for line in Path("thinks/samples/longeval_lines-900-42.jsonl").read_text().splitlines())
    assert (row["max_new_tokens"], row["template"], found["template"]) == (105, "none", "none")


def test_a_run_may_be_graded_again(runs, run, monkeypatch):
    monkeypatch.chdir(runs)
    before = json.loads(Path("llama/results.json").read_text())
    Path("llama/results.json").unlink()
    assert run.json("bench", "grade", "llama") == before
    assert json.loads(Path("llama/results.json").read_text()) == before
    assert run("bench", "grade", "llama").out.splitlines()[0].split() == ["task", "length", "metric", "llama"]


def test_runs_stand_side_by_side(runs, run, monkeypatch):
    monkeypatch.chdir(runs)
    found = run.json("bench", "table", "llama", "other")
    assert list(found["runs"]) == ["llama", "other"]
    assert found["runs"]["other"]["tasks"]["vt-1800-42"]["num_samples"] == 2
    assert found["runs"]["other"]["suites"]["ruler"]["threshold"] == 85.6
    found = run.json("bench", "table", "other", "--threshold", "50")
    assert found["runs"]["other"]["suites"]["ruler"]["threshold"] == 50
    lines = run("bench", "table", "llama", "other", "--by-depth").out.splitlines()
    assert lines[0].split() == ["task", "length", "metric", "llama", "other"]
    assert any(" depth " in line for line in lines)
    read = list(csv.reader(io.StringIO(run("bench", "table", "llama", "other", "--format", "csv").out)))
    assert read[0] == ["task", "length", "metric", "llama", "other"]
    assert [row[:3] for row in read[1:]] == [
        ["longeval_lines", "1,800", "accuracy"],
        ["vt", "1,800", "string_match_all"],
    ]
    marked = run("bench", "table", "llama", "other", "--format", "markdown").out.splitlines()
    assert marked[:2] == ["| task | length | metric | llama | other |", "| --- | --- | --- | --- | --- |"]
    assert "llama: RULER at 1800: no niah_single_1, " in "\n".join(marked)


def test_a_grid_has_its_map(work, run):
    asked = ("niah_grid", "--set", "depths=[0, 100]", "--length", "1300,1500", "--model", "llama", "-o", "run")
    assert run("bench", "run", *asked).code == 0
    ended = run("bench", "table", "run", "--figures", "figures")
    assert sorted(path.name for path in Path("figures").iterdir()) == [
        f"{stem}.{kind}" for stem in ("heatmap-run", "length-niah-grid") for kind in ("png", "svg")
    ]
    assert sorted(ended.err.splitlines())[0] == "wrote figures/heatmap-run.png"


def test_a_judge_scores_a_run(work, run, monkeypatch):
    asked = BenchSettings(tasks=["niah_grid"], lengths=[1400], settings={"depths": [0, 100]})
    run_bench(EngineSettings(model="llama"), asked, "run", open_engine=FakeEngine("In the park."))
    judge = FakeJudge("Rating: [[7]]", "Rating: [[1]]")
    monkeypatch.setattr(generate, "load_generator", judge.load)
    ended = run("bench", "grade", "run", "--judge", "J", "--dtype", "float32", "--json")
    batch = json.loads(ended.out)["tasks"]["niah_grid-1400-42"]
    assert (batch["metric"], batch["score"]) == ("judge", pytest.approx(40.0))
    assert [(part["from"], part["score"]) for part in batch["depths"]] == [(0, pytest.approx(70)), (100, 10.0)]
    assert ended.err == "J: 2 of 2 answers to score\n"
    name, options = judge.opened[0]
    assert (name, options["dtype"], options["allow_pickle"]) == ("J", "float32", False)
    assert json.loads(Path("run/results.json").read_text())["tasks"]["niah_grid-1400-42"] == batch
    assert run("bench", "grade", "run", "--nli", "N").error.startswith("error: run has no answers for N to score")


def test_path_is_a_folder_of_tasks(work, run, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(work / "cache"))
    folder = Path(run("bench", "path").out.rstrip("\n"))
    assert folder.is_relative_to(work / "cache")
    assert len(list(folder.glob("longlens_*.yaml"))) == len(list_tasks())


def test_names_that_steer_a_terminal_are_escaped(work, run):
    opened("odd", model="m\x1b[31m").release()
    made = row("a", skipped=True) | asdict(sample())
    Path("odd/samples/b.jsonl").write_text(json.dumps(made) + "\n")
    ended = run("bench", "table", "odd")
    assert ended.code == 0
    assert "\x1b" not in ended.out


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "run", "vt", "-o", "run"], "Missing option '--model'"),
        (["bench", "run", "--model", "llama", "-o", "run"], "Missing argument 'tasks'"),
        (["bench", "build", "vt", "-o", "s.jsonl"], "Missing option '--tokenizer'"),
        ([*RUN, "niah_sigle_1"], "no task or suite 'niah_sigle_1': did you mean 'niah_single_1'?"),
        ([*RUN, "zzzz"], "no task or suite 'zzzz': longlens bench list shows all, or install the plugin that prov"),
        ([*BUILD, "rulr"], "no task or suite 'rulr': did you mean 'ruler'?"),
        ([*BUILD, "gsm8k"], "gsm8k is lm-evaluation-harness's, which builds its prompts itself"),
        ([*RUN, "--length", "100"], "--length 100 is too short for 2 samples of vt: with this tokenizer they need at"),
        ([*RUN, "--length", "many"], "--length is 'many'; expected numbers of tokens, such as --length 4096"),
        ([*RUN, "--length", "0"], "--length 0; expected at least 1"),
        ([*RUN, "--length", "9000"], "vt-9000-42-0 has "),
        ([*RUN, "--samples", "0"], "--samples 0; expected at least 1"),
        ([*RUN, "--mode", "guess"], "--mode is 'guess'; expected one of generate, teacher-forced, choice"),
        ([*RUN, "--mode", "choice"], "vt has no wrong answers to choose from: use --mode generate"),
        ([*RUN, "--template", "chatml"], "--template is 'chatml'; expected one of auto, none, chat, chat-prefix, pref"),
        ([*RUN, "--template", "chat"], "--template is 'chat', and this tokenizer has no chat template: use --template"),
        ([*RUN, "--overlong", "cut"], "--overlong is 'cut'; expected one of error, skip, middle, left, context-only"),
        ([*BUILD, "--overlong", "cut"], "--overlong is 'cut'; expected one of error, skip, middle, left, context-only"),
        ([*RUN, "--think-tokens", "-1"], "--think-tokens is -1; expected 0 or more"),
        ([*RUN, "--set", "nosuch=1"], "none of vt has a setting 'nosuch': they have hops"),
        ([*RUN, "--set", "hops"], "--set is 'hops'; expected KEY=VALUE, such as lines=1350"),
        ([*RUN, "--set", "hops=[1"], "--set hops is not valid YAML: "),
        ([*RUN, "--set", "hops=many"], "`hops` of task 'vt' is 'many'; expected int"),
        ([*RUN, "--set", "hops=-1"], "--set hops=-1; expected at least 0"),
        ([*RUN, "--model-arg", "nosuch=1"], "--model-arg has nosuch: the backend 'hf' accepts "),
        ([*RUN, "--backend", "vlm"], "no backend 'vlm'; lm-evaluation-harness has "),
        ([*RUN, "--batch-size", "few"], "--batch-size is 'few'; expected a number of at least 1, or auto"),
        ([*RUN, "--max-length", "0"], "--max-length is 0; expected at least 1"),
        (["bench", "run", "vt", "--model", "nothing", "-o", "run"], "the folder 'nothing' contains no model"),
        (
            ["bench", "run", "vt", "--model", "http://h:1/v1#m", "-o", "run"],
            "http://h:1/v1#m: a server does not report",
        ),
        (["bench", "run", "none.jsonl", "--model", "llama", "-o", "run"], "cannot read 'none.jsonl': No such file"),
        (
            ["bench", "run", "longbench_lcc", "--data-dir", "nothing", "--model", "llama", "-o", "run"],
            "longbench_lcc: no ",
        ),
        (
            ["bench", "run", "babilong", "--model", "llama", "-o", "run"],
            "babilong has data of several lengths: pass --l",
        ),
        ([*RUN[:-1], "llama"], "llama is not empty and contains no benchmark run (it has "),
        ([*RUN[:-1], "a.txt"], "a.txt is a file; expected a directory for the benchmark run"),
        ([*BUILD[:-1], "nosuch/s.jsonl"], "cannot write nosuch/s.jsonl: No such file or directory"),
        ([*BUILD, "--reserve", "-1"], "--reserve -1; expected at least 0"),
        (["bench", "grade", "nosuch"], "no such file or folder: 'nosuch'"),
        (["bench", "grade", "a.txt"], "a.txt contains predictions: pass the sample file of bench build with --samples"),
        (["bench", "grade", "llama"], "'llama' is not a benchmark run: pass the directory of longlens bench run"),
        (
            ["bench", "grade", "llama", "--samples", "a.txt"],
            "llama is a run directory, which already contains its samples: leave --s",
        ),
        (["bench", "grade", "a.txt", "--samples", "a.txt"], "'a.txt:1' is broken"),
        (
            ["bench", "grade", "a.txt", "--samples", "a.txt", "--judge", "llama"],
            "--judge and --nli score the answers o",
        ),
        (["bench", "grade", "a.txt", "--samples", "a.txt", "--nli", "llama"], "--judge and --nli score the answers of"),
        (["bench", "table", "nosuch"], "'nosuch' is not a benchmark run: pass the directory of longlens bench run"),
        (["bench", "table"], "Missing argument 'runs'"),
        (["bench", "table", "llama", "--format", "html"], "--format is 'html'; expected one of text, markdown, csv"),
        (["bench", "nosuch"], "No such command 'nosuch'"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(arguments, message, work, run):
    before = everything(work)
    assert run(*arguments).error.startswith(f"error: {message}")
    assert run(*arguments, "--json").error.startswith(f"error: {message}")
    assert everything(work) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids: ids[:1], "'predictions.jsonl' has no prediction for 1 of 2 samples, such as 'vt-1800-42-1'"),
        (lambda ids: [*ids, "vt-1800-42-9"], "'predictions.jsonl:3': no sample has the id 'vt-1800-42-9'"),
        (lambda ids: [*ids, ids[0]], "'predictions.jsonl:3': the id 'vt-1800-42-0' occurs twice"),
        (lambda ids: [7, *ids], "'predictions.jsonl:1': expected"),
    ],
)
def test_wrong_predictions_are_one_line(change, message, work, run):
    run(*BUILD)
    write_predictions(change(built_ids()))
    ended = run("bench", "grade", "predictions.jsonl", "--samples", "samples.jsonl")
    assert ended.error.startswith(f"error: {message}")


def test_another_model_or_way_of_asking_needs_a_new_folder(work, run):
    run.json(*RUN)
    before = everything(work / "run")
    for changes, message in (
        (["--model", "other"], "run contains a different benchmark run: "),
        (["--mode", "choice", "longeval_lines"], ""),
        (["--overlong", "skip"], "run contains a different benchmark run: overlong is None there and 'skip' here"),
        (["--set", "hops=2"], "run contains a different sample vt-1800-42-"),
    ):
        ended = run(*RUN, *changes)
        assert ended.code == 2
        assert ended.error.startswith(f"error: {message}")
        assert everything(work / "run") == before
