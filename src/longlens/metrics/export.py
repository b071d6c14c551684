"""Scores as files for other tools: one row per token, with its text, its score under each K, and whether it is key."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longlens.errors import UserError, shown
from longlens.files import replacing
from longlens.keytokens.selection import KeySource
from longlens.metrics.corpus import Corpus, ScoredDocument, choose_influence
from longlens.scoring.scores import Scores, ShortContext
from longlens.settings.options import KeyRule

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = (".csv", ".parquet", ".jsonl")


def export_tokens(
    path: str | os.PathLike[str],
    scores: Scores,
    *,
    evaluator_scores: Scores | None = None,
    keys: KeySource | None = None,
    rule: KeyRule | None = None,
    overwrite: bool = False,
) -> int:
    """Writes one row per token, document after document, with one document in memory at a time.

    Columns: ``document`` (the id), ``index``, ``token_id``, ``token`` (its text), ``char_start``, ``char_end``,
    ``long_logprob``, for each K ``short_logprob_K64`` and ``lsd_K64`` (``_K64_d32`` where one K has several strides),
    ``lcl``, ``key`` and ``weight``. Log-probabilities, LSD and LCL are in nats. Missing values are null (empty in CSV):
    the scores of a first token, short-context scores before K, tokens of a run without texts, ``key`` without key
    tokens, and ``weight`` without evaluator scores.

    Args:
        path: The file; its suffix, one of `FORMATS`, determines the format.
        scores: Scores of the model.
        evaluator_scores: Scores that select the key tokens (eq. 4, 9) and weight tokens (eq. 7, 10); by default
            ``scores`` itself, if it has short contexts.
        keys: Key tokens, instead of evaluator scores.
        rule: How key tokens are selected.
        overwrite: Whether an existing file is replaced.

    Returns:
        The number of rows.

    Raises:
        UserError: The suffix is unknown, the file exists, or `longlens.perplexity` rejects the arguments.
    """
    path = Path(path)
    check_export(path, overwrite=overwrite)
    if evaluator_scores is None and keys is None and scores.selected is not None:
        evaluator_scores = scores
    corpus = Corpus(scores, choose_influence(evaluator_scores, keys, rule or KeyRule()))
    shorts = sorted(scores.short_contexts)
    count = 0
    with _writer(path, _schema(shorts)) as write:
        for document in corpus:
            table = _table(document, shorts)
            write(table)
            count += table.num_rows
    return count


def check_export(path: Path, *, overwrite: bool = False) -> None:
    """Rejects, before anything is computed, a file that cannot be written.

    Raises:
        UserError: It has another suffix, exists, or its folder does not exist.
    """
    if path.suffix not in FORMATS:
        raise UserError(f"`out` is {shown(path)}; expected a file that ends in {', '.join(FORMATS)}")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists: choose another file, or pass `overwrite=True`")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is not a folder: create it, then write {path.name} there")


def _suffix(short: ShortContext, shorts: list[ShortContext]) -> str:
    is_alone = sum(other.context == short.context for other in shorts) == 1
    return f"K{short.context}" if is_alone else f"K{short.context}_d{short.stride}"


def _schema(shorts: list[ShortContext]) -> pa.Schema:
    import pyarrow as pa

    names = [_suffix(short, shorts) for short in shorts]
    return pa.schema(
        [("document", pa.string()), ("index", pa.int32()), ("token_id", pa.int64()), ("token", pa.string())]
        + [("char_start", pa.int64()), ("char_end", pa.int64()), ("long_logprob", pa.float32())]
        + [(f"{what}_{name}", pa.float32()) for name in names for what in ("short_logprob", "lsd")]
        + [("lcl", pa.float32()), ("key", pa.bool_()), ("weight", pa.float64())]
    )


def _table(document: ScoredDocument, shorts: list[ShortContext]) -> pa.Table:
    import pyarrow as pa

    row, n = document.row, len(document.row.token_ids)
    spans = row.char_spans.tolist()
    columns: dict[str, Any] = {
        "document": pa.array([row.id] * n, pa.string()),
        "index": np.arange(n, dtype=np.int32),
        "token_id": row.token_ids,
        "token": [None] * n if row.text is None else [row.text[start:end] for start, end in spans],
        "char_start": row.char_spans[:, 0],
        "char_end": row.char_spans[:, 1],
        "long_logprob": row.long_logprobs,
    }
    for short in shorts:
        columns[f"short_logprob_{_suffix(short, shorts)}"] = row.short[short]
        columns[f"lsd_{_suffix(short, shorts)}"] = row.long_logprobs - row.short[short]
    columns |= {"lcl": row.lcl, "key": document.is_key, "weight": document.weights}
    schema = _schema(shorts)
    arrays = [
        pa.nulls(n, field.type)
        if columns[field.name] is None
        else pa.array(columns[field.name], field.type, from_pandas=True)  # NaN is null
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


@contextmanager
def _writer(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Writes tables into a new file that replaces ``path`` if the block succeeds."""
    import pyarrow.csv
    import pyarrow.parquet

    with replacing(path) as text:
        file = text.buffer
        if path.suffix == ".jsonl":
            yield lambda table: file.writelines(
                json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in table.to_pylist()
            )
        elif path.suffix == ".csv":
            with pyarrow.csv.CSVWriter(file, schema) as csv:
                yield csv.write_table
        else:
            with pyarrow.parquet.ParquetWriter(file, schema) as parquet:
                yield parquet.write_table
