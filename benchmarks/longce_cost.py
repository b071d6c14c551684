"""Measures the cost of a LongCE step relative to cross-entropy: SmolLM2, rows of 2,048 tokens, forward and backward.

python -m benchmarks.longce_cost [rounds]       (about eight minutes a round on one core)

All forms take turns within a round. Time is the process's CPU time on one thread, which other work on the machine moves
less than the clock on the wall; ratios are medians over rounds.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from tests.reference.longce import naive_longce
from torch import Tensor

from benchmarks.longce_modes import CONTEXT, EXACT, ONLINE, STRIDE, floor, load, texts
from benchmarks.tables import write_table
from longlens.losses.longce import weighted_nll


def steps(model: Any) -> dict[str, Callable[[Tensor, int], Tensor]]:
    """The loss of each form, from rows and the number of the step."""

    def published(ids: Tensor, step: int) -> Tensor:
        # finetune.py of the published code: whole logits in every window, one window at a time.
        return naive_longce(model, [(row, row) for row in ids], CONTEXT, STRIDE, EXACT.gamma)[0]

    def online(longce: Any) -> Callable[[Tensor, int], Tensor]:
        return lambda ids, step: weighted_nll(model, ids, longce=longce, step=step).total

    def offline(column: str) -> Callable[[Tensor, int], Tensor]:
        def loss(ids: Tensor, step: int) -> Tensor:
            values = torch.full(ids.shape, -1.0 if column == "short_logprobs" else 2.0)
            return weighted_nll(model, ids, longce=EXACT, **{column: values}).total

        return loss

    found: dict[str, Callable[[Tensor, int], Tensor]] = {"CE": online(None), "published loop, K=256 d=64": published}
    found |= {name: online(longce) for name, longce in ONLINE.items()}
    return found | {f"offline, {column}": offline(column) for column in ("token_weights", "short_logprobs")}


def main() -> None:
    torch.set_num_threads(1)
    model = load().train()
    ids = texts(1)
    found: dict[str, list[float]] = {}
    for round_number in range(-1, int(sys.argv[1]) if len(sys.argv) > 1 else 3):
        for name, loss in steps(model).items():
            model.zero_grad()
            rows = ids if round_number >= 0 else ids[:, :400]  # the first round warms up
            started = time.process_time()
            loss(rows, max(round_number, 0)).backward()
            if round_number >= 0:
                found.setdefault(name, []).append(time.process_time() - started)
                print(f"{round_number} {name}: {found[name][-1]:.1f} s", file=sys.stderr, flush=True)
    rows = []
    for name, seconds in found.items():
        ratios = [mine / ce - 1 for mine, ce in zip(seconds, found["CE"], strict=True)]
        overhead, least = statistics.median(ratios), None
        if name in ONLINE or name.startswith("published"):
            least = floor(model, ids, ONLINE.get(name, EXACT))
        rows.append(
            [
                name,
                f"{100 * overhead:+.0f} %",
                f"{100 * min(ratios):+.0f} to {100 * max(ratios):+.0f} %",
                "-" if least is None else f"{100 * least:+.0f} %",
                "-" if least is None else f"{overhead / least:.2f}",
            ]
        )
    columns = ["form", "over CE", "over rounds", "arithmetic of the short pass", "measured / arithmetic"]
    write_table("longce_cost", columns, rows, page="docs/train.md")


if __name__ == "__main__":
    main()
