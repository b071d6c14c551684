"""Measures how far two evaluators select the same key tokens: Jaccard and Cohen's kappa, compared with chance.

For two selections over N units, where the first has a keys, the second b and both have c in common::

    Jaccard = c / (a + b - c)
    kappa   = (p_o - p_e) / (1 - p_e) = 2 (c/N - ab/N^2) / (a/N + b/N - 2ab/N^2)        Cohen 1960

kappa is 0 by chance and 1 for equal selections. Jaccard has no such zero: for two random selections it increases with
their sizes. Therefore `chance_jaccard` is the mean of ``c / (a + b - c)`` if the b keys of the second selection are at
random positions among the units and the a keys of the first are fixed (c is hypergeometric).

The units are tokens if both evaluators split every document into the same tokens, else characters; all characters of a
key token are key. Only units that both could select are counted: those with a long-short difference under both, which
excludes the first K. Two selections with different K are therefore compared only from the larger K on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from longlens.keytokens.alignment import as_spans, characters_of
from longlens.keytokens.selection import KeyTokens
from longlens.metrics.uncertainty import Doubles, Interval, linearised, quantile, scaled_deviations
from longlens.scoring.scores import TokenScores

Bools = npt.NDArray[np.bool_]


class Selected(NamedTuple):
    """A document under one evaluator at one K, with its key tokens."""

    row: TokenScores
    keys: KeyTokens


@dataclass(frozen=True, kw_only=True)
class KeyAgreement:
    """Agreement of two selections; missing values are None.

    Attributes:
        unit: The counted unit.
        num_units: N, the units that both could select.
        num_keys: a and b.
        num_both: c.
        jaccard: Jaccard index of the keys.
        jaccard_interval: 95 % interval over documents.
        chance_jaccard: Expected Jaccard index of two random selections of these sizes.
        kappa: Cohen's kappa.
        kappa_interval: 95 % interval over documents.
    """

    unit: Literal["tokens", "characters"]
    num_units: int
    num_keys: tuple[int, int]
    num_both: int
    jaccard: float | None
    jaccard_interval: Interval | None
    chance_jaccard: float | None
    kappa: float | None
    kappa_interval: Interval | None


class KeyOverlap:
    """Accumulates the counts of two selections over documents."""

    def __init__(self) -> None:
        self._characters: list[list[int]] = []
        self._tokens: list[list[int]] | None = []

    def add(self, one: Selected, other: Selected) -> None:
        """Adds a document, which has the same text on both sides."""
        both = one, other
        spans = [as_spans(each.row.char_spans) for each in both]
        length = max(int(each[:, 1].max(initial=0)) for each in spans)
        scored = [~np.isnan(each.row.lsd) for each in both]
        keys = [_places(each.keys.token_indices, len(each.row.token_ids)) for each in both]
        if not np.array_equal(spans[0], spans[1]):
            self._tokens = None
        elif self._tokens is not None:
            self._tokens.append(_counts(scored, keys))
        self._characters.append(
            _counts(
                [_characters(each[mask], length) for each, mask in zip(spans, scored, strict=True)],
                [_characters(each[mask], length) for each, mask in zip(spans, keys, strict=True)],
            )
        )

    def result(self) -> KeyAgreement:
        """Returns the agreement over the added documents."""
        if self._tokens is None:
            return key_agreement(self._characters, "characters")
        return key_agreement(self._tokens, "tokens")


def key_agreement(counts: npt.ArrayLike, unit: Literal["tokens", "characters"]) -> KeyAgreement:
    """Computes the agreement of two selections.

    Args:
        counts: ``(n, 4)``, one row per document: units that both could select; among them, keys of the first, of the
            second, and of both.
        unit: The counted unit.
    """
    documents = np.array(counts, dtype=np.float64).reshape(-1, 4)
    units, one, other, both = (int(total) for total in documents.sum(axis=0))
    jaccard, kappa = _jaccard(one, other, both), _kappa(units, one, other, both)
    jaccard_interval = kappa_interval = None
    if jaccard is not None:
        jaccard_interval = _interval(jaccard, documents, _jaccard_slopes(one, other, both), 0.0)
    if kappa is not None:
        kappa_interval = _interval(kappa, documents, _kappa_slopes(kappa, units, one, other), -1.0)
    return KeyAgreement(
        unit=unit,
        num_units=units,
        num_keys=(one, other),
        num_both=both,
        jaccard=jaccard,
        jaccard_interval=jaccard_interval,
        chance_jaccard=_chance(units, one, other),
        kappa=kappa,
        kappa_interval=kappa_interval,
    )


def _places(indices: npt.ArrayLike | None, length: int) -> Bools:
    mask = np.zeros(length, dtype=np.bool_)
    mask[np.asarray(indices, dtype=np.int64)] = True
    return mask


def _characters(spans: npt.NDArray[np.int64], length: int) -> Bools:
    return _places(characters_of(spans), length)


def _counts(scored: list[Bools], keys: list[Bools]) -> list[int]:
    """Returns the units that both could select, and among them the keys of the first, of the second, and of both."""
    common = scored[0] & scored[1]
    one, other = keys[0] & common, keys[1] & common
    return [int(np.count_nonzero(mask)) for mask in (common, one, other, one & other)]


def _jaccard(one: int, other: int, both: int) -> float | None:
    return both / (one + other - both) if one or other else None


def _kappa(units: int, one: int, other: int, both: int) -> float | None:
    disagreement = units * (one + other) - 2 * one * other
    return 2 * (units * both - one * other) / disagreement if disagreement else None


def _jaccard_slopes(one: int, other: int, both: int) -> Doubles:
    """Derivatives with respect to the numbers of keys of the first, of the second, and of both."""
    union = one + other - both
    jaccard = both / union
    return np.array([-jaccard, -jaccard, 1 + jaccard]) / union


def _kappa_slopes(kappa: float, units: int, one: int, other: int) -> Doubles:
    """Derivatives with respect to the key shares of the first, of the second, and of both; with 1/N, to the numbers."""
    a, b = one / units, other / units
    scale = a + b - 2 * a * b
    return np.array([-(2 * b + kappa * (1 - 2 * b)), -(2 * a + kappa * (1 - 2 * a)), 2.0]) / scale / units


def _chance(units: int, one: int, other: int) -> float | None:
    if not one and not other:
        return None
    from scipy import stats

    mean = one * other / units
    reach = 12 * (1 + mean**0.5)  # the standard deviation is below sqrt(mean): terms beyond this add less than 1e-16
    least, most = max(0, one + other - units, int(mean - reach)), min(one, other, int(mean + reach) + 1)
    both = np.arange(least, most + 1)
    probability = stats.hypergeom.pmf(both, units, one, other)
    return float((probability * both / (one + other - both)).sum())


def _interval(value: float, counts: Doubles, slopes: Doubles, least: float) -> Interval | None:
    """Computes an interval over documents, by `longlens.metrics.uncertainty` for functions of ratios of sums.

    Args:
        value: Value over all documents.
        counts: ``(n, 4)``: N, a, b and c of each document.
        slopes: Derivatives of the value with respect to a, b and c at fixed N.
        least: The smallest possible value; the largest is 1.
    """
    counts = counts[counts[:, 0] > 0]
    if len(counts) < 2:
        return None
    _, deviations, shares = linearised(counts[:, 1:].T, counts[:, 0])
    scaled = scaled_deviations(slopes @ deviations * counts[:, 0].sum(), shares)
    if scaled is None:
        return None
    half = quantile(scaled[1]) * float(np.sqrt((scaled[0] ** 2).sum()))
    return max(least, value - half), min(1.0, value + half)
