"""The naive oracle of the published package ``longppl`` 0.3.0, quirks included: full logits, one window at a time.

Written from what the package does, not from its code; tests/real holds it against the package itself.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from tests.reference.keytokens import Span, published_key_losses


class Published(NamedTuple):
    """Its result (NaN for None), its key runs, and which losses it averages (-1 is the last one)."""

    longppl: float
    ppl: float
    n_token: int
    runs: list[Span]
    key_losses: list[int]


def losses(model: Any, ids: list[int]) -> list[float]:
    """-log P(ids[i] | ids[:i]) for i >= 1, in the dtype of the model."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none").tolist()


def published_runs(
    text: str, evaluator: Any, tokenizer: Any, *, trunc_len: int, sliding_window: int, alpha: float, beta: float
) -> list[Span]:
    """Characters of the key tokens; one that begins where the token before ends is joined to it."""
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids, spans = encoded["input_ids"], encoded["offset_mapping"]
    long = [math.nan, *losses(evaluator, ids)]
    runs: list[Span] = []
    for first in range(trunc_len, len(ids), sliding_window):
        begin, stop = first - trunc_len, min(first + sliding_window, len(ids))
        short = [math.nan, *losses(evaluator, ids[begin:stop])]
        if stop - first == 1:
            raise TypeError("iteration over a 0-d tensor")
        for i in range(first, stop):
            if short[i - begin] - long[i] > alpha and long[i] < -beta:
                start, end = spans[i]
                if runs and runs[-1][1] == start:
                    runs[-1] = (runs[-1][0], end)
                else:
                    runs.append((start, end))
    return runs


def decoded_spans(tokenizer: Any, ids: list[int]) -> list[Span]:
    """Spans of a tokenizer without offsets: a token has as many characters as it adds to the token before it."""
    spans: list[Span] = []
    for i, token in enumerate(ids):
        before = ids[i - 1 : i] if i else []
        length = len(tokenizer.decode([*before, token])) - len(tokenizer.decode(before))
        start = spans[-1][1] if spans else 0
        spans.append((start, start + length))
    return spans


def published_longppl(text: str, model: Any, tokenizer: Any, runs: list[Span]) -> Published:
    """What it returns for these runs."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
    ids = encoded["input_ids"]
    spans = encoded["offset_mapping"] if tokenizer.is_fast else decoded_spans(tokenizer, ids)
    values = losses(model, ids)
    key = published_key_losses(spans, runs)
    longppl = math.exp(sum(values[i] for i in key) / len(key)) if key else math.nan
    return Published(longppl, math.exp(sum(values) / len(values)), len(ids), runs, key)
