"""Numbers that follow from what the documents print, and that their claims are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longlens.study import published
from longlens.study.correlation import williams_t
from longlens.study.published.recompute import EPSILON

BENCHMARKS = ("LongBench", "LongEval", "RULER")
LARGE = "LongPPL, Qwen2-72B-Instruct"
"""Column of Table 5: the paper's default evaluator."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Derived:
    """A number that no document prints, from numbers that one prints.

    Attributes:
        what: What it is.
        value: The number.
        interval: 95 % interval of a correlation (Fisher's z, normal), or the range of values that are possible; None
            where there is neither.
        n: Of how many pairs or cells it is.
        p: Of a correlation, two-sided, against 0.
    """

    what: str
    value: float
    interval: tuple[float, float] | None = None
    n: int | None = None
    p: float | None = None


def derived() -> dict[str, Derived]:
    """Numbers that follow from what is printed, and that claims are compared with, by name."""
    return _of_table_9() | _of_table_1() | _of_models() | _of_training() | _of_slides()


def _pearson(what: str, x: Sequence[float], y: Sequence[float]) -> Derived:
    from scipy import stats

    found = stats.pearsonr(x, y)
    low, high = found.confidence_interval(0.95)
    return Derived(
        what=what, value=float(found.statistic), interval=(float(low), float(high)), n=len(x), p=float(found.pvalue)
    )


def _of_table_9() -> dict[str, Derived]:
    """Correlations of figures 2(b) and 2(c) over prompt lengths."""
    table = published.table(9)
    found = {}
    for key, group in zip(("yi", "clex"), table.groups(), strict=True):
        accuracy, answers, rest = (
            [table.number(row.name, column.name, group) for row in table.of_group(group)] for column in table.columns
        )
        found[f"answers-{key}"] = _pearson(f"{group}: accuracy and PPL on answer tokens, Pearson r", accuracy, answers)
        found[f"rest-{key}"] = _pearson(f"{group}: accuracy and PPL on the other tokens, Pearson r", accuracy, rest)
    return found


def _printed(what: str, r: float, n: int) -> Derived:
    """A printed Pearson's r with the interval and the p that it has over n models (Fisher's z, Student's t)."""
    from scipy import stats

    half = stats.norm.ppf(0.975) / np.sqrt(n - 3)
    low, high = np.tanh(np.arctanh(r) - half), np.tanh(np.arctanh(r) + half)
    p = 2 * stats.t.sf(abs(r) * np.sqrt((n - 2) / (1 - r * r)), n - 2)
    return Derived(what=what, value=r, interval=(float(low), float(high)), n=n, p=float(p))


def _of_table_1() -> dict[str, Derived]:
    """How sure the correlations of Tables 1 and 11 are, over the nine models of Table 5."""
    from scipy import stats

    table, n = published.table, len(published.table(5).rows)
    columns = [[table(5).number(row.name, name) for row in table(5).rows] for name in (LARGE, "PPL")]
    between = float(stats.pearsonr(*columns).statistic)
    found = {}
    for name in BENCHMARKS:
        for key, number, row in (("ppl", 1, "PPL"), ("longppl", 1, "LongPPL-hard"), ("ngram", 11, "PPL (N-gram)")):
            r = table(number).number(row, name)
            found[f"{key}-{name.lower()}"] = _printed(f"{row} and {name} over nine models, Pearson r", r, n)
        t = williams_t(table(1).number("LongPPL-hard", name), table(1).number("PPL", name), between, n)
        assert t is not None
        found[f"williams-{name.lower()}"] = Derived(
            what=f"LongPPL against PPL on {name}, Williams' t of the two correlations",
            value=t,
            n=n,
            p=float(2 * stats.t.sf(abs(t), n - 3)),
        )
    return found


