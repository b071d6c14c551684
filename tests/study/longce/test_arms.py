"""The arms: other weightings against naive code, and controls that take a part of LongCE away."""

import math

import numpy as np
import pytest
import torch

from longlens.losses.longce import weighted_nll
from longlens.losses.settings import LongCE
from longlens.study.longce import model as models
from longlens.study.longce.arms import ARMS, AbsoluteLSD, NormalizedLongCE, PermutedLongCE, exact_weights
from longlens.study.longce.documents import FactBatch
from tests.reference.longce import naive_logprobs, naive_short
from tests.study.longce.toys import toy_study
from tests.tiny import VOCABULARY, tiny_model

LONG = torch.tensor([-1.0, -2.0, -0.5, -3.0, -0.1, -1.5])
SHORT = torch.tensor([math.nan, -2.0, -1.5, -2.0, math.nan, -9.0])
WEIGHTS = LongCE().weights(LONG, SHORT)
IDS = torch.randint(0, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(0))


def test_permuted_weights_are_those_of_longce_among_tokens_with_a_short_score():
    dealt = {tuple(PermutedLongCE(seed=seed).weights(LONG, SHORT).tolist()) for seed in range(40)}
    assert len(dealt) > 10
    for weights in dealt:
        assert sorted(weights) == pytest.approx(sorted(WEIGHTS.tolist()))
        assert weights[0] == weights[4] == 1.0
    assert torch.equal(PermutedLongCE(seed=3).weights(LONG, SHORT), PermutedLongCE(seed=3).weights(LONG, SHORT))


def test_normalised_weights_have_mean_one_and_the_ratios_of_longce():
    weights = NormalizedLongCE().weights(LONG, SHORT)
    assert weights.mean().item() == pytest.approx(1.0)
    assert torch.allclose(weights * WEIGHTS.mean(), WEIGHTS)
    assert not torch.allclose(weights, WEIGHTS)


def test_permutations_do_not_touch_the_global_random_state():
    before = torch.random.get_rng_state()
    PermutedLongCE(seed=1).weights(LONG, SHORT)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_weights_by_the_absolute_lsd_by_hand():
    # |LSD| is 0 (no short score), 0, 1, 1, 0 (no short score), 7.5: the mean is 9.5 / 6.
    expected = [0.75 + 0.25 * score / (9.5 / 6) for score in (0, 0, 1, 1, 0, 7.5)]
    weights = AbsoluteLSD().weights(LONG, SHORT)
    assert weights.tolist() == pytest.approx(expected)
    assert weights.mean().item() == pytest.approx(1)
    assert AbsoluteLSD().weights(LONG, LONG).tolist() == [0.75] * 6


def test_exact_weights_share_the_extra_weight_among_buckets_of_context_length():
    batch = FactBatch(token_ids=np.zeros((2, 100), dtype=np.int64), answers=np.zeros((2, 100), dtype=bool))
    found = exact_weights(batch, 16)
    assert (found[0] == found[1]).all()
    buckets = {(16, 32): 16, (32, 64): 32, (64, 100): 36}
    assert (found[0, :16] == 1).all()
    for (start, stop), count in buckets.items():
        assert found[0, start:stop] == pytest.approx(1 + 84 / (3 * count))
        assert (found[0, start:stop] - 1).sum() == pytest.approx(84 / 3, rel=1e-5)
    assert (found[0, 16:] - 1).mean() == pytest.approx(1)
    assert (exact_weights(batch, 100) == 1).all()


def step_of(arm, longce, seed=7):
    """Weights of a step's tokens, with an answer at token 30 of the second row."""
    answers = np.zeros((2, 40), dtype=bool)
    answers[1, 30] = True
    batch, found = FactBatch(token_ids=IDS.numpy(), answers=answers), []
    training = toy_study().training.replace(steps=1, learning_rate=1e-3)
    models.train(
        tiny_model("llama"), training, [batch], arm=ARMS[arm], longce=longce, seed=seed, after_step=found.append
    )
    return found[0].weights


def test_every_arm_trains_with_the_settings_that_it_is_given():
    model, settings = tiny_model("llama").eval(), LongCE(context=8, stride=4, gamma=2.0)
    found = {name: step_of(name, settings) for name in ARMS}
    long = torch.stack([naive_logprobs(model, row).detach() for row in IDS])
    short = torch.stack([naive_short(model, row, 8, 4) for row in IDS])
    plain = torch.where(short.isnan(), torch.ones_like(long), (long - short).exp().clamp(max=2.0)).numpy()
    lsd = (long - short).abs().nan_to_num(0).numpy()
    assert (found["ce"] == 1).all()
    assert plain.min() < 0.99
    assert found["longce"] == pytest.approx(plain, abs=1e-4)
    assert found["floored"] == pytest.approx(plain.clip(min=1), abs=1e-4)
    assert np.sort(found["permuted"].ravel()) == pytest.approx(np.sort(plain.ravel()), abs=1e-4)
    assert not np.allclose(found["permuted"], plain, atol=1e-3)
    assert not np.allclose(found["permuted"], step_of("permuted", settings, seed=8), atol=1e-3)
    assert found["normalised"] == pytest.approx(plain / plain.mean(), abs=1e-4)
    assert found["abs-lsd"] == pytest.approx(0.75 + 0.25 * lsd / lsd.mean(), abs=1e-3)
    oracle = np.ones((2, 39))
    oracle[1, 29] = 5
    assert found["oracle"] == pytest.approx(oracle)
    batch = FactBatch(token_ids=IDS.numpy(), answers=np.zeros((2, 40), dtype=bool))
    assert found["exact"] == pytest.approx(exact_weights(batch, 8)[:, 1:])


def test_known_weights_weigh_the_loss_and_have_no_gradient_of_their_own():
    model = tiny_model("llama")
    weights = torch.ones(2, 40)
    weights[1, 30] = 5.0
    found = weighted_nll(model, IDS, longce=LongCE(), token_weights=weights)
    naive = -sum((weights[row, 1:] * naive_logprobs(model, IDS[row])).sum() for row in range(2))
    parameters = list(model.parameters())
    for mine, other in zip(*(torch.autograd.grad(loss, parameters) for loss in (found.total, naive)), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3)
