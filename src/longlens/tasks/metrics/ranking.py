"""HELMET's re-ranking: read a ranking out of an output, score it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from longlens.errors import UserError, require

_BRACKETS = str.maketrans("", "", "[]:")


def parse_ranking(text: str) -> dict[str, int]:
    """Document ids of the longest ``a > b > c`` of integers in the text, each with its score, the first the highest.

    Out of n ids the one at place i (from 0) scores n - i; a repeated id keeps its first score.

    Oddities: square brackets, colons and the letters "id" are dropped anywhere before; the longest run is that with
    the most characters, the first of equals; repeated ids count in n; where there is no integer, the one "id" is the
    whole text. Ids that the question does not have stay in the ranking.

    Source: HELMET ``utils.py``, `parse_rankings`.
    """
    plain = text.translate(_BRACKETS).lower().replace("id", "")
    runs = [match.group() for match in re.finditer(r"\d+(?:\s*>\s*\d+)*", plain)]
    ids = re.findall(r"\d+", max(runs, key=len)) if runs else [plain]
    scores: dict[str, int] = {}
    for place, document in enumerate(ids):
        scores.setdefault(document, len(ids) - place)
    return scores


def ndcg_at_k(ranking: Mapping[str, float], relevance: Mapping[str, int], k: int = 10) -> float:
    """Normalised discounted cumulative gain of the first k documents, 0 to 1, rounded to 5 digits.

    With documents by falling score, and rel = relevance, 0 for a document that has none::

        DCG = sum(rel(document at place i) / log2(i + 1) for i in 1..k)
        nDCG = DCG / (DCG of the documents by falling relevance);  0 where nothing is relevant

    The gain is linear; relevance below 0 gains nothing. Oddity: of equal scores the greater id, compared as a string,
    comes first, whatever the order in the mapping.

    Source: HELMET ``utils.py``, `calculate_retrieval_metrics`, which calls pytrec_eval (trec_eval's ``ndcg_cut``).

    Args:
        ranking: Document id -> score, as `parse_ranking` gives it.
        relevance: Document id -> whole number; ids without relevance may be left out.
        k: Places that count.

    Raises:
        UserError: No relevance, one that is no whole number, k below 1, or pytrec_eval is not installed.
    """
    if k < 1:
        raise UserError(f"k is {k}, expected at least 1 place")
    if not relevance:
        raise UserError("relevance is empty: expected a number for at least one document")
    for document, grade in relevance.items():
        if not float(grade).is_integer():
            raise UserError(f"relevance of document {document!r} is {grade}, expected a whole number")
    trec = require("pytrec_eval", extra="tasks", purpose="nDCG")
    # trec_eval gives a gain to relevance above 0 alone, and crashes on some below -1.
    grades = {_name(document): max(0, int(grade)) for document, grade in relevance.items()}
    run = {_name(document): float(score) for document, score in ranking.items()}
    result = trec.RelevanceEvaluator({"q": grades}, {f"ndcg_cut.{k}"}).evaluate({"q": run})
    return round(float(result["q"][f"ndcg_cut_{k}"]), 5)


def _name(document: object) -> str:
    """An id; half a surrogate pair, which JSON can hold and pytrec_eval crashes on, is written as an escape."""
    return str(document).encode("utf-8", "backslashreplace").decode("utf-8")
