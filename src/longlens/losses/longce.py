"""LongCE: cross-entropy that weights each token by how much the long context helps it (paper, section 3.2)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from longlens.errors import LonglensWarning, UserError
from longlens.logprobs import token_logprobs
from longlens.losses.passes import (
    IGNORED,
    check_packing,
    head_of,
    run_inside,
    score_short,
    scored_labels,
    shape_error,
    shifted,
    split_documents,
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
    """``-mean(min(exp(long - short), gamma) * long)`` over scored labels (eq. 6, 7); the weight has no gradient.

    ``long`` is ``log P(token | its document so far)`` and ``short`` the same given only the last K to K + d - 1 tokens
    (eq. 8, `plan_windows`), both computed by the model in its current state. The short-context pass runs first, in eval
    mode and without gradient, and keeps only its log-probabilities. Neither pass materializes the logits of a whole
    sequence.

    No BOS is added to the training sequences. With LongRoPE and dynamic NTK, windows use the frequencies of their own
    length and rows those of the batch length (padding included), as in transformers, so the weights also contain this
    difference. CLEX in training draws random positions only in the long pass, which the weights contain as well.

    Args:
        model: A transformers causal language model; also with LoRA, prepared by accelerate, in
            DistributedDataParallel, or sharded by FSDP2 (``fully_shard``).
        input_ids: ``(B, S)`` int64, padded on the right.
        labels: ``(B, S)``, -100 for context-only tokens and padding. The label of a token is at the token itself, as in
            transformers. Default: ``input_ids``.
        context: K, tokens.
        stride: d, tokens.
        gamma: The maximum weight.
        position_ids: ``(B, S)``; if documents are packed into a row, positions restart with each document, and no
            window crosses a boundary.
        num_items: Divisor of the sum. With gradient accumulation, the scored labels of all micro-batches
            (`scored_labels`), so that their losses add up to that of the whole batch. Under DistributedDataParallel,
            which averages gradients over ranks, the scored labels of all ranks divided by the number of ranks. Default:
            the scored labels of this batch.
        settings: Replaces context, stride and gamma; also selects the forms of LongCE that weight a part of the tokens
            per step (`SampledLongCE`, `ChunkedLongCE`).
        step: Number of updates so far, from 0; used by those forms.

    Returns:
        A scalar with gradient, nats per token; 0 if no label is scored.

    Raises:
        UserError: Shapes that differ, settings without a valid window, K that is not shorter than the rows, or a model
            for which LongCE would be wrong (`head_of`, `check_packing`).
    """
    if settings is not None and (context, stride, gamma) != (CONTEXT, STRIDE, GAMMA):
        raise UserError("`context`, `stride` and `gamma` are in `settings` already: pass them only there")
    longce = LongCE(context=context, stride=stride, gamma=gamma) if settings is None else settings
    if input_ids.ndim == 2 and longce.context >= input_ids.shape[1]:
        raise UserError(
            f"`context` is {longce.context} and the sequences have {input_ids.shape[1]} tokens, so no token would have "
            "a short-context score and LongCE would equal CE: train on longer sequences, or with a smaller context"
        )
    found = weighted_nll(model, input_ids, labels, longce=longce, position_ids=position_ids, step=step)
    return found.total / (max(1, len(found.weights)) if num_items is None else num_items)


class WeightedNLL(NamedTuple):
    """Contribution of one batch to a loss.

    Attributes:
        total: Scalar with gradient, nats: the sum over scored tokens of weight times negative log-likelihood.
        weights: ``(m,)`` the weights of the m scored tokens, without gradient.
        has_short: ``(m,)`` bool: which of them have a short-context score; the others have weight 1.
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
    """``-sum(weight * long)`` over scored tokens: the same two lines compute LongCE, its offline forms and plain CE.

    Args:
        model: A transformers causal language model, wrapped or not.
        input_ids: ``(B, S)`` int64, padded on the right.
        labels: ``(B, S)``, -100 for context-only tokens; by default ``input_ids``.
        longce: Settings of LongCE; None for plain CE, in which all weights are 1.
        position_ids: ``(B, S)``, which restart with each packed document.
        token_weights: ``(B, S)`` offline weights, one per token, used instead of the short-context pass. Those above
            gamma are reduced to it, with a warning, and those below `LongCE.floor` raised to it.
        short_logprobs: ``(B, S)`` offline short log-probabilities, nats, NaN for tokens without one; used instead of
            the short-context pass.
        step: Number of updates so far, from 0.

    Raises:
        UserError: Shapes differ, LongCE would be wrong for the model, or both weights and short log-probabilities are
            passed.
    """
    labels = input_ids if labels is None else labels
    for name, other in (("labels", labels), ("token_weights", token_weights), ("short_logprobs", short_logprobs)):
        if other is not None and other.shape != input_ids.shape:
            raise shape_error(name, other, input_ids)
    if token_weights is not None and short_logprobs is not None:
        raise UserError("the batch has token_weights and short_logprobs: remove one of them")
    is_packed = len(split_documents(input_ids, position_ids)) > len(input_ids)
    positions = None if position_ids is None else position_ids.expand(len(input_ids), -1)
    needs_short = longce is not None and token_weights is None and short_logprobs is None

    def loss(inner: Any) -> WeightedNLL:
        if position_ids is not None:
            check_packing(inner, len(input_ids) if is_packed else 0)
        short = short_logprobs
        if longce is not None and needs_short:
            short = _score_short(inner, input_ids, labels, position_ids, longce, step, None)
        targets = shift_targets(labels, position_ids)
        weights = None if token_weights is None else shifted(token_weights, 1.0)
        short = None if short is None else shifted(short, math.nan)
        return _weighted_sum(inner, Shard(input_ids, targets, positions, weights, short), longce)

    return _run(model, loss)


