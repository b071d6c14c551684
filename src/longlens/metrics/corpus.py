"""Reads the scores of a corpus once: the evaluated model's beside the key tokens, or the evaluator's scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from longlens.corpus.document import Spans
from longlens.errors import UserError, shown
from longlens.keytokens.alignment import carry_weights
from longlens.keytokens.influence import check_gamma, soft_influence
from longlens.keytokens.selection import (
    KeySource,
    KeyTokens,
    KeyTokensView,
    near_threshold_message,
    select_key_tokens,
    warn_near_threshold,
)
from longlens.metrics.documents import DocumentStatistics, document_statistics
from longlens.scoring.scores import Scores, TokenScores, identity_of, same_model
from longlens.settings.options import GAMMA

AnswerSpans = Mapping[str, Spans]
_MODEL_SETTINGS = ("bos", "max_length", "dtype")


@dataclass(frozen=True, kw_only=True)
class Influence:
    """What decides how much a token counts: keys, or the evaluator's scores that also give soft weights.

    Attributes:
        keys: The key tokens; None where only plain perplexity is asked for.
        evaluator: Its scores; None where the keys were given.
        gamma: Largest soft weight; None where there are none.
        context: K of `keys`; else the one that was asked for, if any.
        stride: d, likewise.
    """

    keys: KeySource | None
    evaluator: Scores | None
    gamma: float | None
    context: int | None
    stride: int | None


def choose_influence(
    evaluator_scores: Scores | None,
    keys: KeySource | None,
    *,
    alpha: float | None = None,
    beta: float | None = None,
    gamma: float | None = None,
    use_lcl: bool | None = None,
    context: int | None = None,
    stride: int | None = None,
) -> Influence:
    """Puts what a user may name for the influence into one form; a setting that was not given is None.

    Raises:
        UserError: Both were given; keys with settings that they have already; settings of key tokens, with nothing that
            selects any; a context or a stride below 1.
    """
    if keys is not None and evaluator_scores is not None:
        raise UserError("both evaluator scores and keys were given, and they decide the same: give one of them")
    settings = {"alpha": alpha, "beta": beta, "use_lcl": use_lcl, "gamma": gamma, "context": context, "stride": stride}
    given = [name for name, value in settings.items() if value is not None]
    for name in ("context", "stride"):
        check_tokens(name, settings[name])
    if keys is not None and given:
        raise UserError(
            f"{', '.join(given)} cannot be chosen with keys, which were selected already: give evaluator scores"
        )
    if keys is None and evaluator_scores is None:
        useless = [name for name in given if name != "context"]  # which says where ppl_from_context begins
        if useless:
            raise UserError(
                f"{', '.join(useless)} would have no effect, as there are neither evaluator scores nor keys: give one "
                "of them, or leave this out"
            )
        return Influence(keys=None, evaluator=None, gamma=None, context=context, stride=None)
    if evaluator_scores is not None:
        gamma = GAMMA if gamma is None else gamma
        check_gamma(gamma)  # before anything is read
        keys = select_key_tokens(
            evaluator_scores, alpha=alpha, beta=beta, use_lcl=use_lcl, context=context, stride=stride
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


def check_tokens(name: str, value: float | None) -> None:
    """Refuses a number of tokens below 1; None is one that was not given.

    Raises:
        UserError: It is below 1, or no integer.
    """
    if value is not None and (value < 1 or value != int(value)):
        raise UserError(f"{name} is {value}, expected a number of tokens, 1 or more")


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """One model's documents under one influence.

    Attributes:
        model: Its name.
        evaluator: The evaluator's name; None without one.
        documents: Sorted by id, so that what a seed draws does not depend on the order of scoring.
        settings: See `PerplexityResult`.
        notes: What has to be known before a number is relied on.
        near: Number of evaluator tokens near a threshold, of its key tokens, and its dtype.
    """

    model: str
    evaluator: str | None
    documents: Sequence[DocumentStatistics]
    settings: Mapping[str, Any]
    notes: Sequence[str]
    near: tuple[int, int, str | None]

    def warn(self) -> None:
        """Warns of tokens near a threshold, in the name of the caller's caller."""
        warn_near_threshold(*self.near, stacklevel=4)


