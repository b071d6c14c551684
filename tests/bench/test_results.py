"""What answers come to: means and intervals, depths, counts, and the benchmarks' own averages with what they lack."""

from __future__ import annotations

import json

import numpy as np
import pytest

from longlens.bench.results import (
    GradedSample,
    by_depth,
    percent_interval,
    suite_averages,
    summarize,
    summarize_batch,
    summarize_run,
)
from longlens.bench.table import length_charts, write_charts
from longlens.errors import UserError
from longlens.metrics.uncertainty import score_interval
from longlens.tasks import get_task, list_tasks
from longlens.tasks.helmet import CATEGORIES
from longlens.tasks.ruler import RULER
from tests.bench.fakes import sample
from tests.bench.test_store import opened

TASK = "niah_single_1"  # its score is string_match_all


def graded(score=None, number=0, task=TASK, length=4096, seed=42, metric=None, **changes):
    """An answer that scores that much."""
    own = {name: changes.pop(name) for name in ("is_truncated", "is_skipped", "nll", "scores") if name in changes}
    made = get_task(task)
    one = sample(task, number, length=length, **{"seed": seed} | changes)
    scores = None if score is None else {metric or made.metric: float(score)}
    return GradedSample(sample=one, task=made, batch=f"{task}-{length}-{seed}", **{"scores": scores} | own)


def batch(rows, mode="generate", judged=None):
    return summarize_batch(rows, judged or {}, mode)


# --- intervals --------------------------------------------------------------------------------------------------------


def wilson(hits, n, z=1.959963984540054):
    """Wilson (1927): where (p - hits/n)^2 = z^2 p (1-p) / n."""
    middle, width = hits + z**2 / 2, z * np.sqrt(hits * (n - hits) / n + z**2 / 4)
    return 100 * (middle - width) / (n + z**2), 100 * (middle + width) / (n + z**2)


@pytest.mark.parametrize(("hits", "n"), [(0, 2), (2, 2), (1, 3), (37, 50), (500, 500)])
def test_right_or_wrong_has_wilsons_interval(hits, n):
    found = percent_interval([1.0] * hits + [0.0] * (n - hits))
    assert found == pytest.approx(wilson(hits, n))
    assert found[0] < found[1]


def test_other_scores_have_a_score_interval():
    values = [0.25, 0.5, 0.75, 1.0, 0.0, 0.1, 0.9, 0.3] * 5
    assert percent_interval(values) == pytest.approx(tuple(100 * end for end in score_interval(values)))
    low, high = percent_interval([0.5, 0.5, 0.5])
    assert 0 < low < 20
    assert 80 < high < 100


@pytest.mark.parametrize("values", [[], [1.0], [0.5]])
def test_one_sample_has_no_interval(values):
    assert percent_interval(values) is None


# --- a task at a length -----------------------------------------------------------------------------------------------


def test_a_score_is_the_mean_in_percent():
    found = batch([graded(score, number) for number, score in enumerate([1, 0, 0.5, 1])])
    assert (found["score"], found["metric"], found["scores"]) == (62.5, "string_match_all", {"string_match_all": 62.5})
    assert found["interval"] == percent_interval([1, 0, 0.5, 1])
    assert (found["task"], found["suite"], found["length"], found["seed"]) == (TASK, "ruler", 4096, 42)
    assert (found["answer_nll"], found["num_choices"], found["is_lower_bound"]) == (None, None, False)


def test_all_that_was_not_scored_is_counted_and_not_in_the_mean():
    cut = {"cut": {"policy": "left", "characters": 3, "tokens": 3}}
    found = batch(
        [
            graded(1, 0, is_truncated=True),
            graded(0, 1, **cut),
            graded(None, 2),
            graded(None, 3, is_skipped=True),
            graded(None, 4, is_skipped=True),
            graded(1, 5, is_truncated=True, **cut),
        ]
    )
    counts = {name: value for name, value in found.items() if name.startswith("num_") and value is not None}
    assert counts == {
        "num_samples": 3,
        "num_scored": 3,
        "num_missing": 1,
        "num_skipped": 2,
        "num_cut": 2,
        "num_truncated_answers": 2,
    }
    assert found["score"] == pytest.approx(100 * 2 / 3, abs=0.01)


