"""Mixtures: shares, order, counts, the same on any machine, and after any interruption."""

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longlens.data import mixture as mixing
from longlens.data.documents import Framing
from longlens.data.mixture import allocate, interleave, mix, pack_folder
from longlens.data.packing import BestFit
from longlens.data.recipe import Mixture, MixtureSource
from longlens.data.store import DatasetFolder, check_rows
from longlens.errors import UserError
from tests.tiny import byte_tokenizer


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """The current folder, with two sources: books (2 files) and code (2 repositories, 3 files)."""
    files = {
        "books/a.txt": "It was the best of times. " * 20,
        "books/b.txt": "Call me Ishmael. " * 30,
        "code/x/src/b.py": "print(2)\n" * 20,
        "code/x/a.py": "print(1)\n" * 20,
        "code/y/c.py": "print(3)\n" * 20,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(**changes):
    sources = {
        "books": MixtureSource(weight=60, path="books"),
        "code": MixtureSource(weight=40, path="code", group_by="repository"),
    }
    return Mixture(**{"sources": sources, "length": 64, "tokens": 640} | changes)


def one(path="books", **changes):
    return recipe(sources={"a": MixtureSource(weight=100, path=path, **changes)})


def rows(folder):
    paths = sorted(Path(folder, "data").glob("*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def decoded(rows):
    return byte_tokenizer().decode([id for row in rows for id in row["input_ids"]])


shares = st.lists(st.integers(1, 50), min_size=1, max_size=8)


@settings(max_examples=200, deadline=None)
@given(parts=shares, total=st.integers(1, 5000))
def test_rows_are_within_one_of_each_weight(parts, total):
    weights = [100 * part / sum(parts) for part in parts]
    made = Mixture(
        sources={f"s{at}": MixtureSource(weight=w, path="x") for at, w in enumerate(weights)},
        length=2,
        tokens=2 * total,
    )
    if any(weight * total / 100 < 1 for weight in weights):
        return  # may be refused, see test_a_small_share_that_is_no_row
    found = allocate(made)
    assert sum(found.values()) == total
    assert all(abs(n - w * total / 100) < 1 for n, w in zip(found.values(), weights, strict=True))


@settings(max_examples=100, deadline=None)
@given(counts=st.lists(st.integers(1, 60), min_size=1, max_size=6), seed=st.integers(0, 9))
def test_any_beginning_has_about_the_shares_of_the_whole(counts, seed):
    wanted = {f"s{at}": count for at, count in enumerate(counts)}
    order = interleave(wanted, seed)
    assert Counter(order) == wanted
    assert order == interleave(wanted, seed)
    for end in range(len(order) + 1):
        seen = Counter(order[:end])
        # Row k of n stands in [k/n, (k+1)/n): at most one row of each source is off on either side.
        assert all(abs(seen[n] - end * c / len(order)) <= 1 + len(wanted) * c / len(order) for n, c in wanted.items())


def test_the_seed_orders_rows():
    assert interleave({"a": 50, "b": 50}, 0) != interleave({"a": 50, "b": 50}, 1)


def test_the_order_is_the_same_on_any_machine():
    assert "".join(interleave({"a": 6, "b": 4}, 0)) == "ababaabaab"


def test_a_mixture(texts):
    counts = mix(recipe(), byte_tokenizer(), "out")
    assert (counts["rows"], counts["tokens"]) == (10, 640)
    made = rows("out")
    assert Counter(row["source"] for row in made) == {"books": 6, "code": 4}
    assert {len(row["input_ids"]) for row in made} == {64}
    books = [row for row in made if row["source"] == "books"]
    joined = "".join(f"<s>{(texts / 'books' / name).read_text()}</s>" for name in ("a.txt", "b.txt"))
    assert joined.startswith(decoded(books))
    assert json.loads((texts / "out" / "counts.json").read_text()) == counts
    ids = np.concatenate([row["input_ids"] for row in made]).astype("<i4")
    assert hashlib.sha256(ids.tobytes()).hexdigest() == counts["input_ids_sha256"]
    assert {path.name for path in (texts / "out").iterdir()} <= {"manifest.json", "counts.json", "data", ".lock"}
    books_counts = counts["sources"]["books"]
    assert (books_counts["documents"], books_counts["rows"], books_counts["wrapped_pieces"]) == (1, 6, 0)


def test_the_ids_are_the_same_on_any_machine(texts):
    """Held against a constant: a change of the order, of packing or of framing is a change that users have to know."""
    digest = mix(recipe(), byte_tokenizer(), "out")["input_ids_sha256"]
    assert digest == "333b14e31bf10d1ca026c811eb4a8579ab13b4e0820ec39cf1bbe02d08a8d71d"


def test_threads_of_the_tokenizer_change_nothing(texts, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    mix(recipe(), byte_tokenizer(), "one")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.setattr("longlens.data.documents.BATCH", 1)
    mix(recipe(), byte_tokenizer(), "many")
    assert files("one") == files("many")


def test_the_library_datasets_reads_it(texts):
    mix(recipe(), byte_tokenizer(), "out")
    found = datasets.load_dataset("out", split="train", cache_dir="cache")
    assert found.column_names == ["source", "input_ids", "labels", "position_ids"]
    assert found["input_ids"][:] == [row["input_ids"] for row in rows("out")]


def test_repositories_are_documents_in_the_order_of_paths(texts):
    mix(one("code", group_by="repository", repeat=True), byte_tokenizer(), "out")
    text = decoded(rows("out"))
    x = "<s>" + "print(1)\n" * 20 + "\n" + "print(2)\n" * 20 + "</s>"
    y = "<s>" + "print(3)\n" * 20 + "</s>"
    assert (x + y + x).startswith(text) or (y + x + y).startswith(text)


def test_rows_of_a_table_are_grouped_by_their_fields(texts):
    table = [("r", "b", "2"), ("q", "a", "0"), ("r", "a", "1")]
    lines = [json.dumps({"repo": repo, "path": path, "text": text * 50}) for repo, path, text in table]
    (texts / "t.jsonl").write_text("\n".join(lines))
    mix(one("t.jsonl", group_by="repo", order_by="path", repeat=True), byte_tokenizer(), "out")
    text = decoded(rows("out"))
    assert "<s>" + "1" * 50 + "\n" + "2" * 50 + "</s>" in text
    with pytest.raises(UserError, match=r"document 't.jsonl#000000001' has no field 'rep' to group by; its fields: 'r"):
        mix(one("t.jsonl", group_by="rep"), byte_tokenizer(), "out2")


def test_the_seed_orders_groups(texts):
    lines = [json.dumps({"repo": f"r{at:03}", "text": f"{at:03} " * 16}) for at in range(40)]
    (texts / "t.jsonl").write_text("\n".join(lines))
    made = one("t.jsonl", group_by="repo")
    mix(made, byte_tokenizer(), "out")
    mix(Mixture(sources=made.sources, length=64, tokens=640, seed=1), byte_tokenizer(), "out1")
    orders = [re.findall(r"<s>(\d+)", decoded(rows(out))) for out in ("out", "out1")]
    assert len(set(orders[0])) == len(orders[0]) == 10
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])


def test_tokenizers_without_bos_and_recipes_without_eos(texts):
    mix(one(), byte_tokenizer(bos=False), "a")
    assert rows("a")[0]["input_ids"][0] == byte_tokenizer()("I", add_special_tokens=False)["input_ids"][0]
    mix(recipe(sources=one().sources, eos=False), byte_tokenizer(), "b")
    assert "best of times. <s>Call me Ishmael." in decoded(rows("b"))


def test_long_documents_as_prolong_has_them(texts):
    """Of documents of at least a row's length, each row is a piece of one, and what is left over is dropped."""
    counts = mix(one(min_tokens=64), byte_tokenizer(), "out")["sources"]["a"]
    assert [row["position_ids"] for row in rows("out")] == [list(range(64))] * 10
    assert counts["tail_tokens"] == 522 % 64  # of the first book


def test_a_source_that_runs_out(texts):
    short = MixtureSource(weight=100, path="code/y")
    with pytest.raises(UserError) as refused:
        mix(recipe(sources={"a": short}), byte_tokenizer(), "out")
    assert str(refused.value) == (
        "the source a (code/y) gives 2 rows of 64 tokens, and its share of 100 % is 10 (1 documents with 182 tokens, "
        "0 of them left out for their length): add more text, use fewer `tokens`, or let it be read again with "
        "repeat: true"
    )
    assert not (texts / "out").exists()
    counts = mix(
        recipe(sources={"a": MixtureSource(weight=100, path="code/y", repeat=True)}), byte_tokenizer(), "again"
    )
    assert (counts["sources"]["a"]["repeats"], counts["sources"]["a"]["documents"]) == (3, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "nosuch"}, "the source a: no such file or folder: 'nosuch': pass `sources={'a': PATH}`"),
        ({"path": None}, "the source a has no path: pass `sources={'a': PATH}`, a file, a folder or hf:NAME"),
        ({"path": "empty"}, "folder 'empty' has no text, Markdown"),
        ({"path": "empty.jsonl"}, "'empty.jsonl' is empty: exclude it"),
        ({"min_tokens": 9999}, "the source a (books) gives 0 rows of 64 tokens, and its share of 100 % is 10 (2 docu"),
        ({"min_tokens": 9999, "repeat": True}, "the source a (books) gives 0 rows of 64 tokens"),
        ({"path": "empty", "tokenized": True}, "folder 'empty' has no .jsonl or .parquet file"),
        ({"path": "none.jsonl", "tokenized": True}, "'none.jsonl' is empty, it has no row: leave it out"),
    ],
)
def test_sources_that_cannot_be_read(changes, message, texts):
    (texts / "empty").mkdir()
    (texts / "empty.jsonl").touch()
    (texts / "none.jsonl").write_text("\n")
    with pytest.raises(UserError) as refused:
        mix(one(**{"path": "books"} | changes), byte_tokenizer(), "out")
    assert str(refused.value).startswith(message)
    assert not (texts / "out").exists()


