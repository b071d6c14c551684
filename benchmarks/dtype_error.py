"""Measures errors of float32 and bfloat16 log-probabilities against float64 on real models; basis of LOGPROB_ERROR.

python -m benchmarks.dtype_error        (about ten minutes on two cores)
"""

from __future__ import annotations

import numpy as np

import longlens
from benchmarks.tables import write_table
from longlens.models import load_tokenizer
from longlens.scoring.transformers import TransformersScorer

CONTEXT, STRIDE, TOKENS = 512, 256, 1500


def main() -> None:
    from pydoc_data.topics import topics

    documents = [longlens.Document(id="specialnames", text=topics["specialnames"])]
    rows = []
    for model in ("smollm2", "gemma3-270m"):
        found = {}
        for dtype in ("float64", "float32", "float16", "bfloat16"):
            scorer = longlens.load_scorer(model, dtype="float32" if dtype == "float64" else dtype)
            if dtype == "float64":
                scorer = TransformersScorer(scorer.model.double(), load_tokenizer(model), weights_sha256="float64")
            try:
                found[dtype] = longlens.score(documents, scorer, context=CONTEXT, stride=STRIDE, max_length=TOKENS)[0]
            except longlens.UserError as error:
                print(error)
        for dtype in ("float32", "float16", "bfloat16"):
            if dtype not in found:
                rows.append([model, dtype, *["nan"] * 5])
                continue
            long = np.abs(found[dtype].long_logprobs - found["float64"].long_logprobs)
            lsd = np.abs(found[dtype].lsd - found["float64"].lsd)[CONTEXT:]
            quantiles = [np.mean(long), np.quantile(long, 0.95), np.max(long), np.quantile(lsd, 0.95), np.max(lsd)]
            rows.append([model, dtype, *(f"{value:.2g}" for value in quantiles)])
    columns = ["model", "dtype", "mean error, nats", "95 %", "largest", "LSD: 95 %", "LSD: largest"]
    write_table("dtype_error", columns, rows, page="docs/precision.md")


if __name__ == "__main__":
    main()
