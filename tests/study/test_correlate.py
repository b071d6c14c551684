"""Scored models and benchmark results: which belong together, what is refused, and what the numbers are of."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import longlens
from longlens.bench.engine import EngineSettings
from longlens.bench.run import run_bench
from longlens.errors import UserError
from longlens.runs.identity import ModelIdentity
from longlens.study.benchmarks import join_benchmarks
from longlens.study.correlate import correlate, write_correlation_figures
from longlens.study.correlation import correlate_columns
from tests.bench.conftest import saved
from tests.bench.fakes import FakeEngine, bench_settings
from tests.reference import correlation as naive
from tests.toys import scores, token_scores

pytestmark = pytest.mark.filterwarnings("ignore::longlens.errors.LonglensWarning")

WORDS = [f"w{place} " for place in range(12)]
NAMES = ("a", "b", "c", "d", "e")
SCORES = {"RULER": (40.0, 35.0, 50.0, 22.0, 31.0), "ICL": (10.0, 30.0, 25.0, 60.0, 41.0)}


def model(name, seed, *, shorts=False, texts=("one", "two"), **settings):
    """Scores of two documents that are drawn."""
    rng = np.random.default_rng(seed)
    rows = []
    for id in texts:
        pieces = [f"{id} ", *WORDS, *WORDS]
        long = -rng.exponential(1.0, len(pieces))
        long[0] = np.nan
        short = np.where(np.arange(len(pieces)) < 4, np.nan, long - rng.normal(1.5, 2, len(pieces))) if shorts else None
        rows.append(token_scores(pieces, long, short, id=id))
    return scores(*rows, name=name, **settings)


@pytest.fixture
def models():
    return [model(name, seed) for seed, name in enumerate(NAMES)]


@pytest.fixture
def evaluator():
    return model("evaluator", 99, shorts=True)


@pytest.fixture
def table(tmp_path):
    lines = [
        "model,family,RULER,ICL",
        *(f"{n},{'x' if n < 'c' else 'y'},{r},{i}" for n, r, i in zip(NAMES, *SCORES.values(), strict=True)),
    ]
    path = tmp_path / "scores.csv"
    path.write_text("\n".join(lines))
    return path


def bench(place, manifest_of, *, right, mode="generate", tasks=("longeval_lines",), lengths=(700, 800), **changes):
    """A benchmark run of the model of these scores, so many of whose 4 answers are right."""

    def text(request):
        number = int(request.key.rpartition("-")[2])
        return answers[request.key] if number < right else "no idea"

    tiny = saved(place.parent / "tiny")
    answers: dict[str, str] = {}
    asked = bench_settings(tasks=list(tasks), lengths=list(lengths), samples=4, mode=mode, **changes)

    class Knows(FakeEngine):
        def answer(self, requests, on_answer):
            for path in (place / "samples").glob("*.jsonl"):
                answers.update((row["id"], row["answers"][0]) for row in map(json.loads, path.open()))
            super().answer(requests, on_answer)

    run_bench(EngineSettings(model=tiny), asked, place, open_engine=Knows(text, logprob=lambda _: -0.1 * right))
    manifest = json.loads((place / "manifest.json").read_text())
    record = manifest_of.manifest["model"]
    manifest |= {"model": record["name"], "engine": {"backend": "hf", **ModelIdentity.read(record).to_json()}}
    (place / "manifest.json").write_text(json.dumps(manifest))
    return place


def test_metrics_are_those_of_perplexity_and_coefficients_those_of_the_table(models, evaluator, table):
    found = correlate(models, [table], evaluator_scores=evaluator, alpha=1.0)
    assert found.models == list(NAMES)
    assert found.families == ["x", "x", "y", "y", "y"]
    assert found.settings == {
        "evaluator": "evaluator", "context": 4, "stride": 2, "alpha": 1.0, "beta": -2.0, "gamma": 5.0, "lcl": True
    }  # fmt: skip
    for place, run in enumerate(models):
        result = longlens.perplexity(run, evaluator_scores=evaluator, alpha=1.0, ngram=True)
        bare = longlens.perplexity(run, evaluator_scores=evaluator, alpha=1.0, use_lcl=False)
        expected = {
            "ppl": result.ppl,
            "longppl": result.longppl,
            "longppl_soft": result.longppl_soft,
            "longppl_no_lcl": bare.longppl,
            "ppl_ngram": result.ppl_ngram,
            "ppl_from_context": result.ppl_from_context,
        }
        assert {name: values[place] for name, values in found.metrics.items()} == expected
        assert expected["longppl"] != expected["longppl_no_lcl"]
    assert found.benchmarks == {name: list(values) for name, values in SCORES.items()}
    for metric, row in found.correlations.items():
        for benchmark, one in row.items():
            assert one.pearson == pytest.approx(naive.pearson(found.metrics[metric], SCORES[benchmark]), abs=1e-12)
            assert one == correlate_columns(found.metrics[metric], SCORES[benchmark], families=found.families)
    assert found.agreement["RULER"]["ICL"].spearman == pytest.approx(naive.spearman(*SCORES.values()), abs=1e-12)


def test_without_an_evaluator_there_is_no_longppl_and_with_keys_nothing_that_needs_its_scores(models, evaluator, table):
    assert list(correlate(models, [table]).metrics) == ["ppl", "ppl_ngram"]
    keys = longlens.select_key_tokens(evaluator, alpha=1.0)
    with_keys = correlate(models, [table], keys=keys)
    assert list(with_keys.metrics) == ["ppl", "longppl", "ppl_ngram", "ppl_from_context"]
    assert (
        with_keys.metrics["longppl"]
        == correlate(models, [table], evaluator_scores=evaluator, alpha=1.0).metrics["longppl"]
    )
    bare = correlate(models, [table], evaluator_scores=evaluator, use_lcl=False)
    assert "longppl_no_lcl" not in bare.metrics  # it would be LongPPL again


def test_models_are_the_same_by_weights_and_not_by_name(models, table):
    again = model("another name", 0)
    again.manifest["model"]["weights_sha256"] = "weights-a"
    with pytest.raises(UserError, match="a and another name are runs of the same model: pass one of them"):
        correlate([*models, again], [table])
    other = model("a", 7)
    other.manifest["model"]["weights_sha256"] = "others"
    found = correlate([models[0], other], {"B": {"a (1)": 1.0, "a (2)": 2.0}})
    assert found.models == ["a (1)", "a (2)"]
    assert found.benchmarks == {"B": [1.0, 2.0]}


@pytest.mark.parametrize("what", ["ids", "text"])
def test_models_on_different_documents_or_texts_are_refused(models, evaluator, table, what):
    if what == "ids":
        models[3] = model("d", 3, texts=("one", "three"))
        said = "document 'three' was scored with d and not with a: score the same documents with all"
    else:
        row = token_scores(["one ", *WORDS], [-1.0] * 13, id="one")
        models[3] = scores(row, models[3][1], name="d")
        said = "document 'one': a and d were scored on different texts"
    with pytest.raises(UserError, match=said):
        correlate(models, [table])


def test_what_a_file_does_not_join_is_said_by_name(models, tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("model,B\na,1\nb,2\nc,\nzz,4\nyy,5\n")
    found = correlate(models, [path])
    assert f"{path}: 2 of its 5 models are not among the scored models ('zz', 'yy')" in found.notes
    assert "no benchmark results of c, d, e, which are excluded" in found.notes
    assert any(note.startswith("no family was set for a, b, c, d, …, so their model type is") for note in found.notes)
    assert found.families == ["toy"] * 5
    assert found.correlations["ppl"]["B"].reason == "2 models with both values, and 3 or more are needed"
    path.write_text("model,B\nzz,4\n")
    with pytest.raises(
        UserError, match=r"no benchmark result in '.*s\.csv' belongs to one of the scored models, 'a', 'b'"
    ):
        correlate(models, [path])


def test_families_that_are_named_stand_before_those_of_a_file(models, table):
    found = correlate(models, [table], families={"a": "mine"})
    assert found.families == ["mine", "x", "y", "y", "y"]
    with pytest.raises(UserError, match="`families` names 'nosuch', which is not one of the runs: a, b, c, d, e"):
        correlate(models, [table], families={"nosuch": "x"})


def test_bench_folders_join_by_identity_whatever_the_model_is_called(models, tmp_path):
    folders = [bench(tmp_path / f"bench{n}", run, right=n) for n, run in enumerate(models)]
    for n, run in enumerate(models):
        run.manifest["model"]["name"] = f"renamed {n}"
    found = correlate(models, folders)
    assert found.benchmarks == {
        name: [0.0, 25.0, 50.0, 75.0, 100.0] for name in ("longeval_lines 700", "longeval_lines 800", "mean of 2 tasks")
    }
    assert found.correlations["ppl"]["longeval_lines 700"].n == 5
    assert found.agreement["longeval_lines 700"]["longeval_lines 800"].spearman == pytest.approx(1)


def test_forced_answers_have_a_log_probability_beside_their_score(models, tmp_path):
    folders = [
        bench(tmp_path / f"b{n}", run, right=n, mode="teacher-forced", lengths=[700]) for n, run in enumerate(models)
    ]
    found = correlate(models, folders).benchmarks
    assert list(found) == [
        "longeval_lines 700 (teacher-forced)",
        "longeval_lines 700 answer log-probability (teacher-forced)",
    ]
    assert list(found.values())[1] == pytest.approx([-0.0, -0.1, -0.2, -0.3, -0.4])


@pytest.mark.parametrize(
    "change", [{"weights_sha256": "else"}, {"cache": "window"}, {"config": {"model_type": "toy", "rope_theta": 5}}]
)
def test_results_of_another_model_of_that_name_do_not_join_and_this_is_said(models, tmp_path, change):
    folders = [bench(tmp_path / f"b{n}", run, right=n, lengths=[700]) for n, run in enumerate(models)]
    manifest = json.loads((folders[1] / "manifest.json").read_text())
    manifest["engine"] |= change
    (folders[1] / "manifest.json").write_text(json.dumps(manifest))
    found = correlate(models, folders)
    assert found.benchmarks["longeval_lines 700"] == [0.0, None, 50.0, 75.0, 100.0]
    (note,) = (note for note in found.notes if "not among the scored models" in note)
    assert note.startswith(f"{folders[1]}: its model 'b' is not among the scored models (of the run of that name: ")
    assert str(next(iter(change))) in note
    assert "no benchmark results of b, which are excluded" in found.notes


def test_another_dtype_or_engine_is_no_other_model(models, tmp_path):
    folder = bench(tmp_path / "b", models[2], right=3, lengths=[700])
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["engine"] |= {"dtype": "bfloat16", "engine": "vllm 0.32.0"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert join_benchmarks([folder], models).scores == {"longeval_lines 700": {"c": 75.0}}


def test_a_run_that_recorded_no_identity_joins_by_name_and_this_is_said(models, tmp_path):
    folder = bench(tmp_path / "b", models[2], right=3, lengths=[700])
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["engine"] = {"backend": "local-completions"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    joined = join_benchmarks([folder], models)
    assert joined.scores == {"longeval_lines 700": {"c": 75.0}}
    assert joined.notes[0] == f"{folder} and c are matched by model name: one of them recorded no identity"


def test_one_score_twice_is_refused(models, tmp_path):
    folders = [bench(tmp_path / f"b{n}", models[0], right=n, lengths=[700]) for n in range(2)]
    with pytest.raises(UserError, match=r"b0 and .*b1 both have 'longeval_lines 700' of a: pass only one of them"):
        correlate(models, folders)


def test_other_tasks_in_another_folder_are_further_columns_and_other_samples_are_said(models, tmp_path):
    folders = [bench(tmp_path / f"b{n}", run, right=n, lengths=[700]) for n, run in enumerate(models)]
    folders += [
        bench(tmp_path / f"c{n}", run, right=n, lengths=[700], tasks=["niah_single_1"], seed=7 if n == 2 else 42)
        for n, run in enumerate(models)
    ]
    found = correlate(models, folders)
    assert list(found.benchmarks)[:2] == ["longeval_lines 700", "niah_single_1 700"]
    assert "niah_single_1 700: models have different samples (seed, number, text or settings differ)" in found.notes
    assert not any(note.startswith("longeval_lines 700: models were asked") for note in found.notes)


def test_settings_in_which_runs_differ_are_part_of_a_benchmarks_name(models, tmp_path):
    folders = [
        bench(tmp_path / f"b{n}-{lines}", run, right=n, lengths=[], settings={"lines": lines})
        for n, run in enumerate(models[:3])
        for lines in (5, 9)
    ]
    found = join_benchmarks(folders, models).scores
    assert list(found) == ["longeval_lines lines=5", "longeval_lines lines=9", "mean of 2 tasks"]
    assert found["longeval_lines lines=9"] == {"a": 0.0, "b": 25.0, "c": 50.0}


def test_a_folder_that_is_no_benchmark_run_is_refused(models, tmp_path):
    with pytest.raises(UserError, match="is not a benchmark run: pass the directory of longlens bench run"):
        correlate(models, [tmp_path])
    with pytest.raises(UserError, match="no runs to correlate"):
        correlate([], [tmp_path])


def test_figures_are_scatter_plots_by_family_and_a_map_of_benchmarks(models, evaluator, table, tmp_path):
    found = correlate(models, [table], evaluator_scores=evaluator, alpha=1.0)
    written = write_correlation_figures(found, tmp_path / "figures", formats=["svg"])
    assert [path.name for path in written] == [
        "longppl-1-ruler.svg", "ppl-1-ruler.svg", "longppl-2-icl.svg", "ppl-2-icl.svg", "benchmarks.svg"
    ]  # fmt: skip
    drawn = written[0].read_text()
    r = found.correlations["longppl"]["RULER"].pearson
    assert f"LongPPL and RULER, r = {r:.2f}" in drawn
    assert all(f">{name}<" in drawn for name in (*NAMES, "x", "y"))
    again = write_correlation_figures(found, tmp_path / "again", formats=["svg"])
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in written]
    assert f">{found.agreement['RULER']['ICL'].spearman:.2f}<" in written[-1].read_text().replace("−", "-")


def test_nothing_is_nan_in_the_json_of_few_models(models, evaluator, table):
    for count in (1, 2, 3, 4):
        found = correlate(models[:count], [table], evaluator_scores=evaluator, alpha=1.0)
        content = json.loads(json.dumps(found.to_json(), allow_nan=False))
        assert content["num_models"] == count
        one = content["metrics"]["longppl"]["RULER"]
        assert (one["pearson"] is None) == (count < 3)
        assert one["interval"] is None
        assert one["reason"] is not None
    assert math.isfinite(one["pearson"])


def test_it_is_a_function_of_the_package():
    assert longlens.correlate is correlate
