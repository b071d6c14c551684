"""Synthetic long questions: a passage of a long document, a question on it by a language model, and the document again.

The recipe of the lecture ("How to do supervised fine-tuning"): "Sample a long document from the pre-training corpus.
Sample a short paragraph from the document. Prompt an existing LM (can be short-context) to generate a QA pair.
Concatenate the original document and the QA pair."

Everything here is a function of texts and integers; models are run behind `Generator`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from longlens.data.conversation import Span
from longlens.errors import UserError
from longlens.settings.options import MAX_LENGTH

PROMPT = """\
Here is a passage from a longer document.

{passage}

Write one question that this passage answers, and its answer. The question has to be clear to a reader who has the \
whole document and does not know which passage is meant; the answer has to be in the passage. Reply in exactly this \
form:
Question: <the question>
Answer: <the answer>"""
"""Prompt of a generator; the wording is ours, since the paper does not publish its own."""

DRAWS = 100
"""Maximum number of positions tried per pair, until one does not overlap earlier passages."""

Spans = npt.NDArray[np.int64]


class GeneratedText(Protocol):
    """What a model wrote: its text, and whether it ended by itself (not at the token limit)."""

    @property
    def text(self) -> str:
        """The text."""

    @property
    def is_complete(self) -> bool:
        """Whether it ended by itself."""


class Generator(Protocol):
    """Writes texts in answer to prompts; `longlens.models.generate` has one that runs a transformers model.

    Attributes:
        name: Name stored in the rows.
        identity_sha256: Hash that identifies the model.
        generation: The settings of generation.
    """

    name: str
    identity_sha256: str
    generation: Mapping[str, Any]

    def generate(self, prompts: Sequence[str]) -> Sequence[GeneratedText]:
        """Returns one answer per prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QASettings:
    """Settings of the pairs.

    Attributes:
        pairs: Number of pairs per document.
        passage_tokens: Maximum tokens per passage.
        max_length: Maximum tokens per conversation, template included; longer documents are truncated around the
            passage.
        seed: Seed that determines, with a document's id, the positions of its passages.
        grounded: Whether answers with words that are not in the passage are rejected, see `is_grounded`.

    Raises:
        UserError: A value is out of range.
    """

    pairs: int = 1
    passage_tokens: int = 384
    max_length: int = MAX_LENGTH
    seed: int = 0
    grounded: bool = False

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.pairs < 1:
            raise UserError(f"`pairs` is {self.pairs}; expected at least 1 of each document")
        if self.passage_tokens < 8:
            raise UserError(f"`passage_tokens` is {self.passage_tokens}; expected at least 8, such as 384")
        if self.max_length < 2 * self.passage_tokens:
            raise UserError(
                f"`max_length` is {self.max_length} and `passage_tokens` {self.passage_tokens}: expected at least "
                "twice as many, for the passage to be a part of its document"
            )


