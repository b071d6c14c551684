import math

import numpy as np
import pytest

from longlens.errors import UserError
from longlens.keytokens.influence import (
    LOGPROB_ERROR,
    hard_influence,
    logprob_error,
    num_near_threshold,
    soft_influence,
)

NAN, INF = math.nan, math.inf


def test_a_token_is_key_when_both_differences_are_above_their_thresholds():
    lsd = [2.0, 2.1, 3.0, 3.0, NAN, INF]
    lcl = [-1.0, -1.0, -2.0, -1.9, -1.0, -1.0]
    assert hard_influence(lsd, lcl).tolist() == [False, True, False, True, False, True]


def test_without_lcl_the_difference_decides_alone():
    assert hard_influence([3.0, 3.0, NAN], [-9.0, NAN, -1.0], use_lcl=False).tolist() == [True, True, False]


def test_thresholds_are_compared_as_the_numbers_they_are_and_not_rounded_to_float32():
    tenth = np.float32(0.1)  # 0.100000001…
    assert hard_influence(np.array([tenth]), np.array([-1.0], dtype=np.float32), alpha=0.1).tolist() == [True]


@pytest.mark.parametrize(("alpha", "beta"), [(NAN, -2.0), (2.0, -INF)])
def test_thresholds_have_to_be_finite(alpha, beta):
    with pytest.raises(UserError, match=r"expected a finite number of nats .* `use_lcl=False`"):
        hard_influence([1.0], [1.0], alpha=alpha, beta=beta)


def test_soft_influence_is_the_capped_likelihood_ratio():
    lsd = [0.0, math.log(2), math.log(4.999), 10.0, 1e30, INF, -INF, -1e30, NAN]
    expected = [1, 2, 4.999, 5, 5, 5, 0, 0, 0]
    np.testing.assert_allclose(soft_influence(lsd), expected, rtol=1e-15)
    assert soft_influence([]).dtype == np.float64


@pytest.mark.parametrize("gamma", [0.0, -1.0, NAN, INF])
def test_gamma_has_to_be_positive(gamma):
    with pytest.raises(UserError, match="expected a finite number above 0"):
        soft_influence([1.0], gamma=gamma)


@pytest.mark.parametrize(
    ("lsd", "lcl", "near"),
    [
        (2.05, -1.0, True),
        (1.95, -1.0, True),
        (2.2, -1.0, False),
        (2.05, -3.0, False),  # far below beta: never key
        (2.05, -2.05, True),
        (5.0, -2.05, True),
        (5.0, -1.95, True),
        (1.5, -2.0, False),  # far below alpha: never key
        (NAN, -2.0, False),
    ],
)
def test_near_a_threshold_is_what_could_flip(lsd, lcl, near):
    assert num_near_threshold([lsd], [lcl], alpha=2, beta=-2, error=0.1) == near
    flips = {
        bool(hard_influence([lsd + a], [lcl + b])[0]) for a in (-0.1, -1e-9, 0, 0.1) for b in (-0.1, -1e-9, 0, 0.1)
    }
    assert (len(flips) == 2) == near


def test_near_alpha_is_all_that_matters_without_lcl():
    assert num_near_threshold([2.05, 5, NAN], [-9, -2, 0], alpha=2, beta=-2, error=0.1, use_lcl=False) == 1


def test_an_unknown_dtype_has_the_error_of_bfloat16():
    assert logprob_error("q4_k_m") == logprob_error("bfloat16") == max(LOGPROB_ERROR.values())
    assert logprob_error("float32") < logprob_error("float16")
