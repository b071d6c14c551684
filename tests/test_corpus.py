from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longlens.corpus import Document, Sources, read_documents, text_sha256
from longlens.errors import LonglensWarning, UserError, shown
from longlens.settings.options import Reading


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(*sources: str | os.PathLike[str], decoder: Any = None, **options: Any) -> list[Document]:
    return list(read_documents(sources, Reading(**options), decoder=decoder))


def ids(*sources: str | os.PathLike[str], **options: Any) -> list[str]:
    return [document.id for document in read(*sources, **options)]


def write(name: str, content: str | bytes = "text") -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return name


def write_jsonl(name: str, *rows: Any) -> str:
    return write(name, "".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(name: str, rows: Any, **options: Any) -> str:
    pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), name, **options)
    return name


def letters(token_ids: Sequence[int]) -> str:
    return "".join(chr(ord("a") + id) for id in token_ids)


def refused(
    *named: str, documents: Iterator[Document] | None = None, sources: Sequence[Any] = (), **options: Any
) -> str:
    """The message with which the sources are refused: one printable line that names `named`."""
    with pytest.raises(UserError) as caught:
        list(documents) if documents is not None else read(*sources, **options)
    message = str(caught.value)
    assert message.isprintable(), message
    for name in named:
        assert name in message
    return message


def refused_at_once(*named: str, sources: Sequence[Any], **options: Any) -> None:
    """As `refused`, before the first document is asked for."""
    decoder = options.pop("decoder", None)
    with pytest.raises(UserError) as caught:
        read_documents(sources, Reading(**options), decoder=decoder)
    message = str(caught.value)
    assert message.isprintable(), message
    for name in named:
        assert name in message


class TestTexts:
    def test_a_file_is_one_document_named_as_given(self) -> None:
        write("dir/b.txt", "two words\n")
        assert read("./dir//b.txt") == [Document(id="dir/b.txt", text="two words\n")]

    @pytest.mark.parametrize("name", ["a.md", "a.py", "README", "a.xyz"])
    def test_a_named_file_may_have_any_ending(self, name: str) -> None:
        assert read(write(name, '{"text": 1}'))[0].text == '{"text": 1}'

    def test_newlines_nul_and_unicode_separators_stay(self) -> None:
        text = "a\r\nb\rc\n\x00d\x0b\x0c\x1c\x85\u2028\u2029e"
        assert read(write("a.txt", text))[0].text == text

    def test_one_byte_order_mark_is_dropped_at_the_start(self) -> None:
        assert read(write("a.txt", "\ufeff\ufeffa\ufeff"))[0].text == "\ufeffa\ufeff"

    @pytest.mark.parametrize(("before", "byte"), [(b"", b"\xff"), (b"abc", b"\x80"), (b"\xef\xbb\xbfab", b"\xff")])
    def test_binary_names_the_offset_in_the_file(self, before: bytes, byte: bytes) -> None:
        write("a.bin", before + byte)
        refused("'a.bin'", "binary", f"0x{byte[0]:02x} at offset {len(before)}", sources=["a.bin"])

    @pytest.mark.parametrize("content", [b"\xed\xa0\x80", b"\xc0\x80", b"caf\xe9"])
    def test_what_only_looks_like_utf8_is_binary(self, content: bytes) -> None:
        refused("binary", sources=[write("a.txt", content)])

    @pytest.mark.parametrize("content", ["", " \n\t\u3000"])
    def test_an_empty_file_is_refused(self, content: str) -> None:
        refused("'a.txt' is empty", sources=[write("a.txt", content)])

    def test_a_file_of_no_bytes_is_refused_at_once(self) -> None:
        refused_at_once("'b.txt' is empty", sources=[write("a.txt"), write("b.txt", "")])

    @settings(max_examples=50, deadline=None)
    @given(st.text(min_size=1).filter(lambda text: not text.isspace() and text[0] != "\ufeff"))
    def test_any_text_comes_back(self, text: str) -> None:
        write("any.txt", text)
        assert read("any.txt")[0].text == text


