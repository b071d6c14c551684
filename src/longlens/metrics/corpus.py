"""The documents of a corpus: one model's scores with key tokens, evaluator scores and answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from longlens.corpus.document import Spans, check_answer_spans
from longlens.errors import UserError, shown
from longlens.keytokens.alignment import as_spans, carry_weights, merge_spans, tokens_in_runs, tokens_touching
from longlens.keytokens.influence import soft_influence
from longlens.keytokens.selection import KeySource, KeyTokens, KeyTokensView, select_key_tokens
from longlens.metrics.ngram import reoccurred_ngram_mask
from longlens.metrics.uncertainty import Doubles
from longlens.scoring.scores import Scores, TokenScores, identity_of, same_model
from longlens.settings.options import GAMMA, KeyRule

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
AnswerSpans = Mapping[str, Spans]
"""``[start, end)`` in characters of the answers, by document id."""


@dataclass(frozen=True, kw_only=True)
class Influence:
    """What determines how much a token counts: keys, or evaluator scores, which also yield soft weights.

    Attributes:
        keys: The key tokens; None if only plain perplexity is requested.
        evaluator: Scores of the evaluator; None if the keys were passed.
        gamma: Maximum soft weight; None without soft weights.
        context: K of `keys`; otherwise the requested one, if any.
        stride: d of `keys`.
    """

    keys: KeySource | None
    evaluator: Scores | None
    gamma: float | None
    context: int | None
    stride: int | None


def choose_influence(evaluator_scores: Scores | None, keys: KeySource | None, rule: KeyRule) -> Influence:
    """Converts what a user may pass for the influence into one form.

    Raises:
        UserError: Both are passed; keys are passed with settings that conflict; settings of key tokens are passed
            without evaluator scores or keys; or a context or stride is below 1.
    """
    if keys is not None and evaluator_scores is not None:
        raise UserError("both evaluator scores and keys were passed: pass only one of them")
    for name, tokens in (("context", rule.context), ("stride", rule.stride)):
        if tokens is not None and (tokens < 1 or tokens != int(tokens)):
            raise UserError(f"`{name}` is {tokens}, expected a number of tokens, 1 or more")
    given = [f"`{name}`" for name, value in rule.keywords().items() if value is not None]
    if keys is not None and given:
        raise UserError(
            f"{', '.join(given)} cannot be set with keys, whose tokens are already selected: pass evaluator scores"
        )
    if keys is None and evaluator_scores is None:
        useless = [name for name in given if name != "`context`"]  # which determines where ppl_from_context begins
        if useless:
            raise UserError(
                f"{', '.join(useless)} would have no effect, without evaluator scores or keys: pass one of them, or "
                "leave this out"
            )
        return Influence(keys=None, evaluator=None, gamma=None, context=rule.context, stride=None)
    gamma = None
    if evaluator_scores is not None:
        gamma = GAMMA if rule.gamma is None else rule.gamma
        keys = select_key_tokens(
            evaluator_scores,
            alpha=rule.alpha,
            beta=rule.beta,
            use_lcl=rule.lcl,
            context=rule.context,
            stride=rule.stride,
        )
    assert keys is not None
    return Influence(
        keys=keys,
        evaluator=evaluator_scores,
        gamma=gamma,
        context=keys.settings["context"],
        stride=keys.settings["stride"],
    )


def is_evaluator(scores: Scores, evaluator_scores: Scores | None, keys: KeySource | None) -> bool:
    """Whether the key tokens are known to have been selected by the model of these scores."""
    if evaluator_scores is not None:
        return same_model(scores, evaluator_scores)
    sha256 = None if keys is None else keys.settings.get("evaluator_sha256")
    return sha256 is not None and sha256 == identity_of(scores).sha256


@dataclass(frozen=True, kw_only=True)
class ScoredDocument:
    """One document of n tokens under one model, with the masks and weights of its tokens.

    Attributes:
        row: The model's scores.
        keys: The key tokens; None if none were requested.
        evaluated: The evaluator's scores at the K of the keys; None if they are not available.
        gamma: Maximum soft weight; None without soft weights.
        answer_spans: ``[start, end)`` in characters of the answers; None if none were specified.
    """

    row: TokenScores
    keys: KeyTokens | None
    evaluated: TokenScores | None
    gamma: float | None
    answer_spans: Spans | None

    @cached_property
    def is_key(self) -> Bools | None:
        """``(n,)``: which tokens lie inside a run of key tokens (eq. 9); None without keys."""
        return None if self.keys is None else tokens_in_runs(self.row.char_spans, self.keys.char_runs)

    @cached_property
    def is_answer(self) -> Bools | None:
        """``(n,)``: which tokens share a character with an answer; None if no answer was specified.

        Raises:
            UserError: The answers are not a list of spans, or one is reversed or negative.
        """
        if self.answer_spans is None:
            return None
        # The answer of a truncated text may be in the part that was removed.
        row = self.row
        characters = None if row.text is None or row.truncated else len(row.text)
        spans = check_answer_spans(self.answer_spans, f"document {shown(row.id)}", characters)
        return tokens_touching(row.char_spans, merge_spans(as_spans(spans)))

    @cached_property
    def weights(self) -> Doubles | None:
        """``(n,)``: the influence carried over from the evaluator's tokens (eq. 10); None without evaluator scores."""
        if self.evaluated is None or self.gamma is None:
            return None
        influence = soft_influence(self.evaluated.lsd, gamma=self.gamma)
        return carry_weights(self.evaluated.char_spans, influence, self.row.char_spans)


