"""Processes of torchrun share a run by cost; what they make is what one process makes, whichever of them are killed."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest

from longlens import UserError, open_scores
from longlens.cli import main
from longlens.data.weigh import Weigher
from tests.torchrun import ROOT, processes, torchrun

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
from longlens.bench.store import BenchRun
append = BenchRun.append
def dying_asked(self, kind, row):
    append(self, kind, row)
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
BenchRun.append = dying_asked
import time
import longlens.data.store as store
store.CHUNK_CHARACTERS = 1000
written = store.write_json
def dying_written(path, content):
    written(path, content)
    if path.name == store.COUNTS and path.parent.parent.name == ".work":
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # process 0 has one unit, and the other one gets the next
store.write_json = dying_written
import longlens.scoring.transformers
longlens.scoring.transformers.LOOK_AHEAD_BATCHES = 0  # so that documents end one after the other
from longlens.cli import main
raise SystemExit(main())
"""
COMMANDS = """
# Each command in turn; what each printed goes to a file.
import contextlib, io, json, os, sys
import longlens.data.store
from longlens.cli import main
from longlens.errors import UserError
from longlens.scoring.store import RunWriter
longlens.data.store.CHUNK_CHARACTERS = 1000
add = RunWriter.add
def failing(self, short, row):
    if self.folder.name == "failing" and os.environ["RANK"] == "1":
        raise UserError("a reason of the second process")
    add(self, short, row)
RunWriter.add = failing
ended = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    ended.append([code, out.getvalue(), err.getvalue()])

# And in Python.
import longlens
import longlens.runs.folder
longlens.runs.folder.SEEN_SECONDS = 0.2
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
scorer, documents = longlens.load_scorer("llama"), list(longlens.read_documents(["docs.jsonl"]))
def attempt(documents, out):
    try:
        longlens.score(documents, scorer, context=32, stride=16, out=out)
    except UserError as error:
        return str(error)
said = [
    attempt(iter(documents[: 6 * (size - 1)]), "streamed"),
    attempt(documents[: len(documents) - rank], f"others-{size}"),
    attempt(documents, f"unseen-{size}-{rank}"),
    len(longlens.score(documents[:2], scorer, context=32, stride=16)),
]
open(f"ended-{rank}.json", "w").write(json.dumps([*ended, said]))
"""
LONGPPL = ("longppl", "docs.jsonl", "--model", "llama", "--evaluator", "other", *RULE[2:], "--alpha", "0", "--no-lcl")
BENCH = ("bench", "run", "vt", "--length", "1800,2000", "--model", "llama")
WEIGH = ("data", "weigh", "docs.jsonl", "--scores", "alone")
PACK = ("data", "pack", "docs.jsonl", "--tokenizer", "llama", "--length", "300")
MIX = ("data", "mix", "recipe.yaml", "--tokenizer", "llama")
RECIPE = """
length: 64
tokens: 640
sources: {a: {weight: 50, path: docs.jsonl}, b: {weight: 30, path: docs.jsonl}, c: {weight: 20, path: docs.jsonl}}
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
    (folder / "recipe.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("longlens.data.store.CHUNK_CHARACTERS", 1000)
        for command in (
            ["score", "docs.jsonl", *RULE, "-o", "alone"],
            [*LONGPPL, "-o", "longppl-alone"],
            [*BENCH, "--samples", "3", "-o", "bench-alone"],
            [*WEIGH, "-o", "weighed-alone"],
            [*PACK, "-o", "packed-alone"],
            [*MIX, "-o", "mixed-alone"],
        ):
            assert main(list(command)) == 0
        yield folder


def run_commands(number, place, **every):
    """What some processes said to commands, by name: for each process (code, out, err)."""
    ended = processes(number, "commands.py", json.dumps([list(map(str, one)) for one in every.values()]), cwd=place)
    assert [one.code for one in ended] == [0] * number, [one.err for one in ended]
    found = [json.loads((place / f"ended-{rank}.json").read_text()) for rank in range(number)]
    return {name: [tuple(one[at]) for one in found] for at, name in enumerate([*every, "python"])}


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


@pytest.fixture(scope="module")
def killed_bench(place):
    """A benchmark of two processes, the second of which was killed after its first answer."""
    ended = torchrun(2, "killed.py", *BENCH, "--samples", 3, "-o", "bench-killed", cwd=place, LEFT="-1")
    assert ended.code == 1
    assert "Signal 9 (SIGKILL)" in ended.err
    assert len(list(place.glob("bench-killed/answers/part-1-*"))) == 1
    assert not (place / "bench-killed" / "results.json").exists()


@pytest.fixture(scope="module")
def half(place):
    """What ends of one process left of `data weigh`, after a few chunks."""
    with pytest.MonkeyPatch.context() as patch:
        whole = Weigher.weigh_row

        def weigh_row(self, row, at):
            if row["id"] == "d7":
                raise UserError("no more")
            return whole(self, row, at)

        patch.setattr(Weigher, "weigh_row", weigh_row)
        assert main([*WEIGH, "-o", "weighed-3"]) == 2
    assert list(place.glob("weighed-3/.work/data-*/counts.json"))
    assert not (place / "weighed-3" / "data").exists()


@pytest.fixture(scope="module")
def killed_pack(place):
    """What two processes left of `data pack`, the second of which was killed after its first chunk."""
    ended = torchrun(2, "killed.py", *PACK, "-o", "packed-3", cwd=place, LEFT="-1")
    assert (ended.code, ended.errors) == (1, [])
    assert "Signal 9 (SIGKILL)" in ended.err
    assert len(list(place.glob("packed-3/.work/*/counts.json"))) == 2
    assert not (place / "packed-3" / "data").exists()


@pytest.fixture(scope="module")
def together(place, killed, killed_bench, half, killed_pack):
    """What two processes said, and then three, which go on with what two have begun."""
    for number in (1, 2, 3):
        shutil.copytree(killed, place / f"again-{number}")
    assert main(["score", "docs.jsonl", *RULE, "-o", "again-1"]) == 0
    two = run_commands(
        2,
        place,
        again=["score", "docs.jsonl", *RULE, "-o", "again-2"],
        failing=["score", "docs.jsonl", *RULE, "-o", "failing"],
        refused=["score", "docs.jsonl", *RULE, "--no-text", "-o", "again-2"],
        longppl=[*LONGPPL, "-o", "longppl"],
        kept=[*LONGPPL, "--json"],
        bench=[*BENCH, "--samples", 2, "-o", "bench"],
        weigh=[*WEIGH, "-o", "weighed-2"],
        pack=[*PACK, "-o", "packed-2"],
        mix=[*MIX, "-o", "mixed-2"],
    )
    three = run_commands(
        3,
        place,
        again=["score", "docs.jsonl", *RULE, "-o", "again-3"],
        bench=[*BENCH, "--samples", 3, "-o", "bench", "--json"],
        again_bench=[*BENCH, "--samples", 3, "-o", "bench-killed", "--json"],
        weigh=[*WEIGH, "-o", "weighed-3"],
        pack=[*PACK, "-o", "packed-3"],
        mix=[*MIX, "-o", "mixed-3"],
    )
    return {2: two, 3: three}


@pytest.mark.parametrize("number", [1, 2, 3])
def test_after_a_kill_any_number_of_processes_goes_on(place, killed, together, number):
    again = place / f"again-{number}"
    if number > 1:
        ended = together[number]["again"]
        assert [code for code, _, _ in ended] == [0] * number, ended
        assert f"{len(LENGTHS)} documents in {again.name}" in ended[0][2].splitlines()
        assert [out for _, out, _ in ended[1:]] == [""] * (number - 1)
    for path in killed.glob("long/part-*"):
        assert (again / "long" / path.name).read_bytes() == path.read_bytes()
    assert set(Counter(id for ids in scored(again).values() for id in ids).values()) == {1}
    assert_same_scores(again, place / "alone")


def test_what_one_process_refuses_is_said_once(together):
    for name, rank, reason in (
        ("failing", 1, "error: a reason of the second process"),
        ("refused", 0, "error: again-2 contains a different run"),
    ):
        ended = together[2][name]
        assert [code for code, _, _ in ended] == [2, 2]
        errors = [[line for line in err.splitlines() if line.startswith("error: ")] for _, _, err in ended]
        assert errors[1 - rank] == []
        assert len(errors[rank]) == 1
        assert errors[rank][0].startswith(reason)


def test_longppl_is_summed_up_by_the_first_process(place, together):
    alone = json.loads((place / "longppl-alone" / "perplexity.json").read_text())
    shared = json.loads((place / "longppl" / "perplexity.json").read_text())
    assert shared.keys() == alone.keys()
    # Tokens of a random model that stand at alpha may be decided otherwise in another batch.
    assert shared["num_key_tokens"] == pytest.approx(alone["num_key_tokens"], abs=5)
    assert [one["id"] for one in shared["documents"]] == [one["id"] for one in alone["documents"]]
    for name, error in (("ppl", 1e-5), ("longppl", 1e-2), ("longppl_soft", 1e-5)):
        assert shared[name] == pytest.approx(alone[name], rel=error)
        assert shared["intervals"][name] == pytest.approx(alone["intervals"][name], rel=error)
    for side in ("evaluator", "model"):
        assert sorted(scored(place / "longppl" / side)) == [0, 1]
    first, second = together[2]["kept"]
    assert json.loads(first[1])["longppl_soft"] == pytest.approx(alone["longppl_soft"], rel=1e-5)
    assert (second[0], second[1]) == (0, "")


def test_a_benchmark_goes_on_after_a_kill_with_any_number_of_processes(place, together):
    assert [code for code, *_ in together[3]["again_bench"]] == [0, 0, 0]
    read = [json.loads((place / name / "results.json").read_text()) for name in ("bench-alone", "bench-killed")]
    assert read[0] == read[1]
    kept = [path.read_text().splitlines() for path in place.glob("bench-killed/answers/part-*")]
    assert sum(map(len, kept)) == 6  # none was asked twice


def test_samples_of_a_benchmark_are_shared(place, together):
    first, *others = together[3]["bench"]
    assert [code for code, _, _ in (first, *others)] == [0, 0, 0]
    assert [out for _, out, _ in others] == ["", ""]
    alone = json.loads((place / "bench-alone" / "results.json").read_text())
    found = json.loads((place / "bench" / "results.json").read_text())
    assert found["tasks"] == alone["tasks"] == json.loads(first[1])["tasks"]
    asked = Counter()
    for path in place.glob("bench/answers/part-*"):
        asked.update(json.loads(line)["key"] for line in path.read_text().splitlines())
    assert len(asked) == 6
    assert set(asked.values()) == {1}
    # 4 samples for two processes, then 2 more for three.
    parts = Counter(path.name.split("-")[1] for path in place.glob("bench/answers/part-*"))
    assert parts == {"0": 2, "1": 2}


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("name", ["weigh", "pack", "mix"])
def test_data_is_that_of_one_process(place, together, name, number):
    ended = together[number][name]
    assert [code for code, _, _ in ended] == [0] * number, ended
    assert [out for _, out, _ in ended[1:]] == [""] * (number - 1)
    folder = {"weigh": "weighed", "pack": "packed", "mix": "mixed"}[name]
    alone, shared = place / f"{folder}-alone", place / f"{folder}-{number}"
    files = sorted(path.relative_to(alone) for path in alone.rglob("*") if not path.name.startswith("."))
    assert files == sorted(path.relative_to(shared) for path in shared.rglob("*") if not path.name.startswith("."))
    for file in files:
        if file.suffix == ".parquet":
            assert pq.read_table(shared / file).equals(pq.read_table(alone / file)), file
    assert (shared / "counts.json").read_bytes() == (alone / "counts.json").read_bytes()
    assert not (shared / ".work").exists()
    if name == "weigh":
        assert len(list(shared.glob("data/*.parquet"))) > 2


@pytest.mark.parametrize("number", [2, 3])
def test_what_processes_do_not_share_is_refused(together, number):
    streamed, others, unseen, in_memory = zip(*together[number]["python"], strict=True)
    assert set(streamed) == {None}
    stopped = re.compile(r"rank [12] stopped and reported why: the others stop, too")
    assert stopped.fullmatch(others[0])
    read = "read different documents than the first process: give all processes the same files, and a new folder"
    assert any(read in said for said in others[1:])
    assert stopped.fullmatch(unseen[0])
    seen = f"rank 1 does not see unseen-{number}-1, which rank 0 has created"
    assert unseen[1].startswith(seen) or stopped.fullmatch(unseen[1])
    assert set(in_memory) == {2}


def test_documents_of_a_stream_are_drawn(place, together):
    """Half of them by two processes, and then the rest by three."""
    assert set(Counter(id for ids in scored(place / "streamed").values() for id in ids).values()) == {1}
    assert_same_scores(place / "streamed", place / "alone")


SLURM = {
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "scontrol": "echo 127.0.0.1; seq -f other%g 20000",  # more than a pipe holds when nobody reads on
    "torchrun": f'echo threads: $OMP_NUM_THREADS; exec {sys.executable} -m torch.distributed.run "$@"',
}


def test_the_script_for_slurm(place):
    """Its torchrun line is run as it stands, on one node of two GPUs, and shares documents by cost."""
    script = ROOT / "examples" / "score.sbatch"
    assert subprocess.run(["bash", "-n", str(script)], check=True, capture_output=True).stderr == b""
    (place / "bin").mkdir()
    for name, content in SLURM.items():
        (place / "bin" / name).write_text(f"#!/bin/bash\n{content}\n")
        (place / "bin" / name).chmod(0o755)
    environment = {
        "PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        **{"SLURM_JOB_NUM_NODES": "1", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_NODELIST": "here"},
        **{"SLURM_JOB_ID": str(os.getpid()), "SLURM_CPUS_PER_TASK": "1"},
    }
    arguments = ["docs.jsonl", "llama", "slurm", *RULE[2:]]
    done = subprocess.run(
        ["bash", str(script), *arguments],
        cwd=place,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "threads: 1\n" in done.stdout  # fewer CPUs than GPUs
    assert_same_scores(place / "slurm", place / "alone")
    texts = {row["id"]: len(row["text"]) for row in map(json.loads, (place / "docs.jsonl").read_text().splitlines())}
    shares = [sum(texts[id] for id in ids) for ids in scored(place / "slurm").values()]
    assert len(shares) == 2
    assert max(shares) < 1.25 * min(shares)  # in turns the first process would have had 9 times as much