class TestSources:
    def test_missing_files_are_named_at_once_with_the_way_to_the_hub(self) -> None:
        refused_at_once("no such file or folder: 'b.txt'", "hf:NAME", sources=[write("a.txt"), "b.txt"])

    @pytest.mark.parametrize("name", ["a\nb.txt", "a\x1b[31m.txt", "a\u2028b", "a\0b", "x" * 5000, "bad\udcff.txt"])
    def test_strange_names_are_shown_on_one_line(self, name: str) -> None:
        refused_at_once(sources=[name])

    def test_names_with_newlines_can_be_read(self) -> None:
        assert ids(write("a\nb.txt")) == ["a\nb.txt"]

    @pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode elsewhere")
    def test_a_name_that_is_not_unicode_is_refused(self) -> None:
        Path(os.fsdecode(b"bad\xff.txt")).write_text("a")
        refused_at_once("bad\\udcff.txt", "not valid Unicode", "rename", sources=[os.fsdecode(b"bad\xff.txt")])

    def test_a_fifo_is_refused_without_waiting(self) -> None:
        os.mkfifo("pipe.txt")
        refused_at_once("'pipe.txt' is neither a file nor a folder", sources=["pipe.txt"])

    def test_unreadable_files_are_named_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        refused_at_once("'a.txt'", "permission denied", sources=[write("a.txt")])

    @pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
    def test_a_file_that_vanishes_before_its_turn_is_named(self, name: str) -> None:
        documents = read_documents([write(name)])
        os.remove(name)
        refused(f"'{name}'", "No such file", documents=documents)

    def test_an_unreadable_folder_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def denied(self: Path) -> Iterator[Path]:
            raise PermissionError(13, "Permission denied", str(self))

        write("d/a.txt")
        monkeypatch.setattr(Path, "iterdir", denied)
        refused_at_once("cannot read 'd'", "Permission denied", sources=["d"])

    @pytest.mark.parametrize(
        ("sources", "message"),
        [([], "no documents given"), ([""], "name is empty"), ("a.txt", "pass ['a.txt']"), (["hf:"], "hf:NAME")],
    )
    def test_sources_that_name_nothing(self, sources: Any, message: str) -> None:
        write("a.txt")
        refused_at_once(message, sources=sources)

    def test_a_second_file_is_not_read_before_it_is_asked_for(self) -> None:
        write("a.txt", "first")
        write("b.jsonl", "not json")
        documents = read_documents(["a.txt", "b.jsonl"])
        assert next(documents).text == "first"
        write("b.jsonl", '{"text": "mended"}')
        assert next(documents).text == "mended"

    def test_lines_are_read_one_by_one(self) -> None:
        documents = read_documents([write("a.jsonl", '{"text": "first"}\nnot json')])
        assert next(documents).text == "first"
        refused("'a.jsonl:2'", documents=documents)

    def test_a_large_file_of_lines_is_never_in_memory(self) -> None:
        import tracemalloc

        line = json.dumps({"text": "x" * 100_000}) + "\n"
        write("a.jsonl", line * 300)
        tracemalloc.start()
        assert sum(1 for _ in read_documents(["a.jsonl"])) == 300
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3_000_000

    def test_samples_are_the_first_and_nothing_after_them_is_read(self) -> None:
        write_jsonl("a.jsonl", {"text": "1"}, {"text": "2"})
        write("b.jsonl", '{"text": "3"}\nnot json')
        assert [document.text for document in read("a.jsonl", "b.jsonl", samples=3)] == ["1", "2", "3"]

    def test_two_documents_of_one_id_name_both_places(self) -> None:
        write_jsonl("a.jsonl", {"text": "1", "id": 7}, {"text": "2", "id": "b.txt"})
        write_jsonl("c.jsonl", {"text": "3", "id": "7"})
        refused("id '7'", "'a.jsonl:1'", "'c.jsonl:1'", "`id_field`", sources=["a.jsonl", "c.jsonl"])
        refused("id 'b.txt'", "'a.jsonl:2' and 'b.txt'", sources=["a.jsonl", write("b.txt")])
        refused("id 'b.txt'", "'b.txt' and 'b.txt'", sources=["b.txt", "./b.txt"])


