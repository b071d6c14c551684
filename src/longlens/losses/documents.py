"""Where documents are in a batch, and which labels are in the loss."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from longlens.errors import UserError

IGNORED = -100
"""Label of a token that is in the context and not in the loss, as in torch and transformers."""


class Span(NamedTuple):
    """A document in a batch: tokens ``[start, stop)`` of a row."""

    row: int
    start: int
    stop: int


def document_starts(input_ids: Tensor, position_ids: Tensor | None) -> Tensor:
    """``(B, S)`` bool: first tokens of documents: of a row, and where a position does not follow the one before.

    Source: `transformers.masking_utils.find_packed_sequence_indices`, which builds the attention mask.

    Raises:
        UserError: Shapes that differ.
    """
    if input_ids.ndim != 2:
        raise UserError(f"input_ids have shape {tuple(input_ids.shape)}, expected (batch, tokens)")
    starts = torch.zeros(input_ids.shape, dtype=torch.bool, device=input_ids.device)
    starts[:, :1] = True
    if position_ids is not None:
        if position_ids.ndim > 2 or position_ids.shape[-1] != input_ids.shape[1]:
            raise unlike("position_ids", position_ids, input_ids)
        starts[:, 1:] |= position_ids.expand(len(input_ids), -1).diff(dim=-1) != 1
    return starts


def split_documents(input_ids: Tensor, position_ids: Tensor | None) -> list[Span]:
    """The documents of a batch, in order: each is a row, or a part of one where documents are packed."""
    documents = []
    for row, starts in enumerate(document_starts(input_ids, position_ids).cpu()):
        places = torch.nonzero(starts)[:, 0].tolist()
        documents += [Span(row, *ends) for ends in pairwise([*places, len(starts)])]
    return documents


def scored_labels(labels: Tensor, position_ids: Tensor | None = None) -> Tensor:
    """``(B, S)`` bool: labels in the loss; the first token of a document has nothing to be predicted from."""
    return (labels != IGNORED) & ~document_starts(labels, position_ids)


def unlike(name: str, other: Tensor, input_ids: Tensor) -> UserError:
    """What to say of a tensor that is not shaped like ``input_ids``."""
    return UserError(f"{name} have shape {tuple(other.shape)}, input_ids {tuple(input_ids.shape)}: make them alike")
