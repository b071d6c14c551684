"""Packing: every token in one row, no row too long, documents apart; what is left out is counted."""

import itertools

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longlens.data.packing import BestFit, Fill, PackingCounts, pack, pack_dataset
from longlens.data.store import read_columns
from longlens.errors import LonglensWarning, UserError

PACKINGS = [Fill(), Fill(keep_remainder=False), BestFit(), BestFit(buffer_rows=1), BestFit(buffer_rows=3)]


def documents_of(sizes):
    """Documents whose tokens are all different, so that a token says where it came from."""
    ends = np.cumsum(sizes)
    return [
        {"input_ids": np.arange(end - size, end, dtype=np.int32), "token_weights": (np.arange(end - size, end) / 7)}
        for size, end in zip(sizes, ends, strict=True)
    ]


def spans(row):
    """The documents of a row, as its positions tell them."""
    starts = [*np.flatnonzero(row["position_ids"] == 0), len(row["position_ids"])]
    return [row["input_ids"][start:stop] for start, stop in itertools.pairwise(starts)]


@settings(max_examples=300, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), max_size=30),
    length=st.integers(2, 20),
    packing=st.sampled_from(PACKINGS),
    too_long=st.sampled_from(["split", "cut", "drop"]),
    min_tokens=st.integers(1, 6),
    max_tokens=st.none() | st.integers(6, 40),
    piece=st.integers(2, 20),
)
def test_every_token_is_in_one_row_or_counted(sizes, length, packing, too_long, min_tokens, max_tokens, piece):
    counts, piece = PackingCounts(), min(piece, length)
    options = {"too_long": too_long, "min_tokens": min_tokens, "max_tokens": max_tokens, "piece_length": piece}
    documents = documents_of(sizes)
    rows = list(pack(documents, length, packing=packing, counts=counts, **options))
    found = np.concatenate([row["input_ids"] for row in rows]) if rows else np.zeros(0)
    assert len(set(found.tolist())) == len(found) == counts.row_tokens
    assert (counts.documents, counts.tokens, counts.rows) == (len(sizes), sum(sizes), len(rows))
    # What should be there, by the words of the documentation.
    wanted, longest = [], min(max_tokens or 99, piece if too_long == "drop" else 99)
    for document in documents:
        ids = document["input_ids"]
        if min_tokens <= len(ids) <= longest:
            parts = [ids[start : start + piece] for start in range(0, len(ids), piece)]
            parts = parts[:1] if too_long == "cut" else [parts[0], *(p for p in parts[1:] if len(p) >= min_tokens)]
            wanted += [int(id) for part in parts for id in part]
    missing = set(wanted) - set(found.tolist())
    assert set(found.tolist()) <= set(wanted)
    assert counts.left_tokens == len(missing)
    assert not missing or (packing == Fill(keep_remainder=False) and len(missing) < length)
    assert counts.packable_tokens == len(wanted)
    kept = counts.short_tokens + counts.long_tokens + counts.cut_tokens + counts.tail_tokens
    assert counts.tokens == counts.row_tokens + kept + counts.left_tokens


