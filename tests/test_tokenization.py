"""Ids are the tokenizer's own; a span covers every character that its token spells, whatever the tokenizer."""

from __future__ import annotations

import subprocess
import sys
import unicodedata
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers
from transformers import AddedToken, ByT5Tokenizer

from longlens.errors import UserError
from longlens.scoring.truncation import TokenLimit
from longlens.spans import spans_from_bytes
from longlens.tokenization import TextEncoder, check_spans, decoder_of, extend_over_marks
from tests import test_tokenization_toys as toys
from tests.reference.spans import spans_of_pieces, uncovered
from tests.tiny import byte_tokenizer

FRAGMENTS = [
    *[
        "the ",
        "dog",
        " quick",
        "Fox",
        "it's",
        "they're",
        "naïve",
        "cafe\u0301",
        "e\u0323\u0302",
        "한국",
        "\u1112\u1161\u11ab",
    ],
    *[
        "😀",
        "👩\u200d👩\u200d👧",
        "🏳️\u200d🌈",
        "𐍈",
        "漢字",
        "か\u3099",
        "שלום",
        "مرحبا",
        "ﬁ",
        "ﷺ",
        "①",
        "…",
        "\ufeff",
        "�",
    ],
    *[
        "\r\n",
        "\n",
        "\n\n\n",
        " ",
        "   ",
        "       ",
        "\t",
        "\u00a0",
        "\u3000",
        "\x00",
        "\x7f",
        "▁",
        "<0x41>",
        "Ġ",
        "\u0301",
    ],
]
SPECIAL = [toys.EOT, "</s>", "<s>", "<unk>", "<extra_id_0>"]


def joined(*parts: Any) -> Any:
    return st.lists(st.one_of(*parts), max_size=12).map("".join)


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
TEXTS = joined(st.sampled_from(FRAGMENTS), ANY_TEXT)
TEXTS_WITH_SPECIAL = joined(st.sampled_from(FRAGMENTS + SPECIAL), ANY_TEXT)
quick = settings(max_examples=40, deadline=None)

KINDS = {
    "bytes": lambda: toys.byte_bpe(),
    "trimmed": lambda: toys.byte_bpe(trim=True),
    "nfc": lambda: toys.byte_bpe(trim=True, normalizer=normalizers.NFC()),
    "metaspace": toys.sentencepiece_fast,
    "wordpiece": toys.word_piece,
    "sentencepiece": toys.sentencepiece_slow,
    "sentencepiece-new": lambda: toys.sentencepiece_slow(legacy=False),
    "sentencepiece-nfkc": lambda: toys.sentencepiece_slow("nmt_nfkc"),
    "sentencepiece-unigram": lambda: toys.sentencepiece_slow(kind="unigram"),
    "tiktoken": toys.TiktokenLike,
    "tiktoken-lossy": toys.LossyTiktokenLike,
    "tiktoken-nfc": toys.NfcTiktokenLike,
    "python-bpe": toys.PythonByteBpe,
    "byt5": ByT5Tokenizer,
}
BYTE_LEVEL = ["bytes", "trimmed", "tiktoken", "tiktoken-lossy", "python-bpe"]


@lru_cache
def load(kind: str) -> tuple[Any, TextEncoder]:
    tokenizer = KINDS[kind]()
    return tokenizer, TextEncoder(tokenizer)


def spans(kind: str, text: str) -> list[list[int]]:
    return load(kind)[1].encode(text).char_spans.tolist()


# What holds for every tokenizer


@pytest.mark.parametrize("kind", KINDS)
@quick
@given(text=TEXTS_WITH_SPECIAL)
def test_ids_are_the_tokenizers_own_and_spans_are_in_order_inside_the_text(kind: str, text: str) -> None:
    tokenizer, encoder = load(kind)
    ids, char_spans = encoder.encode(text)
    assert ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert (ids.dtype, char_spans.dtype, char_spans.shape) == (np.int64, np.int64, (len(ids), 2))
    assert np.all(np.diff(char_spans[:, 0]) >= 0)
    assert np.all((char_spans[:, 0] >= 0) & (char_spans[:, 0] <= char_spans[:, 1]) & (char_spans[:, 1] <= len(text)))


