import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats

from longlens.errors import LonglensWarning, UserError
from longlens.keytokens import read_keys, select_key_tokens, write_keys
from longlens.metrics import compare, perplexity
from longlens.scoring.scores import ShortContext
from tests.reference import metrics as naive
from tests.toys import NAN, scores, token_scores

# "45129" is what the long context gives: 3.5 nats more likely, twice; the other tokens have LSD 0
PIECES = ["The ", "code ", "is ", "45", "129", ".", " Bye"]
LONG = [NAN, -1, -2, -0.5, -1.5, -1, -3]
SHORT = [NAN, NAN, -2, -4, -5, -1, -3]
OTHER_PIECES = ["The code", " is", " 4", "51", "29", ".", " Bye"]
OTHER_LONG = [NAN, -2, -4, -1, -3, -2, -4]


def evaluator(**settings):
    return scores(token_scores(PIECES, LONG, SHORT), name="E", **settings)


def other(**changes):
    return scores(token_scores(OTHER_PIECES, OTHER_LONG, **changes), name="M")


def test_without_an_evaluator_there_is_plain_perplexity_and_the_rest_is_none():
    result = perplexity(other())
    assert result.ppl == pytest.approx(math.exp(16 / 6))
    assert (result.model, result.evaluator, result.num_tokens, result.num_documents) == ("M", None, 6, 1)
    assert result.longppl is result.longppl_soft is result.num_key_tokens is result.key_bits_per_character is None
    assert result.intervals == {"ppl": None, "longppl": None, "longppl_soft": None}
    assert result.settings == {
        "model": "M",
        **dict.fromkeys(["context", "stride", "alpha", "beta", "gamma", "lcl"]),
        "bos": "window",
        "max_length": 32768,
        "dtype": "float32",
    }


def test_longppl_is_on_tokens_inside_the_key_text():
    result = perplexity(other(), evaluator_scores=evaluator())
    assert result.num_key_tokens == 2  # "51" and "29"; " 4" overhangs the run by its blank
    assert result.longppl == pytest.approx(math.exp(2))
    assert result.evaluator == "E"
    assert result.key_bits_per_character == pytest.approx(4 / math.log(2) / 4)


def test_why_no_token_is_key_is_said():
    def note(model, **options):
        (found,) = (one for one in perplexity(model, **options).warnings if "is key" in one)
        return found

    assert "the evaluator selects none in these documents; a lower `alpha`" in note(
        other(), evaluator_scores=evaluator(), alpha=9
    )
    assert "none of its tokens lies inside one of the 2 key tokens" in note(
        scores(token_scores(["The code ", "is 45129. Bye"], [NAN, -1]), name="M"), evaluator_scores=evaluator()
    )
    short = scores(token_scores(PIECES[:4], LONG[:4], [NAN] * 4), name="E")  # K = 4
    own = scores(token_scores(PIECES[:4], LONG[:4]), name="M")
    assert "the longest document has 4 tokens, and only tokens after the first 4 (K) can be key" in note(
        own, evaluator_scores=short
    )


def test_a_model_with_the_tokenizer_of_the_evaluator_is_scored_on_its_key_tokens():
    model = scores(token_scores(PIECES, [NAN, -9, -9, -1, -4, -9, -9]), name="M")
    result = perplexity(model, evaluator_scores=evaluator())
    assert (result.longppl, result.num_key_tokens) == (pytest.approx(math.exp(2.5)), 2)


def test_soft_longppl_by_hand():
    # weights of the evaluator's tokens: 0 0 1 5 5 1 1 ("is " 1, "45" and "129" capped at 5, "." and " Bye" 1)
    model = scores(token_scores(PIECES, [NAN, -9, -1, -2, -3, -4, -5]), name="M")
    result = perplexity(model, evaluator_scores=evaluator())
    assert result.longppl_soft == pytest.approx(math.exp((1 + 10 + 15 + 4 + 5) / 13))


@pytest.mark.parametrize("gamma", [0.5, 5, 100])
def test_soft_longppl_is_that_of_the_naive_oracle(gamma):
    rng = np.random.default_rng(3)
    rows, evaluated = [], []
    for id in "abc":
        text = "".join(rng.choice(list("abé 漢"), 60))
        for kept, k in ((rows, 7), (evaluated, 11)):
            cuts = [0, *sorted(rng.choice(np.arange(1, 60), k, replace=False)), 60]
            pieces = [text[s:e] for s, e in itertools.pairwise(cuts)]
            long, short = -3 * rng.random((2, len(pieces)))
            long[0], short[:4] = NAN, NAN
            kept.append(token_scores(pieces, long, short, id=id))
    result = perplexity(scores(*rows), evaluator_scores=scores(*evaluated, name="E", dtype="float64"), gamma=gamma)
    assert result.longppl_soft == pytest.approx(naive.longppl_soft(rows, evaluated, gamma), rel=1e-12)
    assert result.ppl == pytest.approx(naive.perplexity(rows), rel=1e-12)


