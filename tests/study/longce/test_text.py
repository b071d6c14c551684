"""The text of a study: the same on every machine, in words, and no document on both sides of a split."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longlens.errors import UserError
from longlens.study.longce.documents import SHARED, Text, deduplicate, make_vocabulary, read_text
from tests.study.longce.toys import toy_text


def test_the_standard_library_is_enough_prose_for_a_study():
    text = read_text(None)
    assert text.name.startswith("standard library of Python 3.")
    assert sum(map(len, text.documents.values())) > 150_000
    assert "topic specialnames" in text.documents
    assert not any("site-packages" in name or name.startswith("test/") for name in text.documents)
    assert {"json", "decoder"} <= set(text.documents["json/decoder.py"])
    assert read_text(None).sha256 == text.sha256


def test_words_are_runs_of_letters_after_lower_casing(tmp_path):
    (tmp_path / "a.txt").write_text("It's Über-2nd\nWORD.")
    (tmp_path / "b.txt").write_text("12 3")
    text = read_text(tmp_path)
    assert text.name == tmp_path.name
    assert list(text.documents.values()) == [("it", "s", "ber", "nd", "word")]
    assert text.sha256 == hashlib.sha256(b"it s ber nd word").hexdigest()


def test_a_text_without_words_is_refused(tmp_path):
    (tmp_path / "b.txt").write_text("12 3")
    with pytest.raises(UserError, match=r"'b.txt' has no words of the letters a to z: set another `text`"):
        read_text(tmp_path / "b.txt")


def test_a_split_shares_no_document_and_depends_on_names_alone():
    text = toy_text()
    parts = text.split(0.2, 1)
    together = [document for part in parts.values() for document in part]
    assert sorted(together) == sorted(text.documents.values())
    assert [len(parts[name]) for name in ("test", "development", "train")] == [4, 4, 12]
    backwards = Text(name="x", documents=dict(reversed(text.documents.items())))
    assert backwards.split(0.2, 1) == parts


def test_a_seed_draws_the_test_documents_and_leaves_those_for_development():
    splits = [toy_text().split(0.2, seed) for seed in range(6)]
    assert all(split["development"] == splits[0]["development"] for split in splits)
    assert len({str(sorted(split["test"])) for split in splits}) > 3


@given(st.integers(0, 10**6))
def test_no_run_of_twenty_tokens_is_in_training_and_in_held_out_text(seed):
    rng = np.random.default_rng(seed)
    train, held = ([rng.integers(0, 6, int(size)) for size in rng.integers(1, 120, 4)] for _ in range(2))
    held[0] = np.concatenate([held[0], train[0][3:60], held[1]])
    train[1] = np.concatenate([train[1], held[2][:25]])

    def runs(documents):
        return [tuple(ids[at : at + SHARED]) for ids in documents for at in range(len(ids) - SHARED + 1)]

    clean = deduplicate(train, held)
    assert not set(runs(clean.documents)) & set(runs(held))
    assert set(runs(clean.documents)) <= set(runs(train))
    assert clean.removed == pytest.approx(1 - sum(map(len, clean.documents)) / sum(map(len, train)))
    both = set(runs(held)) & set(runs(train))
    assert clean.shared == pytest.approx(len(both) / max(1, len(set(runs(held)))))
    if not both:
        long_enough = [ids for ids in train if len(ids) >= SHARED]
        assert [ids.tolist() for ids in clean.documents] == [ids.tolist() for ids in long_enough]


def test_words_by_frequency_then_keys_then_the_values_of_each_key():
    vocabulary = make_vocabulary([("b", "b", "c", "a"), ("c", "d")], words=3, keys=2, values=4)
    assert vocabulary.words == ("b", "c", "a")
    assert [ids.tolist() for ids in vocabulary.encode([("a", "d", "b"), ("d",)])] == [[2, 0], []]
    assert (vocabulary.mark, vocabulary.size) == (3, 3 + 1 + 2 + 2 * 4)
    facts = [vocabulary.fact(key, value) for key in range(2) for value in range(4)]
    assert {mark for mark, _, _ in facts} == {3}
    assert {key for _, key, _ in facts} == {4, 5}
    assert [value for _, _, value in facts] == list(range(6, 14))


def test_too_few_different_words_are_refused():
    with pytest.raises(UserError, match="the text has 2 different words, but the recipe needs 1,000: use more text"):
        make_vocabulary([("a", "b")], words=1000, keys=1, values=1)
