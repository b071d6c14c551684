"""Cache policies: a long context in chunks through a policy's cache, against a pass with a mask of what is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longlens import Document, UserError, load_scorer, score
from longlens.models.caches import CachePolicy, CacheUse, FullCache, evicting_cache
from longlens.models.policies import load_cache
from longlens.scoring.scorer import Request
from longlens.scoring.transformers import TransformersScorer
from tests.tiny import FAMILIES, byte_tokenizer, tiny_model

IDS = torch.randint(1, 250, (90,), generator=torch.Generator().manual_seed(3)).tolist()
# Frequencies that go by the length of a sequence cannot be fed in chunks.
BY_LENGTH = {"llama-dynamic-ntk", "phi3-longrope"}


class Recent(CachePolicy):
    """Keeps the last tokens."""

    def __init__(self, size):
        self.size, self.name = size, f"recent:{size}"

    def new_cache(self, model):
        return evicting_cache(model, lambda keys, values: torch.arange(keys.shape[-2])[-self.size :])


WINDOWS_ALONE = {"llama4", "mistral-sliding"}  # nothing of them can be dropped


def use(policy, chunk=256, protocol="stream"):
    return None if policy is None else CacheUse(policy=policy, chunk=chunk, protocol=protocol)


def scores(model, cache=None, chunk=256, ids=IDS, **request):
    scorer = TransformersScorer(model, byte_tokenizer(), cache=use(cache, chunk))
    (result,) = scorer.logprobs([Request("a", ids, 1, **request)])
    return result.logprobs


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - BY_LENGTH))
@pytest.mark.parametrize("chunk", [7, 64])
def test_a_cache_that_keeps_everything_is_a_single_pass_in_chunks(family, chunk):
    model = tiny_model(family)
    policies = [FullCache()] if family in WINDOWS_ALONE else [FullCache(), Recent(len(IDS))]
    for policy in policies:
        np.testing.assert_allclose(scores(model, policy, chunk), scores(model), atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "llama-yarn", "qwen3-tied", "granite", "mixtral"])
def test_what_was_dropped_is_not_attended_to_and_positions_stay(family):
    model, size, chunk = tiny_model(family), 20, 16
    n = len(IDS)
    model.set_attn_implementation("eager")
    query, key = torch.arange(n)[:, None], torch.arange(n)[None]
    begin = query // chunk * chunk
    seen = (key <= query) & (key >= (begin - size).clamp_min(0))
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]
    logits = model(input_ids=torch.tensor([IDS]), attention_mask=mask).logits[0]
    wanted = logits[:-1].log_softmax(-1).gather(-1, torch.tensor(IDS[1:])[:, None])[:, 0].detach()
    model.set_attn_implementation("sdpa")
    np.testing.assert_allclose(scores(model, Recent(size), chunk), wanted, atol=1e-4)


def test_a_window_of_a_short_context_goes_without_the_policy():
    model = tiny_model("llama")
    plain = scores(model)
    np.testing.assert_array_equal(scores(model, Recent(8), 8, is_short=True), plain)
    assert np.abs(scores(model, Recent(8), 8) - plain).max() > 0.1


def test_a_run_scores_long_contexts_through_the_cache_and_short_ones_without():
    model, tokenizer = tiny_model("llama"), byte_tokenizer()
    documents = [Document(id="a", text="abc " * 40), Document(id="b", text="Xyz " * 20)]
    rule = {"context": 40, "stride": 10}
    plain = score(documents, TransformersScorer(model, tokenizer), **rule)
    recent = score(documents, TransformersScorer(model, tokenizer, cache=use(Recent(8), 8)), **rule)
    for a, b in zip(plain, recent, strict=True):
        np.testing.assert_allclose(a.short_logprobs, b.short_logprobs, atol=1e-5)
        assert np.nanmax(np.abs(a.long_logprobs - b.long_logprobs)) > 0.1


def test_policies_and_chunks_are_different_models():
    def identity(cache=None, chunk=256, protocol="stream"):
        return TransformersScorer(model, byte_tokenizer(), cache=use(cache, chunk, protocol)).info.identity

    model = tiny_model("llama")
    assert identity() == identity(FullCache(), 16)
    assert identity(Recent(8), 16).cache == "recent:8@16"
    hashes = {identity(*settings).sha256 for settings in [(), (Recent(8), 16), (Recent(9), 16), (Recent(8), 17)]}
    assert len(hashes | {identity(Recent(8), 16, "prefill+tail").sha256}) == 5


def test_what_cannot_be(models):
    name = str(models / "llama")
    for options, message in (
        ({"cache": "nonsense"}, "`cache` is 'nonsense'; expected one of full"),
        ({"cache": "full", "cache_chunk": 0}, "`cache_chunk` is 0; expected tokens, at least 1"),
        ({"cache_chunk": 8}, "`cache_chunk` would have no effect without `cache`"),
    ):
        with pytest.raises(UserError, match=message):
            load_scorer(name, **options)
    with pytest.raises(UserError, match="has no plain KV cache"):
        scores(tiny_model("llama-dynamic-ntk"), FullCache())
    assert isinstance(load_cache("full"), FullCache)
    assert load_scorer(name, cache=Recent(8)).info.cache == "recent:8@256"
