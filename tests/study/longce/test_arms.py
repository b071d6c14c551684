"""The arms take one part of LongCE away each: the selection, or the size of the step."""

import math

import pytest
import torch

from longlens.losses.longce import weighted_nll
from longlens.losses.settings import LongCE
from longlens.study.longce.model import ARMS, NormalizedLongCE, PermutedLongCE
from tests.tiny import VOCABULARY, tiny_model

LONG = torch.tensor([-1.0, -2.0, -0.5, -3.0, -0.1, -1.5])
SHORT = torch.tensor([math.nan, -2.0, -1.5, -2.0, math.nan, -9.0])
WEIGHTS = LongCE().weights(LONG, SHORT)


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


def test_every_arm_trains_with_the_settings_that_it_is_given():
    model, settings = tiny_model("llama"), LongCE(context=8, stride=4, gamma=2.0)
    ids = torch.randint(0, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(0))
    found = {name: weighted_nll(model, ids, longce=arm(settings, 7)).weights for name, arm in ARMS.items()}
    assert list(found) == ["ce", "longce", "permuted", "normalised"]
    assert (found["ce"] == 1).all()
    assert found["longce"].max() == 2
    assert found["longce"].std() > 0.1
    assert torch.allclose(found["permuted"].sort().values, found["longce"].sort().values)
    assert not torch.allclose(found["permuted"], found["longce"])
    assert torch.allclose(found["normalised"], found["longce"] / found["longce"].mean())
