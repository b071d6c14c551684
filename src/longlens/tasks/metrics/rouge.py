"""Computes ROUGE-L in the two variants of long-context benchmarks, which are different measures."""

from __future__ import annotations

import math
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from longlens.errors import LonglensWarning, require
from longlens.tasks.metrics.answers import of_variant

# LongBench's ``rouge`` backtracks through its table by recursion, under Python's limit of 1000 frames, of which
# ``eval.py`` and the package have used ten by then.
MAX_STEPS = 990


@lru_cache(maxsize=4)
def _scorer(*kinds: str, stems: bool) -> Any:
    module = require("rouge_score.rouge_scorer", extra="tasks", purpose="ROUGE")
    return module.RougeScorer(list(kinds), use_stemmer=stems)


def _rouge_score(prediction: str, reference: str) -> float:
    return float(_scorer("rougeL", stems=True).score(target=reference, prediction=prediction)["rougeL"].fmeasure)


def rouge_f(prediction: str, references: Sequence[str], *kinds: str) -> dict[str, float]:
    """F-measures of several kinds of ROUGE without stemming, each the best over the references, 0 to 1.

    ``{kind: max(RougeScorer([kind], use_stemmer=False).score(reference, prediction)[kind].fmeasure …)}`` of the package
    rouge-score. Source: `compute_rouge` under `max` of SCROLLS', ZeroSCROLLS' and L-Eval's metrics; and
    ``evaluate.load("rouge")`` of InfiniteBench.

    Args:
        prediction: The model's output.
        references: The right texts.
        kinds: ``rouge1``, ``rouge2``, ``rougeL``, ``rougeLsum`` (whose sentences end at line ends).

    Raises:
        UserError: rouge-score is not installed.
    """
    found = _scorer(*kinds, stems=False).score_multi(list(references), prediction)
    return {kind: float(found[kind].fmeasure) for kind in kinds}


def _sentences(text: str) -> list[list[str]]:
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _common_words(reference: list[str], prediction: list[str], max_steps: int) -> set[str] | None:
    """Words of one longest common subsequence; None if backtracking takes more than `max_steps` steps."""
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
    """`rouge_l` in the variant ``longbench``, for code that fails above another number of steps."""
    precision, recall = _union_l(prediction, reference, max_steps)
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def _union_l(prediction: str, reference: str, max_steps: int) -> tuple[float, float]:
    """Precision and recall of ROUGE-L as computed by the package rouge."""
    given, wanted = _sentences(prediction), _sentences(reference)
    if not given or not wanted:
        return 0.0, 0.0
    union: set[str] = set()
    for reference_words in wanted:
        for words in given:
            common = _common_words(reference_words, words, max_steps)
            if common is None:
                warnings.warn(
                    "LongBench's ROUGE-L of a pair of sentences is 0 because they are too long: its code fails above "
                    f"{max_steps} steps and scores that as 0, and so does longlens",
                    LonglensWarning,
                    stacklevel=4,
                )
                return 0.0, 0.0
            union |= common
    precision = len(union) / len({word for words in given for word in words})
    recall = len(union) / len({word for words in wanted for word in words})
    return precision, recall


def rouge_recall(prediction: str, reference: str) -> dict[str, float]:
    """Recall of ROUGE-1, 2 and L as computed by the package rouge 1.0.1, 0 to 1: ``rouge_1``, ``rouge_2``, ``rouge_l``.

    Words are separated by whitespace after full stops are removed; each distinct n-gram counts once, including those
    across the ends of sentences; ROUGE-L is the recall of `rouge_l` for ``longbench``. Oddities: case and commas count;
    a text of fewer than n words has no n-gram, and scores 0.

    Source: LooGLE ``Evaluation/automatic_metrics.py``, `get_rouge_score` with its ``metric="r"``.
    """
    given, wanted = ([word for words in _sentences(text) for word in words] for text in (prediction, reference))
    found = {f"rouge_{n}": _ngram_recall(given, wanted, n) for n in (1, 2)}
    return found | {"rouge_l": _union_l(prediction, reference, max_steps=sys.maxsize)[1]}


def _ngram_recall(given: Sequence[str], wanted: Sequence[str], n: int) -> float:
    have, want = ({tuple(words[at : at + n]) for at in range(len(words) - n + 1)} for words in (given, wanted))
    return len(have & want) / len(want) if want else 0.0


def bleu(prediction: str, reference: str, n: int) -> float:
    """Precision of n-grams of one order, times BLEU's brevity penalty, 0 to 1; words are separated by whitespace.

    With c the clipped count of n-grams and h, r the number of words of prediction and reference::

        c / max(1, h - n + 1) * (1 if h > r else exp(1 - r / h)), 0 for an empty prediction

    Source: LooGLE ``Evaluation/automatic_metrics.py``, `get_bleu_score`: NLTK's `sentence_bleu` with all weight on n.
    """
    given, wanted = prediction.split(), reference.split()
    have, want = (Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1)) for words in (given, wanted))
    if not given:
        return 0.0
    penalty = 1.0 if len(given) > len(wanted) else math.exp(1 - len(wanted) / len(given))
    return (have & want).total() / max(1, len(given) - n + 1) * penalty


_ROUGE: dict[str, Callable[[str, str], float]] = {"rouge_score": _rouge_score, "longbench": longbench_rouge_l}


def rouge_l(prediction: str, reference: str, variant: str = "rouge_score") -> float:
    """F of the longest common subsequence of words, 0 to 1.

    ``rouge_score`` (HELMET): words are matches of ``[a-z0-9]+`` in lower case; those longer than 3 letters are stemmed
    by Porter's rules. With L the length of their longest common subsequence,
    F = 2 P R / (P + R), P = L / words of the prediction, R = L / words of the reference.
    Oddity: other scripts have no words and score 0. Source: HELMET ``utils.py``, `calculate_metrics`: the package
    rouge-score's `RougeScorer(["rougeL"], use_stemmer=True)`; HELMET uses the best over the references.

    ``longbench``: each text is split at every ``.``; U is the set of distinct words in the longest common
    subsequences of all pairs of a reference's and a prediction's sentence; F = 2 P R / (P + R + 1e-8), P = |U| /
    distinct words of the prediction, R = |U| / those of the reference. Oddities: equal texts score 0.999999995; "3.5"
    is split too; case and commas count; text that is empty or has only full stops scores 0. A pair of sentences also
    scores 0, with a warning, if backtracking through its table takes more than 990 steps (about 700 words without a
    full stop), where the code reaches Python's recursion limit and LongBench turns every failure into 0. Source:
    LongBench ``LongBench/metrics.py``, `rouge_score`, with the package rouge 1.0.1, whose limit of 1000 frames is
    counted here as in ``eval.py``, independent of the caller's own stack.

    Time and memory grow with the product of the words, in Python: 1,200 by 1,200 words take about half a second.

    Args:
        prediction: The model's output.
        reference: The right text.
        variant: ``rouge_score`` or ``longbench``.

    Raises:
        UserError: The variant does not exist, or rouge-score is not installed.

    Warns:
        LonglensWarning: ``longbench`` scored a pair of sentences 0 because of its length.
    """
    return of_variant(variant, _ROUGE)(prediction, reference)