class QAPair(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str


class Refusal(NamedTuple):
    """The reason why there is no pair."""

    reason: str


def sample_passages(text: str, char_spans: Spans, document_id: str, settings: QASettings) -> list[Span]:
    """Passages of a document, in characters: a function of seed, id and text, on any machine and in any order.

    Draw i takes the tokens ``[p, p + passage_tokens)`` with ``p = sha256(f"{seed}:{i}:{id}") % (n - passage_tokens +
    1)``; the passage is the whole paragraphs inside (runs of nonblank lines) if they cover at least half of the tokens,
    otherwise the whole words. Draws that overlap an earlier passage are skipped.

    Args:
        text: The text.
        char_spans: Character spans of its tokens, ``(n, 2)``.
        document_id: Id of the document.
        settings: Number, length and seed.

    Returns:
        ``settings.pairs`` passages, or fewer if none was found in `DRAWS` draws; none if the text has fewer tokens than
        a passage.
    """
    places = len(char_spans) - settings.passage_tokens + 1
    paragraphs = list(_paragraphs(text)) if places > 0 else []
    found: list[Span] = []
    for draw in range(DRAWS * settings.pairs if places > 0 else 0):
        digest = hashlib.sha256(f"{settings.seed}:{draw}:{document_id}".encode()).digest()
        first = int.from_bytes(digest, "big") % places
        window = Span(int(char_spans[first, 0]), int(char_spans[first + settings.passage_tokens - 1, 1]))
        passage = _trim_to_paragraphs(window, paragraphs, char_spans) or _trim_to_words(text, window)
        if passage is not None and all(passage.end <= other.start or other.end <= passage.start for other in found):
            found.append(passage)
            if len(found) == settings.pairs:
                break
    return found


def _paragraphs(text: str) -> Iterator[Span]:
    for match in re.finditer(r"[^\S\n]*\S[^\n]*(?:\n[^\S\n]*\S[^\n]*)*", text):
        yield Span(*match.span())


def _trim_to_paragraphs(window: Span, paragraphs: Sequence[Span], char_spans: Spans) -> Span | None:
    inside = [one for one in paragraphs if window.start <= one.start and one.end <= window.end]
    if not inside:
        return None
    passage = Span(inside[0].start, inside[-1].end)
    (first, last), (begin, end) = (tokens_inside(span, char_spans) for span in (passage, window))
    return passage if 2 * (last - first) >= end - begin else None


def _trim_to_words(text: str, window: Span) -> Span | None:
    start, end = window
    while 0 < start < end and not text[start - 1].isspace():
        start += 1
    while start < end < len(text) and not text[end].isspace():
        end -= 1
    inner = text[start:end]
    start += len(inner) - len(inner.lstrip())
    end -= len(inner) - len(inner.rstrip())
    return Span(start, end) if start < end else None


def tokens_inside(span: Span, char_spans: Spans) -> Span:
    """Tokens that contain characters of a span.

    Args:
        span: Span in characters.
        char_spans: Character spans of the tokens, ``(n, 2)``, sorted by start.
    """
    first = int(np.searchsorted(np.maximum.accumulate(char_spans[:, 1]), span.start, side="right"))
    return Span(first, max(first, int(np.searchsorted(char_spans[:, 0], span.end, side="left"))))


def crop_around(passage: Span, number: int, budget: int) -> Span:
    """Selects ``budget`` of ``number`` tokens that contain the passage, at the same relative depth as in the whole.

    ``start = p * (n - b) // (n - l)`` for a passage of l tokens that begins at token p: 0 if it comes first, n - b if
    it comes last.

    Args:
        passage: Token span of the passage, at most ``budget`` tokens.
        number: Number of tokens of the document.
        budget: Number of tokens to keep, at most ``number``.
    """
    length = passage.end - passage.start
    if budget >= number:
        return Span(0, number)
    start = passage.start * (number - budget) // (number - length)
    return Span(start, start + budget)


def make_messages(document: str, pair: QAPair) -> list[dict[str, str]]:
    """The conversation: the document and the question from the user, the answer from the assistant."""
    return [
        {"role": "user", "content": f"{document}\n\n{pair.question}"},
        {"role": "assistant", "content": pair.answer},
    ]


_FIELD = re.compile(r"^[ \t]*[*_#]*[ \t]*(question|answer)[ \t]*[*_]*:[*_]*", re.IGNORECASE | re.MULTILINE)


def read_pair(generated: GeneratedText, passage: str, settings: QASettings) -> QAPair | Refusal:
    """Parses the pair that a model wrote: one line that begins with ``Question:``, then one with ``Answer:``.

    Text before the question is skipped; both may have several lines and be in bold. The result is a `Refusal` if there
    is not exactly one of each, if one is empty, or if the text did not end by itself.

    Args:
        generated: What the model wrote.
        passage: The passage that the question is about.
        settings: Settings, which determine whether the answer must be grounded.
    """
    text = generated.text
    fields = list(_FIELD.finditer(text))
    names = [match[1].lower() for match in fields]
    # If a stopped text has several pairs, these are the reason why it was stopped.
    for name in ("question", "answer"):
        if names.count(name) > 1:
            return Refusal(f"several {name}s")
    if not generated.is_complete:
        return Refusal("stopped by --max-new-tokens")
    for name in ("question", "answer"):
        if name not in names:
            return Refusal(f"no {name}")
    if names[0] != "question":
        return Refusal("the answer comes first")
    question = text[fields[0].end() : fields[1].start()].strip().strip("*_").strip()
    answer = text[fields[1].end() :].strip().strip("*_").strip()
    if not question or not answer:
        return Refusal("empty question" if not question else "empty answer")
    if settings.grounded and not is_grounded(answer, passage):
        return Refusal("answer is not in the passage")
    return QAPair(question, answer)


def is_grounded(answer: str, passage: str) -> bool:
    """Whether every word of an answer is in the passage, except for those of at most three letters.

    ``words(answer) - short <= words(passage)``, of letters and digits, in lower case; numbers are never short. An
    answer without other words must occur in the passage exactly.

    Args:
        answer: The answer.
        passage: The passage.
    """
    said, there = (set(re.findall(r"\w+", text.casefold())) for text in (answer, passage))
    words = {word for word in said if len(word) > 3 or any(character.isdigit() for character in word)}
    return words <= there if words else answer.casefold() in passage.casefold()
