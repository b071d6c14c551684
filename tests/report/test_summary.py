import csv
import io
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from longlens.errors import UserError
from longlens.report import summarize_runs
from longlens.report.charts import charts
from longlens.report.summary import positions
from longlens.study.benchmarks import read_scores
from longlens.study.correlation import BenchmarkScores, correlate_columns
from tests.report import conftest as made
from tests.report.conftest import SHORT, summarized
from tests.toys import scores, token_scores

pytestmark = pytest.mark.filterwarnings("ignore::longlens.errors.LonglensWarning")


def test_there_have_to_be_runs():
    with pytest.raises(UserError, match="no scores to report: score documents first, with longlens score"):
        summarize_runs([])


def test_without_an_evaluator_the_first_run_with_short_scores_is_it_and_this_is_said(models):
    summary = summarized(models)
    assert summary.evaluator is summary.runs[2]
    assert [run.name for run in summary.compared] == ["base", "other", "own"]
    assert "no evaluator was named, so own selects the key tokens" in summary.notes[0]
    assert any(note.startswith("own is its own evaluator") for note in summary.notes)
    assert all(run.thresholds is not None for run in summary.runs)


def test_without_any_short_scores_there_is_no_evaluator_and_no_note_of_one(models):
    summary = summarized(models[:2])
    assert (summary.evaluator, summary.keys) == (None, None)
    assert all(run.thresholds is None and run.result.longppl is None for run in summary.runs)
    assert not any("evaluator" in note for note in summary.notes)
    assert {chart.name for chart in charts(summary)} == {"logprob-position"}


def test_another_evaluator_is_shown_last_and_not_compared(models, evaluator):
    summary = summarized(models, evaluator_scores=evaluator)
    assert [run.name for run in summary.runs] == ["base", "other", "own", "evaluator"]
    assert summary.evaluator is summary.runs[3]
    assert (summary.runs[3].result, summary.runs[3].thresholds) == (None, None)
    assert [run.name for run in summary.compared] == ["base", "other", "own"]
    assert [(pair.model, pair.baseline) for pair in summary.pairs] == [("other", "base"), ("own", "base")]
    printed = summary.to_json()
    assert printed["evaluator"] == "evaluator"
    assert [result["name"] for result in printed["results"]] == ["base", "other", "own"]
    assert [each["name"] for each in printed["distributions"]] == ["base", "other", "own", "evaluator"]


def test_the_evaluator_as_another_object_of_the_same_folder_is_shown_once(texts, tmp_path):
    one, two = (made.run(texts, "m", 1, contexts=[SHORT]) for _ in range(2))
    one.folder, two.folder = tmp_path / "x", tmp_path / "y" / ".." / "x"
    summary = summarized([one], evaluator_scores=two)
    assert [run.name for run in summary.runs] == ["m"]
    assert summary.evaluator is summary.runs[0]
    two.folder = tmp_path / "z"
    assert len({run.name for run in summarized([one], evaluator_scores=two).runs}) == 2


def test_two_runs_of_one_model_have_different_names_everywhere(texts, tmp_path):
    runs = [made.run(texts, "m", seed, contexts=[SHORT]) for seed in (1, 2, 3)]
    runs[0].folder, runs[1].folder = tmp_path / "x", tmp_path / "y"
    summary = summarized(runs, evaluator_scores=runs[2])
    assert [run.name for run in summary.runs] == ["m (x)", "m (y)", "m (3)"]
    assert [pair.model for pair in summary.pairs] == ["m (y)", "m (3)"]
    runs[1].folder = tmp_path / "other" / "x"  # two folders of one name
    assert len({run.name for run in summarized(runs[:2]).runs}) == 2


def test_names_agree_where_the_evaluator_is_of_a_compared_model(texts):
    model, again = made.run(texts, "m", 1), made.run(texts, "m", 2, contexts=[SHORT])
    other = made.run(texts, "n", 3)
    summary = summarized([model, other], evaluator_scores=again, benchmarks={"B": {"m": 1.0, "n": 2.0}})
    names = [run.name for run in summary.compared]
    assert [summary.pairs[0].baseline, summary.pairs[0].model] == names
    (chart,) = (chart for chart in charts(summary) if chart.title == "LongPPL and B")
    assert [series.name for series in chart.series] == names


@pytest.mark.parametrize("value", [2.0, 2.1, 1.95, 0.0, 8.0, -3.0, 12.5, 1 / 3, math.pi, 0.1 + 0.2, -2.0, -25.0, -0.05])
@pytest.mark.parametrize(("low", "high"), [(0.0, 8.0), (-10.0, 0.0)])
def test_a_slider_can_stand_exactly_at_the_threshold_and_every_step_from_it(value, low, high):
    found = positions(value, low, high)
    assert value in found.tolist()
    assert found[0] <= min(value, low) + 1e-9
    assert found[-1] >= max(value, high) - 1e-9
    assert len(found) <= 10 * (max(value, high) - min(value, low)) + 3
    np.testing.assert_allclose(np.diff(found), 0.1, atol=1e-9)


def test_positions_are_the_numbers_that_a_user_writes():
    assert positions(2.0, 0.0, 8.0).tolist() == [number / 10 for number in range(81)]
    assert positions(-2.0, -10.0, 0.0).tolist() == [number / 10 for number in range(-100, 1)]


