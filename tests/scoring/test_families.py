"""Every family of transformers: a sequence's scores and answers are its own, whatever stands beside or before it."""

from __future__ import annotations

import pytest
import transformers
from benchmarks.families import recorded

from tests.families import TEXT_KINDS, family_model, outcome

# These have to be among the tested ones: state-space, hybrid and compressed layers, experts, sparse attention, and
# decoders in unusual places.
NAMED = {
    "bailing_hybrid", "bamba", "deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4", "falcon_h1", "falcon_mamba",
    "gemma3", "gemma3n_text", "gemma4", "gpt_oss", "granitemoe", "granitemoehybrid", "jamba", "lfm2", "lfm2_moe",
    "llama4_text", "mamba", "mamba2", "minimax", "mixtral", "modernbert-decoder", "nemotron_h", "olmo_hybrid", "olmoe",
    "openai-gpt", "qwen2_moe", "qwen3_5_text", "qwen3_moe", "qwen3_next", "recurrent_gemma", "rwkv", "xlstm", "zamba",
    "zamba2", "zaya",
}  # fmt: skip


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_scores_and_answers_are_those_of_a_sequence_alone(kind):
    model = family_model(kind)
    if isinstance(model, Exception):
        assert kind not in NAMED, model
        pytest.skip(f"{type(model).__name__}: {model}")
    found = outcome(model)
    assert found.errors == ()
    assert kind not in NAMED or not found.is_refused, found.scoring
    known = recorded(transformers.__version__)
    if known:  # of another version, families and their code differ
        assert known[kind] == found


@pytest.mark.parametrize("kernel", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("kind", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_experts_of_a_token_do_not_depend_on_the_others(kind, kernel):
    model = family_model(kind)
    model.set_experts_implementation(kernel)
    assert outcome(model).errors == ()
