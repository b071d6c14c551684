"""Defines the charts as plain data; the page draws them as SVG, and `longlens.report.figures` with matplotlib."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, cast

import numpy as np
import numpy.typing as npt

from longlens.metrics.context_reach import ReachResult
from longlens.metrics.cost import CostResult, PolicyCost
from longlens.metrics.gains import Curve
from longlens.metrics.score_distributions import LSD_FLOOR, Classes
from longlens.metrics.uncertainty import Interval
from longlens.report.evidence import DISTANCES, GROUPS, Gain
from longlens.report.summary import ReportRun, ReportSummary
from longlens.study.correlation import METRICS, CorrelationTable

Values = Sequence[float | None]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis.

    Attributes:
        label: Quantity and unit.
        log: Whether the axis is logarithmic, with a tick at every x of the chart.
        categories: Names of the positions 0, 1, … instead of numbers.
    """

    label: str
    log: bool = False
    categories: Sequence[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Series:
    """A series of points; a value of None is a gap.

    Attributes:
        name: Name in the legend.
        x: Positions on the x axis.
        y: Values.
        low: Lower ends of 95 % intervals, if there are any.
        high: Upper ends.
        labels: Names of the points, if each point has one.
        places: Document and token of the points, if the points are tokens.
        color: Color index; equal for series of the same model.
        style: How the series is drawn.
    """

    name: str
    x: Sequence[float]
    y: Values
    low: Values | None = None
    high: Values | None = None
    labels: Sequence[str] | None = None
    places: Sequence[tuple[str, int]] | None = None
    color: int = 0
    style: Literal["line", "dashed", "points", "bars"] = "line"


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A vertical line at a position of the x axis."""

    x: float
    label: str
    color: int


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart.

    Attributes:
        name: Name of its file, and its anchor in the page.
        title: Title.
        caption: Explanation that is needed to read the chart.
        x: The horizontal axis.
        y: The vertical axis.
        series: The series.
        marks: Vertical lines.
        guides: Straight lines, each from one ``(x, y)`` to another; both axes then have the same range.
    """

    name: str
    title: str
    caption: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    marks: Sequence[Mark] = field(default=())
    guides: Sequence[tuple[tuple[float, float], tuple[float, float]]] | None = None


def charts(summary: ReportSummary) -> list[Chart]:
    """Yields the charts of a report for which the scores are available."""
    colors = {run.name: index for index, run in enumerate(summary.runs)}
    allowed = [
        *([] if summary.cost is None else cost_charts(summary.cost)),
        _ppl_and_longppl(summary.compared, colors),
        *_duels(summary, colors),
        _gain_by_kind(summary, colors),
        _gain_by_field(summary, colors),
        _since(summary, colors),
        *_classes(summary.runs, colors),
        _logprob_by_position(summary.runs, colors),
        _key_share_by_position(summary, colors),
        *(_reach(summary.runs, colors, of) for of in ("all", "keys")),
        *([] if summary.correlations is None else correlation_charts(summary.correlations, colors)),
    ]
    return [chart for chart in allowed if chart is not None and chart.series]


def _ppl_and_longppl(runs: Sequence[ReportRun], colors: dict[str, int]) -> Chart | None:
    """Returns PPL and LongPPL of every compared run; None if no run has a LongPPL."""
    if all(run.result is None or run.result.longppl is None for run in runs):
        return None
    series = []
    for run in runs:
        assert run.result is not None
        values = [run.result.ppl, run.result.longppl]
        ends = [run.result.intervals["ppl"], run.result.intervals["longppl"]]
        series.append(
            Series(
                name=run.name,
                x=[0, 1],
                y=values,
                low=[None if end is None else end[0] for end in ends] if any(ends) else None,
                high=[None if end is None else end[1] for end in ends] if any(ends) else None,
                color=colors[run.name],
                style="bars",
            )
        )
    return Chart(
        name="ppl-longppl",
        title="Perplexity on all tokens, and on key tokens",
        caption="Lower is better. PPL counts every token; LongPPL only key tokens, which need the long context. "
        + (
            "Lines: 95 % intervals over documents."
            if any(each.low for each in series)
            else "Too few documents for intervals."
        ),
        x=Axis(label="tokens that are counted", categories=["all tokens (PPL)", "key tokens (LongPPL)"]),
        y=Axis(label="perplexity"),
        series=series,
    )


def _duels(summary: ReportSummary, colors: dict[str, int]) -> Iterator[Chart]:
    """Yields charts of the key tokens under the first run against each other compared run."""
    evidence, first = summary.evidence, summary.runs[0]
    for place, run in enumerate(summary.runs[1:], start=1):
        points = [t for t in evidence.points if t.long[0] is not None and t.long[place] is not None]
        if run.result is None or not points:
            continue
        both, wins = evidence.wins[place]
        x, y = ([cast(float, token.long[which]) for token in points] for which in (0, place))
        least = min(*x, *y)
        yield Chart(
            name=f"key-tokens-{place}",
            title=f"Key tokens under {first.name} and {run.name}",
            caption=f"A point is a key token; above the dotted line, {run.name} assigns the higher probability: "
            f"{wins:,} of {both:,} ({wins / both:.0%}). Tokens that the tokenizers split differently are left out."
            + (f" {len(points):,} drawn from all of them are shown." if len(points) < both else ""),
            x=Axis(label=f"log P under {first.name}, nats"),
            y=Axis(label=f"log P under {run.name}, nats"),
            series=[
                Series(
                    name=f"key tokens ({len(points):,})",
                    x=x,
                    y=y,
                    labels=[f"{token.text.strip() or '␣'} ({token.document})" for token in points],
                    places=[(token.document, token.index) for token in points],
                    color=colors[run.name],
                    style="points",
                )
            ],
            guides=[((least, least), (0.0, 0.0))],
        )


def _gain_by_kind(summary: ReportSummary, colors: dict[str, int]) -> Chart | None:
    gains = summary.evidence.gains
    if not gains:
        return None
    return Chart(
        name="gain-kinds",
        title="Which kind of text gains from the long context",
        caption="Mean LSD of the tokens of a kind, with 95 % intervals over documents. Identifiers have an underscore, "
        "letters and digits, or a capital inside; names begin with a capital within a sentence. Re-occurring: part of "
        "three words that occurred together before (appendix B.7).",
        x=Axis(label="kind of token", categories=GROUPS),
        y=Axis(label="mean LSD, nats per token"),
        series=[
            _gain_bars(summary.runs[place].name, dict(zip(GROUPS, own, strict=True)), GROUPS, colors)
            for place, own in gains.items()
        ],
    )


def _gain_by_field(summary: ReportSummary, colors: dict[str, int]) -> Chart | None:
    evidence = summary.evidence
    if not evidence.field_gains:
        return None
    first = next(iter(evidence.field_gains.values()))
    values = list(dict.fromkeys([*first, *(value for own in evidence.field_gains.values() for value in own)]))
    return Chart(
        name="gain-field",
        title=f"Gain from the long context by {evidence.by}",
        caption=f"Mean LSD of the documents with each value of the field {evidence.by}, with 95 % intervals over "
        "documents, where there are enough of them.",
        x=Axis(label=str(evidence.by), categories=values),
        y=Axis(label="mean LSD, nats per token"),
        series=[
            _gain_bars(summary.runs[place].name, own, values, colors) for place, own in evidence.field_gains.items()
        ],
    )


def _gain_bars(name: str, gains: Mapping[str, Gain], groups: Sequence[str], colors: dict[str, int]) -> Series:
    """Returns a bar for each group of which the run has tokens."""
    places = [place for place, group in enumerate(groups) if group in gains]
    own = [gains[groups[place]] for place in places]
    return Series(
        name=name,
        x=places,
        y=[gain.value for gain in own],
        low=[None if gain.interval is None else gain.interval[0] for gain in own],
        high=[None if gain.interval is None else gain.interval[1] for gain in own],
        color=colors[name],
        style="bars",
    )


def _since(summary: ReportSummary, colors: dict[str, int]) -> Chart | None:
    evidence = summary.evidence
    if not evidence.since[0].sum():
        return None
    edges = [f"{edge:,}" for edge in DISTANCES]
    names = ["new word", f"≤ {edges[0]}", *(f"≤ {edge}" for edge in edges[1:]), f"> {edges[-1]}"]
    color = colors[summary.runs[evidence.judge].name]
    return Chart(
        name="since-mention",
        title="How far back the word of a key token was mentioned last",
        caption="Tokens between a token and the last mention of its word before; other tokens, which were not key, are "
        "what to compare with. Tokens of punctuation and blanks alone are left out.",
        x=Axis(label="tokens since the last mention", categories=names),
        y=Axis(label="share of tokens, %"),
        series=[
            Series(
                name=f"{name} ({int(counts.sum()):,})",
                x=list(range(len(names))),
                y=[100 * int(count) / int(counts.sum()) for count in counts],
                color=color + number,
                style="bars",
            )
            for number, (name, counts) in enumerate(zip(("key tokens", "other tokens"), evidence.since, strict=True))
            if counts.sum()
        ],
    )


def _classes(runs: Sequence[ReportRun], colors: dict[str, int]) -> Iterator[Chart]:
    above = f"tokens with LSD > {LSD_FLOOR:g}"
    for which, title, caption, share in (
        (
            "lsd",
            "Tokens by long-short difference (LSD)",
            "How much the long context helps a token, in nats; as figures 3(a) and 4(a) of the paper. "
            "Tokens with fewer than K tokens before them have no LSD and are left out.",
            "tokens",
        ),
        (
            "lcl",
            f"T{above[1:]} by long-context likelihood (LCL)",
            "Of the tokens that the long context helps: how likely it makes them, in nats; as figure 3(b) of the "
            "paper. Left: mispredicted under the long context too.",
            above,
        ),
    ):
        all_classes: list[tuple[ReportRun, Classes]] = [
            (run, classes) for run in runs if (classes := getattr(run.distributions, which)) is not None
        ]
        if all_classes:
            edges = [f"{edge:g}".replace("-", "−") for edge in all_classes[0][1].edges]
            names = [f"< {edges[0]}", *(f"{low} to {high}" for low, high in pairwise(edges)), f"≥ {edges[-1]}"]
            yield Chart(
                name=f"{which}-classes",
                title=title,
                caption=caption,
                x=Axis(label=f"{which.upper()}, nats", categories=names),
                y=Axis(label=f"share of {share}, %"),
                series=[
                    series
                    for run, classes in all_classes
                    for series in _bars(run, classes, colors[run.name], colors[run.name] + len(runs))
                ],
            )


def _bars(run: ReportRun, classes: Classes, color: int, other_color: int) -> Iterator[Series]:
    groups = {"": classes.counts}
    if classes.answers is not None and classes.rest is not None:
        groups = {", answers": classes.answers, ", other tokens": classes.rest}
    for (suffix, counts), own_color in zip(groups.items(), (color, other_color), strict=False):
        total = int(np.sum(counts))
        yield Series(
            name=f"{run.name}{suffix} ({total:,} tokens)",
            x=list(range(len(counts))),
            y=[100 * int(count) / total if total else None for count in counts],
            color=own_color,
            style="bars",
        )


def _logprob_by_position(runs: Sequence[ReportRun], colors: dict[str, int]) -> Chart:
    series = []
    for run in runs:
        positions = run.distributions.positions
        middle = _middles(positions.edges)
        color = colors[run.name]
        long = _listed(positions.long_logprob)
        series.append(Series(name=f"{run.name}, long context", x=middle, y=long, color=color))
        if positions.short_logprob is not None:
            short = _listed(positions.short_logprob)
            series.append(Series(name=f"{run.name}, short context", x=middle, y=short, color=color, style="dashed"))
    return Chart(
        name="logprob-position",
        title="Log-probability along the document",
        caption="Mean over the tokens of all documents at this place. Where the long context is used, its line stays "
        "above that of the short context, which begins at token K.",
        x=Axis(label="position in the document, tokens of each model"),
        y=Axis(label="mean log-probability, nats per token"),
        series=series,
    )


def _key_share_by_position(summary: ReportSummary, colors: dict[str, int]) -> Chart | None:
    if summary.keys is None:
        return None
    settings = summary.keys.settings
    rule = f"Key tokens of {settings['evaluator'] or 'the key file'}"
    if settings["alpha"] is not None:
        rule += f" at alpha {settings['alpha']:g}, "
        rule += f"beta {settings['beta']:g}" if settings["lcl"] else "without beta"
    return Chart(
        name="key-share-position",
        title="Share of key tokens along the document",
        caption=f"{rule}. No token before the {settings['context'] or 'K'}th of the evaluator can be key.",
        x=Axis(label="position in the document, tokens of each model"),
        y=Axis(label="share of tokens that are key, %"),
        series=[
            Series(
                name=run.name,
                x=_middles(run.distributions.positions.edges),
                y=_listed(100 * run.distributions.positions.key_share),
                color=colors[run.name],
            )
            for run in summary.runs
            if run.distributions.positions.key_share is not None
        ],
    )


def _reach(runs: Sequence[ReportRun], colors: dict[str, int], which: Literal["all", "keys"]) -> Chart | None:
    curves = [(run, run.reach, curve) for run in runs if run.reach is not None and (curve := getattr(run.reach, which))]
    if not curves:
        return None
    tokens = "all tokens" if which == "all" else "key tokens"
    evaluators = dict.fromkeys(reached.evaluator or "the key file" for _, reached, _ in curves)
    selected = "" if which == "all" else " Key at the smallest K, by " + " and ".join(evaluators) + "."
    return Chart(
        name=f"reach-{which}",
        title=f"Context reach, {tokens}",
        caption=f"Gain G(K): by how much the last K tokens predict {tokens} better than the first K does. Points: "
        "measured, with 95 % intervals over documents where there are 5 or more; lines: isotonic fit; vertical: "
        f"effective reach, the smallest K with 90 % of the largest gain.{selected} {_reaches_in_words(curves)}",
        x=Axis(label="short context K, tokens of each model", log=True),
        y=Axis(label="gain over the smallest K, nats per token"),
        series=[series for run, _, curve in curves for series in _gains(run.name, curve, colors[run.name])],
        marks=[
            Mark(x=curve.reach, label=f"{run.name}: {reach_in_words(curve)}", color=colors[run.name])
            for run, _, curve in curves
            if curve.reach is not None
        ],
    )


def _gains(name: str, curve: Curve, color: int) -> Iterator[Series]:
    intervals = curve.gain_intervals
    yield Series(
        name=name,
        x=list(curve.contexts),
        y=list(curve.gains),
        low=None if intervals is None else [low for low, _ in intervals],
        high=None if intervals is None else [high for _, high in intervals],
        color=color,
        style="points",
    )
    yield Series(name=f"{name}, fit", x=list(curve.contexts), y=list(curve.fit), color=color)


def reach_in_words(curve: Curve) -> str:
    """Describes the effective reach: a number of tokens, a lower bound if it is censored, or that there is none."""
    if curve.reach is None:
        return "none: no gain that can be told from 0"
    return f"{'≥ ' if curve.censored else ''}{curve.reach:,.0f} tokens"


def _reaches_in_words(curves: Sequence[tuple[ReportRun, ReachResult, Curve]]) -> str:
    said = []
    for run, reached, curve in curves:
        words = f"{run.name}: reach {reach_in_words(curve)}{_between(curve.reach_interval, 0)}, "
        words += f"largest gain {curve.max_gain:.3f} nats{_between(curve.max_gain_interval, 3)}"
        if curve.reference_share is not None:
            words += f", {curve.reference_share:.0%} of {reached.reference}'s"
        if curve.drops:
            steps = (f"{d.from_context:,} to {d.to_context:,}: {d.nats:.3f} nats" for d in curve.drops)
            words += f"; drops that the fit hides: {', '.join(steps)}"
        said.append(words + ".")
    return " ".join(said)


def _between(interval: Interval | None, digits: int) -> str:
    return "" if interval is None else f" ({interval[0]:,.{digits}f} to {interval[1]:,.{digits}f})"


def correlation_charts(table: CorrelationTable, colors: Mapping[str, int] | None = None) -> Iterator[Chart]:
    """Yields charts of LongPPL and PPL against every benchmark, as figures 1(b), 5 and 6 of the paper.

    Args:
        table: Correlations across models.
        colors: Color index of each model, by name; then each model is a series. By default, each family of the table
            is a series.
    """
    families = list(table.models) if table.families is None or colors is not None else list(table.families)
    places = {family: place for place, family in enumerate(dict.fromkeys(families))} if colors is None else colors
    for number, (benchmark, scores) in enumerate(table.benchmarks.items(), start=1):
        for metric in ("longppl", "ppl"):
            values = table.metrics.get(metric)
            if values is None:
                continue
            points: dict[str, list[tuple[float, float, str]]] = {}
            for family, model, value, score in zip(families, table.models, values, scores, strict=True):
                if value is not None and score is not None:
                    points.setdefault(family, []).append((value, score, model))
            if not points:
                continue
            found = table.correlations[metric][benchmark]
            r = "" if found.pearson is None else f", r = {found.pearson:.2f}"
            yield Chart(
                name=f"{metric}-{number}-{_file_name(benchmark)}",
                title=f"{METRICS[metric]} and {benchmark}{r}",
                caption=found.in_words(),
                x=Axis(label=f"{METRICS[metric]} (per token, lower is better)"),
                y=Axis(label=f"{benchmark} score"),
                series=[
                    Series(
                        name=family,
                        x=[value for value, _, _ in own],
                        y=[score for _, score, _ in own],
                        labels=[model for _, _, model in own],
                        color=places[family],
                        style="points",
                    )
                    for family, own in points.items()
                ],
            )


def _file_name(name: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower())[:40]


def _middles(edges: npt.ArrayLike) -> list[float]:
    edges = np.asarray(edges, dtype=np.float64)
    return [float(x) for x in (edges[:-1] + edges[1:]) / 2]


def _listed(values: npt.ArrayLike) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in np.asarray(values, dtype=np.float64)]


