"""Token scores, the output of a model run, from which everything else is computed. Does not import torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload

import numpy as np
import numpy.typing as npt

from longlens.corpus.document import Spans
from longlens.errors import UserError
from longlens.runs.identity import ModelIdentity
from longlens.windows import check_window_settings

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
LOGPROB_ROUNDING = 1e-3
"""Number of nats by which a log-probability may be above 0: engines other than ours may round in half precision."""


class ShortContext(NamedTuple):
    """The short context of a log-probability: at least K tokens, at most K + d - 1 (eq. 8)."""

    context: int
    stride: int


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """One model's scores of one document of n tokens.

    Attributes:
        id: The document's id.
        text: The text that was scored (after truncation); None if it was not stored.
        text_sha256: Its hash, see `longlens.corpus.text_sha256`.
        total_tokens: Tokens of the document before truncation; equal to n if nothing was truncated, None if a truncated
            document was not counted to its end.
        token_ids: ``(n,)`` int64, without BOS.
        char_spans: ``(n, 2)`` int64, ``[start, end)`` in characters of the text.
        long_logprobs: ``(n,)`` float32, nats: log P(token i | all tokens before it); NaN if nothing precedes it.
        short: ``(n,)`` float32 for each short context, nats: NaN for the tokens before K.
        selected: The short context of `short_logprobs` and `lsd`; None in a run without short-context
            scores.
        answer_spans: ``[start, end)`` in characters of the text that answer a question; None if none were specified.
        columns: ``(n,)`` float32 for each column of the requested statistics, by name; NaN if there is no long-context
            score. Runs with a cache policy have ``cache_bytes``.
        metadata: Other fields of the document's row, such as its source; empty in a run without texts.
    """

    id: str
    text: str | None
    text_sha256: str
    total_tokens: int | None
    token_ids: Ints
    char_spans: Ints
    long_logprobs: Floats
    short: Mapping[ShortContext, Floats]
    selected: ShortContext | None
    answer_spans: Spans | None = None
    columns: Mapping[str, Floats] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def at(self, *, context: int, stride: int | None = None) -> TokenScores:
        """The same scores under another short context that was scored.

        Raises:
            UserError: It was not scored, or it was scored with several strides and none is specified.
        """
        return replace(self, selected=choose_short_context(list(self.short), context, stride))

    @property
    def short_logprobs(self) -> Floats:
        """``(n,)`` float32, nats: log P(token i | its short context); NaN before K.

        Raises:
            UserError: The run has no short-context scores.
        """
        if self.selected is None:
            raise UserError(
                f"document {self.id!r} has no short-context scores: score it again with short contexts into the same "
                "run directory"
            )
        return self.short[self.selected]

    @cached_property
    def lsd(self) -> Floats:
        """``(n,)`` float32, nats: long-short difference, ``long_logprobs - short_logprobs`` (eq. 2); NaN before K."""
        return self.long_logprobs - self.short_logprobs

    @property
    def lcl(self) -> Floats:
        """``(n,)`` float32, nats: long-context likelihood, which is ``long_logprobs`` (eq. 3)."""
        return self.long_logprobs

    def to_arrow(self, *, every_context: bool = False) -> pa.Table:
        """A ``pyarrow.Table`` with one row per token, about 60 bytes each.

        Columns: ``document`` (the id), ``index``, ``token_id``, ``char_start``, ``char_end``, ``long_logprob``,
        ``short_logprob``, ``lsd``, ``lcl`` (nats, NaN if there is none), ``context`` and ``stride`` (K and d). Without
        short-context scores, their columns are null.

        Args:
            every_context: Whether each token has a row for each scored short context, instead of only the selected one.
        """
        import pyarrow as pa

        contexts = sorted(self.short) if every_context else []
        tables = [self._table(short) for short in contexts] or [self._table(self.selected)]
        return pa.concat_tables(tables).unify_dictionaries()

    def _table(self, short: ShortContext | None) -> pa.Table:
        import pyarrow as pa

        n = len(self.token_ids)
        row = replace(self, selected=short)
        columns = {
            "document": pa.DictionaryArray.from_arrays(np.zeros(n, np.int32), pa.array([self.id], pa.string())),
            "index": np.arange(n, dtype=np.int32),
            "token_id": self.token_ids,
            "char_start": self.char_spans[:, 0],
            "char_end": self.char_spans[:, 1],
            "long_logprob": self.long_logprobs,
            "short_logprob": pa.nulls(n, pa.float32()) if short is None else row.short_logprobs,
            "lsd": pa.nulls(n, pa.float32()) if short is None else row.lsd,
            "lcl": self.lcl,
            "context": pa.nulls(n, pa.int32()) if short is None else np.full(n, short.context, np.int32),
            "stride": pa.nulls(n, pa.int32()) if short is None else np.full(n, short.stride, np.int32),
        }
        return pa.table(columns)

    def to_pandas(self, *, every_context: bool = False) -> pd.DataFrame:
        """`to_arrow` as a ``pandas.DataFrame``."""
        return self.to_arrow(every_context=every_context).to_pandas()

    @property
    def truncated(self) -> bool:
        """Whether the document was truncated."""
        return self.total_tokens is None or self.total_tokens > len(self.token_ids)


_NO_SCORES = TokenScores(
    id="",
    text=None,
    text_sha256="",
    total_tokens=0,
    token_ids=np.empty(0, np.int64),
    char_spans=np.empty((0, 2), np.int64),
    long_logprobs=np.empty(0, np.float32),
    short={},
    selected=None,
)


def choose_short_context(
    available: Sequence[ShortContext], context: int | None = None, stride: int | None = None
) -> ShortContext:
    """The selected short context: the specified one, else the largest K (with its smallest stride).

    Raises:
        UserError: No scored short context matches.
    """
    fits = [s for s in available if context in (None, s.context) and stride in (None, s.stride)]
    if not fits:
        named = {name: value for name, value in (("context", context), ("stride", stride)) if value is not None}
        wanted = ", ".join(f"{'K' if name == 'context' else 'd'}={value}" for name, value in named.items())
        have = ", ".join(f"K={s.context}, d={s.stride}" for s in sorted(available)) or "none"
        options = " and ".join(f"`{name}={value}`" for name, value in named.items())
        raise UserError(f"no scores at {wanted}; scored short contexts: {have}. Score with {options}")
    return max(fits, key=lambda s: (s.context, -s.stride))


def short_contexts(
    context: int | Sequence[int] | None, stride: int | Sequence[int] | None = None
) -> list[ShortContext]:
    """The short contexts specified by K and d, the largest K first.

    Without d, each K has ``max(1, K // 4)``, the ratio of the paper's K = 4096 and d = 1024.

    Raises:
        UserError: K or d is below 1 or not an integer, or there is neither one stride nor one per K.
    """
    for name, value in (("context", context), ("stride", stride)):
        if isinstance(value, (str, float)):
            raise UserError(f"`{name}` is {value!r}; expected tokens, such as `{name}=1024`, or a list of them")
    contexts = [] if context is None else [context] if isinstance(context, int) else list(context)
    if stride is None:
        strides = [max(1, int(k) // 4) for k in contexts]
    else:
        strides = [stride] if isinstance(stride, int) else list(stride)
    if len(strides) not in (1, len(contexts)) and contexts:
        raise UserError(f"{len(strides)} strides for {len(contexts)} contexts: pass one `stride`, or one per `context`")
    if len(strides) == 1:
        strides = strides * len(contexts)
    pairs = [ShortContext(k, d) for k, d in zip(contexts, strides, strict=False)]
    for pair in pairs:
        check_window_settings(*pair)
    return sorted(set(pairs), key=lambda s: (-s.context, s.stride))


Item = TypeVar("Item")


class SequenceById(Sequence[Item]):
    """A lazy sequence with one item per document, identified by document ID."""

    ids: Sequence[str]
    """IDs of the documents, in order."""

    def get(self, id: str) -> Item:
        """The item of the document with this ID.

        Raises:
            KeyError: There is no such document.
        """
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        return [self.get(id) for id in self.ids[index]] if isinstance(index, slice) else self.get(self.ids[index])

    def __iter__(self) -> Iterator[Item]:
        return (self.get(id) for id in self.ids)


class Scores(SequenceById[TokenScores]):
    """A lazy sequence of token scores: kept in memory or read lazily from a run directory.

    In memory they have the order of the documents, in a run directory the order of completion. IDs are unique. A table
    of all documents needs about 60 bytes of memory per token; each document also has its own table.

    Attributes:
        manifest: Content of manifest.json: ``schema_version``, ``model``, ``settings``, ``versions``.
        short_contexts: The short contexts that were scored.
        selected: The short context of LSD unless another one is specified; None in a run without short-context
            scores.
        folder: The run directory; None for scores that are kept in memory.
        num_incomplete: Number of documents that are omitted because an interrupted run has not scored them under
            `selected`.
    """

    manifest: Mapping[str, Any]
    short_contexts: Sequence[ShortContext]
    selected: ShortContext | None
    folder: Path | None
    num_incomplete: int

    @property
    def name(self) -> str:
        """The model's display name in tables, see `display_name`."""
        return display_name(self.manifest)

    def to_arrow(self, *, every_context: bool = False) -> pa.Table:
        """A ``pyarrow.Table`` with one row per token, document after document, see `TokenScores.to_arrow`.

        Args:
            every_context: Whether each token has a row for each scored short context, instead of only the selected one.
        """
        import pyarrow as pa

        tables = [row.to_arrow(every_context=every_context) for row in self] or [_NO_SCORES.to_arrow()]
        return pa.concat_tables(tables).unify_dictionaries()

    def to_pandas(self, *, every_context: bool = False) -> pd.DataFrame:
        """`to_arrow` as a ``pandas.DataFrame``."""
        return self.to_arrow(every_context=every_context).to_pandas()


class MemoryScores(Scores):
    """Scores that are kept in memory."""

    def __init__(self, rows: Sequence[TokenScores], manifest: Mapping[str, Any]) -> None:
        self._rows = {row.id: row for row in rows}
        self.ids, self.manifest, self.folder, self.num_incomplete = list(self._rows), manifest, None, 0
        self.selected = rows[0].selected if rows else None

    @property
    def short_contexts(self) -> Sequence[ShortContext]:  # type: ignore[override]
        """The short contexts under which every document was scored."""
        return sorted(self[0].short) if self.ids else []

    def get(self, id: str) -> TokenScores:
        """The scores of the document with this id.

        Raises:
            KeyError: There is no such document.
        """
        return self._rows[id]


def display_name(manifest: Mapping[str, Any]) -> str:
    """Display name of a run's model in tables and charts: the run's name, else `short_name` of the model."""
    return str(manifest.get("name") or short_name(str(manifest["model"]["name"])))


def short_name(model: str) -> str:
    """The last part of a path, a Hub id or a server's ``#NAME``; ``models/llama-8b/`` is ``llama-8b``."""
    return re.split(r"[/\\]", model.rpartition("#")[2].rstrip("/\\"))[-1] or model


def names_of(runs: Sequence[Scores]) -> list[str]:
    """Display names of runs that are shown together: their names, with the run directory if runs share a name.

    With the full path if folders share a name as well; scores in memory have their index in the list instead.
    """
    models = [run.name for run in runs]
    folders = [run.folder.resolve() if run.folder else Path(str(place)) for place, run in enumerate(runs, start=1)]
    tails = [folder.name for folder in folders]
    return [
        name if models.count(name) == 1 else f"{name} ({tail if tails.count(tail) == 1 else folder})"
        for name, tail, folder in zip(models, tails, folders, strict=True)
    ]


def same_run(one: Scores, other: Scores) -> bool:
    """Whether two scores are the same run: one object, or one folder."""
    if one is other:
        return True
    return one.folder is not None and other.folder is not None and one.folder.resolve() == other.folder.resolve()


def same_model(scores: Scores, others: Scores | None) -> bool:
    """Whether two runs are known to be of one model, see `longlens.runs.identity`, regardless of dtype."""
    if others is None:
        return False
    return identity_of(scores).is_same_model(identity_of(others))


def identity_of(scores: Scores) -> ModelIdentity:
    """Identity of a run's model."""
    return ModelIdentity.read(scores.manifest["model"])


def feeding(scores: Scores) -> str:
    """How documents were fed to a model under a cache policy, such as ``256`` or ``prefill+512``; empty without one.

    The identity of a policy ends with it (`longlens.models.caches.CacheUse`).
    """
    return str(scores.manifest["model"].get("cache") or "").rpartition("@")[2]


def tail_tokens(scores: Scores) -> int | None:
    """How many tokens at the end of a document were scored under a cache policy, by ``cache_protocol=prefill+tail``.

    One less than there are in the tail, whose first token follows what was read at once. None under another protocol,
    and without a policy: then all were.
    """
    fed = feeding(scores)
    return int(fed.removeprefix("prefill+")) - 1 if fed.startswith("prefill+") else None


def wrong_logprobs(logprobs: Floats) -> str | None:
    """Describes invalid log-probabilities: NaN, or above 0 by more than rounding; None if all are valid."""
    if np.isnan(logprobs).any():
        return "NaN"
    if logprobs.size and float(logprobs.max()) > LOGPROB_ROUNDING:
        return f"{float(logprobs.max()):g}, which is above 0"
    return None
