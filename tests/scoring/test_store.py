"""The run folder: what is written comes back, and what is not as expected is refused in one line."""

import datetime
import errno
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import longlens
from longlens import UserError, open_scores, score
from longlens.cli import main
from longlens.corpus import text_sha256
from longlens.files import create_json, read_json
from longlens.runs import parts as run_parts
from longlens.runs.folder import SCHEMA_VERSION
from longlens.scoring import reader, store
from longlens.scoring.scores import ShortContext
from longlens.scoring.store import LONG_SCHEMA, SHORT_SCHEMA, RunWriter
from longlens.scoring.transformers import TransformersScorer
from tests.scoring.test_run import FakeScorer
from tests.tiny import byte_tokenizer, tiny_model
from tests.toys import NAN, manifest

ROOT = Path(__file__).parents[2]
SHORT = ShortContext(4, 2)
OTHER = ShortContext(8, 2)


def long_row(id, text="text", n=None, *, total=None, store_text=True):
    n = len(text) if n is None else n
    return {
        "id": id,
        "text_sha256": text_sha256(text),
        "text": text if store_text else None,
        "total_tokens": n if total is None else total,
        "token_ids": np.arange(n),
        "char_start": np.arange(n),
        "char_end": np.arange(n) + 1,
        "logprobs": np.linspace(-3, 0, n, dtype=np.float32),
    }


def short_row(id, n=4):
    """Under K = 4, so that no token of a text of 4 has a score."""
    return {"id": id, "logprobs": np.array([NAN] * min(n, 4) + [-1.0] * (n - 4), np.float32)}


def write(folder, ids="abc", shorts=(SHORT,), **options):
    with RunWriter(folder, manifest(), **options) as writer:
        for id in ids:
            writer.add(None, long_row(id))
            for short in shorts:
                writer.add(short, short_row(id))
    return folder


def parts(folder):
    return sorted(folder.glob("**/part-*.parquet"))


def everything(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


logprobs = st.sampled_from([-np.inf, 0.0, -0.0, -1e-45, -3.5]) | st.floats(-100, 0, width=32)


@st.composite
def documents(draw):
    """Rows of both sides; any Unicode, empty documents, and shorts that are all NaN, as before K."""
    ids = draw(st.lists(st.text(max_size=20), unique=True, max_size=6))
    rows = []
    for id in ids:
        text = draw(st.text(max_size=30))
        span = st.tuples(*[st.integers(0, len(text))] * 2).map(sorted)
        tokens = draw(st.lists(st.tuples(st.integers(0, 2**31 - 1), span, logprobs, logprobs), max_size=8))
        first = draw(st.sampled_from([NAN, -1.0]))
        rows.append(
            {
                "id": id,
                "text_sha256": text_sha256(text),
                "text": draw(st.sampled_from([text, None])),
                "total_tokens": draw(st.none() | st.integers(len(tokens), 2**40)),
                "token_ids": np.array([token[0] for token in tokens], dtype=np.int64),
                "char_start": np.array([token[1][0] for token in tokens], dtype=np.int64),
                "char_end": np.array([token[1][1] for token in tokens], dtype=np.int64),
                "logprobs": np.array([first, *(token[2] for token in tokens[1:])][: len(tokens)], dtype=np.float32),
                "short": np.array([NAN] * 4 + [token[3] for token in tokens[4:]], np.float32)[: len(tokens)],
            }
        )
    return rows


@settings(max_examples=30, deadline=None)
@given(documents(), st.integers(1, 12))
def test_what_is_written_comes_back(rows, row_group_tokens):
    with tempfile.TemporaryDirectory() as temporary, pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_parts, "ROW_GROUP_TOKENS", row_group_tokens)
        folder = Path(temporary, "run")
        with RunWriter(folder, manifest()) as writer:
            for row in rows:
                writer.add(None, {name: value for name, value in row.items() if name != "short"})
                writer.add(SHORT, {"id": row["id"], "logprobs": row["short"]})
        scores = open_scores(folder)
        assert list(scores.ids) == [row["id"] for row in rows]
        assert len(scores) == len(rows)
        for read, row in zip(scores, rows, strict=True):
            for name in ("id", "text_sha256", "text", "total_tokens"):
                assert getattr(read, name) == row[name]
            np.testing.assert_array_equal(read.token_ids, row["token_ids"])
            np.testing.assert_array_equal(read.char_spans[:, 0], row["char_start"])
            np.testing.assert_array_equal(read.char_spans[:, 1], row["char_end"])
            np.testing.assert_array_equal(read.long_logprobs, row["logprobs"])
            np.testing.assert_array_equal(read.short_logprobs, row["short"])
            assert (read.token_ids.dtype, read.char_spans.dtype) == (np.int64, np.int64)
            assert (read.long_logprobs.dtype, read.short_logprobs.dtype) == (np.float32, np.float32)
            assert (read.selected, read.char_spans.shape) == (SHORT, (len(row["token_ids"]), 2))


