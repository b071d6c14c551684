"""Tables across runs: what stands in which row, column and note."""

from __future__ import annotations

import csv
import io

import pytest

from longlens.bench.results import suite_averages, summarize
from longlens.bench.table import Table, results_table
from longlens.errors import UserError
from longlens.tasks import RULER
from tests.bench.test_results import LONGBENCH, LONGBENCH_E, TASK, graded, helmet_rows


def results(rows=(), model="org/tiny", mode="generate", **changes):
    rows = list(rows)
    tasks = summarize(rows, mode=mode)
    suites = suite_averages(tasks, rows) if mode == "generate" else {}
    return {"model": model, "mode": mode, "tasks": tasks, "harness": {}, "suites": suites} | changes


def table(*runs, names=("runs/a", "runs/b", "runs/c"), **options):
    return results_table(dict(zip(names, runs, strict=False)), **options)


def cells(made):
    return {tuple(row[:3]): row[3:] for row in made.rows}


def test_runs_stand_side_by_side():
    a = results([graded(1, 0), graded(1, 1), graded(1, 0, length=8192), graded(1, 0, "longeval_lines", None)])
    b = results([graded(0, 0), graded(1, 1), graded(0, 0, "niah_grid", depth=0)], model="/models/big/")
    made = table(a, b)
    assert made.columns == ["task", "length", "metric", "tiny", "big"]
    assert len(cells(made)) == len(made.rows)
    assert cells(made) == {
        (TASK, "4,096", "string_match_all"): ["100.0 [34.2, 100.0]", "50.0 [9.5, 90.5]"],
        (TASK, "8,192", "string_match_all"): ["100.0", "-"],
        ("longeval_lines", "", "accuracy"): ["100.0", "-"],
        ("niah_grid", "4,096", "exact"): ["-", "0.0"],
    }


def test_two_runs_of_one_model_are_told_apart_by_their_folders():
    one = results([graded(1)])
    forced = results([graded(1, metric="teacher_forced", nll=1.0)], mode="teacher-forced")
    assert table(one, one).columns[3:] == ["tiny in runs/a", "tiny in runs/b"]
    assert table(one, forced).columns[3:] == ["tiny", "tiny (teacher-forced)"]
    assert table(one, results([graded(1)], model="x/tiny"), results([graded(1)], model="x/big")).columns[3:] == [
        "tiny in runs/a",
        "tiny in runs/b",
        "big",
    ]


def test_a_lower_bound_says_so():
    forced = results([graded(1, metric="teacher_forced", nll=1.0, depths=[5.0])], mode="teacher-forced")
    exact = results([graded(1, 0, "longeval_lines", metric="teacher_forced", nll=1.0)], mode="teacher-forced")
    assert cells(table(forced)) == {(TASK, "4,096", "teacher_forced"): [">= 100.0"]}
    assert cells(table(exact)) == {("longeval_lines", "4,096", "teacher_forced"): ["100.0"]}
    assert table(forced, by_depth=True).rows[1] == [TASK, "4,096 depth 0-20", "teacher_forced", ">= 100.0"]


def choices(count, inside, dtype="float32", **changes):
    scores = {"choice_accuracy": 1.0, "choice_accuracy_by_byte": 1.0}
    wrong = {"distractors": [str(number) for number in range(count)], "distractors_in_text": inside}
    return results([graded(1, scores=scores, nll=1.0, **wrong)], mode="choice", dtype=dtype, **changes)


def test_chance_stands_beside_choices():
    made = table(choices(9, 9), results([graded(1)], model="x/big"), choices(15, 15, model="x/old"))
    assert made.columns == ["task", "length", "metric", "chance", "tiny (choice)", "big", "old (choice)"]
    assert made.rows == [
        [TASK, "4,096", "choice_accuracy", "10.0", "100.0", "-", "-"],
        [TASK, "4,096", "string_match_all", "", "-", "100.0", "-"],
        [TASK, "4,096", "choice_accuracy", "6.2", "-", "-", "100.0"],
    ]
    assert not any("chance" in note for note in made.notes)
    assert "chance" not in table(results([graded(1)])).columns
    many = results_table({f"runs/{n}": choices(9, 9, model=f"x/m{n}") for n in range(9)}).readable()
    assert many.columns == ["task", "length", "metric", "chance", "model", "score"]
    assert many.rows[8] == [TASK, "4,096", "choice_accuracy", "10.0", "m8 (choice)", "100.0"]
    assert table(choices(9, 9), by_depth=True).rows[0][3] == "10.0"


def test_choices_that_stand_in_no_text_and_rounded_ones_say_so():
    assert table(choices(9, 0, dtype="bfloat16")).notes == [
        "tiny (choice): choices were compared in bfloat16, whose rounding decides near ties: use `dtype=float32`",
        f"tiny (choice): {TASK} at 4,096: chance is 10.0, and 100.0 among the choices that occur in the text",
    ]


