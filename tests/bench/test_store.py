"""The folder of a run: what was written is there again, and nothing of another run gets in."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from longlens.bench.store import (
    FOLDERS,
    IDENTITY,
    BenchRun,
    open_run,
    part_writer,
    read_lines,
    read_parts,
    read_samples,
)
from longlens.errors import LonglensWarning, UserError

MANIFEST = {
    "schema_version": 2,
    "engine": {"backend": "hf", "weights_sha256": "1234", "config": {"sliding_window": 8}, "arguments": {}},
    "model": "tiny",
    "mode": "generate",
    "template": "auto",
    "template_arguments": {"enable_thinking": False},
    "overlong": None,
    "think_tokens": 0,
    "versions": {"torch": "2"},
    "engine_info": {"device": "cpu"},
}


def opened(folder, rank=0, **changes):
    return BenchRun(folder, MANIFEST | changes, rank=rank)


def row(key, number=0, **more):
    return {"id": key, "prompt_sha256": f"hash of {key}", "answers": ["7"], "number": number} | more


def keys(folder, kind="answers"):
    return [found["key"] for found in read_parts(folder, kind)]


def test_what_was_appended_is_read_again(tmp_path):
    answers = [{"key": "ä\n🙂 \ud800", "text": "a\r\nb\u2028c"}, {"key": "b", "logprob": -1.5, "is_greedy": True}]
    first = opened(tmp_path / "run")
    for answer in answers:
        first.append("answers", answer)
        assert list(first.read("answers"))[-1] == answer  # at once, before anything is closed
    first.release()
    second = opened(tmp_path / "run")
    assert list(second.read("answers")) == answers
    second.append("answers", {"key": "c"})
    second.append("harness", {"key": "d"})
    second.release()
    assert sorted(keys(tmp_path / "run")) == sorted([answers[0]["key"], "b", "c"])
    assert keys(tmp_path / "run", "harness") == ["d"]
    assert len(list((tmp_path / "run" / "answers").iterdir())) == 2  # no part is written to twice


def test_lines_come_in_the_order_in_which_they_were_written(tmp_path):
    """Of two results of one task the last one counts."""
    for number in range(12):
        run = opened(tmp_path / "run")
        run.append("harness", {"key": number})
        run.append("harness", {"key": number + 0.5})
        run.release()
    assert keys(tmp_path / "run", "harness") == [number / 2 for number in range(24)]


def test_a_run_that_appends_nothing_leaves_no_part(tmp_path):
    opened(tmp_path / "run").release()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {*FOLDERS, "manifest.json", ".lock"}
    assert not list((tmp_path / "run" / "answers").iterdir())


@pytest.mark.parametrize("rest", ['{"key": "c", "te', '{"key": "c"}', "{", "\\ud8"])
def test_a_line_that_a_kill_broke_off_is_none(tmp_path, rest):
    run = opened(tmp_path / "run")
    run.append("answers", {"key": "a"})
    run.append("answers", {"key": "b"})
    run.release()
    (part,) = (tmp_path / "run" / "answers").iterdir()
    part.write_text(part.read_text() + rest)
    run = opened(tmp_path / "run")
    assert keys(tmp_path / "run") == ["a", "b"]
    run.append("answers", {"key": "c"})
    run.release()
    assert sorted(keys(tmp_path / "run")) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"key": "a"}\n{"key": \n{"key": "b"}\n', "line 2: not JSON .*: mend or delete it"),
        ('{"key": "a"}\n[1]\n', "line 2: expected a JSON object, it is a list"),
        ('{"key": "a"}\n\n7\n', "line 3: expected a JSON object, it is a int"),
        (b'{"key": "\xff"}\n', "binary|UTF-8"),
    ],
)
def test_a_line_broken_in_another_way_is_an_error(tmp_path, text, message):
    opened(tmp_path / "run").release()
    path = tmp_path / "run" / "answers" / "part-0-x.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as caught:
        list(read_parts(tmp_path / "run", "answers"))
    assert "part-0-x.jsonl" in str(caught.value)
    with pytest.raises(UserError, match=message):
        list(read_lines(path))


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"cannot read '.*none\.jsonl': No such file"):
        list(read_lines(tmp_path / "none.jsonl"))


def test_a_foreign_folder_is_left_as_it_is(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"is not empty and holds no benchmark run \(it has 'notes\.txt'\)"):
        opened(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file is a file; give a folder for the benchmark run, such as -o run"):
        opened(tmp_path / "file")


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", [*IDENTITY, "engine"])
def test_a_run_of_another_kind_is_refused(tmp_path, name, rank):
    opened(tmp_path / "run").release()
    before = (tmp_path / "run" / "manifest.json").read_bytes()
    words = f"holds a run with another {name.replace('_', ' ')} .*: give a new folder"
    other = {"engine": MANIFEST["engine"] | {"config": {"sliding_window": 9}}}.get(name, {"another": 1})
    for changes in ({name: other}, {name: None if MANIFEST[name] is not None else "skip"}):
        with pytest.raises(UserError, match=words):
            opened(tmp_path / "run", rank=rank, **changes)
    opened(tmp_path / "run").release()  # the lock of the refused one is gone
    assert (tmp_path / "run" / "manifest.json").read_bytes() == before


def test_what_does_not_change_answers_may_change(tmp_path):
    opened(tmp_path / "run").release()
    for changes in ({"engine_info": {"device": "cuda:1"}}, {"model": "elsewhere/tiny"}):
        run = opened(tmp_path / "run", **changes)
        assert run.manifest == MANIFEST  # as it was begun
        run.release()
    with pytest.warns(LonglensWarning, match=r"begun with other versions \(torch 2 -> 3\)"):
        opened(tmp_path / "run", versions={"torch": "3"}).release()


def test_a_server_is_told_by_its_name(tmp_path):
    engine = {"backend": "local-completions", "weights_sha256": None, "config": None, "arguments": {}}
    opened(tmp_path / "run", engine=engine).release()
    with pytest.raises(
        UserError, match="another engine \\(model is 'tiny' there and 'other' here\\): give a new folder"
    ):
        opened(tmp_path / "run", engine=engine, model="other")


def test_a_run_of_an_older_longlens_goes_on_and_is_told_by_its_weights(tmp_path):
    old = {"backend": "hf", "weights_sha256": "1234", "arguments": {}}
    opened(tmp_path / "run", schema_version=1, code_sha256="abc", engine=old).release()
    with pytest.warns(LonglensWarning, match="was made by an older longlens, which recorded no configuration"):
        opened(tmp_path / "run").release()
    with pytest.raises(UserError, match="weights_sha256 is '1234' there and '5678' here"):
        opened(tmp_path / "run", engine=old | {"weights_sha256": "5678"})


def test_a_broken_manifest_is_an_error(tmp_path):
    opened(tmp_path / "run").release()
    (tmp_path / "run" / "manifest.json").write_text('{"model": ')
    with pytest.raises(UserError, match=r"manifest\.json is broken"):
        opened(tmp_path / "run")
    with pytest.raises(UserError, match=r"manifest\.json is broken"):
        open_run(tmp_path / "run")


def test_a_second_process_at_the_same_time_is_refused(tmp_path):
    run = opened(tmp_path / "run")
    code = "from longlens.bench.store import BenchRun\nimport json, sys\nBenchRun(sys.argv[1], json.loads(sys.argv[2]))"
    call = [sys.executable, "-c", code, str(tmp_path / "run"), json.dumps(MANIFEST)]
    ended = subprocess.run(call, capture_output=True, text=True, check=False)
    assert "another process is running a benchmark in" in ended.stderr.splitlines()[-1]
    run.release()
    assert subprocess.run(call, capture_output=True, check=False).returncode == 0


def test_ranks_write_parts_of_their_own_and_see_all(tmp_path):
    ranks = [opened(tmp_path / "run", rank) for rank in range(3)]
    for number, rank in enumerate([0, 1, 2, 1, 0]):
        ranks[rank].append("answers", {"key": f"{number} of {rank}"})
    assert {path.name.split("-")[1] for path in (tmp_path / "run" / "answers").iterdir()} == {"0", "1", "2"}
    wanted = ["0 of 0", "1 of 1", "2 of 2", "3 of 1", "4 of 0"]
    assert all(sorted(found["key"] for found in run.read("answers")) == wanted for run in ranks)
    for run in ranks:
        run.release()


@pytest.mark.parametrize("first", [0, 1])
def test_ranks_may_come_in_any_order(tmp_path, first):
    runs = [opened(tmp_path / "run", rank) for rank in (first, 1 - first)]
    for run in runs:
        run.keep_samples("task-1-42", [row("a")])
        run.release()
    assert json.loads((tmp_path / "run" / "manifest.json").read_text()) == MANIFEST
    assert [found["id"] for found in read_samples(tmp_path / "run")] == ["a"]


def test_samples_are_written_by_the_first_process_alone(tmp_path):
    opened(tmp_path / "run").release()
    run = opened(tmp_path / "run", 1)
    run.keep_samples("task-1-42", [row("a")])
    run.release()
    assert list(read_samples(tmp_path / "run")) == []


def test_samples_may_be_added(tmp_path):
    run = opened(tmp_path / "run")
    run.keep_samples("task-1-42", [row("a"), row("b")])
    path = tmp_path / "run" / "samples" / "task-1-42.jsonl"
    run.keep_samples("task-1-42", [row("a")])
    assert [found["id"] for found in read_lines(path)] == ["a", "b"]
    run.keep_samples("task-1-42", [row("a"), row("b"), row("c")])
    run.keep_samples("other-1-42", [row("z")])
    assert [found["id"] for found in read_lines(path)] == ["a", "b", "c"]
    assert [found["id"] for found in read_samples(tmp_path / "run")] == ["z", "a", "b", "c"]
    run.release()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    "changes", [{"prompt_sha256": "other"}, {"answers": ["8"]}, {"max_new_tokens": 3}, {"stop": ["\n"]}]
)
def test_another_sample_under_the_same_id_is_refused(tmp_path, changes, rank):
    opened(tmp_path / "run").release()
    run = opened(tmp_path / "run")
    run.keep_samples("task-1-42", [row("a"), row("b")])
    path = tmp_path / "run" / "samples" / "task-1-42.jsonl"
    before = path.read_bytes()
    run.release()
    run = opened(tmp_path / "run", rank)
    with pytest.raises(UserError, match=r"holds another sample b \(other settings, data or haystack\): give a new"):
        run.keep_samples("task-1-42", [row("a"), row("b") | changes, row("c")])
    assert path.read_bytes() == before
    run.release()


def test_a_disk_that_takes_nothing_more_is_said(tmp_path, monkeypatch):
    opened(tmp_path / "run").release()
    (tmp_path / "run" / "answers").rmdir()
    (tmp_path / "run" / "answers").write_text("no folder")
    with part_writer(tmp_path / "run", "answers") as write, pytest.raises(UserError, match=r"cannot write .*answers"):
        write({"key": "a"})


@pytest.mark.parametrize("name", ["nothing", "empty", "scores"])
def test_a_folder_that_is_no_run_is_an_error(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="is no benchmark run: give the folder of longlens bench run"):
        open_run(tmp_path / name)
