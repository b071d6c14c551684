"""Naive cache policies: attention as whole float64 matrices, and a choice token by token."""

from __future__ import annotations

import math

import torch


def attention(queries, keys, scaling, first):
    """softmax(scaling q k) of queries whose own keys begin at place `first`; ``(heads, q, n)`` for one kv head each."""
    groups = queries.shape[0] // keys.shape[0]
    found = torch.zeros(queries.shape[0], queries.shape[1], keys.shape[1], dtype=torch.float64)
    for head in range(queries.shape[0]):
        for row in range(queries.shape[1]):
            seen = keys[head // groups, : first + row + 1].double()
            found[head, row, : first + row + 1] = (seen @ queries[head, row].double() * scaling).softmax(-1)
    return found


def budget(size, seen):
    return int(size) if size > 1 else max(1, int(size * seen))


def top(ranks, size):
    order = sorted(range(len(ranks)), key=lambda place: -float(ranks[place]))
    return sorted(order[:size])


def snapkv(weights, kv_heads, size):
    heads, queries, n = weights.shape
    window = min(64, queries, max(1, size // 2))
    kept = []
    for head in range(kv_heads):
        own = weights[head * heads // kv_heads : (head + 1) * heads // kv_heads, queries - window :].mean(0).sum(0)
        pooled = [float(own[max(0, i - 2) : i + 3].mean()) for i in range(n)]
        kept.append(top(pooled[: n - window] + [math.inf] * window, size))
    return kept


def h2o(weights, kv_heads, size, before):
    """`before`: sums of the keys that were held, for each kv head. Returns what is kept, and all sums."""
    heads, _, n = weights.shape
    kept, sums = [], []
    for head in range(kv_heads):
        own = weights[head * heads // kv_heads : (head + 1) * heads // kv_heads].mean(0).sum(0).tolist()
        total = [a + b for a, b in zip(own, [*before[head], *[0.0] * n], strict=False)]
        recent = size // 2
        kept.append(top([*total[: n - recent], *[math.inf] * min(recent, n)], size))
        sums.append(total)
    return kept, sums


def tova(weights, kv_heads, size):
    return [top(weights[:, -1].mean(0), size)] * kv_heads


def knorm(keys, size):
    return [top(-head.double().norm(dim=-1), size) for head in keys]
