"""Batches: collators of rows, and conversion from a collator's output to the inputs of the loss.

The inputs include the scored tokens, the boundaries of packed documents, and offline weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longlens.data.store import NEUTRAL
from longlens.errors import UserError
from longlens.losses.passes import IGNORED, document_starts, scored_labels

_TOKENS = ("input_ids", "labels", "attention_mask", "position_ids")
_BOUNDARIES = ("seq_idx", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


@dataclass(frozen=True, kw_only=True)
class TrainingBatch:
    """The arguments of `longlens.losses.longce.weighted_nll` that come from the data; ``(B, S)`` each.

    Attributes:
        input_ids: Token ids.
        labels: -100 for context and padding only.
        position_ids: None if no documents are packed and the collator returned none.
        token_weights: Offline weights.
        short_logprobs: Offline short log-probabilities, nats.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor | None
    token_weights: Tensor | None
    short_logprobs: Tensor | None

    @property
    def num_scored(self) -> Tensor:
        """Number of labels in the loss, int64."""
        return scored_labels(self.labels, self.position_ids).sum()


def read_batch(inputs: Mapping[str, Any]) -> TrainingBatch:
    """Reads a batch from a collator of transformers or TRL.

    Causal attention needs no mask for padding on the right, and packed documents are distinguished by their positions
    only if no mask is passed; so the mask determines which labels are padding, and is not passed on. Document
    boundaries may also be passed as ``seq_idx`` or ``cu_seq_lens_q``, which must agree with the positions.

    Raises:
        UserError: There is padding on the left or between tokens, document boundaries differ, or an unknown input would
            change what the model computes.
    """
    unknown = sorted(set(inputs) - {*_TOKENS, *_BOUNDARIES, *NEUTRAL})
    if unknown:
        raise UserError(
            f"the batch has {', '.join(unknown)}, which longlens does not pass to the model: text of causal language "
            f"models comes as {', '.join(_TOKENS)}; drop the others in the dataset or the collator"
        )
    if "input_ids" not in inputs:
        raise UserError("the batch has no input_ids: pass a tokenized dataset")
    input_ids: Tensor = inputs["input_ids"]
    labels: Tensor = inputs.get("labels", input_ids)
    mask = inputs.get("attention_mask")
    if mask is not None:
        labels = labels.masked_fill(~_tokens(mask, input_ids), IGNORED)
    return TrainingBatch(
        input_ids=input_ids,
        labels=labels,
        position_ids=_positions(inputs, input_ids),
        token_weights=inputs.get("token_weights"),
        short_logprobs=inputs.get("short_logprobs"),
    )


def _tokens(mask: Tensor, input_ids: Tensor) -> Tensor:
    """``(B, S)`` bool: True for tokens that are not padding."""
    if mask.shape != input_ids.shape or not ((mask == 0) | (mask == 1)).all():
        raise UserError(
            f"attention_mask has shape {tuple(mask.shape)} and values such as {mask.flatten()[:1].tolist()}; expected "
            f"{tuple(input_ids.shape)} of 0 and 1: pass packed documents as position_ids that restart"
        )
    tokens = mask.bool()
    if (tokens[:, 1:] & ~tokens[:, :-1]).any():
        raise UserError(
            "the batch is padded on the left or between tokens, and LongCE counts context from the first token of a "
            "row: pad on the right (tokenizer.padding_side = 'right')"
        )
    return tokens


def _positions(inputs: Mapping[str, Any], input_ids: Tensor) -> Tensor | None:
    positions: Tensor | None = inputs.get("position_ids")
    found = {} if positions is None else {"position_ids": document_starts(input_ids, positions)}
    if inputs.get("seq_idx") is not None:
        starts = document_starts(input_ids, None)
        starts[:, 1:] |= inputs["seq_idx"].diff(dim=-1) != 0
        found["seq_idx"] = starts
    for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
        if inputs.get(name) is not None:
            starts = document_starts(input_ids, None)
            starts.view(-1)[torch.as_tensor(inputs[name]).flatten()[:-1].long()] = True
            found[name] = starts
    names = list(found)
    for name in names[1:]:
        if not torch.equal(found[name], found[names[0]]):
            raise UserError(
                f"{names[0]} and {name} of the batch disagree on where documents begin ({int(found[names[0]].sum())} "
                f"and {int(found[name].sum())} of them): a collator is wrong, and windows would cross documents"
            )
    if positions is not None or not found:
        return positions
    place = torch.arange(input_ids.shape[1], device=input_ids.device).expand(input_ids.shape)
    return place - torch.where(found[names[0]], place, 0).cummax(dim=-1).values


class OfflineCollator:
    """A collator that also accepts offline columns (`NEUTRAL`), aligned with their tokens.

    Args:
        collator: Collates everything else: one row per document, or all documents in one row.
    """

    def __init__(self, collator: Callable[[list[dict[str, Any]]], Any]) -> None:
        self.collator = collator

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> Any:
        """Collates one batch.

        Raises:
            UserError: A column is not as long as its tokens or is missing in a row, or a weight is not a finite number
                of at least 0.
        """
        columns = [name for name in NEUTRAL if any(name in row for row in features)]
        rest = [{name: value for name, value in row.items() if name not in NEUTRAL} for row in features]
        batch = self.collator(rest)
        for name in columns:
            rows = [_column(name, row) for row in features]
            if len(batch["input_ids"]) != len(rows):
                rows = [torch.cat(rows)]
            width = batch["input_ids"].shape[1]
            padded = [torch.nn.functional.pad(row, (0, width - len(row)), value=NEUTRAL[name]) for row in rows]
            batch[name] = torch.stack(padded)
        return batch


def _column(name: str, row: Mapping[str, Any]) -> Tensor:
    values = [math.nan if value is None else value for value in row.get(name, ())]
    if len(values) != len(row["input_ids"]):
        raise UserError(
            f"a row has {len(values)} {name} for {len(row['input_ids'])} tokens: expected one per token, also after "
            "truncation: truncate or pack rows before weights are computed, and train with `max_length=None`"
        )
    column = torch.tensor(values, dtype=torch.float32)
    if name == "token_weights" and not (column.isfinite() & (column >= 0)).all():
        raise UserError(
            "token_weights have a value that is not a finite number of at least 0: compute the weights of the dataset "
            "again"
        )
    return column


def pad_right(features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Collates rows of any lengths: padding has the label -100, and its positions continue."""
    width = max(len(row["input_ids"]) for row in features)
    batch: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    if "position_ids" in features[0]:
        batch["position_ids"] = []
    for row in features:
        missing = width - len(row["input_ids"])
        ids = list(row["input_ids"])
        batch["input_ids"].append(ids + [0] * missing)
        batch["labels"].append(list(row.get("labels", ids)) + [IGNORED] * missing)
        if "position_ids" in batch:
            positions = list(row["position_ids"])
            batch["position_ids"].append(positions + [positions[-1] + 1 + at for at in range(missing)])
    return {name: torch.tensor(values, dtype=torch.long) for name, values in batch.items()}
