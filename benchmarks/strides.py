"""What a larger stride changes: scores and key tokens at several d beside those of the smallest, on SmolLM2.

python -m benchmarks.strides        (about six minutes of one core)

The windows of one K overlap by K tokens, whatever d is, and each scored token sees K to K + d - 1 tokens before it.
A larger d costs less and moves the short context of most tokens above K.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import spearmanr

import longlens
from benchmarks.tables import write_table
from longlens.study.agreement import KeyOverlap, Selected
from longlens.study.texts import four_kinds

CONTEXT, STRIDES, TOKENS = 256, (16, 64, 128, 256, 512, 1024), 2048


def main() -> None:
    scorer = longlens.load_scorer("smollm2", dtype="float32")
    documents = four_kinds(scorer.tokenizer, count=1, tokens=TOKENS)
    found = {d: longlens.score(documents, scorer, context=CONTEXT, stride=d) for d in STRIDES}
    rows = []
    exact = longlens.select_key_tokens(found[STRIDES[0]])
    for d in STRIDES:
        keys = longlens.select_key_tokens(found[d])
        overlap = KeyOverlap()
        lsd: tuple[list[Any], list[Any]] = ([], [])
        for one, other, row, of_row in zip(found[STRIDES[0]], found[d], exact, keys, strict=True):
            overlap.add(Selected(one, row), Selected(other, of_row))
            for side, scores in zip(lsd, (one, other), strict=True):
                side.append(scores.lsd[CONTEXT:])
        agreed = overlap.result()
        one, other = map(np.concatenate, lsd)
        rows.append(
            [
                d,
                f"{(CONTEXT + d) / d + 1:.2f}",
                f"{spearmanr(one, other).statistic:.3f}",
                f"{agreed.num_keys[1]:,}",
                f"{agreed.jaccard:.2f} ({agreed.chance_jaccard:.2f})",
                f"{longlens.perplexity(found[d], evaluator_scores=found[d]).longppl:.2f}",
            ]
        )
    columns = ["d", "tokens run per token", "Spearman of LSD", "key tokens", "Jaccard (chance)", "LongPPL"]
    write_table("strides", columns, rows, page="docs/costs.md")


if __name__ == "__main__":
    main()
