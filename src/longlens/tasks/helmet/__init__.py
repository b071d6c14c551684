"""HELMET's seven categories: recall, RAG, re-ranking, citations, long questions, summaries, many-shot ICL; its score.

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
"""The task and the metric of each number that goes into a category."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HelmetSummary:
    """HELMET's numbers at one length, in percent.

    Attributes:
        tasks: What the benchmark reports of each task: metric -> score.
        categories: Score of each category; None if a number is missing.
        overall: The score; None if a category has none.
        gaps: What is missing, as ``task metric``.
    """

    tasks: dict[str, dict[str, float]]
    categories: dict[str, float | None]
    overall: float | None
    gaps: tuple[str, ...]


def summarize(scores: Mapping[str, Mapping[str, float | None]], *, allow_gaps: bool = False) -> HelmetSummary:
    """Categories and the overall score, as HELMET's collect_results.py forms them.

    ```python
    category = mean(scores[task][metric] for task, metric in CATEGORIES[category])
    overall = mean(categories.values())
    ```

    A category is thus the plain mean over its numbers, not over its tasks, which is another thing for ``cite`` alone:
    three numbers of each of two tasks. All are percentages; HELMET makes them so of the judge's (GPT-4's 0 to 3 times
    100 / 3 for NarrativeQA, F1 times 100 for summaries), ours are already. Where a number is missing, HELMET's code
    takes the mean of the others (pandas skips what is not there) and prints a warning; here that is an error, or, with
    ``allow_gaps``, no number.

    Args:
        scores: Task -> metric -> percent, as `Task.aggregate` gives it, all at one length; None if there is none.
            Other tasks and metrics than those of `CATEGORIES` do not count.
        allow_gaps: Whether numbers may be missing.

    Raises:
        UserError: One is missing, or is no percentage.
    """
    tasks: dict[str, dict[str, float]] = {}
    gaps = []
    for task, metric in (number for numbers in CATEGORIES.values() for number in numbers):
        value = scores.get(task, {}).get(metric)
        if value is None:
            gaps.append(f"{task} {metric}")
        elif not 0 <= value <= 100:
            raise UserError(f"{task}: {metric} is {value}; expected a percentage, as aggregate() gives it")
        else:
            tasks.setdefault(task, {})[metric] = value
    if gaps and not allow_gaps:
        raise UserError(
            f"HELMET's score needs {', '.join(gaps)} too: score them, or pass `allow_gaps=True` to have the categories "
            "that are complete"
        )
    categories = {
        name: complete_mean([tasks.get(task, {}).get(metric) for task, metric in numbers])
        for name, numbers in CATEGORIES.items()
    }
    return HelmetSummary(
        tasks=tasks, categories=categories, overall=complete_mean(list(categories.values())), gaps=tuple(gaps)
    )