def read_corpus(
    model_scores: Scores,
    influence: Influence,
    answers: AnswerSpans | None,
    *,
    name: str | None = None,
    ngram: bool = False,
) -> Corpus:
    """The statistics of every document; one pass over the scores, one document in memory at a time.

    Args:
        model_scores: Of the evaluated model.
        influence: What decides how much a token counts.
        answers: As for `perplexity`.
        name: What the model is called; its name in the manifest unless given.
        ngram: Whether to find re-occurred n-grams.

    Raises:
        UserError: There are no documents, one has no keys or evaluator scores, or those are of another text; answers
            were given and are for none of the documents.
    """
    model = name or str(model_scores.manifest["model"]["name"])
    context = influence.context
    if influence.keys is None and context is None and model_scores.selected is not None:
        context = model_scores.selected.context
    documents: list[DocumentStatistics] = []
    near = total = longest = 0
    for row in model_scores:
        found, weights, num_tokens = influence_of(row, model, influence)
        longest = max(longest, num_tokens)
        if found is not None:
            near += found.num_near_threshold or 0
            total += found.num_key_tokens or 0
        documents.append(
            document_statistics(
                row,
                char_runs=None if found is None else found.char_runs,
                weights=weights,
                context=context,
                answer_spans=row.answer_spans if answers is None else answers.get(row.id),
                ngram=ngram,
            )
        )
    if not documents:
        raise UserError(f"the scores of {model} hold no documents: score some, with longlens score DOCS")
    if answers is not None and all(document.answers is None for document in documents):
        raise UserError(f"answers were given for {list(answers)[:3]} …, and none of these documents was scored")
    dtype = influence.keys.settings["dtype"] if influence.keys is not None else None
    documents.sort(key=lambda document: document.id)
    return Corpus(
        model=model,
        evaluator=None if influence.keys is None else influence.keys.settings["evaluator"],
        documents=documents,
        settings=_settings(model_scores, influence, context),
        notes=[
            *_notes_on_incomplete(model_scores),
            *_notes_on_evaluator(model_scores, influence),
            *filter(None, [near_threshold_message(near, total, dtype)]),
            *_notes_on_documents(model, documents, ngram),
            *_notes_on_key_tokens(model, documents, influence, total, longest),
        ],
        near=(near, total, dtype),
    )


def influence_of(
    row: TokenScores, model: str, influence: Influence
) -> tuple[KeyTokens | None, npt.NDArray[np.float64] | None, int]:
    """The key tokens of a document, the weights that carry over to its tokens, and the evaluator's number of tokens.

    Without keys the first is None, without gamma the second; the third is the model's own where the evaluator's scores
    are not at hand.

    Args:
        row: The evaluated model's scores of it.
        model: Its name, for messages.
        influence: What decides.

    Raises:
        UserError: There are no keys or evaluator scores of this document, or they are of another text.
    """
    keys, gamma = influence.keys, influence.gamma
    if keys is None:
        return None, None, len(row.token_ids)
    evaluated: TokenScores | None = None
    try:
        if isinstance(keys, KeyTokensView):
            evaluated = keys.scores_of(row.id)
            found = keys.of(evaluated)
        else:
            found = keys.get(row.id)
    except KeyError as error:
        lacking, mend = (
            ("keys", "select them for all documents")
            if influence.evaluator is None
            else (f"scores of the evaluator {keys.settings['evaluator']}", "score the same documents with both")
        )
        raise UserError(f"document {row.id!r} was scored with {model}, and has no {lacking}: {mend}") from error
    if found.text_sha256 != row.text_sha256:
        raise UserError(
            f"document {row.id!r}: {model} and {'the keys' if influence.evaluator is None else 'the evaluator'} are of "
            f"different texts (sha256 {row.text_sha256[:12]}… and {found.text_sha256[:12]}…): score both with the same "
            "--max-length and --truncate-with" + (", or use keys of this text" if influence.evaluator is None else "")
        )
    if row.text is not None and len(found.char_runs) and found.char_runs[-1, 1] > len(row.text):
        raise UserError(
            f"document {shown(row.id)}: a run of its key tokens ends at character {found.char_runs[-1, 1]}, and the "
            f"text has {len(row.text)}: write the keys again with longlens keys"
        )
    num_tokens = len(row.token_ids if evaluated is None else evaluated.token_ids)
    if evaluated is None or gamma is None:
        return found, None, num_tokens
    weights = carry_weights(evaluated.char_spans, soft_influence(evaluated.lsd, gamma=gamma), row.char_spans)
    return found, weights, num_tokens


