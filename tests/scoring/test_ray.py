"""Scoring with actors of Ray: the same rows as without, whatever is lost on the way (``make test-ray``)."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import longlens
from longlens.scoring.scorer import Request
from longlens.settings.options import Engine, Loading, Ray
from tests.cli.conftest import Ended, run, work  # noqa: F401  # fixtures

needs_ray = pytest.mark.ray

ENGINE = '''
import time
from longlens import UserError
from longlens.models.load import load_transformers

class Slow:
    """The transformers engine with a pause before each request, and a document that it refuses."""
    def __init__(self, scorer):
        self._scorer, self.info, self.encode = scorer, scorer.info, scorer.encode
    def logprobs(self, requests):
        for request in requests:
            time.sleep(0.02)
            if "#" in self._scorer.tokenizer.decode(request.token_ids):
                raise UserError("`dtype` is wrong for a document with #: leave it out")
            yield from self._scorer.logprobs([request])

def make(name, loading, engine=None):
    return Slow(load_transformers(name, loading))
'''


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ray", "nowhere"], "nowhere"),  # a document, since it is no address
        (["--ray=nowhere"], "--ray is 'nowhere'; expected local, auto, HOST:PORT or ray://HOST:PORT"),
        (["--ray-actors", "2"], "--ray-actors would have no effect without --ray: leave it out, or add --ray"),
        (["--ray-gpus", "1"], "--ray-gpus would have no effect without --ray"),
        (["--ray", "--ray-actors", "3,2"], "--ray-actors is '3,2'; expected a number, or MIN,MAX, such as 1,8"),
        (["--ray", "--ray-actors", "0"], "--ray-actors is '0'; expected a number"),
        (["--ray", "auto", "--ray-actors", "1,2,3"], "--ray-actors is '1,2,3'; expected a number"),
        (["--ray", "--ray-gpus", "1.5"], "--ray-gpus is 1.5; expected a fraction of a GPU, or whole GPUs"),
        (["--ray", "--ray-gpus", "nan"], "--ray-gpus is nan; expected"),
        (["--ray", "--ray-cpus", "0"], "--ray-cpus is 0; expected a number above 0"),
    ],
)
def test_options_are_checked_before_anything_is_read(run, work, options, said):  # noqa: F811
    assert said in run("score", "a.txt", "--model", "llama", "-o", "out", *options).error
    assert not (work / "out").exists()


def test_an_address_may_be_left_out_wherever_the_option_stands(run, work):  # noqa: F811
    """Without Ray installed each of these ends at the package, thus after all else was understood."""
    if any((Path(folder) / "ray").is_dir() for folder in sys.path):
        pytest.skip("Ray is installed")
    plain = ["--model", "llama", "-o", "out", "--context", "16", "--stride", "4"]
    for arguments in (
        ["a.txt", *plain, "--ray"],
        ["--ray", "a.txt", *plain],
        ["a.txt", "--ray", *plain],
        ["a.txt", *plain, "--ray", "10.0.0.7:6379"],
        ["a.txt", *plain, "--ray=ray://head:10001", "--ray-actors", "1,8", "--ray-gpus", "0.5"],
        ["--ray", *plain, "--", "a.txt"],
    ):
        error = run("score", *arguments).error
        assert error == "error: --ray needs the package 'ray', which is not installed: pip install 'longlens[ray]'"
    assert "no such file or folder: '--ray'" in run("score", *plain, "--", "--ray").error


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--model", "http://127.0.0.1:1/v1#m"],
            "--ray would have no effect on a server, which runs its own processes",
        ),
        (["--model", "llama", "--tensor-parallel", "2"], "--tensor-parallel of transformers needs torchrun: leave out"),
        (["--model", "llama", "--concurrency", "2"], "--concurrency would have no effect with --engine transformers"),
    ],
)
def test_engines_that_ray_does_not_help_are_refused(run, work, options, said):  # noqa: F811
    assert said in run("score", "a.txt", *options, "-o", "out", "--ray").error


def test_torchrun_and_ray_are_not_used_together(run, work, monkeypatch):  # noqa: F811
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    error = run("score", "a.txt", "--model", "llama", "-o", "out", "--ray", "--context", "16", "--stride", "4").error
    assert error == "error: --ray starts its own processes: run longlens without torchrun"


# What follows needs Ray.


def children(of: int) -> dict[int, str]:
    """Process ids below one, with their titles."""
    parents: dict[int, int] = {}
    titles: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            titles[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has ended
            continue
    found: dict[int, str] = {}
    below = {of}
    while below:
        below = {process for process, parent in parents.items() if parent in below}
        found |= {process: titles.get(process, "") for process in below}
    return found


class Command:
    """``longlens score`` of the documents as a process of its own."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        self._errors = folder / f"errors-{time.monotonic_ns()}"
        setting = os.environ | {"PYTHONPATH": str(folder / "packages"), "OMP_NUM_THREADS": "1"}
        call = [sys.executable, "-m", "longlens", "score", *map(str, arguments)]
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(
                call, cwd=folder, env=setting, stdout=subprocess.PIPE, stderr=errors, text=True
            )

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    def wait_for(self, text: str, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while text not in self.errors:
            assert self.process.poll() is None, self.errors
            assert time.monotonic() < end, self.errors
            time.sleep(0.05)

    def end(self) -> Ended:
        try:
            out, _ = self.process.communicate(timeout=180)
        finally:
            self.process.kill()
        return Ended(self.process.returncode, out, self.errors)


@pytest.fixture(scope="module")
def folder(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents, a model, and the package of an engine."""
    pytest.importorskip("ray")
    folder = tmp_path_factory.mktemp("ray")
    (folder / "llama").symlink_to(models / "llama")
    (folder / "other").symlink_to(models / "other")
    draw = random.Random(0)
    (folder / "docs").mkdir()
    for number in range(10):
        length = draw.randint(200, 1500)
        (folder / "docs" / f"{number:02}.txt").write_text("".join(draw.choice("abc def. é") for _ in range(length)))
    (folder / "docs" / "empty.txt").write_text("")
    metadata = folder / "packages" / "slow-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: slow\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[longlens.scorers]\nslow = slow_engine:make\n")
    (folder / "packages" / "slow_engine.py").write_text(ENGINE)
    return folder


SETTINGS = ["--model", "llama", "--context", "64,16", "--stride", "16,8", "--batch-tokens", "256"]


@pytest.fixture(scope="module")
def alone(folder: Path) -> longlens.scoring.scores.Scores:
    """The scores of a run without Ray."""
    ended = Command(folder, "docs", *SETTINGS, "-o", "alone").end()
    assert ended.code == 0, ended.err
    return longlens.open_scores(folder / "alone")


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[str]:
    """The address of a cluster of two nodes with a CPU each."""
    from ray.cluster_utils import Cluster

    # What the nodes' processes inherit.
    os.environ["PYTHONPATH"] = str(folder / "packages")
    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    try:
        cluster.add_node(**node)
        yield cluster.address
    finally:
        cluster.shutdown()
        os.environ.pop("PYTHONPATH", None)


def check_same(folder: Path, out: str, alone: longlens.scoring.scores.Scores) -> None:
    """Every document is there once, with the numbers, tokens, spans and hashes of the run without Ray."""
    there = longlens.open_scores(folder / out)
    ids = [json.dumps(scores.id) for scores in there]
    assert sorted(ids) == sorted(json.dumps(scores.id) for scores in alone)
    assert len(set(ids)) == len(ids)
    assert there.manifest == alone.manifest | {"versions": there.manifest["versions"]}
    ours, theirs = ({scores.id: scores for scores in one} for one in (there, alone))
    for id, expected in theirs.items():
        found = ours[id]
        assert found.text_sha256 == expected.text_sha256
        np.testing.assert_array_equal(found.token_ids, expected.token_ids)
        np.testing.assert_array_equal(found.char_spans, expected.char_spans)
        np.testing.assert_allclose(found.long_logprobs, expected.long_logprobs, atol=1e-5)
        for context in (64, 16):
            np.testing.assert_allclose(
                found.at(context=context).short_logprobs, expected.at(context=context).short_logprobs, atol=1e-5
            )


OURS = re.compile(
    r"ray: |llama: |score llama: |warning: |error: |[0-9,]+ documents in |interrupted|next: |      longlens "
)


def check_quiet(ended: Ended) -> None:
    """Nothing of Ray is on the screen."""
    assert ended.out == ""
    assert [line for line in ended.err.splitlines() if not OURS.match(line)] == []


@needs_ray
def test_two_nodes_give_the_rows_of_one_process(folder, cluster, alone):
    ended = Command(folder, "docs", *SETTINGS, "--ray", cluster, "--ray-cpus", 1, "-o", "two").end()
    assert ended.code == 0, ended.err
    assert "ray: 2 actors, each with num_cpus=1" in ended.err
    assert "next: longlens perplexity two" in ended.err
    check_quiet(ended)
    check_same(folder, "two", alone)


@needs_ray
def test_a_run_begun_one_way_goes_on_the_other_way(folder, cluster, alone):
    there, here = ["--ray", cluster, "--ray-actors", "1,2", "--ray-cpus", 0.5], []
    for out, first, second in (("first-there", there, here), ("first-here", here, there)):
        for options in ([*first, "--samples", "4"], second):
            ended = Command(folder, "docs", *SETTINGS, *options, "-o", out).end()
            assert ended.code == 0, ended.err
            check_quiet(ended)
        check_same(folder, out, alone)
    ended = Command(folder, "docs", *SETTINGS[2:], "--model", "other", *there, "-o", "first-there").end()
    assert ended.code == 2
    assert "contains a different run: its model is 'llama', but 'other' was given" in ended.error


@needs_ray
def test_the_actors_and_the_relay_are_killed(folder, cluster, alone):
    slow = ["--engine", "slow", "--ray", cluster, "--ray-actors", "2", "--ray-cpus", 1]
    command = Command(folder, "docs", *SETTINGS, *slow, "-o", "killed")
    command.wait_for("llama: LlamaForCausalLM")
    time.sleep(1)
    for title in ("_Actor", "_Relay"):
        found = [number for number, name in children(os.getpid()).items() if name.startswith("ray::") and title in name]
        assert found
        for process in found:
            os.kill(process, signal.SIGKILL)
        time.sleep(1)
    ended = command.end()
    assert ended.code == 0, ended.err
    assert "ray: an actor was lost, rescoring its documents" in ended.err
    check_quiet(ended)
    check_same(folder, "killed", alone)


@needs_ray
def test_an_error_of_a_document_ends_the_run_with_its_line_and_keeps_the_others(folder, cluster, alone):
    (folder / "wrong.txt").write_text("not # this one")
    slow = ["--engine", "slow", "--ray", cluster, "--ray-actors", "2", "--ray-cpus", 1]
    ended = Command(folder, "docs", "wrong.txt", *SETTINGS, *slow, "-o", "wrong").end()
    assert ended.error == "error: --dtype is wrong for a document with #: leave it out"
    check_quiet(ended)
    assert 0 < len(longlens.open_scores(folder / "wrong")) <= len(alone)
    assert Command(folder, "docs", *SETTINGS, "-o", "wrong").end().code == 0
    check_same(folder, "wrong", alone)


@needs_ray
def test_a_local_cluster_ends_with_ctrl_c_and_keeps_what_is_done(folder, alone):
    command = Command(
        folder, "docs", *SETTINGS, "--engine", "slow", "--ray", "--ray-actors", 2, "--ray-cpus", 0.5, "-o", "local"
    )
    command.wait_for("llama: LlamaForCausalLM")
    time.sleep(3)
    below = children(command.process.pid)
    assert any("raylet" in title for title in below.values())
    command.process.send_signal(signal.SIGINT)
    ended = command.end()
    assert ended.code == 130, ended.err
    assert ended.err.splitlines()[-1].startswith("interrupted; finished work is kept")
    check_quiet(ended)
    end = time.monotonic() + 20
    while any(Path(f"/proc/{process}").exists() for process in below) and time.monotonic() < end:
        time.sleep(0.2)
    assert [title for process, title in below.items() if Path(f"/proc/{process}").exists()] == []
    assert Command(folder, "docs", *SETTINGS, "-o", "local").end().code == 0
    check_same(folder, "local", alone)


@needs_ray
def test_what_cannot_be_had_is_said_in_one_line(folder, cluster):
    refused = Command(folder, "docs", *SETTINGS, "--ray", cluster, "--attention", "nonsense", "-o", "refused").end()
    assert "nonsense" in refused.error
    assert "(on the node " in refused.error
    check_quiet(refused)
    none = Command(folder, "docs", *SETTINGS, "--ray", "127.0.0.1:1", "-o", "refused").end()
    assert none.error.startswith("error: cannot use Ray at '127.0.0.1:1': ")
    check_quiet(none)
    small = Command(folder, "docs", *SETTINGS, "--ray", "--ray-gpus", 1, "--ray-actors", 99, "-o", "refused").end()
    assert small.error.startswith("error: --ray-actors is 99, each with num_cpus=1 and num_gpus=1, and the cluster has")
    check_quiet(small)


@needs_ray
def test_a_cluster_that_the_caller_has_is_used_and_left(folder, cluster, alone, monkeypatch):
    import ray

    from longlens.scoring.ray import RayModel
    from longlens.testing import check_scorer

    monkeypatch.chdir(folder)
    ray.init(cluster, log_to_driver=False, logging_level="CRITICAL")
    try:
        model = RayModel("llama", Loading(), Engine(), Ray(ray="auto", ray_actors="2", ray_cpus=0.5))
        scorer = model.load()
        check_scorer(scorer)
        # Two calls that are read in turn each get their own answers.
        tokens = [[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]]
        calls = [scorer.logprobs([Request(number, ids, 1)] * 3) for number, ids in enumerate(tokens)]
        read = [next(calls[0]), next(calls[1]), *calls[0], *calls[1]]
        assert sorted(result.key for result in read) == [0, 0, 0, 1, 1, 1]
        for result in read:
            (expected,) = scorer.logprobs([Request(0, tokens[result.key], 1)])
            np.testing.assert_array_equal(result.logprobs, expected.logprobs)
        model.close()
        assert ray.is_initialized()
        end = time.monotonic() + 90
        while any("_Actor" in title or "_Relay" in title for title in children(os.getpid()).values()):
            assert time.monotonic() < end
            time.sleep(0.2)
    finally:
        ray.shutdown()


@needs_ray
def test_the_environment_and_the_screen_are_left_alone(folder, cluster, monkeypatch, capfd):
    import ray

    from longlens.scoring.ray import _VARIABLES, RayModel

    start = ray.init

    def starting(*arguments, **options):
        os.write(2, b"of another thread\n")
        return start(*arguments, **options)

    monkeypatch.chdir(folder)
    monkeypatch.setattr(ray, "init", starting)
    monkeypatch.setenv("RAY_DEDUP_LOGS_SKIP_REGEX", "mine")
    before = {name: os.environ.get(name) for name in _VARIABLES}
    model = RayModel("llama", Loading(), Engine(), Ray(ray=cluster, ray_actors="1", ray_cpus=0.5))
    try:
        assert len(list(model.load().logprobs([Request(0, [1, 2, 3], 1)]))) == 1
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    finally:
        model.close()
    assert not ray.is_initialized()
    assert {name: os.environ.get(name) for name in before} == before
    assert capfd.readouterr().err == "of another thread\n"
