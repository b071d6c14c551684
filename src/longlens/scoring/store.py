"""The run directory of scores: many documents per Parquet part, resumed by ID, one locked writer per rank.

::

    RUN/manifest.json                        model and settings; written once; a run with different ones is rejected
    RUN/long/part-00000-UUID.parquet         one row per document: its text, tokens, spans and long log-probabilities
    RUN/short/K4096-d1024/part-....parquet   id and short log-probabilities; each K has its own folder

Documents whose IDs are in committed parts are done.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from longlens.errors import UserError, one_line
from longlens.files import cannot_write, create_json, write_json
from longlens.runs import folder as runs
from longlens.runs.folder import BY_WEIGHTS, MANIFEST, LockedFolder, differences, refuse_other, warn_by_weights
from longlens.runs.identity import ModelIdentity, canonical_sha256, model_differences, two_models
from longlens.runs.parts import PartWriter, open_file
from longlens.scoring.scorer import ScorerInfo
from longlens.scoring.scores import ShortContext
from longlens.scoring.truncation import Limit, TokenLimit

if TYPE_CHECKING:
    from longlens.models import UnloadedModel

Bos = Literal["window", "published"]
"""Which BOS tokens the model sees, see `longlens.score`."""
RUN_KEY = b"longlens_run"
"""Key of `run_sha256` in a part's metadata."""
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
        ("answer_spans", pa.list_(pa.int64())),  # start, end, start, end, …; null if none were specified
        ("columns", pa.map_(pa.string(), _floats)),  # of statistics, by name; null if there are none
        ("metadata", pa.string()),  # a JSON object, the document's other fields; null if there are none
    ]
)
EARLIER_SCHEMAS = [pa.schema(list(LONG_SCHEMA)[:-lacking]) for lacking in (1, 2, 3)]
"""`LONG_SCHEMA` without its last columns, for parts written by earlier versions."""
SHORT_SCHEMA = pa.schema([("id", pa.string()), ("logprobs", _floats)])


class Place(NamedTuple):
    """Location of a row."""

    path: Path
    group: int
    row: int


def _side_folder(short: ShortContext | None) -> str:
    """Folder of a side inside the run: ``long`` (None), or ``short/K4096-d1024``."""
    return "long" if short is None else f"short/K{short.context}-d{short.stride}"


def _side_schema(short: ShortContext | None) -> pa.Schema:
    """The columns of a side."""
    return LONG_SCHEMA if short is None else SHORT_SCHEMA


def run_settings(
    info: ScorerInfo, shorts: Sequence[ShortContext], *, bos: Bos, limit: Limit, store_text: bool
) -> dict[str, Any]:
    """The settings that identify a run, for the manifest.

    Raises:
        UserError: The BOS rule is unknown, or K leaves nothing to score.
    """
    if bos not in ("window", "published"):
        raise UserError(f"`bos` is {bos!r}; expected 'window' or 'published'")
    in_tokens = isinstance(limit, TokenLimit)
    length = limit.max_tokens if isinstance(limit, TokenLimit) else limit.max_characters
    for short in shorts:
        if short.context >= length:
            raise UserError(
                f"`context={short.context}` is not less than the maximum length, {length} "
                + ("tokens" if in_tokens else "characters")
                + (f" ({info.name} supports {info.max_length})" if info.max_length else "")
                + f": no token would have a long context. Use a smaller one, such as `context={max(1, length // 4)}`"
            )
    role = {} if bos == "window" else {"bos_role": "evaluator" if shorts else "evaluated"}
    described: dict[str, Any] = {"statistics": list(info.statistics)} if info.statistics else {}
    if info.reference is not None:
        described |= {"reference": info.reference["sha256"], "reference_dtype": info.reference["dtype"]}
    return {
        "bos": bos,
        **role,
        "dtype": info.dtype,
        "max_length": length,
        "max_length_counted_by": limit.counted_by,
        "text": store_text,
        **described,
    }


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads the manifest of a run.

    Raises:
        UserError: There is no run, its schema version is unknown, or it is broken.

    Warns:
        LonglensWarning: The run has schema version 1.
    """
    if not folder.exists():
        raise UserError(f"no such directory: {folder}. Create scores with: longlens score DOCS --model M -o {folder}")
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} contains no scores (no manifest.json): expected a run directory of longlens score")
    manifest = runs.read_manifest(folder, step="score again into a new folder")
    model, settings = manifest.get("model"), manifest.get("settings")
    if not isinstance(settings, dict) or not isinstance(model, dict) or "name" not in model:
        raise UserError(f"{folder / MANIFEST} is not a manifest of scores: expected model and settings in it")
    if manifest["schema_version"] == BY_WEIGHTS:
        warn_by_weights(folder)
    return manifest


def make_manifest(info: ScorerInfo, settings: Mapping[str, Any], name: str | None = None) -> dict[str, Any]:
    """The content of manifest.json.

    Args:
        info: Information about the model.
        settings: See `run_settings`.
        name: Display name of the run in tables; not part of its identity.

    Raises:
        UserError: The name is empty.
    """
    if name is not None and not name.strip():
        raise UserError("`name` is empty: pass a display name, or leave it out")
    named = {} if name is None else {"name": name}
    return runs.make_manifest(named | {"model": asdict(info) | info.identity.to_json(), "settings": dict(settings)})


def _check_same_run(folder: Path, have: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises if scores of different models or settings would be mixed.

    Raises:
        UserError: Model, tokenizer or settings differ; both values are shown.
    """
    differs = model_differences(have["model"], wanted["model"])
    # Settings that also identify the model are reported once.
    differs += [said for said in differences(have["settings"], wanted["settings"]) if said not in differs]
    refuse_other(folder, "run", differs, models=two_models(have["model"], wanted["model"]))


