"""Datasets and rows go into `score`, and scores come out as tables."""

import subprocess
import sys

import datasets
import numpy as np
import pyarrow as pa
import pytest

from longlens import Document, UserError, open_scores, score
from longlens.corpus import to_documents
from longlens.settings.options import Reading
from tests.scoring.test_run import RULE, TEXTS, FakeScorer, documents, rows
from tests.tiny import byte_tokenizer

TABLE = {"id": list(TEXTS), "text": list(TEXTS.values())}
COLUMNS = (
    *("document", "index", "token_id", "char_start", "char_end", "long_logprob", "short_logprob", "lsd", "lcl"),
    *("context", "stride"),
)


@pytest.fixture
def expected():
    return rows(score(documents(), FakeScorer(), **RULE))


def test_a_dataset_is_scored(expected, tmp_path):
    dataset = datasets.Dataset.from_dict(TABLE)
    assert rows(score(dataset, FakeScorer(), **RULE)) == expected
    assert rows(score(dataset.to_iterable_dataset(), FakeScorer(), **RULE, out=tmp_path / "run")) == expected
    shards = [score(dataset, FakeScorer(), **RULE, shard=(rank, 2)) for rank in range(2)]
    assert [list(shard.ids) for shard in shards] == [["empty-ish", "emoji"], ["short", "plain"]]


def test_rows_of_other_names(expected):
    dataset = datasets.Dataset.from_dict({"name": TABLE["id"], "body": TABLE["text"], "answer_spans": [[[0, 1]]] * 4})
    reading = Reading(text_field="body", id_field="name")
    found = score(dataset, FakeScorer(), **RULE, reading=reading)
    assert rows(found) == expected
    assert found[0].answer_spans == [(0, 1)]
    assert len(score(dataset, FakeScorer(), **RULE, reading=Reading(text_field="body", samples=3))) == 3


def test_lists_of_rows_and_of_texts(expected):
    assert rows(score([{"id": id, "text": text} for id, text in TEXTS.items()], FakeScorer(), **RULE)) == expected
    assert rows(score(({"id": id, "text": text} for id, text in TEXTS.items()), FakeScorer(), **RULE)) == expected
    found = score([*TEXTS.values(), Document(id="last", text="a document")], FakeScorer(), **RULE)
    assert list(found.ids) == [f"row#{number:09}" for number in range(1, 5)] + ["last"]
    assert [row.text for row in found] == [*TEXTS.values(), "a document"]


def test_rows_that_are_tokenized(models):
    tokenizer = byte_tokenizer()
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("some text", "other")]
    dataset = datasets.Dataset.from_dict({"input_ids": ids})
    found = score(dataset, FakeScorer(), **RULE, reading=Reading(tokenized_with=str(models / "llama"), min_tokens=6))
    assert [row.text for row in found] == ["some text"]


@pytest.mark.parametrize(
    ("given", "reading", "message"),
    [
        (
            "a.txt",
            None,
            "the documents are 'a.txt', expected a list of documents or a dataset: for files, use",
        ),
        ({"train": ["a"]}, None, r"expected a list of documents or a dataset: pass one of its splits"),
        (3, None, "the documents are 3, expected a list"),
        (
            [Document(id="a", text="x"), 3],
            None,
            r"document 2 is a int .3., expected a Document, a text, or",
        ),
        ([{"body": "x"}], None, "the field 'text' is missing in row 1, which has 'body': pass `text_field`"),
        ([{"text": ""}], None, "row 1 has an empty text"),
        ([""], None, "text 1 has an empty text"),
        (datasets.Dataset.from_dict({"body": ["x"]}), None, "the field 'text' is missing in the dataset, which has 'b"),
        (datasets.Dataset.from_dict({"text": [3]}), None, "row 1 of the dataset has a int in the field 'text'"),
        ([{"text": "x"}], Reading(split="train"), "`subset` and `split` have no effect on documents in memory"),
    ],
)
def test_what_is_no_document_is_refused_before_the_model_runs(given, reading, message):
    scorer = FakeScorer()
    with pytest.raises(UserError, match=message) as refused:
        score(given, scorer, **RULE, reading=reading)
    assert "\n" not in str(refused.value)
    assert scorer.requests == []


def test_documents_pass_as_they_are():
    given = documents()
    assert to_documents(given) == given


@pytest.mark.parametrize("store_text", [True, False])
def test_a_table_has_a_row_a_token(store_text, tmp_path):
    for rank in range(2):
        score(
            documents(),
            FakeScorer(),
            context=[4, 16],
            stride=[2, 5],
            out=tmp_path,
            shard=(rank, 2),
            store_text=store_text,
        )
    scores = open_scores(tmp_path, context=16)
    table, frame = scores.to_arrow(), scores.to_pandas()
    assert tuple(table.column_names) == COLUMNS == tuple(frame.columns)
    assert len(table) == sum(len(row.token_ids) for row in scores)
    assert set(table["context"].to_pylist()) == {16}
    for id, part in frame.groupby("document", observed=True):
        row = scores.get(id)
        assert part["index"].tolist() == list(range(len(row.token_ids)))
        assert part["token_id"].tolist() == row.token_ids.tolist()
        assert part[["char_start", "char_end"]].to_numpy().tolist() == row.char_spans.tolist()
        for column, values in (
            ("long_logprob", row.long_logprobs),
            ("short_logprob", row.short_logprobs),
            ("lsd", row.lsd),
            ("lcl", row.lcl),
        ):
            np.testing.assert_array_equal(part[column].to_numpy(), values)
        assert row.to_pandas().equals(part.reset_index(drop=True).assign(document=row.to_pandas()["document"]))
    every = scores.to_pandas(every_context=True)
    assert len(every) == 2 * len(frame)
    assert every.groupby(["context", "stride"]).size().to_dict() == {(4, 2): len(frame), (16, 5): len(frame)}
    small = every[(every["document"] == "plain") & (every["context"] == 4)]
    np.testing.assert_array_equal(small["lsd"].to_numpy(), scores.get("plain").at(context=4).lsd)


def test_tables_of_scores_in_memory_and_of_long_contexts_alone():
    table = score(documents(), FakeScorer(), context=None).to_arrow()
    assert tuple(table.column_names) == COLUMNS
    assert table["context"].null_count == table["lsd"].null_count == len(table) > 0
    assert table.schema == score([], FakeScorer(), **RULE).to_arrow().schema
    assert table.schema == score(documents(), FakeScorer(), **RULE).to_arrow().schema
    assert pa.types.is_dictionary(table.schema.field("document").type)


def test_pandas_is_imported_when_it_is_used():
    code = "import sys, longlens.scoring.scores; print(sorted({'pandas', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n"
