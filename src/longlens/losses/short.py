"""The short pass: log-probabilities of tokens under their short context, without gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from longlens.logprobs import Head
from longlens.losses.documents import Span
from longlens.losses.passes import most_over_ranks, target_logprobs
from longlens.losses.settings import SHORT_DTYPES, LongCE
from longlens.models.forward import Forward, default_batch_tokens, running
from longlens.windows import Window


def score_short(
    model: Any,
    head: Head,
    input_ids: Tensor,
    labels: Tensor,
    scored: Tensor,
    documents: Sequence[Span],
    longce: LongCE,
    step: int,
) -> Tensor:
    """``(B, S)`` float32, nats: log P of each scored token under its short context; NaN where it has none.

    Args:
        model: A causal language model of transformers, not wrapped.
        head: Its vocabulary head.
        input_ids: ``(B, S)``.
        labels: ``(B, S)``: what is predicted.
        scored: ``(B, S)`` bool: the tokens that are wanted.
        documents: Where documents are; a window lies in one of them.
        longce: Which windows, and the precision.
        step: Counts updates from 0.
    """
    found = torch.full(input_ids.shape, math.nan, device=input_ids.device)
    wanted = scored.cpu()  # one copy, not one a window
    windows = [
        (document, window)
        for document in documents
        for window in longce.windows(input_ids[document.row, document.start : document.stop], step)
        if wanted[document.row, document.start + window.first : document.start + window.stop].any()
    ]
    at_once = max(1, default_batch_tokens(input_ids.device) // (longce.context + longce.stride))
    batches = list(_batches(windows, at_once))
    missing = most_over_ranks(len(batches), model) - len(batches)
    forward = Forward(model)
    with running(model, inference=False), _precision(input_ids, longce):
        head = head.keep_wide()
        for batch in batches:
            _score_windows(forward, head, input_ids, labels, scored, batch, found)
        for _ in range(missing):
            forward.hidden(input_ids[:1, :1])
    return found


def _precision(input_ids: Tensor, longce: LongCE) -> AbstractContextManager[Any]:
    if longce.short_dtype is None:
        return nullcontext()
    return torch.autocast(input_ids.device.type, SHORT_DTYPES[longce.short_dtype])


def _batches(windows: list[tuple[Span, Window]], size: int) -> Iterator[list[tuple[Span, Window]]]:
    # Equal lengths together: a ragged window would be padded, and some frequencies go by the longest of a batch.
    by_length: dict[int, list[tuple[Span, Window]]] = {}
    for document, window in windows:
        by_length.setdefault(window.stop - window.start, []).append((document, window))
    for alike in by_length.values():
        for start in range(0, len(alike), size):
            yield alike[start : start + size]


def _score_windows(
    forward: Forward,
    head: Head,
    input_ids: Tensor,
    labels: Tensor,
    scored: Tensor,
    batch: Sequence[tuple[Span, Window]],
    found: Tensor,
) -> None:
    """Writes the short log-probabilities of some windows of one length into ``found``."""
    ids, targets, wanted = (
        torch.stack([tensor[d.row, d.start + w.start : d.start + w.stop] for d, w in batch])
        for tensor in (input_ids, labels, scored)
    )
    for row, (_, window) in zip(wanted, batch, strict=True):
        row[: window.first - window.start] = False
    logprobs = target_logprobs(forward.hidden(ids), targets, wanted, head)
    place = 0
    for row, (document, window) in zip(wanted, batch, strict=True):
        count = int(row.sum())
        target = found[document.row, document.start + window.start : document.start + window.stop]
        target[row] = logprobs[place : place + count]
        place += count
