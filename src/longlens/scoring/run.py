"""The loop that turns documents into token scores."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from longlens.corpus import Document, Sources, text_sha256, to_documents
from longlens.corpus.document import check_answer_spans
from longlens.errors import UserError, shown
from longlens.models import load_decoder
from longlens.progress import Progress
from longlens.runs.folder import await_manifest
from longlens.runs.processes import Processes
from longlens.runs.sharing import BYTES_PER_TOKEN, balance, forward_cost, hidden_size_of, windows_cost
from longlens.scoring.reader import StoredScores, open_scores
from longlens.scoring.scorer import DescribedResult, Request, Result, Scorer
from longlens.scoring.scores import Floats, MemoryScores, ShortContext, TokenScores, short_contexts, wrong_logprobs
from longlens.scoring.store import Bos, RunWriter, make_manifest, run_settings
from longlens.scoring.truncation import Limit, TokenLimit, TruncatedText, make_limit, num_characters
from longlens.settings.options import CONTEXT, Reading, Truncation
from longlens.windows import plan_windows

CHECKED_COST = 1e-4
"""Cost of a token of a document that is already scored and only compared with the stored text, relative to a scored
one."""


class _Key(NamedTuple):
    """Key of a result: the document, its side, the first token that is scored, and its cost."""

    id: str
    short: ShortContext | None
    first: int
    num_input: int


@dataclass
class _Side:
    """One side of a document while its results arrive: long (short is None) or one short context."""

    row: dict[str, Any]
    logprobs: Floats
    waiting: int
    characters_per_token: float
    columns: dict[str, Floats] = field(default_factory=dict)


def score(
    documents: Iterable[Any],
    scorer: Scorer,
    *,
    reading: Reading | None = None,
    context: int | Sequence[int] | None = CONTEXT,
    stride: int | Sequence[int] | None = None,
    out: str | PathLike[str] | None = None,
    bos: Bos = "window",
    max_length: int | None = None,
    limit: Limit | Truncation | None = None,
    extrapolate: bool = False,
    store_text: bool = True,
    shard: tuple[int, int] | None = None,
    name: str | None = None,
    processes: Processes | None = None,
    progress: Progress | None = None,
) -> MemoryScores | StoredScores:
    """Scores documents with a model: log-probabilities given the long and the short contexts.

    For every document of n tokens x and every K, d::

        long_logprobs[i]  = log P(x[i] | bos, x[:i])                                      NaN without any context
        short_logprobs[i] = log P(x[i] | bos, x[j d : i])   with j = (i - K) // d         NaN for i < K

    Args:
        documents: Any iterable, read lazily, of `Document`, texts, or mappings with the fields of a row; or a
            ``datasets.Dataset`` or ``IterableDataset``.
        scorer: The model, from `longlens.load_scorer`.
        reading: Fields of rows that contain text and id, or the tokenizer that decodes their ``input_ids``; by default
            ``text`` and, if rows have it, ``id``.
        context: K, or several, or None to score the long context only.
        stride: d, one value, or one per K; by default a quarter of each K.
        out: Run directory; documents that it already contains are skipped. None keeps the scores in memory.
        bos: ``"window"``: the tokenizer's BOS, if it has one, precedes the long context and every window, is not scored
            and not counted in K; a text that begins with BOS has it once. ``"published"``: as in the published package,
            which does not check how a text begins. With short contexts (an evaluator), the tokens that the tokenizer
            adds precede only the long context and count as its tokens; without (an evaluated model) there are none.
        max_length: Maximum document length in tokens of this model's tokenizer; None for the smaller of
            32,768 and the model's maximum length.
        limit: Truncation that replaces ``max_length``: by characters or by another model's tokenizer, so
            that two models see the same text.
        extrapolate: Allow more tokens than the model's maximum length.
        store_text: False does not store the texts.
        shard: ``(rank, world size)``: this call scores every world-size-th document, from rank on, independently of
            other calls. None: with ``out``, the processes of torchrun share the documents, balanced by cost (see
            `longlens.runs.sharing`), and return when all have finished; without, each scores all documents.
        name: Display name in tables; by default the last part of the model's path or id.
        processes: Processes of torchrun, if already connected.
        progress: Shows characters of the documents.

    Returns:
        `MemoryScores`, or the opened run directory. With ``out`` and nothing to do, the model is not run.

    Raises:
        UserError: Invalid settings, a document longer than the model supports, one id with two texts, a run
            directory with other settings, or processes that do not see the same directory and documents.
    """
    shorts = short_contexts(context, stride)
    if limit is not None and max_length is not None:
        raise UserError(
            f"`max_length` is {max_length}, and `limit` says what documents are truncated to: pass one of them"
        )
    if limit is None:
        limit = Truncation(max_length=max_length, extrapolate=extrapolate)
    if isinstance(limit, Truncation):
        extrapolate |= limit.extrapolate
        limit = make_limit(limit, scorer)
    settings = run_settings(scorer.info, shorts, bos=bos, limit=limit, store_text=store_text)
    processes = sharing_processes(shard, out) if processes is None else processes
    rank, world_size = (0, 1) if shard is None else shard
    if not isinstance(documents, Sources):
        documents = to_documents(documents, reading, decoder=_decoder(reading))
    meter = _Meter(progress or Progress(), scorer.info.name)
    run = _Run(scorer, shorts, bos, limit, meter, extrapolate=extrapolate, store_text=store_text)
    manifest = make_manifest(scorer.info, settings, name)
    if out is not None and processes.size > 1:
        meter.title += f" (process 1 of {processes.size})"
        with processes:
            _score_shared(documents, run, Path(out), manifest, processes)
        return _opened(out, shorts)
    if progress is not None:
        meter.total = _total_characters(documents, limit, rank, world_size)
    mine = islice(_distinct(documents), rank, None, world_size)
    if out is None:
        memory = _MemoryWriter()
        run.score(mine, memory)
        return memory.finish(manifest, shorts, run.ids)
    with RunWriter(Path(out), manifest, rank=rank) as writer:
        run.score(mine, writer)
        run.make_sides(writer)
    return _opened(out, shorts)


def _opened(out: str | PathLike[str], shorts: Sequence[ShortContext]) -> StoredScores:
    return open_scores(out, context=shorts[0].context, stride=shorts[0].stride) if shorts else open_scores(out)


def _score_shared(
    documents: Iterable[Document], run: _Run, out: Path, manifest: Mapping[str, Any], processes: Processes
) -> None:
    """Runs one process's part of a run that several share; returns when all have ended.

    The first process opens the folder and assigns documents to processes if they can be read twice. For a stream, the
    next document belongs to the process that draws its number.
    """
    plan: dict[str, Any] = {}
    if processes.rank > 0:
        plan = processes.receive()
        await_manifest(out, processes.rank)
    with RunWriter(out, manifest, rank=processes.rank) as writer:
        if processes.rank == 0:
            if isinstance(documents, (Sequence, Sources)):
                plan = run.share(_distinct(documents), writer, processes.size)
            processes.broadcast(plan)
        if plan:
            run.meter.total = plan["characters"][processes.rank]
        mine = _Mine(documents, plan.get("owners"), processes)
        run.score(mine, writer)
        run.make_sides(writer)
    if processes.rank == 0:
        processes.broadcast({"read": mine.read})
    elif processes.receive()["read"] != mine.read:
        raise UserError(
            f"process {processes.rank} (from 0) read different documents than the first process: give all processes "
            "the same files, and a new folder"
        )
    processes.wait_for_all()


class _Mine:
    """The documents of this process among those that all of them read.

    Attributes:
        read: Hash of the IDs of all documents, in order.
    """

    def __init__(self, documents: Iterable[Document], owners: Sequence[int] | None, processes: Processes) -> None:
        self._documents, self._owners, self._rank = documents, owners, processes.rank
        self._draw = processes.counter()
        self.read = ""

    def __iter__(self) -> Iterator[Document]:
        digest = hashlib.sha256()
        turn = self._turn(0)
        for number, document in enumerate(_distinct(self._documents)):
            digest.update(f"{document.id}\0".encode())
            if number == turn:
                yield document
                turn = self._turn(number + 1)
        self.read = digest.hexdigest()

    def _turn(self, number: int) -> int | None:
        """The number of the next document of this process, at or after this one."""
        if self._owners is None:
            return self._draw()
        return next((at for at in range(number, len(self._owners)) if self._owners[at] == self._rank), None)


def _distinct(documents: Iterable[Document]) -> Iterator[Document]:
    ids: set[str] = set()
    for document in documents:
        if document.id in ids:
            raise UserError(f"two documents have the id {document.id!r}: document ids must be unique")
        ids.add(document.id)
        yield document


def _decoder(reading: Reading | None) -> Callable[[Sequence[int]], str] | None:
    if reading is None or reading.tokenized_with is None:
        return None
    return load_decoder(reading.tokenized_with)


def sharing_processes(shard: tuple[int, int] | None, out: Any, team: int = 1) -> Processes:
    """The processes that share a run: torchrun's if scores are written to a folder, unless this call has its own shard.

    Args:
        shard: Shard of this call.
        out: Output folder, or None.
        team: Number of processes that share one model.

    Raises:
        UserError: The rank of the shard is not below the world size.
    """
    if shard is not None and not 0 <= shard[0] < shard[1]:
        raise UserError(f"`shard` is {shard}; expected (rank, world size) with a rank below the world size")
    return Processes.alone() if shard is not None or out is None else Processes(team)


def _total_characters(documents: Iterable[Document], limit: Limit, rank: int, world_size: int) -> int | None:
    """Number of characters of this shard to score; None if counting would be too expensive."""
    if not isinstance(documents, (Sequence, Sources)) or (isinstance(documents, Sources) and not documents.are_files):
        return None
    return sum(num_characters(document.text, limit) for document in islice(documents, rank, None, world_size))


class _Meter:
    """Shows the number of characters scored, in proportion to each document's tokens of model input."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress, self.title = progress, f"score {name}"
        self.total: int | None = None
        self._done, self._tokens, self._started = 0.0, 0, 0.0

    def skip(self, characters: int) -> None:
        """Adds characters that are already scored."""
        self._done += characters

    def begin(self) -> None:
        """Starts the display; characters skipped before the first document do not count as work of this run."""
        if not self._started:
            self._started = time.monotonic()
            self._progress.start(self.title, unit="characters", total=self.total, done=self._done)

    def add(self, characters: float, tokens: int) -> None:
        """Adds characters that were scored, and the tokens of model input used for them."""
        self._done, self._tokens = self._done + characters, self._tokens + tokens
        rate = self._tokens / max(time.monotonic() - self._started, 1e-9)
        self._progress.update(self._done, note=f"{self._tokens:,} tokens of model input, {rate:,.0f}/s")

    def finish(self) -> None:
        """Called when the run has ended, successfully or not."""
        if self._started:
            self._progress.finish()


