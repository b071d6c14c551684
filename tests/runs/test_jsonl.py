from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from longlens.errors import UserError
from longlens.runs.jsonl import append_line, read_lines


def test_lines_have_numbers_offsets_and_values(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"a": "\u2028\x85"}\n \r\n\n[1]\n3'.encode())
    assert [(line.number, line.start, line.value) for line in read_lines(path)] == [
        (1, 0, {"a": "\u2028\x85"}),
        (4, 22, [1]),
        (5, 26, 3),
    ]
    assert [line.value for line in read_lines(path, unfinished=True)] == [{"a": "\u2028\x85"}, [1]]


@pytest.mark.parametrize("broken", [b"{", b"[" * 100_000, b"1" * 5000, b'"\xff"', b"NULL"], ids=len)
def test_a_broken_line_is_named(tmp_path: Path, broken: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n\n' + broken)
    with pytest.raises(UserError, match=r"a\.jsonl:3' is (broken|binary)") as caught:
        list(read_lines(tmp_path / "a.jsonl"))
    assert len(str(caught.value)) < 600


def test_a_line_that_is_no_object_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match=r"a\.jsonl:1' is a JSON list, expected an object with an id"):
        next(read_lines(tmp_path / "a.jsonl")).fields("an object with an id")


@pytest.mark.parametrize("there", [b"", b'{"a": 1}\n', b'{"a": 1}\n{"b": "' + b"x" * 200_000])
def test_an_appended_line_follows_the_last_whole_one(tmp_path: Path, there: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(there)
    append_line(path, {"c": "\ud800\n\u4e2d"}, sync=True)
    whole = [{"a": 1}] if there else []
    assert [line.value for line in read_lines(path)] == [*whole, {"c": "\ud800\n\u4e2d"}]
    assert "\u4e2d".encode() in path.read_bytes()


def test_a_full_disk_is_said_once_and_lines_before_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    append_line(path, {"a": 1})

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"a\.jsonl: No space left on device; what was committed"):
        append_line(path, {"b": 1}, sync=True)
    assert next(read_lines(path)).value == {"a": 1}
