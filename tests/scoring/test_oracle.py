"""Our scores equal the naive oracle's, for every family and both BOS rules."""

import numpy as np
import pytest
import torch

import longlens
from longlens.scoring.transformers import TransformersScorer
from tests.reference.scoring import naive_logprobs, naive_published_scores, naive_scores
from tests.tiny import FAMILIES, byte_tokenizer, tiny_model

TEXTS = [
    "It was the best of times, it was the worst of times, " * 3,
    "Straße 🙂 naïve",
    "x",
    "a document of a middle length" * 2,
]
NATS = 1e-4


def documents():
    return [longlens.Document(id=str(i), text=text) for i, text in enumerate(TEXTS)]


def make_scorer(model, **options):
    tokenizer = byte_tokenizer(**options)
    return TransformersScorer(model, tokenizer, name="tiny", weights_sha256="0", batch_tokens=200)


@pytest.fixture
def small_chunks(monkeypatch):
    """So that a sequence of a hundred tokens is fed in several chunks where a family is fed in chunks."""
    monkeypatch.setattr("longlens.scoring.transformers.CHUNK_TOKENS", 32)
    monkeypatch.setattr("longlens.scoring.transformers.ATTENTION_BYTES", 32 * 4 * 4 * 200)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_the_oracle(family, small_chunks):
    model = tiny_model(family)
    scores = longlens.score(documents(), make_scorer(model), context=32, stride=12, extrapolate=True, max_length=4000)
    for row in scores:
        ids = row.token_ids.tolist()
        long, short = naive_scores(model, ids, context=32, stride=12, bos=256)
        np.testing.assert_allclose(row.long_logprobs, long, atol=NATS)
        np.testing.assert_allclose(row.short_logprobs, short, atol=NATS)
    assert np.isfinite(scores.get("0").short_logprobs[32:]).all()
    assert np.isnan(scores.get("0").short_logprobs[:32]).all()


@pytest.mark.parametrize(("family", "adds_bos"), [*((family, True) for family in FAMILIES), ("llama", False)])
def test_published_rule_of_an_evaluator(family, adds_bos, small_chunks):
    model = tiny_model(family)
    scorer = make_scorer(model, adds_bos=adds_bos)
    options = {"context": 32, "stride": 12, "extrapolate": True, "max_length": 4000}
    for row in longlens.score(documents(), scorer, bos="published", **options):
        long, short = naive_published_scores(
            model, row.token_ids.tolist(), context=32, stride=12, prefix=[256] if adds_bos else []
        )
        np.testing.assert_allclose(row.long_logprobs, long, atol=NATS)
        np.testing.assert_allclose(row.short_logprobs, short, atol=NATS)


def test_published_rule_of_an_evaluated_model_has_no_bos():
    model = tiny_model("llama")
    scores = longlens.score(documents(), make_scorer(model), context=None, bos="published")
    for row in scores:
        np.testing.assert_allclose(row.long_logprobs[1:], naive_logprobs(model, row.token_ids.tolist()), atol=NATS)
        assert np.isnan(row.long_logprobs[0])


def test_a_tokenizer_without_bos():
    model = tiny_model("qwen2")
    scores = longlens.score(documents(), make_scorer(model, bos=False), context=32, stride=12)
    for row in scores:
        long, short = naive_scores(model, row.token_ids.tolist(), context=32, stride=12, bos=None)
        np.testing.assert_allclose(row.long_logprobs, long, atol=NATS)
        np.testing.assert_allclose(row.short_logprobs, short, atol=NATS)


def test_several_contexts_in_one_run_equal_each_alone():
    model = tiny_model("llama")
    both = longlens.score(documents(), make_scorer(model), context=[16, 32], stride=[4, 12])[0]
    for context, stride in ((16, 4), (32, 12)):
        alone = longlens.score(documents(), make_scorer(model), context=context, stride=stride)[0]
        np.testing.assert_allclose(both.at(context=context).short_logprobs, alone.short_logprobs, atol=NATS)
    assert both.selected.context == 32


def test_dynamic_ntk_does_not_remember_earlier_documents():
    model = tiny_model("llama-dynamic-ntk")
    scorer = make_scorer(model)
    options = {"context": 16, "stride": 4, "extrapolate": True, "max_length": 4000}
    alone = longlens.score(documents()[3:], scorer, **options)[0]
    after = longlens.score([documents()[0], documents()[3]], scorer, **options).get("3")
    np.testing.assert_allclose(alone.long_logprobs, after.long_logprobs, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_further_from_the_truth_than_the_obvious_code(dtype):
    truth_model, model = tiny_model("llama"), tiny_model("llama", dtype)
    truth_model.load_state_dict(model.state_dict())
    row = longlens.score(documents()[:1], make_scorer(model), context=None)[0]
    ids = [256, *row.token_ids.tolist()]
    truth, naive = np.array(naive_logprobs(truth_model, ids)), np.array(naive_logprobs(model, ids))
    assert row.long_logprobs.dtype == np.float32
    ours_error, naive_error = np.abs(row.long_logprobs - truth), np.abs(naive - truth)
    assert ours_error.mean() <= naive_error.mean() * 1.02 + 1e-4
    assert ours_error.max() <= naive_error.max() * 1.1 + 1e-3
