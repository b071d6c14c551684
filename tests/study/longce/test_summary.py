"""Rates, means, intervals and paired differences of runs that were made up, by mental arithmetic."""

import numpy as np
import pytest
from scipy import stats

from longlens.metrics.uncertainty import mean_interval
from longlens.study.longce.summary import choose_rates, equal_time_step, hierarchical_interval, summarize, tables
from tests.study.longce.toys import toy_study

STUDY = toy_study(seeds=(1, 2, 3), windows=(), arms={"pi": ("ce", "longce", "oracle"), "eabf": ("ce",)})
RATIO = {"longce": {"ce_seconds": 1.0, "longce_seconds": 1.6, "ratio": 1.6}}
TIMING = {"pi": RATIO, "eabf": RATIO}
ARMS = {"pi": ("ce", "longce", "oracle"), "eabf": ("ce",)}


def point(step, nll, longppl=3.0):
    each = {"accuracy": [1, 0], "choice": [1, 1], "answer_nll": [nll - 0.5, nll + 0.5], "choice_nll": [nll, nll]}
    form = {name: float(np.mean(values)) for name, values in each.items()} | {"questions": each}
    forms = {"trained": form, "lines": form}
    return {"step": step, "forms": forms, "ppl": 5.0, "prose_ppl": 2.0, "longppl": longppl, "short_ppl": 4.0}


def made_up():
    """CE has answer NLL 3 + seed - step / 10, LongCE 1 + 2 seed - step / 10, the oracle 5."""
    runs = []
    for method, arms in ARMS.items():
        for seed in (1, 2, 3):
            for arm in arms:
                nll = {"ce": 3 + seed, "longce": 1 + 2 * seed}.get(arm, 5)
                longppl = None if arm == "oracle" else 3.0 * np.e ** (arm == "longce")
                points = [point(step, nll - step / 10, longppl) for step in ((1, 2, 3) if arm == "ce" else (1, 2))]
                weights = {"mean": 1.0 + seed, "mean_of_answers": 4.0, "share_of_answers": 0.5}
                runs.append({"method": method, "arm": arm, "seed": seed, "weights": weights, "points": points})
    return runs


def starts():
    base = {"parameters": 10, "forms": {"trained": {"choice": 0.9}, "lines": {"choice": 0.8}}}
    return {
        seed: {
            "seed": seed,
            "documents": "test" if seed else "development",
            "text": {"shared": 0.1, "removed": 0.05},
            "base": base,
            "evaluator": {"num_tokens": 1000, "num_key_tokens": 30, "num_key_answers": 25},
            "start": {method: point(0, 9.0) for method in TIMING},
        }
        for seed in (0, 1, 2, 3)
    }


@pytest.fixture(scope="module")
def result():
    tuning = [
        {"method": method, "arm": arm, "learning_rate": rate, "answer_nll": 1 + abs(rate - 1e-2)}
        for method, arms in ARMS.items()
        for arm in arms
        for rate in (1e-3, 1e-2)
    ]
    rest = {"timing": TIMING, "tuning": tuning, "rates": choose_rates(tuning)}
    return {**rest, **summarize(STUDY, made_up(), TIMING, starts())}


def the(rows, **wanted):
    (found,) = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return found["metrics"]


def test_the_best_rate_is_the_one_with_the_lowest_mean_over_development_seeds():
    nll = {1e-4: (3.0, 1.0), 1e-3: (1.8, 1.9), 1e-2: (0.5, 9.0)}
    tried = [
        {"method": "pi", "arm": "ce", "learning_rate": rate, "answer_nll": value}
        for rate, values in nll.items()
        for value in values
    ]
    assert choose_rates(tried) == {"pi": {"ce": 1e-3}}


def test_equal_time_is_so_many_steps_of_ce():
    assert [equal_time_step(step, 1.4) for step in (1, 10, 50)] == [1, 14, 70]
    assert equal_time_step(1, 0.2) == 1


def test_the_hierarchical_interval_covers():
    """Seeds differ by a standard deviation of 1, questions of a seed by 2: t over seeds would cover as well."""
    rng, hits, alone, trials = np.random.default_rng(0), 0, 0, 300
    for _ in range(trials):
        values = rng.normal(size=(8, 1)) + 2 * rng.normal(size=(8, 40))
        found = hierarchical_interval(values, 400)
        hits += found["low"] <= 0 <= found["high"]
        flat = values.ravel()
        alone += abs(flat.mean()) <= 1.96 * flat.std() / np.sqrt(flat.size)
    assert 0.93 <= hits / trials <= 0.995
    assert alone / trials < 0.6  # questions as if they were independent