def test_benchmarks_are_read_with_gaps_quotes_and_empty_lines(tmp_path):
    names = ["base", 'a "quoted", model', "third"]
    text = io.StringIO()
    rows = [["model", "LongBench", "R,U"], ["base", "20.5", ""], [], [names[1], " 1e1 ", "-3"]]
    csv.writer(text).writerows(rows)
    (tmp_path / "b.csv").write_bytes(("\ufeff" + text.getvalue()).encode())
    found = read_scores(tmp_path / "b.csv")
    assert found.scores == {"LongBench": {"base": 20.5, names[1]: 10.0}, "R,U": {names[1]: -3.0}}
    assert found.models == names[:2]
    (tmp_path / "b.csv").write_text("model,LongBench,family\nbase,1,Llama\nother,2,\n")
    assert read_scores(tmp_path / "b.csv") == (
        {"LongBench": {"base": 1.0, "other": 2.0}},
        {"base": "Llama"},
        ["base", "other"],
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"b\.csv begins with \[\], expected a line such as model,LongBench,RULER"),
        (b"model\nbase\n", r"begins with \['model'\]"),
        (b"name,B\nbase,1\n", r"begins with \['name', 'B'\]"),
        (b"model,B,B\nbase,1,2\n", "expected a line such as"),
        (b"model,,B\nbase,1,2\n", "expected a line such as"),
        (b"model,B\nbase,1,2\n", r"b\.csv:2: 3 cells, expected 2 as in its first line"),
        (b"model,B\nbase,1\nbase,2\n", r"b\.csv:3: model 'base' occurs twice"),
        (b"model,family\nbase,1\n", r"begins with \['model', 'family'\]"),
        (b"model,B\n,1\n", r"b\.csv:2: no model is named"),
        (b"model,B\nbase,high\n", r"b\.csv:2: 'high' is not a number"),
        (b"model,B\nbase,nan\n", r"b\.csv:2: 'nan' is not a finite number; leave the cell empty if there is no value"),
        (b"model,B\nbase,-inf\n", "'-inf' is not a finite number"),
        (
            b"model,B\nbase,\xff\n",
            r"cannot read .*b\.csv: .*Expected CSV with the column model and one column per benchmark",
        ),
        (b'model,B\n"base,1\n', r"cannot read .*b\.csv"),
        (None, r"cannot read .*b\.csv: .*No such file"),
    ],
)
def test_what_is_wrong_in_a_file_of_benchmarks_is_said_with_its_line(content, said, tmp_path):
    if content is not None:
        (tmp_path / "b.csv").write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_scores(tmp_path / "b.csv")


def captions(scored, count):
    """The caption of the chart of PPL and a benchmark, and its points."""
    runs = [scores(token_scores(["a", "b"], [-0.5 * n, -1.0]), name=f"m{n}") for n in range(1, count + 1)]
    summary = summarized(runs, benchmarks={"B": {f"m{n + 1}": value for n, value in enumerate(scored)}})
    (chart,) = (chart for chart in charts(summary) if chart.name == "ppl-1-b")
    assert chart.title.startswith("PPL and B")
    return chart.caption, [series.x[0] for series in chart.series], [series.y[0] for series in chart.series]


def test_the_correlation_with_a_benchmark_is_that_of_the_study():
    caption, x, y = captions([10.0, 30.0, 25.0, 60.0, 41.0], 5)
    found = correlate_columns(x, y)
    low, high = found.interval
    assert caption == (
        f"Pearson r = {stats.pearsonr(x, y).statistic:.2f} over 5 models, 95 % interval [{low:.2f}, {high:.2f}], "
        f"p = {found.p:.2g}."
    )
    caption, x, y = captions([10.0, 30.0, 25.0], 3)
    assert caption == f"Pearson r = {stats.pearsonr(x, y).statistic:.2f} over 3 models, p = 0.67."


def test_too_few_models_and_equal_scores_have_no_correlation():
    assert captions([10.0, 30.0], 2)[0] == "No correlation: 2 models with both values, and 3 or more are needed."
    assert captions([10.0, 10.0, 10.0], 4)[0] == "No correlation: the score is the same for all 3 models."
    assert captions([10.0], 2)[0].startswith("No correlation: 1 model with both values")


def test_a_summary_has_the_correlations_of_all_its_perplexities_and_what_did_not_join(models, evaluator):
    joined = BenchmarkScores(scores={"B": {"base": 1.0, "other": 3.0, "own": 2.0}}, notes=["b.csv: said"])
    summary = summarized(models, evaluator_scores=evaluator, benchmarks=joined)
    assert "b.csv: said" in summary.notes
    assert list(summary.correlations.correlations) == ["ppl", "longppl", "longppl_soft", "ppl_from_context"]
    values = [run.result.longppl for run in summary.compared]
    expected = correlate_columns(values, [1.0, 3.0, 2.0])
    assert summary.correlations.correlations["longppl"]["B"] == expected
    assert summary.to_json()["correlations"]["metrics"]["longppl"]["B"] == expected.to_json()
    assert summarized(models, evaluator_scores=evaluator).correlations is None


def test_answers_split_the_distributions(models, evaluator):
    summary = summarized(models[2:], evaluator_scores=evaluator, answers={"one": [(200, 300)]})
    (chart,) = (chart for chart in charts(summary) if chart.name == "lsd-classes")
    assert [series.name.split(" (")[0] for series in chart.series] == [
        f"{name}{group}" for name in ("own", "evaluator") for group in (", answers", ", other tokens")
    ]
    for series in chart.series:
        assert sum(series.y) == pytest.approx(100)


def test_an_infinite_perplexity_is_no_point_of_a_chart():
    row = token_scores(["a", "b"], [-1.0, -1.0])
    impossible = replace(row, long_logprobs=np.array([-1.0, -np.inf], dtype=np.float32))
    runs = [scores(row, name="m1"), scores(impossible, name="m2")]
    summary = summarized(runs, benchmarks={"B": {"m1": 1.0, "m2": 2.0}})
    (chart,) = (chart for chart in charts(summary) if chart.name == "ppl-1-b")
    assert [series.name for series in chart.series] == ["m1"]