def test_corpus_values_are_sums_over_tokens_and_not_means_of_documents():
    short = token_scores(["a", "b"], [NAN, -1], id="short")
    long = token_scores(["a", "b", "c", "d"], [NAN, -3, -3, -3], id="long")
    result = perplexity(scores(short, long))
    assert result.ppl == pytest.approx(math.exp(10 / 4))
    published = math.exp((2 * 1 + 4 * 3) / (2 + 4))  # document means, times n
    assert result.ppl != pytest.approx(published)
    assert [document.ppl for document in result.documents] == [pytest.approx(math.e**3), pytest.approx(math.e)]


def test_a_key_run_at_token_0_without_a_score_is_not_key_where_published_takes_the_last_loss():
    row = token_scores(["ab", "cd"], [-1, -1], [-9, -1])  # the evaluator has a BOS, hence a score at token 0
    result = perplexity(scores(token_scores(["ab", "cd"], [NAN, -7])), evaluator_scores=scores(row, name="E"))
    assert (result.longppl, result.num_key_tokens) == (None, 0)
    assert any("none of its tokens lies inside one of the 1 key tokens of the evaluator" in n for n in result.warnings)
    with_bos = perplexity(scores(token_scores(["ab", "cd"], [-2, -7])), evaluator_scores=scores(row, name="E"))
    assert (with_bos.longppl, with_bos.num_key_tokens) == (pytest.approx(math.exp(2)), 1)


def test_bits_per_character_counts_from_the_first_scored_token():
    rows = [token_scores(["abc", "de", "fgh"], [NAN, -math.log(2), -math.log(16)])]
    assert perplexity(scores(*rows)).bits_per_character == pytest.approx(5 / 5, rel=1e-6)
    rows = [token_scores(["abc", "de", "fgh"], [-math.log(8), -math.log(2), -math.log(16)])]
    assert perplexity(scores(*rows)).bits_per_character == pytest.approx(8 / 8, rel=1e-6)


def test_bits_on_key_tokens_leave_out_characters_of_a_token_without_a_score():
    run = scores(token_scores(["abcd", "ef"], [-1, -1], [-9, -9]), name="E")
    result = perplexity(scores(token_scores(["abcd", "ef"], [NAN, -math.log(2)])), evaluator_scores=run)
    assert result.key_bits_per_character == pytest.approx(1 / 2, rel=1e-6)


def test_tokens_from_k_on_are_those_of_the_evaluated_model():
    result = perplexity(other(), evaluator_scores=evaluator())
    assert result.settings["context"] == 4
    assert (result.ppl_from_context, result.num_from_context_tokens) == (pytest.approx(math.exp(9 / 3)), 3)
    assert perplexity(other(), context=5).num_from_context_tokens == 2
    assert perplexity(evaluator()).num_from_context_tokens == 3  # its own K
    assert perplexity(other()).ppl_from_context is None


def test_answers_and_the_rest():
    answers = {"a": [(15, 17), (12, 15)], "unknown": [(0, 1)]}
    result = perplexity(other(), answers=answers)
    assert (result.ppl_answers, result.num_answer_tokens) == (pytest.approx(math.exp(8 / 3)), 3)  # " 4", "51", "29"
    assert (result.ppl_rest, result.num_rest_tokens) == (pytest.approx(math.exp(8 / 3)), 3)
    beside = token_scores(["no ", "answer"], [NAN, -9], id="b")
    mixed = perplexity(scores(*other(), beside), answers=answers)
    assert (mixed.num_answer_tokens, mixed.num_rest_tokens, mixed.num_tokens) == (3, 3, 7)
    assert perplexity(other()).ppl_answers is None
    with pytest.raises(UserError, match="none of these documents was scored"):
        perplexity(other(), answers={"unknown": [(0, 1)]})
    for spans in ([(4, 2)], [[3]], 5, ["a", "b"], [[1, 2, 3]], [[True, 2]], [[0.0, 1.0]], [[-1, 2]], "ab", [[[1, 2]]]):
        with pytest.raises(UserError, match=r"^answer_spans of document 'a' has .*, expected \[start, end\)"):
            perplexity(other(), answers={"a": spans})
    for spans in ([], np.array([[12, 17]])):  # none; NumPy's
        assert perplexity(other(), answers={"a": spans}).num_rest_tokens is not None
    with pytest.raises(UserError, match=r"has \[12, 999\], expected .* <= 22"):
        perplexity(other(), answers={"a": [[12, 999]]})
    whole = other()[0]
    cut = dataclasses.replace(whole, total_tokens=len(whole.token_ids) + 1)  # the answer may be behind the cut
    assert perplexity(scores(cut), answers={"a": [[12, 999]]}).num_rest_tokens is not None


