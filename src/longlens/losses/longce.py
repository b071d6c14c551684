"""LongCE: cross-entropy in which every token weighs as much as the long context helps it (paper, section 3.2)."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longlens.errors import LonglensWarning, UserError
from longlens.losses.passes import (
    check_packing,
    head_of,
    run_inside,
    score_short,
    scored_labels,
    shape_error,
    split_documents,
    target_logprobs,
)
from longlens.losses.settings import LongCE
from longlens.models.forward import Forward
from longlens.settings.options import CONTEXT, GAMMA, STRIDE


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
    settings: LongCE | None = None,
    step: int = 0,
) -> Tensor:
    """``-mean(min(exp(long - short), gamma) * long)`` over scored labels (eq. 6, 7), where the weight has no gradient.

    ``long`` is ``log P(token | its document so far)`` and ``short`` the same under the last K to K + d - 1 tokens
    (eq. 8, `plan_windows`), both by the model itself as it is now. The short pass comes first, in eval mode and without
    gradient, and keeps nothing but its log-probabilities; neither pass has the logits of a whole sequence at one time.
    No BOS is added: training sequences are taken as they are. LongRoPE and dynamic NTK compute the windows with the
    frequencies of their own length, so that their weights also hold the difference between these and those of the
    rows, which go by the length of the batch, padding included, as in transformers; CLEX in training draws positions at
    random in the long pass alone, so that its weights hold that too.

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
        settings: Instead of context, stride and gamma; also for the forms of LongCE that weigh a part of the tokens at
            a step (`SampledLongCE`, `ChunkedLongCE`).
        step: Counts updates from 0; those forms go by it.

    Returns:
        A scalar with gradient, nats per token; 0 where no label is scored.

    Raises:
        UserError: Shapes that differ, settings that no window can be made of, K that is not shorter than the rows, or
            a model that LongCE would be wrong for (`head_of`, `check_packing`).
    """
    if settings is not None and (context, stride, gamma) != (CONTEXT, STRIDE, GAMMA):
        raise UserError("`context`, `stride` and `gamma` are in `settings` already: give them there alone")
    longce = LongCE(context=context, stride=stride, gamma=gamma) if settings is None else settings
    if input_ids.ndim == 2 and longce.context >= input_ids.shape[1]:
        raise UserError(
            f"`context` is {longce.context} and the sequences have {input_ids.shape[1]} tokens, so that no token would "
            "have a short score and LongCE were CE: train on longer sequences, or with a smaller context"
        )
    found = weighted_nll(model, input_ids, labels, longce=longce, position_ids=position_ids, step=step)
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
    step: int = 0,
) -> WeightedNLL:
    """``-sum(weight * long)`` over scored tokens: LongCE, its offline forms and plain CE by the same two lines.

    Args:
        model: A causal language model of transformers, wrapped or not.
        input_ids: ``(B, S)`` int64, padded on the right.
        labels: ``(B, S)``, -100 for tokens that are context alone; ``input_ids`` unless given.
        longce: None for weights that are all 1, which is CE.
        position_ids: ``(B, S)``, which start again with each packed document.
        token_weights: ``(B, S)`` offline weights, one at each token; instead of the short pass. Those above gamma are
            reduced to it, with a warning.
        short_logprobs: ``(B, S)`` offline short log-probabilities, nats, NaN where a token has none; instead of the
            short pass.
        step: Counts updates from 0.

    Raises:
        UserError: Shapes that differ, a model that LongCE would be wrong for, or weights and short log-probabilities at
            once.
    """
    labels = input_ids if labels is None else labels
    for name, other in (("labels", labels), ("token_weights", token_weights), ("short_logprobs", short_logprobs)):
        if other is not None and other.shape != input_ids.shape:
            raise shape_error(name, other, input_ids)
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
            short = score_short(inner, head, input_ids, labels, scored, documents, longce, step)
        long = target_logprobs(Forward(inner).hidden(input_ids, positions), labels, scored, head)
        weights, has_short = torch.ones_like(long.detach()), torch.zeros_like(long, dtype=torch.bool)
        if longce is not None and token_weights is not None:
            weights, has_short = _capped(token_weights[scored].to(long.dtype), longce.gamma), ~has_short
        elif longce is not None and short is not None:
            chosen = short[scored].to(long.dtype)
            weights, has_short = longce.weights(long.detach(), chosen), ~chosen.isnan()
        kept.extend((weights, has_short))
        return -(weights * long).sum()

    total: Tensor = run_inside(model, loss)
    return WeightedNLL(total, *kept)


def _capped(weights: Tensor, gamma: float) -> Tensor:
    if (weights > gamma * (1 + 1e-6)).any():  # float32 rounds gamma itself
        warnings.warn(
            f"token_weights go up to {weights.max():g} and `gamma` is {gamma:g}: larger weights are reduced to gamma; "
            "for weights as they were made, set `gamma` as in longlens data weigh",
            LonglensWarning,
            stacklevel=2,
        )
    return weights.clamp(max=gamma)
