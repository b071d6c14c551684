"""Recipes whose model is spread over two processes: the folder, a killed rank, adapters (make test-distributed)."""

import importlib.util
import json
import shutil
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

import longlens
from longlens.models import load_scorer
from longlens.train.folder import read_log
from longlens.train.run import run
from tests.torchrun import finish, start
from tests.train.test_run import BASE, EVALUATION, fill, recipe

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="see make test-distributed"),
]
PATIENCE = 200
LORA = {"r": 2, "alpha": 4, "modules_to_save": []}


@pytest.fixture(scope="module")
def place(tmp_path_factory, models):
    """A folder with texts and models."""
    folder = tmp_path_factory.mktemp("work")
    fill(folder, models, models / "llama")
    # More rows than the steps take: at the end of an epoch two processes repeat one, where their number is odd.
    (folder / "a.txt").write_text(" ".join(f"w{i * 7 % 53}" for i in range(190)))
    return folder


def content(kind, **changes):
    """`BASE` on two processes, spread."""
    arguments = {"use_cpu": kind != "zero3"}
    if kind == "zero3":
        arguments["dataloader_pin_memory"] = False
    training = {**BASE["training"], "batch_size": 4, "arguments": arguments, **changes.pop("training", {})}
    return {**BASE, "training": {**training, **({"sharding": kind} if kind != "none" else {})}, **changes}


def spread(place, out, made, **environment):
    """The processes of a run, as torchrun would have started them."""
    file = place / f"{out}.yaml"
    file.write_text(json.dumps(made))
    return start(["tests.train.sharded_ranks", "recipe", str(file), str(place / out)], cwd=place, **environment)


def log(folder):
    """Without the epoch, which goes by the rows of each process, rounded up."""
    lines = read_log(Path(folder) / "log.jsonl")
    return [{name: value for name, value in line.items() if name != "epoch"} for line in lines]


def weights(folder):
    return load_file(Path(folder) / "model" / "model.safetensors")


@pytest.fixture(scope="module", params=["fsdp", "zero3"])
def whole(request, place):
    """A run that nobody stopped."""
    out = place / f"whole-{request.param}"
    finish(spread(place, out.name, content(request.param, evaluation=EVALUATION)), PATIENCE)
    return out, request.param


def test_the_run_is_that_of_one_process_and_its_model_is_read_as_any_other(place, whole, monkeypatch):
    folder, kind = whole
    monkeypatch.chdir(place)
    run(recipe(evaluation=EVALUATION, training=content("none")["training"]), f"alone-{kind}")
    assert len(log(folder)) == 6
    for line, other in zip(log(folder), log(f"alone-{kind}"), strict=True):
        assert line == pytest.approx(other, rel=1e-5)
    found, wanted = weights(folder), weights(f"alone-{kind}")
    assert found.keys() == wanted.keys()
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-5
    assert json.loads((folder / "model" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    document = longlens.Document(id="a", text="w1 w7 w49 w20")
    first, second = (
        longlens.score([document], load_scorer(f"{path}/model"), context=None) for path in (folder, f"alone-{kind}")
    )
    assert longlens.perplexity(first).ppl == pytest.approx(longlens.perplexity(second).ppl, rel=1e-5)
    assert json.loads((folder / "manifest.json").read_text())["run"]["sharding"] in ("fsdp", "deepspeed")


def test_a_rank_that_is_killed_is_mended_by_the_same_command(place, whole):
    folder, kind = whole
    made, out = content(kind, evaluation=EVALUATION), f"killed-{kind}"
    started = spread(place, out, made, KILL="3")
    assert started[1].wait(PATIENCE) == -signal.SIGKILL
    started[0].kill()  # as torchrun stops the others
    started[0].wait()
    assert [path.name for path in (place / out / "checkpoints").glob("checkpoint-*/longlens.json")] == ["longlens.json"]
    assert not (place / out / "model").exists()
    finish(spread(place, out, made), PATIENCE)
    assert [line["step"] for line in log(place / out)] == [0, 1, 2, 3, 4, 5]
    for line, other in zip(log(place / out), log(folder), strict=True):
        assert line == pytest.approx(other, rel=1e-6)
    found, wanted = weights(place / out), weights(folder)
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-6


def test_a_run_that_died_before_it_saved_the_model_makes_no_more_steps(place, whole):
    folder, kind = whole
    wanted, lines = weights(folder), log(folder)
    again = place / f"again-{kind}"
    shutil.copytree(folder, again)
    (again / "result.json").unlink()
    shutil.rmtree(again / "model")
    finish(spread(place, again.name, content(kind, evaluation=EVALUATION)), PATIENCE)
    assert log(again) == lines
    found = weights(again)
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) == 0


@pytest.mark.parametrize("kind", ["fsdp", "zero3"])
def test_adapters_are_merged_into_whole_weights(place, kind, monkeypatch):
    monkeypatch.chdir(place)
    changes = {"lora": LORA, "training": {"gradient_checkpointing": True, "steps": 3}}
    finish(spread(place, f"lora-{kind}", content(kind, **changes)), PATIENCE)
    alone = content("none", **changes)
    run(recipe(lora=LORA, training=alone["training"]), f"lora-alone-{kind}")
    found, wanted = weights(f"lora-{kind}"), weights(f"lora-alone-{kind}")
    start_of = load_file(place / "llama" / "model.safetensors")
    assert found.keys() == wanted.keys()
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-5
    assert max(float((found[name] - start_of[name]).abs().max()) for name in wanted) > 1e-4