@pytest.mark.parametrize("name", ["a b", "hdfs:x", "s3:bucket", "ü🙂", "[bold]", "new\nline", "\udcff"])
def test_a_run_folder_may_have_any_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path(name))
    write(Path(name), "abcd")
    assert list(open_scores(name).ids) == ["a", "b", "c", "d"]


def test_parts_are_as_documented(tmp_path):
    write(tmp_path / "run")
    long, short = parts(tmp_path / "run")
    assert pq.read_schema(long) == LONG_SCHEMA
    assert pq.read_schema(short) == SHORT_SCHEMA
    assert short.parent.relative_to(tmp_path) == Path("run/short/K4-d2")
    columns = pq.read_metadata(long).row_group(0).to_dict()["columns"]
    assert {column["compression"] for column in columns} == {"ZSTD"}
    encodings = {column["path_in_schema"]: column["encodings"] for column in columns}
    assert "BYTE_STREAM_SPLIT" in encodings["logprobs.list.element"]
    assert "DELTA_BINARY_PACKED" in encodings["char_start.list.element"]


def test_row_groups_are_closed_by_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(run_parts, "ROW_GROUP_TOKENS", 8)
    write(tmp_path / "run", "abcde", ())
    (part,) = parts(tmp_path / "run")
    groups = pq.read_metadata(part)
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [2, 2, 1]


def test_parts_are_closed_by_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(run_parts, "ROW_GROUP_TOKENS", 4)
    monkeypatch.setattr(run_parts, "PART_TOKENS", 8)
    write(tmp_path / "run", "abcde", ())
    assert sorted(pq.read_metadata(part).num_rows for part in parts(tmp_path / "run")) == [1, 2, 2]
    assert sorted(open_scores(tmp_path / "run").ids) == list("abcde")


