"""Recipes whose rows two processes share (`training.context_parallel`): the run of one process, also resumed."""

import importlib.util
import json
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from safetensors.torch import load_file

from longlens.errors import UserError
from longlens.train.folder import read_log
from longlens.train.recipe import parse_recipe, read_recipe
from longlens.train.run import run
from longlens.train.setup import accumulation
from tests.torchrun import finish, start
from tests.train.test_run import BASE, EVALUATION, fill, recipe

PATIENCE = 200
KINDS = [
    pytest.param("fsdp", marks=pytest.mark.distributed),  # minutes
    pytest.param(
        "zero3",
        marks=[
            pytest.mark.distributed,
            pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="see make test-distributed"),
        ],
    ),
]
MODULES = {"fsdp": ["tests.train.shared_rows_ranks"], "zero3": ["tests.train.sharded_ranks", "recipe"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory, models):
    """A folder with texts and models; the number of rows is even, and the steps take some of them twice."""
    folder = tmp_path_factory.mktemp("work")
    fill(folder, models, models / "llama")
    (folder / "a.txt").write_text(" ".join(f"w{i * 7 % 53}" for i in range(88)))
    return folder


def content(kind, **changes):
    arguments = {"use_cpu": kind != "zero3"} | ({"dataloader_pin_memory": False} if kind == "zero3" else {})
    shared = {} if kind == "none" else {"sharding": kind, "context_parallel": 2}
    training = {**BASE["training"], "batch_size": 2, "save_every": 1, "steps": 7, "arguments": arguments, **shared}
    # Gloo gathers rows of one length alone, for DeepSpeed.
    data = {**BASE["data"], **({"min_tokens": 32} if kind == "zero3" else {})}
    return {**BASE, "data": data, "evaluation": EVALUATION, "training": training, **changes}


def spread(place, out, made, kind, **environment):
    file = place / f"{out}.yaml"
    file.write_text(json.dumps(made))
    return start([*MODULES[kind], str(file), str(place / out)], cwd=place, **environment)


def log(folder):
    lines = read_log(Path(folder) / "log.jsonl")
    return [{name: value for name, value in line.items() if name != "epoch"} for line in lines]


def weights(folder):
    return load_file(Path(folder) / "model" / "model.safetensors")


def distance(first, second):
    return max(float((first[name] - second[name]).abs().max()) for name in second)


@pytest.fixture(scope="module", params=KINDS)
def whole(request, place):
    """A run that nobody stopped."""
    out = place / f"whole-{request.param}"
    finish(spread(place, out.name, content(request.param), request.param), PATIENCE)
    return out, request.param


def test_the_run_is_that_of_one_process(place, whole, monkeypatch):
    folder, kind = whole
    monkeypatch.chdir(place)
    run(parse_recipe(content(kind) | {"training": content("none")["training"]}, "recipe"), f"alone-{kind}")
    assert [line["step"] for line in log(folder)] == [*range(8)]
    for line, other in zip(log(folder), log(f"alone-{kind}"), strict=True):
        assert line == pytest.approx(other, rel=1e-5)
    # AdamW moves a weight by up to 1e-3 at a step, also where its gradient is hardly more than rounding.
    assert distance(weights(folder), weights(f"alone-{kind}")) < 1e-4
    assert distance(weights(folder), load_file(place / "llama" / "model.safetensors")) > 1e-3


@pytest.mark.parametrize("step", [3, 6])  # in the first pass over the rows, and in the second
def test_a_rank_that_is_killed_is_mended_by_the_same_command(place, whole, step):
    folder, kind = whole
    made, out = content(kind), f"killed-{kind}-{step}"
    started = spread(place, out, made, kind, KILL=str(step))
    with ThreadPoolExecutor(1) as reader:  # what both say is read: a full pipe would stop them
        reading = reader.submit(started[0].communicate)
        try:
            started[1].communicate(timeout=PATIENCE)
        finally:
            for process in started:  # as torchrun stops the others
                process.kill()
            reading.result()
    assert started[1].returncode == -signal.SIGKILL
    assert [path.parent.name for path in (place / out).glob("checkpoints/*/longlens.json")] == [f"checkpoint-{step}"]
    finish(spread(place, out, made, kind), PATIENCE)
    for line, other in zip(log(place / out), log(folder), strict=True):
        assert line == pytest.approx(other, rel=1e-6)
    assert distance(weights(place / out), weights(folder)) < 1e-6


def test_another_number_of_processes_for_a_row_is_another_run(place, whole, monkeypatch):
    folder, kind = whole
    if kind == "fsdp":
        monkeypatch.chdir(place)
        with pytest.raises(UserError, match=r"training\.context_parallel is 2 there and None here"):
            run(recipe(evaluation=EVALUATION, training=content("none")["training"]), folder)


@pytest.mark.distributed
def test_rows_of_several_documents_are_refused(place):
    for name in ("c", "d"):
        (place / f"{name}.txt").write_text(f"{name} 3 5")
    made = content("fsdp", data={"documents": ["c.txt", "d.txt"], "length": 32, "packing": "best-fit"})
    with pytest.raises(AssertionError) as failed:
        finish(spread(place, "packed", made, "fsdp"), PATIENCE)
    assert "training.context_parallel is 2, and " in str(failed.value)
    assert "has 2 documents in 1 rows, which would see each other" in str(failed.value)


def test_groups_of_processes():
    shared = {"training": {"sharding": "fsdp", "context_parallel": 4, "batch_size": 8, "per_device_batch_size": 2}}
    assert accumulation(recipe(**shared), 8) == 2
    with pytest.raises(
        UserError, match=r"context_parallel is 4, and there are 6 processes .* expected a multiple of 4"
    ):
        accumulation(recipe(**shared), 6)
    with pytest.raises(UserError, match=r"do not divide among 3 groups of 4 processes .* expected a multiple of 6"):
        accumulation(recipe(**shared), 12)
    with pytest.raises(UserError, match="context_parallel is 2 and sharding is not set: set it to fsdp"):
        recipe(training={"context_parallel": 2})
    with pytest.raises(UserError, match=r"parallelism_config', which a recipe cannot set \(use training.context_para"):
        run(recipe(training={"arguments": {"parallelism_config": {}}}), "out")


@pytest.mark.parametrize("preset", ["prolong-512k", "prolong-512k-theta", "lecture-length-512k"])
def test_rows_of_512k_are_shared_by_eight_devices(preset):
    for found in read_recipe(preset).runs.values():
        assert found.training.context_parallel == 8
        assert accumulation(found, 8) * found.length == 2**23  # tokens of a step
        # Rows hold several documents.
        assert (found.training.sharding, found.load.attention) == ("zero3", "flash_attention_2")
