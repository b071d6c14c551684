"""Continuations that share a text, against one pass over text and continuation each."""

from __future__ import annotations

import pytest
import torch

from longlens import logprobs
from longlens.logprobs import Head
from longlens.scoring.transformers import ContinuationScorer
from tests.tiny import FAMILIES, byte_tokenizer, tiny_model

TEXT = [256, *b"The keeper of the mill counts the lamps, and waits for rain at the station."]
ALIKE = [list(b" in vain. And"), list(b" in vain"), list(b" in vanes")]
CONTINUATIONS = [list(b" all night."), list(b" x"), list(b" in vain, and then goes home to read."), list(b".")]


def naive(model, text, tokens):
    """All logits of one pass."""
    with torch.no_grad():
        logits = model(torch.tensor([[*text, *tokens]])).logits[0, len(text) - 1 : -1]
    targets = torch.tensor(tokens)
    logprob = logits.double().log_softmax(-1).gather(-1, targets[:, None]).sum()
    return float(logprob), bool((logits.argmax(-1) == targets).all())


@pytest.mark.parametrize("continuations", [CONTINUATIONS, ALIKE], ids=["different", "alike"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_shared_text_changes_nothing(family, continuations):
    model = tiny_model(family)
    scorer = ContinuationScorer(model, byte_tokenizer())
    answers = scorer.continuations(TEXT, continuations)
    for answer, tokens in zip(answers, continuations, strict=True):
        assert len(answer.logprobs) == len(answer.greedy) == len(tokens)
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
    fed.clear()
    scorer.continuations(TEXT, ALIKE)
    # " in va" is what all begin with, and is run once.
    assert fed == [(1, len(TEXT) - 1), (1, 6), (3, 7)]
    fed.clear()
    scorer.branches(TEXT[:40], [(TEXT[40:], ALIKE), (TEXT[40:50], ALIKE[:1])])
    assert fed == [(1, 40), (1, len(TEXT) - 41), (1, 6), (3, 7), (1, 9), (1, len(ALIKE[0]))]


@pytest.mark.parametrize("tokens", [1, 100, 150, 10**6])
def test_the_number_of_copies_changes_nothing(tokens, monkeypatch):
    scorer = ContinuationScorer(tiny_model("gemma3"), byte_tokenizer())
    before = scorer.branches(TEXT[:40], [(TEXT[40:], CONTINUATIONS + ALIKE)])
    monkeypatch.setattr(scorer, "_copied_tokens", tokens)
    (after,) = scorer.branches(TEXT[:40], [(TEXT[40:], CONTINUATIONS + ALIKE)])
    for one, other in zip(before[0], after, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
        assert one.greedy == other.greedy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_product_finds_what_two_do(dtype, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(50, 8, generator=generator).to(dtype)
    hidden = torch.randn(7, 8, generator=generator).to(dtype)
    targets = torch.randint(50, (7,), generator=generator)
    head = Head(weight=weight, bias=torch.randn(50, generator=generator).to(dtype), scale=1.5, softcap=3.0)
    targets[::2] = head.logits(hidden).argmax(-1)[::2]
    wide = head.to(torch.float64).logits(hidden.double()).log_softmax(-1)
    for size in (1, 10**6):
        for name in ("LOGIT_BYTES", "DISTRIBUTION_BYTES", "BLOCK_BYTES"):
            monkeypatch.setattr(logprobs, name, size)
        found, greedy = logprobs.greedy_logprobs(hidden, targets, head)
        assert found.dtype == torch.float32
        assert torch.allclose(found.double(), wide.gather(-1, targets[:, None])[:, 0], atol=1e-5)
        assert greedy.tolist() == (head.logits(hidden).argmax(-1) == targets).tolist()