def cost_charts(found: CostResult) -> list[Chart]:
    """Returns the charts of costs: retained gain against bytes, and retained gain by the required context."""
    measured = [policy for policy in found.policies if policy.bytes_per_token is not None]
    best = pareto(measured)
    charts = []
    if measured:
        groups = {
            "no other is smaller and keeps more": [policy for policy in measured if policy in best],
            "others": [policy for policy in measured if policy not in best],
        }
        whole = [] if found.bytes_per_token is None else [found.bytes_per_token]
        charts.append(
            Chart(
                name="cost-bytes",
                title="Retained gain against the size of the cache",
                caption="1: nothing is lost on key tokens; 0: as if there were no long context. Lines: 95 % intervals "
                "over documents.",
                x=Axis(label="bytes of the cache a token"),
                y=Axis(label="retained gain on key tokens"),
                series=[
                    *[_policies(name, group, color) for color, (name, group) in enumerate(groups.items()) if group],
                    *[Series(name="full cache", x=whole, y=[1.0], labels=[found.model], color=2, style="points")]
                    * bool(whole),
                ],
            )
        )
    brackets = {(b.above, b.up_to): b for p in found.policies for b in p.by_distance}
    edges = sorted(brackets, key=lambda edge: edge[0])
    if edges:
        names = [brackets[edge].words for edge in edges]
        known = [{(b.above, b.up_to): b.retained_gain for b in policy.by_distance} for policy in found.policies]
        charts.append(
            Chart(
                name="cost-distance",
                title="Retained gain by the context that a key token needs",
                caption="The smallest K that gives a token half of its gain.",
                x=Axis(label="tokens of context", categories=names),
                y=Axis(label="retained gain"),
                series=[
                    Series(
                        name=policy.name,
                        x=list(range(len(edges))),
                        y=[kept.get(edge) for edge in edges],
                        color=number,
                    )
                    for number, (policy, kept) in enumerate(zip(found.policies, known, strict=True))
                ],
            )
        )
    return charts