def test_several_seeds_have_a_row_each():
    a = results([graded(1, 0), graded(0, 0, seed=7), graded(1, 0, "vt")])
    b = results([graded(0, 0)])
    for runs, columns in (((a, b), (0, 1)), ((b, a), (1, 0))):
        found = cells(table(*runs))
        assert [found[(TASK, "4096-42", "string_match_all")][column] for column in columns] == ["100.0", "0.0"]
        assert [found[(TASK, "4096-7", "string_match_all")][column] for column in columns] == ["0.0", "-"]
        assert ("vt", "4,096", "string_match_all") in found


def test_several_numbers_of_units_have_a_row_each():
    from longlens.bench.results import GradedSample
    from longlens.tasks import get_task
    from tests.tiny import byte_tokenizer

    rows = []
    for lines in (3, 5):
        task = get_task("longeval_lines", lines=lines)
        (one,) = task.build(samples=1, tokenizer=byte_tokenizer())
        batch = one.id.rpartition("-")[0]
        rows.append(GradedSample(sample=one, task=task, batch=batch, scores={"accuracy": float(lines == 3)}))
    assert cells(table(results(rows))) == {
        ("longeval_lines", "3units-42", "accuracy"): ["100.0"],
        ("longeval_lines", "5units-42", "accuracy"): ["0.0"],
    }


def test_parts_of_the_text_follow_their_task():
    rows = [graded(number % 2, number, depths=[30.0 * number]) for number in range(4)]
    grid = [graded(1, number, "niah_grid", depth=(0, 33.5)[number]) for number in range(2)]
    made = table(results([*rows, *grid]), by_depth=True)
    own = {name: [row for row in made.rows if row[0] == name] for name in (TASK, "niah_grid")}
    assert own["niah_grid"] + own[TASK] == made.rows
    assert [row[1] for row in own[TASK]] == ["4,096", *(f"4,096 depth {part}" for part in PARTS)]
    assert [row[3] for row in own[TASK][1:]] == ["0.0", "100.0", "0.0", "100.0"]
    assert [row[1] for row in own["niah_grid"]] == ["4,096", "4,096 depth 0", "4,096 depth 33.5"]
    assert not any("depth" in row[1] for row in table(results(rows)).rows)
    fixed = table(results([graded(1, 0, length=None, depths=[5.0])]), by_depth=True)
    assert [row[1] for row in fixed.rows if row[0] == TASK] == ["", "depth 0-20"]


PARTS = ("0-20", "20-40", "60-80", "80-100")


def test_what_is_not_in_a_number_is_in_a_note():
    rows = [
        graded(1, 0, is_truncated=True, cut={"policy": "left"}),
        graded(None, 1),
        graded(None, 2, is_skipped=True),
        graded(1, 0, "longeval_lines", None),
        graded(None, 1, "longeval_lines", None),
    ]
    notes = table(results(rows)).notes
    assert notes[:5] == [
        "tiny: longeval_lines: 1 samples have no answer yet",
        f"tiny: {TASK} at 4,096: 1 samples have no answer yet",
        f"tiny: {TASK} at 4,096: 1 samples were too long and are not counted",
        f"tiny: {TASK} at 4,096: 1 samples were truncated",
        f"tiny: {TASK} at 4,096: 1 answers reached the token limit",
    ]
    assert table(results([graded(1, 0, "longeval_lines")])).notes == []


def test_a_score_of_some_samples_alone_says_of_how_many():
    run = results([graded(1, number, "niah_grid", depth=0) for number in range(3)])
    run["tasks"]["niah_grid-4096-42"] |= {"num_scored": 2, "metric": "judge", "score": 70.0, "interval": None}
    assert table(run).notes == ["tiny: niah_grid at 4,096: judge is over 2 of 3 samples"]


def test_a_score_that_a_judge_gives_says_how_to_get_it():
    run = results([graded(1, n, "helmet_narrativeqa", scores={"rougeL_f1": 0.5}) for n in range(2)])
    found = table(run)
    assert found.notes[:1] == [
        "tiny: helmet_narrativeqa at 4,096: the score needs a judge: longlens bench grade RUN --judge MODEL"
    ]
    assert not any("rougeL_f1" in row for row in found.rows)


def test_many_models_have_a_row_each():
    rows = [graded(1, 0, task) for task in (TASK, "vt")]
    runs = {f"run{n}": results(rows) | {"model": f"org/model-{n:03d}"} for n in range(200)}
    wide = results_table(runs)
    assert wide.readable().columns == ["task", "length", "metric", "model", "score"]
    lines = wide.readable().markdown().splitlines()
    assert len(wide.readable().rows) == 2 * 200
    assert max(len(line) for line in lines if line.startswith("|")) < 100
    assert f"| {TASK} | 4,096 | string_match_all | model-199 | 100.0 |" in lines
    few = results_table(dict(list(runs.items())[:8]))
    assert few.readable() is few


