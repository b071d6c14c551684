"""ROUGE-L in the two forms that long-context benchmarks use, which are not the same measure."""

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

# LongBench's ``rouge`` walks back through its table by recursion, under Python's limit of 1000 frames, ten of which
# ``eval.py`` and the package have used by then.
MAX_STEPS = 990


@lru_cache(maxsize=4)
def _scorer(*kinds: str, stems: bool) -> Any:
    module = require("rouge_score.rouge_scorer", extra="tasks", purpose="ROUGE")
    return module.RougeScorer(list(kinds), use_stemmer=stems)


def _rouge_score(prediction: str, reference: str) -> float:
    return float(_scorer("rougeL", stems=True).score(target=reference, prediction=prediction)["rougeL"].fmeasure)


def rouge_f(prediction: str, references: Sequence[str], *kinds: str) -> dict[str, float]:
    """F of kinds of ROUGE without stemming, each the best over the references, 0 to 1.

    ``{kind: max(RougeScorer([kind], use_stemmer=False).score(reference, prediction)[kind].fmeasure …)}`` of the package
    rouge-score. Source: `compute_rouge` under `max` of SCROLLS', ZeroSCROLLS' and L-Eval's metrics; and
    ``evaluate.load("rouge")`` of InfiniteBench.

    Args:
        prediction: What the model said.
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
    """Words of one longest common subsequence; None if the way back through the table is over `max_steps` long."""
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
    precision, recall = _union_l(prediction, reference, max_steps)
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def _union_l(prediction: str, reference: str, max_steps: int) -> tuple[float, float]:
    """Precision and recall of ROUGE-L as the package rouge has it."""
    given, wanted = _sentences(prediction), _sentences(reference)
    if not given or not wanted:
        return 0.0, 0.0
    union: set[str] = set()
    for reference_words in wanted:
        for words in given:
            common = _common_words(reference_words, words, max_steps)
            if common is None:
                warnings.warn(
                    "LongBench's ROUGE-L gives 0 to a pair of sentences that is too long for it: its code fails above "
                    f"{max_steps} steps and counts that as 0, and so it is counted here",
                    LonglensWarning,
                    stacklevel=4,
                )
                return 0.0, 0.0
            union |= common
    precision = len(union) / len({word for words in given for word in words})
    recall = len(union) / len({word for words in wanted for word in words})
    return precision, recall


def rouge_recall(prediction: str, reference: str) -> dict[str, float]:
    """Recall of ROUGE-1, 2 and L as the package rouge 1.0.1 has it, 0 to 1: ``rouge_1``, ``rouge_2``, ``rouge_l``.

    Words are those between blanks, full stops taken away; each different n-gram counts once, over the ends of
    sentences too; ROUGE-L is the recall of `rouge_l` for ``longbench``. Oddities: letter case and commas count; a text
    of less than n words has no n-gram, and scores 0.

    Source: LooGLE ``Evaluation/automatic_metrics.py``, `get_rouge_score` with its ``metric="r"``.
    """
    given, wanted = ([word for words in _sentences(text) for word in words] for text in (prediction, reference))
    found = {f"rouge_{n}": _ngram_recall(given, wanted, n) for n in (1, 2)}
    return found | {"rouge_l": _union_l(prediction, reference, max_steps=sys.maxsize)[1]}


def _ngram_recall(given: Sequence[str], wanted: Sequence[str], n: int) -> float:
    have, want = ({tuple(words[at : at + n]) for at in range(len(words) - n + 1)} for words in (given, wanted))
    return len(have & want) / len(want) if want else 0.0


def bleu(prediction: str, reference: str, n: int) -> float:
    """Precision of n-grams alone, times BLEU's brevity penalty, 0 to 1; words are those between blanks.

    With c the clipped count of n-grams and h, r the words of prediction and reference::

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

    ``rouge_score`` (HELMET): words are runs of ``[a-z0-9]`` in lower case, stemmed by Porter's rules where longer than
    3 letters; with L the length of their longest common subsequence,
    F = 2 P R / (P + R), P = L / words of the prediction, R = L / words of the reference.
    Oddity: other scripts have no words and score 0. Source: HELMET ``utils.py``, `calculate_metrics`: the package
    rouge-score's `RougeScorer(["rougeL"], use_stemmer=True)`; HELMET takes the best over the references.

    ``longbench``: each text is truncated at every ``.``; U is the set of different words in the longest common
    subsequences of all pairs of a reference's and a prediction's sentence; F = 2 P R / (P + R + 1e-8), P = |U| /
    different words of the prediction, R = |U| / those of the reference. Oddities: equal texts score 0.999999995; "3.5"
    is truncated too; letter case and commas count; text that is empty or has only full stops scores 0; so does a pair
    of sentences whose table takes more than 990 steps back (some 700 words without a full stop), where the code fails
    on Python's recursion limit and LongBench turns every failure into 0: a warning tells. Source: LongBench
    ``LongBench/metrics.py``, `rouge_score`, with the package rouge 1.0.1, whose limit of 1000 frames is counted here as
    ``eval.py`` meets it, not as the caller's own stack would.

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
    return of_variant(variant, _ROUGE)(prediction, reference)
