"""The whole experiment on toys: what is in its folder, resume, refusals; ranks and rates by hand; the recipe."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from longlens.errors import UserError
from longlens.rope import NTK, DynamicNTK, load_model
from longlens.rope.frequencies import Rope
from longlens.settings.recipe import parse, read_yaml
from longlens.study.correlation_study.questions import TaskSettings, make_questions
from longlens.study.extension import run as experiment
from longlens.study.extension.settings import ExtensionStudy
from longlens.study.extension.summary import AVERAGE, FROZEN, TRAINED, choose_rates, rank
from longlens.study.longce import model as models_of
from longlens.study.reproduce import find_study, read_study, reproduce
from tests.study.longce.toys import write_text
from tests.tiny import byte_tokenizer

METHODS = {
    "none": {"method": "ntk", "factor": 2, "theta": 10000},
    "pi": {"method": "pi", "factor": 2},
    "clex": {"method": "clex", "factor": 2},
}
FACTS = {"stated": 2, "repeated": 1, "distance": 20}


def settings(text: str, models: Path | None = None, **changes: Any) -> Any:
    training = {"steps": 2, "documents": 2, "warmup": 0, "facts": FACTS}
    made: dict[str, Any] = {
        "small": {
            "words": {"words": 10, "keys": 4, "values": 3, "held_out": 0.2},
            "model": {"length": 16, "hidden": 16, "intermediate": 16, "layers": 2, "heads": 2, "theta": 1e4},
            "base": {**training, "learning_rate": 1e-2, "facts": {"stated": 1, "repeated": 0, "distance": 3}},
            "reaches": [{"factor": 2, "methods": METHODS}],
            "trained": ["none", "pi", "clex"],
            "training": training,
            "learning_rates": [1e-3, 1e-2],
            "evaluation": {
                "documents": 4,
                "facts": {"stated": 1, "repeated": 0, "distance": 20},
                "forms": {"lines": {"before": ["a"], "stated": 2}},
                "form_documents": 6,
                "long": 2,
                "alpha": 0.0,
                "beta": -100.0,
            },
            "short_context": {"context": 8, "stride": 8},
            "evaluator": {**training, "learning_rate": 1e-2},
            "evaluator_method": "pi",
            "development_seeds": [0],
        },
        "resamples": 100,
        "seeds": [1, 2],
        "text": text,
    }
    if models is not None:
        made["pretrained"] = {
            "model": str(models / "llama"),
            "methods": {"none": {"method": "ntk", "factor": 2, "theta": 10000}, "pi": {"method": "pi", "factor": 2}},
            "kinds": ["code"],
            "tokens": 200,
            "block": 50,
            "tasks": {"longeval": {"task": "longeval_lines", "lines": 4, "texts": 2}},
            "questions": {"longeval": 4},
            "seed": 0,
        }
    return parse(ExtensionStudy, {**made, **changes}, "test")


@pytest.fixture(scope="module")
def done(models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, Any]]:
    place = tmp_path_factory.mktemp("extension")
    text = write_text(place / "toy")
    return place / "out", text, reproduce("extension", settings(text, models), place / "out")


def test_every_method_is_measured_frozen_and_fine_tuned(done: Any) -> None:
    out, _, result = done
    assert [(row["training"], row["method"]) for row in result["means"]] == [
        *((FROZEN, name) for name in METHODS),
        *((TRAINED, name) for name in METHODS),
    ]
    assert json.loads((out / "result.json").read_text()) == result
    names = [f"2x-{method}-{rate}-0.json" for method in METHODS for rate in ("0.001", "0.01")]
    assert sorted(path.name for path in (out / "small" / "tuning").iterdir()) == sorted(names)
    rates = {row["method"]: row["learning_rate"] for row in result["rates"]}
    for method in METHODS:
        run = json.loads((out / "small" / "2" / f"trained-2x-{method}.json").read_text())
        assert run["learning_rate"] == rates[method]
        assert sorted(run["forms"]) == ["lines", "needle"]
    ppl = [row["metrics"]["prose_ppl"]["values"] for row in result["means"]]
    assert len({value for values in ppl for value in values}) == 12
    readings = {(row["method"], row["reading"]) for row in result["differences"]}
    assert ("clex", "pi") in readings
    assert ("pi", "training") in readings
    assert ("none", "trained length") in readings
    assert ("pi", "pi") not in readings
    for table in find_study("extension").tables(result):
        assert table.rows
        assert all(len(row) == len(table.columns) for row in table.rows)


def test_differences_and_averages_are_those_of_a_loop(done: Any) -> None:
    out, _, result = done
    runs = {
        (name, seed): json.loads((out / "small" / str(seed) / f"{name}.json").read_text())
        for name in ("trained-2x-clex", "frozen-2x-clex", "frozen-2x-none")
        for seed in (1, 2)
    }
    rows = {(row["method"], row["reading"]): row["metrics"] for row in result["differences"]}
    gaps = []
    for seed in (1, 2):
        forms = [
            np.mean(runs["trained-2x-clex", seed]["forms"][form]["questions"]["choice"])
            - np.mean(runs["frozen-2x-clex", seed]["forms"][form]["questions"]["choice"])
            for form in ("needle", "lines")
        ]
        gaps.append(sum(forms) / 2)
    assert rows["clex", "training"][f"{AVERAGE}.choice"]["values"] == pytest.approx(gaps)
    longer = [
        math.log(runs["frozen-2x-clex", seed]["prose_ppl"] / runs["frozen-2x-none", seed]["short_ppl"])
        for seed in (1, 2)
    ]
    assert rows["clex", "trained length"]["prose_ppl"]["values"] == pytest.approx(longer)


def test_nll_by_block_is_that_of_the_logits(done: Any, models: Path) -> None:
    _, text, result = done
    study = settings(text, models)
    (document,) = experiment.read(study).content.documents
    part = result["pretrained"]
    model = models_of.extend_model(load_model(models / "llama"), study.pretrained.methods["pi"]).eval()
    ids = torch.tensor([byte_tokenizer()(document.text, add_special_tokens=False)["input_ids"][:200]])
    with torch.no_grad():
        logprobs = model(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
    wanted = [-float(logprobs[max(0, start - 1) : start + 49].mean()) for start in range(0, 200, 50)]
    assert [row["blocks"] for row in part["nll"] if row["method"] == "pi"] == [pytest.approx(wanted, abs=1e-4)]
    assert [(row["method"], row["n"]) for row in part["tasks"]] == [("none", 4), ("pi", 4)]
    length = model.config.max_position_embeddings // 2
    assert part["own"][0]["length"] == length


def test_a_killed_run_goes_on_and_says_the_same(done: Any, models: Path, tmp_path: Path) -> None:
    out, text, result = done
    again = tmp_path / "out"
    shutil.copytree(out, again)
    gone = ("small/2/trained-2x-clex.json", "small/tuning/2x-clex-0.01-0.json", "pretrained/tasks/pi-longeval-1.json")
    for name in (*gone, "small/1/keys-2x.json", "result.json"):
        (again / name).unlink()
    shutil.rmtree(again / "small" / "1" / "base")
    torch.manual_seed(77)
    found = reproduce("extension", settings(text, models), again)
    assert {**found, "seconds": 0} == {**result, "seconds": 0}
    with pytest.raises(UserError, match=r"contains a different run: resamples is 100 there and 200 here"):
        reproduce("extension", settings(text, models, resamples=200), again)


def test_seeds_draw_the_positions_that_clex_learns_from(done: Any) -> None:
    """CLEX draws lengths and positions while it trains, from the generator that the Trainer seeds."""
    drawn = []

    class Spy(torch.nn.Module):
        def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> Any:
            drawn[-1].append(float(torch.rand(())))
            return self.inner(x, position_ids)

    _, text, _ = done
    study = settings(text).small
    for seed in (1, 1, 2):
        torch.manual_seed(3)
        models = experiment.SmallModels(study, experiment.read_text(text), None, seed)  # type: ignore[arg-type]
        model = models_of.make_model(study.model, models.text.vocabulary, 0)
        spy = Spy()
        spy.inner = model.model.rotary_emb
        model.model.rotary_emb = spy
        drawn.append([])
        models._train(model, study.training.replace(learning_rate=1e-3), 32, 2)
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_ranks_are_those_of_the_means() -> None:
    ppl = {"a": [10.0, 12.0], "b": [20.0, 9.0], "c": [30.0, 40.0], "d": [5.0, 6.0]}
    choice = {"a": [0.9, 0.8], "b": [0.5, 0.7], "c": [0.6, 0.4], "d": [0.1, 0.2]}
    columns: dict[tuple[int, str, str], Any] = {
        (2, name, TRAINED): [
            {
                "prose_ppl": ppl[name][s],
                "ppl": 1.0 + s,
                "longppl": None,
                "forms": {"needle": {"choice": choice[name][s]}},
            }
            for s in (0, 1)
        ]
        for name in ppl
    }
    rows = {(row["among"], row["metric"], row["task"]): row for row in rank(columns)}
    assert sorted({key[0] for key in rows}) == ["all", TRAINED]
    row = rows[TRAINED, "prose_ppl", "needle"]
    seeds = [spearmanr([ppl[n][s] for n in ppl], [choice[n][s] for n in ppl]).statistic for s in (0, 1)]
    assert row["over_seeds"]["values"] == pytest.approx(seeds)
    means = [math.log(ppl[n][0]) + math.log(ppl[n][1]) for n in ppl]
    assert row["spearman"] == pytest.approx(spearmanr(means, [sum(choice[n]) for n in ppl]).statistic)
    assert (row["best_by_metric"], row["best_by_task"]) == ("d trained", "a trained")
    empty = rows[TRAINED, "longppl", AVERAGE]
    assert empty["spearman"] is empty["low"] is empty["best_by_metric"] is None


def test_a_rate_is_chosen_by_tasks() -> None:
    tried = [
        {"factor": 2, "method": "pi", "learning_rate": rate, "choice_nll": nll, "ppl": ppl}
        for rate, nll, ppl in ((1e-4, 2.0, 5.0), (1e-3, 1.0, 9.0), (1e-4, 1.0, 5.0), (1e-3, 1.9, 9.0))
    ]
    assert choose_rates(tried) == {(2, "pi"): 1e-3}


def test_questions_on_one_text_ask_for_its_other_needles() -> None:
    task = TaskSettings(task="niah_multikey_1", length=3000, texts=1)
    (group,) = make_questions(task, count=4, seed=1, tokenizer=byte_tokenizer())
    assert len({question.target for question in group}) == 4
    shared = group[0].text[: group[0].text.rindex("\nWhat is the special magic")]
    for question in group:
        text, asked = question.text[: len(shared)], question.text[len(shared) :]
        assert text == shared
        (key,) = {part.split(" ")[0] for part in asked.split("number for ")[1:]}
        assert f"One of the special magic numbers for {key} is: {question.target.strip()}." in text
        assert question.choices[0].strip() == question.target.strip()


def test_dynamic_ntk_at_one_length_is_ntk_with_another_factor() -> None:
    """As the recipe says of SmolLM2: dynamic NTK with factor s has the base of NTK with ``s n / L0 - (s - 1)``."""
    rope = Rope(dim=64, theta=100000.0, length=8192)
    for factor, tokens in ((2, 16384), (4, 12288)):
        dynamic = DynamicNTK(factor=factor).frequencies(rope, tokens).inv_freq
        assert np.allclose(dynamic, NTK(factor=3).frequencies(rope).inv_freq, rtol=1e-6)


def test_the_recipe_has_the_methods_of_the_issue() -> None:
    study: Any = read_study("extension")
    assert [reach.factor for reach in study.small.reaches] == [2, 4]
    assert {"none", "pi", "yarn", "ntk", "clex", "eabf"} <= set(study.small.trained)
    assert len(study.seeds) >= 3
    content = read_yaml("extension", "studies", "small")
    for path, value, message in (
        (("small", "trained"), ["pi"], "trained is pi; expected none among them, as a baseline"),
        (("small", "evaluator_method"), "nosuch", "expected all of clex, eabf, none, nosuch, ntk, ntk-2f, pi, yarn"),
        (("seeds",), [0, 1], "expected different seeds, because learning rates are chosen with these"),
        (("pretrained", "questions"), {"vt": 2}, "questions are of vt; expected those of niah_single_1-4k"),
        (("pretrained", "block"), 1000, "tokens are 16384 and block 1000: expected a multiple of the block"),
    ):
        changed: Any = json.loads(json.dumps(content))
        inner = changed
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        with pytest.raises(UserError) as raised:
            parse(ExtensionStudy, changed, "test")
        assert message in str(raised.value)


def test_the_claims_find_their_numbers() -> None:
    """Every path of claims.yaml into this experiment's result is there, whatever the numbers are."""
    from benchmarks.claims import Evidence, read_claims

    from longlens.study.extension.summary import summarize

    study: Any = read_study("extension")
    rng = np.random.default_rng(0)

    def form() -> dict[str, Any]:
        each = {name: rng.random(6).round(3).tolist() for name in ("accuracy", "choice", "answer_nll", "choice_nll")}
        return {**{name: float(np.mean(values)) for name, values in each.items()}, "questions": each}

    def point() -> dict[str, Any]:
        names = ("ppl", "prose_ppl", "longppl", "short_ppl")
        return {"forms": {"needle": form(), "pairs": form()}, **dict(zip(names, 5 + rng.random(4), strict=True))}

    points = {
        (reach.factor, method, training, seed): point()
        for reach in study.small.reaches
        for method in ("none", "pi", "ntk", "yarn", "clex", "eabf")
        for training in (FROZEN, TRAINED)
        for seed in study.seeds
    }
    own = {seed: {"forms": point()["forms"], "parameters": 1, "text": {}} for seed in study.seeds}
    part = study.pretrained
    pretrained = {
        "rise": [{"method": name, "mean": 0.1, "low": 0.0, "high": 0.2} for name in part.methods],
        "tasks": [
            {"method": name, "task": task, "choice": 0.5, "low": 0.2} for name in part.methods for task in part.tasks
        ],
    }
    found = summarize(study.replace(resamples=100), points, own, {})
    evidence = Evidence({**found, "pretrained": pretrained})
    judged = [claim for claim in read_claims().claims if claim.experiment == "extension"]
    assert len(judged) == 10
    for claim in judged:
        assert claim.ours is not None
        assert evidence.verdict(claim.ours.rule) in ("holds", "partly", "does not hold")
        for path in claim.ours.show.values():
            assert evidence.value(f"ours:{path}") is not None
