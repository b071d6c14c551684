"""The whole experiment on tiny models: what is in its folder, resume, refusals, and the baselines by hand."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import longlens
from longlens.errors import UserError
from longlens.scoring.reader import open_scores
from longlens.scoring.transformers import ContinuationScorer
from longlens.settings.recipe import parse, read_yaml
from longlens.study import texts
from longlens.study.correlation_study import run as experiment
from longlens.study.correlation_study.questions import TaskSettings, make_questions
from longlens.study.correlation_study.variants import VariantSettings
from longlens.study.reproduce import find_study, read_study, reproduce
from longlens.study.tuning import Tuning, training_rows
from tests.tiny import byte_tokenizer


def settings(models: Path, **changes: Any) -> Any:
    tuning = {"data": "retrieval", "loss": "longce", "steps": 2, "rows": 1, "length": 200, "learning_rate": 1e-2}
    made = {
        "families": {
            "one": {
                "model": str(models / "llama"),
                "variants": {"base": {}, "window": {"window": 20}, "hot": {"temperature": 3.0}},
            },
            "two": {
                "model": str(models / "other"),
                "variants": {"base": {}, "tuned": {"training": "codes"}, "rough": {"bits": 2}},
                "tuning": {"codes": {**tuning, "context": 32}},
            },
        },
        "documents": 1,
        "tokens": 120,
        "context": 24,
        "stride": 12,
        "share_documents": 2,
        "questions": 2,
        "subsets": 3,
        "tasks": {"longeval": {"task": "longeval_lines", "lines": 10, "texts": 1}},
        "seeds": [1],
    }
    return parse(experiment.CorrelationStudy, {**made, **changes}, "test")


@pytest.fixture(scope="module")
def done(models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, dict[str, Any]]:
    out = tmp_path_factory.mktemp("correlation") / "out"
    study = settings(models)
    return out, study, reproduce("correlation", study, out)


def test_every_variant_has_metrics_and_scores(done: Any) -> None:
    out, _, result = done
    assert [(row["family"], row["variant"]) for row in result["variants"]] == [
        *(("one", name) for name in ("base", "window", "hot")),
        *(("two", name) for name in ("base", "tuned", "rough")),
    ]
    assert json.loads((out / "result.json").read_text()) == result
    ppl = {(row["family"], row["variant"]): row["metrics"]["ppl"] for row in result["variants"]}
    assert len(set(ppl.values())) == 6
    answers = [row["tasks"]["longeval"] for row in result["variants"]]
    assert {(found["n"], found["chance"]) for found in answers} == {(2, 0.1)}
    # A temperature leaves what is the most probable token.
    assert answers[0]["exact"] == answers[2]["exact"]
    assert set(result["random"]) <= {"average choice", "average exact"}
    for table in find_study("correlation").tables(result):
        assert all(len(row) == len(table.columns) for row in table.rows)


def test_baselines_are_those_of_a_loop(done: Any) -> None:
    out, study, result = done
    documents = experiment.read(study).content
    row = result["variants"][1]
    mine, theirs = open_scores(out / "scores" / "one-window"), open_scores(out / "evaluators" / "one")
    late, likely = [], []
    for document in documents:
        ours, other = mine.get(document.id), theirs.get(document.id)
        for value, short, long in zip(ours.long_logprobs, other.short_logprobs, other.long_logprobs, strict=True):
            if not math.isnan(short):
                late.append(float(value))
                if long > -2:
                    likely.append(float(value))
    assert row["metrics"]["ppl_from_context"] == pytest.approx(math.exp(-np.mean(late)), rel=1e-6)
    wanted = math.exp(-np.mean(likely)) if likely else None
    assert row["metrics"]["lcl_only"] == (wanted if wanted is None else pytest.approx(wanted, rel=1e-6))
    assert len(row["metrics"]["random"]) == 3


def test_gains_by_kind_of_text_are_those_of_a_loop(done: Any) -> None:
    out, study, result = done
    scores = open_scores(out / "evaluators" / "one")
    kinds: dict[str, list[float]] = {}
    for document in experiment.read(study).content:
        found = scores.get(document.id)
        for short, long in zip(found.short_logprobs, found.long_logprobs, strict=True):
            if not math.isnan(short):
                kinds.setdefault(document.metadata["kind"], []).append(float(long) - float(short))
    rows = [row for row in result["lsd"] if row["family"] == "one"]
    assert [row["kind"] for row in rows] == list(kinds)
    for row in rows:
        lsd = kinds[row["kind"]]
        assert row["num_tokens"] == len(lsd)
        assert row["above_2"] == pytest.approx(100 * sum(x > 2 for x in lsd) / len(lsd))
        assert row["below_half"] == pytest.approx(100 * sum(x < 0.5 for x in lsd) / len(lsd))


def test_longppl_at_other_thresholds_is_that_of_a_loop(
    done: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, study, _ = done
    again = tmp_path / "out"
    shutil.copytree(out, again)
    (again / "metrics" / "one-window.json").unlink()
    # Tiny models find no token likely: with the paper's beta there is no key token.
    monkeypatch.setattr(experiment, "THRESHOLDS", {"longppl, alpha 1, beta -1": (1, -20)})
    result = reproduce("correlation", study, again)
    mine, theirs = open_scores(out / "scores" / "one-window"), open_scores(out / "evaluators" / "one")
    keys = []
    for document in experiment.read(study).content:
        ours, other = mine.get(document.id), theirs.get(document.id)
        for value, short, long in zip(ours.long_logprobs, other.short_logprobs, other.long_logprobs, strict=True):
            if not math.isnan(short) and long - short > 1 and long > -20:
                keys.append(float(value))
    assert result["variants"][1]["metrics"]["longppl, alpha 1, beta -1"] == pytest.approx(math.exp(-np.mean(keys)))


def test_a_variant_evaluates_itself(done: Any, models: Path) -> None:
    _, study, result = done
    documents = experiment.read(study).content[::2]
    base = experiment._load(str(models / "other"))
    scorer = ContinuationScorer(experiment.make_variant(base.model, VariantSettings(bits=2)), base.tokenizer)
    scores = longlens.score(documents, scorer, context=24, stride=24)
    found = longlens.perplexity(scores, evaluator_scores=scores)
    total = sum(int(np.isfinite(scores.get(document.id).short_logprobs).sum()) for document in documents)
    metrics = result["variants"][5]["metrics"]
    assert metrics["key_share"] == pytest.approx(found.num_key_tokens / total)
    assert metrics["longppl_self"] == pytest.approx(found.longppl)


def test_a_killed_run_goes_on_and_says_the_same(done: Any, tmp_path: Path) -> None:
    out, study, result = done
    again = tmp_path / "out"
    shutil.copytree(out, again)
    for name in ("metrics/one-hot.json", "tasks/two-rough/longeval-1.json", "result.json"):
        (again / name).unlink()
    shutil.rmtree(again / "scores" / "one-hot")
    found = reproduce("correlation", study, again)
    assert {**found, "seconds": 0} == {**result, "seconds": 0}


def test_seeds_that_are_added_are_asked_too(done: Any, models: Path, tmp_path: Path) -> None:
    out, _, result = done
    again = tmp_path / "out"
    shutil.copytree(out, again)
    both = reproduce("correlation", settings(models, seeds=[1, 2]), again)
    alone = reproduce("correlation", settings(models, seeds=[2]), again)
    for one, two, mean in zip(result["variants"], alone["variants"], both["variants"], strict=True):
        first, second, found = (row["tasks"]["longeval"] for row in (one, two, mean))
        assert found["n"] == 4
        assert first["nll"] != second["nll"]
        assert found["nll"] == pytest.approx((first["nll"] + second["nll"]) / 2)
        assert mean["metrics"] == one["metrics"]


def test_other_settings_are_refused(done: Any, models: Path) -> None:
    out, _, _ = done
    with pytest.raises(UserError, match=r"contains a different run: context is 24 there and 30 here"):
        reproduce("correlation", settings(models, context=30), out)


def test_the_overview_counts_tasks(models: Path) -> None:
    rng = np.random.default_rng(4)
    study = settings(models, tasks={name: {"task": "longeval_lines", "lines": 10} for name in "abcd"})
    rows = []
    for number in range(12):
        skill = rng.normal()
        scores = {name: skill * (name != "d") + 0.2 * rng.normal() for name in "abcd"}
        scores["d"] = rng.normal()
        metrics = {"ppl": math.exp(rng.normal()), "longppl": math.exp(-skill), "random": rng.uniform(2, 3, 3).tolist()}
        tasks = {name: {"choice": value, "exact": value > 0} for name, value in scores.items()}
        rows.append({"family": ("one", "two")[number % 2], "variant": str(number), "metrics": metrics, "tasks": tasks})
    found = experiment.summarize(study, rows)
    for row in found["overview"]:
        cells = [found["pooled"]["metrics"][row["metric"]][f"{name} {row['kind']}"] for name in "abcd"]
        assert row["tasks"] == 4
        assert row["zero_inside"] == sum(cell["interval"][0] <= 0 <= cell["interval"][1] for cell in cells)
        assert row["below_minus_half"] == sum(cell["interval"][1] < -0.5 for cell in cells)
        assert row["large"] == sum(abs(cell["pearson"]) > 0.5 for cell in cells)
        r = [found["pooled"]["metrics"]["longppl"][f"{name} {row['kind']}"]["pearson"] for name in "abcd"]
        assert row["near_longppl"] == sum(abs(a["pearson"] - b) <= 0.1 for a, b in zip(cells, r, strict=True))
        assert row["weaker"] == sum(abs(a["pearson"]) < abs(b) for a, b in zip(cells, r, strict=True))
        assert row["weaker_by_test"] <= row["weaker"]
    (ppl,) = (row for row in found["overview"] if (row["metric"], row["kind"]) == ("ppl", "choice"))
    assert ppl["weaker_by_test"] >= 3
    (mine,) = (row for row in found["overview"] if (row["metric"], row["kind"]) == ("longppl", "choice"))
    tests = [found["pooled"]["tests"]["longppl"][f"{name} choice"] for name in "abcd"]
    assert mine["below_minus_half"] == 3
    assert mine["below_ppl"] == sum(test["p"] < 0.05 and test["difference"] < 0 for test in tests) >= 3
    spread = {row["task"]: row for row in found["tasks"] if row["kind"] == "exact"}
    right = [row["tasks"]["a"]["exact"] for row in rows]
    assert spread["a"]["mean"] == pytest.approx(100 * np.mean(right))
    assert spread["a"]["above_90"] == pytest.approx(100 * np.mean(right))
    (agreed,) = (row for row in found["agreement"] if row["kind"] == "choice")
    # Three of six pairs are of tasks that measure the same.
    assert (agreed["pairs"], agreed["below_half"]) == (6, 50)


def test_standardising_takes_families_apart() -> None:
    found = experiment._standardise([1.0, 3.0, 10.0, 30.0, 20.0, None], families=["a", "a", "b", "b", "b", "b"])
    assert found[:2] == [-1.0, 1.0]
    assert found[5] is None
    assert found[2:5] == pytest.approx([-1.2247449, 1.2247449, 0.0])
    assert experiment._standardise([2.0, 2.0], families=["a", "a"]) == [None, None]


def test_the_recipe_has_the_variants_of_the_issue() -> None:
    study: Any = read_study("correlation")
    assert {name: len(family.variants) for name, family in study.families.items()} == {"gemma3-270m": 9, "smollm2": 10}
    assert study.documents * 4 == 24
    content = read_yaml("correlation", "studies", "families")
    content["families"]["smollm2"]["variants"]["base"] = {"training": "none"}
    with pytest.raises(UserError, match="has the weights of 'none', which tuning does not have"):
        parse(experiment.CorrelationStudy, content, "test")


def test_keys_that_the_examples_answer_are_not_asked_for() -> None:
    task = TaskSettings(task="json_kv", length=1500, texts=1)
    (group,) = make_questions(task, count=3, seed=3, tokenizer=byte_tokenizer())
    for question in group:
        assert len(question.choices) == 10
        assert question.text.count(question.target.strip()) == 1
        assert question.choices[0].strip() in question.target


@pytest.mark.parametrize("data", ["short", "retrieval"])
def test_training_rows_are_of_other_texts(data: str) -> None:
    tokenizer = byte_tokenizer()
    tuning = Tuning(data=data, steps=2, rows=2, length=600, learning_rate=1e-3)
    rows = training_rows(tokenizer, tuning)
    assert [len(row) for row in rows] == [600] * 4
    assert rows == training_rows(tokenizer, tuning)
    documents = texts.four_kinds(tokenizer, count=6, tokens=2000)
    joined = "\0".join(texts.training_prose())
    assert not [document.id for document in documents if document.text[500:800] in joined]
    assert len({document.text[500:800] for document in documents}) == 24
    for one in documents:
        assert sum(one.text[500:800] in other.text for other in documents) == 1
    if data == "retrieval":
        said = [tokenizer.decode(row, skip_special_tokens=True) for row in rows]
        assert all("The code of station " in text for text in said)
