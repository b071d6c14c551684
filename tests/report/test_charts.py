"""What the charts show of reach: curves, marks, and the words beside them."""

import numpy as np
import pytest

from longlens.report import summarize_runs
from longlens.report.charts import charts
from tests.metrics.test_reach import evaluator, run

pytestmark = pytest.mark.filterwarnings("ignore::longlens.LonglensWarning")


def drawn(summary):
    return {chart.name: chart for chart in charts(summary)}


def test_reach_is_a_curve_of_points_with_intervals_and_a_fit_and_a_mark_at_r():
    # a step of gain at K=8, less of it at K=16: the fit hides the drop, the words say it
    gains = [0, 0.5, 0.4]
    summary = summarize_runs([run(gains, name="M", noise=0.01)], evaluator_scores=evaluator())
    chart = drawn(summary)["reach-all"]
    points, fit = chart.series
    reached = summary.runs[0].reach.all
    assert (points.style, fit.style) == ("points", "line")
    assert chart.x.log
    assert (points.x, points.y) == ([4, 8, 16], list(reached.gains))
    assert np.all(np.array(points.low) <= points.y)
    assert np.all(np.array(points.high) >= points.y)
    assert fit.y == list(reached.fit) == sorted(fit.y)
    assert [mark.x for mark in chart.marks] == [reached.reach]
    assert chart.marks[0].label == f"M: {reached.reach:,.0f} tokens"
    assert f"drops that the fit hides: 8 to 16: {reached.drops[0].nats:.3f} nats" in chart.caption
    assert f"largest gain {reached.max_gain:.3f} nats ({reached.max_gain_interval[0]:.3f} to" in chart.caption
    assert "nats" in chart.y.label
    assert "tokens" in chart.x.label


def test_the_key_curve_names_who_selected_the_tokens():
    summary = summarize_runs([run(name="M")], evaluator_scores=evaluator(name="E"))
    found = drawn(summary)
    assert "Key at the smallest K, by E." in found["reach-keys"].caption
    assert "Key at" not in found["reach-all"].caption


def test_a_censored_reach_is_a_lower_bound_and_no_gain_is_no_reach():
    rising = drawn(summarize_runs([run([0, 0.1, 1.0], name="M")], evaluator_scores=evaluator()))["reach-all"]
    assert "reach ≥ " in rising.caption
    assert rising.marks[0].label.startswith("M: ≥ ")
    flat = drawn(summarize_runs([run([0, 0, 0], name="M")], evaluator_scores=evaluator()))["reach-all"]
    assert "M: reach none: no gain that can be told from 0" in flat.caption
    assert flat.marks == []


def test_a_model_is_measured_by_another_one_with_the_same_contexts():
    summary = summarize_runs([run([0, 1, 2], name="A"), run([0, 0.5, 1], name="B")], evaluator_scores=evaluator())
    assert "B: reach" in (caption := drawn(summary)["reach-all"].caption)
    assert "50% of A's" in caption
    assert "200% of B's" in caption


def test_too_few_contexts_are_no_chart_and_a_stride_too_long_is_said():
    two = run([0, 1], name="M", contexts=(4, 8))
    assert "reach-all" not in drawn(summarize_runs([two], evaluator_scores=evaluator()))
    coarse = run(name="M", divisor=1)
    notes = summarize_runs([coarse], evaluator_scores=evaluator()).notes
    assert any("no context reach of M: " in note and "d <= K/2" in note for note in notes)
