"""Long-context influence of a token (paper, section 3.1): hard for LongPPL, soft for LongCE."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from longlens.settings.options import ALPHA, BETA, GAMMA, check_gamma, check_thresholds

# Effect of rounding on an LSD, in nats: `python -m benchmarks.dtype_error` (docs/precision.md) against float64.
# float32: above the largest error there; half precision: about the 95th percentile over tokens.
LOGPROB_ERROR = {"float64": 1e-6, "float32": 1e-4, "float16": 0.02, "bfloat16": 0.1}


def hard_influence(
    lsd: npt.ArrayLike, lcl: npt.ArrayLike, *, alpha: float = ALPHA, beta: float = BETA, use_lcl: bool = True
) -> npt.NDArray[np.bool_]:
    """Which tokens are key: ``(lsd > alpha) & (lcl > beta)`` (eq. 4); NaN (no score) is never key.

    Args:
        lsd: ``(n,)`` nats, long-short difference (eq. 2).
        lcl: ``(n,)`` nats, long-context likelihood (eq. 3).
        alpha: Threshold of the long-short difference, nats.
        beta: Threshold of the long-context likelihood, nats.
        use_lcl: False omits the second criterion (the ablation of appendix B.2, figure 9).

    Returns:
        ``(n,)`` bool.

    Raises:
        UserError: A threshold is not a finite number.
    """
    check_thresholds(alpha, beta)
    key: npt.NDArray[np.bool_] = np.asarray(lsd, dtype=np.float64) > alpha
    if use_lcl:
        key = key & (np.asarray(lcl, dtype=np.float64) > beta)
    return key


def soft_influence(lsd: npt.ArrayLike, *, gamma: float = GAMMA) -> npt.NDArray[np.float64]:
    """``min(exp(lsd), gamma)`` (eq. 7) as ``exp(minimum(lsd, log(gamma)))``, which cannot overflow; NaN has weight 0.

    Args:
        lsd: ``(n,)`` nats, long-short difference (eq. 2).
        gamma: Maximum weight.

    Returns:
        ``(n,)`` float64, dimensionless weights.

    Raises:
        UserError: gamma is not a finite number above 0.
    """
    check_gamma(gamma)
    difference = np.asarray(lsd, dtype=np.float64)
    weight = np.exp(np.minimum(difference, math.log(gamma)))
    return np.where(np.isnan(difference), 0.0, weight)


def num_near_threshold(
    lsd: npt.ArrayLike, lcl: npt.ArrayLike, *, alpha: float, beta: float, error: float, use_lcl: bool = True
) -> int:
    """Number of tokens that could change between key and not key within `error` nats.

    These are the tokens with ``|lsd - alpha| <= error and lcl > beta - error``, or
    ``|lcl - beta| <= error and lsd > alpha - error``. Without `use_lcl`: ``|lsd - alpha| <= error``.
    """
    lsd = np.asarray(lsd, dtype=np.float64)
    lcl = np.asarray(lcl, dtype=np.float64)
    near = np.abs(lsd - alpha) <= error
    if use_lcl:
        near = (near & (lcl > beta - error)) | ((np.abs(lcl - beta) <= error) & (lsd > alpha - error))
    return int(np.count_nonzero(near))


def logprob_error(dtype: str) -> float:
    """The error of a log-probability in nats for a model run in `dtype`; an unknown dtype is treated as bfloat16."""
    return LOGPROB_ERROR.get(dtype, LOGPROB_ERROR["bfloat16"])
