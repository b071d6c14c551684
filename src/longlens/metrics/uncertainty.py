"""The rule for all 95 % intervals: how far a value may be from that of other documents of the same kind.

A corpus value is a ratio of sums over documents, ``r = sum(x) / sum(w)``, or a difference of two such ratios over the
same documents. With W = sum(w), document i has the share ``p_i = w_i / W`` and moves the value by
``d_i = (x_i - r w_i) / W`` (delta method; for a difference, d is the difference and p the mean of those of its two
ratios, so that the shared difficulty of the documents cancels). Then::

    error^2 = sum(d_i^2 / (1 - p_i))                                                    HC2
    D_i     = p_i^2 / (1 - p_i)
    freedom = 1 / (sum(p_i^2) + sum(D_i)^2 - sum(D_i^2))                                Satterthwaite
    value +- t(0.975, freedom) * error

With n documents of equal weight this is Student's t interval with n - 1 degrees of freedom; if few documents have most
of the weight, the degrees of freedom are reduced accordingly. The interval of a positive mean, such as nats per token,
is computed on the log scale: ``value * exp(+-t * error / value)``.

``python -m benchmarks.coverage`` measures the coverage of such intervals, for 2 and more documents.

Sources: MacKinnon and White 1985 (HC2); Bell and McCaffrey 2002, "Bias reduction in standard errors for linear
regression with multi-stage samples" (degrees of freedom under the working model that variances depend on 1 / w); Wilson
1927 (`bounded_interval`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Interval = tuple[float, float]

LEVEL = 0.95
MIN_TOKENS = 20
"""Minimum number of tokens for an interval: with fewer, neither error nor shape can be estimated."""
RESAMPLES = 2000


class Estimate(NamedTuple):
    """A value, its standard error, and the degrees of freedom of that error."""

    value: float
    error: float
    freedom: float

    def interval(self, *, relative: bool = False) -> Interval | None:
        """The 95 % interval; None if an end is infinite.

        Args:
            relative: Whether to compute it on the log scale, for a value whose sign is known; not if the value is 0.
        """
        half = quantile(self.freedom) * self.error
        if relative and self.value:
            with np.errstate(over="ignore"):
                factor = float(np.exp(half / abs(self.value)))
            ends = self.value / factor, self.value * factor
        else:
            ends = self.value - half, self.value + half
        return (min(ends), max(ends)) if np.isfinite(ends).all() else None


def estimate(sums: Doubles, minus: Doubles | None = None) -> Estimate | None:
    """The ratio ``sum(x) / sum(w)`` over documents, or that ratio minus another one over the same documents.

    Args:
        sums: ``(n, 2)``: x and w of each document, such as nats and tokens.
        minus: The same for the ratio that is subtracted.

    Returns:
        The estimate; None if fewer than 2 documents have weight, or a sum is infinite.
    """
    both = [sums] if minus is None else [sums, minus]
    if any(np.count_nonzero(column[:, 1]) < 2 or not np.isfinite(column).all() for column in both):
        return None
    values, deviations, shares = zip(*(linearised(*column.T) for column in both), strict=True)
    value, deviation = (parts[0] if minus is None else parts[0] - parts[1] for parts in (values, deviations))
    scaled = scaled_deviations(deviation, np.mean(shares, axis=0))
    if scaled is None:
        return None
    deviation, freedom = scaled
    return Estimate(float(value), float(np.sqrt((deviation**2).sum())), freedom)


def linearised(x: Doubles, w: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    """The ratios ``sum(x) / sum(w)``, each document's influence on them, and its share of the weight.

    Args:
        x: ``(..., n)`` of one or several values.
        w: ``(n,)`` the weights, the same for all of them.

    Returns:
        ``(...)`` ratios, ``(..., n)`` d and ``(n,)`` p.
    """
    total = w.sum()
    ratio = np.asarray(x.sum(axis=-1) / total)
    return ratio, (x - ratio[..., None] * w) / total, w / total


def scaled_deviations(deviations: Doubles, shares: Doubles) -> tuple[Doubles, float] | None:
    """``d_i / sqrt(1 - p_i)``, whose squares sum to ``error^2``, and the degrees of freedom.

    Args:
        deviations: ``(..., n)`` d of one or several values.
        shares: ``(n,)`` p, the same for all of them.

    Returns:
        Both; None if one document has all the weight.
    """
    rest = 1 - shares
    if not (rest > 0).all():
        return None
    leverage = shares**2 / rest
    freedom = 1 / ((shares**2).sum() + leverage.sum() ** 2 - (leverage**2).sum())
    return deviations / np.sqrt(rest), float(freedom)


def quantile(freedom: float) -> float:
    """The 97.5th percentile of Student's t."""
    from scipy import special  # slow to import, and not every command needs it

    return float(special.stdtrit(freedom, (1 + LEVEL) / 2))


def drawn_values(values: Doubles, scaled: Doubles, freedom: float, seed: int, resamples: int) -> Doubles:
    """Joint draws of several values, each distributed according to its t interval; for statistics computed from them.

    ``values + scaled @ normal / sqrt(chi2(freedom) / freedom)``: a multivariate t distribution around the values.

    Args:
        values: ``(m,)``.
        scaled: ``(m, n)``, see `scaled_deviations`.
        freedom: Degrees of freedom.
        seed: Seed of the draws.
        resamples: Number of draws.

    Returns:
        ``(m, resamples)``.
    """
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=(scaled.shape[1], resamples))
    drawn: Doubles = values[:, None] + scaled @ normal / np.sqrt(rng.chisquare(freedom, resamples) / freedom)
    return drawn


def percentile_interval(drawn: Doubles) -> Interval:
    """The 2.5th and the 97.5th percentile.

    Args:
        drawn: ``(r,)``, r >= 1.
    """
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def mean_interval(values: Sequence[float]) -> Interval | None:
    """95 % interval of a mean: Student's t, the rule's special case for equal weights; None for fewer than 2 values."""
    mean = estimate(np.stack([np.asarray(values, dtype=np.float64), np.ones(len(values))], axis=1))
    return None if mean is None else mean.interval()


def score_interval(values: Sequence[float]) -> Interval | None:
    """95 % interval of a mean of scores from 0 to 1, see `bounded_interval`; None for fewer than two scores."""
    scores = np.asarray(values, dtype=np.float64)
    return bounded_interval(float(scores.mean()), float(scores.var(ddof=1)), len(scores)) if len(scores) > 1 else None


def bounded_interval(mean: float, variance: float, n: int) -> Interval:
    """95 % interval of a mean of n scores from 0 to 1; it stays between 0 and 1, and is not a single point if all
    scores are equal.

    The means mu that the scores do not contradict, ``(mean - mu)^2 <= q^2 k mu (1 - mu) / n``. If the variance is the
    largest that this mean allows, every score is 0 or 1, and with the normal quantile q and k = 1 this is Wilson's
    interval. Otherwise q is Student's, and k is the variance divided by the largest, or 1 if the variance is 0.

    Args:
        mean: Mean of the scores.
        variance: Variance of the scores, ``sum((score - mean)^2) / (n - 1)``.
        n: Number of scores, 2 or more.
    """
    q, k = quantile(np.inf), 1.0
    share = variance / (mean * (1 - mean)) if 0 < mean < 1 else 0.0
    if share < (1 - 1e-9) * n / (n - 1) and 0 < mean < 1:
        q, k = quantile(n - 1), share or 1.0
    a = q**2 * k / n
    middle, half = (mean + a / 2) / (1 + a), np.sqrt(a * mean * (1 - mean) + a**2 / 4) / (1 + a)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))
