"""How far a corpus value may be from that of other documents of the same kind: bootstrap over documents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Interval = tuple[float, float]

RESAMPLES = 2000
_ELEMENTS_AT_ONCE = 2**20


def bootstrap_interval(
    statistic: Callable[..., Any], *sums: Doubles, seed: int = 0, resamples: int = RESAMPLES
) -> Interval | None:
    """95 % percentile interval of ``statistic(*(s[:, 0].sum() / s[:, 1].sum() for s in sums))`` over documents.

    Documents are drawn with replacement, the same ones for all `sums` (paired), so that the documents' difficulty,
    which all models share, drops out of a difference. Resamples in which a denominator is 0 (no document with key
    tokens was drawn) have no value and are left out: the interval is that of corpora for which the value exists.

    Args:
        statistic: From arrays of ratios, one for each of `sums`, to an array of values of the same shape.
        *sums: ``(n, 2)`` each: a document's sum and its weight, such as nats and tokens. Their order decides which
            documents a seed draws.
        seed: Of the resampling.
        resamples: How many.

    Returns:
        Lower and upper end; None where fewer than 2 documents have weight, or a value is infinite.
    """
    if any(np.count_nonzero(column[:, 1]) < 2 or not np.isfinite(column).all() for column in sums):
        return None
    totals = resampled_sums(np.concatenate(sums, axis=1), seed=seed, resamples=resamples)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        drawn = statistic(*(total / weight for total, weight in zip(totals[::2], totals[1::2], strict=True)))
    return percentile_interval(drawn[np.isfinite(drawn)])


def resampled_sums(columns: Doubles, *, seed: int, resamples: int) -> Doubles:
    """``columns[drawn].sum(axis=0)`` for each resample, n of the n documents being drawn with replacement.

    The documents of a resample are the same for every column, and depend on the seed and n alone.

    Args:
        columns: ``(n, c)`` finite, a row a document; n >= 2.
        seed: Of the resampling.
        resamples: How many.

    Returns:
        ``(c, resamples)``.
    """
    from scipy import stats  # half a second that not every command needs

    drawn: Doubles = stats.bootstrap(
        list(columns.T),
        lambda *chosen, axis: np.stack([column.sum(axis=axis) for column in chosen]),
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _ELEMENTS_AT_ONCE // len(columns)),
        method="percentile",
        rng=np.random.default_rng(seed),
    ).bootstrap_distribution
    return drawn


def percentile_interval(drawn: Doubles) -> Interval:
    """The 2.5th and the 97.5th percentile of a value in the resamples that it exists in.

    Args:
        drawn: ``(r,)``, r >= 1.
    """
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)
