"""Measures the coverage of 95 % intervals: documents are drawn from populations whose true value is known.

    python -m benchmarks.coverage        (a quarter of an hour on one core; no model is run)

And of correlations over models (`longlens study correlate`): models are drawn from populations whose coefficients are
known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from benchmarks.tables import write_table
from longlens.metrics.gains import curve_intervals, effective_reach
from longlens.metrics.uncertainty import MIN_TOKENS, Doubles, Interval, estimate, percentile_interval, score_interval
from longlens.study.correlation import correlate_columns

DOCUMENTS = (2, 3, 5, 10, 40)
REPEATS = 4000
Random = np.random.Generator
Draw = Callable[[Random, int], Interval | None]
"""Computes the interval from n randomly drawn documents."""


@dataclass(frozen=True, kw_only=True)
class Population:
    """A kind of documents, and a value of them.

    Attributes:
        name: Name in the table.
        value: The true value.
        draw: Computes the interval from n documents.
        least: Minimum number of documents for an interval.
        steps: Whether few documents can only have a few values, so that no interval can have exactly 95 % coverage.
        hard: Whether it shows the limits of a rule.
        repeats: Factor by which it is drawn less often than `REPEATS`.
    """

    name: str
    value: float
    draw: Draw
    least: int = 2
    steps: bool = False
    hard: bool = False
    rarer: int = 1


def lengths(random: Random, n: int, spread: float, cut: float = np.inf) -> Doubles:
    """Returns numbers of tokens of documents: log-normal around 3,000, limited to a maximum."""
    return np.minimum(np.ceil(3000 * np.exp(spread * random.normal(size=n))), cut)


def key_tokens(random: Random, n: int, mean: float) -> Doubles:
    """Numbers of key tokens: negative binomial, so that many documents have few and some have many."""
    return random.poisson(mean * random.gamma(1.5, 1 / 1.5, size=n)).astype(np.float64)


def nats(random: Random, tokens: Doubles, mean: float, spread: float, shape: float = 1.0) -> Doubles:
    """Sums of nats of tokens that are gamma around their document's mean, which is log-normal around ``mean``."""
    of_document = mean * np.exp(spread * random.normal(size=len(tokens)) - spread**2 / 2)
    return np.where(tokens > 0, random.gamma(np.maximum(tokens, 1) * shape) * of_document / shape, 0.0)


def _ppl(tokens: Callable[[Random, int], Doubles], mean: float, spread: float, shape: float = 1.0) -> Draw:
    """The interval of nats per token as `longlens.metrics.longppl` takes it: on the logarithmic scale."""

    def draw(random: Random, n: int) -> Interval | None:
        number = tokens(random, n)
        sums = np.stack([nats(random, number, mean, spread, shape), number], axis=1)
        found = estimate(sums) if number.sum() >= MIN_TOKENS else None
        return None if found is None else found.interval(relative=True)

    return draw


def _difference(tokens: Callable[[Random, int], Doubles], between: float, within: float, other: float = 0.0) -> Draw:
    """Two models that are equal on the whole: documents differ by ``between`` nats a token, tokens by ``within``.

    Args:
        tokens: Draws the numbers of tokens.
        between: Standard deviation between documents, nats per token.
        within: Standard deviation within documents, nats.
        other: By how much the numbers of tokens of a second tokenizer vary; 0 for one tokenizer.
    """

    def draw(random: Random, n: int) -> Interval | None:
        number = tokens(random, n)
        difficulty = nats(random, number, 2.5, 0.2)
        error = between * random.normal(size=n) * number + within * random.normal(size=n) * np.sqrt(number)
        second = np.ceil(number * np.exp(other * random.normal(size=n)))
        sums = np.stack([difficulty, number], axis=1)
        minus = np.stack([(difficulty + error) * second / np.maximum(number, 1), second], axis=1)
        found = estimate(sums, minus) if number.sum() >= MIN_TOKENS else None
        return None if found is None else found.interval()

    return draw


def _bootstrap(random: Random, n: int) -> Interval:
    """The percentile bootstrap of a difference between two equal models."""
    number = lengths(random, n, 0.7)
    error = (0.05 * random.normal(size=n)) * number
    drawn = random.integers(0, n, (500, n))
    return percentile_interval(error[drawn].sum(axis=1) / number[drawn].sum(axis=1))


def _scores(draw: Callable[[Random, int], Doubles]) -> Draw:
    return lambda random, n: score_interval(draw(random, n).tolist())


def _right_or_wrong(random: Random, n: int) -> Interval | None:
    """Less the true share, which is anything between 0 and 1: one share alone is covered more or less by chance."""
    share = random.random()
    both = score_interval((random.random(n) < share).tolist())
    return None if both is None else (both[0] - share, both[1] - share)