def test_parts_are_closed_once_their_oldest_row_is_old(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(run_parts.time, "monotonic", lambda: now[0])
    with RunWriter(tmp_path / "run", manifest()) as writer:
        writer.add(None, long_row("a"))
        now[0] += 20
        writer.add(None, long_row("b"))
        writer.tick()
        assert parts(tmp_path / "run") == []
        now[0] += 10
        writer.tick()
        assert list(open_scores(tmp_path / "run").ids) == ["a", "b"]
        writer.add(None, long_row("c"))
        now[0] += 29
        writer.tick()
        assert len(parts(tmp_path / "run")) == 1
    assert len(parts(tmp_path / "run")) == 2


def test_a_temporary_file_is_never_read_and_goes_away(tmp_path):
    write(tmp_path / "run", "a")
    for name in ("long/.part-00000-x.parquet.tmp", "short/K4-d2/.part-00000-y.parquet.tmp"):
        (tmp_path / "run" / name).write_bytes(b"half of a part")
    other_rank = tmp_path / "run" / "long" / ".part-00001-z.parquet.tmp"
    other_rank.write_bytes(b"a part that another rank is writing")
    assert list(open_scores(tmp_path / "run").ids) == ["a"]
    write(tmp_path / "run", "b")
    assert [path.name for path in (tmp_path / "run").rglob("*.tmp")] == [other_rank.name]


def test_nothing_is_seen_of_a_part_before_it_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(run_parts, "ROW_GROUP_TOKENS", 4)
    with RunWriter(tmp_path / "run", manifest()) as writer:
        writer.add(None, long_row("a"))
        assert [path.suffix for path in (tmp_path / "run" / "long").iterdir()] == [".tmp"]
        assert len(open_scores(tmp_path / "run")) == 0
    assert len(open_scores(tmp_path / "run")) == 1


class Reads(pq.ParquetFile):
    """Notes what is read, and which row groups are still in memory."""

    columns = []
    tables = []

    def read_row_group(self, i, columns=None, **options):
        table = super().read_row_group(i, columns=columns, **options)
        Reads.columns.append(columns)
        if columns is None:
            Reads.tables.append(weakref.ref(table))
        return table


@pytest.fixture
def reads(monkeypatch):
    monkeypatch.setattr(pq, "ParquetFile", Reads)
    monkeypatch.setattr(Reads, "columns", [])
    monkeypatch.setattr(Reads, "tables", [])
    return Reads


def test_opening_reads_ids_alone(tmp_path, reads):
    write(tmp_path / "run")
    scores = open_scores(tmp_path / "run")
    assert len(scores) == 3
    assert reads.columns == [["id", "text_sha256"], ["id"]]


def test_reading_keeps_a_bounded_number_of_row_groups(tmp_path, monkeypatch, reads):
    monkeypatch.setattr(run_parts, "ROW_GROUP_TOKENS", 8)
    write(tmp_path / "run", [f"{i:02}" for i in range(40)])
    scores = open_scores(tmp_path / "run")
    most = 0
    for _ in scores:
        most = max(most, sum(table() is not None for table in reads.tables))
    assert len(reads.tables) == 2 * 20  # each row group of both sides once
    assert most <= 2 * reader.CACHED_ROW_GROUPS + 1
    assert [row.id for row in scores[3:5]] == ["03", "04"]
    assert scores[-1].id == "39"


HOLD = """
import sys
from pathlib import Path
from longlens.scoring.store import RunWriter
from longlens.scoring.transformers import TransformersScorer
from tests.scoring.test_run import FakeScorer
from tests.tiny import byte_tokenizer, tiny_model
from tests.toys import manifest
writer = RunWriter(Path(sys.argv[1]), manifest())
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_writer_is_refused_until_the_first_one_is_killed(tmp_path):
    write(tmp_path / "run")
    before = everything(tmp_path / "run")
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=r"another process is writing to .*: wait for it, or use another directory"):
            RunWriter(tmp_path / "run", manifest())
        assert len(open_scores(tmp_path / "run")) == 3  # readers are not kept out
        process.send_signal(signal.SIGKILL)
    assert everything(tmp_path / "run") == before
    write(tmp_path / "run", "d")
    assert len(open_scores(tmp_path / "run")) == 4


def test_ranks_write_side_by_side(tmp_path):
    with RunWriter(tmp_path / "run", manifest(), rank=0), RunWriter(tmp_path / "run", manifest(), rank=1) as second:
        second.add(None, long_row("b"))
    write(tmp_path / "run", "a", ())
    assert [part.name[:11] for part in parts(tmp_path / "run")] == ["part-00000-", "part-00001-"]
    assert list(open_scores(tmp_path / "run").ids) == ["a", "b"]


def test_the_lock_is_free_after_a_refusal(tmp_path):
    write(tmp_path / "run")
    with pytest.raises(UserError, match="contains a different run"):
        RunWriter(tmp_path / "run", manifest(dtype="bfloat16"))
    write(tmp_path / "run")


def test_other_settings_are_refused_with_both_values(tmp_path):
    write(tmp_path / "run")
    before = everything(tmp_path / "run")
    with pytest.raises(UserError) as refused:
        RunWriter(tmp_path / "run", manifest(max_length=100, bos="published", new=1))
    message = str(refused.value)
    assert f"{tmp_path / 'run'} contains a different run: " in message
    assert "max_length is 32768 there and 100 here" in message
    assert "bos is 'window' there and 'published' here" in message
    assert "new is None there and 1 here" in message
    assert message.endswith("Use another folder, or the same settings")
    assert "dtype" not in message
    with pytest.raises(UserError, match="contains a different run: its model is 'toy', but 'model-2' was given"):
        RunWriter(tmp_path / "run", manifest("model-2", max_length=100))
    assert everything(tmp_path / "run") == before


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match=r"is not empty and contains no run \(it has 'thesis.txt'\): use a new folder"):
        RunWriter(tmp_path, manifest())
    assert everything(tmp_path) == {Path("thesis.txt"): b"precious"}


def test_an_empty_folder_and_hidden_files_are_fine(tmp_path):
    (tmp_path / ".gitignore").touch()
    assert len(open_scores(write(tmp_path))) == 3


@pytest.mark.parametrize("name", ["file", "file/in", "x" * 300])
def test_a_place_where_no_folder_can_be(name, tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match=r"is a file; expected a directory for the run|cannot write"):
        RunWriter(tmp_path / name, manifest())
    assert everything(tmp_path) == {Path("file"): b"precious"}


BROKEN = (
    r"is corrupt or was not written by longlens \(.+\): delete that file and run the same longlens score command again"
)


def read_all(folder):
    return [
        (row.id, row.text, row.long_logprobs.tobytes(), row.short_logprobs.tobytes()) for row in open_scores(folder)
    ]


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("content", [b"", b"PAR1", b"random" * 100, None])
def test_a_part_that_is_no_parquet_is_named(content, side, tmp_path):
    write(tmp_path / "run")
    part = parts(tmp_path / "run")[side]
    part.write_bytes(part.read_bytes()[:-9] if content is None else content)
    with pytest.raises(UserError, match=BROKEN) as refused:
        open_scores(tmp_path / "run")
    assert str(part) in str(refused.value)
    with pytest.raises(UserError, match=BROKEN), RunWriter(tmp_path / "run", manifest()) as writer:
        writer.done((None, SHORT)[side])
    part.unlink()
    write(tmp_path / "run")
    assert len(open_scores(tmp_path / "run")) == 3


def test_a_flipped_byte_is_never_read_as_a_score(tmp_path):
    write(tmp_path / "run")
    expected = read_all(tmp_path / "run")
    generator = random.Random(0)
    refused = 0
    for _ in range(150):
        part = generator.choice(parts(tmp_path / "run"))
        whole = part.read_bytes()
        place = generator.randrange(len(whole))
        part.write_bytes(whole[:place] + bytes([whole[place] ^ generator.randrange(1, 256)]) + whole[place + 1 :])
        try:
            assert read_all(tmp_path / "run") == expected, place
        except UserError:
            refused += 1
        part.write_bytes(whole)
    assert refused > 100


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"x": [1]}),
        pa.table({"id": ["a"]}),
        pa.table({"id": ["a"], "logprobs": [[1.0]]}),  # doubles
        pa.table({"id": [1], "logprobs": pa.array([[1.0]], pa.list_(pa.float32()))}),
    ],
)
@pytest.mark.parametrize("folder", ["long", "short/K4-d2"])
def test_a_foreign_parquet_file_is_named(table, folder, tmp_path):
    write(tmp_path / "run")
    pq.write_table(table, tmp_path / "run" / folder / "part-foreign.parquet")
    with pytest.raises(
        UserError, match=r"part-foreign.parquet is corrupt or was not written by longlens \(its columns are "
    ):
        open_scores(tmp_path / "run")


def test_other_files_in_a_run_are_left_alone(tmp_path):
    write(tmp_path / "run")
    for name in ("long/notes.txt", "short/notes.txt", "short/K4-d2/x.parquet", "keys.jsonl"):
        (tmp_path / "run" / name).write_text("mine")
    (tmp_path / "run" / "short" / "K8").mkdir()
    scores = open_scores(tmp_path / "run")
    assert (len(scores), scores.short_contexts) == (3, [SHORT])


@pytest.mark.parametrize("content", ["", "{", "\xff", "[" * 100_000, "[]", "1", "null", '{"a": "\\ud800"}'])
def test_a_broken_manifest(content, tmp_path):
    write(tmp_path / "run")
    (tmp_path / "run" / "manifest.json").write_bytes(content.encode("latin-1"))
    for use in (open_scores, lambda folder: RunWriter(folder, manifest())):
        with pytest.raises(UserError, match=r"manifest.json is .*: score again into a new folder"):
            use(tmp_path / "run")


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"schema_version": 2},
        {"schema_version": 1, "model": "M", "settings": {}},
        {"schema_version": 1, "model": {"name": "M"}, "settings": []},
        {"schema_version": 1, "model": {}, "settings": {}},
        {"model": {"name": "M"}, "settings": {}},
    ],
)
def test_a_manifest_of_something_else(content, tmp_path):
    write(tmp_path / "run")
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(
        UserError,
        match=r"is broken .no JSON object.|is not a manifest of (longlens|scores)",
    ):
        open_scores(tmp_path / "run")


@pytest.mark.parametrize("version", [0, 3, True, "1", "x"])
def test_another_schema_version(version, tmp_path):
    write(tmp_path / "run")
    (tmp_path / "run" / "manifest.json").write_text(json.dumps({"schema_version": version, "anything": "else"}))
    with pytest.raises(UserError, match=f"schema_version {version!r}, but this longlens reads 2: install the version"):
        open_scores(tmp_path / "run")


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(
        UserError, match=r"no such directory: .*nosuch. Create scores with: longlens score DOCS --model M"
    ):
        open_scores(tmp_path / "nosuch")
    with pytest.raises(UserError, match=r"contains no scores \(no manifest.json\): expected a run directory"):
        open_scores(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"contains no scores"):
        open_scores(tmp_path / "file")


def test_a_run_without_documents_is_empty(tmp_path):
    write(tmp_path / "run", "")
    scores = open_scores(tmp_path / "run")
    assert (len(scores), list(scores), scores.ids, scores.short_contexts) == (0, [], [], [])


def test_a_document_that_two_ranks_scored_is_there_once(tmp_path):
    write(tmp_path / "run", "ab", rank=0)
    write(tmp_path / "run", "bc", rank=1)
    scores = open_scores(tmp_path / "run")
    assert list(scores.ids) == ["a", "b", "c"]
    assert [row.id for row in scores] == ["a", "b", "c"]


def test_an_id_with_two_texts_is_an_error(tmp_path):
    write(tmp_path / "run", "ab", rank=0)
    with RunWriter(tmp_path / "run", manifest(), rank=1) as writer:
        writer.add(None, long_row("b", "another text"))
    with pytest.raises(UserError, match=r"holds two texts with the id 'b': score them into two folders"):
        open_scores(tmp_path / "run")


def test_documents_wait_for_the_side_that_is_missing(tmp_path):
    with RunWriter(tmp_path / "run", manifest()) as writer:
        for id in "abc":
            writer.add(None, long_row(id))
        writer.add(SHORT, short_row("b"))
        writer.add(OTHER, short_row("c"))
    scores = open_scores(tmp_path / "run", context=4)
    assert (list(scores.ids), scores.num_incomplete) == (["b"], 2)
    assert any("2 documents lack the short context" in note for note in longlens.perplexity(scores).warnings)
    assert scores.short_contexts == [SHORT, OTHER]
    assert list(scores[0].short) == [SHORT]
    assert list(open_scores(tmp_path / "run").ids) == ["c"]  # the largest K unless named
    with pytest.raises(UserError, match="no scores at K=16; scored short contexts: K=4, d=2, K=8, d=2"):
        open_scores(tmp_path / "run", context=16)
    with pytest.raises(KeyError):
        scores.get("a")


def test_a_run_of_long_contexts_alone(tmp_path):
    write(tmp_path / "run", shorts=())
    scores = open_scores(tmp_path / "run")
    assert (scores.short_contexts, scores[0].selected) == ([], None)
    with pytest.raises(UserError, match=r"no short-context scores: score it again"):
        scores[0].short_logprobs  # noqa: B018
    with pytest.raises(UserError, match=r"no scores at K=4; scored short contexts: none\. Score with `context=4`"):
        open_scores(tmp_path / "run", context=4)


def test_what_was_done_is_what_is_in_committed_parts(tmp_path):
    write(tmp_path / "run", "ab")
    with RunWriter(tmp_path / "run", manifest()) as writer:
        assert writer.done(None) == dict.fromkeys("ab", hashlib.sha256(b"text").hexdigest())
        assert set(writer.done(SHORT)) == {"a", "b"}
        assert writer.done(OTHER) == {}


def test_what_is_finished_is_kept_when_the_run_fails(tmp_path):
    def fail():
        with RunWriter(tmp_path / "run", manifest()) as writer:
            writer.add(None, long_row("a"))
            raise RuntimeError("the model failed")

    with pytest.raises(RuntimeError, match="the model failed"):
        fail()
    assert list(open_scores(tmp_path / "run").ids) == ["a"]


def test_columns_and_their_types_are_frozen():
    """Whoever changes them has to raise SCHEMA_VERSION."""
    assert SCHEMA_VERSION == 2
    long = {field.name: field.type for field in LONG_SCHEMA}
    places, floats = pa.list_(pa.int64()), pa.list_(pa.float32())
    assert long == {
        "id": pa.string(),
        "text_sha256": pa.string(),
        "text": pa.string(),
        "total_tokens": pa.int64(),
        "token_ids": pa.list_(pa.int32()),
        "char_start": places,
        "char_end": places,
        "logprobs": floats,
        "answer_spans": places,
        "columns": pa.map_(pa.string(), floats),
        "metadata": pa.string(),
    }
    assert {field.name: field.type for field in SHORT_SCHEMA} == {"id": pa.string(), "logprobs": floats}


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A run of a model, with one document that is longer than K and one that is not."""
    folder = tmp_path_factory.mktemp("real") / "run"
    documents = [longlens.Document(id=id, text="It was the best of times. " * n) for id, n in (("a", 3), ("b", 1))]
    scorer = TransformersScorer(tiny_model("llama"), byte_tokenizer(), name="tiny", weights_sha256="0")
    score(documents, scorer, context=32, stride=16, out=folder)
    return folder


def changed(folder, side, column, change):
    """Rewrites the row of document a in a part, whose checksums and metadata are right."""
    (part,) = (folder / side).glob("part-*")
    table = pq.read_table(part)
    rows = table.to_pylist()
    (row,) = (row for row in rows if row["id"] == "a")
    row[column] = change(row[column])
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), part)


