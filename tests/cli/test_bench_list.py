"""``longlens bench list``: what fits a terminal, what is filtered, what a single task says."""

from __future__ import annotations

import shlex

import pytest

from longlens.tasks import describe_task, list_tasks
from longlens.tasks.descriptions import DESCRIPTIONS


def names(shown):
    return [line.split()[0] for line in shown.splitlines() if line.startswith("  ")]


def test_each_task_has_a_line_of_its_own_that_fits_80_columns(run):
    shown = run("bench", "list").out
    assert max(map(len, shown.splitlines())) <= 80
    assert "..." not in shown.replace("median, ...", "")  # no description is cut
    assert set(DESCRIPTIONS) == set(list_tasks())
    for name in list_tasks():
        (line,) = (line for line in shown.splitlines() if line.split()[:1] == [name] and line.startswith("  "))
        assert line.endswith(describe_task(name))


@pytest.mark.parametrize(
    ("wanted", "first", "count"),
    [("ruler", "niah_single_1", 13), ("RULER", "niah_single_1", 13), ("rerank", None, 1), ("multikey", None, 5)],
)
def test_a_suite_a_category_or_a_part_of_a_name_filters(run, wanted, first, count):
    found = run.json("bench", "list", wanted)
    assert len(found["tasks"]) == count
    assert found["lm_eval"] == {}
    if count > 1:
        shown = run("bench", "list", wanted).out
        assert names(shown) == [row["task"] for row in found["tasks"]]
        assert first is None or names(shown)[0] == first


def test_the_data_that_tasks_need_is_a_column(run):
    data = {row["task"]: row["data"] for row in run.json("bench", "list")["tasks"]}
    kinds = [data[name] for name in ("niah_single_1", "qa_1", "helmet_nq", "helmet_trec_fine", "longeval_topics")]
    assert kinds == ["", "folder", "folder", "folder", "folder"]
    assert (data["infinitebench_passkey"], data["longbench_v2"], data["longbench_lcc"]) == ("hub", "hub", "folder")
    lines = run("bench", "list", "ruler").out.splitlines()
    assert [line.split()[0] for line in lines if " folder " in line and line.startswith("  ")] == ["qa_1", "qa_2"]


def test_one_task_has_its_details_and_the_run_of_it(run):
    ended = run("bench", "list", "qa_2")
    assert max(map(len, ended.out.splitlines())) <= 80
    for text in ("string_match_part", "--data-dir", "hotpotqa.json", "https://hotpotqa.github.io", "32 tokens"):
        assert text in ended.out
    assert ended.err == "next: longlens bench run qa_2 --model MODEL --length 4096 --data-dir DATA -o runs/qa_2\n"
    assert "--length 4096" in run("bench", "list", "helmet_nq").err  # HELMET's data is of lengths
    assert "--length" not in run("bench", "list", "longbench_lcc").err
    assert "mmlu" in run("bench", "list", "mmlu").out
    assert run("bench", "list", "longbench_v2").out.startswith("longbench_v2: ")  # a suite of that name too
    for name in ("infinitebench_passkey", "helmet_asqa", "loogle_longdep_qa", "niah_grid"):  # nothing is downloaded
        shown = run("bench", "list", name).out.splitlines()
        assert shown[0].startswith(f"{name}: ")
        assert all(len(line) <= 80 or " " not in line.strip() for line in shown)


def test_the_next_command_runs_the_suite(run):
    last = run("bench", "list", "ruler").err.splitlines()[-1]
    assert shlex.split(last) == shlex.split(
        "longlens bench run ruler --model MODEL --length 4096 --data-dir DATA -o runs/ruler"
    )


def test_an_unknown_name_is_an_error_with_what_is_near(run):
    assert run("bench", "list", "rulr").error == "error: no task, suite or category 'rulr': did you mean 'ruler'?"
    assert run("bench", "list", "xyzzy").error.endswith("longlens bench list shows all")
    assert "did you mean 'mmlu'?" in run("bench", "list", "mmlo").error


def test_all_missing_data_of_a_suite_is_listed_at_once(run, work):
    asked = ("--length", "8192", "--tokenizer", "llama", "-o", "samples.jsonl")
    error = run("bench", "build", "helmet", *asked).error
    for name in (
        *("kilt/nq-dev-multikilt_1000_k50_dep6.jsonl", "kilt/popqa_test_1000_k3_dep6.jsonl", "trec/test.jsonl"),
        *("msmarco/test_reranking_data_k50_dep3.jsonl", "narrativeqa_train.jsonl", "multi_lexsum_train.jsonl"),
        *("asqa_revised.json", "asqa_eval_gtr_top2000.json", "clinc_oos/validation.jsonl"),
    ):
        assert name in error, name
    assert "longbook_qa_eng" not in error  # from the hub
    (work / "data").mkdir()
    error = run("bench", "build", "qa_1", "longeval_topics", *asked, "--data-dir", "data").error
    assert "'data' lacks 2 files: put squad.json into a folder, from https://" in error
    assert "; conversations.jsonl, from github.com/DachengLi1" in error
    assert error.endswith("and pass --data-dir")
