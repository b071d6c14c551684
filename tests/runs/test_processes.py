"""What the processes of a run tell one another, with real ones."""

import json

import pytest

from longlens.errors import UserError
from longlens.runs.processes import Processes
from tests.torchrun import torchrun

SCRIPT = """
import json, sys, time, warnings
from longlens.errors import LonglensWarning, UserError
from longlens.runs.processes import Processes, ProcessStopped

warnings.simplefilter("error", LonglensWarning)
found = {}
with Processes() as one:
    plan = {"long": "ä" * 2**23, "rank": one.rank}
    if one.rank == 0:
        one.broadcast(plan)
    else:
        plan = one.receive()
    found["plan"] = [len(plan["long"]), plan["rank"]]
    draw = one.counter()
    found["drawn"] = [draw() for _ in range(50)]
    time.sleep(one.rank / 10)
    before = time.time()
    one.wait_for_all()
    found["waited"] = [before, time.time()]
    if one.rank:
        with one.after_first():
            warnings.warn("the first one says so", LonglensWarning)
    else:
        with one.after_first():
            pass
try:
    with Processes() as other:
        if other.rank == 1:
            raise UserError("a reason")
        other.wait_for_all()
except ProcessStopped as error:
    found["stopped"] = str(error)
except UserError as error:
    found["failed"] = str(error)
with Processes() as third:
    third.wait_for_all()
open(f"{one.rank}.json", "w").write(json.dumps(found))
"""


def test_processes_agree_and_stop_together(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    ended = torchrun(3, "script.py", cwd=tmp_path)
    assert ended.code == 0, ended.err
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert [one["plan"] for one in found] == [[2**23, 0]] * 3
    assert sorted(number for one in found for number in one["drawn"]) == list(range(150))
    assert max(one["waited"][0] for one in found) <= min(one["waited"][1] for one in found)
    assert found[1]["failed"] == "a reason"
    stopped = "rank 1 stopped and reported why: the others stop, too"
    assert [found[0]["stopped"], found[2]["stopped"]] == [stopped] * 2


def test_one_process_needs_no_other(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    with Processes() as one, one.after_first():
        one.broadcast({})
    one.wait_for_all()
    assert (one.rank, one.size) == (0, 1)


def test_what_the_environment_lacks_is_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(
        UserError, match="WORLD_SIZE is 2, but MASTER_ADDR is not set in the environment: start the pro"
    ):
        Processes().connect()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "no port")
    with pytest.raises(UserError, match=r"no connection to the other processes at 127.0.0.1:no port \(invalid literal"):
        Processes().connect()