def test_the_largest_remainders_get_what_is_left():
    sources = {name: MixtureSource(weight=weight, path="x") for name, weight in (("a", 10), ("b", 45), ("c", 45))}
    assert allocate(recipe(sources=sources, tokens=64 * 11)) == {"a": 1, "b": 5, "c": 5}


def test_a_small_share_that_is_no_row():
    sources = {"a": MixtureSource(weight=99, path="a"), "b": MixtureSource(weight=1, path="b")}
    with pytest.raises(UserError, match=r"10 rows leave none to the source b with 1 %: use at least 6401 `tokens`"):
        allocate(recipe(sources=sources))


def test_another_recipe_into_the_same_folder(texts):
    mix(recipe(), byte_tokenizer(), "out")
    before = files("out")
    for other, message in [
        (recipe(seed=3), "seed is 0 there and 3 here"),
        (recipe(tokens=704), "tokens is 640 there and 704 here"),
        (recipe(eos=False), "eos is True there and False here; eos_token_id is 257 there and None here"),
    ]:
        with pytest.raises(UserError) as refused:
            mix(other, byte_tokenizer(), "out")
        ending = "Use another folder, or the same settings"
        assert str(refused.value) == f"out contains a different dataset: {message}. {ending}"
    (texts / "books" / "a.txt").write_text("Shorter. " * 60)
    with pytest.raises(UserError, match="out contains a different dataset: files_sha256 is"):
        mix(recipe(), byte_tokenizer(), "out")
    assert files("out") == before


