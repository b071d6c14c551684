"""ROUGE-L in the two forms that long-context benchmarks use, which are not the same measure."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from longlens.errors import LonglensWarning, require
from longlens.tasks.metrics.variants import chosen

# LongBench's ``rouge`` walks back through its table by recursion, under Python's limit of 1000 frames, ten of which
# ``eval.py`` and the package have used by then.
MAX_STEPS = 990


@lru_cache(maxsize=1)
def _scorer() -> Any:
    module = require("rouge_score.rouge_scorer", extra="tasks", purpose="ROUGE-L")
    return module.RougeScorer(["rougeL"], use_stemmer=True)


def _rouge_score(prediction: str, reference: str) -> float:
    return float(_scorer().score(target=reference, prediction=prediction)["rougeL"].fmeasure)


def _sentences(text: str) -> list[list[str]]:
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _common_words(reference: list[str], prediction: list[str], max_steps: int) -> set[str] | None:
    """Words of one longest common subsequence; None where the way back through the table is over `max_steps` long."""
    if min(len(reference), len(prediction)) > max_steps:
        return None
    lengths = [[0] * (len(prediction) + 1)]
    for word in reference:
        above, row = lengths[-1], [0]
        for column, other in enumerate(prediction):
            row.append(above[column] + 1 if word == other else max(above[column + 1], row[column]))
        lengths.append(row)
    common: set[str] = set()
    i, j, steps = len(reference), len(prediction), 0
    while i and j:
        if reference[i - 1] == prediction[j - 1]:
            common.add(reference[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
        steps += 1
    return common if steps <= max_steps else None


def longbench_rouge_l(prediction: str, reference: str, max_steps: int = MAX_STEPS) -> float:
    """`rouge_l` in the variant ``longbench``, whose code may fail above another number of steps."""
    given, wanted = _sentences(prediction), _sentences(reference)
    if not given or not wanted:
        return 0.0
    union: set[str] = set()
    for reference_words in wanted:
        for words in given:
            common = _common_words(reference_words, words, max_steps)
            if common is None:
                warnings.warn(
                    f"LongBench's ROUGE-L gives 0 to a sentence of {max(len(words), len(reference_words))} words: "
                    f"its code fails above {max_steps} steps and counts that as 0, and so it is counted here",
                    LonglensWarning,
                    stacklevel=3,
                )
                return 0.0
            union |= common
    precision = len(union) / len({word for words in given for word in words})
    recall = len(union) / len({word for words in wanted for word in words})
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


_ROUGE: dict[str, Callable[[str, str], float]] = {"rouge_score": _rouge_score, "longbench": longbench_rouge_l}


def rouge_l(prediction: str, reference: str, variant: str = "rouge_score") -> float:
    """F of the longest common subsequence of words, 0 to 1.

    ``rouge_score`` (HELMET): words are runs of ``[a-z0-9]`` in lower case, stemmed by Porter's rules where longer than
    3 letters; with L the length of their longest common subsequence,
    F = 2 P R / (P + R), P = L / words of the prediction, R = L / words of the reference.
    Oddity: other scripts have no words and score 0. Source: HELMET ``utils.py``, `calculate_metrics`: the package
    rouge-score's `RougeScorer(["rougeL"], use_stemmer=True)`; HELMET takes the best over the references.

    ``longbench``: each text is cut at every ``.``; U is the set of different words in the longest common subsequences
    of all pairs of a reference's and a prediction's sentence;
    F = 2 P R / (P + R + 1e-8), P = |U| / different words of the prediction, R = |U| / those of the reference.
    Oddities: equal texts score 0.999999995; "3.5" is cut too; letter case and commas count; text that is empty or has
    only full stops scores 0; so does a pair of sentences whose table takes more than 990 steps back (some 700 words
    without a full stop), where the code fails on Python's recursion limit and LongBench turns every failure into 0:
    a warning tells. Source: LongBench ``LongBench/metrics.py``, `rouge_score`, with the package rouge 1.0.1, whose
    limit of 1000 frames is counted here as ``eval.py`` meets it, not as the caller's own stack would.

    Time and memory grow with the product of the words, in Python: 1,200 by 1,200 words take about half a second.

    Args:
        prediction: What the model said.
        reference: The right text.
        variant: ``rouge_score`` or ``longbench``.

    Raises:
        UserError: No such variant, or rouge-score is not installed.

    Warns:
        LonglensWarning: ``longbench`` counted a pair as 0 for its length.
    """
    return chosen(variant, _ROUGE)(prediction, reference)
