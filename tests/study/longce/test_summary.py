"""Means, intervals and paired differences of runs that were made up, by mental arithmetic."""

import numpy as np
import pytest
from scipy import stats

from longlens.metrics.uncertainty import mean_interval
from longlens.study.longce.summary import equal_time_step, summarize, tables
from tests.study.longce.toys import toy_study

STUDY = toy_study(seeds=(1, 2, 3))
TIMING = {"pi": {"ratio": 1.6}, "eabf": {"ratio": 1.4}}
START = {
    "test": {
        name: {"accuracy": 0.5, "answer_nll": 2.0, "longppl": None, "ppl": 9.0, "short_ppl": 8.0} for name in TIMING
    }
}
ARMS = ("ce", "longce", "permuted", "normalised")


def point(step, nll, longppl=3.0):
    return {"step": step, "accuracy": nll / 10, "answer_nll": nll, "longppl": longppl, "ppl": 5.0, "short_ppl": 4.0}


def made_up():
    """CE has answer NLL 3 + seed - step / 10, LongCE 1 + 2 seed - step / 10, the others 5."""
    runs = []
    for method in TIMING:
        for seed in (1, 2, 3):
            for arm in ARMS:
                steps = (1, 2, 3) if arm == "ce" else (1, 2)
                nll = {"ce": 3 + seed, "longce": 1 + 2 * seed}.get(arm, 5)
                points = [point(step, nll - step / 10, None if arm == "permuted" else 3.0) for step in steps]
                weights = {"mean": 1.0 + seed, "mean_of_answers": 4.0, "share_of_answers": 0.5}
                runs.append(
                    {
                        "method": method,
                        "arm": arm,
                        "seed": seed,
                        "documents": "test",
                        "weights": weights,
                        "points": points,
                    }
                )
    return runs


@pytest.fixture(scope="module")
def result():
    return {"timing": TIMING, **summarize(STUDY, made_up(), TIMING, START)}


def the(rows, **wanted):
    (found,) = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return found["metrics"]


def test_the_interval_is_students():
    low, high = mean_interval([1.0, 2.0, 4.0])
    expected = stats.ttest_1samp([1.0, 2.0, 4.0], 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert mean_interval([1.0]) is None


def test_equal_time_is_so_many_steps_of_ce():
    assert [equal_time_step(step, 1.4) for step in (1, 10, 50)] == [1, 14, 70]
    assert equal_time_step(1, 0.2) == 1


def test_means_are_over_seeds(result):
    found = the(result["means"], method="pi", arm="longce", step=2)["answer_nll"]
    assert found["values"] == pytest.approx([2.8, 4.8, 6.8])
    assert found["mean"] == pytest.approx(4.8)
    assert (found["low"], found["high"]) == pytest.approx(mean_interval([2.8, 4.8, 6.8]))
    assert result["seeds"] == [1, 2, 3]


def test_differences_are_paired_by_seed_at_equal_steps_and_at_equal_time(result):
    steps = the(result["differences"], method="pi", arm="longce", step=2, reading="equal steps")["answer_nll"]
    assert steps["values"] == pytest.approx([-1, 0, 1])
    time = the(result["differences"], method="pi", arm="longce", step=2, reading="equal time")["answer_nll"]
    assert time["values"] == pytest.approx([-0.9, 0.1, 1.1])  # CE at step round(2 * 1.6) = 3
    (row,) = [
        row
        for row in result["differences"]
        if (row["method"], row["arm"], row["step"], row["reading"]) == ("eabf", "longce", 1, "equal time")
    ]
    assert row["ce_step"] == 1
    assert len(result["differences"]) == 2 * 3 * 2 * 2


def test_what_does_not_exist_is_none(result):
    for rows in (result["means"], result["differences"]):
        found = the(
            [row for row in rows if row.get("reading") in (None, "equal steps")], method="pi", arm="permuted", step=1
        )
        assert found["longppl"]["mean"] is found["longppl"]["low"] is None
    assert the(result["start"], method="pi", documents="test")["longppl"]["mean"] is None


def test_weights_are_those_of_the_arms_with_a_short_pass(result):
    assert [(row["method"], row["arm"], row["mean"]) for row in result["weights"]] == [
        (method, arm, 3.0) for method in TIMING for arm in ARMS[1:]
    ]


def test_tables_show_every_row_and_half_the_width_of_intervals(result):
    means, differences = tables({**result, "timing": TIMING})
    columns, rows = means.columns, means.rows
    assert {len(row) for row in rows} == {len(columns)}
    assert len(rows) == 2 * (1 + 3 + 3 * 2)
    half = mean_interval([2.8, 4.8, 6.8])[1] - 4.8
    assert ("pi", "longce", "2", f"48.0 ± {10 * half:.1f}", f"4.800 ± {half:.3f}") in [row[:5] for row in rows]
    assert rows[0] == ("pi", "not trained", "0", "50.0", "2.000", "-", "9.00", "8.00")
    columns, rows = differences.columns, differences.rows
    assert {len(row) for row in rows} == {len(columns)}
    assert rows[0][:4] == ("pi", "longce - ce", "1", "equal steps (1)")
    assert rows[0][4].startswith("+0.0 ± ")


def test_one_seed_has_no_interval():
    runs = [run for run in made_up() if run["seed"] == 1]
    found = summarize(STUDY, runs, TIMING, START)
    assert the(found["means"], method="pi", arm="ce", step=1)["answer_nll"]["low"] is None
    assert np.isclose(the(found["means"], method="pi", arm="ce", step=1)["answer_nll"]["mean"], 3.9)
