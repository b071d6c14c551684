"""Folders of packed rows: ``longlens data pack``, and ``longlens data mix``.

In a mixture, each source is packed and then rows are interleaved, so that shares of rows are shares of tokens.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from longlens.corpus import read_documents
from longlens.data.documents import (
    Framing,
    check_tokenizer,
    fingerprint,
    is_weighed,
    read_dataset_rows,
    read_source,
    tokenize_texts,
)
from longlens.data.packing import Packing, PackingCounts, TooLong, pack, packing_of, warn_divided
from longlens.data.recipe import Mixture, MixtureSource
from longlens.data.store import CARRIED, COUNTS, NEUTRAL, Columns, DatasetFolder, Row, read_rows, schema_of
from longlens.errors import UserError, shown
from longlens.files import read_json, write_json
from longlens.runs.processes import Processes
from longlens.runs.sharing import balance
from longlens.settings.options import Reading

_LOGGER = logging.getLogger(__name__)


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
    processes: Processes | None = None,
) -> dict[str, Any]:
    """Packs documents in input order, into a folder that ``datasets.load_dataset(out)`` reads.

    Args:
        sources: Files, folders or ``hf:NAME``: texts; or, if tokenized, rows with ``input_ids`` of this tokenizer, such
            as those of ``longlens data weigh``, whose folders are recognized.
        tokenizer: A transformers tokenizer.
        out: A new folder.
        length: Tokens per row.
        packing: `Fill` or `BestFit`.
        too_long: Handling of documents longer than a row: ``split``, ``cut`` or ``drop``.
        min_tokens: Documents with fewer tokens are dropped, as are last pieces of split documents.
        max_tokens: Documents with more tokens are dropped.
        bos: Whether to add the tokenizer's BOS before each document.
        eos: Whether to add its EOS after each document.
        tokenized: Whether rows contain ``input_ids``.
        reading: Fields and split.
        processes: Processes that share the work, each of which calls this; by default those started by torchrun.

    Returns:
        Content of counts.json: `PackingCounts`.

    Raises:
        UserError: Documents cannot be read or packed, the folder contains something else, or the disk is full.
    """
    reading = Reading() if reading is None else reading
    framing = Framing(tokenizer, bos=bos, eos=eos)
    for source in sources:
        check_tokenizer(source, framing)
    tokenized = tokenized or (bool(sources) and all(is_weighed(source) for source in sources))
    if tokenized:
        rows = read_dataset_rows(sources, reading)
        documents: Iterable[Columns] = map(framing.frame_row, rows)
    else:
        documents = tokenize_texts((d.text for d in read_documents(sources, reading)), framing)
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
    with processes or Processes() as processes, DatasetFolder(Path(out), "packed", settings, processes) as folder:
        if folder.counts is not None:
            return folder.counts
        if processes.size > 1 and not tokenized:
            documents = _tokenize_shared(sources, reading, framing, folder)
        if processes.rank > 0:
            return folder.finish(None)
        counts = PackingCounts()
        packed = pack(
            documents,
            length,
            packing=packing,
            too_long=too_long,
            min_tokens=min_tokens,
            max_tokens=max_tokens,
            counts=counts,
        )
        first = next(packed, None)
        if first is None:
            raise UserError(
                f"no row was made of {counts.documents:,} documents with {counts.tokens:,} tokens "
                f"({counts.short_documents:,} are shorter than `min_tokens`, {counts.long_documents:,} too long): "
                "check the lengths"
            )
        folder.write("data", chain([first], packed), schema_of(first))
        warn_divided(counts, first, "the documents")
        return folder.finish(counts.to_json())


def _tokenize_shared(
    sources: Sequence[str], reading: Reading, framing: Framing, folder: DatasetFolder
) -> Iterator[Columns]:
    """Yields the documents, which the processes have tokenized chunk by chunk."""

    def rows(texts: Iterable[str], counts: dict[str, Any]) -> Iterator[Columns]:
        counts["documents"] = 0
        for document in tokenize_texts(texts, framing):
            counts["documents"] += 1
            yield document

    texts = (document.text for document in read_documents(sources, reading))
    schema = pa.schema([("input_ids", pa.list_(pa.int32()))])
    chunks = folder.write_chunks("tokens", texts, schema, characters=len, rows=rows)
    return (row for chunk in chunks for row in read_rows(chunk))


def mix(
    mixture: Mixture, tokenizer: Any, out: str | os.PathLike[str], *, processes: Processes | None = None
) -> dict[str, Any]:
    """Makes a mixture: a folder that ``datasets.load_dataset(out)`` reads, with rows as from `longlens.data.pack`.

    Each row has documents of one source, whose name is its column ``source``. The same recipe, tokenizer and files
    yield the same rows on any machine, regardless of the number of threads and interruptions: completed sources are not
    read again.

    Args:
        mixture: The recipe of the mixture.
        tokenizer: A transformers tokenizer, such as `longlens.models.load_tokenizer` gives.
        out: A new folder, or one that was started with the same settings.
        processes: Processes that share the work, each of which calls this; by default those started by torchrun.

    Returns:
        Content of counts.json: ``rows``, ``tokens``, ``input_ids_sha256``, and `PackingCounts` for each source.

    Raises:
        UserError: A source has no path, has too few tokens or cannot be read; the folder contains something else; or
            the disk is full.
    """
    wanted = allocate(mixture)
    framing = Framing(tokenizer, bos=mixture.bos, eos=mixture.eos)
    for name, source in mixture.sources.items():
        _check_source(name, source, framing)
    settings = mixture.resolved() | {
        "tokenizer_sha256": framing.tokenizer_sha256,
        "bos_token_id": framing.bos,
        "eos_token_id": framing.eos,
        "files_sha256": {name: fingerprint(str(source.path)) for name, source in mixture.sources.items()},
    }
    # As the manifest will be read later: tuples become lists in JSON.
    recorded = json.loads(json.dumps(settings))
    with processes or Processes() as processes, DatasetFolder(Path(out), "mixture", recorded, processes) as folder:
        if folder.counts is not None:
            return folder.counts
        for name in _own_sources(wanted, folder):
            _make_source(mixture, name, wanted[name], framing, folder)
        processes.wait_for_all()
        if processes.rank > 0:
            return folder.finish(None)
        counts = {}
        for name in mixture.sources:
            counts[name] = read_json(folder.work / name / COUNTS)
            rows, documents = counts[name]["rows"], counts[name]["documents"]
            _LOGGER.info("%s: %s rows of %s documents", name, f"{rows:,}", f"{documents:,}")
        order = interleave(wanted, mixture.seed)
        names = {column for name in wanted for column in counts[name].pop("columns")}
        digest = hashlib.sha256()
        rows = _interleave_rows(folder.work, order, names, digest)
        folder.write("data", rows, schema_of(names, ("source", pa.string())))
        total: dict[str, Any] = {"rows": len(order), "tokens": sum(c["row_tokens"] for c in counts.values())}
        total |= {"input_ids_sha256": digest.hexdigest(), "sources": counts}
        return folder.finish(total)


def _own_sources(wanted: Mapping[str, int], folder: DatasetFolder) -> list[str]:
    """The sources that this process makes: missing sources are distributed by their number of rows."""
    processes = folder.processes
    if processes.rank > 0:
        owners = processes.receive()
    else:
        missing = [name for name in wanted if not (folder.work / name / COUNTS).is_file()]
        owners = dict(zip(missing, balance([wanted[name] for name in missing], processes.size), strict=True))
        processes.broadcast(owners)
    return [name for name, owner in owners.items() if owner == processes.rank]


def allocate(mixture: Mixture) -> dict[str, int]:
    """Rows of each source: ``weight / 100 * rows`` rounded by largest remainder, so that each is within one row of it.

    Raises:
        UserError: A source would have no rows.
    """
    rows = mixture.tokens // mixture.length
    weights = {name: Fraction(str(source.weight)) for name, source in mixture.sources.items()}
    total = sum(weights.values())
    exact = {name: weight * rows / total for name, weight in weights.items()}
    whole = {name: int(share) for name, share in exact.items()}
    missing = rows - sum(whole.values())
    for name in sorted(exact, key=lambda name: whole[name] - exact[name])[:missing]:  # stable: ties in recipe order
        whole[name] += 1
    for name, count in whole.items():
        if not count:
            raise UserError(
                f"{rows} rows leave none to the source {name} with {float(weights[name]):g} %: "
                f"use at least {int(100 * mixture.length / weights[name]) + 1} `tokens`"
            )
    return whole


def interleave(rows: Mapping[str, int], seed: int) -> list[str]:
    """The sources of all rows, in order: row k of n of a source is at ``(k + u) / n``, with u in [0, 1) from the seed.

    So each source is spread evenly: its rows do not cluster more than by chance, and any part of the mixture has about
    the same shares as the whole. u is ``sha256(f"{seed}:{name}:{k}")`` as a fraction, equal on any machine and with any
    version of a library.
    """
    places = [
        ((k + _uniform(f"{seed}:{name}:{k}")) / count, name) for name, count in rows.items() for k in range(count)
    ]
    return [name for _, name in sorted(places)]


def _uniform(key: str) -> float:
    # 53 bits are what a float holds, so that it stays below 1.
    return (int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 11) / 2**53


def _make_source(mixture: Mixture, name: str, wanted: int, framing: Framing, folder: DatasetFolder) -> None:
    source, counts = mixture.sources[name], PackingCounts()
    folder.work.mkdir(exist_ok=True)
    rows = _source_rows(mixture, source, framing, folder.work, counts)
    first = next(rows, None)
    if first is None:
        raise UserError(_too_few(name, wanted, mixture, counts))
    columns = [column for column in first if column not in ("position_ids", "labels")]

    def all_rows() -> Iterator[Row]:
        yield first
        yield from islice(rows, wanted - 1)
        if counts.rows < wanted:
            raise UserError(_too_few(name, wanted, mixture, counts))

    folder.write(f".work/{name}", all_rows(), schema_of(columns))
    warn_divided(counts, columns, f"the source {name}")
    write_json(folder.work / name / COUNTS, counts.to_json() | {"columns": columns})


def _source_rows(
    mixture: Mixture, source: MixtureSource, framing: Framing, scratch: Path, counts: PackingCounts
) -> Iterator[Row]:
    def documents() -> Iterator[Columns]:
        while True:
            before = counts.packable_tokens
            yield from read_source(source, framing, seed=mixture.seed, scratch=scratch)
            if not source.repeat or counts.packable_tokens == before:
                return
            counts.repeats += 1

    assert isinstance(source.min_tokens, int)
    return pack(
        documents(),
        mixture.length,
        packing=packing_of(mixture.packing, keep_remainder=mixture.packing != "fill"),
        too_long=source.too_long,
        piece_length=source.piece_length,
        min_tokens=source.min_tokens,
        max_tokens=source.max_tokens,
        counts=counts,
    )


def _too_few(name: str, wanted: int, mixture: Mixture, counts: PackingCounts) -> str:
    source = mixture.sources[name]
    filtered = counts.short_documents + counts.long_documents
    return (
        f"the source {name} ({source.path}) gives {counts.rows:,} rows of {mixture.length:,} tokens, and its share of "
        f"{source.weight:g} % is {wanted:,} ({counts.documents:,} documents with {counts.tokens:,} tokens, "
        f"{filtered:,} of them left out for their length): add more text, use fewer `tokens`"
        + (", or check min_tokens" if filtered else "")
        + ("" if source.repeat else ", or let it be read again with repeat: true")
    )


def _check_source(name: str, source: MixtureSource, framing: Framing) -> None:
    if source.path is None:
        raise UserError(
            f"the source {name} has no path: pass `sources={{{name!r}: PATH}}`, a file, a folder or hf:NAME"
        )
    if not source.path.startswith("hf:") and not Path(source.path).exists():
        raise UserError(
            f"the source {name}: no such file or folder: {shown(source.path)}: pass `sources={{{name!r}: PATH}}`"
        )
    if source.tokenized:
        check_tokenizer(source.path, framing)


def _interleave_rows(work: Path, order: Sequence[str], names: set[str], digest: Any) -> Iterator[dict[str, Any]]:
    """Yields the rows of the sources in this order; a column that a source lacks has the neutral value."""
    readers = {name: read_rows(work / name) for name in set(order)}
    for name in order:
        row = next(readers[name])
        for column in names - set(row):
            row[column] = np.full(len(row["input_ids"]), NEUTRAL[column], dtype=CARRIED[column])
        digest.update(np.ascontiguousarray(row["input_ids"], dtype="<i4").tobytes())
        yield {"source": name, **row}