class Corpus:
    """The scores of one model, with what selects its key tokens and its answers; iterating reads documents.

    Args:
        scores: Scores of the model.
        influence: What determines how much a token counts.
        answers: Answers that replace those stored with the scores.
        name: Display name of the model; by default the name of the scores.

    Raises:
        UserError: There are no documents, or answers were passed for none of them.
    """

    def __init__(
        self, scores: Scores, influence: Influence, answers: AnswerSpans | None = None, *, name: str | None = None
    ) -> None:
        self.scores, self.influence, self.answers = scores, influence, answers
        self.name = name or scores.name
        if not len(scores):
            raise UserError(f"the scores of {self.name} contain no documents: score some, with longlens score DOCS")
        if answers is not None and answers.keys().isdisjoint(scores.ids):
            raise UserError(f"answers were passed for {list(answers)[:3]} …, but none of these documents was scored")

    def __iter__(self) -> Iterator[ScoredDocument]:
        return (self.document(row, evaluated) for row, evaluated in self.rows())

    def rows(self) -> Iterator[tuple[TokenScores, TokenScores | None]]:
        """Yields the model's and the evaluator's scores of one document after the other, as arguments of `document`."""
        for row, evaluated in read_once(self.scores.ids, [self.scores, self.influence.evaluator]):
            assert row is not None
            yield row, evaluated

    def document(self, row: TokenScores, evaluated: TokenScores | None) -> ScoredDocument:
        """A document of the corpus.

        Args:
            row: The model's scores.
            evaluated: The evaluator's scores, if there are evaluator scores; None if they do not include the document.

        Raises:
            UserError: There are no keys or evaluator scores of this document, or they belong to another text.
        """
        keys, evaluator = self.influence.keys, self.influence.evaluator
        selected = None
        if keys is not None:
            try:
                if isinstance(keys, KeyTokensView):
                    evaluated = keys.scores_of(row.id) if evaluator is None else self._at(evaluated, row.id)
                    selected = keys.of(evaluated)
                else:
                    selected = keys.get(row.id)
            except KeyError as error:
                lacking, mend = (
                    ("keys", "select them for all documents")
                    if evaluator is None
                    else (f"scores of the evaluator {keys.settings['evaluator']}", "score the same documents with both")
                )
                raise UserError(
                    f"document {row.id!r} was scored with {self.name}, and has no {lacking}: {mend}"
                ) from error
            self._check_text(row, selected)
        return ScoredDocument(
            row=row,
            keys=selected,
            evaluated=evaluated,
            gamma=self.influence.gamma,
            answer_spans=row.answer_spans if self.answers is None else self.answers.get(row.id),
        )

    def _at(self, evaluated: TokenScores | None, id: str) -> TokenScores:
        """The evaluator's scores at the K of the keys."""
        if evaluated is None:
            raise KeyError(id)
        context, stride = self.influence.context, self.influence.stride
        if context is None or evaluated.selected == (context, stride):
            return evaluated
        return evaluated.at(context=context, stride=stride)

    def _check_text(self, row: TokenScores, selected: KeyTokens) -> None:
        has_evaluator = self.influence.evaluator is not None
        if selected.text_sha256 != row.text_sha256:
            raise UserError(
                f"document {row.id!r}: {self.name} and {'the evaluator' if has_evaluator else 'the keys'} have "
                f"different texts (sha256 {row.text_sha256[:12]}… and {selected.text_sha256[:12]}…): score both with "
                "the same `max_length` and `truncate_with`" + ("" if has_evaluator else ", or use keys of this text")
            )
        if row.text is not None and len(selected.char_runs) and selected.char_runs[-1, 1] > len(row.text):
            raise UserError(
                f"document {shown(row.id)}: a span of its key tokens ends at character {selected.char_runs[-1, 1]}, "
                f"and the text has {len(row.text)}: recreate the key file with longlens keys"
            )


def read_once(ids: Iterable[str], runs: Sequence[Scores | None]) -> Iterator[list[TokenScores | None]]:
    """Yields the scores of one document after the other in each run; None for a run that is None or lacks the document.

    A run that occurs twice is read once, and at most one document is in memory.
    """
    members = {id(run): (run, frozenset(run.ids)) for run in runs if run is not None}
    for name in dict.fromkeys(ids):
        rows = {key: run.get(name) for key, (run, scored) in members.items() if name in scored}
        yield [rows.get(id(run)) for run in runs]


