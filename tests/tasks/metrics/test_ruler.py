import pytest
from hypothesis import given
from hypothesis import strategies as st

from longlens.errors import UserError
from longlens.tasks.metrics import (
    string_match_all,
    string_match_all_words,
    string_match_part,
    string_match_part_words,
)

texts = st.text(alphabet="aB 1.", max_size=6)
samples = st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=3)), min_size=1, max_size=5)


@given(samples)
def test_all_is_at_most_part_and_whole_words_at_most_any(samples):
    predictions, references = [p for p, _ in samples], [r for _, r in samples]
    scores = [f(predictions, references) for f in (string_match_all_words, string_match_all, string_match_part)]
    assert 0 <= scores[0] <= scores[1] <= scores[2] <= 100
    assert scores[0] <= string_match_part_words(predictions, references) <= scores[2]


@given(samples)
def test_order_and_letter_case_do_not_matter(samples):
    predictions, references = [p for p, _ in samples], [r for _, r in samples]
    turned = [p.swapcase() for p in predictions[::-1]], references[::-1]
    assert string_match_all(*turned) == pytest.approx(string_match_all(predictions, references), abs=0.011)
    assert string_match_part(*turned) == string_match_part(predictions, references)


def test_shares_are_averaged_over_samples():
    assert string_match_all(["a b", "x"], [["a", "b", "c"], ["x"]]) == 83.33
    assert string_match_part(["a b", "x"], [["a", "b", "c"], ["y"]]) == 50.0


def test_whole_words_only():
    predictions, references = ["It is 123456.", "It is 2345."], [["2345"], ["2345"]]
    assert string_match_all(predictions, references) == 100.0
    assert string_match_all_words(predictions, references) == 50.0
    assert string_match_part_words(predictions, [["2345", "is"], ["5"]]) == 50.0


def test_what_cannot_be_scored_is_said():
    with pytest.raises(UserError, match="got 2 predictions and 1 lists of references"):
        string_match_all(["a", "b"], [["a"]])
    with pytest.raises(UserError, match="got 0 predictions"):
        string_match_part([], [])
    with pytest.raises(UserError, match="got one string"):
        string_match_part("a", [["a"]])
    with pytest.raises(UserError, match=r"references\[1\] is \[\], expected a list of at least one string"):
        string_match_all(["a", "b"], [["a"], []])
    with pytest.raises(UserError, match=r"references\[0\] is 'a', expected a list"):
        string_match_all(["a"], ["a"])
