"""Offline LongCE weights: from stored scores to a column of a dataset, so that training has no short pass.

Online, LongCE takes both log-probabilities from the model as it is at each step. Offline they come from a model that
stands still: the base model or any evaluator. ``token_weights`` costs nothing in training; ``short_logprobs`` leaves
the long side to the model in training, which computes it anyway.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from longlens.corpus import text_sha256
from longlens.data.columns import CARRIED, NEUTRAL, columns_of
from longlens.errors import UserError
from longlens.keytokens.alignment import carry_weights
from longlens.keytokens.influence import GAMMA, soft_influence
from longlens.scoring.scores import Scores, TokenScores

if TYPE_CHECKING:
    from datasets import Dataset

    from longlens.tokenization import TextEncoder

What = Literal["token_weights", "short_logprobs"]
Floats = npt.NDArray[np.float32]


def weigh(
    dataset: Dataset,
    scores: Scores,
    *,
    gamma: float = GAMMA,
    what: What = "token_weights",
    column: str | None = None,
    id_field: str = "id",
    text_field: str = "text",
    encoder: TextEncoder | None = None,
) -> Dataset:
    """Adds a column of weights (or of short log-probabilities) to a dataset, an entry for each token of a row.

    Args:
        dataset: A document a row, with its id, and ``input_ids`` or a text; of texts the tokens are added as well.
        scores: Of the same documents; several K: the selected one is meant.
        gamma: The largest weight.
        what: See `weights_of`.
        column: Its name; ``what`` unless given.
        id_field: Field with the id that the document was scored under.
        text_field: Field with its text, for rows without ``input_ids``.
        encoder: Of the model that is to be trained, where that is not the one that scored: weights are carried over by
            characters (eq. 10). For rows with a text.

    Raises:
        UserError: A row that was not scored, or with another text; see `weights_of`.
    """
    import datasets

    column = column or what
    if column in dataset.column_names:
        raise UserError(f"the dataset has a column {column!r} already: remove it, or name another one")
    kinds = {column: "float32"} | ({} if "input_ids" in dataset.column_names else {"input_ids": "int32"})
    features = datasets.Features(
        {**dataset.features, **{name: datasets.List(datasets.Value(kind)) for name, kind in kinds.items()}}
    )

    def added(row: Mapping[str, Any], number: int) -> dict[str, Any]:
        place = f"row {number + 1}"
        found = weigh_row(
            row, place, scores, gamma=gamma, what=what, id_field=id_field, text_field=text_field, encoder=encoder
        )
        return {name: found[what if name == column else name] for name in kinds}

    # The fingerprint is given, since the library would hash the scores for one.
    fingerprint = uuid.uuid4().hex
    return dataset.with_format(None).map(added, with_indices=True, features=features, new_fingerprint=fingerprint)


def weigh_row(
    row: Mapping[str, Any],
    place: str,
    scores: Scores,
    *,
    gamma: float = GAMMA,
    what: What = "token_weights",
    id_field: str = "id",
    text_field: str = "text",
    encoder: TextEncoder | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """``input_ids`` of a row, and what there is to say of each; see `weigh` for the arguments.

    Args:
        row: Its fields.
        place: Where it is, for messages.
        scores: As in `weigh`.
        gamma: As in `weigh`.
        what: As in `weigh`.
        id_field: As in `weigh`.
        text_field: As in `weigh`.
        encoder: As in `weigh`.

    Raises:
        UserError: It was not scored, or with another text.
    """
    if what not in NEUTRAL:
        raise UserError(f"what is {what!r}; expected {' or '.join(NEUTRAL)}")
    id = row.get(id_field)
    if id is None:
        raise UserError(f"{place} has no field {id_field!r}, which says which document it is: name it with --id-field")
    scored = _scores_of(str(id), place, scores)
    same = encoder is None or encoder.sha256 == scores.manifest["model"]["tokenizer_sha256"]
    if row.get("input_ids") is not None:
        if not same:
            raise UserError(
                f"{place} has input_ids and was scored with another tokenizer: only weights of a text can be carried "
                "over, so give the texts, or score with a model of this tokenizer"
            )
        ids = columns_of({"input_ids": row["input_ids"]}, place)["input_ids"]
        return {"input_ids": ids, what: _beside(ids, scored, place, what, gamma)}
    _check_text(row.get(text_field), scored, place, text_field)
    if same:
        return {"input_ids": scored.token_ids.astype(np.int32), what: weights_of(scored, what=what, gamma=gamma)}
    if what == "short_logprobs":
        raise UserError(
            "short log-probabilities are of the tokens of one tokenizer, and the scores are of another: score with a "
            "model of the tokenizer in training, or write weights, which are carried over by characters"
        )
    assert encoder is not None
    encoded = encoder.encode(row[text_field])
    weights = weights_of(scored, what=what, gamma=gamma)
    return {
        "input_ids": encoded.token_ids.astype(np.int32),
        what: carry_ones(scored.char_spans, weights, encoded.char_spans).astype(np.float32),
    }


def weights_of(scores: TokenScores, *, what: What = "token_weights", gamma: float = GAMMA) -> Floats:
    """``min(exp(LSD), gamma)`` (eq. 7) for each token, 1 where it has no short score; or its short log-probability.

    Args:
        scores: Of one document, n tokens.
        what: ``token_weights``; or ``short_logprobs``, nats, NaN where there is none.
        gamma: The largest weight.

    Returns:
        ``(n,)`` float32.

    Raises:
        UserError: The run has no short scores, or gamma is not a finite number above 0.
    """
    if what == "short_logprobs":
        return scores.short_logprobs
    weights = np.where(np.isnan(scores.lsd), 1.0, soft_influence(scores.lsd, gamma=gamma))
    return weights.astype(np.float32)


def carry_ones(source_spans: npt.ArrayLike, weights: npt.ArrayLike, target_spans: npt.ArrayLike) -> npt.NDArray[Any]:
    """`longlens.keytokens.alignment.carry_weights`, where a character that no source token has weighs 1, not 0.

    Args:
        source_spans: ``(n, 2)``.
        weights: ``(n,)`` finite.
        target_spans: ``(n', 2)``.

    Returns:
        ``(n',)`` float64; 1 for an empty target token.
    """
    covered = carry_weights(source_spans, np.ones(len(np.asarray(weights))), target_spans)
    return carry_weights(source_spans, weights, target_spans) + (1 - covered)


def _scores_of(id: str, place: str, scores: Scores) -> TokenScores:
    try:
        return scores.get(id)
    except KeyError as error:
        waiting = f", {scores.num_incomplete} more are not complete" if scores.num_incomplete else ""
        raise UserError(
            f"{place} has the id {id!r}, which was not scored ({len(scores)} documents were{waiting}): score the same "
            "documents, or name the field of the ids with --id-field"
        ) from error


def _check_text(text: Any, scored: TokenScores, place: str, text_field: str) -> None:
    if not isinstance(text, str):
        raise UserError(f"{place} has neither input_ids nor a text in the field {text_field!r}: pass --text-field")
    if text_sha256(text) != scored.text_sha256:
        cut = f" (the scores are of its first {len(scored.token_ids)} tokens)" if scored.truncated else ""
        raise UserError(
            f"{place} has the id {scored.id!r} and another text than was scored{cut}: score the same texts, "
            "whole: cut them before, or use a larger --max-length"
        )


def _beside(ids: npt.NDArray[Any], scored: TokenScores, place: str, what: What, gamma: float) -> Floats:
    """What is known of tokenized rows, which may have a token such as BOS or EOS around those that were scored."""
    n = len(scored.token_ids)
    for before in (0, 1):
        if before + n <= len(ids) <= before + n + 1 and np.array_equal(ids[before : before + n], scored.token_ids):
            column = np.full(len(ids), NEUTRAL[what], dtype=CARRIED[what])
            column[before : before + n] = weights_of(scored, what=what, gamma=gamma)
            return column
    raise UserError(
        f"{place} has the id {scored.id!r} and other tokens than were scored ({len(ids)} here, {n} there): it is of "
        "another text or tokenizer: score the same documents, or give the texts"
    )
