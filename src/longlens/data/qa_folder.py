"""Output of ``longlens data qa``: a folder of conversations, line by line, so that a killed run loses no pair."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from longlens.chat_template import template_tokens
from longlens.corpus import Document, read_documents, text_sha256
from longlens.data.conversation import Span
from longlens.data.documents import fingerprint
from longlens.data.qa import (
    PROMPT,
    Generator,
    QAPair,
    QASettings,
    Refusal,
    Spans,
    crop_around,
    make_messages,
    read_pair,
    sample_passages,
    tokens_inside,
)
from longlens.data.store import DatasetFolder
from longlens.errors import LonglensWarning, UserError, shown, shown_value
from longlens.progress import Progress
from longlens.runs.jsonl import Line, append_line, read_lines
from longlens.settings.options import Reading
from longlens.tokenization import TextEncoder

ROWS = "train.jsonl"
REFUSED = "refused.log"
RESERVED_TOKENS = 64
"""Tokens reserved for an unknown chat template, if the tokenizer that counts has none."""


def qa_folder(
    sources: Sequence[str],
    generator: Generator,
    tokenizer: Any,
    out: str | os.PathLike[str],
    settings: QASettings,
    *,
    reading: Reading | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes question-answer pairs on passages of each document, appended to the document: rows of ``messages`` for
    `chat_dataset`.

    ::

        OUT/manifest.json    settings, generator, prompt; other settings are rejected
        OUT/train.jsonl      one line per pair, written as soon as it exists; a killed run resumes after the last one
        OUT/refused.log     one line per rejected pair: the reason, and the model's output
        OUT/counts.json      the return value; if it exists, the run is complete

    A row has ``messages``; ``document_id``, ``document_sha256``, ``document_characters``; ``document_span`` and
    ``passage_span``, characters ``[start, end)`` of the document that are in the row, and that the question is about;
    ``generator``, ``generator_sha256``, ``generation`` (its settings), ``seed``, and ``prompt_sha256`` of the prompt.

    Args:
        sources: Files, folders, ``hf:NAME`` or ``stdlib:NAME``.
        generator: Writes the pairs.
        tokenizer: Tokenizer that counts tokens of passages and rows: of the model to be trained, or the generator's.
        out: A new folder, or one of the same settings.
        settings: See `QASettings`.
        reading: Fields and split.
        progress: Shows documents.

    Returns:
        ``documents``, ``pairs`` (asked for), ``rows`` (accepted), ``cut_rows`` (of documents that were truncated),
        ``refused`` (pairs by reason).

    Raises:
        UserError: Documents cannot be read or have changed, the folder contains something else, or the disk is full.

    Warns:
        LonglensWarning: No pair was accepted.
    """
    reading = Reading(split="train") if reading is None else reading
    progress = Progress() if progress is None else progress
    maker = _PairMaker(generator, tokenizer, settings)
    documents = read_documents(sources, reading)
    manifest = {
        "sources": {source: fingerprint(source) for source in sources},
        "generator": generator.name,
        "generator_sha256": generator.identity_sha256,
        "generation": generator.generation,
        "tokenizer_sha256": maker.encoder.sha256,
        "prompt_sha256": text_sha256(PROMPT),
        **asdict(settings),
        "text_field": reading.text_field,
        "id_field": reading.id_field,
        "subset": reading.subset,
        "split": reading.split,
        "samples": reading.samples,
    }
    with DatasetFolder(Path(out), "qa", manifest) as folder:
        if folder.counts is not None:
            return folder.counts
        log = _Log(folder.folder)
        number = 0
        progress.start("questions", unit="documents")
        try:
            for number, document in enumerate(documents, start=1):
                for line in maker.lines(document, log.done(document)):
                    log.write(line)
                progress.update(number, note=f"{log.rows:,} pairs, {sum(log.refused.values()):,} rejected")
        finally:
            progress.finish()
        counts = {
            "documents": number,
            "pairs": log.rows + sum(log.refused.values()),
            "rows": log.rows,
            "cut_rows": log.cut_rows,
            "refused": dict(log.refused.most_common()),
        }
        folder.finish(counts)
    if not log.rows:
        warnings.warn(
            f"none of {counts['pairs']:,} pairs was accepted ({', '.join(log.refused) or 'no document'}): read "
            f"{folder.folder / REFUSED}, and try another generator in another folder",
            LonglensWarning,
            stacklevel=2,
        )
    return counts