def _mixed(random: Random, n: int) -> Doubles:
    """Token F1: often 0, often 1, else anything between."""
    return np.where(random.random(n) < 0.6, np.floor(2 * random.random(n)), random.random(n))


def _informative(random: Random, n: int) -> Interval | None:
    """Long documents are the harder ones."""
    size = random.normal(size=n)
    number = np.ceil(3000 * np.exp(0.7 * size))
    found = estimate(np.stack([number * np.exp(0.1 * size + 0.15 * random.normal(size=n)), number], axis=1))
    return None if found is None else found.interval(relative=True)


GAINS = np.array([0.0, 0.2, 0.35, 0.42, 0.44])
CONTEXTS = (64, 128, 256, 512, 1024)


def _reach(which: str) -> Draw:
    """Returns intervals of the largest gain and of R, for gains that level off."""

    def draw(random: Random, n: int) -> Interval | None:
        number = lengths(random, n, 0.5)
        steps = np.diff(GAINS, prepend=0.0) * np.exp(0.4 * random.normal(size=(n, 1)) - 0.08)
        steps[:, 1:] += 0.03 * random.normal(size=(n, len(GAINS) - 1))
        gains = np.cumsum(steps, axis=1) * number[:, None]
        columns = np.concatenate([gains, gains[:, -1:], number[:, None]], axis=1)
        found = curve_intervals(CONTEXTS, columns, int(random.integers(2**31)), 400)
        if found is None or (which == "reach" and found.max_gain[0] <= 0):
            return None
        return found.max_gain if which == "max_gain" else found.reach

    return draw


def _skewed(random: Random, n: int) -> Interval | None:
    """A few documents are much harder than the rest: exponential, 30 % of the mean."""
    number = lengths(random, n, 0.7)
    found = estimate(np.stack([number * (1 + 0.3 * (random.exponential(size=n) - 1)), number], axis=1))
    return None if found is None else found.interval(relative=True)


_reached = effective_reach(CONTEXTS, GAINS)
assert _reached is not None
POPULATIONS = (
    Population(name="PPL, equal lengths", value=2.5, draw=_ppl(lambda r, n: lengths(r, n, 0), 2.5, 0.2)),
    Population(
        name="PPL, lengths e^z, cut at 6,000", value=2.5, draw=_ppl(lambda r, n: lengths(r, n, 1, 6000), 2.5, 0.2)
    ),
    Population(name="PPL, lengths e^(0.7 z)", value=2.5, draw=_ppl(lambda r, n: lengths(r, n, 0.7), 2.5, 0.2)),
    Population(name="PPL, lengths e^(1.2 z)", value=2.5, draw=_ppl(lambda r, n: lengths(r, n, 1.2), 2.5, 0.2)),
    *(
        Population(
            name=f"LongPPL, {mean} key tokens a document",
            value=1.2,
            draw=_ppl(lambda r, n, mean=mean: key_tokens(r, n, mean), 1.2, 0.3),
        )
        for mean in (5, 20, 100)
    ),
    Population(
        name="LongPPL, 20, most nats in few tokens",
        value=1.2,
        draw=_ppl(lambda r, n: key_tokens(r, n, 20), 1.2, 0.3, shape=0.3),
    ),
    Population(
        name="difference in log PPL",
        value=0,
        draw=_difference(lambda r, n: lengths(r, n, 0.7), between=0.05, within=0.5),
    ),
    Population(
        name="difference in log PPL, other tokenizer",
        value=0,
        draw=_difference(lambda r, n: lengths(r, n, 0.7), between=0.05, within=0.5, other=0.1),
    ),
    Population(
        name="difference in log LongPPL, 20 key tokens",
        value=0,
        draw=_difference(lambda r, n: key_tokens(r, n, 20), between=0.05, within=0.5),
    ),
    Population(name="largest gain of reach", value=GAINS[-1], draw=_reach("max_gain"), least=5, rarer=5),
    Population(name="effective reach R", value=_reached, draw=_reach("reach"), least=5, rarer=5),
    Population(name="scores of 0 or 1, any share right", value=0, draw=_right_or_wrong),
    Population(
        name="scores of 0 or 1, 80 % right", value=0.8, draw=_scores(lambda r, n: r.binomial(1, 0.8, n)), steps=True
    ),
    Population(
        name="scores of 0, 1/4, … 1", value=0.8, draw=_scores(lambda r, n: r.binomial(4, 0.8, n) / 4), steps=True
    ),
    Population(name="scores from 0 to 1, 60 % at an end", value=0.5, draw=_scores(_mixed), steps=True),
    Population(name="limit: a few documents much harder", value=1, draw=_skewed, hard=True),
    Population(
        name="limit: long documents harder",
        value=np.exp(0.5 * 0.15**2 + 0.5 * (0.8**2 - 0.7**2)),
        draw=_informative,
        hard=True,
    ),
    Population(name="for comparison: difference, percentile bootstrap", value=0, draw=_bootstrap, hard=True, rarer=4),
)