class Shard(NamedTuple):
    """A part of the tokens of a batch, in any order, with the targets of their hidden states (`shifted`); ``(B, n)``
    each.

    Attributes:
        input_ids: Token ids.
        targets: Label of the token that follows each token in its document; -100 if it is not scored.
        position_ids: Positions of the tokens in their documents.
        token_weights: Weight of the following token.
        short_logprobs: Short log-probability of the following token, nats; NaN if it has none.
    """

    input_ids: Tensor
    targets: Tensor
    position_ids: Tensor | None
    token_weights: Tensor | None
    short_logprobs: Tensor | None


def shift_targets(labels: Tensor, position_ids: Tensor | None) -> Tensor:
    """``(B, S)``: the label with which each hidden state is scored, -100 for none."""
    return shifted(labels.masked_fill(~scored_labels(labels, position_ids), IGNORED), IGNORED)


def shard_nll(model: Any, shard: Shard, longce: LongCE | None) -> WeightedNLL:
    """`weighted_nll` of a part of the tokens, while the model attends to all of them (context parallelism).

    The sums of all parts of a batch are `weighted_nll` of the whole.

    Args:
        model: A transformers causal language model, wrapped or not.
        shard: The part; includes weights or short log-probabilities unless all weights are 1.
        longce: Settings of LongCE; None for plain CE, in which all weights are 1.
    """
    return _run(model, lambda inner: _weighted_sum(inner, shard, longce))


def short_logprobs_of(
    model: Any,
    input_ids: Tensor,
    labels: Tensor,
    position_ids: Tensor | None,
    longce: LongCE,
    step: int,
    group: dist.ProcessGroup,
) -> Tensor:
    """``(B, S)`` float32, nats: the short-context pass only, shared by ranks that all have this batch (`score_short`).

    Args:
        model: A transformers causal language model, wrapped or not.
        input_ids: Token ids, ``(B, S)``.
        labels: Labels, ``(B, S)``.
        position_ids: ``(B, S)``, which restart with each packed document.
        longce: Settings of the windows and the precision.
        step: Number of updates so far, from 0.
        group: Process group of the ranks; each runs its part of the windows.
    """
    with torch.no_grad():
        found: Tensor = run_inside(
            model, lambda inner: _score_short(inner, input_ids, labels, position_ids, longce, step, group)
        )
    return found


def _run(model: Any, loss: Callable[[Any], WeightedNLL]) -> WeightedNLL:
    """Runs a loss inside the wrappers, which must see exactly one tensor with gradient."""
    kept: list[WeightedNLL] = []

    def total(inner: Any) -> Tensor:
        kept.append(loss(inner))
        return kept[0].total

    outside: Tensor = run_inside(model, total)  # the wrappers' hooks may replace it
    return kept[0]._replace(total=outside)


def _score_short(
    inner: Any,
    input_ids: Tensor,
    labels: Tensor,
    position_ids: Tensor | None,
    longce: LongCE,
    step: int,
    group: dist.ProcessGroup | None,
) -> Tensor:
    scored, documents = scored_labels(labels, position_ids), split_documents(input_ids, position_ids)
    return score_short(inner, head_of(inner), input_ids, labels, scored, documents, longce, step, group)


def _weighted_sum(inner: Any, shard: Shard, longce: LongCE | None) -> WeightedNLL:
    head = head_of(inner)
    predicts = shard.targets != IGNORED
    states = Forward(inner).hidden(shard.input_ids, shard.position_ids)
    long = token_logprobs(states[predicts], shard.targets[predicts], head)
    weights, has_short = torch.ones_like(long.detach()), torch.zeros_like(long, dtype=torch.bool)
    if longce is not None and shard.token_weights is not None:
        weights, has_short = _bounded(shard.token_weights[predicts].to(long.dtype), longce), ~has_short
    elif longce is not None and shard.short_logprobs is not None:
        chosen = shard.short_logprobs[predicts].to(long.dtype)
        weights, has_short = longce.weights(long.detach(), chosen), ~chosen.isnan()
    return WeightedNLL(-(weights * long).sum(), weights, has_short)


def _bounded(weights: Tensor, longce: LongCE) -> Tensor:
    gamma = longce.gamma
    if (weights > gamma * (1 + 1e-6)).any():  # float32 rounds gamma itself
        warnings.warn(
            f"token_weights go up to {weights.max():g} and `gamma` is {gamma:g}: larger weights are clipped to gamma; "
            "to keep them, use the `gamma` of longlens data weigh",
            LonglensWarning,
            stacklevel=2,
        )
    return weights.clamp(longce.floor, gamma)