def _settings(model_scores: Scores, influence: Influence, context: int | None) -> dict[str, Any]:
    recorded = model_scores.manifest["settings"]
    chosen = {} if influence.keys is None else influence.keys.settings
    settings: dict[str, Any] = {
        "context": context,
        "stride": influence.stride,
        "alpha": chosen.get("alpha"),
        "beta": chosen.get("beta"),
        "gamma": influence.gamma,
        "lcl": chosen.get("lcl"),
    }
    settings |= {name: recorded.get(name) for name in _MODEL_SETTINGS}
    for name in ("bos", "dtype"):
        if chosen.get(name) not in (None, settings[name]):
            settings[f"evaluator_{name}"] = chosen[name]
    return settings


def _notes_on_incomplete(model_scores: Scores) -> list[str]:
    if not model_scores.num_incomplete:
        return []
    return [
        f"{model_scores.num_incomplete} documents lack the short context that is asked for and are left out: run the "
        "same longlens score command again to finish them"
    ]


def _notes_on_evaluator(model_scores: Scores, influence: Influence) -> list[str]:
    notes = []
    model = model_scores.manifest["model"]
    if is_evaluator(model_scores, influence.evaluator, influence.keys):
        notes.append(
            f"{model['name']} is its own evaluator: the paper (appendix B.2, table 6) finds that such a LongPPL says "
            "little of long-context ability; use a strong long-context model as the evaluator"
        )
    extra = 0 if influence.evaluator is None else len(influence.evaluator) - len(model_scores)
    if extra > 0:
        notes.append(f"{extra} documents of the evaluator were not scored with {model['name']} and are left out")
    return notes


def _notes_on_documents(model: str, documents: Sequence[DocumentStatistics], ngram: bool) -> list[str]:
    notes = []
    impossible = {document.id: document.num_impossible for document in documents if document.num_impossible}
    if impossible:
        notes.append(
            f"{_names(impossible)}: {sum(impossible.values())} tokens have probability 0 under {model}, so that every "
            "perplexity they are part of is infinite and given as null"
        )
    unscored = {document.id: document.num_unscored for document in documents if document.num_unscored > 1}
    if unscored:
        notes.append(
            f"{_names(unscored)}: {sum(unscored.values())} tokens have no log-probability under {model}, where only a "
            "first token should have none; the model may have given NaN"
        )
    if ngram and all(document.ngram is None for document in documents):
        notes.append(f"{model} was scored with --no-text, so there is no perplexity on re-occurred n-grams")
    return notes


def _notes_on_key_tokens(
    model: str, documents: Sequence[DocumentStatistics], influence: Influence, total: int, longest: int
) -> list[str]:
    """Why there is no key token, where there is none: too short, none selected, or none that lies in a run."""
    if not all(document.num_key_tokens == 0 for document in documents):
        return []
    nothing = f"no token of {model} is key, so it has no LongPPL: "
    if total:
        return [nothing + f"none of its tokens lies inside one of the {total:,} key tokens of the evaluator"]
    if influence.context is not None and longest <= influence.context:
        return [
            nothing + f"the longest document has {longest:,} tokens, and only tokens after the first "
            f"{influence.context:,} (K) can be key; score longer documents, or with a smaller --context"
        ]
    return [nothing + "the evaluator selects none in these documents; a lower --alpha or --beta selects more"]


def _names(documents: Mapping[str, int]) -> str:
    first = ", ".join(repr(id) for id in list(documents)[:3])
    return f"document {first}" if len(documents) == 1 else f"{len(documents)} documents ({first}, …)"