def test_folders_that_hold_something_else(texts):
    (texts / "mine").mkdir()
    (texts / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(
        UserError, match=r"mine is not empty and contains no dataset \(it has 'thesis.txt'\): use a new f"
    ):
        mix(recipe(), byte_tokenizer(), "mine")
    with pytest.raises(UserError, match=r"a.txt is a file; expected a directory for the dataset, such as `out=packed`"):
        mix(recipe(), byte_tokenizer(), "books/a.txt")
    assert files("mine") == {Path("thesis.txt"): b"precious"}
    with (
        DatasetFolder(texts / "busy", "mixture", {}),
        pytest.raises(UserError, match="another process is writing to bu"),
    ):
        mix(recipe(), byte_tokenizer(), "busy")


def test_a_run_that_made_nothing_binds_the_folder_to_nothing(texts):
    with pytest.raises(UserError, match="the source code"):
        mix(recipe(tokens=1600), byte_tokenizer(), "out")
    # One source is complete, so that another recipe is refused; where nothing was, it is not.
    with pytest.raises(UserError, match="out contains a different dataset"):
        mix(recipe(), byte_tokenizer(), "out")
    (texts / "killed").mkdir()
    (texts / "killed" / "manifest.json").write_text('{"schema_version": 1, "kind": "mixture", "settings": {}}')
    mix(recipe(), byte_tokenizer(), "killed")
    (texts / "run").mkdir()
    (texts / "run" / "manifest.json").write_text('{"schema_version": 1, "model": {}, "settings": {}}')
    with pytest.raises(UserError, match="run contains a different dataset: kind is None there and 'mixture' here"):
        mix(recipe(), byte_tokenizer(), "run")


def test_what_is_complete_is_not_made_again(texts, monkeypatch):
    counts = mix(recipe(), byte_tokenizer(), "out")
    monkeypatch.setattr(mixing, "read_source", None)
    assert mix(recipe(), byte_tokenizer(), "out") == counts


KILLED = """
import os, signal, sys
from longlens.runs import parts
from longlens.data.mixture import mix
from longlens.data.recipe import read_mixture
from tests.tiny import byte_tokenizer
calls, write = [], parts._Part.write
def killing(self, *arguments):
    write(self, *arguments)
    calls.append(1)
    if len(calls) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
parts._Part.write = killing
parts.ROW_GROUP_TOKENS = 64
mix(read_mixture("r.yaml"), byte_tokenizer(), "killed")
"""


def test_a_run_that_is_killed_and_begun_again_gives_the_same_files(texts, monkeypatch):
    monkeypatch.setattr("longlens.runs.parts.ROW_GROUP_TOKENS", 64)
    (texts / "r.yaml").write_text(
        "length: 64\ntokens: 640\nsources:\n  books: {weight: 60, path: books}\n"
        "  code: {weight: 40, path: code, group_by: repository}\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    # In the first source, in the second (the first is kept), and when rows are interleaved.
    for at in (3, 8, 10):
        done = subprocess.run([sys.executable, "-c", KILLED, str(at)], env=environment, capture_output=True)
        assert done.returncode == -9, done.stderr
        assert not (texts / "killed" / "data").exists()
    assert (texts / "killed" / ".work" / "code" / "counts.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr(mixing, "read_source", None)  # the sources are not read again
        mix(recipe(), byte_tokenizer(), "killed")
    mix(recipe(), byte_tokenizer(), "whole")
    assert files("killed") == files("whole")


@pytest.mark.parametrize("at", [1, 7, 12])
def test_a_full_disk(texts, monkeypatch, at):
    monkeypatch.setattr("longlens.runs.parts.ROW_GROUP_TOKENS", 64)
    calls, write = [], pq.ParquetWriter.write_table

    def full(self, *arguments, **options):
        calls.append(1)
        if len(calls) == at:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, *arguments, **options)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(UserError) as refused:
        mix(recipe(), byte_tokenizer(), "out")
    assert str(refused.value).endswith(
        ": No space left on device; what was committed before is kept: make room and run the same command again, it "
        "resumes from there"
    )
    assert not (texts / "out" / "data").exists()
    assert not list((texts / "out").rglob("*.tmp"))
    mix(recipe(), byte_tokenizer(), "out")
    mix(recipe(), byte_tokenizer(), "whole")
    assert files("out") == files("whole")


def test_a_folder_that_is_deleted_while_it_is_written_to_is_not_made_anew(texts, monkeypatch):
    made = Framing.encode
    tokenizer = byte_tokenizer()

    def deleting(self, batch):
        shutil.rmtree("out")
        monkeypatch.setattr(Framing, "encode", made)
        return made(self, batch)

    monkeypatch.setattr(Framing, "encode", deleting)
    with pytest.raises(UserError, match="out was deleted or moved while this process was writing"):
        pack_folder(["books"], tokenizer, "out", length=64, packing=BestFit())
    assert not Path("out").exists()
    assert pack_folder(["books"], tokenizer, "out", length=64, packing=BestFit())["documents"] == 2


@pytest.mark.parametrize("name", ["a\0b", "", ".", "a/b", "a\nb", "x" * 300])
def test_names_of_sources_that_name_no_folder(name, texts):
    with pytest.raises(UserError, match="which cannot name a folder: choose a plain word"):
        recipe(sources={name: MixtureSource(weight=100, path="books")})
    with pytest.raises(UserError, match="no such file or folder"):
        mix(one("a\0b"), byte_tokenizer(), "out")


@pytest.mark.parametrize(
    ("settings", "message"),
    [(1, "manifest.json is broken .settings is 1."), (None, "another tokenizer .sha256 None"), ({}, "another tokeniz")],
)
def test_a_weighed_folder_with_other_settings_than_ours(settings, message, texts):
    Path("w").mkdir()
    Path("w/counts.json").write_text("{}")
    Path("w/manifest.json").write_text(json.dumps({"kind": "weighed", "settings": settings}))
    for make in (
        lambda: mix(one("w", tokenized=True), byte_tokenizer(), "out"),
        lambda: pack_folder(["w"], byte_tokenizer(), "out", length=64, packing=BestFit()),
    ):
        with pytest.raises(UserError, match=message):
            make()


def test_shards_are_checked_before_they_are_trained_on(texts):
    pack_folder(["books", "code"], byte_tokenizer(), "out", length=64, packing=BestFit())
    data = Path("out/data")
    check_rows(data, 300)
    with pytest.raises(UserError, match=r"of out/data has 25[67], and the tokenizer has the ids 0 to 199"):
        check_rows(data, 200)
    (shard,) = data.iterdir()
    whole = shard.read_bytes()
    for at in range(4, len(whole), max(1, len(whole) // 60)):
        shard.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        try:
            check_rows(data, 300)
        except UserError as error:
            assert re.search("is broken|of out/data", str(error))  # noqa: PT017
            assert len(str(error)) < 600  # noqa: PT017
        else:  # the byte says nothing of the rows
            assert [row["input_ids"] for row in pq.read_table(shard).to_pylist()]
    table = pq.read_table(pa.BufferReader(whole))
    short = pa.array([ids[:-1] for ids in table["labels"].to_pylist()], pa.list_(pa.int32()))
    pq.write_table(table.set_column(table.schema.get_field_index("labels"), "labels", short), shard)
    with pytest.raises(UserError, match=r"labels of rows 1 to .* has nulls, or not one entry for each token"):
        check_rows(data, 300)