class WeightedSum(NamedTuple):
    """``sum(w * logprob)`` in nats and ``sum(w)``, which is the number of tokens if all w are 1; float64."""

    logprob: float
    weight: float

    @property
    def ppl(self) -> float | None:
        """``exp(-logprob / weight)``; None if the weight is 0 or the value is infinite."""
        if self.weight == 0:
            return None
        with np.errstate(over="ignore"):
            value = float(np.exp(-self.logprob / self.weight))
        return value if np.isfinite(value) else None


@dataclass(frozen=True, kw_only=True)
class DocumentStatistics:
    """Sums over the scored tokens of one document; a scored token is one whose log-probability is not NaN.

    Attributes:
        id: The document's id.
        text_sha256: Hash of its text.
        truncated: Whether it was truncated before it was scored.
        num_characters: Number of characters from the start of the first scored token to the end of the last one.
        num_key_characters: Number of characters that the key tokens cover.
        scored: Sums over all scored tokens.
        key: Sums over key tokens (eq. 9); None without keys.
        soft: Sums over all scored tokens, weighted by the influence carried over from the evaluator's tokens (eq. 10);
            None without evaluator scores.
        from_context: Sums over tokens K, K + 1, … of this model; None if no K is known.
        ngram: Sums over tokens of re-occurred n-grams; None if not requested, or if the text was not stored.
        answers: Sums over tokens that share a character with an answer; None if no answer was specified.
        rest: Sums over the other tokens of a document with answers.
        num_impossible: Number of scored tokens of probability 0 (a log-probability of -inf).
        num_unscored: Number of tokens without a log-probability; at most the first token should have none.
    """

    id: str
    text_sha256: str
    truncated: bool
    num_characters: int
    num_key_characters: int | None
    scored: WeightedSum
    key: WeightedSum | None
    soft: WeightedSum | None
    from_context: WeightedSum | None
    ngram: WeightedSum | None
    answers: WeightedSum | None
    rest: WeightedSum | None
    num_impossible: int
    num_unscored: int

    @property
    def characters(self) -> WeightedSum:
        """Nats over scored tokens, and their characters."""
        return WeightedSum(self.scored.logprob, self.num_characters)

    @property
    def key_characters(self) -> WeightedSum | None:
        """Nats over key tokens, and the characters that they cover; None without keys."""
        return None if self.key is None else WeightedSum(self.key.logprob, self.num_key_characters or 0)

    @property
    def num_tokens(self) -> int:
        """Number of scored tokens."""
        return int(self.scored.weight)

    @property
    def num_key_tokens(self) -> int | None:
        """Number of scored tokens of this model that are key; None without keys."""
        return None if self.key is None else int(self.key.weight)

    @property
    def ppl(self) -> float | None:
        """Perplexity of the document (eq. 1)."""
        return self.scored.ppl

    @property
    def longppl(self) -> float | None:
        """LongPPL of the document (eq. 4); None if it has no key tokens."""
        return None if self.key is None else self.key.ppl


def document_statistics(
    document: ScoredDocument, *, context: int | None = None, ngram: bool = False
) -> DocumentStatistics:
    """Computes the sums over one document.

    Args:
        document: The document.
        context: K, tokens; `from_context` starts at token K.
        ngram: Whether to find re-occurred n-grams.

    Raises:
        UserError: The answer spans are invalid.
    """
    row, key, answer, weights = document.row, document.is_key, document.is_answer, document.weights
    logprobs = row.long_logprobs.astype(np.float64)
    scored = ~np.isnan(logprobs)

    def over(tokens: Bools | None) -> WeightedSum | None:
        return None if tokens is None else _sum_over(logprobs[tokens & scored])

    soft = None
    if weights is not None:
        weighty = scored & (weights > 0)  # avoids 0 * -inf
        soft = WeightedSum(float((weights[weighty] * logprobs[weighty]).sum()), float(weights[weighty].sum()))
    copied = reoccurred_ngram_mask(row.text, row.char_spans) if ngram and row.text is not None else None
    covered = merge_spans(row.char_spans[scored])
    return DocumentStatistics(
        id=row.id,
        text_sha256=row.text_sha256,
        truncated=row.truncated,
        num_characters=int(covered[-1, 1] - covered[0, 0]) if len(covered) else 0,
        num_key_characters=None if key is None else int(np.diff(merge_spans(row.char_spans[key & scored])).sum()),
        scored=_sum_over(logprobs[scored]),
        key=over(key),
        soft=soft,
        from_context=over(None if context is None else np.arange(len(logprobs)) >= context),
        ngram=over(copied),
        answers=over(answer),
        rest=over(None if answer is None else ~answer),
        num_impossible=int(np.isneginf(logprobs).sum()),
        num_unscored=int(np.count_nonzero(~scored)),
    )


def _sum_over(logprobs: Doubles) -> WeightedSum:
    return WeightedSum(float(logprobs.sum()), float(len(logprobs)))
