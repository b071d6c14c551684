"""Summarizes the samples of the experiment: correlations over prompt lengths, and classification of answer tokens."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from longlens.metrics.uncertainty import Doubles, Interval, estimate, score_interval
from longlens.study.answers import classify
from longlens.study.correlation import RESAMPLES, compare_dependent, correlate_columns
from longlens.study.reproduce import Table
from longlens.tables import plain

if TYPE_CHECKING:
    from longlens.study.answers.run import AnswersSettings

TOKENS = {
    "answer": "the answer's",
    "response": "the response's other",
    "record": "the prompt's",
    "rest": "all but the answer's",
}
"""Kinds of tokens, with their names in tables."""
LOG_TOKENS = "log length"
ACCURACIES = {"exact": "greedy", "choice": "10-way choice"}
CHANCE = {"exact": 0.0}
Samples = Sequence[Mapping[str, Any]]
Found = Mapping[str, Mapping[tuple[int, int], Samples]]
"""Samples by model, and by lines and seed."""


def summarize(settings: AnswersSettings, found: Found) -> dict[str, Any]:
    """Everything that the experiment says.

    Returns:
        Lists of rows, each with its ``model``. ``lengths``: by ``lines``, accuracies (percent) with Wilson's intervals
        and ``chance``, and PPL with intervals over samples, by kind of tokens. ``correlations`` of an accuracy with the
        PPL of a kind of tokens over the lengths: ``interval`` is over the lengths, each with its samples as they are
        (`longlens.study.correlation`), ``sample_interval`` over the samples of these lengths. ``tests``: Williams' test
        of the answer tokens' correlation against that of other tokens. ``within``: at one length, how often a right
        sample's tokens have the lower negative log-likelihood. ``published``: table 9 by the same statistics. The rest
        is `longlens.study.answers.classify.classify`'s.
    """
    rows: dict[str, list[dict[str, Any]]] = {}

    def add(name: str, model: str, made: Iterable[Mapping[str, Any]]) -> None:
        rows.setdefault(name, []).extend({"model": model, **plain(row)} for row in made)

    for model, parts in found.items():
        by_lines = {lines: [parts[lines, seed] for seed in settings.seeds] for lines in settings.lines}
        pooled = {lines: list(itertools.chain(*of_seeds)) for lines, of_seeds in by_lines.items()}
        columns = {lines: _columns(samples) for lines, samples in pooled.items()}
        add("lengths", model, (_length(lines, columns[lines]) for lines in settings.lines))
        add("correlations", model, _correlations(columns))
        add("tests", model, _tests(columns))
        add("within", model, _within(columns))
        development = parts[settings.classified_lines, settings.development_seed]
        for name, made in classify.classify(settings, pooled, development).items():
            add(name, model, made)
    return {"seeds": list(settings.seeds), **rows, "published": _published()}


@dataclass(frozen=True)
class _Columns:
    """Samples of one length: ``(n,)`` of each; sums of negative log-likelihood and numbers of tokens are 0 where a
    sample has no such tokens scored.
    """

    num_tokens: Doubles
    right: Mapping[str, Doubles]
    nll: Mapping[str, Doubles]
    count: Mapping[str, Doubles]
    num_choices: int
    num_in_short: int

    def ppl(self, tokens: str, counts: Doubles | None = None) -> Doubles | float:
        """PPL of the tokens of all samples together; or for each row of ``counts (b, n)``, with these sample counts."""
        if counts is None:
            return float(np.exp(self.nll[tokens].sum() / self.count[tokens].sum()))
        ppl: Doubles = np.exp((counts @ self.nll[tokens]) / (counts @ self.count[tokens]))
        return ppl


def _columns(samples: Samples) -> _Columns:
    nll: dict[str, list[float]] = {name: [] for name in TOKENS}
    count: dict[str, list[float]] = {name: [] for name in TOKENS}
    for sample in samples:
        response = sample["response"]
        is_answer, long = np.array(response["is_answer"]), np.array(response["long"], dtype=np.float64)
        record = sample["record"]
        prompt = np.array([] if record is None else record["long"], dtype=np.float64)
        prompt = prompt[~np.isnan(prompt)]
        others = long[~is_answer]
        whole = np.concatenate([prompt, others if len(prompt) else others[:0]])
        for name, values in zip(TOKENS, (long[is_answer], others, prompt, whole), strict=True):
            nll[name].append(-float(values.sum()))
            count[name].append(len(values))
    choices = np.array([sample["choices"] for sample in samples])
    return _Columns(
        num_tokens=np.array([sample["num_tokens"] for sample in samples], dtype=np.float64),
        right={
            "exact": np.array([sample["is_exact"] for sample in samples], dtype=np.float64),
            "choice": np.array((choices[:, :1] > choices[:, 1:]).all(axis=1), dtype=np.float64),
        },
        nll={name: np.array(values) for name, values in nll.items()},
        count={name: np.array(values, dtype=np.float64) for name, values in count.items()},
        num_choices=choices.shape[1],
        num_in_short=sum(sample["in_short"] for sample in samples),
    )


def _length(lines: int, columns: _Columns) -> dict[str, Any]:
    made: dict[str, Any] = {
        "lines": lines,
        "tokens": float(columns.num_tokens.mean()),
        "num_samples": len(columns.num_tokens),
        "num_in_short": columns.num_in_short,
    }
    for name, right in columns.right.items():
        interval = score_interval(right.tolist())
        chance = CHANCE.get(name, 100 / columns.num_choices)
        made[name] = {"accuracy": 100 * float(right.mean()), "interval": _percent(interval), "chance": chance}
    for name in TOKENS:
        there = columns.count[name] > 0
        found = estimate(np.stack([columns.nll[name], columns.count[name]], axis=1)[there])
        ends = None if found is None else found.interval(relative=True)
        made[f"ppl_{name}"] = {
            "ppl": columns.ppl(name),
            "interval": None if ends is None else tuple(float(np.exp(end)) for end in ends),
            "num_tokens": int(columns.count[name].sum()),
        }
    return made


def _percent(interval: Interval | None) -> Interval | None:
    return None if interval is None else (100 * interval[0], 100 * interval[1])


def _correlations(columns: Mapping[int, _Columns]) -> Iterable[dict[str, Any]]:
    """Over the lengths. Samples are drawn again by their number, the same ones at each length: sample i begins with
    the same lines at each.
    """
    parts = list(columns.values())
    n = len(parts[0].num_tokens)
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64)
    lengths = np.log([part.num_tokens.mean() for part in parts])
    for accuracy in ACCURACIES:
        score = np.array([part.right[accuracy].mean() for part in parts])
        drawn = np.stack([counts @ part.right[accuracy] / n for part in parts], axis=1)
        for tokens in (*TOKENS, LOG_TOKENS):
            is_ppl = tokens in TOKENS
            x = np.array([part.ppl(tokens) for part in parts]) if is_ppl else lengths
            # Where few samples have all tokens scored, a resample may have none of them.
            with np.errstate(invalid="ignore", divide="ignore"):
                drawn_x = np.stack([part.ppl(tokens, counts) for part in parts], axis=1) if is_ppl else lengths[None]
            found = correlate_columns(x, score).to_json()
            names = ("n", "pearson", "interval", "p", "spearman", "spearman_interval", "spearman_p", "reason")
            yield {
                "accuracy": accuracy,
                "tokens": tokens,
                **{name: found[name] for name in names},
                "sample_interval": _percentiles(_row_r(np.broadcast_to(drawn_x, drawn.shape), drawn)),
            }


def _row_r(x: Doubles, y: Doubles) -> Doubles:
    """Returns Pearson's r of each row; NaN if it is constant."""
    x, y = (values - values.mean(axis=1, keepdims=True) for values in (x, y))
    with np.errstate(invalid="ignore", divide="ignore"):
        r: Doubles = (x * y).sum(axis=1) / np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    return r