class _Run:
    """The loop: documents to requests, results to rows."""

    def __init__(
        self,
        scorer: Scorer,
        shorts: Sequence[ShortContext],
        bos: Bos,
        limit: Limit,
        meter: _Meter,
        *,
        extrapolate: bool,
        store_text: bool,
    ) -> None:
        self._scorer, self._shorts, self._limit, self.meter = scorer, shorts, limit, meter
        self._extrapolate, self._store_text = extrapolate, store_text
        self.ids: dict[str, None] = {}  # of the documents so far, in order
        info = scorer.info
        # `long` and `short` are the prefixes of the two contexts. `counted`: whether the prefix of the long context is
        # part of the sequence over which windows are planned, as in the published package.
        window = (info.bos_token_id,) if info.bos_token_id is not None else ()
        published = info.own_prefix if shorts else ()
        self._long_prefix: tuple[int, ...] = window if bos == "window" else published
        self._short_prefix: tuple[int, ...] = window if bos == "window" else ()
        self._counted = 0 if bos == "window" else len(published)
        self._own_bos = list(window) if bos == "window" else []

    def score(self, documents: Iterable[Document], writer: RunWriter | _MemoryWriter) -> None:
        self._open: dict[tuple[str, ShortContext | None], _Side] = {}
        try:
            for result in self._scorer.logprobs(self._requests(documents, writer)):
                key: _Key = result.key
                side = self._open[key.id, key.short]
                self._check(result, key)
                where = slice(key.first, key.first + len(result.logprobs))
                side.logprobs[where] = result.logprobs
                columns = result.columns if isinstance(result, DescribedResult) else {}
                for name, values in columns.items():
                    side.columns.setdefault(name, np.full(len(side.logprobs), np.nan, np.float32))[where] = values
                side.waiting -= 1
                if not side.waiting:
                    self._close(writer, key.id, key.short)
                self.meter.add(key.num_input * side.characters_per_token, key.num_input)
                writer.tick()
        finally:
            self.meter.finish()

    def make_sides(self, writer: RunWriter) -> None:
        """Makes the folders of the short contexts, even if this process had no documents."""
        for short in self._shorts:
            writer.make_side(short)

    def share(self, documents: Iterable[Document], writer: RunWriter, size: int) -> dict[str, Any]:
        """Assigns unscored documents to processes; returns the assignment and the number of characters of each."""
        hidden = hidden_size_of(self._scorer.info.config)
        costs, characters = [], []
        for document in documents:
            tokens = self._estimate_tokens(document.text)
            cost = tokens * CHECKED_COST
            if document.id not in writer.done(None):
                cost += forward_cost(tokens, hidden)
            for short in self._shorts:
                if document.id not in writer.done(short):
                    cost += windows_cost(tokens, *short, hidden)
            costs.append(cost)
            characters.append(num_characters(document.text, self._limit))
        owners = balance(costs, size)
        shares = [0] * size
        for rank, number in zip(owners, characters, strict=True):
            shares[rank] += number
        return {"owners": owners, "characters": shares}

    def _estimate_tokens(self, text: str) -> int:
        """Estimated number of scored tokens of a text, without tokenizing it."""
        if isinstance(self._limit, TokenLimit):
            return min(len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN + 1, self._limit.max_tokens)
        return len(text[: self._limit.max_characters].encode("utf-8", "replace")) // BYTES_PER_TOKEN + 1

    def _check(self, result: Result, key: _Key) -> None:
        """Checks a result before it is stored, since engines may be third-party."""
        wrong = wrong_logprobs(result.logprobs)
        if wrong:
            raise UserError(
                f"{self._scorer.info.name} returns log-probabilities of document {shown(key.id)} that are invalid "
                f"({wrong}): check the engine, or use `dtype=float32`"
            )

    def _requests(self, documents: Iterable[Document], writer: RunWriter | _MemoryWriter) -> Iterator[Request]:
        sides = [None, *self._shorts]
        for document in documents:
            self.ids[document.id] = None
            todo = [short for short in sides if document.id not in writer.done(short)]
            stored = writer.done(None).get(document.id)
            # The whole text's hash first: most documents are not truncated, and a resumed run need not tokenize them
            # again.
            if not todo and stored == text_sha256(document.text):
                cut = None
            else:
                cut = self._limit(document.text)
                if stored not in (None, text_sha256(cut.text)):
                    raise UserError(
                        f"document {document.id!r} was scored before with a different text: use a new id for the new "
                        "text, or a new run directory"
                    )
            if cut is not None and todo:
                yield from self._document(document, cut, todo, writer)
            else:
                self.meter.skip(num_characters(document.text, self._limit))

    def _document(
        self,
        document: Document,
        cut: TruncatedText,
        todo: Sequence[ShortContext | None],
        writer: RunWriter | _MemoryWriter,
    ) -> Iterator[Request]:
        encoded = self._scorer.encode(Document(id=document.id, text=cut.text))
        ids, n = encoded.token_ids.tolist(), len(encoded.token_ids)
        # Another tokenizer's token count does not apply to this one.
        total = cut.total_tokens if self._limit.counted_by == "own" else None
        self._check_length(document.id, n + len(self._long_prefix) - self._num_own_bos(ids))
        row = {
            "id": document.id,
            "text_sha256": text_sha256(cut.text),
            "text": cut.text if self._store_text else None,
            "total_tokens": n if cut.text == document.text else total,
            "token_ids": encoded.token_ids,
            "char_start": encoded.char_spans[:, 0],
            "char_end": encoded.char_spans[:, 1],
            "answer_spans": _answer_ends(document, len(cut.text)),
            "metadata": _metadata(document) if self._store_text else None,
        }
        requests = [list(self._side(document.id, ids, short)) for short in todo]
        self.meter.begin()
        cost = sum(request.key.num_input for side in requests for request in side)
        characters = num_characters(document.text, self._limit) / max(cost, 1)
        for short, side in zip(todo, requests, strict=True):
            start = row if short is None else {"id": document.id}
            self._open[document.id, short] = _Side(start, np.full(n, np.nan, np.float32), len(side), characters)
            if not side:
                self._close(writer, document.id, short)
        for side in requests:
            yield from side

    def _side(self, id: str, ids: list[int], short: ShortContext | None) -> Iterator[Request]:
        """Requests of one side."""
        own = self._num_own_bos(ids)
        ids = ids[own:]
        if short is None:
            prefix = list(self._long_prefix)
            tokens = prefix + ids
            if len(tokens) > 1:
                yield Request(_Key(id, None, own if prefix else 1, len(tokens)), tokens, max(1, len(prefix)))
            return
        # In the published package the evaluator's BOS is token 0 of the sequence over which windows are planned.
        sequence = [*self._long_prefix[: self._counted], *ids]
        prefix = list(self._short_prefix)
        for window in plan_windows(len(sequence), *short):
            tokens = prefix + sequence[window.start : window.stop]
            key = _Key(id, short, window.first - self._counted + own, len(tokens))
            yield Request(key, tokens, len(prefix) + window.first - window.start, is_short=True)

    def _num_own_bos(self, ids: list[int]) -> int:
        """1 if the text itself begins with the BOS that would precede it, so that BOS occurs only once."""
        return int(bool(self._own_bos) and ids[:1] == self._own_bos)

    def _check_length(self, id: str, fed: int) -> None:
        info = self._scorer.info
        if info.max_length is not None and fed > info.max_length and not self._extrapolate:
            raise UserError(
                f"document {id!r} has {fed} tokens of {info.name}, which supports {info.max_length} (truncated by "
                f"{self._limit.counted_by}): use a smaller `max_length`, or `extrapolate=True`"
            )

    def _close(self, writer: RunWriter | _MemoryWriter, id: str, short: ShortContext | None) -> None:
        side = self._open.pop((id, short))
        described = {"columns": list(side.columns.items()) or None} if short is None else {}
        writer.add(short, side.row | {"logprobs": side.logprobs} | described)