def test_the_interval_of_questions_that_are_all_alike_in_a_seed_is_near_students():
    values = np.repeat(np.random.default_rng(1).normal(size=(8, 1)), 30, axis=1)
    found = hierarchical_interval(values, 4000)
    low, high = mean_interval(values[:, 0])
    assert (found["mean"], found["values"]) == (pytest.approx(values.mean()), pytest.approx(values[:, 0]))
    assert (found["low"], found["high"]) == (pytest.approx(low, abs=0.15), pytest.approx(high, abs=0.15))
    expected = stats.ttest_1samp(values[:, 0], 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert hierarchical_interval(values[:1], 100)["low"] is None


def test_means_are_over_seeds_and_questions(result):
    found = the(result["means"], method="pi", arm="longce", step=2)["trained.answer_nll"]
    assert found["values"] == pytest.approx([2.8, 4.8, 6.8])
    assert found["mean"] == pytest.approx(4.8)
    assert found["low"] < 4.8 < found["high"]
    assert result["seeds"] == [1, 2, 3]
    accuracy = the(result["means"], method="pi", arm="longce", step=2)["trained.accuracy"]
    assert 0 <= accuracy["low"] <= accuracy["mean"] == 0.5 <= accuracy["high"] <= 1
    (row,) = [row for row in result["means"] if (row["method"], row["arm"], row["step"]) == ("pi", "longce", 2)]
    assert row["seconds"] == 3.2


def test_differences_are_paired_at_equal_steps_equal_time_and_from_no_training(result):
    steps = the(result["differences"], method="pi", arm="longce", reading="equal steps")["trained.answer_nll"]
    assert steps["values"] == pytest.approx([-1, 0, 1])
    time = the(result["differences"], method="pi", arm="longce", reading="equal time")["trained.answer_nll"]
    assert time["values"] == pytest.approx([-0.9, 0.1, 1.1])  # CE at step round(2 * 1.6) = 3
    training = the(result["differences"], method="pi", arm="ce", reading="training")["trained.answer_nll"]
    assert training["values"] == pytest.approx([-5.2, -4.2, -3.2])
    logs = the(result["differences"], method="pi", arm="longce", reading="equal steps")["longppl"]
    assert logs["values"] == pytest.approx([1, 1, 1])
    readings = {(row["arm"], row["reading"]) for row in result["differences"] if row["method"] == "pi"}
    assert ("oracle", "equal time") not in readings  # its steps take as long as CE's
    assert ("ce", "equal steps") not in readings
    assert len(readings) == 1 + 3 + 2


def test_other_windows_are_compared_with_the_defaults(result):
    window = {"context": 4, "stride": 4}
    study = toy_study(seeds=(1, 2, 3), windows=[window], arms=ARMS, evaluator_method="pi")
    name = study.windows[0].name
    # Measured when the machine was slower: the ratio counts, as in steps of equal time.
    other = {name: {"ce_seconds": 7.0, "longce_seconds": 14.0, "ratio": 1.5}}
    timing = {"pi": RATIO | other, "eabf": RATIO}
    runs = made_up()
    runs += [{**run, "arm": name} for run in runs if run["arm"] == "oracle"]
    found = summarize(study, runs, timing, starts())
    assert [row["seconds"] for row in found["means"] if row["arm"] == name] == [1.5, 3.0]
    (row,) = [row for row in found["differences"] if row["reading"] == "default windows"]
    assert (row["method"], row["arm"]) == ("pi", name)
    assert row["metrics"]["trained.answer_nll"]["values"] == pytest.approx([2, 0, -2])
    # LongCE's longppl is e times CE's.
    assert row["fifth_of_gain"]["longppl"] == pytest.approx(0.2)
    assert row["fifth_of_gain"]["trained.answer_nll"] == pytest.approx(0)
    shown = tables({**result, **found})[-1].rows
    assert [cells[:4] for cells in shown] == [("pi", name, "default windows", "2 / 2")]


def test_what_does_not_exist_is_none(result):
    found = the(result["differences"], method="pi", arm="oracle", reading="equal steps")["longppl"]
    assert (found["mean"], found["low"], found["values"]) == (None, None, [None] * 3)


def test_tables_show_every_row(result):
    found = tables(result)
    for table in found:
        assert {len(row) for row in table.rows} == {len(table.columns)}, table.title
    seeds, tuning, means, differences, training, curve, weights = found
    assert seeds.rows[0] == ("0 (development)", "10.0", "5.0", "90", "80", "30 of 1,000", "25")
    assert "10 parameters" in seeds.title
    assert tuning.rows[0] == ("pi", "ce", "1.009", "1.000", "0.01 (edge)")
    assert means.rows[0][:3] == ("pi", "not trained", "0")
    assert [row[:4] for row in differences.rows] == [
        ("pi", "longce", "equal steps", "2 / 2"),
        ("pi", "longce", "equal time", "2 / 3"),
        ("pi", "oracle", "equal steps", "2 / 2"),
    ]
    assert training.rows[0][:3] == ("pi", "ce", "not trained")
    assert ("pi", "longce", "2", "3.2") in [row[:4] for row in curve.rows]
    assert weights.rows[0] == ("pi", "ce", "3.000", "4.00", "50.00")


def test_one_seed_has_no_interval():
    study = STUDY.replace(seeds=(1,))
    runs = [run for run in made_up() if run["seed"] == 1]
    found = the(summarize(study, runs, TIMING, starts())["means"], method="pi", arm="ce", step=1)
    assert found["trained.answer_nll"]["low"] is found["ppl"]["low"] is None
    assert found["trained.answer_nll"]["mean"] == pytest.approx(3.9)