def test_the_benchmarks_averages_are_rows():
    run = results([graded(1, 0, task, length) for task in RULER for length in (4096, 8192)])
    found = {key: cell for key, (cell,) in cells(table(run)).items() if key[0] == "RULER"}
    assert found == {
        ("RULER", "4,096", "mean of 13"): "100.00",
        ("RULER", "8,192", "mean of 13"): "100.00",
        ("RULER", "all", "Avg."): "100.00",
        ("RULER", "all", "wAvg. (inc)"): "100.00",
        ("RULER", "all", "wAvg. (dec)"): "100.00",
        ("RULER", "all", "effective length (> 85.6)"): "8,192",
    }


def test_an_average_that_lacks_a_task_is_no_row_and_its_gap_is_a_note():
    whole = [graded(1, 0, task) for task in RULER]
    lacks = [row for row in whole if row.task.name not in ("vt", "qa_2")]
    made = table(results(lacks))
    assert not [row for row in made.rows if row[0] == "RULER"]
    assert made.notes == ["tiny: RULER at 4096: no vt, qa_2"]
    made = table(results(whole), results(lacks, model="other"))
    assert cells(made)[("RULER", "4,096", "mean of 13")] == ["100.00", "-"]
    assert made.notes == ["other: RULER at 4096: no vt, qa_2"]


def test_helmet_and_longbench_are_rows_by_length():
    rows = helmet_rows(8192) + [graded(0.5, 0, task, length) for task in LONGBENCH for length in (None, 4096)]
    found = cells(table(results(rows)))
    assert found[("HELMET", "8,192", "overall")] == ["50.00"]
    assert found[("HELMET", "8,192", "cite")] == ["50.00"]
    assert found[("LongBench", "en", "overall")] == ["50.00"]
    assert found[("LongBench", "4,096 zh", "overall")] == ["50.00"]
    lacks = [row for row in rows if row.task.name not in ("helmet_msmarco", "longbench_lcc")]
    made = table(results(lacks))
    assert [note for note in made.notes if "no longbench" in note or "no helmet" in note] == [
        "tiny: HELMET at 8,192: no helmet_msmarco NDCG@10",
        "tiny: LongBench: no longbench_lcc",
        "tiny: LongBench at 4,096: no longbench_lcc",
    ]
    assert ("HELMET", "8,192", "overall") not in cells(made)


def test_longbench_e_and_v2_are_rows():
    rows = [
        graded(1, number, task, None, bucket=bucket)
        for task in LONGBENCH_E
        for number, bucket in enumerate(("0-4k", "4-8k"))
    ]
    v2 = {"accuracy": 1.0, "compensated": 0.25}
    rows.append(graded(1, 0, "longbench_v2", 8192, scores=v2, difficulty="hard", length_label="long"))
    made = table(results(rows))
    found = cells(made)
    assert found[("LongBench-E", "4-8k", "overall")] == ["100.00"]
    assert ("LongBench-E", "8k+", "overall") not in found
    assert found[("LongBench v2", "8,192 overall", "accuracy")] == ["100.00"]
    assert found[("LongBench v2", "8,192 hard", "compensated")] == ["25.00"]
    assert ("LongBench v2", "8,192 easy", "accuracy") not in found
    gaps = [note for note in made.notes if "LongBench-E" in note]
    assert gaps == [f"tiny: LongBench-E at 8k+: no {', '.join(LONGBENCH_E)}"]


def test_lm_evaluation_harness_has_rows_of_its_own():
    scores = {"acc": {"score": 25.0, "interval": [20.0, 30.0]}, "acc_norm": {"score": 50.0, "interval": None}}
    harness = {
        "mmlu": {"length": None, "results": {"mmlu": scores}},
        "babilong-4k": {"length": "4k", "results": {"babilong_qa1": {"acc": {"score": 1.0, "interval": None}}}},
    }
    assert cells(table(results(harness=harness))) == {
        ("mmlu", "", "acc"): ["25.0 [20.0, 30.0]"],
        ("mmlu", "", "acc_norm"): ["50.0"],
        ("babilong_qa1", "4k", "acc"): ["1.0"],
    }


def test_markdown_cells_cannot_break_the_table():
    made = Table(columns=["a|b", "c"], rows=[["x|y\nz", "1"], ["\\|", "`"]], notes=["one", "two"])
    assert made.markdown().splitlines() == [
        "| a\\|b | c |",
        "| --- | --- |",
        "| x\\|y z | 1 |",
        "| \\\\\\| | ` |",
        "",
        "one",
        "",
        "two",
    ]
    assert made.markdown().endswith("two\n")


def test_csv_is_read_as_it_was():
    rows = [['a,"b"', "1.0 [0.5, 2.0]"], ["line\nline", "-"]]
    made = Table(columns=["task", "x, y"], rows=rows, notes=["left out"])
    assert list(csv.reader(io.StringIO(made.csv()))) == [["task", "x, y"], *rows]


def test_no_runs_are_an_error():
    with pytest.raises(UserError, match="no runs for the table: pass directories of longlens bench run"):
        results_table({})
