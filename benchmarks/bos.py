"""Measures the effect of the BOS rule on short-context perplexity, key tokens and LongPPL, on both embedded models.

python -m benchmarks.bos        (about ten minutes on two cores)
"""

from __future__ import annotations

import warnings

import numpy as np

import longlens
from benchmarks.tables import write_table
from longlens.scoring.truncation import TokenLimit

MODELS = ("smollm2", "gemma3-270m")
CONTEXT, STRIDE, TOKENS = 512, 256, 3000


def main() -> None:
    warnings.simplefilter("ignore", longlens.LonglensWarning)
    from pydoc_data.topics import topics

    documents = [longlens.Document(id=name, text=topics[name]) for name in ("specialnames", "types", "formatstrings")]
    shared: TokenLimit | None = None
    runs = {}
    for model in MODELS:
        scorer = longlens.load_scorer(model, dtype="float32")
        if shared is None:
            encode = scorer._encoder.encode
            shared = TokenLimit(max_tokens=TOKENS, counted_by=model, encode=encode)
        for bos in ("window", "published"):
            options = {"limit": shared, "bos": bos}
            short = longlens.score(documents, scorer, context=CONTEXT, stride=STRIDE, **options)
            long = short if bos == "window" else longlens.score(documents, scorer, context=None, **options)
            runs[model, bos] = short, long
    rows = []
    for evaluator in MODELS:
        indices = {}
        for bos in ("window", "published"):
            scores = runs[evaluator, bos][0]
            keys = longlens.select_key_tokens(scores)
            indices[bos] = {(key.id, i) for key in keys for i in key.token_indices.tolist()}
            short = np.concatenate([row.short_logprobs for row in scores])
            others = [longlens.perplexity(runs[model, bos][1], evaluator_scores=scores).longppl for model in MODELS]
            shared_keys = len(indices["window"] & indices[bos])
            rows.append(
                [evaluator, bos, f"{np.exp(-np.nanmean(short)):.2f}", len(indices[bos]), shared_keys]
                + ["-" if value is None else f"{value:.2f}" for value in others]
            )
    columns = ["evaluator", "BOS rule", "short PPL", "key tokens", "of them key under window"]
    write_table("bos", columns + [f"LongPPL of {model}" for model in MODELS], rows, page="docs/bos.md")


if __name__ == "__main__":
    main()