@pytest.mark.parametrize("kind", KINDS)
@quick
@given(text=TEXTS_WITH_SPECIAL, max_tokens=st.integers(2, 12))
def test_truncation_gives_a_prefix_that_fits_and_stays(kind: str, text: str, max_tokens: int) -> None:
    encoder = load(kind)[1]
    limit = TokenLimit(max_tokens=max_tokens, counted_by="own", encode=encoder.encode)
    num_tokens = len(encoder.encode(text).token_ids)
    kept = limit(text)
    assert kept.total_tokens == num_tokens
    assert text.startswith(kept.text)
    assert len(encoder.encode(kept.text).token_ids) <= max_tokens
    assert limit(kept.text).text == kept.text
    if num_tokens <= max_tokens:
        assert kept.text == text


# Byte-level tokens


@pytest.mark.parametrize("kind", [*BYTE_LEVEL, "byt5"])
@quick
@given(text=TEXTS)
def test_byte_level_spans_are_those_of_the_bytes_and_cover_the_text(kind: str, text: str) -> None:
    ids, char_spans = load(kind)[1].encode(text)
    if kind == "byt5":
        pieces = [bytes([i - 3]) for i in ids.tolist()]
    else:
        pieces = [toys.token_bytes(toys.byte_bpe_backend().id_to_token(i)) for i in ids.tolist()]
    assert char_spans.tolist() == spans_of_pieces(text, pieces)
    assert uncovered(text, char_spans.tolist()) == []


@quick
@given(text=TEXTS_WITH_SPECIAL)
def test_fast_and_slow_versions_of_one_byte_vocabulary_agree(text: str) -> None:
    expected = load("bytes")[1].encode(text)
    for kind in BYTE_LEVEL:
        found = load(kind)[1].encode(text)
        assert np.array_equal(found.token_ids, expected.token_ids)
        assert np.array_equal(found.char_spans, expected.char_spans)


def test_leading_spaces_belong_to_the_token_that_spells_them_although_the_tokenizer_trims_them() -> None:
    text = "the dog       "
    assert spans("trimmed", text)[-1][1] == len(text)
    own = TextEncoder(load("trimmed")[0], spans="tokenizer").encode(text).char_spans.tolist()
    assert own == [list(o) for o in load("trimmed")[0](text, return_offsets_mapping=True)["offset_mapping"]]
    assert own[-1][0] == own[-1][1]
    assert uncovered(text, own) != []


def test_tokens_that_split_a_character_span_all_of_it() -> None:
    for kind in (*BYTE_LEVEL, "byt5", "metaspace", "sentencepiece"):
        found = spans(kind, "a𐍈b")
        assert found[0][0] == 0
        assert found[-1] == [2, 3]
        assert found.count([1, 2]) >= 3


# Normalization


@quick
@given(text=TEXTS_WITH_SPECIAL)
def test_a_composed_character_spans_all_that_it_is_composed_of(text: str) -> None:
    fast, slow = load("nfc")[1].encode(text), load("tiktoken-nfc")[1].encode(text)
    assert uncovered(text, fast.char_spans.tolist()) == []
    if np.array_equal(fast.token_ids, slow.token_ids):  # special tokens cut the text before, or after, it is normalised
        assert np.array_equal(fast.char_spans, slow.char_spans)


def test_examples_of_composed_characters() -> None:
    for text in ("x e\u0301y", "x\u1112\u1161\u11aby", "xe\u0323\u0302y"):
        for kind in ("nfc", "tiktoken-nfc"):
            found = spans(kind, text)
            composed = [
                span for span in found if span[0] <= text.index(unicodedata.normalize("NFD", text)[-2]) < span[1]
            ]
            assert found[-1] == [len(text) - 1, len(text)]
            assert composed
            assert {span[1] for span in composed} == {len(text) - 1}


def test_wordpiece_tokens_have_their_accents_and_dropped_spaces_are_in_no_span() -> None:
    assert spans("wordpiece", "the  cafe\u0301 dog") != []
    text = "the  do\u0301g"
    assert uncovered(text, spans("wordpiece", text)) == [3, 4]


def test_characters_that_sentencepiece_normalizes_are_spanned_by_all_their_pieces() -> None:
    text = "the ﬁ dog"
    pieces = spans("sentencepiece-nfkc", text)
    assert [4, 5] in [[max(a, 4), b] for a, b in pieces]
    assert uncovered(text, pieces) == []
    text = "  the   dog "
    assert uncovered(text, spans("sentencepiece-nfkc", text))[:2] == [0, 1]


# SentencePiece


