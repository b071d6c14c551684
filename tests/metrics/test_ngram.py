import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longlens.errors import UserError
from longlens.metrics import reoccurred_ngram_mask
from tests.reference.metrics import reoccurred_words


def words_of(text, n):
    spans, place = [], 0
    for word in text.split():
        place = text.index(word, place)
        spans.append((place, place + len(word)))
        place += len(word)
    return reoccurred_ngram_mask(text, np.array(spans).reshape(-1, 2), n).tolist()


@given(
    st.lists(st.sampled_from(["a", "b", "é漢🙂"]), max_size=14), st.integers(1, 4), st.sampled_from("  \x1c\u2003\n")
)
def test_words_are_those_of_all_longer_ngrams_too(words, n, blank):
    text = (2 * blank).join(words)
    assert words_of(text, n) == reoccurred_words(text, n)


def test_the_first_occurrence_does_not_count_and_two_words_do_not_either():
    assert words_of("a b c x a b c y b c", 3) == [False] * 4 + [True] * 3 + [False] * 3


def test_an_overlapping_occurrence_counts():
    assert words_of("a a a a", 3) == [False, True, True, True]


def test_tokens_count_when_they_share_a_character_with_a_word():
    text = "a b c, a b c,"
    tokens = [(0, 6), (6, 7), (6, 8), (8, 9), (9, 12), (12, 13), (13, 13)]
    assert reoccurred_ngram_mask(text, tokens).tolist() == [False, False, True, False, True, True, False]


def test_short_texts_have_none_and_n_is_checked():
    assert reoccurred_ngram_mask("a b", [(0, 1), (1, 3)]).tolist() == [False, False]
    assert reoccurred_ngram_mask("", []).tolist() == []
    with pytest.raises(UserError, match="`n` is 0"):
        reoccurred_ngram_mask("a", [(0, 1)], n=0)