LISTS = ["token_ids", "char_start", "char_end", "logprobs"]


@pytest.mark.parametrize(
    ("side", "column", "change", "message"),
    [
        *[("long", name, lambda values: values[:1], "for 78 tokens|entries for 1 tokens") for name in LISTS],
        *[("long", name, lambda _: None, f"{name} is null, or something in it") for name in LISTS],
        *[("long", name, lambda values: [None, *values[1:]], f"{name} is null, or something in it") for name in LISTS],
        ("short/K32-d16", "logprobs", lambda _: [-20.0], "logprobs has 1 entries for 78 tokens"),
        ("short/K32-d16", "logprobs", lambda _: None, "logprobs is null"),
        ("short/K32-d16", "logprobs", lambda values: [-20.0, *values[1:]], "scores before token 32"),
        ("short/K32-d16", "logprobs", lambda values: [*values[:-1], NAN], "a log-probability is NaN"),
        ("short/K32-d16", "id", lambda _: None, "has no id"),
        ("long", "id", lambda _: None, "has no id"),
        ("long", "text_sha256", lambda _: None, "has no id or no text_sha256"),
        ("long", "text", lambda text: text.upper(), "the text has another hash"),
        ("long", "total_tokens", lambda n: n - 1, "total_tokens is 77, and there are 78"),
        ("long", "token_ids", lambda values: [-1, *values[1:]], "a token id is below 0"),
        ("long", "char_start", lambda values: [-1, *values[1:]], "a span is reversed or ends after 78 characters"),
        ("long", "char_end", lambda values: [*values[:-1], 10**9], "a span is reversed or ends after 78 characters"),
        ("long", "logprobs", lambda values: [5.0] * len(values), "a log-probability is 5, which is above 0"),
        ("long", "logprobs", lambda values: [*values[:-1], float("inf")], "a log-probability is inf"),
        ("long", "logprobs", lambda values: [values[0], NAN, *values[2:]], "a log-probability is NaN"),
        *[("long", "metadata", lambda _, text=text: text, "metadata is not a JSON object") for text in ("{", "[1]")],
        *[
            (
                "long",
                "answer_spans",
                lambda _, ends=ends: ends,
                "answer_spans are not pairs of character offsets in the text",
            )
            for ends in ([0], [2, 1], [-1, 2], [0, 79], [0, None])
        ],
    ],
)
def test_a_row_that_cannot_be_right_is_named_with_its_part(real, side, column, change, message, tmp_path, capsys):
    shutil.copytree(real, tmp_path / "run")
    changed(tmp_path / "run", side, column, change)
    command = ["perplexity", str(tmp_path / "run"), "--evaluator-scores", str(real), "--context", "32", "--beta", "-50"]
    assert main(command) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert (out, line[:7]) == ("", "error: ")
    assert re.search(
        rf"part-\S+ is corrupt or was not written by longlens \(.*({message}).*\): delete that file and run", line
    )