@quick
@given(text=TEXTS_WITH_SPECIAL)
def test_fast_and_slow_versions_of_one_sentencepiece_model_agree(text: str) -> None:
    fast, slow = load("metaspace")[1].encode(text), load("sentencepiece")[1].encode(text)
    if np.array_equal(fast.token_ids, slow.token_ids):
        assert slow.char_spans.tolist() == fast.char_spans.tolist()
    assert uncovered(text, slow.char_spans.tolist()) == []


def test_fast_and_slow_sentencepiece_have_the_same_ids_on_prose() -> None:
    for text in toys.CORPUS[:4]:
        assert (
            load("metaspace")[1].encode(text).token_ids.tolist()
            == load("sentencepiece")[1].encode(text).token_ids.tolist()
        )


@pytest.mark.parametrize("kind", ["sentencepiece", "sentencepiece-new", "metaspace"])
def test_sentencepiece_tokens_are_the_text_at_their_spans(kind: str) -> None:
    tokenizer, encoder = load(kind)
    text = "the quick  dog\nnaïve 漢字 jumps"
    ids, char_spans = encoder.encode(text)
    for token, (start, end) in zip(tokenizer.convert_ids_to_tokens(ids.tolist()), char_spans.tolist(), strict=True):
        if not token.startswith("<0x"):
            assert token.replace("▁", " ").removeprefix(" " if start == 0 else "") in (text[start:end], "")


def test_added_tokens_that_take_the_spaces_beside_them() -> None:
    tokenizer = toys.sentencepiece_slow()
    tokenizer.add_tokens(
        [AddedToken("[L]", lstrip=True), AddedToken("[R]", rstrip=True), AddedToken("[B]", lstrip=True, rstrip=True)]
    )
    text = "dog  [L]  dog  [R]  dog  [B]  dog"
    ids, char_spans = TextEncoder(tokenizer).encode(text)
    names = tokenizer.convert_ids_to_tokens(ids.tolist())
    found = {n: text[a:b] for n, (a, b) in zip(names, char_spans.tolist(), strict=True) if n.startswith("[")}
    assert found == {"[L]": "  [L]", "[R]": "[R]  ", "[B]": "  [B]  "}
    assert spans("byt5", "a  </s> é") == [[0, 1], [1, 8], [8, 9], [8, 9]]  # its special tokens take spaces too


# Settings of the tokenizer


def test_special_tokens_in_the_text_span_their_content() -> None:
    for kind in BYTE_LEVEL:
        assert [3, 3 + len(toys.EOT)] in spans(kind, f"the{toys.EOT}dog")
    assert [3, 7] in spans("sentencepiece", "the</s> dog")


def test_special_tokens_are_cut_up_where_the_tokenizer_is_set_to() -> None:
    for tokenizer in (toys.byte_bpe(split_special_tokens=True), toys.sentencepiece_slow()):
        tokenizer.split_special_tokens = True
        ids, char_spans = TextEncoder(tokenizer).encode(f"the {toys.EOT}</s>")
        assert ids.tolist() == tokenizer(f"the {toys.EOT}</s>", add_special_tokens=False)["input_ids"]
        assert [4, 4 + len(toys.EOT)] not in char_spans.tolist()


def test_the_tokenizer_is_not_changed_and_its_truncation_and_padding_do_not_apply() -> None:
    tokenizer = toys.byte_bpe(trim=True, bos=True, model_max_length=4)
    expected = TextEncoder(tokenizer).encode(toys.CORPUS[0])
    name = TextEncoder(tokenizer).sha256
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=500)
    before = tokenizer.backend_tokenizer.to_str()
    encoder = TextEncoder(tokenizer)
    assert np.array_equal(encoder.encode(toys.CORPUS[0]).char_spans, expected.char_spans)
    assert len(expected.token_ids) > 4
    assert encoder.sha256 == name
    assert tokenizer.backend_tokenizer.to_str() == before
    assert not tokenizer.deprecation_warnings  # where transformers notes "sequence longer than the maximum"


@pytest.mark.parametrize("kind", ["sentencepiece", "tiktoken"])
def test_slow_tokenizers_do_not_warn_of_long_texts(kind: str) -> None:
    tokenizer, encoder = load(kind)
    tokenizer.model_max_length = 4
    encoder.encode(toys.CORPUS[0])
    assert not tokenizer.deprecation_warnings


