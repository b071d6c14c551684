"""What context reach is computed from: the gains of every document at every K, on all, key and answer tokens."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np

from longlens.errors import UserError
from longlens.keytokens.alignment import merge_spans
from longlens.metrics.corpus import Bools, Corpus
from longlens.metrics.uncertainty import Doubles
from longlens.scoring.scores import Scores, ShortContext, TokenScores

MIN_CONTEXTS = 3
Tokens = Literal["all", "keys", "answers"]
"""Which tokens a curve is of."""


class DocumentGains(NamedTuple):
    """Of one document, over its tokens in S: the gains at K_1, …, K_m and the whole context, ``(m + 1,)`` nats."""

    gains: Doubles
    num_tokens: int
    num_characters: int


class GainSums:
    """The gains of every document of a corpus.

    Args:
        corpus: Whose documents are added; its keys are selected at K_1.

    Raises:
        UserError: Fewer than three K were scored, or with d > K/2.

    Attributes:
        shorts: K_1 < K_2 < … < K_m, each with its smallest d.
        num_near: Evaluator tokens near a threshold.
        num_key_tokens: Key tokens of the evaluator.
        num_short: Documents of K_m tokens or fewer.
        num_incomplete: Documents that lack one of the short contexts.
        num_left_out: Tokens without a finite score under one of the contexts.
    """

    def __init__(self, corpus: Corpus) -> None:
        self.corpus, self.name = corpus, str(corpus.scores.manifest["model"]["name"])
        self.shorts = rising_contexts(corpus.scores)
        self.num_near = self.num_key_tokens = self.num_short = self.num_left_out = 0
        self.num_incomplete = corpus.scores.num_incomplete
        self._texts: dict[str, str] = {}
        self._gains: dict[str, dict[str, DocumentGains]] = {tokens: {} for tokens in get_args(Tokens)}

    @property
    def contexts(self) -> tuple[int, ...]:
        """K_1, …, K_m."""
        return tuple(short.context for short in self.shorts)

    @property
    def texts(self) -> dict[str, str]:
        """Hash of the text of each document that counts, by its id, in their order."""
        return dict(sorted(self._texts.items()))

    def of(self, tokens: Tokens) -> list[DocumentGains]:
        """The gains of every document on these tokens, sorted by id, so that the order of scoring decides nothing."""
        return [gains for _, gains in sorted(self._gains[tokens].items())]

    def add(self, row: TokenScores, evaluated: TokenScores | None) -> None:
        """Counts a document in, if it was scored at every K: the model's scores, and the evaluator's if there are any.

        Raises:
            UserError: What `Corpus.document` refuses.
        """
        shorts = self.shorts
        if any(short not in row.short for short in shorts):
            self.num_incomplete += 1
            return
        document = self.corpus.document(row, evaluated)
        logprobs = np.stack([*(row.short[short] for short in shorts), row.long_logprobs]).astype(np.float64)
        late = np.arange(logprobs.shape[1]) >= shorts[-1].context
        usable = late & np.isfinite(logprobs).all(axis=0)
        self.num_short += not late.any()
        self.num_left_out += int(np.count_nonzero(late & ~usable))
        if document.keys is not None:
            self.num_near += document.keys.num_near_threshold or 0
            self.num_key_tokens += document.keys.num_key_tokens or 0
        self._texts[row.id] = row.text_sha256
        for tokens, chosen in (("all", usable), ("keys", document.is_key), ("answers", document.is_answer)):
            if chosen is not None:
                self._gains[tokens][row.id] = _document_gains(row, logprobs, usable & chosen)


def rising_contexts(scores: Scores) -> list[ShortContext]:
    """K_1 < K_2 < … < K_m, each with its smallest d.

    Raises:
        UserError: They are fewer than three, or d > K/2.
    """
    strides: dict[int, int] = {}
    for short in sorted(scores.short_contexts):
        strides.setdefault(short.context, short.stride)
    name = scores.manifest["model"]["name"]
    if len(strides) < MIN_CONTEXTS:
        have = ", ".join(f"K={context}" for context in strides) or "no short context"
        raise UserError(
            f"{name} was scored at {have}, and a reach needs {MIN_CONTEXTS} different K: score it with several, such "
            "as `context=64,128,256` and `stride=32,64,128`"
        )
    for context, stride in strides.items():
        if 2 * stride > context:
            raise UserError(
                f"{name} was scored at K={context} with d={stride}, so that its tokens have {context} to "
                f"{context + stride - 1} tokens of context; a reach needs d <= K/2: score with `context={context}` and "
                f"`stride={max(1, context // 2)}`"
            )
    return [ShortContext(context, stride) for context, stride in strides.items()]


def check_reference(model: GainSums, reference: GainSums) -> None:
    """Refuses a reference that cannot be compared with the model.

    Raises:
        UserError: It was scored at other K, or on other documents or texts.
    """
    wanted, have = (",".join(map(str, gains.contexts)) for gains in (model, reference))
    if have != wanted:
        raise UserError(
            f"the reference {reference.name} was scored at K={have} and {model.name} at K={wanted}: score both with "
            f"the same contexts, such as `context={wanted}`"
        )
    ours, theirs = model.texts, reference.texts
    for id in sorted(ours.keys() | theirs.keys()):
        pair = ours.get(id), theirs.get(id)
        if pair[0] != pair[1]:
            unlike = "different texts in the scores of" if None not in pair else "not in both of the scores of"
            raise UserError(
                f"document {id!r} is {unlike} {model.name} and of the reference {reference.name}: score the same "
                "documents with both, with the same `max_length` and `truncate_with`"
            )


def _document_gains(row: TokenScores, logprobs: Doubles, chosen: Bools) -> DocumentGains:
    return DocumentGains(
        gains=(logprobs[:, chosen] - logprobs[0, chosen]).sum(axis=1),
        num_tokens=int(np.count_nonzero(chosen)),
        num_characters=int(np.diff(merge_spans(row.char_spans[chosen])).sum()),
    )
