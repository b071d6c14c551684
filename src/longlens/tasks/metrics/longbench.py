"""Computes LongBench v1's scores for counting, retrieval, code and classification, and parses v2's choices."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from longlens.errors import UserError


def _share_of_numbers(prediction: str, wanted: str) -> float:
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(wanted) / len(numbers) if numbers else 0.0


def _paragraph(answer: str, name: str) -> str:
    found = re.search(rf"{name}(\d+)", answer)
    if found is None:
        raise UserError(f"answer {answer!r} contains no paragraph: expected '{name}N'")
    return found[1]


def count_score(prediction: str, answer: str | int) -> float:
    r"""Fraction of the prediction's numbers (``\d+``) that equal the answer, 0 to 1; 0 without a number.

    Oddity: numbers are compared as strings, so ``"05"`` is not ``"5"``.

    Source: LongBench ``LongBench/metrics.py``, `count_score` (passage_count).
    """
    return _share_of_numbers(prediction, str(answer))


def retrieval_score(prediction: str, answer: str) -> float:
    r"""Fraction of the prediction's numbers (``\d+``) that equal the answer's paragraph, 0 to 1; 0 without a number.

    Source: LongBench ``LongBench/metrics.py``, `retrieval_score` (passage_retrieval_en).

    Args:
        prediction: The model's output.
        answer: Contains ``Paragraph N``; the first such N is used.

    Raises:
        UserError: The answer contains no paragraph.
    """
    return _share_of_numbers(prediction, _paragraph(answer, "Paragraph "))


def retrieval_score_zh(prediction: str, answer: str) -> float:
    """`retrieval_score`, for an answer that contains ``段落N``.

    Source: LongBench ``LongBench/metrics.py``, `retrieval_zh_score` (passage_retrieval_zh).

    Raises:
        UserError: The answer contains no paragraph.
    """
    return _share_of_numbers(prediction, _paragraph(answer, "段落"))


def code_similarity(prediction: str, answer: str) -> float:
    """Similarity of the prediction's first line of code and the answer, 0 to 1 in steps of 0.01.

    ``round(100 * difflib.SequenceMatcher(None, line, answer).ratio()) / 100``, where line is the prediction's first
    line without a backtick, ``#`` or ``//`` (after stripping leading line breaks), or empty if there is none.

    Oddities: two empty texts are equal, 1; the whole answer is compared, although it may have several lines; and
    difflib ignores characters that are frequent in an answer of 200 characters or more. LongBench calls fuzzywuzzy's
    ``ratio``, which is this formula unless python-Levenshtein is also installed. LongBench's requirements do not
    include it, and with it the values differ.

    Source: LongBench ``LongBench/metrics.py``, `code_sim_score` (lcc, repobench-p).
    """
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    if line == answer:
        return 1.0
    if not line or not answer:
        return 0.0
    return round(100 * SequenceMatcher(None, line, answer).ratio()) / 100


def classification_score(prediction: str, answer: str, classes: Sequence[str]) -> float:
    r"""One over the number of classes that occur in the prediction, if the answer is one of them; else 0.

    A class that is a proper part of the answer's name, such as "animal" of "animal cell", is removed from the classes
    found. Oddity: LongBench removes such classes from the list over which it iterates, so that the class after each
    removed one is skipped and may stay.

    Source: LongBench ``LongBench/metrics.py``, `classification_score` (trec, lsht). LongBench passes only the
    prediction's first line only: ``prediction.lstrip("\n").split("\n")[0]``.

    Args:
        prediction: The model's output.
        answer: The right class.
        classes: All classes.
    """
    named = [name for name in classes if name in prediction]
    position = 0
    while position < len(named):
        if named[position] in answer and named[position] != answer:
            named.remove(named[position])
        position += 1  # also after a removal: the oddity
    return 1.0 / len(named) if answer in named else 0.0


def extract_choice(text: str) -> str | None:
    """The letter A to D of the first ``The correct answer is (X)``, else of the first without brackets, else None.

    Asterisks are removed first. Oddities: case matters; without brackets the letter may begin a word
    (``"The correct answer is Berlin"`` is B); the first statement counts instead of the last.

    Source: LongBench ``pred.py`` (v2), `extract_answer`.
    """
    plain = text.replace("*", "")
    statement = r"The correct answer is "
    found = re.search(statement + r"\(([A-D])\)", plain) or re.search(statement + "([A-D])", plain)
    return found[1] if found else None
