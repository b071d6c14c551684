"""Provides HELMET's seven categories (recall, RAG, re-ranking, citations, long QA, summaries, many-shot ICL) and score.

Paper: Yen et al., HELMET: How to Evaluate Long-Context Language Models Effectively and Thoroughly, arXiv 2410.02694.
Prompts, settings and metrics: github.com/princeton-nlp/HELMET at 4526dfb, MIT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from longlens.errors import UserError
from longlens.tasks.base import Task, complete_mean
from longlens.tasks.helmet import cite, icl, longqa, rag, recall, summ

TASKS: dict[str, Callable[..., Task]] = {
    **recall.TASKS,
    **rag.TASKS,
    **cite.TASKS,
    **longqa.TASKS,
    **summ.TASKS,
    **icl.TASKS,
}
"""HELMET's tasks."""
# collect_results.py, custom_avgs and dataset_to_metrics, by our names
CATEGORIES: dict[str, tuple[tuple[str, str], ...]] = {
    "recall": (
        ("json_kv", "substring_exact_match"),
        ("helmet_niah_multikey_2", "ruler_recall"),
        ("helmet_niah_multikey_3", "ruler_recall"),
        ("helmet_niah_multivalue", "ruler_recall"),
    ),
    "rag": (
        ("helmet_nq", "substring_exact_match"),
        ("helmet_hotpotqa", "substring_exact_match"),
        ("helmet_popqa", "substring_exact_match"),
        ("helmet_triviaqa", "substring_exact_match"),
    ),
    "rerank": (("helmet_msmarco", "NDCG@10"),),
    "cite": (
        ("helmet_asqa", "str_em"),
        ("helmet_asqa", "citation_recall"),
        ("helmet_asqa", "citation_precision"),
        ("helmet_qampari", "qampari_rec_top5"),
        ("helmet_qampari", "citation_recall"),
        ("helmet_qampari", "citation_precision"),
    ),
    "longqa": (
        ("helmet_narrativeqa", "judge"),
        ("helmet_infbench_qa", "rougeL_f1"),
        ("helmet_infbench_choice", "exact_match"),
    ),
    "summ": (("helmet_infbench_sum", "judge"), ("helmet_multi_lexsum", "judge")),
    "icl": (
        ("helmet_trec_coarse", "exact_match"),
        ("helmet_trec_fine", "exact_match"),
        ("helmet_banking77", "exact_match"),
        ("helmet_clinic150", "exact_match"),
        ("helmet_nlu", "exact_match"),
    ),
}
"""The task and the metric of each number in the mean of a category."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HelmetSummary:
    """HELMET's numbers at one length, in percent.

    Attributes:
        tasks: The numbers that the benchmark reports for each task: metric -> score.
        categories: Score of each category; None if a number is missing.
        overall: The overall score; None if a category has no score.
        gaps: Missing numbers, as ``task metric``.
    """

    tasks: dict[str, dict[str, float]]
    categories: dict[str, float | None]
    overall: float | None
    gaps: tuple[str, ...]


def summarize(scores: Mapping[str, Mapping[str, float | None]], *, allow_gaps: bool = False) -> HelmetSummary:
    """Computes the category scores and the overall score, as HELMET's collect_results.py does.

    ```python
    category = mean(scores[task][metric] for task, metric in CATEGORIES[category])
    overall = mean(categories.values())
    ```

    A category is the plain mean over its numbers, not over its tasks. The two differ only for ``cite``, which has three
    numbers for each of two tasks. All numbers are percentages. HELMET converts the judge's numbers to percentages
    (GPT-4's 0 to 3 times 100 / 3 for NarrativeQA, F1 times 100 for summaries); in longlens they already are. If a
    number is missing, HELMET's code computes the mean of the others (pandas skips missing values) and prints a
    warning. Here a missing number is an error or, with ``allow_gaps``, the category has no score.

    Args:
        scores: Task -> metric -> percent, as returned by `Task.aggregate`, all at one length; None if missing.
            Tasks and metrics that are not in `CATEGORIES` are ignored.
        allow_gaps: Whether numbers may be missing.

    Raises:
        UserError: A number is missing, or is not a percentage.
    """
    tasks: dict[str, dict[str, float]] = {}
    gaps = []
    for task, metric in (number for numbers in CATEGORIES.values() for number in numbers):
        value = scores.get(task, {}).get(metric)
        if value is None:
            gaps.append(f"{task} {metric}")
        elif not 0 <= value <= 100:
            raise UserError(f"{task}: {metric} is {value}; expected a percentage, as returned by aggregate()")
        else:
            tasks.setdefault(task, {})[metric] = value
    if gaps and not allow_gaps:
        raise UserError(
            f"HELMET's score needs {', '.join(gaps)} too: score them, or pass `allow_gaps=True` to get the complete "
            "categories only"
        )
    categories = {
        name: complete_mean([tasks.get(task, {}).get(metric) for task, metric in numbers])
        for name, numbers in CATEGORIES.items()
    }
    return HelmetSummary(
        tasks=tasks, categories=categories, overall=complete_mean(list(categories.values())), gaps=tuple(gaps)
    )