def _policies(name: str, policies: Sequence[PolicyCost], color: int) -> Series:
    ends = [policy.interval or (None, None) for policy in policies]
    return Series(
        name=name,
        x=[policy.bytes_per_token or 0.0 for policy in policies],
        y=[policy.retained_gain for policy in policies],
        low=[low for low, _ in ends],
        high=[high for _, high in ends],
        labels=[policy.name for policy in policies],
        color=color,
        style="points",
    )


def pareto(policies: Sequence[PolicyCost]) -> list[PolicyCost]:
    """Returns the policies on the Pareto front: no other has at most their bytes and at least their gain, one of them
    strictly better.

    Args:
        policies: Policies with bytes; those without a retained gain are not in the result.
    """

    def beats(one: PolicyCost, other: PolicyCost) -> bool:
        if one.retained_gain is None or one.bytes_per_token is None:
            return False
        assert other.bytes_per_token is not None
        assert other.retained_gain is not None
        no_worse = one.bytes_per_token <= other.bytes_per_token and one.retained_gain >= other.retained_gain
        better = one.bytes_per_token < other.bytes_per_token or one.retained_gain > other.retained_gain
        return no_worse and better

    known = [policy for policy in policies if policy.retained_gain is not None and policy.bytes_per_token is not None]
    return [policy for policy in known if not any(beats(other, policy) for other in known)]
