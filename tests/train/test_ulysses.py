"""DeepSpeed's Ulysses: two processes with parts of the same sequences make the update of one that has the whole."""

import json
import re

import pytest
from safetensors.torch import load_file

from tests.torchrun import finish, start
from tests.train.runs import ULYSSES, in_sequence, smooth_model, trained, weights_of

pytestmark = pytest.mark.distributed
pytest.importorskip("deepspeed", reason="make test-distributed installs DeepSpeed")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The folder that `tests.train.ulysses_ranks` wrote, by two processes at once."""
    folder = tmp_path_factory.mktemp("ranks")
    finish(start(["tests.train.ulysses_ranks", str(folder)]), timeout=500)
    return folder


@pytest.mark.parametrize(("name", "stage"), [*((name, 1) for name in ULYSSES), ("evaluated", 3)])
def test_parts_of_a_sequence_make_the_update_of_the_whole(ranks, tmp_path, name, stage):
    alone = trained(tmp_path, **{**in_sequence(name), "model": smooth_model()})
    found, start = load_file(ranks / f"{name}-{stage}.safetensors"), weights_of(smooth_model())
    moved = 0.0
    for key, weight in weights_of(alone.model).items():
        # The gradient is up to 0.05: a sum that is counted twice, or a weight of a neighbour, is far off.
        assert (found[key] - weight).abs().max() <= 1e-6, key
        moved = max(moved, float((weight - start[key]).abs().max()))
    assert moved > 0.02
    logged = json.loads((ranks / f"{name}-{stage}.json").read_text())
    for ours, line in zip(logged, alone.state.log_history, strict=True):
        for key, value in line.items():
            if key.startswith("longce") or key in ("loss", "eval_loss"):
                assert ours[key] == pytest.approx(value, rel=1e-6), key


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("packed", "documents packed into rows, which would see each other: train with one document per row, or with "),
        ("eager", "sp_attn_implementation 'sdpa', and the model was loaded with 'eager'"),
        ("dynamic", "rotary frequencies of LlamaForCausalLM depend on the length"),
    ],
)
def test_what_parts_would_compute_otherwise_is_refused(ranks, name, said):
    for rank in range(2):
        error = json.loads((ranks / f"errors-{rank}.json").read_text())[name]
        assert error.startswith("sp_size=2")
        assert "\n" not in error
        assert re.search(said, error), error
