"""LongCE: cross-entropy in which every token weighs as much as the long context helps it (paper, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longlens.errors import UserError
from longlens.keytokens.influence import GAMMA
from longlens.logprobs import Head, find_head, token_logprobs
from longlens.windows import Window, check_window_settings, plan_windows

# Paper, section 4.2: "The context length of s_i is set to be K = 4096", with the stride of appendix A.1, d = 1024.
CONTEXT = 4096
STRIDE = 1024
IGNORED = -100
"""Label of a token that is in the context and not in the loss, as in torch and transformers."""
BATCH_TOKENS = 8192
"""Tokens of a batch of short windows, unless one window is longer."""
PROBE_TOKENS = 16


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
    if not (math.isfinite(gamma) and gamma > 0):
        raise UserError(f"gamma is {gamma}, expected a finite number above 0: it is the largest weight of a token")
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
    No BOS is added: training sequences are taken as they are.

    Args:
        model: A causal language model of transformers; also wrapped by PEFT, DistributedDataParallel or accelerate.
        input_ids: ``(B, S)`` int64, padded on the right.
        labels: ``(B, S)``, -100 for tokens that are context alone and for padding; ``input_ids`` unless given. The
            label of a token stands at the token itself, as in transformers.
        context: K, tokens.
        stride: d, tokens.
        gamma: The largest weight.
        position_ids: ``(B, S)``; where documents are packed into a row, each begins with position 0, and no window
            crosses from one to the next.
        num_items: What the sum is divided by: with gradient accumulation the scored labels of all micro-batches, so
            that their losses add up to that of the whole batch. The scored labels of this batch unless given.

    Returns:
        A scalar with gradient, nats per token; 0 where no label is scored.

    Raises:
        UserError: Shapes that differ, settings that no window can be made of, K that is not shorter than the rows, or
            a model whose logits longlens does not know how to compute.
    """
    labels = input_ids if labels is None else labels
    _check(input_ids, labels, position_ids, context, stride)
    longce_weights(input_ids.new_zeros(0, dtype=torch.float32), input_ids.new_zeros(0, dtype=torch.float32), gamma)
    documents = _documents(input_ids, position_ids)
    scored = _scored(labels, documents)

    def loss(inner: Any) -> Tensor:
        head = head_of(inner)
        short = short_logprobs(inner, head, input_ids, scored, documents, context=context, stride=stride)
        states = inner.get_decoder()(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state
        long = _of_targets(states, input_ids, scored, head)
        weights = longce_weights(long, short[scored], gamma)
        total = -(weights * long).sum()
        return total / (scored.sum().clamp(min=1) if num_items is None else num_items)

    total: Tensor = run_inside(model, loss)
    return total


def short_logprobs(
    model: Any,
    head: Head,
    input_ids: Tensor,
    scored: Tensor,
    documents: Sequence[Document],
    *,
    context: int,
    stride: int,
) -> Tensor:
    """``(B, S)`` float32, nats: log P of each scored token under its short context; NaN where it has none.

    Args:
        model: A causal language model of transformers, not wrapped.
        head: Its vocabulary head.
        input_ids: ``(B, S)``.
        scored: ``(B, S)`` bool: the tokens that are wanted.
        documents: Where documents are; a window lies in one of them.
        context: K, tokens.
        stride: d, tokens.
    """
    found = torch.full(input_ids.shape, math.nan, device=input_ids.device)
    windows = [
        (document, window)
        for document in documents
        for window in plan_windows(document.stop - document.start, context, stride)
        if scored[document.row, document.start + window.first : document.start + window.stop].any()
    ]
    with _evaluating(model):
        for batch in _batches(windows, max(1, BATCH_TOKENS // (context + stride))):
            _score_windows(model, head, input_ids, scored, batch, found)
    return found


class Document(NamedTuple):
    """A document in a batch: tokens ``[start, stop)`` of a row."""

    row: int
    start: int
    stop: int


def _documents(input_ids: Tensor, position_ids: Tensor | None) -> list[Document]:
    """The documents of a batch: a row, or from one position 0 to the next."""
    length = input_ids.shape[1]
    if position_ids is None:
        return [Document(row, 0, length) for row in range(len(input_ids))]
    documents = []
    for row, positions in enumerate(position_ids.expand(len(input_ids), -1)):
        starts = sorted({0, *torch.nonzero(positions == 0)[:, 0].tolist()})
        documents += [Document(row, *ends) for ends in pairwise([*starts, length])]
    return documents


def _scored(labels: Tensor, documents: Sequence[Document]) -> Tensor:
    """``(B, S)`` bool: labels in the loss; the first token of a document has nothing to be predicted from."""
    scored = labels != IGNORED
    for document in documents:
        scored[document.row, document.start] = False
    return scored


def _batches(windows: list[tuple[Document, Window]], size: int) -> Iterator[list[tuple[Document, Window]]]:
    # Equal lengths together: a ragged window would be padded, and LongRoPE goes by the longest of a batch.
    by_length: dict[int, list[tuple[Document, Window]]] = {}
    for document, window in windows:
        by_length.setdefault(window.stop - window.start, []).append((document, window))
    for alike in by_length.values():
        for start in range(0, len(alike), size):
            yield alike[start : start + size]


def _score_windows(
    model: Any, head: Head, input_ids: Tensor, scored: Tensor, batch: list[tuple[Document, Window]], found: Tensor
) -> None:
    """Writes the short log-probabilities of some windows of one length into ``found``."""
    ids = torch.stack([input_ids[d.row, d.start + w.start : d.start + w.stop] for d, w in batch])
    wanted = torch.stack([scored[d.row, d.start + w.start : d.start + w.stop] for d, w in batch])
    for row, (_, window) in zip(wanted, batch, strict=True):
        row[: window.first - window.start] = False
    states = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    logprobs = _of_targets(states, ids, wanted, head)
    place = 0
    for row, (document, window) in zip(wanted, batch, strict=True):
        count = int(row.sum())
        target = found[document.row, document.start + window.start : document.start + window.stop]
        target[row] = logprobs[place : place + count]
        place += count


def _of_targets(states: Tensor, input_ids: Tensor, wanted: Tensor, head: Head) -> Tensor:
    """Log-probabilities of the wanted tokens, row by row; the state before a token predicts it."""
    before = states[:, :-1][wanted[:, 1:]]
    return token_logprobs(before, input_ids[wanted], head)


def head_of(model: Any) -> Head:
    """The vocabulary head of a model, held once against its own logits on a few tokens (`find_head`).

    Raises:
        UserError: Its logits are computed in a way that longlens does not know.
    """
    known = getattr(model, "_longlens_head", None)
    module = model.get_output_embeddings()
    if known is None:
        with _evaluating(model):
            vocabulary = model.get_input_embeddings().weight.shape[0]
            generator = torch.Generator().manual_seed(0)
            ids = torch.randint(vocabulary, (1, PROBE_TOKENS), generator=generator).to(model.device)
            states = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0]
            known = find_head(model, states, type(model).forward(model, input_ids=ids, use_cache=False).logits[0])
        model._longlens_head = Head(weight=torch.empty(0), scale=known.scale, softcap=known.softcap)
    return Head(weight=module.weight, bias=getattr(module, "bias", None), scale=known.scale, softcap=known.softcap)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Without dropout and without gradient; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def run_inside(model: Any, function: Any) -> Any:
    """``function(inner)``, run as the forward pass of the outermost wrapper, so that the wrapper's hooks see it.

    DistributedDataParallel prepares its gradient buckets, and FSDP gathers weights, in the forward of the wrapper;
    a direct call of an inner module would go past them.
    """
    inner = model
    while hasattr(inner, "module") and isinstance(inner.module, torch.nn.Module):
        inner = inner.module
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    if inner is model:
        return function(inner)
    mine = inner.__dict__.get("forward")
    inner.forward = lambda *_, **__: function(inner)
    try:
        return model()
    finally:
        if mine is None:
            del inner.forward
        else:
            inner.forward = mine


def _check(input_ids: Tensor, labels: Tensor, position_ids: Tensor | None, context: int, stride: int) -> None:
    check_window_settings(context, stride)
    if input_ids.ndim != 2:
        raise UserError(f"input_ids have shape {tuple(input_ids.shape)}, expected (batch, tokens)")
    for name, other in (("labels", labels), ("position_ids", position_ids)):
        if other is not None and other.shape[-1] != input_ids.shape[1]:
            raise UserError(
                f"{name} have shape {tuple(other.shape)}, input_ids {tuple(input_ids.shape)}: make them alike"
            )
    if context >= input_ids.shape[1]:
        raise UserError(
            f"context is {context} and the sequences have {input_ids.shape[1]} tokens, so that no token would have a "
            "short score and LongCE were CE: train on longer sequences, or with a smaller context"
        )