def test_tasks_come_in_the_order_of_the_registry_and_lengths_by_size():
    rows = [graded(1, 0, task, length) for length in (16384, 8192) for task in ("vt", TASK, "longeval_lines")]
    assert list(summarize(rows)) == [
        f"{task}-{length}-42" for task in ("longeval_lines", TASK, "vt") for length in (8192, 16384)
    ]


def test_where_nothing_is_answered_there_is_no_score():
    found = batch([graded(None, 0), graded(None, 1, is_skipped=True)])
    assert (found["score"], found["interval"], found["scores"], found["depths"]) == (None, None, {}, [])


@pytest.mark.parametrize(
    ("task", "is_bound"),
    [(TASK, True), ("longeval_lines", False), ("helmet_infbench_choice", False), ("helmet_nq", True)],
)
def test_teacher_forcing_is_a_lower_bound_where_the_metric_finds_the_answer_anywhere(task, is_bound):
    rows = [graded(1, number, task, metric="teacher_forced", nll=number + 0.5) for number in range(2)]
    found = batch(rows, "teacher-forced")
    assert (found["metric"], found["score"], found["is_lower_bound"]) == ("teacher_forced", 100.0, is_bound)
    assert found["answer_nll"] == 1.0
    assert found["interval"] == pytest.approx(wilson(2, 2))
    assert batch([graded(1, 0, task)])["is_lower_bound"] is False


def test_a_choice_says_of_how_many():
    scores = {"choice_accuracy": 1.0, "choice_accuracy_by_byte": 0.0}
    rows = [graded(0, number, scores=scores, nll=2.0, distractors=["a", "b", "c"]) for number in range(2)]
    found = batch(rows, "choice")
    assert (found["metric"], found["num_choices"], found["is_lower_bound"]) == ("choice_accuracy", 4, False)
    assert (found["chance"], found["chance_in_text"]) == (25.0, None)
    assert found["interval"] == pytest.approx(wilson(2, 2))
    assert found["scores"] == {"choice_accuracy": 100.0, "choice_accuracy_by_byte": 0.0}


def test_chance_is_the_mean_over_the_samples_that_are_scored():
    scores = {"choice_accuracy": 1.0, "choice_accuracy_by_byte": 1.0}
    wrong = [("abc", 1), ("a", 1), ("abc", 0)]
    rows = [
        graded(0, number, scores=scores, distractors=list(texts), distractors_in_text=inside)
        for number, (texts, inside) in enumerate(wrong)
    ]
    waiting = graded(None, 3, distractors=["a"], distractors_in_text=1)
    found = batch([waiting, *rows], "choice")
    assert found["num_choices"] is None
    assert found["chance"] == pytest.approx(100 * (1 / 4 + 1 / 2 + 1 / 4) / 3)
    assert found["chance_in_text"] == pytest.approx(100 * (1 / 2 + 1 / 2 + 1) / 3)
    cut = graded(0, 4, scores=scores, distractors=["a"], distractors_in_text=1, cut={"policy": "left"})
    assert batch([*rows, cut], "choice")["chance_in_text"] is None  # what was cut away may have had it
    for mode in ("generate", "teacher-forced"):
        other = batch([graded(1, metric="teacher_forced", nll=1.0, distractors=["a"], distractors_in_text=0)], mode)
        assert [other[name] for name in ("num_choices", "chance", "chance_in_text")] == [None] * 3