class TestFolders:
    def test_files_are_sorted_and_named_from_the_folder_on(self) -> None:
        for name in ("f/z.txt", "f/a/b.md", "f/a.PY", "f/a/c.jsonl"):
            write(name, '{"text": "a"}')
        assert ids(Path("f")) == ["f/a.PY", "f/a/b.md", "f/a/c.jsonl#000000001", "f/z.txt"]
        assert ids(Path("f").resolve()) == ids("f/") == ids("f")

    def test_files_that_are_left_out_are_said(self) -> None:
        for name in ("f/z.txt", "f/image.png", "f/a/data.json", "f/rows.csv", "f/more.csv.gz", "f/LICENSE"):
            write(name)
        with pytest.warns(LonglensWarning, match="folder 'f': read 1 files, skipped 5") as warned:
            assert ids("f") == ["f/z.txt"]
        for kind in ("1 .png", "1 .json", "1 .csv", "1 .csv.gz", "1 without ending"):
            assert kind in str(warned[0].message)

    def test_the_folder_that_is_the_current_one_has_its_name(self, tmp_path: Path) -> None:
        write("a.txt")
        assert ids(".") == [f"{tmp_path.name}/a.txt"]

    def test_hidden_entries_are_skipped_unless_given(self) -> None:
        for name in ("f/a.txt", "f/.b.txt", "f/.git/c.txt", ".h/d.txt"):
            write(name)
        assert ids("f", ".h") == ["f/a.txt", ".h/d.txt"]

    def test_loops_of_links_end_and_other_links_are_followed(self) -> None:
        write("f/sub/a.txt")
        write("elsewhere/b.txt")
        os.symlink("..", "f/sub/up")
        os.symlink(".", "f/aa_here")
        os.symlink("sub", "f/aaa_second_name")
        os.symlink("self.txt", "f/self.txt")
        os.symlink(os.path.abspath("elsewhere"), "f/link")
        os.symlink("../elsewhere/c.png", "f/c.png")
        with pytest.warns(LonglensWarning) as warned:
            assert ids("f") == ["f/link/b.txt", "f/sub/a.txt"]
        others, links = (str(warning.message) for warning in warned)
        assert links.startswith("folder 'f': links that lead out of it are followed (1, such as 'f/link' -> ")
        assert "skipped 1 (1 .png)" in others

    def test_a_link_to_nothing_is_named(self) -> None:
        write("f/a.txt")
        os.symlink("annexed", "f/b.txt")
        refused_at_once("'f/b.txt' is a broken link", sources=["f"])

    def test_a_fifo_in_a_folder_is_skipped(self) -> None:
        write("f/a.txt")
        os.mkfifo("f/b.txt")
        assert ids("f") == ["f/a.txt"]

    def test_empty_source_files_are_skipped_but_not_if_all_are_empty(self) -> None:
        write("f/__init__.py", "")
        write("f/spaces.py", " \n")
        refused("all files are empty", "f/__init__.py", sources=["f"])
        write("f/a.py")
        assert ids("f") == ["f/a.py"]

    def test_a_folder_without_readable_files_says_what_it_looked_for(self) -> None:
        write("f/a.pdf")
        refused_at_once("folder 'f' has no text", ".jsonl or .parquet", "it has 1 .pdf", sources=["f"])