def test_perplexity_on_reoccurred_ngrams_needs_the_text():
    row = token_scores(["a", " b", " c", " x", " a", " b", " c"], [NAN, -9, -9, -9, -1, -2, -3])
    assert perplexity(scores(row)).ppl_ngram is None  # unless it is asked for
    result = perplexity(scores(row), ngram=True)
    assert (result.ppl_ngram, result.num_ngram_tokens) == (pytest.approx(math.exp(2)), 3)
    assert not any("without texts" in note for note in perplexity(other(store_text=False)).warnings)
    result = perplexity(other(store_text=False), ngram=True)
    assert result.ppl_ngram is result.num_ngram_tokens is None
    assert any("without texts" in note for note in result.warnings)


def test_keys_give_the_same_as_the_evaluator_but_soft(tmp_path):
    full = perplexity(other(), evaluator_scores=evaluator())
    write_keys(tmp_path / "keys.jsonl", select_key_tokens(evaluator()))
    for keys in (select_key_tokens(evaluator()), read_keys(tmp_path / "keys.jsonl")):
        result = perplexity(other(), keys=keys)
        assert (result.longppl, result.num_key_tokens) == (full.longppl, full.num_key_tokens)
        assert result.longppl_soft is result.settings["gamma"] is None
        assert result.settings == full.settings | {"gamma": None}
        assert result.evaluator == "E"


def test_another_short_context_of_the_evaluator():
    run = evaluator()
    run[0].short[ShortContext(2, 1)] = np.array([NAN, NAN, -9, -0.5, -1.5, -1, -3], dtype=np.float32)
    result = perplexity(other(), evaluator_scores=run, context=2, beta=-2.5)
    assert (result.settings["context"], result.settings["stride"]) == (2, 1)
    assert result.num_key_tokens == 0  # "is " is key now, and " is" is not inside it
    with pytest.raises(UserError, match="no scores at K=3"):
        perplexity(other(), evaluator_scores=run, context=3)


def test_settings_name_the_evaluators_where_they_differ():
    result = perplexity(other(), evaluator_scores=evaluator(bos="published", dtype="float64"))
    assert result.settings == {
        "model": "M",
        "context": 4,
        "stride": 2,
        "alpha": 2,
        "beta": -2,
        "gamma": 5,
        "lcl": True,
        "bos": "window",
        "max_length": 32768,
        "dtype": "float32",
        "evaluator_bos": "published",
        "evaluator_dtype": "float64",
    }


def many(n, seed=0, **changes):
    rng = np.random.default_rng(seed)
    return [
        token_scores(PIECES, [NAN, *(-rng.random(6)).tolist()], SHORT, id=f"d{i}", total_tokens=7 + i % 2, **changes)
        for i in range(n)
    ]


def test_neither_order_of_documents_nor_a_second_call_changes_anything():
    rows, evaluated = many(11), many(11, seed=1)
    first = perplexity(scores(*rows), evaluator_scores=scores(*evaluated, name="E"))
    again = perplexity(scores(*rows[::-1]), evaluator_scores=scores(*evaluated, name="E"))
    assert first.to_json(per_document=True) == again.to_json(per_document=True)
    assert [document.id for document in first.documents] == sorted(row.id for row in rows)
    assert first.truncated_documents == 5
    for name in ("ppl", "longppl", "longppl_soft"):
        low, high = first.intervals[name]
        assert low < getattr(first, name) < high


