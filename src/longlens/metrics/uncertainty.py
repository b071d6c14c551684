"""How far a corpus value may be from that of other documents of the same kind: bootstrap over documents."""

from __future__ import annotations

import warnings
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
    from scipy import stats  # half a second that not every command needs

    def of_resamples(*columns: Doubles, axis: int) -> Any:
        totals = [column.sum(axis=axis) for column in columns]
        return statistic(*(total / weight for total, weight in zip(totals[::2], totals[1::2], strict=True)))

    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # resamples without a value, see above
        drawn = stats.bootstrap(
            [column[:, i] for column in sums for i in (0, 1)],
            of_resamples,
            paired=True,
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, _ELEMENTS_AT_ONCE // len(sums[0])),
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    low, high = np.percentile(drawn[np.isfinite(drawn)], [2.5, 97.5])
    return float(low), float(high)
