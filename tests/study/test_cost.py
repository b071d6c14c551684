"""``longlens study reproduce cost`` on tiny models: what is timed gives the scorers' values, and a run resumes."""

import json
import shutil

import numpy as np
import pytest

from longlens import load_scorer, perplexity, score
from longlens.errors import UserError
from longlens.study import cost
from longlens.study.cost import CostSettings, Way, Window, summarize, tables, ways
from longlens.study.reproduce import reproduce

TEXT = "".join(np.random.default_rng(0).choice(list("abcdef "), 700))


def settings_of(models, **changes):
    """Two rounds on one document of tiny models."""
    values = {
        "model": str(models / "llama"),
        "evaluator": str(models / "other"),
        "documents": [str(models.parent / "texts-of-cost")],
        "samples": 1,
        "lengths": [120, 200],
        "windows": [{"context": 40, "stride": 10}, {"context": 40, "stride": 40}],
        "alpha": 0.5,
        "beta": -100.0,
        "dtype": "float32",
        "seeds": [1, 2],
    }
    return CostSettings(**{**values, **changes})


@pytest.fixture(scope="module")
def texts(models):
    folder = models.parent / "texts-of-cost"
    folder.mkdir()
    (folder / "a.txt").write_text(TEXT[:150])  # too short, and so left out
    (folder / "b.txt").write_text(TEXT)
    return folder


@pytest.fixture(scope="module")
def done(models, texts, tmp_path_factory):
    out = tmp_path_factory.mktemp("cost") / "out"
    return out, reproduce("cost", settings_of(models), out)


def test_a_round_times_each_way_to_the_value_of_the_scorers(done, models):
    out, result = done
    text = TEXT[:200]  # a byte a token
    evaluator = load_scorer(str(models / "other"), dtype="float32")
    scores = score([text], load_scorer(str(models / "llama"), dtype="float32"), context=None)
    (row,) = [found for found in result["lengths"] if found["length"] == 200]
    assert row["model_tokens"] == 200
    ppl, offline, *online = row["rows"]
    assert ppl["longppl"] is None
    for found, window in zip(online, [(40, 10), (40, 40)], strict=True):
        evaluated = score([text], evaluator, context=window[0], stride=window[1])
        truth = perplexity(scores, evaluator_scores=evaluated, alpha=0.5, beta=-100.0)
        assert (found["ppl"], found["longppl"]) == (truth.ppl, truth.longppl)
        assert found["num_key_tokens"] == truth.num_key_tokens
    assert (offline["longppl"], offline["num_key_tokens"]) == (online[0]["longppl"], online[0]["num_key_tokens"])
    assert online[0]["num_key_tokens"] != online[1]["num_key_tokens"]
    assert sorted(path.name for path in (out / "rounds").iterdir()) == [
        f"{length}-{seed}.json" for length in (120, 200) for seed in (1, 2)
    ]


def test_orders_of_rounds_differ_and_repeat(done):
    out, _ = done
    orders = [list(json.loads(path.read_text())["ways"]) for path in sorted((out / "rounds").glob("200-*"))]
    assert orders[0] != orders[1]
    assert {name for order in orders for name in order} == {"ppl", "offline", "online-40-10", "online-40-40"}


def test_a_ratio_is_of_one_round_and_the_median_of_them(models):
    settings = settings_of(models, seeds=[1, 2, 3])

    def one(ppl, online):
        seconds = {"ppl": ppl, "offline": ppl, "online-40-10": online, "online-40-40": 1.0}
        values = {"ppl": 2.0, "longppl": 3.0, "num_key_tokens": 5}
        return {"tokens": [70], "ways": {name: {"seconds": value, **values} for name, value in seconds.items()}}

    class Plan:
        def __init__(self, seconds):
            self.seconds = seconds

    def plan(role, length, window):
        assert (role, length) in {("model", 70), ("evaluator", 200)}
        return Plan(2.0 if window is None else 100.0 / window.stride)

    # A machine that slows down for a whole round does not move its ratio: 4, 3, 5, where medians have 30 / 2.
    found = summarize(settings, 200, [one(1.0, 4.0), one(10.0, 30.0), one(2.0, 10.0)], plan)
    online = found["rows"][2]
    assert online["ratio"] == {"median": 4.0, "low": 3.0, "high": 5.0}
    assert online["seconds"]["median"] == 10.0
    assert (online["planned_seconds"], online["planned_ratio"]) == (12.0, 6.0)


def test_tables_have_the_form_of_table_12(done):
    ours, published = tables(done[1])
    assert [row[:3] for row in ours.rows] == [[str(n), "40", str(d)] for n in (120, 200) for d in (10, 40)]
    assert all(len(row) == len(ours.columns) for row in ours.rows)
    assert published.rows[0] == ["Mistral-7B", "2.8", "11.3 (+8.5, +304 %)", "56.4 (+53.6, +2014 %)"]


def test_arithmetic_of_the_papers_own_setting(done):
    # Weights but for embeddings, tokens, and n (n + 1) / 2 scores of 32 layers, each twice 4096 products.
    def pass_over(head, tokens, windows, scored):
        weights = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
        attention = windows * 32 * 4 * 4096 * (tokens * (tokens + 1) / 2)
        return 2 * weights * tokens * windows + attention + 2 * 4096 * head * scored

    n = 32768
    model = pass_over(32000, n, 1, n - 1)
    # BOS before the text and before each window; blocks of 1024 tokens from 4096 on.
    evaluator = pass_over(128256, n, 1, n) + pass_over(128256, 5120, 28, n - 4096)
    assert done[1]["published_setting"]["arithmetic_ratio"] == pytest.approx((model + evaluator) / model, rel=0.01)


def test_a_finished_study_is_not_timed_again(done, tmp_path, models, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(done[0], out)
    (out / "rounds" / "200-2.json").unlink()
    scored = []
    real = cost.score
    monkeypatch.setattr(cost, "score", lambda *a, **k: scored.append(k["context"]) or real(*a, **k))
    result = reproduce("cost", settings_of(models), out)
    assert sorted(map(str, scored)) == ["40", "40", *["None"] * 6]  # two to warm up, four ways
    monkeypatch.setattr(cost, "score", None)
    assert reproduce("cost", settings_of(models), out)["lengths"] == result["lengths"]


def test_ways():
    window = Window(context=40, stride=10)
    assert Way("online", window).name == "online-40-10"
    assert Way("ppl").name == "ppl"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"lengths": [40]},
            r"`lengths` has 40 and `windows` a `context` of 40: no token would have a short-context score",
        ),
        ({"windows": [{"context": 4, "stride": 5}]}, r"`stride` is 5; expected at most `context`, which is 4"),
        ({"lengths": [100, 100]}, r"`lengths` contains a value twice"),
    ],
)
def test_settings_that_cannot_be(models, changes, message):
    with pytest.raises(UserError, match=message):
        settings_of(models, **changes)


def test_documents_that_are_too_short_are_refused_before_a_model_is_loaded(models, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "load_scorer", None)
    with pytest.raises(UserError, match=r"`documents` has 1 of at least 200 tokens; expected 2: add more sources"):
        reproduce("cost", settings_of(models, samples=2), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert len(ways(settings_of(models))) == 4