def test_a_judges_scores_take_the_place_of_the_fallback():
    rows = [graded(number == 0, number, "niah_grid", depth=50) for number in range(4)]
    ids = [row.sample.id for row in rows]
    alone = batch(rows)
    assert (alone["metric"], alone["score"]) == ("exact", 25.0)
    judged = {ids[0]: {"judge": 0.9}, ids[1]: {"judge": 0.3}, ids[3]: {}}
    found = batch(rows, judged=judged)
    assert (found["metric"], found["score"]) == ("judge", pytest.approx(60.0))
    assert (found["num_samples"], found["num_scored"]) == (4, 2)
    assert found["scores"] == {"exact": 25.0, "judge": pytest.approx(60.0)}
    assert found["interval"] == percent_interval([0.9, 0.3])
    # The map is of the metric that is shown.
    assert [(part["num_samples"], part["score"]) for part in found["depths"]] == [(2, pytest.approx(60.0))]


def test_where_a_benchmark_reports_a_judge_alone_there_is_no_score_without_one():
    rows = [graded(1, n, "helmet_narrativeqa", scores={"rougeL_f1": 0.5}) for n in range(2)]
    found = batch(rows)
    assert (found["metric"], found["score"], found["interval"], found["needs_judge"]) == ("judge", None, None, True)
    assert (found["scores"], found["num_scored"]) == ({"rougeL_f1": 50.0}, 0)
    judged = batch(rows, judged={row.sample.id: {"judge": 0.8} for row in rows})
    assert (judged["score"], judged["needs_judge"]) == (pytest.approx(80.0), False)
    assert batch([graded(1, 0, "niah_grid", depth=0)])["needs_judge"] is False


def test_what_samples_were_made_of_is_said():
    made = {"haystack": {"name": "essays", "sha256": "ab"}, "data": {"file": "x"}, "settings": {"keys": 4}, "units": 3}
    assert batch([graded(1, 0, **made)])["made_of"] == {key: made[key] for key in ("settings", "haystack", "data")}


def test_seeds_and_lengths_are_not_mixed():
    rows = [graded(1, 0), graded(0, 0, length=8192), graded(0, 0, seed=43), graded(1, 1, task="vt"), graded(0, 1)]
    found = summarize(rows)
    assert {name: one["score"] for name, one in found.items()} == {
        f"{TASK}-4096-42": 50.0,
        f"{TASK}-8192-42": 0.0,
        f"{TASK}-4096-43": 0.0,
        "vt-4096-42": 100.0,
    }


# --- depths -----------------------------------------------------------------------------------------------------------


def test_needles_anywhere_are_shown_in_fifths():
    depths = [0.0, 19.99, 20.0, 39.9, 59.9, 80.0, 99.9, 100.0]
    rows = [graded(number % 2, number, depths=[depth]) for number, depth in enumerate(depths)]
    found = by_depth(rows, "string_match_all")
    assert [(part["from"], part["to"], part["num_samples"], part["score"]) for part in found] == [
        (0.0, 20.0, 2, 50.0),
        (20.0, 40.0, 2, 50.0),
        (40.0, 60.0, 1, 0.0),
        (80.0, 100.0, 3, pytest.approx(200 / 3)),
    ]
    assert found[0]["interval"] == pytest.approx(wilson(1, 2))
    assert found[2]["interval"] is None


def test_a_grid_is_shown_at_its_depths():
    rows = [graded(number % 3 == 0, number, "niah_grid", depth=(0, 33.5, 100)[number % 3]) for number in range(6)]
    found = by_depth(rows, "exact")
    assert [(part["from"], part["to"], part["score"]) for part in found] == [
        (0.0, 0.0, 100.0),
        (33.5, 33.5, 0.0),
        (100.0, 100.0, 0.0),
    ]


def test_depths_are_in_order_and_of_answers_alone():
    rows = [
        graded(1, 0, depths=[90.0]),
        graded(0, 1, depths=[10.0]),
        graded(None, 2, depths=[10.0]),
        graded(None, 3, depths=[50.0], is_skipped=True),
        graded(1, 4, depths=[10.0, 90.0]),  # several needles are nowhere
        graded(1, 5, depths=[]),
        graded(1, 6),
    ]
    assert [(part["from"], part["num_samples"]) for part in by_depth(rows, "string_match_all")] == [(0, 1), (80, 1)]