def _percentiles(values: Doubles) -> Interval | None:
    there = values[np.isfinite(values)]
    if len(there) < len(values) / 2:
        return None
    low, high = np.percentile(there, [2.5, 97.5])
    return float(low), float(high)


def _tests(columns: Mapping[int, _Columns]) -> Iterable[dict[str, Any]]:
    parts = list(columns.values())
    ppl = {tokens: [float(part.ppl(tokens)) for part in parts] for tokens in TOKENS}
    for accuracy in ACCURACIES:
        score = [float(part.right[accuracy].mean()) for part in parts]
        for tokens in [name for name in TOKENS if name != "answer"]:
            found = compare_dependent(ppl["answer"], ppl[tokens], score).to_json()
            yield {"accuracy": accuracy, "against": tokens, **found}


def _within(columns: Mapping[int, _Columns]) -> Iterable[dict[str, Any]]:
    """Pairs of a right and a wrong sample of one length: the share in which the right one's mean negative
    log-likelihood is the lower one, ties by half; 50 % is what tokens have that know nothing of it.
    """
    parts = list(columns.values())
    n = len(parts[0].num_tokens)
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=RESAMPLES // 4).astype(np.float64)
    for accuracy, tokens in itertools.product(ACCURACIES, TOKENS):
        better, pairs = np.zeros(1 + len(counts)), np.zeros(1 + len(counts))
        for part in parts:
            there = part.count[tokens] > 0
            mean = part.nll[tokens][there] / part.count[tokens][there]
            right = part.right[accuracy][there] > 0
            lower = (mean[right, None] < mean[~right]) + 0.5 * (mean[right, None] == mean[~right])
            weights = np.concatenate([np.ones((1, there.sum())), counts[:, there]])
            better += np.einsum("bi,ij,bj->b", weights[:, right], lower, weights[:, ~right])
            pairs += weights[:, right].sum(axis=1) * weights[:, ~right].sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = 100 * better / pairs
        yield {
            "accuracy": accuracy,
            "tokens": tokens,
            "share": float(share[0]) if pairs[0] else None,
            "interval": _percentiles(share[1:]),
            "num_pairs": int(pairs[0]),
        }


