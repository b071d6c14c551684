"""Compares weights of LongCE's cheaper forms with the exact ones: SmolLM2, four modules of 2,048 tokens.

python -m benchmarks.longce_agreement [TRAINED]      (about ten minutes on two cores)

With TRAINED, a folder of the same model after training, there are rows of offline columns too: what was computed with
the base model, held against the trained model's own exact weights.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.longce_modes import CONTEXT, EXACT, ONLINE, load, texts
from benchmarks.tables import write_table
from longlens.losses import LongCE
from longlens.losses.passes import head_of, score_short, scored_labels, split_documents, target_logprobs
from longlens.models.forward import Forward
from longlens.rope import load_model

ROWS = 4
LARGEST = 0.05


def long_logprobs(model: Any, ids: Tensor) -> Tensor:
    """``(ROWS, n - K)`` of tokens from K on."""
    head, found = head_of(model), []
    with torch.no_grad():
        for row in ids[:, None]:
            states = Forward(model).hidden(row)
            found.append(target_logprobs(states, row, scored_labels(row), head))
    return torch.stack(found)[:, CONTEXT - 1 :]


def short_logprobs(model: Any, ids: Tensor, longce: LongCE) -> Tensor:
    """The same under the short context; NaN where a token is not weighed. Rows take turns at being the first step."""
    head, found = head_of(model), []
    for step, row in enumerate(ids[:, None]):
        found.append(score_short(model, head, row, row, scored_labels(row), split_documents(row, None), longce, step))
    return torch.cat(found)[:, CONTEXT:]


def agreement(exact: Tensor, found: Tensor) -> list[str]:
    """Spearman's correlation and the overlap of the largest: of tokens that are weighed, then of all.

    Of the difference of log-probabilities, which orders tokens as weights do but for those that all weigh gamma. A
    token that is not weighed has the weight 1, a difference of 0.
    """
    is_weighed = ~found.isnan()
    found = found.nan_to_num(0.0)
    cells = [f"{100 * float(is_weighed.float().mean()):.0f} %"]
    for chosen in (is_weighed, torch.ones_like(is_weighed)):
        one, other = exact[chosen].numpy(), found[chosen].numpy()
        number = round(LARGEST * len(one))
        shared = np.intersect1d(*(np.argsort(-values, kind="stable")[:number] for values in (one, other)))
        cells += [f"{spearmanr(one, other).statistic:.3f}", f"{100 * len(shared) / number:.0f} %"]
    return [*cells, f"{float(found.exp().clamp(max=EXACT.gamma).mean()):.3f}"]


def main() -> None:
    base, ids = load(), texts(ROWS)
    long, short = long_logprobs(base, ids), {}
    rows = []
    for name, longce in ONLINE.items():
        short[name] = short_logprobs(base, ids, longce)
        base_short = short[next(iter(ONLINE))]
        rows.append([name, *agreement(long - base_short, long - short[name])])
        print(rows[-1], file=sys.stderr, flush=True)
    if len(sys.argv) > 1:
        trained = load_model(sys.argv[1], dtype=torch.float32)
        own_long, own_short = long_logprobs(trained, ids), short_logprobs(trained, ids, EXACT)
        exact = own_long - own_short
        rows.append(["offline, token_weights, after training", *agreement(exact, long - base_short)])
        rows.append(["offline, short_logprobs, after training", *agreement(exact, own_long - base_short)])
    columns = ["form", "weighed at a step", "Spearman, weighed", "top 5 %, weighed", "Spearman, all", "top 5 %, all"]
    write_table("longce_agreement", [*columns, "mean weight"], rows, page="docs/train.md")


if __name__ == "__main__":
    main()