def _of_models() -> dict[str, Derived]:
    """What Tables 1, 5, 6 and 12 say of each other."""
    table = published.table
    columns = {c.name: [table(5).number(row.name, c.name) for row in table(5).rows] for c in table(5).columns}
    own = [table(6).number(row.name, "LongPPL, self") for row in table(6).rows]
    large, small = columns[LARGE], columns["LongPPL, Llama-3.1-8B"]
    found = {
        "evaluators": _pearson(
            "LongPPL of nine models by Qwen2-72B-Instruct and by Llama-3.1-8B, Pearson r", large, small
        ),
        "evaluators-mistral": _pearson(
            "LongPPL of nine models by Qwen2-72B-Instruct and by Mistral Large 2, Pearson r",
            large,
            columns["LongPPL, Mistral Large 2"],
        ),
        "ppl-and-longppl": _pearson("PPL and LongPPL of nine models, Pearson r", columns["PPL"], large),
        "self-and-longppl": _pearson(
            "LongPPL of nine models by themselves and by Qwen2-72B-Instruct, Pearson r", own, large
        ),
    }
    without = [at for at, row in enumerate(table(5).rows) if row.name != "Yarn-7B-128k"]
    found["self-and-longppl-without-yarn"] = _pearson(
        "the same without Yarn-7B-128k, Pearson r", [own[at] for at in without], [large[at] for at in without]
    )
    for name in BENCHMARKS:
        r, s = table(1).number("LongPPL-hard", name), found["self-and-longppl"].value
        # Of three variables no correlation matrix has a negative eigenvalue.
        half = float(np.sqrt((1 - r * r) * (1 - s * s)))
        found[f"self-{name.lower()}"] = Derived(
            what=f"self-evaluated LongPPL and {name}, Pearson r: range implied by their correlations with LongPPL",
            value=r * s,
            interval=(r * s - half, r * s + half),
            n=len(own),
        )
    shares = [
        table(12).number(r.name, "LongPPL, Llama-3.1-8B") / table(12).number(r.name, "PPL") for r in table(12).rows
    ]
    found["times-of-ppl"] = Derived(
        what="seconds of LongPPL by Llama-3.1-8B over those of PPL, of two models, from and to",
        value=max(shares),
        interval=(min(shares), max(shares)),
        n=len(shares),
    )
    below = [value for row in table(2).rows for value in row.values if isinstance(value, float)]
    found["thresholds-below"] = Derived(
        what="cells of Table 2 below -0.8, percent", value=100 * float(np.mean([r < -0.8 for r in below])), n=len(below)
    )
    better = [
        table(2).number(row, name) - table(2).number("alpha 2, beta -2", name)
        for row in ("alpha 2, beta -1", "alpha 1, beta -1")
        for name in BENCHMARKS
    ]
    found["thresholds-better"] = Derived(
        what="of six correlations at beta -1, those that are stronger than at the default, percent",
        value=100 * float(np.mean([change < 0 for change in better])),
        n=len(better),
    )
    return found


