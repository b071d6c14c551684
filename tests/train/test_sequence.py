"""Two processes with parts of the same sequences make the update of one that has the whole."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from tests.torchrun import finish, start
from tests.train.runs import SEQUENCES, in_sequence, trained, weights_of


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The folder that `tests.train.sequence_ranks` wrote, by two processes at once."""
    folder = tmp_path_factory.mktemp("ranks")
    finish(start(["tests.train.sequence_ranks", str(folder)]), timeout=200)
    return folder


@pytest.mark.parametrize("name", SEQUENCES)
def test_parts_of_a_sequence_make_the_update_of_the_whole(ranks, tmp_path, name):
    given = in_sequence(name)
    start = weights_of(given["model"])
    alone = trained(tmp_path, **given)
    first, second = (load_file(ranks / f"{name}-{rank}.safetensors") for rank in range(2))
    assert set(first) == set(start)
    moved = 0.0
    for key, weight in weights_of(alone.model).items():
        assert torch.equal(first[key], second[key])
        # A weight of a neighbour, a label too much or a sum over half of the ranks is off by a hundredth and more.
        assert (first[key] - weight).abs().max() <= (1e-6 if name == "float32" else 1e-10), key
        moved = max(moved, float((weight - start[key]).abs().max()))
    assert moved > 0.05
    logged = json.loads((ranks / f"{name}-0.json").read_text())
    for ours, line in zip(logged, alone.state.log_history, strict=True):
        for key, value in line.items():
            if key.startswith("longce") or key in ("loss", "eval_loss"):
                assert ours[key] == pytest.approx(value, rel=1e-6), key


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("packed", "cp_size=2 with documents packed into rows, which would see each other: train with one document"),
        ("eager", "'eager' attention: torch's context parallelism needs .* attn_implementation='sdpa'"),
        ("sliding", "layers of MistralForCausalLM have sliding-window or chunked attention"),
        ("dynamic", "rotary frequencies of LlamaForCausalLM depend on the length"),
        ("longrope", "rotary frequencies of Phi3ForCausalLM depend on the length"),
        ("gpt2", "layers named self_attn"),
    ],
)
def test_what_parts_would_compute_otherwise_is_refused(ranks, name, said):
    for rank in range(2):
        error = json.loads((ranks / f"errors-{rank}.json").read_text())[name]
        assert error.startswith("cp_size=2")
        assert "\n" not in error
        assert re.search(said, error), error
