"""Compares a short answer with the right ones, as HELMET and LongBench do, and parses numbers for LongEval."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from longlens.errors import UserError

Answers = str | Sequence[str] | Sequence[Sequence[str]]
"""The right answers to one question: one, several, or several groups; any of them counts as right."""

MAX_DIGITS = 4300
"""Maximum number of digits that Python converts to an integer by default (``default_max_str_digits``)."""
Score = TypeVar("Score")

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(a|an|the)\b")
_CLOSED = frozenset({"yes", "no", "noanswer"})


def normalize_answer(text: str) -> str:
    """Lowercases, removes ASCII punctuation, removes the words a, an, the, and collapses whitespace.

    Oddities: punctuation is removed first and leaves no space, so ``"the-end"`` becomes the one word ``theend`` with
    its article; non-ASCII punctuation is kept.

    Source: `normalize_answer` of HELMET's ``utils.py`` and of LongBench's ``metrics.py``, which are the same.
    """
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def flat_answers(answers: Answers) -> list[str]:
    """The answers as one flat list, without groups.

    Raises:
        UserError: The list is empty.
    """
    if isinstance(answers, str):
        return [answers]
    flat = [text for answer in answers for text in ([answer] if isinstance(answer, str) else answer)]
    if not flat:
        raise UserError(f"answers are {answers!r}: expected at least one right answer")
    return flat


def exact_match(prediction: str, answers: Answers) -> float:
    """``max(normalize_answer(prediction) == normalize_answer(answer) for answer in answers)``, 0.0 or 1.0.

    Source: HELMET ``utils.py``, `drqa_exact_match_score` under `drqa_metric_max_over_ground_truths`.

    Raises:
        UserError: The list of answers is empty.
    """
    given = normalize_answer(prediction)
    return float(any(normalize_answer(answer) == given for answer in flat_answers(answers)))


def substring_exact_match(prediction: str, answers: Answers) -> float:
    """``max(normalize_answer(answer) in normalize_answer(prediction) for answer in answers)``, 0.0 or 1.0.

    Oddities: word boundaries are ignored (``"art"`` is in ``"party"``), and an answer of only punctuation and articles
    is in every prediction.

    Source: HELMET ``utils.py``, `substring_exact_match_score` under `drqa_metric_max_over_ground_truths`.

    Raises:
        UserError: The list of answers is empty.
    """
    given = normalize_answer(prediction)
    return float(any(normalize_answer(answer) in given for answer in flat_answers(answers)))


def of_variant(variant: str, variants: Mapping[str, Score]) -> Score:
    """``variants[variant]``, for metrics whose definition differs between benchmarks.

    Raises:
        UserError: The variant does not exist.
    """
    if variant not in variants:
        raise UserError(f"no variant {variant!r}: expected one of {', '.join(variants)}")
    return variants[variant]


def words_f1(given: Sequence[str], wanted: Sequence[str]) -> float:
    """The formula of `token_f1`."""
    common = (Counter(given) & Counter(wanted)).total()
    if not common:
        return 0.0
    precision, recall = common / len(given), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def _longbench_f1(prediction: str, answer: str) -> float:
    return words_f1(normalize_answer(prediction).split(), normalize_answer(answer).split())


def _helmet_f1(prediction: str, answer: str) -> float:
    given, wanted = normalize_answer(prediction), normalize_answer(answer)
    if given != wanted and (given in _CLOSED or wanted in _CLOSED):
        return 0.0
    return _longbench_f1(prediction, answer)


_F1: dict[str, Callable[[str, str], float]] = {"helmet": _helmet_f1, "longbench": _longbench_f1}


def token_f1(prediction: str, answers: Answers, variant: str = "helmet") -> float:
    r"""F1 of the words that prediction and answer share, best over the answers, 0 to 1.

    With words those of `normalize_answer`, each counted as often as it occurs::

        common = sum((Counter(given) & Counter(wanted)).values())
        F1 = 2 P R / (P + R),  P = common / len(given),  R = common / len(wanted);  0 if no word is shared

    Oddities: two empty texts score 0. ``helmet`` returns 0 if one text is just ``yes``, ``no`` or ``noanswer`` and the
    other text differs; ``longbench`` has no such rule.

    Source: HELMET ``utils.py``, `f1_score`; LongBench ``metrics.py``, `qa_f1_score`. For triviaqa LongBench compares
    the prediction's first line only: ``prediction.lstrip("\n").split("\n")[0]``.

    Args:
        prediction: The model's output.
        answers: The right answers.
        variant: ``helmet`` or ``longbench``.

    Raises:
        UserError: The list of answers is empty, or the variant does not exist.
    """
    score = of_variant(variant, _F1)
    return max(score(prediction, answer) for answer in flat_answers(answers))


def parse_output(text: str, prefix: str = "Answer:") -> str:
    """The rest of the line after the first `prefix`, else the first line; stripped.

    If that rest begins with the prefix again, as in many answers of chat models, the second prefix is removed too. The
    prefix is matched ignoring case.

    Oddities: `prefix` is searched as a regular expression and removed as plain text; a prefix at the end of a line
    returns the empty string although the answer may follow on the next line; the first line counts even if it is empty.

    Source: HELMET ``utils.py``, `parse_output`. HELMET scores the whole output and the parsed one and keeps the better.

    Raises:
        UserError: The prefix is not a regular expression.
    """
    try:
        found = re.search(f"(?:{prefix})(.*)", text, flags=re.IGNORECASE)
    except re.error as error:
        raise UserError(f"prefix {prefix!r} is not a regular expression ({error}): escape it with re.escape") from error
    line = (found[1] if found else text.partition("\n")[0]).strip()
    if re.match(re.escape(prefix), line, flags=re.IGNORECASE):
        line = line[len(prefix) :]
    return line.strip()


def integer(digits: str) -> int | None:
    """``int(digits)``, or None for more digits than Python converts, which no benchmark has."""
    return int(digits) if len(digits) <= MAX_DIGITS else None


def last_integer(text: str) -> int | None:
    r"""``int(re.findall(r"\d+", text)[-1])``, None if there is no digit (LongEval says -1, equally wrong).

    Oddities: the last number counts even if it is not the answer (``"<2416> (line 7)"`` is 7); signs, decimal
    points and commas separate numbers (``"12,345"`` is 345, ``"1.5"`` is 5); digits of any script are digits.

    Source: LongChat ``longeval/utils.py``, `test_lines_one_sample`. A number of more than 4300 digits, at which that
    code fails, is None here.
    """
    numbers = re.findall(r"\d+", text)
    return integer(numbers[-1]) if numbers else None


def last_integer_with_commas(text: str) -> int | None:
    """`last_integer`, but commas between groups of three digits are part of the number: ``"12,345"`` is 12345."""
    numbers = re.findall(r"(?<!\d)\d{1,3}(?:,\d{3})+(?!\d)|\d+", text)
    return integer(numbers[-1].replace(",", "")) if numbers else None
