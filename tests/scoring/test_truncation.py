"""A text is cut once, to a prefix, at the end of a character, and never to more tokens than the limit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longlens import UserError
from longlens.scoring.truncation import CHARACTERS_PER_TOKEN, CharacterLimit, TokenLimit
from longlens.tokenization import Encoded


def encoded(spans):
    return Encoded(np.zeros(len(spans), dtype=np.int64), np.array(spans, dtype=np.int64).reshape(-1, 2))


def in_bytes(text):
    """A token a byte; the tokens of one character all have its span."""
    return encoded([(i, i + 1) for i, character in enumerate(text) for _ in character.encode()])


def in_runs(text):
    """A token for each run of spaces, and one for each other character."""
    spans, start = [], 0
    while start < len(text):
        end = start + 1
        while text[start] == " " and text[end : end + 1] == " ":
            end += 1
        spans.append((start, end))
        start = end
    return encoded(spans)


def in_pairs(text):
    """Two characters a token; where one is left over, it and the pair before it become three tokens."""
    n = len(text)
    if n % 2 == 0 or n < 3:
        return encoded([(i, min(i + 2, n)) for i in range(0, n, 2)])
    return encoded([*((i, i + 2) for i in range(0, n - 3, 2)), *((i, i + 1) for i in range(n - 3, n))])


def limit(max_tokens, encode=in_bytes):
    return TokenLimit(max_tokens=max_tokens, counted_by="own", encode=encode)


@pytest.mark.parametrize("encode", [in_bytes, in_runs, in_pairs])
@given(text=st.text(max_size=60), max_tokens=st.integers(2, 30))
def test_what_is_left_is_a_prefix_within_the_limit(encode, text, max_tokens):
    cut = limit(max_tokens, encode)(text)
    assert text.startswith(cut.text)
    assert len(encode(cut.text).token_ids) <= max_tokens
    assert cut.total_tokens in (None, len(encode(text).token_ids))
    if len(encode(text).token_ids) <= max_tokens:
        assert cut.text == text
    assert limit(max_tokens, encode)(cut.text).text == cut.text


@given(text=st.text(max_size=60), max_tokens=st.integers(2, 30))
def test_one_character_more_would_be_too_much(text, max_tokens):
    cut = limit(max_tokens)(text)
    assert cut.text == text or len(in_bytes(text[: len(cut.text) + 1]).token_ids) > max_tokens


@pytest.mark.parametrize(
    ("max_tokens", "left"), [(2, "a"), (4, "a"), (5, "a🙂"), (6, "a🙂b"), (8, "a🙂bé"), (99, "a🙂bé")]
)
def test_a_character_of_several_tokens_is_not_split(max_tokens, left):
    cut = limit(max_tokens)("a🙂bé")
    assert cut.text == left
    assert cut.total_tokens == 8


def test_a_first_character_that_does_not_fit_leaves_nothing():
    assert limit(3)("🙂🙂").text == ""


def test_the_byte_tokenizer_of_a_real_library_is_cut_likewise():
    from longlens.tokenization import TextEncoder
    from tests.tiny import byte_tokenizer

    encode = TextEncoder(byte_tokenizer()).encode
    for max_tokens in range(2, 30):
        text = "naïve 🙂🙂 Straße " * 2
        assert limit(max_tokens, encode)(text) == limit(max_tokens)(text)


def test_a_text_far_beyond_the_limit_is_not_tokenized_to_its_end():
    seen = []

    def spy(text):
        seen.append(len(text))
        return in_bytes(text)

    cut = limit(10, spy)("x" * 1_000_000)
    assert cut == ("x" * 10, None)
    assert max(seen) == 10 * CHARACTERS_PER_TOKEN


def test_tokens_of_many_characters_are_looked_for_further_on():
    text = (" " * 1000 + "x") * 20
    cut = limit(9, in_runs)(text)
    assert cut.text == (" " * 1000 + "x") * 4 + " " * 1000
    assert limit(50, in_runs)(text) == (text, 40)


def test_a_text_just_within_the_look_ahead_is_counted_to_its_end():
    assert limit(2)("x" * 2 * CHARACTERS_PER_TOKEN).total_tokens == 128
    assert limit(2)("x" * (2 * CHARACTERS_PER_TOKEN + 1)).total_tokens is None


def test_characters():
    assert CharacterLimit(max_characters=3)("a🙂éx") == ("a🙂é", None)
    assert CharacterLimit(max_characters=9)("a🙂éx").text == "a🙂éx"
    assert CharacterLimit(max_characters=3).counted_by == "characters"


@pytest.mark.parametrize("number", [1, 0, -5])
def test_too_few_tokens(number):
    with pytest.raises(UserError, match=f"`max_length` is {number}; expected at least 2"):
        limit(number)


@pytest.mark.parametrize("number", [0, -5])
def test_too_few_characters(number):
    with pytest.raises(UserError, match=f"`max_characters` is {number}; expected at least 1"):
        CharacterLimit(max_characters=number)