def test_bos_and_what_the_tokenizer_puts_before_a_text() -> None:
    end_of_text = toys.byte_bpe_backend().token_to_id(toys.EOT)
    with_bos, without = TextEncoder(toys.byte_bpe(bos=True)), TextEncoder(toys.byte_bpe())
    assert (with_bos.own_prefix, with_bos.bos_token_id) == ((end_of_text,), end_of_text)
    assert (without.own_prefix, without.bos_token_id) == ((), end_of_text)
    assert load("byt5")[1].own_prefix == ()  # it puts </s> after the text
    assert load("tiktoken")[1].bos_token_id is None


def test_the_hash_names_the_tokenizer() -> None:
    hashes = [load(kind)[1].sha256 for kind in KINDS]
    assert len(set(hashes)) == len(hashes)
    assert all(len(value) == 64 for value in hashes)
    assert TextEncoder(toys.byte_bpe()).sha256 == load("bytes")[1].sha256
    assert TextEncoder(toys.sentencepiece_slow()).sha256 == load("sentencepiece")[1].sha256
    tokenizer = toys.byte_bpe()
    tokenizer.add_tokens(["new"])
    assert TextEncoder(tokenizer).sha256 != load("bytes")[1].sha256
    assert TextEncoder(toys.byte_bpe(), spans="tokenizer").sha256 != load("bytes")[1].sha256
    assert TextEncoder(toys.byte_bpe(split_special_tokens=True)).sha256 != load("bytes")[1].sha256


class Tampering(type(toys.byte_bpe())):  # type: ignore[misc]
    def _encode_plus(self, text: Any, **settings: Any) -> Any:
        return super()._encode_plus(text.lower(), **settings)


def test_a_fast_tokenizer_that_changes_the_ids_of_its_backend_is_refused() -> None:
    encoder = TextEncoder(Tampering(tokenizer_object=toys.byte_bpe_backend()))
    assert len(encoder.encode("the dog").token_ids) == len(encoder.encode("the dog").token_ids)
    with pytest.raises(UserError, match="Tampering changes the ids of its backend tokenizer"):
        encoder.encode("THE DOG")


# What users see


def test_tokens_that_do_not_spell_the_text_are_refused() -> None:
    encoder = TextEncoder(toys.LoweringTiktokenLike())
    assert encoder.encode("the dog").char_spans[-1].tolist()[1] == 7
    with pytest.raises(UserError, match=r"LoweringTiktokenLike .* do not reproduce the text.* use a fast tokenizer"):
        encoder.encode("The dog")


def test_other_errors() -> None:
    encoder = load("bytes")[1]
    with pytest.raises(UserError, match=r"lone surrogate .* at character 1"):
        encoder.encode("a\ud800")
    with pytest.raises(UserError, match=r"TiktokenLike is not a fast tokenizer.* spans='exact'"):
        TextEncoder(toys.TiktokenLike(), spans="tokenizer")
    for wrong in ([[0, 2], [-1, 3]], [[2, 1]], [[0, 9]], [[1, 2], [0, 3]]):
        with pytest.raises(UserError, match="Toy reports character spans"):
            check_spans(np.array(wrong), 8, name="Toy")


def test_importing_loads_nothing_heavy() -> None:
    code = (
        "import sys, longlens.tokenization; sys.exit(bool({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The arithmetic


@quick
@given(text=TEXTS, cuts=st.lists(st.integers(0, 200), max_size=10))
def test_byte_ranges_to_characters(text: str, cuts: list[int]) -> None:
    utf8 = text.encode()
    bounds = np.unique([0, len(utf8), *(cut for cut in cuts if cut < len(utf8))])
    found = spans_from_bytes(utf8, bounds[:-1], bounds[1:]).tolist()
    assert found == spans_of_pieces(text, [utf8[a:b] for a, b in pairwise(bounds.tolist())])
    empty = spans_from_bytes(utf8, np.array([0, len(utf8)]), np.array([0, len(utf8)])).tolist()
    assert empty == [[0, 0], [len(text), len(text)]]


def test_marks_go_to_the_token_that_ends_before_them_and_not_over_a_gap() -> None:
    text = "e\u0301x y\u0301z \u0301"
    before = np.array([[0, 1], [2, 3], [4, 5], [6, 7]])
    assert extend_over_marks(text, before).tolist() == [[0, 2], [2, 3], [4, 6], [6, 7]]
    assert before.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_ids_that_the_tokenizer_does_not_have_are_not_left_out_of_a_text():
    decode = decoder_of(byte_tokenizer())
    assert decode([72, 256, 257]) == byte_tokenizer().decode([72, 256, 257])
    with pytest.raises(UserError, match="input_ids has 258, and the tokenizer has the ids 0 to 257"):
        decode([72, 258])