def test_without_its_text_a_span_still_has_a_bound(tmp_path):
    with RunWriter(tmp_path / "run", manifest()) as writer:
        writer.add(None, long_row("a", store_text=False) | {"char_end": np.array([1, 2, 3, 10**9])})
    with pytest.raises(UserError, match="a span is reversed or ends after 1052672 characters"):
        open_scores(tmp_path / "run")[0]


@pytest.mark.parametrize(("value", "message"), [(NAN, "NaN"), (0.5, "0.5, which is above 0")])
def test_an_engine_that_gives_what_cannot_be_is_refused_before_it_is_stored(value, message, tmp_path):
    class Wrong(FakeScorer):
        def _answers(self, batch):
            for result in super()._answers(batch):
                yield result._replace(logprobs=np.full_like(result.logprobs, value))

    documents = [longlens.Document(id="a", text="some text")]
    with pytest.raises(UserError, match=rf"fake returns log-probabilities of document 'a' .* \({message}\)"):
        score(documents, Wrong(), context=4, stride=2, out=tmp_path / "run")
    assert not list((tmp_path / "run").glob("*/*"))


def test_shards_of_two_models_cannot_claim_one_folder(tmp_path, monkeypatch):
    """Both find no manifest; the second one is about to write its own when the first one has done so."""
    create, waiting = store.create_json, []

    def late(path, content):
        if not waiting:
            waiting.append(path)
            with RunWriter(tmp_path / "run", manifest("other"), rank=1) as writer:
                writer.add(None, long_row("b"))
        return create(path, content)

    monkeypatch.setattr(store, "create_json", late)
    with pytest.raises(UserError, match="its model is 'other', but 'toy' was given"):
        RunWriter(tmp_path / "run", manifest(), rank=0)
    assert open_scores(tmp_path / "run").manifest["model"]["name"] == "other"
    assert not list((tmp_path / "run").glob(".manifest*"))


