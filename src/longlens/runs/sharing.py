"""Distributes items over processes by their cost; the cost of a document is that of its forward passes.

A forward pass over n tokens has ``2 P n`` FLOPs in the matrices of P parameters and ``2 L H n^2`` in causal attention
(L layers, hidden size H). With ``P = 12 L H^2``, as in a transformer with four attention matrices and an MLP four times
as wide, that is ``24 L H^2 (n + n^2 / (12 H))``, and the costs here are the bracket: only costs of one model are
compared, so that the factor cancels. (Kaplan et al. 2020, "Scaling Laws for Neural Language Models", table 1.)
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN_SIZE = 4096
"""Assumed for a model whose hidden size is unknown, such as a server's."""
BYTES_PER_TOKEN = 4
"""Approximate bytes of UTF-8 text per token: a text is assigned to a process before it is tokenized."""


def balance(costs: Sequence[float], size: int) -> list[int]:
    """The process of each item: the most expensive item first, each to the process with the least load.

    The largest load is at most 4/3 of that of the optimal distribution (Graham 1969, LPT).

    Args:
        costs: Costs of the items, in any unit.
        size: Number of processes.
    """
    loads = [(0.0, rank) for rank in range(size)]
    owners = [0] * len(costs)
    for at in sorted(range(len(costs)), key=lambda at: -costs[at]):  # stable: equal costs in the items' order
        load, rank = loads[0]
        owners[at] = rank
        heapq.heapreplace(loads, (load + costs[at], rank))
    return owners


def forward_cost(tokens: int, hidden_size: int = HIDDEN_SIZE) -> float:
    """``n + n^2 / (12 H)``: the FLOPs of a pass over n tokens, relative to those of one token without attention."""
    return tokens + tokens**2 / (12 * hidden_size)


def windows_cost(tokens: int, context: int, stride: int, hidden_size: int = HIDDEN_SIZE) -> float:
    """The sum of `forward_cost` over the windows that score a document of n tokens under K and d.

    There are ``(n - K) // d`` windows of K + d tokens, and one of ``K + (n - K) % d`` if there is a remainder.
    """
    if tokens <= context:
        return 0.0
    full, rest = divmod(tokens - context, stride)
    last = forward_cost(context + rest, hidden_size) if rest else 0.0
    return full * forward_cost(context + stride, hidden_size) + last


def hidden_size_of(config: Mapping[str, Any] | None) -> int:
    """H of a model's configuration; `HIDDEN_SIZE` if it has none."""
    for name in ("hidden_size", "n_embd", "d_model"):
        value = (config or {}).get(name)
        if isinstance(value, int) and value > 0:
            return value
    return HIDDEN_SIZE
