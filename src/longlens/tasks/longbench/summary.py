"""LongBench's summaries: domains and languages of v1, lengths of LongBench-E, groups of v2.

Nothing that is missing changes an average silently: it is an error, or the average is None and the gap is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longlens.errors import UserError
from longlens.tasks.base import complete_mean
from longlens.tasks.longbench.sets import CHINESE, DOMAINS, ENGLISH, PROGRAMS, SETS

NAME = "longbench_"
NAME_E = "longbench_e_"
# Paper, table 2: "code tasks are included in both languages"
PARTS_E = {"en": (ENGLISH, PROGRAMS)}
PARTS = PARTS_E | {"zh": (CHINESE, PROGRAMS), "all": (ENGLISH, CHINESE, PROGRAMS)}
"""The averages, and which sets each is over, by language."""
# eval.py, scorer_e: "if length < 4000 … elif length < 8000 … else"; words, or characters of Chinese
BUCKETS: dict[str, float] = {"0-4k": 4000, "4-8k": 8000, "8k+": float("inf")}
"""LongBench-E's buckets, and below which length of the row's data each ends."""
DIFFICULTIES = ("easy", "hard")
LENGTHS = ("short", "medium", "long")
"""v2's difficulties and lengths (paper, section 3: below 32k words, up to 128k, above)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Averages in percent; None where a set is missing.

    Attributes:
        overall: ``en``, ``zh`` and ``all``, of LongBench-E ``en`` alone -> mean of its domains' values in `domains`.
        domains: The same -> domain -> mean of its sets. Code counts in both languages.
        gaps: Tasks without a score.
    """

    overall: dict[str, float | None]
    domains: dict[str, dict[str, float | None]]
    gaps: list[str]


def bucket_of(length: int) -> str:
    """The bucket of a row, by its ``length``."""
    return next(name for name, end in BUCKETS.items() if length < end)


def percent(scores: Sequence[float]) -> float:
    """``round(100 * sum(scores) / len(scores), 2)``, as ``eval.py`` rounds the score of a set.

    Raises:
        UserError: There are none.
    """
    if not scores:
        raise UserError("no scores to sum up; give at least one")
    return round(100 * sum(scores) / len(scores), 2)


def bucket_means(metadata: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> dict[str, float | None]:
    """`percent` of each bucket's scores, None where a bucket has none (``eval.py`` says NaN).

    Args:
        metadata: Of the samples; ``bucket`` counts.
        scores: Of the same samples, from 0 to 1.

    Raises:
        UserError: Their numbers differ, or there are none.
    """
    groups = _grouped([str(row["bucket"]) for row in metadata], scores)
    return {name: percent(groups[name]) if name in groups else None for name in BUCKETS}


def summarise(scores: Mapping[str, float | None], *, allow_gaps: bool = False) -> Summary:
    """LongBench's averages: domains are means of sets, languages means of domains, so that each domain weighs alike.

    Paper (Bai et al., arXiv 2308.14508), table 2: the macro-average over the task categories, for English, Chinese and
    all sets.

    Args:
        scores: Task, as ``longbench_hotpotqa`` -> score in percent; None is a gap.
        allow_gaps: Whether sets may be missing; the averages that they belong to are None then.

    Raises:
        UserError: A set is missing, or a name is no task of LongBench v1.
    """
    return _summary(scores, {NAME + name: name for name in SETS}, PARTS, allow_gaps)


def summarise_e(scores: Mapping[str, Mapping[str, float | None]], *, allow_gaps: bool = False) -> dict[str, Summary]:
    """LongBench-E's averages, as `summarise` has them, for each of `BUCKETS`; all of its sets are English or code.

    Args:
        scores: Task, as ``longbench_e_hotpotqa`` -> bucket -> score in percent, as from `bucket_means`.
        allow_gaps: Whether sets, or buckets of sets, may be missing.

    Raises:
        UserError: A set or a bucket is missing, or a name is no task of LongBench-E.
    """
    sets = {NAME_E + name: name for name, facts in SETS.items() if facts.samples_e}
    return {
        bucket: _summary(
            {task: row.get(bucket) for task, row in scores.items()}, sets, PARTS_E, allow_gaps, f" in bucket {bucket}"
        )
        for bucket in BUCKETS
    }


def summarise_v2(metadata: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> dict[str, float | None]:
    """v2's accuracies in percent: ``overall``, each of `DIFFICULTIES` and `LENGTHS`; None where there is no sample.

    ``round(100 * sum(scores) / len(scores), 1)`` of each group. Source: ``result.py``.

    Args:
        metadata: Of the samples; ``difficulty`` and ``length_label`` count.
        scores: Of the same samples: their ``accuracy``, or their ``compensated``, which is upstream's option.

    Raises:
        UserError: Their numbers differ, or there are none.
    """
    groups = {
        "overall": list(scores),
        **_grouped([str(row["difficulty"]) for row in metadata], scores),
        **_grouped([str(row["length_label"]) for row in metadata], scores),
    }
    return {
        name: round(100 * sum(groups[name]) / len(groups[name]), 1) if name in groups else None
        for name in ("overall", *DIFFICULTIES, *LENGTHS)
    }


def _grouped(names: Sequence[str], scores: Sequence[float]) -> dict[str, list[float]]:
    if len(names) != len(scores) or not scores:
        raise UserError(f"{len(names)} samples and {len(scores)} scores; expected as many of each, at least one")
    groups: dict[str, list[float]] = {}
    for name, score in zip(names, scores, strict=True):
        groups.setdefault(name, []).append(score)
    return groups


def _summary(
    scores: Mapping[str, float | None],
    sets: Mapping[str, str],
    parts: Mapping[str, tuple[str, ...]],
    allow_gaps: bool,
    where: str = "",
) -> Summary:
    unknown = [task for task in scores if task not in sets]
    if unknown:
        raise UserError(f"no sets {', '.join(unknown)}; expected {', '.join(sets)}")
    gaps = [task for task in sets if scores.get(task) is None]
    if gaps and not allow_gaps:
        raise UserError(
            f"no score of {', '.join(gaps)}{where}: an average without them is not LongBench's; run them, or pass "
            "allow_gaps=True for the averages that do not need them"
        )
    domains = {}
    for part, languages in parts.items():
        inside = {task: SETS[name] for task, name in sets.items() if SETS[name].language in languages}
        domains[part] = {
            domain: complete_mean(scores.get(task) for task, facts in inside.items() if facts.domain == domain)
            for domain in DOMAINS
        }
    return Summary(
        overall={part: complete_mean(row.values()) for part, row in domains.items()}, domains=domains, gaps=gaps
    )