def test_a_manifest_is_claimed_once_also_without_hard_links(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", none)
    made = [create_json(tmp_path / "manifest.json", {"number": number}) for number in range(2)]
    assert (made, read_json(tmp_path / "manifest.json")) == ([True, False], {"number": 0})
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("changes", [{"name": "other"}, {"dtype": "bfloat16"}])
def test_a_part_of_another_run_is_not_taken(changes, tmp_path):
    write(tmp_path / "run", "a")
    with RunWriter(tmp_path / "other", manifest(**changes)) as writer:
        writer.add(None, long_row("b"))
    (part,) = (tmp_path / "other").glob("long/part-*")
    shutil.copy(part, tmp_path / "run" / "long")
    with pytest.raises(
        UserError, match=r"\(it belongs to a run of another model or with other settings\): delete that file"
    ):
        open_scores(tmp_path / "run")


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_is_deleted_meanwhile_is_not_made_anew(replaced, tmp_path):
    def delete():
        with RunWriter(tmp_path / "run", manifest()) as writer:
            writer.add(None, long_row("a"))
            (tmp_path / "run").rename(tmp_path / "moved")
            if replaced:
                (tmp_path / "run").mkdir()
            writer.add(SHORT, short_row("a"))

    with pytest.raises(UserError, match="run was deleted or moved while this process was writing: run the same"):
        delete()
    assert list(tmp_path.glob("run/**/*")) == []
    write(tmp_path / "run")


def test_answers_are_kept_and_parts_of_before_have_none(tmp_path):
    folder = tmp_path / "run"
    with RunWriter(folder, manifest()) as writer:
        for id, spans in (("a", [0, 2, 3, 3]), ("b", []), ("c", None)):
            writer.add(None, long_row(id) | {"answer_spans": spans})
    assert [row.answer_spans for row in open_scores(folder)] == [[(0, 2), (3, 3)], [], None]
    (part,) = parts(folder)
    pq.write_table(
        pq.read_table(part).drop_columns(["answer_spans", "columns", "metadata"]), part, write_page_checksum=True
    )
    assert [row.answer_spans for row in open_scores(folder)] == [None] * 3


def test_other_fields_of_a_row_are_kept_with_its_text(tmp_path):
    lines = [{"id": "a", "text": "It was the best of times. " * 3, "source": "novel", "tags": ["x", 1], "year": None}]
    lines += [{"id": "b", "text": "It was the worst of times. " * 3}]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    documents = list(longlens.read_documents([tmp_path / "rows.jsonl"]))
    odd = longlens.Document(id="c", text="abc " * 30, metadata={"day": datetime.date(2026, 11, 28), "lone": "\ud800"})
    scorer = TransformersScorer(tiny_model("llama"), byte_tokenizer(), name="tiny", weights_sha256="0")
    wanted = {
        "a": {"source": "novel", "tags": ["x", 1], "year": None},
        "b": {},
        "c": {"day": "2026-11-28", "lone": "\ud800"},
    }
    settings = {"context": 32, "stride": 16}
    in_memory = score([*documents, odd], scorer, **settings)
    stored = score([*documents, odd], scorer, out=tmp_path / "run", **settings)
    assert {row.id: row.metadata for row in stored} == {row.id: row.metadata for row in in_memory} == wanted
    private = score([*documents, odd], scorer, out=tmp_path / "private", store_text=False, **settings)
    assert [row.metadata for row in private] == [{}] * 3
    assert b"novel" not in b"".join(part.read_bytes() for part in parts(tmp_path / "private"))