def test_intervals_of_perplexities_are_those_of_their_logarithms_logarithm():
    rows = many(30)
    found = perplexity(scores(*rows), evaluator_scores=scores(*rows, name="E"))
    for name, sums in (
        ("ppl", [d.scored for d in found.documents]),
        ("longppl", [d.key for d in found.documents]),
        ("longppl_soft", [d.soft for d in found.documents]),
    ):
        value, error, freedom = naive.estimate([(-logprob, weight) for logprob, weight in sums])
        half = stats.t.ppf(0.975, freedom) * error / value
        ends = [math.exp(value * math.exp(-half)), math.exp(value * math.exp(half))]
        assert found.intervals[name] == pytest.approx(ends)
    assert not any("interval" in note for note in found.warnings)


@pytest.mark.parametrize(
    ("n", "note"),
    [
        (1, "PPL and LongPPL-soft of M have no interval: 6 tokens are too few"),
        (5, "LongPPL of M has no interval: 15 tokens are too few, at least 20 are needed"),
        (10, None),
    ],
)
def test_what_has_no_interval_says_why(n, note):
    result = perplexity(scores(*many(n), name="M"), evaluator_scores=scores(*many(n), name="E"))
    notes = [one for one in result.warnings if "interval" in one]
    assert bool(notes) == (note is not None)
    assert note is None or notes[0].startswith(note)
    assert (result.intervals["longppl"] is None) == (note is not None)


def test_one_document_has_no_interval_however_long():
    row = token_scores(PIECES * 4, [NAN, *[-1.0] * 27])
    (note,) = perplexity(scores(row)).warnings
    assert note == "PPL of toy has no interval: all of its tokens are in one document, and at least 2 are needed"


def test_json_has_the_documented_keys_and_nothing_that_json_does_not_know():
    result = perplexity(scores(*many(10), name="M"), evaluator_scores=scores(*many(10), name="E"))
    plain = json.loads(json.dumps(result.to_json(per_document=True), allow_nan=False))
    documented = {"schema_version", "model", "evaluator", "ppl", "longppl", "longppl_soft", "bits_per_character"}
    documented |= {"num_tokens", "num_key_tokens", "num_documents", "truncated_documents"}
    documented |= {"intervals", "settings", "documents"}
    assert documented <= plain.keys()
    assert list(plain["intervals"]) == ["ppl", "longppl", "longppl_soft"]
    assert [len(both) for both in plain["intervals"].values()] == [2, 2, 2]
    assert [list(document) for document in plain["documents"]] == [
        ["id", "ppl", "longppl", "num_tokens", "num_key_tokens"]
    ] * 10
    assert "documents" not in result.to_json()


@pytest.mark.parametrize("logprob", [-math.inf, -1e30])
def test_a_token_of_probability_0_makes_perplexity_null(logprob):
    rows = [*many(3), token_scores(PIECES, [NAN, -1, -1, -1, logprob, -1, -1], id="zero")]
    result = perplexity(scores(*rows), evaluator_scores=scores(*many(3), *evaluated_as("zero"), name="E"))
    assert result.ppl is result.longppl is result.longppl_soft is None
    json.dumps(result.to_json(per_document=True), allow_nan=False)
    named = [note for note in result.warnings if "probability 0" in note]
    assert [note.startswith("document 'zero': 1 tokens") for note in named] == [True] * (logprob == -math.inf)


def evaluated_as(id):
    return [token_scores(PIECES, LONG, SHORT, id=id)]


def test_an_impossible_token_without_weight_does_not_matter_to_soft_longppl():
    model = scores(token_scores(PIECES, [NAN, -math.inf, -1, -1, -1, -1, -1]), name="M")
    assert perplexity(model, evaluator_scores=evaluator()).longppl_soft == pytest.approx(math.e)


def test_holes_in_the_scores_are_reported():
    result = perplexity(scores(token_scores(PIECES, [NAN, -1, NAN, -1, -1, -1, -1])))
    assert result.num_tokens == 5
    assert any("document 'a': 2 tokens have no log-probability" in note for note in result.warnings)


def test_documents_without_any_score_have_no_value():
    result = perplexity(scores(token_scores(["a"], [NAN]), token_scores([], [], id="empty")))
    assert result.ppl is result.bits_per_character is None
    assert result.num_tokens == 0
    json.dumps(result.to_json(per_document=True), allow_nan=False)


def test_an_evaluator_of_itself_is_told_that_it_says_little():
    result = perplexity(evaluator(), evaluator_scores=evaluator())
    assert result.longppl == pytest.approx(math.e)
    assert any("E is its own evaluator" in note and "table 6" in note for note in result.warnings)
    assert not any("own evaluator" in note for note in perplexity(other(), evaluator_scores=evaluator()).warnings)