def test_a_built_grid_has_its_depths():
    from tests.tiny import byte_tokenizer

    task = get_task("niah_grid", depths=[0, 40, 100])
    built = task.build(length=2000, tokenizer=byte_tokenizer())
    rows = [GradedSample(sample=one, task=task, batch="b", scores={"exact": 1.0}) for one in built]
    assert [part["from"] for part in by_depth(rows, "exact")] == [0, 40, 100]


# --- the benchmarks' own averages -------------------------------------------------------------------------------------


def suites(rows, **options):
    rows = list(rows)
    return suite_averages(summarize(rows), rows, **options)


def test_rulers_mean_needs_all_tasks_and_says_what_is_missing():
    rows = [graded(task != "cwe", 0, task, length) for task in RULER for length in (4096, 8192)]
    found = suites(rows, threshold=90.0)["ruler"]
    assert found["means"] == {4096: pytest.approx(1200 / 13), 8192: pytest.approx(1200 / 13)}
    assert (found["gaps"], found["effective_length"]) == ({}, 8192)
    lacks = [row for row in rows if (row.task.name, row.sample.length) != ("vt", 8192)]
    found = suites(lacks)["ruler"]
    assert (found["means"][8192], found["average"]) == (None, None)
    assert found["gaps"] == {8192: ("vt",)}
    assert found["means"][4096] == pytest.approx(1200 / 13)


def test_a_task_without_an_answer_is_missing():
    rows = [graded(None if task == "vt" else 1, 0, task) for task in RULER]
    assert suites(rows)["ruler"]["gaps"] == {4096: ("vt",)}
    assert suites([graded(None, 0, task) for task in RULER]) == {}


def test_two_seeds_of_a_task_count_as_more_samples_of_it():
    rows = [graded(seed == 1, number, task, seed=seed) for task in RULER for number, seed in enumerate((1, 2))]
    assert suites(rows)["ruler"]["means"] == {4096: pytest.approx(50.0)}
    assert suites(reversed(rows))["ruler"]["means"] == {4096: pytest.approx(50.0)}


HELMET = {task: [] for numbers in CATEGORIES.values() for task, _ in numbers}
for _task, _metric in (number for numbers in CATEGORIES.values() for number in numbers):
    HELMET[_task].append(_metric)


def helmet_rows(length=8192):
    return [
        graded(1, 0, task, length, scores=dict.fromkeys({*metrics, get_task(task).metric}, 0.5))
        for task, metrics in HELMET.items()
    ]


def test_helmets_score_needs_all_of_its_numbers():
    found = suites(helmet_rows())["helmet"]["8192"]
    assert found["gaps"] == ()
    assert found["overall"] == pytest.approx(50.0)
    assert found["categories"] == dict.fromkeys(CATEGORIES, pytest.approx(50.0))
    lacks = [row for row in helmet_rows() if row.task.name != "helmet_popqa"]
    found = suites(lacks)["helmet"]["8192"]
    assert (found["overall"], found["categories"]["rag"]) == (None, None)
    assert found["categories"]["icl"] == pytest.approx(50.0)
    assert found["gaps"] == ("helmet_popqa substring_exact_match",)


def test_helmet_without_a_judge_lacks_what_a_judge_gives():
    rows = [
        row if "judge" not in row.scores else graded(1, 0, row.task.name, 8192, scores={"rougeL_f1": 0.5})
        for row in helmet_rows()
    ]
    found = suites(rows)["helmet"]["8192"]
    wanted = {f"{task} judge" for task, metrics in HELMET.items() if "judge" in metrics}
    assert set(found["gaps"]) == wanted
    assert found["categories"]["longqa"] is None
    ids = {row.sample.id: {"judge": 0.8} for row in rows if f"{row.task.name} judge" in wanted}
    found = suite_averages(summarize(rows, judged=ids), rows)["helmet"]["8192"]
    assert found["categories"]["summ"] == pytest.approx(80.0)


