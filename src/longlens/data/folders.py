"""What ``longlens data pack`` and ``longlens data weigh`` write: a dataset folder, whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from longlens.corpus import read_documents
from longlens.data.columns import Columns
from longlens.data.documents import Framing, dataset_rows, texts_to_documents
from longlens.data.mixture import check_tokenizer, fingerprint
from longlens.data.packing import Counts, Packing, TooLong, pack, warn_divided
from longlens.data.store import DatasetFolder, packed_schema, read_manifest
from longlens.data.weigh import What, weigh_row
from longlens.errors import UserError
from longlens.keytokens.influence import GAMMA
from longlens.scoring.scores import Scores, identity_of
from longlens.settings.options import Reading
from longlens.tokenization import TextEncoder


def pack_folder(
    sources: Sequence[str],
    tokenizer: Any,
    out: str | os.PathLike[str],
    *,
    length: int,
    packing: Packing,
    too_long: TooLong = "split",
    min_tokens: int = 1,
    max_tokens: int | None = None,
    bos: bool = True,
    eos: bool = True,
    tokenized: bool = False,
    reading: Reading | None = None,
) -> dict[str, Any]:
    """Packs documents in the order in which they come, into a folder that ``datasets.load_dataset(out)`` reads.

    Args:
        sources: As in `longlens.read_documents`; or tokenized: rows with ``input_ids`` of this tokenizer, such as
            ``longlens data weigh`` writes, whose folders are known without being told.
        tokenizer: Of transformers.
        out: A new folder.
        length: As in `pack`.
        packing: As in `pack`.
        too_long: As in `pack`.
        min_tokens: As in `pack`.
        max_tokens: As in `pack`.
        bos: Whether the tokenizer's BOS stands before every document.
        eos: Whether its EOS stands behind every document.
        tokenized: Whether rows hold ``input_ids``.
        reading: Fields and split.

    Returns:
        What counts.json holds: `Counts`.

    Raises:
        UserError: Documents that cannot be read or packed, a folder that holds something else, a full disk.
    """
    reading = Reading() if reading is None else reading
    framing = Framing(tokenizer, bos=bos, eos=eos)
    for source in sources:
        check_tokenizer(source, framing)
    tokenized = tokenized or (bool(sources) and all(_is_weighed(source) for source in sources))
    if tokenized:
        rows = dataset_rows(sources, reading)
        documents: Iterable[Columns] = map(framing.framed_row, rows)
    else:
        documents = texts_to_documents((d.text for d in read_documents(sources, reading)), framing)
    settings = {
        "sources": {source: fingerprint(source) for source in sources},
        "tokenizer_sha256": framing.tokenizer_sha256,
        "bos_token_id": framing.bos,
        "eos_token_id": framing.eos,
        "length": length,
        "packing": repr(packing),
        "too_long": too_long,
        "min_tokens": min_tokens,
        "max_tokens": max_tokens,
        "tokenized": tokenized,
        "text_field": reading.text_field,
        "subset": reading.subset,
        "split": reading.split,
        "samples": reading.samples,
    }
    counts = Counts()
    packed = pack(
        documents,
        length,
        packing=packing,
        too_long=too_long,
        min_tokens=min_tokens,
        max_tokens=max_tokens,
        counts=counts,
    )
    with DatasetFolder(Path(out), "packed", settings) as folder:
        if folder.counts is not None:
            return folder.counts
        first = next(packed, None)
        if first is None:
            raise UserError(
                f"no row was made of {counts.documents:,} documents with {counts.tokens:,} tokens "
                f"({counts.short_documents:,} are shorter than --min-tokens, {counts.long_documents:,} too long): "
                "check the lengths"
            )
        _write(folder, chain([first], packed), packed_schema(first))
        warn_divided(counts, first, "the documents")
        folder.finish(counts.to_json())
        return counts.to_json()


def weigh_folder(
    sources: Sequence[str],
    scores: Scores,
    out: str | os.PathLike[str],
    *,
    gamma: float = GAMMA,
    what: What = "token_weights",
    encoder: TextEncoder | None = None,
    tokenized: bool = False,
    reading: Reading | None = None,
) -> dict[str, Any]:
    """Writes ``id``, ``input_ids`` and ``token_weights`` (or ``short_logprobs``) of documents that were scored.

    Args:
        sources: The documents: texts, or tokenized rows, with the ids they were scored under.
        scores: As in `weigh`.
        out: A new folder.
        gamma: As in `weigh`.
        what: As in `weigh`.
        encoder: As in `weigh`.
        tokenized: Whether rows hold ``input_ids``.
        reading: Fields and split.

    Returns:
        What counts.json holds: ``documents``, ``tokens``; of weights ``mean_weight`` and ``at_gamma``, how many are the
        largest; of short log-probabilities ``without_short_score``, how many there are not.

    Raises:
        UserError: A document that was not scored, or with another text; a folder that holds something else; a full
            disk.
    """
    reading = Reading() if reading is None else reading
    model = scores.manifest["model"]
    settings = {
        "sources": {source: fingerprint(source) for source in sources},
        "what": what,
        "gamma": gamma if what == "token_weights" else None,
        "short_context": None if scores.selected is None else list(scores.selected),
        "scored_with": identity_of(scores).sha256,
        "scored_as": scores.manifest["settings"],
        "tokenizer_sha256": model["tokenizer_sha256"] if encoder is None else encoder.sha256,
    }
    if tokenized:
        rows: Iterable[tuple[str, Mapping[str, Any]]] = (
            (row.place, row.values) for row in dataset_rows(sources, reading)
        )
    else:
        found = read_documents(sources, reading)
        # read_documents names ids as scoring does, rows without an id too.
        rows = ((f"document {d.id!r}", {reading.id_field: d.id, reading.text_field: d.text}) for d in found)
    counts: dict[str, Any] = {"documents": 0, "tokens": 0}
    schema = pa.schema([("id", pa.string()), ("input_ids", pa.list_(pa.int32())), (what, pa.list_(pa.float32()))])
    fields = {"id_field": reading.id_field, "text_field": reading.text_field}

    def weighed() -> Iterator[dict[str, Any]]:
        total, at_gamma = 0.0, 0
        for place, row in rows:
            columns = weigh_row(row, place, scores, gamma=gamma, what=what, encoder=encoder, **fields)
            values = columns[what].astype(np.float64)
            counts["documents"] += 1
            counts["tokens"] += len(values)
            if what == "short_logprobs":
                counts["without_short_score"] = counts.get("without_short_score", 0) + int(np.isnan(values).sum())
            else:
                total += float(values.sum())
                at_gamma += int((values == np.float32(gamma)).sum())
                counts.update(mean_weight=total / max(counts["tokens"], 1), at_gamma=at_gamma)
            yield {"id": str(row[reading.id_field]), **columns}

    with DatasetFolder(Path(out), "weighed", settings) as folder:
        if folder.counts is not None:
            return folder.counts
        _write(folder, weighed(), schema)
        folder.finish(counts)
        return counts


def _write(folder: DatasetFolder, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> None:
    shutil.rmtree(folder.folder / "data", ignore_errors=True)  # of a run that was killed before it wrote its counts
    folder.write("data", rows, schema)


def _is_weighed(source: str) -> bool:
    manifest = None if source.startswith("hf:") else read_manifest(Path(source))
    return manifest is not None and manifest["kind"] == "weighed"