@settings(max_examples=200, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), max_size=30), length=st.integers(2, 20), packing=st.sampled_from(PACKINGS))
def test_rows(sizes, length, packing):
    rows = list(pack(documents_of(sizes), length, packing=packing))
    for row in rows:
        assert 1 <= len(row["input_ids"]) <= length
        assert {len(column) for column in row.values()} == {len(row["input_ids"])}
        assert row["position_ids"][0] == 0
        np.testing.assert_array_equal(row["token_weights"], row["input_ids"] / 7)
        for ids in spans(row):
            np.testing.assert_array_equal(np.diff(ids), 1)  # one document, in order
        first = row["position_ids"] == 0
        np.testing.assert_array_equal(row["labels"], np.where(first, -100, row["input_ids"]))
    again = list(pack(documents_of(sizes), length, packing=packing))
    assert [row["input_ids"].tolist() for row in rows] == [row["input_ids"].tolist() for row in again]
    if isinstance(packing, Fill):
        assert all(len(row["input_ids"]) == length for row in rows[:-1])
    else:
        # Pieces stay whole: as many of them as splitting gives, none of them divided again.
        pieces = sorted(size for whole in sizes for size in [length] * (whole // length) + [whole % length] if size)
        assert sorted(len(ids) for row in rows for ids in spans(row)) == pieces


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), max_size=30), length=st.integers(2, 20))
def test_fill_is_one_buffer_that_is_cut(sizes, length):
    """The naive way, where no document is longer than a row: join all, cut at every row's end."""
    sizes = [min(size, length) for size in sizes]
    rows = [row["input_ids"].tolist() for row in pack(documents_of(sizes), length, packing=Fill())]
    whole = list(range(sum(sizes)))
    assert rows == [whole[start : start + length] for start in range(0, len(whole), length)]


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(1, 20), max_size=40))
def test_best_fit_leaves_no_two_rows_that_would_fit_into_one(sizes):
    rows = [len(row["input_ids"]) for row in pack(documents_of(sizes), 20, packing=BestFit(buffer_rows=999))]
    assert all(one + other > 20 for at, one in enumerate(rows) for other in rows[at + 1 :])


def test_a_bounded_buffer_fills_rows_nearly():
    sizes = np.random.default_rng(0).integers(1, 200, 3000).tolist()
    rows = [len(row["input_ids"]) for row in pack(documents_of(sizes), 500, packing=BestFit(buffer_rows=16))]
    assert sum(rows) / (500 * len(rows)) > 0.995


def test_the_buffer_is_bounded():
    read = []

    def documents():
        for at in range(1000):
            read.append(at)
            yield {"input_ids": np.full(10, at)}

    next(pack(documents(), 20, packing=BestFit(buffer_rows=4)))
    assert len(read) == 8


def test_by_hand():
    rows = list(pack(documents_of([5, 2, 3, 1]), 4, packing=BestFit()))
    assert [row["input_ids"].tolist() for row in rows] == [[0, 1, 2, 3], [4, 7, 8, 9], [5, 6, 10]]
    assert rows[1]["position_ids"].tolist() == [0, 0, 1, 2]
    assert rows[1]["labels"].tolist() == [-100, -100, 8, 9]
    counts = PackingCounts()
    rows = list(pack(documents_of([5, 2, 3, 1]), 4, packing=Fill(), counts=counts))
    assert [row["input_ids"].tolist() for row in rows] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert (counts.split_documents, counts.wrapped_pieces) == (1, 1)


def test_labels_of_documents_are_kept():
    document = {"input_ids": np.arange(4), "labels": np.array([7, -100, 2, 3])}
    (row,) = pack([document], 9, packing=Fill())
    assert row["labels"].tolist() == [-100, -100, 2, 3]
    assert document["labels"][0] == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 1}, "`length` is 1; a row needs at least 2 tokens, such as 65536"),
        ({"piece_length": 9}, "`piece_length` is 9; expected 2 to 8 tokens, the length of a row"),
        ({"too_long": "nonsense"}, "`too_long` is 'nonsense'; expected split, cut or drop"),
    ],
)
def test_settings_are_checked_at_once(options, message):
    with pytest.raises(UserError, match=message):
        pack([], options.pop("length", 8), packing=Fill(), **options)


def test_documents_with_other_columns():
    with pytest.raises(UserError, match="document 2 has the columns input_ids, those before it have input_ids, token"):
        list(pack([*documents_of([3]), {"input_ids": np.arange(3)}], 8, packing=Fill()))