def coverage(population: Population, n: int, repeats: int, random: Random) -> tuple[float, float]:
    """Returns the share of existing intervals that contain the value, and the share of draws with an interval."""
    ends = [population.draw(random, n) for _ in range(repeats)]
    held = [both[0] <= population.value <= both[1] for both in ends if both is not None]
    return (sum(held) / len(held) if held else np.nan), len(held) / repeats


def rows() -> Iterator[list[str]]:
    """The table's rows."""
    for population in POPULATIONS:
        random = np.random.default_rng(0)
        cells = []
        for n in DOCUMENTS:
            if n < population.least:
                cells.append("none")
                continue
            held, there = coverage(population, n, REPEATS // population.rarer, random)
            cells.append("none" if not there else f"{held:.1%}" + ("" if there > 0.995 else f" of {there:.0%}"))
        yield [population.name, *cells]


MODELS = (5, 8, 12, 19, 40)
MODEL_REPEATS = 500


@dataclass(frozen=True, kw_only=True)
class ModelPopulation:
    """A kind of models, with a metric and a score that are correlated.

    Attributes:
        name: For the table.
        r: Pearson's r of the normal variables that both are made from.
        metric: The metric, of its normal variable.
        score: The score, of its normal variable.
        clusters: Models of one family, which share half of their variance; 1 for independent ones.
    """

    name: str
    r: float
    metric: Callable[[Doubles], Doubles] = lambda z: z
    score: Callable[[Doubles], Doubles] = lambda z: z
    clusters: int = 1

    def draw(self, random: Random, n: int) -> tuple[Doubles, Doubles]:
        """The metric and the score of n models."""
        own, shared = random.normal(size=(2, n)), random.normal(size=(2, n)).repeat(self.clusters, axis=1)[:, :n]
        first, second = own if self.clusters == 1 else (own + shared) / np.sqrt(2)
        return self.metric(first), self.score(self.r * first + np.sqrt(1 - self.r**2) * second)

    def truth(self) -> tuple[float, float]:
        """Pearson's r and Spearman's rho of the population, of a million models."""
        x, y = self.draw(np.random.default_rng(1), 1_000_000)
        return float(np.corrcoef(x, y)[0, 1]), float(spearmanr(x, y).statistic)


def _share(z: Doubles) -> Doubles:
    """Accuracy on 50 samples, as a benchmark would have it."""
    return np.round(50 / (1 + np.exp(-1.5 * z))) / 50


MODEL_POPULATIONS = (
    *(ModelPopulation(name=f"normal, r = {r:g}", r=r) for r in (0.0, -0.5, -0.9, -0.96)),
    ModelPopulation(name="PPL: log-normal, r = -0.9", r=-0.9, metric=lambda z: np.exp(0.5 * z)),
    ModelPopulation(
        name="limit: skewed PPL (e^z) and accuracy on 50 samples, r = -0.9", r=-0.9, metric=np.exp, score=_share
    ),
    ModelPopulation(name="limit: families of four that share half, r = -0.5", r=-0.5, clusters=4),
)


def model_rows() -> Iterator[list[str]]:
    """The rows of the table of correlations."""
    for population in MODEL_POPULATIONS:
        truth = population.truth()
        held: dict[int, list[list[bool]]] = {n: [[], []] for n in MODELS}
        for n in MODELS:
            random = np.random.default_rng(n)
            for _ in range(MODEL_REPEATS):
                found = correlate_columns(*population.draw(random, n), resamples=1000, permutations=1)
                for inside, value, ends in zip(held[n], truth, (found.interval, found.spearman_interval), strict=True):
                    if ends is not None:
                        inside.append(ends[0] <= value <= ends[1])
        for place, name in enumerate(("Pearson", "Spearman")):
            yield [population.name, name, *(f"{np.mean(held[n][place]):.1%}" for n in MODELS)]


if __name__ == "__main__":
    columns = ["models", "coefficient", *(f"n = {n}" for n in MODELS)]
    write_table("coverage_correlations", columns, list(model_rows()), "docs/correlate.md", by="coverage", left=2)
    write_table("coverage", ["value", *(f"n = {n}" for n in DOCUMENTS)], list(rows()), "docs/measure.md")
