"""Ranks models by a perplexity, and computes the agreement of rankings and the number of documents that they need.

A ranking is computed from sums over documents: nats and a weight (a number of tokens) of each model and document. The
ratio of these sums over the drawn documents is the model's value; lower is better. The order of a pair of models is the
sign of the difference of their values. For two rankings a and b over all pairs::

    tau-b  = sum(order_a order_b) / sqrt(sum(order_a^2) sum(order_b^2))
    share  = the pairs that a orders as b does, of those that b orders; half of those that a leaves equal

By chance tau-b is 0 and the share 1/2. A model without a value (no key token in the drawn documents) has no order with
respect to any other model.

**Number of documents.** A ranking by some of the documents agrees with the ranking by all of them partly because it is
part of it: with all n documents the agreement is 1, whatever the metric. Therefore no document is used on both sides.
Each draw splits the n documents at random into a reference of n // 2 and the rest; nested subsets of 1, 2, 4, … up to
n - n // 2 documents are taken from the rest. The size of the reference is fixed, so that only the subset grows along
the curve. The reference is itself noisy, so the agreement with the ranking by infinitely many documents of this kind is
likely higher than the curve. Drawing cannot estimate the agreement for more than half of the documents; see
`settled_pairs`, which extrapolates.

The interval of a point contains 95 % of the draws: the range to expect from one study with that number of documents.
All draws are from the same n documents; the interval does not cover how the curve would change with other documents.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from longlens.metrics.comparison import difference
from longlens.metrics.uncertainty import Doubles, Interval, percentile_interval

DRAWS = 1000
MIN_DOCUMENTS = 4
"""Minimum number of documents of a power curve: then two disjoint rankings have at least two documents each."""
STABLE_TAU = 0.9
"""Mean agreement from which a ranking is called stable."""


@dataclass(frozen=True, kw_only=True)
class SubsetAgreement:
    """Agreement of a ranking by some documents with a ranking by others.

    Attributes:
        num_documents: Number of documents of the subset.
        kendall: Mean tau-b over the draws; 0 by chance.
        kendall_interval: Range of 95 % of the draws.
        pairs: Mean share of pairs of models that have the same order; 1/2 by chance.
        pairs_interval: Range of 95 % of the draws.
    """

    num_documents: int
    kendall: float
    kendall_interval: Interval
    pairs: float
    pairs_interval: Interval


@dataclass(frozen=True, kw_only=True)
class SettledPairs:
    """Number of pairs of models whose order over all documents is significant.

    Attributes:
        num_pairs: Number of pairs of models.
        num_settled: Number of pairs with a 95 % interval of the difference that excludes 0, each by itself.
        documents_to_settle: Number of documents at which all pairs would have one, if differences and spreads stay;
            None if a pair has no difference or no interval.
        documents_to_settle_half: The same for half of the pairs, rounded up.
    """

    num_pairs: int
    num_settled: int
    documents_to_settle: int | None
    documents_to_settle_half: int | None


def pair_orders(values: npt.ArrayLike) -> Doubles:
    """``(..., P)``: for each of the P pairs i < j the sign of ``values[..., i] - values[..., j]``, 0 where one is NaN.

    Args:
        values: ``(..., m)`` of m models; infinity is a value.
    """
    array = np.asarray(values, dtype=np.float64)
    first, second = np.triu_indices(array.shape[-1], k=1)
    one, other = array[..., first], array[..., second]
    return (one > other).astype(np.float64) - (one < other)


def kendall_tau(one: npt.ArrayLike, other: npt.ArrayLike) -> Doubles:
    """``(...)``: tau-b of two lists of values, that of `scipy.stats.kendalltau`, for many lists at once.

    NaN where one of the two orders no pair.

    Args:
        one: ``(..., m)``.
        other: The other values, of the same shape; the leading axes are broadcast.
    """
    a, b = pair_orders(one), pair_orders(other)
    with np.errstate(invalid="ignore", divide="ignore"):
        tau: Doubles = (a * b).sum(axis=-1) / np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))
    return tau


def pair_share(one: npt.ArrayLike, reference: npt.ArrayLike) -> Doubles:
    """``(...)``: share of the pairs that the reference orders which the other list orders alike, ties counting half.

    NaN where the reference orders none.
    """
    a, b = pair_orders(one), pair_orders(reference)
    with np.errstate(invalid="ignore", divide="ignore"):
        share: Doubles = ((1 + a * b) / 2 * b**2).sum(axis=-1) / (b**2).sum(axis=-1)
    return share


def values_of(sums: Doubles, counts: Doubles) -> Doubles:
    """``(r, m)``: ``-sum(c x) / sum(c w)`` of each model over documents that are each counted c times; NaN without any.

    Args:
        sums: ``(m, n, 2)``: log-probability, which may be -inf, and weight of each model and document.
        counts: ``(r, n)``.
    """
    logprob, weight = sums[..., 0], sums[..., 1]
    impossible = np.isneginf(logprob)
    with np.errstate(invalid="ignore", divide="ignore"):
        values: Doubles = -(counts @ np.where(impossible, 0.0, logprob).T) / (counts @ weight.T)
    values[(counts @ impossible.T.astype(np.float64)) > 0] = np.inf
    return values


def subset_sizes(num_documents: int) -> list[int]:
    """1, 2, 4, … documents and as many as a half has; none of fewer than `MIN_DOCUMENTS`."""
    most = num_documents - num_documents // 2
    return sorted({*(2**i for i in range(most.bit_length()) if 2**i <= most), most}) if num_documents > 3 else []


def power_curve(sums: Doubles, *, draws: int = DRAWS, seed: int = 0) -> list[SubsetAgreement]:
    """How well rankings by ever more documents agree with one by other documents, see the module.

    Args:
        sums: ``(m, n, 2)``: log-probability and weight of each model and document.
        draws: Splits of the documents.
        seed: Seed of the splits.

    Returns:
        Empty for fewer than two models or four documents. A draw whose reference orders no pair is left out; a subset
        that orders none has tau 0.
    """
    m, n, _ = sums.shape
    if m < 2:
        return []
    order = np.argsort(np.random.default_rng(seed).random((draws, n)), axis=1)
    rank = np.argsort(order, axis=1)  # a document's place in the draw: the first n // 2 are the reference
    reference = values_of(sums, (rank < n // 2).astype(np.float64))
    usable = pair_orders(reference).any(axis=-1)
    curve = []
    for size in subset_sizes(n) if usable.any() else []:
        subset = values_of(sums, ((rank >= n // 2) & (rank < n // 2 + size)).astype(np.float64))[usable]
        tau = np.nan_to_num(kendall_tau(subset, reference[usable]), nan=0.0)
        share = pair_share(subset, reference[usable])
        curve.append(
            SubsetAgreement(
                num_documents=size,
                kendall=float(tau.mean()),
                kendall_interval=percentile_interval(tau),
                pairs=float(share.mean()),
                pairs_interval=percentile_interval(share),
            )
        )
    return curve


def stable_from(curve: Sequence[SubsetAgreement]) -> int | None:
    """The least size on the curve from which on the mean tau-b is `STABLE_TAU` or more; None if it is at none."""
    found = None
    for point in reversed(curve):
        if point.kendall < STABLE_TAU:
            break
        found = point.num_documents
    return found


def settled_pairs(sums: Doubles, num_tokens: Sequence[int]) -> SettledPairs:
    """Each pair of models, by the paired differences of `longlens.compare` over all documents.

    Args:
        sums: ``(m, n, 2)``: log-probability and weight of each model and document.
        num_tokens: ``(m,)`` tokens that decide the value of each model.
    """
    found = [
        difference(sums[i], sums[j], 1.0, min(num_tokens[i], num_tokens[j]))
        for i, j in itertools.combinations(range(len(sums)), 2)
    ]
    needed = sorted(
        each.documents_to_settle for each in found if each is not None and each.documents_to_settle is not None
    )
    half = (len(found) + 1) // 2
    return SettledPairs(
        num_pairs=len(found),
        num_settled=sum(each is not None and each.settled for each in found),
        documents_to_settle=needed[-1] if found and len(needed) == len(found) else None,
        documents_to_settle_half=needed[half - 1] if found and len(needed) >= half else None,
    )


def agreement_interval(one: Doubles, other: Doubles, *, draws: int = DRAWS, seed: int = 0) -> Interval | None:
    """95 % interval of the tau-b of two rankings over the same documents, which are drawn with replacement (bootstrap).

    Both rankings are of the same draw: what two metrics say of the same texts is compared.

    Args:
        one: ``(m, n, 2)``: log-probability and weight of each model and document.
        other: The other values, of the same shape.
        draws: Bootstrap samples; those in which a metric orders no pair are left out.
        seed: Seed of the draws.

    Returns:
        None for fewer than two documents or models, or where no draw has a value.
    """
    m, n, _ = one.shape
    if m < 2 or n < 2:
        return None
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)
    tau = kendall_tau(values_of(one, counts), values_of(other, counts))
    tau = tau[~np.isnan(tau)]
    return percentile_interval(tau) if len(tau) else None
