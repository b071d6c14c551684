"""HELMET's seven categories: recall, RAG, re-ranking, citations, long questions, summaries, many-shot ICL.

Paper: Yen et al., HELMET: How to Evaluate Long-Context Language Models Effectively and Thoroughly, arXiv 2410.02694.
Prompts, settings and metrics: github.com/princeton-nlp/HELMET at 4526dfb, MIT. `longlens.tasks.json_kv` is its fourth
recall task.
"""

from __future__ import annotations

from collections.abc import Callable

from longlens.tasks.base import Task
from longlens.tasks.helmet import cite, icl, longqa, rag, recall, summ
from longlens.tasks.helmet.rerank import Rerank
from longlens.tasks.helmet.summary import CATEGORIES as CATEGORIES
from longlens.tasks.helmet.summary import Summary as Summary
from longlens.tasks.helmet.summary import summarise as summarise

TASKS: dict[str, Callable[..., Task]] = {
    **recall.TASKS,
    **rag.TASKS,
    "helmet_msmarco": Rerank,
    **cite.TASKS,
    **longqa.TASKS,
    **summ.TASKS,
    **icl.TASKS,
}
"""HELMET's tasks without ``json_kv``."""