def test_a_dataset():
    rows = {"input_ids": [[1, 2, 3], [4], [5, 6]], "token_weights": [[1.0, 0.5, 2.0], [3.0], [4.0, 5.0]]}
    dataset = datasets.Dataset.from_dict(rows | {"text": ["a", "b", "c"]})
    packed, counts = pack_dataset(dataset, 4)
    assert packed[:] == {
        "input_ids": [[1, 2, 3, 4], [5, 6]],
        "labels": [[-100, 2, 3, -100], [-100, 6]],
        "position_ids": [[0, 1, 2, 0], [0, 1]],
        "token_weights": [[1.0, 0.5, 2.0, 3.0], [4.0, 5.0]],
    }
    assert (counts.documents, counts.rows, counts.row_tokens) == (3, 2, 6)
    with pytest.warns(LonglensWarning, match="1 documents with token_weights were split, and tokens of later"):
        pack_dataset(dataset, 2)


def test_a_dataset_that_is_not_tokenized():
    with pytest.raises(UserError, match="row 0 has no input_ids, it has 'text': tokenize it first"):
        pack_dataset(datasets.Dataset.from_dict({"text": ["a"]}), 4)
    uneven = datasets.Dataset.from_dict({"input_ids": [[1, 2]], "labels": [[1]]})
    with pytest.raises(UserError, match="labels of row 0 has 1 entries for 2 input_ids"):
        pack_dataset(uneven, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": 5}, "input_ids of r is 5, expected a flat list of integers"),
        ({"input_ids": [[1, 2]]}, r"input_ids of r is \[\[1, 2\]\], expected a flat list"),
        ({"input_ids": [[1], [1, 2]]}, "expected a flat list"),
        ({"input_ids": [1.5, 2]}, "expected a flat list of integers"),
        ({"input_ids": ["5", "6"]}, "expected a flat list of integers"),
        ({"input_ids": [True, False]}, "expected a flat list of integers"),
        ({"input_ids": [1, None]}, "expected a flat list of integers"),
        ({"input_ids": [1, 2**31]}, "beyond int32"),
        ({"input_ids": [1, 10**30]}, "expected a flat list of integers|beyond int32"),
        ({"input_ids": [1, -1]}, "input_ids of r has -1, and token ids of this tokenizer are 0 to 299"),
        ({"input_ids": [1, 300]}, "input_ids of r has 300, and token ids of this tokenizer are 0 to 299"),
        ({"labels": [1, 300]}, "labels of r has 300, and token ids"),
        ({"labels": [1, -101]}, "labels of r has -101, and token ids"),
        ({"labels": {"a": 1}}, "labels of r is {'a': 1}, expected a flat list of integers"),
        ({"token_weights": [1.0]}, "token_weights of r has 1 entries for 2"),
        ({"token_weights": [1.0, None]}, "token_weights of r has nan, expected a number of 0 or more"),
        ({"token_weights": [1.0, -1]}, "token_weights of r has -1.0, expected"),
        ({"token_weights": "ab"}, "token_weights of r is 'ab', expected a flat list of numbers"),
        ({"short_logprobs": [None, 0.5]}, "short_logprobs of r has 0.5, expected a log-probability of 0 or less"),
    ],
)
def test_columns_that_cannot_be(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        read_columns({"input_ids": [1, 2]} | changes, "r", vocabulary=300)
    assert len(str(caught.value)) < 300


def test_columns_that_can_be():
    row = {"input_ids": [0, 299], "labels": [-100, 299], "token_weights": [1, 0], "short_logprobs": [None, -1]}
    columns = read_columns(row, "r", vocabulary=300)
    assert {name: values.dtype.name for name, values in columns.items()} == {
        "input_ids": "int32",
        "labels": "int32",
        "token_weights": "float32",
        "short_logprobs": "float32",
    }
    assert columns["labels"].tolist() == [-100, 299]
    np.testing.assert_equal(columns["short_logprobs"], np.array([np.nan, -1], dtype=np.float32))
    assert len(read_columns({"input_ids": []}, "r", vocabulary=300)["input_ids"]) == 0