def _published() -> list[dict[str, Any]]:
    """Returns the same statistics for Table 9 of the paper."""
    from longlens.study import published

    table = published.table(9)
    rows = []
    for group in table.groups():
        accuracy, answer, rest = (
            [table.number(row.name, column.name, group) for row in table.of_group(group)] for column in table.columns
        )
        test = compare_dependent(answer, rest, accuracy).to_json()
        for tokens, values in (("answer", answer), ("rest", rest)):
            found = correlate_columns(values, accuracy).to_json()
            names = ("n", "pearson", "interval", "p", "spearman", "spearman_interval", "spearman_p")
            rows.append({"model": group, "tokens": tokens, **{name: found[name] for name in names}, "test": test})
    return rows


# --- tables -----------------------------------------------------------------------------------------------------------


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Formats a result as tables."""
    settings = result["settings"]
    lengths = Table(
        "By prompt length (mean number of tokens of prompt and response): accuracy in percent and PPL of four kinds of "
        f"tokens, with 95 % intervals over {result['lengths'][0]['num_samples']} samples (tokens of the prompt: "
        f"{settings['record_samples']} samples per seed). Chance is 0 % for greedy answers and "
        f"{result['lengths'][0]['choice']['chance']:.0f} % for choices.",
        ["model", "lines", "tokens", *ACCURACIES.values(), *(f"PPL, {name}" for name in TOKENS.values())],
        [
            [
                row["model"],
                str(row["lines"]),
                f"{row['tokens']:,.0f}",
                *(_cell(row[name]["accuracy"], row[name]["interval"], ".0f") for name in ACCURACIES),
                *(_cell(row[f"ppl_{name}"]["ppl"], row[f"ppl_{name}"]["interval"], ".2f") for name in TOKENS),
            ]
            for row in result["lengths"]
        ],
    )
    correlations = Table(
        "Over the lengths: Pearson's r and Spearman's rho between accuracy and PPL, with 95 % intervals over the "
        "lengths (and of r over resampled samples); p by permutation. The logarithm of the length is a control: every "
        "quantity that grows or falls with length correlates with it.",
        ["model", "accuracy", "tokens", "r", "r, samples resampled", "p", "rho"],
        [
            [
                row["model"],
                ACCURACIES[row["accuracy"]],
                TOKENS.get(row["tokens"], row["tokens"]),
                _cell(row["pearson"], row["interval"], ".2f"),
                _span(row["sample_interval"], ".2f"),
                _p(row["p"]),
                _cell(row["spearman"], row["spearman_interval"], ".2f"),
            ]
            for row in result["correlations"]
        ],
        3,
    )
    tests = Table(
        "Williams' test: r of the answer's tokens minus r of the others.",
        ["model", "accuracy", "against", "difference of r", "t", "p"],
        [
            [
                row["model"],
                ACCURACIES[row["accuracy"]],
                TOKENS[row["against"]],
                _cell(row["difference"], row["interval"], ".2f"),
                _number(row["t"], ".2f"),
                _p(row["p"]),
            ]
            for row in result["tests"]
        ],
        3,
    )
    within = Table(
        "Within one length: percentage of pairs of a right and a wrong sample in which the tokens of the right one are "
        "more likely; chance is 50 %.",
        ["model", "right by", "tokens", "percent", "pairs"],
        [
            [
                row["model"],
                ACCURACIES[row["accuracy"]],
                TOKENS[row["tokens"]],
                _cell(row["share"], row["interval"], ".1f"),
                f"{row['num_pairs']:,}",
            ]
            for row in result["within"]
        ],
        3,
    )
    published = Table(
        "The same statistics for the paper's table 9, over its lengths.",
        ["model", "tokens", "r", "p", "rho", "Williams' p"],
        [
            [
                row["model"],
                TOKENS[row["tokens"]] if row["tokens"] == "answer" else "the others",
                _cell(row["pearson"], row["interval"], ".2f"),
                _p(row["p"]),
                _cell(row["spearman"], row["spearman_interval"], ".2f"),
                _p(row["test"]["p"]) if row["tokens"] == "answer" else "",
            ]
            for row in result["published"]
        ],
        2,
    )
    return [lengths, correlations, tests, within, published, *classify.tables(result, _cell)]


Cell = Callable[[float | None, Sequence[float] | None, str], str]


def _cell(value: float | None, interval: Sequence[float] | None, form: str) -> str:
    return _number(value, form) + (f" {_span(interval, form)}" if value is not None and interval is not None else "")


def _span(interval: Sequence[float] | None, form: str) -> str:
    return "-" if interval is None else f"[{interval[0]:{form}}, {interval[1]:{form}}]"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _p(value: float | None) -> str:
    return "-" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"
