"""Weights spread over two gloo processes, by accelerate's FSDP2 and DeepSpeed's ZeRO-3, train as one process does."""

import importlib.util
import json

import pytest
from safetensors.torch import load_file

from tests.torchrun import finish, start
from tests.train import sharded_ranks

needs_deepspeed = [
    pytest.mark.distributed,
    pytest.mark.skipif(
        importlib.util.find_spec("deepspeed") is None, reason="make test-distributed installs DeepSpeed"
    ),
]
SHARDINGS = ["fsdp2", pytest.param("zero3", marks=needs_deepspeed)]
WRAPPED_BY = {"fsdp2": "FSDP", "zero3": "DeepSpeedEngine"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process computes."""
    folder = tmp_path_factory.mktemp("alone")
    sharded_ranks.main("none", folder, [])
    return folder


@pytest.fixture(scope="module", params=SHARDINGS)
def sharded(request, tmp_path_factory):
    """What two processes compute, and how the weights were spread."""
    folder = tmp_path_factory.mktemp(request.param)
    finish(start(["tests.train.sharded_ranks", request.param, str(folder)]), timeout=200)
    return folder, request.param


def curve(folder, case):
    """The model's wrapper; and what was logged, but for times."""
    wrapper, history = json.loads((folder / f"{case}.json").read_text())
    left_out = ("runtime", "per_second", "total_flos", "train_loss")
    return wrapper, [{k: v for k, v in line.items() if not k.endswith(left_out)} for line in history]


@pytest.mark.parametrize("case", ["unequal", "packed", "offline", "lora"])
def test_learning_curve_and_weights_are_those_of_one_process(alone, sharded, case):
    folder, kind = sharded
    wrapper, found = curve(folder, case)
    assert wrapper.startswith(WRAPPED_BY[kind])
    _, wanted = curve(alone, case)
    steps = 0
    for line, other in zip(found, wanted, strict=True):
        assert line.keys() == other.keys()
        # Later ones hold the rounding of the updates before.
        assert line == pytest.approx(other, rel=1e-6 if steps == 0 else 1e-5)
        steps += "loss" in line
    assert steps == 4
    weights = load_file(folder / f"{case}.safetensors")
    for name, value in load_file(alone / f"{case}.safetensors").items():
        assert (weights[name] - value).abs().max() <= 1e-5, name
    assert len({line["loss"] for line in wanted if "loss" in line}) == 4


def test_half_precision_rounds_neither_the_loss_nor_the_weights_that_are_trained(alone, sharded):
    folder, kind = sharded
    _, (first, *found) = curve(folder, "half")
    _, (_, *wanted) = curve(alone, "half")
    assert first["dtype"] == "torch.float32"
    for line, other in zip(found, wanted, strict=True):
        if "loss" in line:
            assert line["loss"] == pytest.approx(other["loss"], rel=0.02)
            assert line["longce_mean_weight"] == pytest.approx(other["longce_mean_weight"], rel=0.02)
    if kind == "fsdp2":
        assert {str(value.dtype) for value in load_file(folder / "half.safetensors").values()} == {"torch.float32"}
