"""How LongBench v1 compares a prediction with one answer: its ``dataset2metric``, as metrics with a name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Metric(NamedTuple):
    """A metric.

    Attributes:
        name: Key of a sample's score.
        score: Prediction, answer and the classes (empty where there are none) -> 0 to 1.
    """

    name: str
    score: Callable[[str, str, Sequence[str]], float]


def _qa_f1(prediction: str, answer: str, classes: Sequence[str]) -> float:
    from longlens.tasks import metrics

    return metrics.token_f1(prediction, answer, variant="longbench")


def _qa_f1_zh(prediction: str, answer: str, classes: Sequence[str]) -> float:
    from longlens.tasks import metrics

    return metrics.token_f1_zh(prediction, answer)


def _rouge_l(prediction: str, answer: str, classes: Sequence[str]) -> float:
    from longlens.tasks import metrics

    return metrics.rouge_l(prediction, answer, variant="longbench")


def _rouge_l_zh(prediction: str, answer: str, classes: Sequence[str]) -> float:
    from longlens.tasks import metrics

    return metrics.rouge_l_zh(prediction, answer)


def _classification(prediction: str, answer: str, classes: Sequence[str]) -> float:
    from longlens.tasks import metrics

    return metrics.classification_score(prediction, answer, classes)


def _retrieval(prediction: str, answer: str, classes: Sequence[str]) -> float:
    from longlens.tasks import metrics

    return metrics.retrieval_score(prediction, answer)


def _retrieval_zh(prediction: str, answer: str, classes: Sequence[str]) -> float:
    from longlens.tasks import metrics

    return metrics.retrieval_score_zh(prediction, answer)


def _count(prediction: str, answer: str, classes: Sequence[str]) -> float:
    from longlens.tasks import metrics

    return metrics.count_score(prediction, answer)


def _code_similarity(prediction: str, answer: str, classes: Sequence[str]) -> float:
    from longlens.tasks import metrics

    return metrics.code_similarity(prediction, answer)


QA_F1 = Metric("qa_f1", _qa_f1)
QA_F1_ZH = Metric("qa_f1_zh", _qa_f1_zh)
ROUGE_L = Metric("rouge_l", _rouge_l)
ROUGE_L_ZH = Metric("rouge_l_zh", _rouge_l_zh)
CLASSIFICATION = Metric("classification", _classification)
RETRIEVAL = Metric("retrieval", _retrieval)
RETRIEVAL_ZH = Metric("retrieval_zh", _retrieval_zh)
COUNT = Metric("count", _count)
CODE_SIMILARITY = Metric("code_similarity", _code_similarity)