def _of_training() -> dict[str, Derived]:
    """What Tables 3, 4, 7 and 10 come to."""
    table = published.table
    settings = [(table(number), group) for number in (3, 4) for group in table(number).groups()]
    gains = {
        name: [
            found.number("LongCE", column.name, group) - found.number("CE", column.name, group)
            for found, group in settings
            for column in found.columns
            if column.name.startswith(name)
        ]
        for name in BENCHMARKS
    }
    every = [gain for of_one in gains.values() for gain in of_one]
    found = {
        "longce-better": Derived(
            what="comparisons of Tables 3 and 4 in which LongCE is above CE, percent",
            value=100 * float(np.mean([gain > EPSILON for gain in every])),
            n=len(every),
        ),
        "largest-gain": Derived(
            what="the largest gain of Tables 3 and 4 on LongEval, points",
            value=max(gains["LongEval"]),
            n=len(gains["LongEval"]),
        ),
    }
    for name, values in gains.items():
        found[f"mean-gain-{name.lower()}"] = Derived(
            what=f"mean gain on {name} over 5 settings and 3 steps, points",
            value=float(np.mean(values)),
            interval=(min(values), max(values)),
            n=len(values),
        )
    last = "200 steps"
    default, cheap, cheaper = "LongCE, K 4096, d 1024", "LongCE, K 1024, d 1024", "LongCE, K 4096, d 4096"
    for name in BENCHMARKS:
        change = [
            table(7).number(row, f"{name}, {last}") - table(7).number(default, f"{name}, {last}")
            for row in (cheaper, cheap)
        ]
        found[f"cheap-{name.lower()}"] = Derived(
            what=f"{name} after {last} with d 4096 and with K 1024, less the default's, points",
            value=min(change),
            interval=(min(change), max(change)),
            n=2,
        )
    over_ce = [
        table(7).number(row, f"LongBench, {last}") - table(7).number("CE", f"LongBench, {last}")
        for row in (cheaper, cheap)
    ]
    found["cheap-longbench-over-ce"] = Derived(
        what=f"LongBench after {last} with d 4096 and with K 1024, less CE's, points",
        value=min(over_ce),
        interval=(min(over_ce), max(over_ce)),
        n=2,
    )
    most = max(table(7).number(row.name, f"LongEval, {last}") for row in table(7).rows)
    found["largest-gain-table-7"] = Derived(
        what="the largest gain over CE of Table 7 on LongEval, points",
        value=most - table(7).number("CE", f"LongEval, {last}"),
        n=len(table(7).rows) - 1,
    )
    for column in table(8).columns[:-1]:
        name = column.name.lower().replace(" ", "-")
        changes = [
            table(8).number(f"LongCE, {steps} steps", column.name, group)
            - table(8).number(f"CE, {steps} steps", column.name, group)
            for group in table(8).groups()
            for steps in (50, 100, 200)
        ]
        found[f"domain-{name}"] = _range(f"{column.name}, LongCE less CE, points", changes)
    tasks = [column.name for column in table(10).columns[:-1]]
    for key, one, other in (("short-longce", "LongCE", "CE"), ("short-training", "CE", "Llama-2-7B")):
        change = [table(10).number(one, name) - table(10).number(other, name) for name in tasks]
        found[key] = Derived(
            what=f"{one} less {other}, mean of six short-context tasks, points",
            value=float(np.mean(change)),
            interval=(min(change), max(change)),
            n=len(change),
        )
    return found


def _range(what: str, values: Sequence[float]) -> Derived:
    """The mean of some numbers, from the least to the largest."""
    ends = (min(values), max(values))
    return Derived(what=f"{what}: mean, least and largest", value=float(np.mean(values)), interval=ends, n=len(values))


def _spread(what: str, values: Sequence[float]) -> Derived:
    return Derived(what=f"{what}, largest less least", value=float(np.ptp(values)), n=len(values))


def _of_slides() -> dict[str, Derived]:
    """What the lecture's tables come to."""
    return _of_evaluation() | _of_data() | _of_lengths()


def _of_evaluation() -> dict[str, Derived]:
    """Position extrapolation (slides 16, 34, 38) and HELMET (slides 31, 32)."""
    table = published.lecture().table
    matrix = np.array([row.values for row in table("correlation").rows], dtype=float)
    pairs = matrix[np.triu_indices(len(matrix), 1)]
    tuned = table("extension")
    methods = [row.name for row in tuned.of_group("fine-tuned")]
    columns = {c.name: [tuned.number(name, c.name, "fine-tuned") for name in methods] for c in tuned.columns}
    found = {
        "helmet-pairs": Derived(
            what="Spearman r of HELMET's categories: median of the pairs, least and largest",
            value=float(np.median(pairs)),
            interval=(float(pairs.min()), float(pairs.max())),
            n=len(pairs),
        ),
        "ppl-and-ruler": _pearson(
            "PPL and RULER of five fine-tuned extensions, Pearson r", columns["PPL"], columns["RULER"]
        ),
        "extension-ppl": _spread("PPL of five fine-tuned extensions", columns["PPL"]),
        "extension-ruler": _spread("RULER of five fine-tuned extensions, points", columns["RULER"]),
    }
    for name in ("Needle", "Many-shot", "LongBench", "RULER"):
        by_method = dict(zip(methods, columns[name], strict=True))
        found[f"ntk-and-pi-{name.lower()}"] = Derived(
            what=f"{name} of NTK-32K less PI's, points", value=by_method["NTK-32K"] - by_method["PI"]
        )
    for kind in ("NIAH", "RAG", "Re-rank", "Cite"):
        scores = [table("tasks").number(row.name, f"{kind}, 32k") for row in table("tasks").rows]
        found[f"spread-{kind.lower()}"] = _spread(f"{kind} at 32k of seven models, points", scores)
    beyond = [
        table("extrapolation").number(row.name, f"{kind}, {length}")
        for row in table("extrapolation").rows
        if "larger RoPE base" in row.name
        for kind in ("Recall", "RAG")
        for length in ("64k", "128k")
    ]
    found["beyond-trained-length"] = _range(
        "recall and RAG of Llama-3 with a larger RoPE base at 64k and 128k, %", beyond
    )
    found["extrapolated-short"] = _range(
        "Llama-3-8B after position extrapolation less before, five short-context tasks, points",
        _differences("short", "Llama-3-8B, extrapolated", "Llama-3-8B"),
    )
    return found