class TestJsonLines:
    def test_rows_have_their_id_or_the_number_of_their_line(self) -> None:
        write(
            "a.jsonl",
            '{"text": "1", "id": "x"}\n\n  \r\n{"text": "2"}\r\n{"id": 5, "text": "3"}\n{"text":"4","id":null}',
        )
        assert ids("a.jsonl") == ["x", "a.jsonl#000000004", "5", "a.jsonl#000000006"]

    def test_lines_end_at_newlines_alone(self) -> None:
        text = "a\u2028b\u2029c\x85d"
        write("a.jsonl", json.dumps({"text": text}, ensure_ascii=False) + "\n" + '{"text": "\\u0000\\u000b"}')
        assert [document.text for document in read("a.jsonl")] == [text, "\0\x0b"]

    def test_a_byte_order_mark_is_dropped(self) -> None:
        assert read(write("a.jsonl", '\ufeff{"text": "\\ufeffa"}'))[0].text == "\ufeffa"

    def test_small_fields_become_metadata(self) -> None:
        small = {"title": "t", "n": 1, "f": 0.5, "none": None, "list": ["a"], "nested": {"a": [1]}}
        write_jsonl("a.jsonl", small | {"text": "a", "input_ids": [1], "long": "x" * 1001, "mask": [1] * 1001})
        assert read("a.jsonl")[0].metadata == small

    def test_the_fields_can_be_named(self) -> None:
        write_jsonl("a.jsonl", {"body": "b", "key": 1, "text": "short", "id": 9})
        [document] = read("a.jsonl", text_field="body", id_field="key")
        assert document == Document(id="1", text="b", metadata={"text": "short", "id": 9})

    def test_answer_spans_are_taken(self) -> None:
        write_jsonl("a.jsonl", {"text": "abc", "answer_spans": [[0, 1], [3, 3]]}, {"text": "abc", "answer_spans": None})
        first, second = read("a.jsonl")
        assert first.answer_spans == ((0, 1), (3, 3))
        assert second.answer_spans is None

    @pytest.mark.parametrize(
        "spans", [[[0, 4]], [[-1, 2]], [[2, 1]], [[0]], [0, 1], [[0.0, 1]], [[True, 2]], "a\nb", {}]
    )
    def test_wrong_answer_spans_are_refused(self, spans: Any) -> None:
        write_jsonl("a.jsonl", {"text": "abc", "answer_spans": spans})
        refused("'a.jsonl:1'", "answer_spans", "0 <= start <= end <= 3", sources=["a.jsonl"])

    @pytest.mark.parametrize(
        ("line", "named"),
        [
            ('{"text": "a",}', ["not JSON", "line 1 column"]),
            ('{"text": "a\0"}', ["not JSON", "Invalid control character"]),
            ("[" * 200_000, ["not JSON"]),
            ('{"text": "a", "n": ' + "1" * 5000 + "}", ["not JSON", "4300 digits"]),
            ('["text"]', ["JSON list", "expected an object"]),
            ("null", ["JSON NoneType"]),
            ('{"body": "a", "b\\nc": 1}', ["'text' is missing", "which has 'body', 'b\\nc'", "`text_field`"]),
            ("{}", ["'text' is missing", "has no field"]),
            ('{"text": null}', ["'text' is null"]),
            ('{"text": 3}', ["int in the field 'text'", "expected a string"]),
            ('{"text": ""}', ["empty text"]),
            ('{"text": " \\n"}', ["empty text"]),
            ('{"text": "a\\ud800"}', ["the text of", "lone surrogate '\\ud800' at character 1"]),
            ('{"text": "a", "id": "\\udfff"}', ["the id of", "lone surrogate"]),
            ('{"text": "a", "title": "\\udfff"}', ["field 'title'", "lone surrogate"]),
            ('{"text": "a", "id": true}', ["bool in the field 'id'", "expected a string or an integer"]),
            ('{"text": "a", "id": [1]}', ["list in the field 'id'"]),
            ('{"input_ids": [1, 2]}', ["input_ids", "`tokenized_with`"]),
        ],
    )
    def test_a_wrong_line_is_named(self, line: str, named: list[str]) -> None:
        refused("'a.jsonl:2'", *named, sources=[write("a.jsonl", '{"text": "a"}\n' + line)])

    def test_an_escaped_pair_of_surrogates_is_a_character(self) -> None:
        assert read(write("a.jsonl", '{"text": "\\ud83d\\ude00"}'))[0].text == "\U0001f600"

    def test_binary_names_the_offset_in_the_file(self) -> None:
        write("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}')
        refused("'a.jsonl:2'", "0xff at offset 24", sources=["a.jsonl"])

    @pytest.mark.parametrize("content", ["\n\n", " "])
    def test_a_file_without_rows_is_empty(self, content: str) -> None:
        refused("'a.jsonl' is empty", sources=[write("a.jsonl", content)])

    def test_an_id_field_that_was_asked_for_has_to_be_there(self) -> None:
        write_jsonl("a.jsonl", {"text": "a", "key": 1})
        refused("'kye' is missing", "'key'", "`id_field`", sources=["a.jsonl"], id_field="kye")

    def test_numbered_ids_are_sorted_as_the_file(self) -> None:
        write_jsonl("a.jsonl", *({"text": str(n)} for n in range(120)))
        assert ids("a.jsonl") == sorted(ids("a.jsonl"))


class TestParquet:
    def test_rows_have_their_id_or_their_number(self) -> None:
        rows = [
            {"text": f"t{n}", "id": 10 * n if n else None, "title": "x", "answer_spans": [[0, 2]]} for n in range(40)
        ]
        documents = read(write_parquet("d.parquet", rows, row_group_size=7))
        assert [document.id for document in documents] == ["d.parquet#000000001", *(str(10 * n) for n in range(1, 40))]
        assert documents[3] == Document(id="30", text="t3", answer_spans=((0, 2),), metadata={"title": "x"})

    def test_a_large_row_group_is_never_in_memory(self) -> None:
        code = """
import pyarrow as pa
from longlens.corpus import read_documents
assert sum(1 for _ in read_documents(["d.parquet"])) == 300
print(pa.default_memory_pool().max_memory())
"""
        table = pa.table({"text": [f"{n}" + "x" * 100_000 for n in range(300)]})
        write_parquet("d.parquet", table, compression="none", use_dictionary=False, write_batch_size=10)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert int(done.stdout) < 15_000_000

    def test_columns_that_json_cannot_hold_are_left_out(self) -> None:
        table = pa.table({"text": ["a"], "when": pa.array([1], pa.timestamp("ns")), "raw": [b"\xff"], "n": [1]})
        assert read(write_parquet("d.parquet", table))[0].metadata == {"n": 1}

    @pytest.mark.parametrize("type", [pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.string_view()])
    def test_strings_of_every_kind(self, type: pa.DataType) -> None:
        table = pa.table({"text": pa.array(["a\r\nb"]).cast(type)})
        try:
            write_parquet("d.parquet", table)
        except pa.ArrowNotImplementedError:
            pytest.skip(f"this pyarrow does not write {type}")
        assert read("d.parquet")[0].text == "a\r\nb"

    def test_a_missing_column_is_named_with_those_there(self) -> None:
        write_parquet("d.parquet", [{"body": "a", "n": 1}])
        refused("'text' is missing", "row 1 of 'd.parquet'", "'body', 'n'", "`text_field`", sources=["d.parquet"])

    @pytest.mark.parametrize(("value", "named"), [(b"a", "bytes"), (1, "int"), (["a"], "list"), ("", "empty text")])
    def test_a_wrong_text_is_refused(self, value: Any, named: str) -> None:
        refused("row 1 of 'd.parquet'", named, sources=[write_parquet("d.parquet", [{"text": value}])])

    def test_a_broken_file_is_named(self) -> None:
        refused("'d.parquet' as Parquet", "row 1", sources=[write("d.parquet", "no Parquet, whatever its name")])

    def test_a_damaged_page_is_named(self) -> None:
        write_parquet("d.parquet", [{"text": "abc" * 1000 + str(n)} for n in range(50)], compression="zstd")
        data = bytearray(Path("d.parquet").read_bytes())
        data[40:80] = bytes(40)
        refused("'d.parquet' as Parquet", sources=[write("d.parquet", bytes(data))])

    def test_strings_that_are_not_utf8_are_refused(self) -> None:
        raw = pa.array([b"ok", b"\xff"])
        strings = pa.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
        documents = read_documents([write_parquet("d.parquet", pa.table({"text": strings}))])
        assert next(documents).text == "ok"
        refused("'d.parquet' as Parquet, from row 2", documents=documents)

    def test_a_file_without_rows_is_empty(self) -> None:
        write_parquet("d.parquet", pa.table({"text": pa.array([], pa.string())}))
        refused("'d.parquet' is empty", sources=["d.parquet"])

    def test_nulls_that_arrow_fills_in_are_left_out_at_any_depth(self) -> None:
        calls = [[{"name": "w", "arguments": {"city": "B"}}], [{"name": "add", "arguments": {"a": 2, "b": [None, 1]}}]]
        write_parquet("d.parquet", [{"text": "a", "calls": call, "x": None} for call in calls])
        assert [document.metadata for document in read("d.parquet")] == [{"calls": c, "x": None} for c in calls]

    def test_what_is_not_used_does_not_have_to_be_readable(self) -> None:
        far = pa.array([9 * 10**18], pa.timestamp("us"))
        nested = pa.StructArray.from_arrays([far, pa.array(["b"])], ["when", "name"])
        image = pa.array([{"bytes": b"RIFF", "path": "a"}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        table = {"text": ["a"], "crawled": far, "nested": nested, "list": pa.array([[nested[0]]]), "image": image}
        write_parquet("d.parquet", pa.table(table | {"images": pa.array([image.to_pylist()])}))
        assert read("d.parquet")[0].metadata == {"nested": {"name": "b"}, "list": [{"name": "b"}]}


def compressed(name: str, content: bytes) -> str:
    import bz2
    import gzip
    import lzma

    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}.get(Path(name).suffix)
    return write(name, pack(content) if pack else bytes(pa.Codec("zstd").compress(content, asbytes=True)))


class TestCompressedAndJson:
    @pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
    def test_rows_and_texts_are_decompressed(self, ending: str) -> None:
        rows = "".join(json.dumps({"text": f"{n} {'x' * 1000}"}) + "\n" for n in range(200)).encode()
        compressed(f"f/a.jsonl{ending}", rows)
        compressed(f"f/b.txt{ending}", b"a text")
        documents = read("f")
        assert len(documents) == 201
        assert documents[199].id == f"f/a.jsonl{ending}#000000200"
        assert documents[200].text == "a text"
        compressed(f"c.json{ending}", b'[{"text": "1"}, {"text": "2"}]')
        assert [document.text for document in read(f"c.json{ending}")] == ["1", "2"]

    @pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
    @pytest.mark.parametrize("damage", ["half", "flipped", "none of it"])
    def test_a_damaged_file_is_named(self, ending: str, damage: str) -> None:
        name = compressed(f"a.jsonl{ending}", json.dumps({"text": "a" * 999 + os.urandom(999).hex()}).encode())
        data = bytearray(Path(name).read_bytes())
        if damage == "flipped":
            if ending == ".zst":
                pytest.skip("written without a checksum: another text of the same length comes out")
            data[len(data) // 2] ^= 255
        write(name, {"half": bytes(data[: len(data) // 2]), "flipped": bytes(data), "none of it": b"{}"}[damage])
        assert len(refused(f"'{name}", sources=[name])) < 600

    def test_json_is_an_array_of_objects_or_lines(self) -> None:
        write("array.json", '\ufeff \n[{"text": "1", "id": "x"},\n {"text": "2"}]')
        assert [(d.id, d.text) for d in read("array.json")] == [("x", "1"), ("array.json#000000002", "2")]
        assert [d.text for d in read(write("lines.json", '{"text": "1"}\n{"text": "2"}\n'))] == ["1", "2"]
        for name, content in {
            "config.json": '{\n "a": 1\n}',
            "text.json": "words",
            "broken.json": '[{"text": 1}',
        }.items():
            refused(f"'{name}", "not JSON", "rename the file to .txt", sources=[write(name, content)])
        refused("item 1 of 'list.json' is a JSON str", sources=[write("list.json", '["text"]')])

    @pytest.mark.parametrize("ending", [".csv", ".tsv", ".arrow", ".csv.gz"])
    def test_tables_are_refused_at_once(self, ending: str) -> None:
        refused_at_once(f"'a{ending}' is a table", "hf:FOLDER", sources=[write(f"a{ending}", "text\nfirst\n")])

    @pytest.mark.parametrize(
        ("content", "advice"),
        [
            (b"%PDF-1.4 all of it ASCII", "pdftotext"),
            (b"%PDF-1.7\n%\xe2\xe3", "pdftotext"),
            (b"PK\x03\x04\xff", "unpack it"),
            (b"\x1f\x8b\x08\xff", "gunzip"),
            (b"\x28\xb5\x2f\xfd\xff", "unzstd"),
            ("text".encode("utf-16"), "iconv -f UTF-16"),
            (b"PAR1\xff", ".parquet"),
        ],
    )
    @pytest.mark.parametrize("name", ["a.txt", "a", "a.jsonl"])
    def test_what_is_no_text_has_its_own_advice(self, name: str, content: bytes, advice: str) -> None:
        check = refused if name == "a.jsonl" else refused_at_once
        check(f"'{name}", advice, sources=[write("b.txt", "before it"), write(name, content)])

    def test_a_character_may_lie_across_the_end_of_what_is_looked_at(self, monkeypatch: pytest.MonkeyPatch) -> None:
        text = "aé中😀" * 3
        for size in range(1, 40):
            monkeypatch.setattr("longlens.corpus.files.HEAD_BYTES", size)
            [document] = read(write("a.txt", text))
            assert document.text == text


class TestTokenizedRows:
    def test_the_text_is_decoded_and_the_ids_are_kept(self) -> None:
        write_jsonl("a.jsonl", {"input_ids": [0, 1, 2], "attention_mask": [1] * 2000, "tokenized_len": 3, "text": "no"})
        [document] = read("a.jsonl", tokenized_with="letters", decoder=letters)
        assert document == Document(
            id="a.jsonl#000000001", text="abc", token_ids=(0, 1, 2), metadata={"tokenized_len": 3}
        )

    def test_min_tokens_comes_before_samples_and_numbers_stay(self) -> None:
        write_jsonl("a.jsonl", *({"input_ids": list(range(n))} for n in (1, 3, 2, 4, 5)))
        options = {"tokenized_with": "letters", "decoder": letters, "min_tokens": 3}
        assert [document.text for document in read("a.jsonl", samples=2, **options)] == ["abc", "abcd"]
        assert ids("a.jsonl", **options) == [f"a.jsonl#00000000{n}" for n in (2, 4, 5)]

    def test_a_filter_that_leaves_nothing_is_an_error(self) -> None:
        write_jsonl("a.jsonl", {"input_ids": [1]})
        refused("no row has 9 input_ids", sources=["a.jsonl"], tokenized_with="t", decoder=letters, min_tokens=9)

    @pytest.mark.parametrize("value", [[[0, 1]], ["a"], [-1], [True], 3, "abc", [2**31], [10**30]])
    def test_what_is_no_list_of_ids_is_refused(self, value: Any) -> None:
        write_jsonl("a.jsonl", {"input_ids": value})
        refused("input_ids of 'a.jsonl:1'", sources=["a.jsonl"], tokenized_with="t", decoder=letters)

    def test_rows_of_text_are_refused(self) -> None:
        write_jsonl("a.jsonl", {"text": "a"})
        refused("'input_ids' is missing", "'a.jsonl:1'", sources=["a.jsonl"], tokenized_with="t", decoder=letters)
        refused_at_once("'b.txt' is a text", sources=[write("b.txt")], tokenized_with="t", decoder=letters)

    def test_no_ids_are_an_empty_text(self) -> None:
        write_jsonl("a.jsonl", {"input_ids": []})
        refused("empty text", sources=["a.jsonl"], tokenized_with="t", decoder=letters)

    def test_name_and_decoder_go_together(self) -> None:
        refused_at_once("pass both", sources=["a.jsonl"], tokenized_with="t")
        refused_at_once("pass both", sources=["a.jsonl"], decoder=letters)


class TestReadAgain:
    def test_they_are_read_anew_and_warn_once(self):
        write("d/a.txt", "a")
        write("d/b.xyz", "b")
        with pytest.warns(LonglensWarning, match="skipped 1"):
            sources = Sources(["d"])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(2):
                assert [document.id for document in sources] == ["d/a.txt"]
        write("d/c.txt", "c")
        assert len(list(sources)) == 2
        assert sources.are_files

    def test_what_is_missing_is_refused_at_once(self):
        with pytest.raises(UserError, match="no such file or folder"):
            Sources(["nosuch"])
        rows = write("rows.jsonl", '{"input_ids": [1]}')
        assert not Sources([rows], Reading(tokenized_with="x"), decoder=str).are_files


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"text_field": "body", "tokenized_with": "t"}, "`text_field` would have no effect"),
            ({"min_tokens": 5}, "pass `tokenized_with`"),
            ({"min_tokens": 0, "tokenized_with": "t"}, "`min_tokens` is 0"),
            ({"samples": 0}, "`samples` is 0"),
            ({"text_field": ""}, "`text_field` is empty"),
            ({"split": ""}, "`split` is empty"),
            ({"text_field": "id"}, "both 'id'"),
        ],
    )
    def test_values_are_checked_at_construction(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError, match=message):
            Reading(**options)

    def test_a_subset_without_a_dataset_is_refused(self) -> None:
        refused_at_once("`subset` is 'en'", sources=[write("a.txt")], subset="en")


class TestDatasets:
    @pytest.fixture(autouse=True)
    def _offline(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        datasets.disable_progress_bars()

    def save(self, name: str, rows: list[dict[str, Any]], split: str | None = None) -> str:
        import datasets

        data: Any = datasets.Dataset.from_list(rows)
        (datasets.DatasetDict({split: data, "other": data}) if split else data).save_to_disk(name)
        return f"hf:{name}"

    def test_a_saved_dataset_is_read_whole(self) -> None:
        source = self.save("s", [{"text": "a", "title": "t"}, {"text": "b", "title": None}])
        assert read(source) == [
            Document(id="s#000000001", text="a", metadata={"title": "t"}),
            Document(id="s#000000002", text="b", metadata={"title": None}),
        ]

    def test_a_saved_dataset_of_splits_has_the_split(self) -> None:
        source = self.save("s", [{"text": "a", "id": 3}], split="train")
        assert ids(source, split="train") == ["3"]
        refused_at_once("'s' has no split 'test', it has 'train', 'other'", "`split`", sources=[source])

    def test_tokenized_rows(self) -> None:
        import datasets

        rows = [{"input_ids": list(range(n)), "tokenized_len": n} for n in (2, 5, 3)]
        datasets.Dataset.from_list(rows).with_format("numpy").save_to_disk("s")
        documents = read("hf:s", tokenized_with="t", decoder=letters, min_tokens=3)
        assert [(d.id, d.text, d.token_ids) for d in documents] == [
            ("s#000000002", "abcde", (0, 1, 2, 3, 4)),
            ("s#000000003", "abc", (0, 1, 2)),
        ]
        refused("row 1 of 'hf:s'", "`tokenized_with`", sources=["hf:s"])

    def test_a_folder_of_data_files_is_streamed(self) -> None:
        write_jsonl("d/test.jsonl", {"text": "a", "id": "x"}, {"text": "b", "id": "y"})
        write_jsonl("d/train.jsonl", {"text": "c", "id": "z"})
        assert ids("hf:d") == ["x", "y"]
        assert ids("hf:d", split="train") == ["z"]
        assert ids("hf:d", split="test[1:]") == ["y"]
        refused_at_once("dataset 'd'", "Bad split: dev", "`split`", sources=["hf:d"], split="dev")
        refused_at_once("dataset 'd'", "'en' not found", "`subset`", sources=["hf:d"], subset="en")

    def test_only_what_is_used_is_decoded(self) -> None:
        import datasets

        far = pa.array([9 * 10**18], pa.timestamp("us"))
        audio = pa.array([{"bytes": b"RIFF", "path": "a"}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        table = pa.table({"text": ["a"], "crawled": far, "audio": audio, "images": pa.array([audio.to_pylist()])})
        features = {"text": datasets.Value("string"), "crawled": datasets.Value("timestamp[us]")}
        features |= {"audio": datasets.Audio(), "images": datasets.List(datasets.Image())}
        info = datasets.DatasetInfo(features=datasets.Features(features))
        made: Any = datasets.Dataset(datasets.table.InMemoryTable(table), info=info)
        made.save_to_disk("s")
        os.mkdir("d")
        made.to_parquet("d/test.parquet")
        for source in ("hf:s", "hf:d"):
            assert read(source) == [Document(id=f"{source[3:]}#000000001", text="a")]

    @pytest.mark.parametrize("name", ["test.jsonl.gz", "test.zip", "test.jsonl.xz", "test.parquet"])
    def test_half_a_shard_is_one_line_with_its_row(self, name: str) -> None:
        import zipfile

        rows = [{"text": os.urandom(100).hex()} for _ in range(200)]
        write_jsonl("d/test.jsonl", *rows)
        if name == "test.zip":
            with zipfile.ZipFile("d/test.zip", "w") as archive:
                archive.write("d/test.jsonl", "test.jsonl")
        elif name == "test.parquet":
            write_parquet("d/test.parquet", rows)
        else:
            compressed(f"d/{name}", Path("d/test.jsonl").read_bytes())
        os.remove("d/test.jsonl")
        assert len(read("hf:d")) == 200
        data = Path("d", name).read_bytes()
        write(f"d/{name}", data[: len(data) // 2])
        assert len(refused("cannot read dataset 'd'", sources=["hf:d"])) < 600

    @pytest.mark.parametrize("place", ["http://127.0.0.1:9/x.jsonl", "/etc/passwd", "../x.jsonl", "zip://x::y"])
    @pytest.mark.parametrize("file", ["README.md", ".huggingface.yaml"])
    def test_a_folder_that_names_data_elsewhere_is_refused(self, file: str, place: str) -> None:
        write_jsonl("d/test.jsonl", {"text": "a"})
        yaml = f"configs:\n- config_name: default\n  data_files:\n  - split: test\n    path: [test.jsonl, '{place}']\n"
        write(f"d/{file}", f"---\r\n{yaml}---\n# Card\n" if file == "README.md" else yaml)
        refused_at_once(f"'d/{file}' refers to data outside", place, sources=["hf:d"])
        write(f"d/{file}", Path(f"d/{file}").read_text().replace(f", '{place}'", ""))
        assert ids("hf:d") == ["d#000000001"]

    def test_a_broken_data_file_is_named(self) -> None:
        write("d/test.jsonl", '{"text": "a"}\n{"text": ')
        refused("dataset 'd'", "JSON", sources=["hf:d"])

    def test_an_unknown_name_and_no_network(self) -> None:
        refused_at_once("dataset 'nobody/nothing'", "cannot be reached", "network", sources=["hf:nobody/nothing"])

    def test_a_name_that_is_not_on_the_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets

        def load_dataset(*_: Any, **__: Any) -> None:
            raise datasets.exceptions.DatasetNotFoundError("Dataset 'x/y' doesn't exist\non the Hub.")

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        refused_at_once("dataset 'x/y' is neither", "doesn't exist on the Hub", sources=["hf:x/y"])

    def test_what_cannot_be_streamed_is_downloaded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets

        asked = []

        def load_dataset(*args: Any, streaming: bool = False, **options: Any) -> Any:
            asked.append((args, streaming, options))
            if streaming:
                raise NotImplementedError
            return datasets.Dataset.from_dict({"text": ["a"]})

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        assert ids("hf:x/y", subset="en", split="val") == ["x/y#000000001"]
        assert asked == [(("x/y", "en"), streaming, {"split": "val"}) for streaming in (True, False)]

    @pytest.mark.parametrize("file", ["state.json", "data-00000-of-00001.arrow"])
    @pytest.mark.parametrize("content", ["junk", "{}"])
    def test_a_broken_saved_dataset_is_named(self, file: str, content: str) -> None:
        source = self.save("s", [{"text": "a"}])
        write(f"s/{file}", content)
        refused("dataset 's'", sources=[source])

    def test_a_saved_dataset_has_no_subsets(self) -> None:
        refused_at_once("`subset` is 'en'", "'s'", sources=[self.save("s", [{"text": "a"}])], subset="en")

    @pytest.mark.parametrize("split", [None, "test"])
    def test_a_saved_dataset_given_as_a_folder_points_to_hf(self, split: str | None) -> None:
        self.save("s", [{"text": "a"}], split)
        refused_at_once("save_to_disk", "'hf:s'", sources=["s"])


def test_shown_is_one_short_line() -> None:
    assert shown("a\n\x1b\u2028\udcff") == r"'a\n\x1b\u2028\udcff'"
    assert len(shown("x" * 10_000)) < 300


def test_the_hash_is_of_utf8_and_refuses_lone_surrogates() -> None:
    assert text_sha256("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(UserError, match=r"lone surrogate '\\ud800' at character 1"):
        text_sha256("a\ud800")


def test_reading_files_imports_neither_torch_nor_datasets(tmp_path: Path) -> None:
    write("a.txt")
    code = """
import sys
from longlens.corpus import read_documents
assert len(list(read_documents(["a.txt"]))) == 1
print(sorted({"torch", "datasets", "pyarrow"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "[]\n"