def check_run(
    out: Path,
    model: UnloadedModel,
    shorts: Sequence[ShortContext],
    *,
    bos: Bos,
    limit: Limit,
    store_text: bool,
) -> None:
    """Rejects, before weights are loaded, invalid settings and a run directory with other settings.

    Args:
        out: The folder; any folder without a run is accepted.
        model: Model of the run; if its weights are not on this machine, the folder is not checked.
        shorts: Short contexts that would be scored.
        bos: Which BOS tokens the model sees, see `longlens.score`.
        limit: Truncation of documents.
        store_text: Whether texts are stored.

    Raises:
        UserError: The BOS rule is unknown, K leaves nothing to score, or the folder has another model or other
            settings.
    """
    run_settings(model.info, shorts, bos=bos, limit=limit, store_text=store_text)
    info = model.identify() if (out / MANIFEST).is_file() else None
    if info is not None:
        settings = run_settings(info, shorts, bos=bos, limit=limit, store_text=store_text)
        _check_same_run(out, read_manifest(out), make_manifest(info, settings))


def run_sha256(manifest: Mapping[str, Any]) -> str | None:
    """Hash of a run's model and settings, stored in each of its parts; None in runs of schema version 1."""
    if manifest["schema_version"] == BY_WEIGHTS:
        return None
    return canonical_sha256([ModelIdentity.read(manifest["model"]).to_json(), manifest["settings"]])


def _part_paths(folder: Path) -> list[Path]:
    """Committed parts, in the order of their names."""
    return sorted(folder.glob("part-*.parquet"))


def read_ids(folder: Path, short: ShortContext | None, run: str | None) -> Iterator[tuple[Place, dict[str, str]]]:
    """Yields the location and ID of each row of a side, with the hash of the text if the side has it."""
    columns = ["id", "text_sha256"] if short is None else ["id"]
    for path in _part_paths(folder / _side_folder(short)):
        with open_part(path, _side_schema(short), run) as parquet:
            for group in range(parquet.num_row_groups):
                for row, record in enumerate(parquet.read_row_group(group, columns=columns).to_pylist()):
                    if None in record.values():
                        raise broken(path, f"row {row} of row group {group} has no {' or no '.join(columns)}")
                    yield Place(path, group, row), record


def broken(path: Path, reason: str) -> UserError:
    """The error for a part that is corrupt."""
    return UserError(
        f"{path} is corrupt or was not written by longlens ({reason}): delete that file and run the same longlens "
        "score command again, which scores the missing documents"
    )


@contextmanager
def open_part(path: Path, schema: pa.Schema, run: str | None) -> Iterator[pq.ParquetFile]:
    """Opens a part with its checksums verified.

    Args:
        path: The part.
        schema: Its columns.
        run: `run_sha256` of its folder.

    Raises:
        UserError: The part is broken, has other columns, or belongs to another run.
    """
    try:
        with open_file(path, "rb") as file, pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            there = parquet.schema_arrow
            if not there.equals(schema) and not (schema is LONG_SCHEMA and any(map(there.equals, EARLIER_SCHEMAS))):
                raise pa.ArrowInvalid(f"its columns are {', '.join(there.names)}, or they have other types")
            if run is not None and (there.metadata or {}).get(RUN_KEY) != run.encode():
                raise pa.ArrowInvalid("it belongs to a run of another model or with other settings")
            yield parquet
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        raise broken(path, one_line(error)) from error