def _differences(which: str, row: str, other: str) -> list[float]:
    """A row less another one of a lecture's table, without the columns of averages."""
    table = published.lecture().table(which)
    names = [column.name for column in table.columns if not column.name.lower().endswith("avg.")]
    return [table.number(row, name) - table.number(other, name) for name in names]


def _over_best(which: str, row: str, column: str, rivals: Sequence[str]) -> float:
    """A cell of a lecture's table less the best of some rows in its column."""
    table = published.lecture().table(which)
    return table.number(row, column) - max(table.number(name, column) for name in rivals)


def _of_data() -> dict[str, Derived]:
    """Long and short data (slides 39, 40), and SFT (slide 45)."""
    table = published.lecture().table
    kinds = [row.name for row in table("long-data").rows[:-1]]
    mixes = [row.name for row in table("short-data").rows[1:-1]]
    tasks = [column.name for column in table("short").columns]
    mixed = [_over_best("short-data", "ShortMix", name, mixes) for name in tasks]
    found = {
        f"books-and-repos-{key}": Derived(
            what=f"{name} of books and repositories less that of the best of one kind, points",
            value=_over_best("long-data", "Books/Repos 1:1", name, kinds),
            n=len(kinds),
        )
        for key, name in (("long", "Avg."), ("short", "Short-context avg."))
    }
    found["shortmix-long"] = Derived(
        what="long-context average of ShortMix less that of the best other short data, points",
        value=_over_best("short-data", "ShortMix", "Long-context avg.", mixes),
        n=len(mixes),
    )
    found["shortmix-short"] = _range("five short-context tasks, ShortMix less the best other short data, points", mixed)
    found["shortmix-better"] = Derived(
        what="short-context tasks of five on which ShortMix is the best short data",
        value=float(sum(change > EPSILON for change in mixed)),
        n=len(mixed),
    )
    found["sft-1-percent"] = _range(
        "1 % synthetic data less none, six columns, points", _differences("8", "1 %", "0 %")
    )
    return found


def _of_lengths() -> dict[str, Derived]:
    """Training length (slide 43), RoPE bases (slide 46), ProLong (slide 47)."""
    table = published.lecture().table
    small = ("MegaBeam-Mistral (7B)", "Meta-Llama-3.1 (8B)", "Qwen2 (7B)", "Phi-3-small (7B)")
    found = {
        "longer-training": _range(
            "4B tokens more at 512K less 4B at 64K, four columns, points",
            _differences("length", "4B tokens more at 512K", "4B tokens more at 64K"),
        ),
        "prolong-below-10b": Derived(
            what="average of ProLong less that of the best of four other models below 10B, points",
            value=_over_best("prolong", "ProLong (8B)", "Avg.", small),
            n=len(small),
        ),
    }
    for key, which in (("64k", "18"), ("512k", "19")):
        averages = [table(which).number(row.name, "Avg.") for row in table(which).rows]
        found[f"bases-{key}"] = _spread(f"long-context average at {key} over three RoPE bases, points", averages)
    return found
