"""Toys for unit tests: scores written by hand, whose answers are mental arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from longlens.corpus import text_sha256
from longlens.scoring.scores import MemoryScores, ShortContext, TokenScores

NAN = float("nan")


def manifest(name: str = "toy", **settings: Any) -> dict[str, Any]:
    base = {"bos": "window", "dtype": "float32", "max_length": 32768}
    return {
        "schema_version": 2,
        "model": {
            "name": name,
            "weights_sha256": f"weights-{name}",
            "config": {"model_type": "toy"},
            "tokenizer_sha256": "tokenizer",
        },
        "settings": base | settings,
        "versions": {},
    }


def token_scores(
    pieces: Sequence[str],
    long: Sequence[float],
    short: Sequence[float] | None = None,
    *,
    id: str = "a",
    context: int = 4,
    stride: int = 2,
    total_tokens: int | None = None,
    store_text: bool = True,
) -> TokenScores:
    """One document whose tokens are `pieces`, so that spans are their places in the joined text."""
    text = "".join(pieces)
    ends = np.cumsum([len(piece) for piece in pieces]).astype(np.int64)
    spans = np.stack([ends - [len(piece) for piece in pieces], ends], axis=1)
    key = ShortContext(context, stride)
    shorts: Mapping[ShortContext, Any] = {} if short is None else {key: np.asarray(short, dtype=np.float32)}
    return TokenScores(
        id=id,
        text=text if store_text else None,
        text_sha256=text_sha256(text),
        total_tokens=len(pieces) if total_tokens is None else total_tokens,
        token_ids=np.arange(len(pieces), dtype=np.int64),
        char_spans=spans,
        long_logprobs=np.asarray(long, dtype=np.float32),
        short=shorts,
        selected=None if short is None else key,
    )


def scores(*rows: TokenScores, name: str = "toy", **settings: Any) -> MemoryScores:
    return MemoryScores(rows, manifest(name, **settings))
