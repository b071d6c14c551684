"""Every family of transformers: a sequence's scores and answers are its own, whatever stands beside or before it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longlens.errors import UserError
from longlens.models.forward import Forward, greedy, pack, running
from longlens.scoring.scorer import Request
from longlens.scoring.transformers import ContinuationScorer
from tests.families import KINDS, family_model
from tests.reference.scoring import naive_logprobs
from tests.tiny import byte_tokenizer

ROWS = [
    torch.randint(1, 250, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for length in (70, 37, 70, 5)
]
# These have to be among the tested ones: state-space, hybrid and compressed layers, and decoders in unusual places.
NAMED = {
    "bailing_hybrid", "bamba", "deepseek_v4", "falcon_h1", "falcon_mamba", "gemma3n_text", "granitemoehybrid", "jamba",
    "lfm2", "lfm2_moe", "llama4_text", "mamba", "mamba2", "minimax", "modernbert-decoder", "nemotron_h",
    "olmo_hybrid", "openai-gpt", "qwen3_5_text", "qwen3_next", "recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2",
    "zaya",
}  # fmt: skip
# What find_head of longlens.logprobs does not know.
OTHER_HEADS = {"dory", "inkling_text"}


def answers(forward, rows):
    """As `longlens.bench.lm_eval.backends.LensHFLM` batches prompts."""
    found = {}
    batches = pack([len(row) for row in rows], pads=forward.pads_left, rows=3 if forward.generates_batches else 1)
    for batch in batches:
        with running(forward.model), greedy(forward.model, max_new_tokens=3, eos_token_id=None) as config:
            written = forward.generate([rows[number] for number in batch], config)
        found |= dict(zip(batch, written, strict=True))
    return [found[number] for number in range(len(rows))]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_answers_are_those_of_a_sequence_alone(kind, monkeypatch):
    monkeypatch.setattr("longlens.scoring.transformers.CHUNK_TOKENS", 32)
    model = family_model(kind)
    if isinstance(model, Exception):
        assert kind not in NAMED, model
        pytest.skip(f"{type(model).__name__}: {model}")
    if kind in OTHER_HEADS:
        with pytest.raises(UserError, match="computes its logits in a way"):
            ContinuationScorer(model, byte_tokenizer())
        return
    scorer = ContinuationScorer(model, byte_tokenizer(), batch_tokens=200)
    requests = [Request(str(number), tuple(row), 1) for number, row in enumerate(ROWS)]
    for key, logprobs in scorer.logprobs(requests):
        np.testing.assert_allclose(logprobs, naive_logprobs(model, ROWS[int(key)]), atol=1e-3)
    # A text and its continuations: the cache of the text serves all of them, where that is right.
    continuations = [ROWS[1][:6], ROWS[3]]
    for answer, tokens in zip(scorer.continuations(ROWS[0], continuations), continuations, strict=True):
        expected = naive_logprobs(model, ROWS[0] + tokens)[len(ROWS[0]) - 1 :]
        assert answer.logprob == pytest.approx(sum(expected), abs=1e-3)
    together = answers(Forward(model), ROWS)
    alone = [answers(Forward(model), [row])[0] for row in reversed(ROWS)][::-1]
    assert together == alone
