"""The folder of a run: what was written is there again, and nothing of another run gets in."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from longlens.bench.store import (
    FOLDERS,
    IDENTITY,
    BenchRun,
    part_writer,
    read_answers,
    read_harness,
    read_judged,
    read_manifest,
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
    run = BenchRun(folder, MANIFEST | changes, rank=rank)
    run.begin()
    return run


def row(key, **more):
    made = {"id": key, "batch": "task-1-42", "prompt_sha256": f"hash of {key}", "answers": ["7"], "skipped": False}
    return made | {"metadata": {}, "max_new_tokens": 9, "continuations": [], "stop": [], "task_stop": []} | more


def answer(key, text="", **more):
    return {"key": key, "prompt_sha256": f"hash of {key}", "text": text, "is_truncated": False} | more


def keys(folder):
    return [found["key"] for found in read_answers(folder, "generate")]


def ids(folder):
    return [found["id"] for _, found in read_samples(folder)]


def test_what_was_appended_is_read_again(tmp_path):
    answers = [answer("ä\n🙂 \ud800", "a\r\nb\u2028c"), answer("b")]
    first = opened(tmp_path / "run")
    for one in answers:
        first.append("answers", one)
        assert list(read_answers(tmp_path / "run", "generate"))[-1] == one  # at once, before anything is closed
    first.release()
    second = opened(tmp_path / "run")
    assert list(read_answers(tmp_path / "run", "generate")) == answers
    second.append("answers", answer("c"))
    second.append("harness", {"kind": "answer", "key": "d", "answer": 7})
    second.release()
    assert sorted(keys(tmp_path / "run")) == sorted([answers[0]["key"], "b", "c"])
    assert [found["key"] for found in read_harness(tmp_path / "run", "answer")] == ["d"]
    assert len(list((tmp_path / "run" / "answers").iterdir())) == 2  # no part is written to twice


def test_lines_come_in_the_order_in_which_they_were_written(tmp_path):
    """Of two results of one task the last one counts."""
    for number in range(12):
        run = opened(tmp_path / "run")
        run.append("harness", {"kind": "result", "name": str(2 * number), "results": {}})
        run.append("harness", {"kind": "result", "name": str(2 * number + 1), "results": {}})
        run.release()
    assert [found["name"] for found in read_harness(tmp_path / "run", "result")] == [str(n) for n in range(24)]


def test_a_run_that_appends_nothing_leaves_no_part(tmp_path):
    opened(tmp_path / "run").release()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {*FOLDERS, "manifest.json", ".lock"}
    assert not list((tmp_path / "run" / "answers").iterdir())


def test_a_run_that_is_not_begun_leaves_nothing(tmp_path):
    BenchRun(tmp_path / "run", MANIFEST).release()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rest", ['{"key": "c", "te', '{"key": "c"}', "{", "\\ud8"])
def test_a_line_that_a_kill_broke_off_is_none(tmp_path, rest):
    run = opened(tmp_path / "run")
    for key in "ab":
        run.append("answers", answer(key))
        run.store("task-1-42", row(key))
    run.release()
    (part,) = (tmp_path / "run" / "answers").iterdir()
    for path in (part, tmp_path / "run" / "samples" / "task-1-42.jsonl"):
        path.write_text(path.read_text() + rest)
    run = opened(tmp_path / "run")
    assert keys(tmp_path / "run") == ids(tmp_path / "run") == list(run.stored("task-1-42")) == ["a", "b"]
    run.append("answers", answer("c"))
    run.store("task-1-42", row("c"))
    run.release()
    assert sorted(keys(tmp_path / "run")) == ids(tmp_path / "run") == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(answer("a")) + '\n{"key": \n', r"part-0-x\.jsonl:2' is broken .*: use another folder"),
        (json.dumps(answer("a")) + "\n[1]\n", r"part-0-x\.jsonl:2' is a JSON list, expected an object"),
        (json.dumps(answer("a")) + "\n\n7\n", r"part-0-x\.jsonl:3' is a JSON int, expected an object"),
        (b'{"key": "\xff"}\n', "binary|UTF-8"),
        ('{"key": ' + "[" * 100_000 + "\n", "is broken"),
        ('{"key": ' + "9" * 5_000 + "}\n", "is broken"),
    ],
    ids=["cut", "list", "number", "bytes", "deep", "digits"],
)
def test_a_line_broken_in_another_way_is_an_error(tmp_path, text, message):
    opened(tmp_path / "run").release()
    path = tmp_path / "run" / "answers" / "part-0-x.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as caught:
        list(read_answers(tmp_path / "run", "generate"))
    assert "part-0-x.jsonl" in str(caught.value)


JUDGED = {"id": "a", "by": "m", "prompts": None, "scores": {"x": 1.0}, "replies": []}
RESULT = {"kind": "result", "name": "t", "results": {"t": {"acc": {"score": 1.0, "interval": [0.0, 1.0]}}}}
READ = {
    "answers": (lambda folder: list(read_answers(folder, "generate")), answer("a")),
    "choices": (lambda folder: list(read_answers(folder, "choice")), answer("a", logprob=-1.0, is_greedy=True)),
    "judged": (lambda folder: list(read_judged(folder)), JUDGED),
    "result": (lambda folder: list(read_harness(folder, "result")), RESULT),
    "answer": (lambda folder: list(read_harness(folder, "answer")), {"kind": "answer", "key": "k", "answer": 1}),
    "samples": (lambda folder: list(read_samples(folder)), row("a")),
}
WRONG = {
    "answers": [{"text": None}, {"text": 5}, {"key": None}, {"is_truncated": "no"}, {"prompt_sha256": []}],
    "choices": [{"logprob": None}, {"logprob": "-1"}, {"logprob": float("nan")}, {"logprob": True}, {"is_greedy": 0}],
    "judged": [{"scores": []}, {"scores": {"x": "1"}}, {"by": None}, {"id": 3}, {"prompts": 7}],
    "result": [
        {"name": None},
        {"results": []},
        {"results": {"t": 5}},
        {"results": {"t": {"acc": 5}}},
        {"results": {"t": {"acc": {"score": "x"}}}},
        {"results": {"t": {"acc": {"score": 1, "interval": [1]}}}},
    ],
    "answer": [{"key": None}],
    "samples": [{"batch": 1}, {"skipped": None}, {"metadata": []}, {"continuations": [1]}, {"task_stop": None}],
}


@pytest.mark.parametrize(("kind", "at"), [(kind, at) for kind, wrong in WRONG.items() for at in range(len(wrong))])
def test_a_row_of_another_kind_is_one_line(tmp_path, kind, at):
    read, good = READ[kind]
    opened(tmp_path / "run").release()
    folder = {"choices": "answers", "result": "harness", "answer": "harness"}.get(kind, kind)
    path = tmp_path / "run" / folder / "part-0-x.jsonl"
    path.write_text(json.dumps(good) + "\n")
    assert read(tmp_path / "run")
    path.write_text(json.dumps(good | WRONG[kind][at]) + "\n")
    with pytest.raises(UserError, match=r"part-0-x\.jsonl:1'.* expected ") as caught:
        read(tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_foreign_folder_is_left_as_it_is(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"is not empty and contains no benchmark run \(it has 'notes\.txt'\)"):
        opened(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"file is a file; expected a directory for the benchmark run, such as `out=run`"
    ):
        opened(tmp_path / "file")


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", [*IDENTITY, "engine"])
def test_a_run_of_another_kind_is_refused(tmp_path, name, rank):
    opened(tmp_path / "run").release()
    before = (tmp_path / "run" / "manifest.json").read_bytes()
    words = f"contains a different benchmark run: {'(config|weights)' if name == 'engine' else name}.* is .* there and "
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
    with pytest.warns(LonglensWarning, match=r"started with other versions \(torch 2 -> 3\)"):
        opened(tmp_path / "run", versions={"torch": "3"}).release()


def test_a_server_is_told_by_its_name(tmp_path):
    engine = {"backend": "local-completions", "weights_sha256": None, "config": None, "arguments": {}}
    opened(tmp_path / "run", engine=engine).release()
    with pytest.raises(UserError, match="a different benchmark run: model is 'tiny' there and 'other' here"):
        opened(tmp_path / "run", engine=engine, model="other")


def test_a_run_of_an_older_longlens_goes_on_and_is_told_by_its_weights(tmp_path):
    old = {"backend": "hf", "weights_sha256": "1234", "arguments": {}}
    opened(tmp_path / "run", schema_version=1, code_sha256="abc", engine=old).release()
    with pytest.warns(LonglensWarning, match="was written by an older longlens without the model's configuration"):
        opened(tmp_path / "run").release()
    with pytest.raises(UserError, match="weights_sha256 is '1234' there and '5678' here"):
        opened(tmp_path / "run", engine=old | {"weights_sha256": "5678"})


def test_a_broken_manifest_is_an_error(tmp_path):
    opened(tmp_path / "run").release()
    (tmp_path / "run" / "manifest.json").write_text('{"model": ')
    with pytest.raises(UserError, match=r"manifest\.json is broken"):
        opened(tmp_path / "run")
    with pytest.raises(UserError, match=r"manifest\.json is broken"):
        read_manifest(tmp_path / "run")


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
        ranks[rank].append("answers", answer(f"{number} of {rank}"))
        ranks[rank].store("task-1-42", row(f"{number} of {rank}"))
    assert {path.name.split("-")[1] for path in (tmp_path / "run" / "answers").iterdir()} == {"0", "1", "2"}
    wanted = ["0 of 0", "1 of 1", "2 of 2", "3 of 1", "4 of 0"]
    assert sorted(keys(tmp_path / "run")) == sorted(ids(tmp_path / "run")) == wanted
    assert all(sorted(run.stored("task-1-42")) == wanted for run in ranks)
    for run in ranks:
        run.release()


@pytest.mark.parametrize("first", [0, 1])
def test_ranks_may_come_in_any_order(tmp_path, first):
    runs = [opened(tmp_path / "run", rank) for rank in (first, 1 - first)]
    for run in runs:
        run.store("task-1-42", row("a"))
        run.release()
    assert json.loads((tmp_path / "run" / "manifest.json").read_text()) == MANIFEST
    assert ids(tmp_path / "run") == ["a"]  # once


def test_a_rank_of_another_model_that_came_first_is_refused_before_it_sums_up(tmp_path):
    engine = MANIFEST["engine"] | {"weights_sha256": "5678"}
    late = BenchRun(tmp_path / "run", MANIFEST | {"engine": engine}, rank=1)
    opened(tmp_path / "run").release()
    with pytest.raises(UserError, match="contains a different benchmark run: "):
        late.store("task-1-42", row("a"))
    assert ids(tmp_path / "run") == []


def test_samples_are_found_by_id_and_read_where_they_are(tmp_path):
    run = opened(tmp_path / "run")
    rows = [
        row("a"),
        row("b", continuations=["x", "y"]),
        row("c", skipped=True, metadata={"cut": {}, "data": {"s": 1}}),
    ]
    for one in rows:
        run.store("task-1-42", one)
    run.store("other-1-42", row("z"))
    stored = run.stored("task-1-42")
    assert [found.read() for found in stored.values()] == rows
    assert [found.keys for found in stored.values()] == [("a",), ("b#0", "b#1"), ("c",)]
    assert [(found.is_skipped, found.is_cut) for found in stored.values()] == [(False, False)] * 2 + [(True, True)]
    assert stored["c"].data == {"data": {"s": 1}}
    assert run.stored("none-1-42") == {}
    assert ids(tmp_path / "run") == ["z", "a", "b", "c"]
    path = tmp_path / "run" / "samples" / "task-1-42.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[::-1]))
    with pytest.raises(UserError, match="changed while it was read"):
        stored["a"].read()
    run.release()


def test_a_folder_that_is_gone_is_not_made_anew(tmp_path):
    run = opened(tmp_path / "run")
    run.append("answers", answer("a"))
    shutil.rmtree(tmp_path / "run")
    for write in (lambda: run.append("answers", answer("b")), lambda: run.store("task-1-42", row("a"))):
        with pytest.raises(UserError, match="was deleted or moved while this process was writing"):
            write()
    assert not (tmp_path / "run").exists()


def test_a_disk_that_takes_nothing_more_is_said(tmp_path):
    opened(tmp_path / "run").release()
    (tmp_path / "run" / "answers").rmdir()
    (tmp_path / "run" / "answers").write_text("no folder")
    with pytest.raises(UserError, match=r"cannot write .*answers"):
        part_writer(tmp_path / "run", "answers")({"key": "a"})


FULL = """
import json, resource, signal, sys
from longlens.bench.store import BenchRun
from longlens.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
run = BenchRun(sys.argv[1], json.loads(sys.argv[2]))
try:
    for number in range(1000):
        run.append("answers", json.loads(sys.argv[3]) | {"key": str(number)})
except UserError as error:
    print(error)
run.release()
"""


def test_a_full_disk_keeps_what_was_answered_and_says_so(tmp_path):
    """A limit on the size of a file fails a write as a full disk does: in the middle of a line."""
    call = [sys.executable, "-c", FULL, str(tmp_path / "run"), json.dumps(MANIFEST), json.dumps(answer("", "x" * 700))]
    ended = subprocess.run(call, capture_output=True, text=True, check=True)
    assert ended.stderr == ""
    (line,) = ended.stdout.splitlines()
    assert "answers" in line
    assert "what was committed before is kept" in line
    assert keys(tmp_path / "run") == [str(number) for number in range(len(keys(tmp_path / "run")))] != []


@pytest.mark.parametrize("name", ["nothing", "empty", "scores"])
def test_a_folder_that_is_no_run_is_an_error(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="is not a benchmark run: pass the directory of longlens bench run"):
        read_manifest(tmp_path / name)
