"""LongCE written out: whole logits, one window at a time, one document at a time."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tests.reference.scoring import start_afresh


def naive_logprobs(model: Any, ids: Tensor) -> Tensor:
    """log P(ids[i] | ids[:i]) for i = 1, ..., from the model's own logits."""
    start_afresh(model)
    logits = model(input_ids=ids[None], use_cache=False).logits[0]
    return logits[:-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]


def naive_short(model: Any, ids: Tensor, context: int, stride: int) -> Tensor:
    """The published loop (finetune.py, loss_weight): entry i is of token i + 1; NaN without short score."""
    short = torch.full((len(ids) - 1,), math.nan, dtype=next(model.parameters()).dtype)
    with torch.no_grad():
        for start in range(0, len(ids) - context, stride):
            window = ids[start : start + context + stride]
            short[start + context - 1 : start + context + stride - 1] = naive_logprobs(model, window)[context - 1 :]
    return short


def naive_longce(
    model: Any, documents: list[tuple[Tensor, Tensor]], context: int, stride: int, gamma: float
) -> tuple[Tensor, list[Tensor]]:
    """The loss over documents of (ids, labels), and every document's weights of tokens 1, 2, ..."""
    total, number, weights = 0.0, 0, []
    for ids, labels in documents:
        model_was_training = model.training
        model.eval()
        short = naive_short(model, ids, context, stride)
        model.train(model_was_training)
        long = naive_logprobs(model, ids)
        weight = torch.exp(long.detach() - short).clamp(max=gamma)
        weight[short.isnan()] = 1.0
        scored = labels[1:] != -100
        total = total - (weight * long)[scored].sum()
        number += int(scored.sum())
        weights.append(weight)
    return total / number, weights