class _PairMaker:
    """Makes the lines of a document: rows, or reasons why there is none."""

    def __init__(self, generator: Generator, tokenizer: Any, settings: QASettings) -> None:
        self._generator, self._tokenizer, self._settings = generator, tokenizer, settings
        self.encoder = TextEncoder(tokenizer)

    def lines(self, document: Document, done: set[int]) -> Iterator[dict[str, Any]]:
        """Yields a line for each pair that is not done."""
        wanted = [number for number in range(self._settings.pairs) if number not in done]
        if not wanted:
            return
        char_spans = self.encoder.encode(document.text).char_spans
        passages = sample_passages(document.text, char_spans, document.id, self._settings)
        named = {"document_id": document.id, "document_sha256": text_sha256(document.text)}
        for number in wanted:
            if number < len(passages):
                yield self._line(document, named, number, passages[number], char_spans)
            else:
                enough = len(char_spans) >= self._settings.passage_tokens
                reason = "no further passage" if enough else "document shorter than a passage"
                yield {**named, "pair": number, "reason": reason}

    def _line(
        self, document: Document, named: Mapping[str, Any], number: int, passage: Span, char_spans: Spans
    ) -> dict[str, Any]:
        text = document.text[passage.start : passage.end]
        prompt = PROMPT.format(passage=text)
        (generated,) = self._generator.generate([prompt])
        found = read_pair(generated, text, self._settings)
        kept = found if isinstance(found, Refusal) else self._crop(document.text, passage, char_spans, found)
        if isinstance(found, Refusal) or isinstance(kept, Refusal):
            reason = found.reason if isinstance(found, Refusal) else "too long for --max-length"
            return {**named, "pair": number, "reason": reason, "passage_span": list(passage), "text": generated.text}
        return {
            "id": f"{document.id}#qa{number}",
            "messages": make_messages(document.text[kept.start : kept.end], found),
            **named,
            "pair": number,
            "document_characters": len(document.text),
            "document_span": list(kept),
            "passage_span": list(passage),
            "generator": self._generator.name,
            "generator_sha256": self._generator.identity_sha256,
            "generation": self._generator.generation,
            "seed": self._settings.seed,
            "prompt_sha256": text_sha256(prompt),
        }

    def _crop(self, text: str, passage: Span, char_spans: Spans, pair: QAPair) -> Span | Refusal:
        """Characters of the document that fit together with the pair."""
        inside = tokens_inside(passage, char_spans)
        kept = Span(0, len(text))
        budget = len(char_spans)
        while (excess := self._size(text[kept.start : kept.end], pair) - self._settings.max_length) > 0:
            budget -= excess
            if budget < inside.end - inside.start:
                return Refusal("too long")
            part = crop_around(inside, len(char_spans), budget)
            kept = Span(int(char_spans[part.start, 0]), int(char_spans[part.start : part.end, 1].max()))
        return kept

    def _size(self, document: str, pair: QAPair) -> int:
        """Number of tokens of the conversation."""
        messages = make_messages(document, pair)
        if getattr(self._tokenizer, "chat_template", None):
            return len(template_tokens(self._tokenizer, messages))
        texts = [message["content"] for message in messages]
        return sum(len(self.encoder.encode(text).token_ids) for text in texts) + RESERVED_TOKENS


class _Log:
    """The lines of a folder: existing ones, and new ones that are appended."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._done: dict[str, tuple[str, set[int]]] = {}
        self.rows = self.cut_rows = 0
        self.refused: Counter[str] = Counter()
        for name in (ROWS, REFUSED):
            if (folder / name).exists():
                for line in read_lines(folder / name, step="use another folder", unfinished=True):
                    self._add(_fields(line))

    def done(self, document: Document) -> set[int]:
        """Indices of a document's existing pairs.

        Raises:
            UserError: They belong to another text.
        """
        digest, pairs = self._done.get(document.id, ("", set()))
        if pairs and digest != text_sha256(document.text):
            raise UserError(
                f"document {shown(document.id)} has changed since {self._folder} has pairs on it: use another folder"
            )
        return pairs

    def write(self, line: dict[str, Any]) -> None:
        """Appends a line, which is on disk when this returns.

        Raises:
            UserError: It cannot be written; what was written before is kept.
        """
        append_line(self._folder / (REFUSED if "reason" in line else ROWS), line, sync=True)
        self._add(line)

    def _add(self, line: Mapping[str, Any]) -> None:
        self._done.setdefault(line["document_id"], (line["document_sha256"], set()))[1].add(line["pair"])
        if "reason" in line:
            self.refused[line["reason"]] += 1
        else:
            self.rows += 1
            self.cut_rows += line["document_span"] != [0, line["document_characters"]]


def _fields(line: Line) -> dict[str, Any]:
    """Validates the types of a line of the folder.

    Raises:
        UserError: A field has another type.
    """
    fields = line.fields()
    types = {"document_id": str, "document_sha256": str, "pair": int}
    types |= {"reason": str} if "reason" in fields else {"document_span": list, "document_characters": int}
    for name, kind in types.items():
        if not isinstance(fields.get(name), kind):
            raise UserError(f"{line.place} is broken ({name} is {shown_value(fields.get(name))}): use another folder")
    return fields