def test_helmet_is_of_one_length():
    both = suites([*helmet_rows(8192), *helmet_rows(16384)[:1]])["helmet"]
    assert (both["8192"]["overall"], both["16384"]["overall"]) == (pytest.approx(50.0), None)
    assert len(both["16384"]["gaps"]) > 20


LONGBENCH = [name for name in list_tasks() if get_task(name).suite == "longbench"]
LONGBENCH_E = [name for name in list_tasks() if get_task(name).suite == "longbench_e"]


def test_longbenchs_averages_need_their_tasks():
    rows = [graded(0.25, 0, task, 4096) for task in LONGBENCH]
    found = suites(rows)["longbench"]["4096"]
    assert (found["gaps"], found["overall"]) == ([], {part: pytest.approx(25.0) for part in ("en", "zh", "all")})
    lacks = [row for row in rows if row.task.name != "longbench_lsht"]
    found = suites(lacks)["longbench"]["4096"]
    assert (found["gaps"], found["overall"]["zh"], found["overall"]["all"]) == (["longbench_lsht"], None, None)
    assert found["overall"]["en"] == pytest.approx(25.0)


def test_lengths_of_longbench_are_not_mixed():
    """Samples are cut to a length, so that the numbers are others."""
    rows = [graded(length == 4096, 0, task, length) for task in LONGBENCH for length in (4096, 8192, None)]
    found = suites(rows)["longbench"]
    assert {length: one["overall"]["all"] for length, one in found.items()} == {
        "4096": pytest.approx(100.0),
        "8192": pytest.approx(0.0),
        "0": pytest.approx(0.0),
    }
    rows = [
        graded(length == 4096, 0, "longbench_v2", length, difficulty="easy", length_label="short", metric="accuracy")
        for length in (4096, 8192)
    ]
    for row in rows:
        row.scores["compensated"] = row.scores["accuracy"]
    found = suites(rows)["longbench_v2"]
    assert {length: one["accuracy"]["overall"] for length, one in found.items()} == {"4096": 100.0, "8192": 0.0}


def test_longbench_e_is_by_the_length_of_its_rows():
    buckets = ("0-4k", "4-8k", "8k+")
    rows = [
        graded(bucket == "0-4k", number, task, None, bucket=bucket)
        for task in LONGBENCH_E
        for number, bucket in enumerate(buckets)
    ]
    found = suites(rows)["longbench_e"]["0"]
    assert {bucket: found[bucket]["overall"]["en"] for bucket in buckets} == {"0-4k": 100.0, "4-8k": 0.0, "8k+": 0.0}
    lacks = [row for row in rows if (row.task.name, row.sample.metadata["bucket"]) != ("longbench_e_lcc", "8k+")]
    found = suites(lacks)["longbench_e"]["0"]
    assert [found[bucket]["gaps"] for bucket in buckets] == [[], [], ["longbench_e_lcc"]]
    assert (found["0-4k"]["overall"]["en"], found["8k+"]["overall"]["en"]) == (100.0, None)


def test_other_suites_have_no_average():
    assert suites([graded(1, 0, "longeval_lines"), graded(1, 0, "niah_grid", depth=1)]) == {}


# --- a run ------------------------------------------------------------------------------------------------------------


def test_a_run_without_samples_has_no_results(tmp_path):
    opened(tmp_path / "run").release()
    assert summarize_run(tmp_path / "run") == {
        "schema_version": 1,
        "model": "tiny",
        "mode": "generate",
        "template": "auto",
        "dtype": None,
        "tasks": {},
        "harness": {},
        "suites": {},
    }


