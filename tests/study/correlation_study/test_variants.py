"""Variants of tiny models against naive oracles; continuations of a shared prefix against whole passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from longlens.models.forward import Forward, running
from longlens.rope.settings import Extension
from longlens.scoring.transformers import ContinuationScorer
from longlens.study.correlation_study.variants import GROUP, VariantSettings, make_variant, rounded, window_mask
from tests.tiny import byte_tokenizer, tiny_model

FAMILIES = ("llama", "gemma3")
IDS = torch.randint(0, 250, (1, 90), generator=torch.Generator().manual_seed(1))


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with running(model):
        return Forward(model).logits(ids)[0]


def test_window_mask_is_the_loop() -> None:
    mask = window_mask(5, 12, 4, 2)
    for row in range(5):
        place = 7 + row
        wanted = [key <= place and (place - key < 4 or key < 2) for key in range(12)]
        assert mask[row].tolist() == wanted


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_layer_with_a_window_is_the_model_on_that_window(family: str, attention: str) -> None:
    """With one layer a token depends on its window alone: each is computed again from a sequence of that window."""
    changes = {"num_hidden_layers": 1, "attn_implementation": attention}
    changes |= {"layer_types": ["full_attention"]} if family == "gemma3" else {}
    base = tiny_model(family, **changes)
    found = logits(make_variant(base, VariantSettings(window=16)))
    for place in (3, 15, 16, 40, 89):
        first = max(0, place - 15)
        positions = torch.arange(first, place + 1)[None]
        with running(base):
            states = Forward(base).hidden(IDS[:, first : place + 1], positions)
            alone = base.get_output_embeddings()(states[0, -1])
        torch.testing.assert_close(found[place], alone, atol=2e-4, rtol=1e-4)
    assert (found[89] - logits(base)[89]).abs().max() > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_window_and_sinks_are_the_same_in_chunks_with_a_cache(family: str) -> None:
    model = make_variant(tiny_model(family), VariantSettings(window=12, sinks=3))
    forward = Forward(model)
    with running(model):
        whole, cache = forward.hidden(IDS), forward.new_cache()
        parts = torch.cat([forward.extend(part, cache) for part in IDS.split(23, dim=1)], dim=1)
    torch.testing.assert_close(whole, parts, atol=1e-4, rtol=1e-4)


def test_sinks_are_seen_and_what_stands_between_is_not() -> None:
    model = make_variant(tiny_model("llama", num_hidden_layers=1), VariantSettings(window=8, sinks=4))
    before = logits(model)[-1]
    for place, moves in ((1, True), (30, False), (85, True)):
        changed = IDS.clone()
        changed[0, place] += 1
        assert bool((logits(model, changed)[-1] - before).abs().max() > 1e-4) == moves


@pytest.mark.parametrize("bits", [3, 4])
def test_rounding_moves_no_weight_by_more_than_half_a_step(bits: int) -> None:
    weight = torch.randn(5, 2 * GROUP + 7, generator=torch.Generator().manual_seed(0))
    found = rounded(weight, bits)
    for part, moved in zip(weight.split(GROUP, 1), (found - weight).split(GROUP, 1), strict=True):
        step = (part.amax(1) - part.amin(1)) / (2**bits - 1)
        assert (moved.abs().amax(1) <= step / 2 + 1e-6).all()
        assert all(len(row.unique()) <= 2**bits for row in (part + moved))
    assert (found - weight).abs().max() > 0.05
    torch.testing.assert_close(rounded(torch.ones(2, 40), bits), torch.ones(2, 40))


@pytest.mark.parametrize("family", FAMILIES)
def test_temperature_is_that_of_the_logits_and_moves_no_greedy_token(family: str) -> None:
    base = tiny_model(family)
    found, plain = logits(make_variant(base, VariantSettings(temperature=1.5))), logits(base)
    torch.testing.assert_close(found.log_softmax(-1), (plain / 1.5).log_softmax(-1), atol=1e-4, rtol=1e-4)
    assert torch.equal(found.argmax(-1), plain.argmax(-1))


@pytest.mark.parametrize("settings", [{"rope": Extension(method="pi", factor=4)}, {"theta": 100.0}, {"bits": 3}])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_variant_is_another_model_and_leaves_the_base(family: str, settings: dict[str, Any]) -> None:
    base = tiny_model(family)
    before = logits(base)
    assert (logits(make_variant(base, VariantSettings(**settings))) - before).abs().max() > 1e-3
    assert torch.equal(logits(base), before)


@pytest.mark.parametrize("variant", [{}, {"window": 20}, {"window": 12, "sinks": 4}, {"temperature": 1.5}])
@pytest.mark.parametrize("family", FAMILIES)
def test_branches_are_whole_passes(family: str, variant: dict[str, Any]) -> None:
    model = make_variant(tiny_model(family), VariantSettings(**variant))
    scorer = ContinuationScorer(model, byte_tokenizer())
    rng = np.random.default_rng(3)
    prefix = rng.integers(0, 250, 60).tolist()
    rows = [(rng.integers(0, 250, n).tolist(), [rng.integers(0, 250, m).tolist() for m in (3, 1, 5)]) for n in (1, 9)]
    for (text, some), answers in zip(rows, scorer.branches(prefix, rows), strict=True):
        for tokens, answer in zip(some, answers, strict=True):
            whole = logits(model, torch.tensor([[*prefix, *text, *tokens]]))[-len(tokens) - 1 : -1].log_softmax(-1)
            wanted = whole.gather(-1, torch.tensor(tokens)[:, None]).sum()
            assert abs(answer.logprob - float(wanted)) < 1e-4 * max(1, abs(float(wanted)) / 10)