def _answer_ends(document: Document, length: int) -> list[int] | None:
    """Answers of a text truncated to this length: start, end, start, end, …; those beyond it are omitted."""
    if document.answer_spans is None:
        return None
    spans = check_answer_spans(document.answer_spans, f"document {shown(document.id)}", len(document.text))
    return [min(end, length) for span in spans if span[0] < length for end in span]


def _metadata(document: Document) -> str | None:
    """The other fields as JSON; values without a JSON type, such as a date, as text."""
    return json.dumps(document.metadata, default=str, skipkeys=True) if document.metadata else None


class _MemoryWriter:
    """The writer's interface for scores that stay in memory."""

    def __init__(self) -> None:
        self._sides: dict[ShortContext | None, dict[str, dict[str, Any]]] = {}

    def done(self, short: ShortContext | None) -> Mapping[str, str]:
        return {}

    def add(self, short: ShortContext | None, row: dict[str, Any]) -> None:
        self._sides.setdefault(short, {})[row["id"]] = row

    def tick(self) -> None:
        """Nothing is buffered."""

    def finish(self, manifest: Mapping[str, Any], shorts: Sequence[ShortContext], ids: Iterable[str]) -> MemoryScores:
        """The scores in the order of ``ids``, regardless of the order of completion."""
        long = self._sides.get(None, {})
        rows = [
            TokenScores(
                id=id,
                text=row["text"],
                text_sha256=row["text_sha256"],
                total_tokens=row["total_tokens"],
                token_ids=row["token_ids"],
                char_spans=np.stack([row["char_start"], row["char_end"]], axis=1),
                long_logprobs=row["logprobs"],
                short={short: self._sides[short][id]["logprobs"] for short in shorts},
                selected=shorts[0] if shorts else None,
                answer_spans=None
                if row["answer_spans"] is None
                else list(zip(row["answer_spans"][::2], row["answer_spans"][1::2], strict=True)),
                columns=dict(row["columns"] or []),
                metadata=json.loads(row["metadata"] or "{}"),
            )
            for id, row in ((id, long[id]) for id in ids)
        ]
        return MemoryScores(rows, manifest)