def test_of_results_of_lm_evaluation_harness_the_last_one_counts(tmp_path):
    for count in range(6):
        run = opened(tmp_path / "run")
        run.append("harness", {"kind": "answer", "key": "k", "answer": [0, True]})
        run.append("harness", {"kind": "result", "name": "mmlu", "results": {}, "num_samples": count})
        run.release()
    assert summarize_run(tmp_path / "run")["harness"] == {
        "mmlu": {"kind": "result", "name": "mmlu", "results": {}, "num_samples": 5},
    }


def test_results_are_json():
    rows = [graded(0.5, number, task, depths=[5.0]) for number in range(3) for task in (TASK, "vt")]
    tasks = summarize(rows)
    json.dumps([tasks, suite_averages(tasks, rows)], allow_nan=False)


# --- heatmaps ---------------------------------------------------------------------------------------------------------


def grid_of(model, *scores):
    rows = [
        graded(score, number, "niah_grid", length, depth=(0, 100)[number % 2])
        for length in (1000, 2000)
        for number, score in enumerate(scores)
    ]
    return {"model": model, "mode": "generate", "suites": {}, "tasks": summarize(rows)}


def test_each_run_with_a_grid_has_a_heatmap_and_lengths_are_a_chart(tmp_path):
    empty = {"model": "m", "mode": "generate", "suites": {}, "tasks": {}}
    runs = {"runs/a": grid_of("m", 1, 0), "runs/b": grid_of("m", 0, 1), "runs/c": empty}
    written = write_charts(runs, tmp_path / "figures")
    stems = ("heatmap-runs-a", "heatmap-runs-b", "length-niah-grid")
    assert {path.name for path in written} == {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")}
    assert all(path.stat().st_size > 1000 for path in written)


def test_a_chart_of_lengths_has_the_scores_their_intervals_and_chance():
    def run(model, scores, chance=None):
        batches = {
            f"vt-{length}-{seed}": {
                **{"task": "vt", "length": length, "metric": "exact", "score": score, "chance": chance},
                **{"interval": [score - 5, score + 5], "suite": "ruler"},
            }
            for length, seed, score in scores
        }
        means = {"1024": 60.0, "2048": 50.0, "4096": None}
        return {"model": model, "mode": "choice", "suites": {"ruler": {"means": means}}, "tasks": batches}

    base = run("hub/base", [(2048, 1, 70.0), (1024, 1, 90.0), (1024, 2, 80.0), (4096, 1, None)][:3], 10.0)
    named = run("hub/x", [(2048, 1, 75.0)], 10.0) | {"name": "ours"}
    chart, mean = length_charts({"a": base, "b": named})
    assert (chart.title, mean.title) == ("vt: exact by length", "RULER: mean of 13 tasks by length")
    one, other, chance = chart.series
    assert (one.name, other.name, chance.name) == ("base (choice)", "ours (choice)", "chance")
    assert (list(one.x), list(one.y)) == ([1024, 2048], [85.0, 70.0])  # a mean of two seeds
    assert (list(one.low), list(one.high)) == ([None, 65.0], [None, 75.0])
    assert (list(other.x), list(other.y), list(chance.y)) == ([2048], [75.0], [10.0, 10.0])
    assert [list(series.y) for series in mean.series] == [[60.0, 50.0]] * 2
    assert length_charts({"b": named | {"suites": {}}}) == []  # one length is no line


def test_runs_of_like_names_do_not_overwrite_each_other(tmp_path):
    written = write_charts({"runs/a": grid_of("m", 1, 0), "runs-a": grid_of("m", 0, 1)}, tmp_path / "figures")
    assert len(set(written)) == 6


def test_without_lengths_and_a_grid_there_is_no_chart(tmp_path):
    run = {"model": "m", "mode": "generate", "suites": {}, "tasks": summarize([graded(1)])}
    with pytest.raises(UserError, match="no chart to draw: run a task with several `lengths`"):
        write_charts({"a": run}, tmp_path)
