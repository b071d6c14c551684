"""Continuations that share a text, against one pass over text and continuation each."""

from __future__ import annotations

import pytest
import torch

from longlens.scoring.transformers import ContinuationScorer
from tests.tiny import FAMILIES, byte_tokenizer, tiny_model

TEXT = [256, *b"The keeper of the mill counts the lamps, and waits for rain at the station."]
CONTINUATIONS = [list(b" all night."), list(b" x"), list(b" in vain, and then goes home to read."), list(b".")]


def naive(model, text, tokens):
    """All logits of one pass."""
    with torch.no_grad():
        logits = model(torch.tensor([[*text, *tokens]])).logits[0, len(text) - 1 : -1]
    targets = torch.tensor(tokens)
    logprob = logits.double().log_softmax(-1).gather(-1, targets[:, None]).sum()
    return float(logprob), bool((logits.argmax(-1) == targets).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shared_text_changes_nothing(family):
    model = tiny_model(family)
    scorer = ContinuationScorer(model, byte_tokenizer())
    answers = scorer.continuations(TEXT, CONTINUATIONS)
    for answer, tokens in zip(answers, CONTINUATIONS, strict=True):
        logprob, is_greedy = naive(tiny_model(family), TEXT, tokens)
        assert answer.logprob == pytest.approx(logprob, abs=2e-3 * len(tokens))
        assert answer.is_greedy == is_greedy
        (alone,) = scorer.continuations(TEXT, [tokens])
        assert alone.logprob == pytest.approx(answer.logprob, abs=2e-3 * len(tokens))


@pytest.mark.parametrize("batch_tokens", [8, 10**6])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_what_is_most_likely_is_greedy(family, attention, batch_tokens):
    model = tiny_model(family)
    model.set_attn_implementation(attention)
    ids = torch.tensor([TEXT])
    written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    best = written[0, len(TEXT) :].tolist()
    other = [*best[:-1], (best[-1] + 1) % 256]
    scorer = ContinuationScorer(model, byte_tokenizer(), batch_tokens=batch_tokens)
    assert [answer.is_greedy for answer in scorer.continuations(TEXT, [best, other, best[:2]])] == [True, False, True]


def test_a_text_goes_through_the_model_once():
    model = tiny_model("llama")
    scorer = ContinuationScorer(model, byte_tokenizer())
    assert scorer._forward.has_cache
    fed = []
    model.model.register_forward_pre_hook(
        lambda module, args, inputs: fed.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    scorer.continuations(TEXT, CONTINUATIONS)
    assert fed == [(1, len(TEXT) - 1), (len(CONTINUATIONS), max(map(len, CONTINUATIONS)))]