def check_writable(folder: Path, *, rank: int = 0) -> None:
    """Rejects, before anything is computed, a folder to which no run can be written.

    Raises:
        UserError: It is a file, contains something else, is being written by another process, or cannot be created.
    """
    made = [path for path in (folder, *folder.parents) if not os.path.exists(path)]  # False also for a name too long
    _own(folder, rank).release()
    for path in made:
        with suppress(OSError):  # already removed, or another process has written there
            path.rmdir()


def _own(folder: Path, rank: int) -> LockedFolder:
    return LockedFolder(folder, "run", example="scores", rank=rank)


class RunWriter:
    """The one writer of a run directory, under an OS lock (one writer per rank if several processes share a run).

    Raises:
        UserError: Another process writes there, or the folder holds a run made with other settings.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], *, rank: int = 0) -> None:
        self.folder, self._rank = folder, rank
        self._writers: dict[ShortContext | None, PartWriter] = {}
        self._own = _own(folder, rank)
        try:
            self._run = self._claim(manifest)
            for temporary in folder.glob(f"**/.part-{rank:05d}-*.parquet.tmp"):
                temporary.unlink(missing_ok=True)
            self._done: dict[ShortContext | None, dict[str, str]] = {}
        except BaseException:
            self._own.release()
            raise

    def _claim(self, manifest: Mapping[str, Any]) -> str | None:
        """Writes the manifest, or compares this run's with the existing one; returns `run_sha256`."""
        path = self.folder / MANIFEST
        if not path.exists() and create_json(path, manifest):
            return run_sha256(manifest)
        have = read_manifest(self.folder)
        _check_same_run(self.folder, have, manifest)
        runs.warn_of_versions(self.folder, have, manifest["versions"])
        name = manifest.get("name")
        if self._rank == 0 and name not in (None, have.get("name")):
            write_json(path, have | {"name": name})
        return run_sha256(have)

    def done(self, short: ShortContext | None) -> Mapping[str, str]:
        """IDs in committed parts of a side (None is long), with their texts' hashes.

        A short row whose long row was lost is not done: without the hash its text is unknown.
        """
        if short not in self._done:
            rows = read_ids(self.folder, short, self._run)
            if short is None:
                self._done[short] = {row["id"]: row["text_sha256"] for _, row in rows}
            else:
                long = self.done(None)
                self._done[short] = {row["id"]: long[row["id"]] for _, row in rows if row["id"] in long}
        return self._done[short]

    def add(self, short: ShortContext | None, row: dict[str, Any]) -> None:
        """Appends a row to a side."""
        if short not in self._writers:
            schema = _side_schema(short)
            if self._run is not None:
                schema = schema.with_metadata({RUN_KEY: self._run})
            self._writers[short] = PartWriter(
                self.folder / _side_folder(short),
                schema,
                counted="logprobs",
                name=self._part_name,
                check=self._own.check,
                statistics=["id"],
            )
        self._writers[short].add(row)

    def _part_name(self) -> str:
        # The name begins with the time (as UUID version 7 does), so that the order of names is the order of writing.
        return f"part-{self._rank:05d}-{time.time_ns() // 10**6:012x}-{uuid.uuid4().hex[:12]}.parquet"

    def make_side(self, short: ShortContext) -> None:
        """Makes the folder of a side, which records that it was scored even if no document has rows in it.

        Raises:
            UserError: It cannot be created.
        """
        self._own.check()
        folder = self.folder / _side_folder(short)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error, resumes=True) from error

    def tick(self) -> None:
        """Commits the parts whose oldest row is old enough."""
        for writer in self._writers.values():
            writer.tick()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Rows are whole documents, so finished rows are kept even after an error or Ctrl-C.
        failures: list[UserError] = []
        try:
            for writer in self._writers.values():
                try:
                    writer.commit()
                except UserError as failure:
                    failures.append(failure)
        finally:
            self._own.release()
        if failures and error is None:
            raise failures[0]
