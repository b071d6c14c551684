"""Offline LongCE weights: from stored scores to a column of a dataset, so that training has no short-context pass.

Online, LongCE computes both log-probabilities with the current model at each step. Offline, they come from a fixed
model: the base model or any evaluator. ``token_weights`` costs nothing in training; with ``short_logprobs``, the long
side still comes from the model in training, which computes it anyway.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longlens.corpus import read_documents, text_sha256
from longlens.data.documents import fingerprint, read_dataset_rows
from longlens.data.store import CARRIED, COUNTS, NEUTRAL, DatasetFolder, read_columns
from longlens.errors import UserError
from longlens.files import read_json
from longlens.keytokens.alignment import carry_weights
from longlens.keytokens.influence import soft_influence
from longlens.runs.processes import Processes
from longlens.runs.sharing import BYTES_PER_TOKEN
from longlens.scoring.scores import Scores, TokenScores, identity_of
from longlens.settings.options import GAMMA, Reading

if TYPE_CHECKING:
    from datasets import Dataset

    from longlens.tokenization import TextEncoder

OfflineColumn = Literal["token_weights", "short_logprobs"]
Floats = npt.NDArray[np.float32]


def weigh(
    dataset: Dataset,
    scores: Scores,
    *,
    gamma: float = GAMMA,
    what: OfflineColumn = "token_weights",
    column: str | None = None,
    id_field: str = "id",
    text_field: str = "text",
    encoder: TextEncoder | None = None,
) -> Dataset:
    """Adds a column of weights (or of short log-probabilities) to a dataset, one entry per token of a row.

    Args:
        dataset: One document per row, with its id, and ``input_ids`` or a text; for texts, tokens are added as well.
        scores: Scores of the same documents; with several K, the selected one is used.
        gamma: The maximum weight.
        what: ``token_weights`` or ``short_logprobs``, see `Weigher`.
        column: Name of the column; ``what`` by default.
        id_field: Field with the id under which the document was scored.
        text_field: Field with its text, for rows without ``input_ids``.
        encoder: Encoder for the model that is to be trained, where that is not the one that scored: weights are carried
            over by characters (eq. 10). For rows with a text.

    Raises:
        UserError: A row was not scored, or scored with another text; the run has no short-context scores; or gamma is
            not a finite number above 0.
    """
    import datasets

    column = column or what
    if column in dataset.column_names:
        raise UserError(f"the dataset has a column {column!r} already: remove it, or use another name")
    weigher = Weigher(scores=scores, gamma=gamma, what=what, encoder=encoder, id_field=id_field, text_field=text_field)
    kinds = {column: "float32"} | ({} if "input_ids" in dataset.column_names else {"input_ids": "int32"})
    features = datasets.Features(
        {**dataset.features, **{name: datasets.List(datasets.Value(kind)) for name, kind in kinds.items()}}
    )

    def add(row: Mapping[str, Any], number: int) -> dict[str, Any]:
        found = weigher.weigh_row(row, f"row {number + 1}")
        return {name: found[what if name == column else name] for name in kinds}

    # The fingerprint is passed, since the library would otherwise hash the scores.
    return dataset.with_format(None).map(add, with_indices=True, features=features, new_fingerprint=uuid.uuid4().hex)


def weigh_folder(
    sources: Sequence[str],
    scores: Scores,
    out: str | os.PathLike[str],
    *,
    gamma: float = GAMMA,
    what: OfflineColumn = "token_weights",
    encoder: TextEncoder | None = None,
    tokenized: bool = False,
    reading: Reading | None = None,
) -> dict[str, Any]:
    """Writes ``id``, ``input_ids`` and ``token_weights`` (or ``short_logprobs``) of scored documents.

    Processes that torchrun started share the documents; rows and files are those of one process.

    Args:
        sources: The documents: texts, or tokenized rows, with the ids under which they were scored.
        scores: Scores of these documents; with several K, the selected one is used.
        out: A new folder.
        gamma: The maximum weight.
        what: ``token_weights`` or ``short_logprobs``, see `Weigher`.
        encoder: Encoder for the model that is to be trained, if it is not the one that scored.
        tokenized: Whether rows contain ``input_ids``.
        reading: Fields and split.

    Returns:
        Content of counts.json: ``documents``, ``tokens``; for weights, ``mean_weight`` and ``at_gamma``, the number of
        weights equal to gamma; for short log-probabilities, ``without_short_score``, the number of tokens without one.

    Raises:
        UserError: A document was not scored, or scored with another text; the folder contains something else; or the
            disk is full.
    """
    reading = Reading() if reading is None else reading
    model = scores.manifest["model"]
    settings = {
        "sources": {source: fingerprint(source) for source in sources},
        "what": what,
        "gamma": gamma if what == "token_weights" else None,
        "short_context": None if scores.selected is None else list(scores.selected),
        "scored_with": identity_of(scores).sha256,
        "scored_as": scores.manifest["settings"],
        "tokenizer_sha256": model["tokenizer_sha256"] if encoder is None else encoder.sha256,
    }
    weigher = Weigher(
        scores=scores,
        gamma=gamma,
        what=what,
        encoder=encoder,
        id_field=reading.id_field,
        text_field=reading.text_field,
    )
    if tokenized:
        found: Iterable[tuple[str, Mapping[str, Any]]] = (
            (row.place, row.values) for row in read_dataset_rows(sources, reading)
        )
    else:
        documents = read_documents(sources, reading)
        # read_documents assigns the same ids as scoring, even to rows without an id.
        found = ((f"document {d.id!r}", {reading.id_field: d.id, reading.text_field: d.text}) for d in documents)

    def characters(placed: tuple[str, Mapping[str, Any]]) -> int:
        ids = placed[1].get("input_ids") if tokenized else None
        return len(placed[1].get(reading.text_field) or "") if ids is None else BYTES_PER_TOKEN * len(ids)

    def rows(placed: Iterable[tuple[str, Mapping[str, Any]]], counts: dict[str, Any]) -> Iterator[dict[str, Any]]:
        counts |= {"documents": 0, "tokens": 0} | dict.fromkeys(summed, 0)
        for place, row in placed:
            columns = weigher.weigh_row(row, place)
            values = columns[what].astype(np.float64)
            counts["documents"] += 1
            counts["tokens"] += len(values)
            if what == "short_logprobs":
                counts["without_short_score"] += int(np.isnan(values).sum())
            else:
                counts["weights"] += float(values.sum())
                counts["at_gamma"] += int((values == np.float32(gamma)).sum())
            yield {"id": str(row[reading.id_field]), **columns}

    summed = ("without_short_score",) if what == "short_logprobs" else ("weights", "at_gamma")
    schema = pa.schema([("id", pa.string()), ("input_ids", pa.list_(pa.int32())), (what, pa.list_(pa.float32()))])
    with Processes() as processes, DatasetFolder(Path(out), "weighed", settings, processes) as folder:
        if folder.counts is not None:
            return folder.counts
        chunks = folder.write_chunks("data", found, schema, characters=characters, rows=rows)
        if processes.rank > 0:
            return folder.finish(None)
        made = [read_json(chunk / COUNTS) for chunk in chunks]
        counts = {name: sum(one[name] for one in made) for name in ("documents", "tokens", *summed)}
        if "weights" in counts:
            counts["mean_weight"] = counts.pop("weights") / max(counts["tokens"], 1)
        folder.join("data", chunks)
        return folder.finish(counts)


@dataclass(frozen=True, kw_only=True)
class Weigher:
    """Maps a row of a dataset to its tokens and their values from stored scores.

    ``token_weights`` is ``min(exp(LSD), gamma)`` (eq. 7), 1 for tokens without a short-context score;
    ``short_logprobs`` is in nats, NaN where a token has none.

    Attributes:
        scores: Scores of the documents.
        gamma: The maximum weight.
        what: Which of the two columns.
        encoder: Encoder for the model that is to be trained, if it is not the one that scored.
        id_field: Field with the id under which the document was scored.
        text_field: Field with its text, for rows without ``input_ids``.
    """

    scores: Scores
    gamma: float = GAMMA
    what: OfflineColumn = "token_weights"
    encoder: TextEncoder | None = None
    id_field: str = "id"
    text_field: str = "text"

    def __post_init__(self) -> None:
        """Checks the arguments."""
        if self.what not in NEUTRAL:
            raise UserError(f"`what` is {self.what!r}; expected {' or '.join(NEUTRAL)}")

    def weigh_row(self, row: Mapping[str, Any], place: str) -> dict[str, npt.NDArray[Any]]:
        """``input_ids`` of a row, and the column.

        Args:
            row: Fields of the row.
            place: Location of the row, for messages.

        Raises:
            UserError: It was not scored, or was scored with another text.
        """
        id, encoder, what = row.get(self.id_field), self.encoder, self.what
        if id is None:
            raise UserError(f"{place} has no field {self.id_field!r}, which identifies the document: set `id_field`")
        scored = self._scores_of(str(id), place)
        same = encoder is None or encoder.sha256 == self.scores.manifest["model"]["tokenizer_sha256"]
        if row.get("input_ids") is not None:
            if not same:
                raise UserError(
                    f"{place} has input_ids and was scored with another tokenizer: only weights of a text can be "
                    "carried over, so pass the texts, or score with a model of this tokenizer"
                )
            ids = read_columns({"input_ids": row["input_ids"]}, place)["input_ids"]
            return {"input_ids": ids, what: self._beside(ids, scored, place)}
        self._check_text(row.get(self.text_field), scored, place)
        if same:
            return {
                "input_ids": scored.token_ids.astype(np.int32),
                what: weights_of(scored, what=what, gamma=self.gamma),
            }
        if what == "short_logprobs":
            raise UserError(
                "short log-probabilities are of the tokens of one tokenizer, and the scores are of another: score with "
                "a model of the tokenizer in training, or write weights, which are carried over by characters"
            )
        assert encoder is not None
        encoded = encoder.encode(row[self.text_field])
        weights = carry_with_ones(scored.char_spans, self._column(scored), encoded.char_spans)
        return {"input_ids": encoded.token_ids.astype(np.int32), what: weights.astype(np.float32)}

    def _column(self, scored: TokenScores) -> Floats:
        return weights_of(scored, what=self.what, gamma=self.gamma)

    def _scores_of(self, id: str, place: str) -> TokenScores:
        scores = self.scores
        try:
            return scores.get(id)
        except KeyError as error:
            waiting = f", {scores.num_incomplete} more are not complete" if scores.num_incomplete else ""
            raise UserError(
                f"{place} has the id {id!r}, which was not scored ({len(scores)} documents were{waiting}): score the "
                "same documents, or set the field of the ids with `id_field`"
            ) from error

    def _check_text(self, text: Any, scored: TokenScores, place: str) -> None:
        if not isinstance(text, str):
            raise UserError(
                f"{place} has neither input_ids nor a text in the field {self.text_field!r}: set `text_field`"
            )
        if text_sha256(text) != scored.text_sha256:
            cut = f" (the scores are of its first {len(scored.token_ids)} tokens)" if scored.truncated else ""
            raise UserError(
                f"{place} has the id {scored.id!r} and another text than was scored{cut}: score the same texts, "
                "whole: cut them before, or score with a larger `max_length`"
            )

    def _beside(self, ids: npt.NDArray[Any], scored: TokenScores, place: str) -> Floats:
        """The column of tokenized rows, which may have tokens such as BOS or EOS around the scored ones."""
        n = len(scored.token_ids)
        for before in (0, 1):
            if before + n <= len(ids) <= before + n + 1 and np.array_equal(ids[before : before + n], scored.token_ids):
                column = np.full(len(ids), NEUTRAL[self.what], dtype=CARRIED[self.what])
                column[before : before + n] = self._column(scored)
                return column
        raise UserError(
            f"{place} has the id {scored.id!r} and other tokens than were scored ({len(ids)} here, {n} there): it is "
            "from another text or tokenizer: score the same documents, or pass the texts"
        )


def weights_of(scores: TokenScores, *, what: OfflineColumn = "token_weights", gamma: float = GAMMA) -> Floats:
    """``(n,)`` float32: the column of a document that was scored, see `Weigher`.

    Raises:
        UserError: The run has no short-context scores, or gamma is not a finite number above 0.
    """
    if what == "short_logprobs":
        return scores.short_logprobs
    weights = np.where(np.isnan(scores.lsd), 1.0, soft_influence(scores.lsd, gamma=gamma))
    return weights.astype(np.float32)


def carry_with_ones(
    source_spans: npt.ArrayLike, weights: npt.ArrayLike, target_spans: npt.ArrayLike
) -> npt.NDArray[Any]:
    """`carry_weights` (eq. 10), but characters without a source token, and empty tokens, have weight 1, not 0."""
    covered = carry_weights(source_spans, np.ones(len(np.asarray(weights))), target_spans)
    return carry_weights(source_spans, weights, target_spans) + (1 - covered)
