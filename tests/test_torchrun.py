"""Processes of torchrun share a run by cost; what they make is what one process makes, whichever of them are killed."""

import json
import shutil
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest

from longlens import open_scores
from longlens.cli import main
from tests.torchrun import torchrun

LENGTHS = [900, 40, 60, 700, 50, 30, 800, 45, 600, 35, 55, 25]
RULE = ("--model", "llama", "--context", "32", "--stride", "16")
KILLED = """
# Process 1 is killed when so many of its documents are stored.
import os, signal
import longlens.runs.parts
from longlens.scoring.store import RunWriter
longlens.runs.parts.PART_SECONDS = 0.0
tick, left = RunWriter.tick, int(os.environ["LEFT"])
def dying(self):
    global left
    tick(self)
    left -= 1
    if os.environ["RANK"] == "1" and not left:
        os.kill(os.getpid(), signal.SIGKILL)
RunWriter.tick = dying
import longlens.scoring.transformers
longlens.scoring.transformers.LOOK_AHEAD_BATCHES = 0  # so that documents end one after the other
from longlens.cli import main
raise SystemExit(main())
"""
COMMANDS = """
# Each command in turn, as processes of one torchrun; what each printed goes to a file.
import contextlib, io, json, os, sys
from longlens.cli import main
ended = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    ended.append([code, out.getvalue(), err.getvalue()])
open(f"ended-{os.environ['RANK']}.json", "w").write(json.dumps(ended))
"""


@pytest.fixture(scope="module")
def place(models, tmp_path_factory):
    """A folder of documents of very unequal lengths, with a run of one process in `alone`."""
    folder = tmp_path_factory.mktemp("ranks")
    for name in ("llama", "other"):
        (folder / name).symlink_to(models / name)
    rng = np.random.default_rng(0)
    words = ["the", "best", "of", "times", "was", "the", "worst", "age", "of", "wisdom", "belief", "season"]
    rows = [
        {"id": f"d{number}", "text": " ".join(rng.choice(words, size=length // 5))}
        for number, length in enumerate(LENGTHS)
    ]
    (folder / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "killed.py").write_text(KILLED)
    (folder / "commands.py").write_text(COMMANDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["score", "docs.jsonl", *RULE, "-o", "alone"]) == 0
        yield folder


def commands(number, place, *every):
    """What the processes of one torchrun said to some commands: for each a list of (code, out, err)."""
    ended = torchrun(number, "commands.py", json.dumps([list(map(str, one)) for one in every]), cwd=place)
    assert ended.code == 0, ended.err
    found = [json.loads((place / f"ended-{rank}.json").read_text()) for rank in range(number)]
    return [[tuple(one[at]) for one in found] for at in range(len(every))]


def scored(folder):
    """The documents in each part, by process."""
    found = {}
    for path in folder.glob("long/part-*"):
        found.setdefault(int(path.name[5:10]), []).extend(pq.read_table(path, columns=["id"])["id"].to_pylist())
    return found


def assert_same_scores(folder, expected):
    found, alone = open_scores(folder), open_scores(expected)
    assert sorted(found.ids) == sorted(alone.ids)
    for row in alone:
        other = found.get(row.id)
        assert (other.text, other.token_ids.tolist()) == (row.text, row.token_ids.tolist())
        np.testing.assert_allclose(other.long_logprobs, row.long_logprobs, atol=1e-5)
        np.testing.assert_allclose(other.short_logprobs, row.short_logprobs, atol=1e-5)


@pytest.fixture(scope="module")
def killed(place):
    """A run of two processes, the second of which was killed."""
    ended = torchrun(2, "killed.py", "score", "docs.jsonl", *RULE, "-o", "killed", cwd=place, LEFT="4")
    assert ended.code == 1
    assert "Signal 9 (SIGKILL)" in ended.err
    assert ended.errors == []
    done = {id for ids in scored(place / "killed").values() for id in ids}
    assert 0 < len(done) < len(LENGTHS)
    return place / "killed"


@pytest.mark.parametrize("number", [1, 2, 3])
def test_after_a_kill_any_number_of_processes_goes_on(place, killed, number):
    again = place / f"again-{number}"
    shutil.copytree(killed, again)
    before = {path.name: path.read_bytes() for path in again.glob("long/part-*")}
    command = ["score", "docs.jsonl", *RULE, "-o", again.name]
    if number == 1:
        assert main(command) == 0
    else:
        (ended,) = commands(number, place, command)
        assert [code for code, _, _ in ended] == [0] * number
        assert ended[0][2].splitlines()[-1] == f"{len(LENGTHS)} documents in {again.name}"
        assert [out for _, out, _ in ended[1:]] == [""] * (number - 1)
    assert {name: (again / "long" / name).read_bytes() for name in before} == before
    assert set(Counter(id for ids in scored(again).values() for id in ids).values()) == {1}
    assert_same_scores(again, place / "alone")


def test_documents_are_shared_by_cost(place):
    found, texts = commands(2, place, ["score", "docs.jsonl", *RULE, "-o", "shared"]), {}
    assert [code for code, _, _ in found[0]] == [0, 0]
    for line in (place / "docs.jsonl").read_text().splitlines():
        row = json.loads(line)
        texts[row["id"]] = len(row["text"])
    shares = [sum(texts[id] for id in ids) for ids in scored(place / "shared").values()]
    assert len(shares) == 2
    # In turns the first process would have had 9 times as much.
    assert max(shares) < 1.25 * min(shares)
    assert_same_scores(place / "shared", place / "alone")
