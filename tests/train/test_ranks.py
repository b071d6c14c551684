"""Two processes with gloo make the same update as one."""

import json

import pytest
import torch
from safetensors.torch import load_file

from longlens.losses.longce import weighted_nll
from tests.tiny import tiny_model
from tests.torchrun import finish, start
from tests.train.runs import RULE, rows, trained, weights_of


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The folder that `tests.train.ranks` wrote, by two processes at once."""
    folder = tmp_path_factory.mktemp("ranks")
    finish(start(["tests.train.ranks", str(folder)]))
    return folder


@pytest.mark.parametrize("cut", ["2x2", "2x1x2"])
def test_two_processes_make_the_update_of_one(ranks, tmp_path, cut):
    alone = trained(tmp_path)
    first, second = (load_file(ranks / f"{cut}-{rank}.safetensors") for rank in range(2))
    start = weights_of(tiny_model("llama"))
    for name, weight in weights_of(alone.model).items():
        assert torch.equal(first[name], second[name])
        assert torch.allclose(first[name], weight, atol=1e-6)
    assert any((first[name] - start[name]).abs().max() > 1e-4 for name in start)
    logged = json.loads((ranks / f"{cut}-0.json").read_text())
    for name, value in alone.state.log_history[0].items():
        if name.startswith("longce") or name == "loss":
            assert logged[name] == pytest.approx(value, rel=1e-6), name


def test_longppl_is_computed_by_one_and_known_to_both(ranks):
    first, second = (json.loads((ranks / f"callback-{rank}.json").read_text()) for rank in range(2))
    values = [[e["eval_longppl"] for e in r["history"] if "eval_longppl" in e] for r in (first, second)]
    assert values[0] == values[1]
    assert len(values[0]) == 2
    assert first["best"] == second["best"] in values[0]


def test_weights_spread_by_fsdp_get_the_same_gradient(ranks):
    model = tiny_model("llama")
    for row in rows().select(range(2)):
        ids, labels = (torch.tensor(row[name])[None] for name in ("input_ids", "labels"))
        (weighted_nll(model, ids, labels, longce=RULE).total / 200).backward()
    found = load_file(ranks / "sharded-0.safetensors")
    for name, parameter in model.named_parameters():
        assert torch.allclose(found[name], parameter.grad, atol=1e-6), name


def test_sharding_that_would_silently_be_a_whole_model_a_process_is_refused(ranks):
    for rank in range(2):
        assert "`fsdp` is set, but accelerate shards" in (ranks / f"refused-{rank}.txt").read_text()
