"""LongCE: cross-entropy in which every token weighs as much as the long context helps it (paper, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longlens.errors import UserError
from longlens.keytokens.influence import GAMMA, check_gamma
from longlens.logprobs import Head
from longlens.losses.passes import check_packing, evaluating, head_of, most_over_ranks, run_inside, target_logprobs
from longlens.windows import Window, check_window_settings, plan_windows

# Paper, section 4.2: "The context length of s_i is set to be K = 4096", with the stride of appendix A.1, d = 1024.
CONTEXT = 4096
STRIDE = 1024
IGNORED = -100
"""Label of a token that is in the context and not in the loss, as in torch and transformers."""
BATCH_TOKENS = 8192
"""Tokens of a batch of short windows, unless one window is longer."""


@dataclass(frozen=True, kw_only=True)
class LongCE:
    """Settings of LongCE (eq. 6, 7).

    Attributes:
        context: K, tokens of context that a short score has at least.
        stride: d, tokens that share a window.
        gamma: The largest weight.

    Raises:
        UserError: Settings that no window can be made of, or gamma is not a finite number above 0.
    """

    context: int = CONTEXT
    stride: int = STRIDE
    gamma: float = GAMMA

    def __post_init__(self) -> None:
        check_window_settings(self.context, self.stride)
        check_gamma(self.gamma)


def longce_weights(long_logprobs: Tensor, short_logprobs: Tensor, gamma: float = GAMMA) -> Tensor:
    """``min(exp(long - short), gamma)`` (eq. 7) without gradient, 1 where there is no short score (NaN).

    Computed as ``exp(minimum(long - short, log(gamma)))``, which cannot overflow; the torch side of
    `longlens.keytokens.influence.soft_influence`.

    Args:
        long_logprobs: Any shape, nats.
        short_logprobs: The same shape, nats; NaN where a token has no short score.
        gamma: The largest weight.

    Returns:
        The same shape, weights without unit.

    Raises:
        UserError: gamma is not a finite number above 0.
    """
    check_gamma(gamma)
    difference = (long_logprobs - short_logprobs).detach()
    weights = difference.clamp(max=math.log(gamma)).exp()
    return torch.where(difference.isnan(), torch.ones_like(weights), weights)


def longce_loss(
    model: Any,
    input_ids: Tensor,
    labels: Tensor | None = None,
    *,
    context: int = CONTEXT,
    stride: int = STRIDE,
    gamma: float = GAMMA,
    position_ids: Tensor | None = None,
    num_items: int | Tensor | None = None,
) -> Tensor:
    """``-mean(min(exp(long - short), gamma) * long)`` over scored labels (eq. 6, 7), where the weight has no gradient.

    ``long`` is ``log P(token | its document so far)`` and ``short`` the same under the last K to K + d - 1 tokens
    (eq. 8, `plan_windows`), both by the model itself as it is now. The short pass comes first, in eval mode and without
    gradient, and keeps nothing but its log-probabilities; neither pass has the logits of a whole sequence at one time.
    No BOS is added: training sequences are taken as they are. LongRoPE computes the windows with the factors of their
    own length, so that its weights also hold the difference between its short and its long factors.

    Args:
        model: A causal language model of transformers; also with LoRA, prepared by accelerate, in
            DistributedDataParallel, or sharded by FSDP2 (``fully_shard``).
        input_ids: ``(B, S)`` int64, padded on the right.
        labels: ``(B, S)``, -100 for tokens that are context alone and for padding; ``input_ids`` unless given. The
            label of a token stands at the token itself, as in transformers.
        context: K, tokens.
        stride: d, tokens.
        gamma: The largest weight.
        position_ids: ``(B, S)``; where documents are packed into a row, positions start again with each, and no
            window crosses from one to the next.
        num_items: What the sum is divided by: with gradient accumulation the scored labels of all micro-batches
            (`scored_labels`), so that their losses add up to that of the whole batch. Under DistributedDataParallel,
            which averages gradients over ranks, the scored labels of all ranks divided by their number. The scored
            labels of this batch unless given.

    Returns:
        A scalar with gradient, nats per token; 0 where no label is scored.

    Raises:
        UserError: Shapes that differ, settings that no window can be made of, K that is not shorter than the rows, or
            a model that LongCE would be wrong for (`head_of`, `check_packing`).
    """
    longce = LongCE(context=context, stride=stride, gamma=gamma)
    if input_ids.ndim == 2 and context >= input_ids.shape[1]:
        raise UserError(
            f"context is {context} and the sequences have {input_ids.shape[1]} tokens, so that no token would have a "
            "short score and LongCE were CE: train on longer sequences, or with a smaller context"
        )
    found = weighted_nll(model, input_ids, labels, longce=longce, position_ids=position_ids)
    return found.total / (max(1, len(found.weights)) if num_items is None else num_items)


class WeightedNLL(NamedTuple):
    """What one batch adds to a loss.

    Attributes:
        total: Scalar with gradient, nats: the sum over scored tokens of weight times negative log-likelihood.
        weights: ``(m,)`` the weights of the m scored tokens, without gradient.
        has_short: ``(m,)`` bool: which of them were weighed; the others have weight 1.
    """

    total: Tensor
    weights: Tensor
    has_short: Tensor


def weighted_nll(
    model: Any,
    input_ids: Tensor,
    labels: Tensor | None = None,
    *,
    longce: LongCE | None,
    position_ids: Tensor | None = None,
    token_weights: Tensor | None = None,
    short_logprobs: Tensor | None = None,
) -> WeightedNLL:
    """``-sum(weight * long)`` over scored tokens: LongCE, its offline forms and plain CE by the same two lines.

    Args:
        model: As in `longce_loss`.
        input_ids: As in `longce_loss`.
        labels: As in `longce_loss`.
        longce: None for weights that are all 1, which is CE.
        position_ids: As in `longce_loss`.
        token_weights: ``(B, S)`` offline weights, which stand at the tokens they are of; instead of the short pass.
        short_logprobs: ``(B, S)`` offline short log-probabilities, nats, NaN where a token has none; instead of the
            short pass.

    Raises:
        UserError: As `longce_loss`; or weights and short log-probabilities at once.
    """
    labels = input_ids if labels is None else labels
    for name, other in (("labels", labels), ("token_weights", token_weights), ("short_logprobs", short_logprobs)):
        if other is not None and other.shape != input_ids.shape:
            raise _unlike(name, other, input_ids)
    if token_weights is not None and short_logprobs is not None:
        raise UserError("the batch has token_weights and short_logprobs: weights come from one of them, drop the other")
    documents = split_documents(input_ids, position_ids)
    scored = scored_labels(labels, position_ids)
    positions = None if position_ids is None else position_ids.expand(len(input_ids), -1)
    kept: list[Tensor] = []

    def loss(inner: Any) -> Tensor:
        head = head_of(inner)
        if len(documents) > len(input_ids):
            check_packing(inner, len(input_ids))
        short = short_logprobs
        if longce is not None and token_weights is None and short is None:
            short = score_short(inner, head, input_ids, labels, scored, documents, longce)
        states = inner.get_decoder()(input_ids=input_ids, position_ids=positions, use_cache=False).last_hidden_state
        long = target_logprobs(states, labels, scored, head)
        weights, has_short = torch.ones_like(long.detach()), torch.zeros_like(long, dtype=torch.bool)
        if longce is not None and token_weights is not None:
            weights, has_short = token_weights[scored].to(long.dtype), ~has_short
        elif longce is not None and short is not None:
            weights, has_short = (
                longce_weights(long, short[scored].to(long.dtype), longce.gamma),
                ~short[scored].isnan(),
            )
        kept.extend((weights, has_short))
        return -(weights * long).sum()

    total: Tensor = run_inside(model, loss)
    return WeightedNLL(total, *kept)


def score_short(
    model: Any,
    head: Head,
    input_ids: Tensor,
    labels: Tensor,
    scored: Tensor,
    documents: Sequence[Span],
    longce: LongCE,
) -> Tensor:
    """``(B, S)`` float32, nats: log P of each scored token under its short context; NaN where it has none.

    Args:
        model: A causal language model of transformers, not wrapped.
        head: Its vocabulary head.
        input_ids: ``(B, S)``.
        labels: ``(B, S)``: what is predicted.
        scored: ``(B, S)`` bool: the tokens that are wanted.
        documents: Where documents are; a window lies in one of them.
        longce: K and d.
    """
    found = torch.full(input_ids.shape, math.nan, device=input_ids.device)
    wanted = scored.cpu()  # one copy, not one a window
    windows = [
        (document, window)
        for document in documents
        for window in plan_windows(document.stop - document.start, longce.context, longce.stride)
        if wanted[document.row, document.start + window.first : document.start + window.stop].any()
    ]
    batches = list(_batches(windows, max(1, BATCH_TOKENS // (longce.context + longce.stride))))
    missing = most_over_ranks(len(batches), model) - len(batches)
    with evaluating(model):
        for batch in batches:
            _score_windows(model, head, input_ids, labels, scored, batch, found)
        for _ in range(missing):
            model.get_decoder()(input_ids=input_ids[:1, :1], use_cache=False)
    return found


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
            raise _unlike("position_ids", position_ids, input_ids)
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


def _batches(windows: list[tuple[Span, Window]], size: int) -> Iterator[list[tuple[Span, Window]]]:
    # Equal lengths together: a ragged window would be padded, and LongRoPE goes by the longest of a batch.
    by_length: dict[int, list[tuple[Span, Window]]] = {}
    for document, window in windows:
        by_length.setdefault(window.stop - window.start, []).append((document, window))
    for alike in by_length.values():
        for start in range(0, len(alike), size):
            yield alike[start : start + size]


def _score_windows(
    model: Any,
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
    states = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    logprobs = target_logprobs(states, targets, wanted, head)
    place = 0
    for row, (document, window) in zip(wanted, batch, strict=True):
        count = int(row.sum())
        target = found[document.row, document.start + window.start : document.start + window.stop]
        target[row] = logprobs[place : place + count]
        place += count


def _unlike(name: str, other: Tensor, input_ids: Tensor) -> UserError:
    return UserError(f"{name} have shape {tuple(other.shape)}, input_ids {tuple(input_ids.shape)}: make them alike")