def test_more_documents_of_the_evaluator_are_left_out_and_said():
    run = scores(*evaluator(), token_scores(["a"], [NAN], [NAN], id="b"), name="E")
    result = perplexity(other(), evaluator_scores=run)
    assert result.num_documents == 1
    assert any("1 documents of the evaluator were not scored with M" in note for note in result.warnings)


def test_one_warning_a_corpus_for_tokens_near_a_threshold():
    rows = [token_scores(PIECES, LONG, SHORT, id=id) for id in "ab"]
    with pytest.warns(LonglensWarning, match=r"4 tokens are within 0\.1 nats .* \(0 key tokens in total\)") as warned:
        result = perplexity(scores(*rows), evaluator_scores=scores(*rows, name="E", dtype="bfloat16"), alpha=3.5)
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert str(warned[0].message) in result.warnings


# refusals


def test_both_evaluator_scores_and_keys_are_refused():
    with pytest.raises(UserError, match="pass only one of them"):
        perplexity(other(), evaluator_scores=evaluator(), keys=select_key_tokens(evaluator()))


SETTINGS = [{"alpha": 2.0}, {"beta": -2.0}, {"use_lcl": True}, {"use_lcl": False}, {"gamma": 5.0}, {"stride": 2}]


@pytest.mark.parametrize("setting", [*SETTINGS, {"context": 4}], ids=str)
@pytest.mark.parametrize("function", [perplexity, lambda run, **given: compare([run, run], **given)])
def test_settings_that_would_have_no_effect_are_refused(setting, function):
    name = next(iter(setting))
    with pytest.raises(UserError, match=f"`{name}` cannot be set with keys"):  # also with the value of the default
        function(other(), keys=select_key_tokens(evaluator()), **setting)
    if name != "context":
        with pytest.raises(UserError, match=f"`{name}` would have no effect"):
            function(other(), **setting)


def test_beta_is_refused_where_it_is_left_out():
    with pytest.raises(UserError, match="`beta` is -1, and `use_lcl=False` selects without beta"):
        perplexity(other(), evaluator_scores=evaluator(), beta=-1, use_lcl=False)


@pytest.mark.parametrize("setting", [{"context": -4}, {"context": 0}, {"context": 2.5}, {"stride": -1}], ids=str)
def test_no_number_of_tokens_is_refused(setting):
    for others in ({}, {"evaluator_scores": evaluator()}):
        with pytest.raises(UserError, match="expected a number of tokens, 1 or more"):
            perplexity(other(), **setting, **others)


def test_a_document_without_keys_or_evaluator_scores_is_named():
    model = scores(*other(), token_scores(["a"], [NAN], id="b"), name="M")
    with pytest.raises(UserError, match="document 'b' was scored with M, and has no scores of the evaluator E"):
        perplexity(model, evaluator_scores=evaluator())
    with pytest.raises(UserError, match="document 'b' was scored with M, and has no keys"):
        perplexity(model, keys=select_key_tokens(evaluator()))


def test_scores_of_different_texts_are_refused():
    model = scores(token_scores(["The code"], [NAN]), name="M")
    with pytest.raises(UserError, match=r"different texts .* same `max_length` and `truncate_with`$"):
        perplexity(model, evaluator_scores=evaluator())
    with pytest.raises(UserError, match=r"the keys have different texts .* or use keys of this text"):
        perplexity(model, keys=select_key_tokens(evaluator()))


def test_no_documents_are_refused():
    with pytest.raises(UserError, match="contain no documents"):
        perplexity(scores())


def test_bad_thresholds_and_an_evaluator_without_short_scores_are_refused():
    with pytest.raises(UserError, match="`gamma` is 0"):
        perplexity(other(), evaluator_scores=evaluator(), gamma=0)
    with pytest.raises(UserError, match="`alpha` is nan"):
        perplexity(other(), evaluator_scores=evaluator(), alpha=NAN)
    with pytest.raises(UserError, match="has no short-context scores"):
        perplexity(other(), evaluator_scores=other())


def test_keys_that_end_after_their_text_are_refused(tmp_path):
    write_keys(tmp_path / "keys.jsonl", select_key_tokens(evaluator()))
    lines = [json.loads(line) for line in (tmp_path / "keys.jsonl").read_text().splitlines()]
    lines[0]["char_runs"] = [[0, 10**9]]
    (tmp_path / "keys.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(
        UserError, match=r"a span of its key tokens ends at character 1000000000, and the text has \d+:"
    ):
        perplexity(other(), keys=read_keys(tmp_path / "keys.jsonl"))
