import json
import math

import numpy as np
import pytest
from scipy import stats

from longlens.errors import LonglensWarning, UserError
from longlens.keytokens import select_key_tokens
from longlens.metrics import compare
from tests.toys import NAN, scores, token_scores

PIECES = ["The ", "code ", "is ", "45", "129", "."]


def run(name, offset=0.0, noise=0.0, n=12, pieces=PIECES, seed=0, **changes):
    """Scores of documents of differing difficulty; `offset` nats better on every token."""
    hardness, rng = np.random.default_rng(7), np.random.default_rng(seed)
    rows = []
    for i in range(n):
        long = -2 - 2 * hardness.random() + offset + noise * rng.normal(size=len(pieces))
        rows.append(token_scores(pieces, [NAN, *np.minimum(long, -0.01)[1:]], id=f"d{i:02}", **changes))
    return scores(*rows, name=name)


def evaluator(n=12):
    rows = [token_scores(PIECES, [NAN, *[-1] * 5], [NAN] * 3 + [-5, -5, -1], id=f"d{i:02}") for i in range(n)]
    return scores(*rows, name="E")


def test_a_constant_advantage_is_certain_although_documents_differ():
    (pair,) = compare([run("A"), run("B", 0.25)], evaluator_scores=evaluator()).pairs
    for difference, per_nat in (
        (pair.log_ppl, 1),
        (pair.log_longppl, 1),
        (pair.bits_per_character, 5 / 14 / math.log(2)),
        (pair.key_bits_per_character, 2 / 5 / math.log(2)),
    ):
        assert difference.value == pytest.approx(-0.25 * per_nat, abs=1e-6)
        assert difference.interval == pytest.approx([-0.25 * per_nat] * 2, abs=1e-6)
        assert difference.significant
        assert difference.settled
        assert difference.documents_to_settle == 2


def test_a_model_against_itself_differs_by_nothing():
    (pair,) = compare([run("A"), run("A")], evaluator_scores=evaluator()).pairs
    assert pair.log_longppl.value == 0
    assert pair.log_longppl.significant is False
    assert pair.log_longppl.documents_to_settle is None


def test_how_many_documents_would_settle_it():
    (pair,) = compare([run("A"), run("B", 0.02, noise=0.5)], evaluator_scores=evaluator()).pairs
    difference = pair.log_longppl
    low, high = difference.interval
    assert low < 0 < high
    assert difference.significant is difference.settled is False
    error = (high - low) / 2 / stats.t.ppf(0.975, 11)  # key tokens are as many in each document
    needed = next(m for m in range(12, 99) if stats.t.ppf(0.975, m - 1) * error * math.sqrt(12 / m) < difference.value)
    assert difference.documents_to_settle == needed


def test_every_model_is_compared_with_the_first():
    runs = [run("A"), run("B", 0.1), run("C", -0.1)]
    result = compare(runs, evaluator_scores=evaluator())
    assert [(pair.model, pair.baseline) for pair in result.pairs] == [("B", "A"), ("C", "A")]
    assert [r.model for r in result.results] == ["A", "B", "C"]
    assert result.pairs[0].log_ppl.value < 0 < result.pairs[1].log_ppl.value
    for pair, other in zip(result.pairs, result.results[1:], strict=True):
        assert pair.log_longppl.value == pytest.approx(math.log(other.longppl / result.results[0].longppl))
        assert pair.bits_per_character.value == pytest.approx(
            other.bits_per_character - result.results[0].bits_per_character
        )


def test_order_of_documents_does_not_matter():
    a, b = run("A"), run("B", 0.02, noise=0.5)
    turned = scores(*b[::-1], name="B")
    first, second = (compare([a, x], evaluator_scores=evaluator()).to_json() for x in (b, turned))
    assert first == second


def test_with_keys_or_without():
    runs = [run("A"), run("B", 0.25)]
    with_keys = compare(runs, keys=select_key_tokens(evaluator()))
    assert with_keys.pairs[0].log_longppl.value == pytest.approx(-0.25, abs=1e-6)
    (plain,) = compare(runs).pairs
    assert plain.log_longppl is plain.key_bits_per_character is None
    assert plain.log_ppl.settled


def test_models_with_different_tokenizers_are_told_to_compare_characters():
    pieces = ["The code", " is ", "4", "512", "9", "."]
    b = run("B", pieces=pieces)
    b.manifest["model"]["tokenizer_sha256"] = "another"
    result = compare([run("A"), b], evaluator_scores=evaluator())
    assert result.pairs[0].same_tokenizer is False
    assert any("compare bits_per_character and key_bits_per_character" in note for note in result.warnings)
    same = compare([run("A"), run("B")], evaluator_scores=evaluator())
    assert same.pairs[0].same_tokenizer is True
    assert same.warnings == []


def test_json_has_no_nan_also_where_nothing_exists():
    impossible = scores(*(token_scores(PIECES, [NAN, *[-math.inf] * 5], id=f"d{i:02}") for i in range(12)), name="Z")
    result = compare([run("A"), impossible, run("B", 0.1)], evaluator_scores=evaluator())
    plain = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert plain["pairs"][0]["log_ppl"] is None
    assert len(plain["pairs"][1]["log_ppl"]["interval"]) == 2
    assert plain["baseline"] == "A"


def test_one_document_has_a_difference_and_no_interval():
    (pair,) = compare([run("A", n=1), run("B", 0.25, n=1)], evaluator_scores=evaluator(1)).pairs
    assert pair.log_ppl.value == pytest.approx(-0.25, abs=1e-6)
    assert pair.log_ppl.interval is pair.log_ppl.documents_to_settle is pair.log_ppl.significant is None
    assert not pair.log_ppl.settled


def test_a_handful_of_key_tokens_has_a_difference_and_no_verdict():
    result = compare([run("A", n=9), run("B", 0.25, n=9)], evaluator_scores=evaluator(9))  # 2 of each are key
    assert result.pairs[0].log_longppl.value == pytest.approx(-0.25, abs=1e-6)
    for difference in (result.pairs[0].log_longppl, result.pairs[0].key_bits_per_character):
        assert difference.interval is difference.significant is None
    assert result.pairs[0].log_ppl.significant
    assert result.results[0].intervals["longppl"] is None
    assert "LongPPL of A has no interval: 18 tokens are too few, at least 20 are needed" in result.warnings


def test_refusals():
    with pytest.raises(UserError, match="1 run to compare, expected at least two"):
        compare([run("A")])
    with pytest.raises(UserError, match="document 'd11' was scored with A and not with B"):
        compare([run("A"), run("B", n=11)])
    with pytest.raises(UserError, match="document 'd11' was scored with B and not with A"):
        compare([run("A", n=11), run("B")])
    with pytest.raises(UserError, match="document 'd00': A and B were scored on different texts"):
        compare([run("A"), run("B", pieces=["another"] * 6)])


def test_one_warning_for_all_models():
    close = scores(*evaluator(), name="E", dtype="bfloat16")
    with pytest.warns(LonglensWarning) as warned:
        result = compare([run("A"), run("B"), run("C")], evaluator_scores=close, alpha=4)
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert result.warnings[0] == str(warned[0].message)
    assert [note[:18] for note in result.warnings[1:]] == [f"no token of {name} is k" for name in "ABC"]
