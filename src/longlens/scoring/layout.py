"""The layout of a run folder: its files, their schemas, and how each is read.

::

    RUN/manifest.json                        written once; a run with other settings is refused
    RUN/long/part-00000-UUID.parquet         a row a document: its text, tokens, spans and long log-probabilities
    RUN/short/K4096-d1024/part-....parquet   id and short log-probabilities; another K is another folder
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from longlens.errors import UserError, one_line, shown_value
from longlens.files import read_json
from longlens.runs.folder import warn_by_weights
from longlens.runs.identity import ModelIdentity, canonical_sha256
from longlens.runs.parts import open_file
from longlens.scoring.scores import ShortContext

MANIFEST = "manifest.json"
SCHEMA_VERSION = 2
"""2: the model's record has its configuration, and each part names its run."""
BY_WEIGHTS = 1
"""Schema version whose runs tell models by weights and tokenizer alone."""
RUN_KEY = b"longlens_run"
"""Where a part's metadata has `run_sha256`."""
_floats = pa.list_(pa.float32())
LONG_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text_sha256", pa.string()),
        ("text", pa.string()),
        ("total_tokens", pa.int64()),
        ("token_ids", pa.list_(pa.int32())),
        ("char_start", pa.list_(pa.int64())),
        ("char_end", pa.list_(pa.int64())),
        ("logprobs", _floats),
        ("answer_spans", pa.list_(pa.int64())),  # start, end, start, end, …; null where none were named
    ]
)
BEFORE_ANSWERS = pa.schema(list(LONG_SCHEMA)[:-1])
"""`LONG_SCHEMA` of parts that were written before it had the last column."""
SHORT_SCHEMA = pa.schema([("id", pa.string()), ("logprobs", _floats)])


class Place(NamedTuple):
    """Where a row is."""

    path: Path
    group: int
    row: int


def side_folder(short: ShortContext | None) -> str:
    """Where a side is inside the run: ``long`` (None), or ``short/K4096-d1024``."""
    return "long" if short is None else f"short/K{short.context}-d{short.stride}"


def side_schema(short: ShortContext | None) -> pa.Schema:
    """The columns of a side."""
    return LONG_SCHEMA if short is None else SHORT_SCHEMA


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run.

    Raises:
        UserError: There is no run, or it is of another schema version, or broken.

    Warns:
        LonglensWarning: It is of schema version 1.
    """
    path = folder / MANIFEST
    if not folder.exists():
        raise UserError(f"no such folder: {folder}. Make scores with: longlens score DOCS --model M -o {folder}")
    if not path.is_file():
        raise UserError(f"{folder} holds no scores (no manifest.json): expected a folder made by longlens score")
    manifest = read_json(path, "score again into a new folder")
    version, model, settings = (manifest.get(name) for name in ("schema_version", "model", "settings"))
    if version not in (None, BY_WEIGHTS, SCHEMA_VERSION) or isinstance(version, bool):
        raise UserError(
            f"{path} has schema_version {shown_value(version)}, this longlens reads {SCHEMA_VERSION}: "
            "install the version of longlens that wrote it"
        )
    if version is None or not isinstance(settings, dict) or not isinstance(model, dict) or "name" not in model:
        raise UserError(f"{path} is no manifest of longlens: expected schema_version, model and settings in it")
    if version == BY_WEIGHTS:
        warn_by_weights(folder)
    return manifest


def run_sha256(manifest: Mapping[str, Any]) -> str | None:
    """What every part of a run carries: the hash of its model and settings; None in runs of schema version 1."""
    if manifest["schema_version"] == BY_WEIGHTS:
        return None
    return canonical_sha256([ModelIdentity.read(manifest["model"]).to_json(), manifest["settings"]])


def part_paths(folder: Path) -> list[Path]:
    """Committed parts, in the order of their names."""
    return sorted(folder.glob("part-*.parquet"))


def read_ids(folder: Path, short: ShortContext | None, run: str | None) -> Iterator[tuple[Place, dict[str, str]]]:
    """Of each row of a side its place and its id, with the hash of the text where the side has it."""
    columns = ["id", "text_sha256"] if short is None else ["id"]
    for path in part_paths(folder / side_folder(short)):
        with open_part(path, side_schema(short), run) as parquet:
            for group in range(parquet.num_row_groups):
                for row, record in enumerate(parquet.read_row_group(group, columns=columns).to_pylist()):
                    if None in record.values():
                        raise broken(path, f"row {row} of row group {group} has no {' or no '.join(columns)}")
                    yield Place(path, group, row), record


def broken(path: Path, reason: str) -> UserError:
    """What to say of a part that cannot be relied on."""
    return UserError(
        f"{path} is broken or not made by longlens ({reason}): delete that file and run the same longlens score "
        "command again, it scores what is missing"
    )


@contextmanager
def open_part(path: Path, schema: pa.Schema, run: str | None) -> Iterator[pq.ParquetFile]:
    """A part with its checksums verified.

    Args:
        path: The part.
        schema: Its columns.
        run: `run_sha256` of its folder.

    Raises:
        UserError: It is broken, has other columns, or is of another run.
    """
    try:
        with open_file(path, "rb") as file, pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            there = parquet.schema_arrow
            if not there.equals(schema) and not (schema is LONG_SCHEMA and there.equals(BEFORE_ANSWERS)):
                raise pa.ArrowInvalid(f"its columns are {', '.join(there.names)}, or they have other types")
            if run is not None and (there.metadata or {}).get(RUN_KEY) != run.encode():
                raise pa.ArrowInvalid("it is of a run of another model or with other settings")
            yield parquet
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        raise broken(path, one_line(error)) from error
