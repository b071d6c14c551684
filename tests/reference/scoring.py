"""The naive oracle of scoring: full logits, one window at a time, nothing shared with the package."""

from __future__ import annotations

import math
from typing import Any

import torch


def start_afresh(model: Any) -> None:
    """Forgets the sequences before: transformers keeps dynamic NTK's frequencies between calls."""
    for module in model.modules():
        if "dynamic" in str(getattr(module, "rope_type", "")):
            module.register_buffer("inv_freq", module.original_inv_freq.clone(), persistent=False)
            module.max_seq_len_cached = module.original_max_seq_len


def naive_logprobs(model: Any, ids: list[int]) -> list[float]:
    """log P(ids[i] | ids[:i]) for i >= 1, from the model's own logits over the whole sequence."""
    start_afresh(model)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()
    logprobs = logits.log_softmax(-1)
    return [logprobs[i - 1, ids[i]].item() for i in range(1, len(ids))]


def naive_scores(
    model: Any, ids: list[int], *, context: int, stride: int, bos: int | None
) -> tuple[list[float], list[float]]:
    """Long and short log-probabilities under bos="window"."""
    prefix = [] if bos is None else [bos]
    long = [math.nan] * (1 - len(prefix)) + naive_logprobs(model, prefix + ids)
    short = [math.nan] * len(ids)
    j = 0
    while context + j * stride < len(ids):
        window = prefix + ids[j * stride : context + (j + 1) * stride]
        logprobs = [math.nan, *naive_logprobs(model, window)]
        for i in range(context + j * stride, min(context + (j + 1) * stride, len(ids))):
            short[i] = logprobs[len(prefix) + i - j * stride]
        j += 1
    return long, short


def naive_published_scores(
    model: Any, ids: list[int], *, context: int, stride: int, prefix: list[int]
) -> tuple[list[float], list[float]]:
    """Long and short log-probabilities of an evaluator under bos="published": its prefix is part of the sequence."""
    long, short = naive_scores(model, prefix + ids, context=context, stride=stride, bos=None)
    return long[len(prefix) :], short[len(prefix) :]
