"""The run directory of scores: many documents a Parquet part, resumed by id, one locked writer a rank.

::

    RUN/manifest.json                        model and settings; written once, and a run with other ones is rejected
    RUN/long/part-00000-UUID.parquet         a row per document: its text, tokens, spans and long log-probabilities
    RUN/short/K4096-d1024/part-....parquet   id and short log-probabilities; another K is another folder

What is done is the ids in committed parts.
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
        ("columns", pa.map_(pa.string(), _floats)),  # of statistics, by name; null where there are none
        ("metadata", pa.string()),  # a JSON object, the document's other fields; null where there are none
    ]
)
EARLIER_SCHEMAS = [pa.schema(list(LONG_SCHEMA)[:-lacking]) for lacking in (1, 2, 3)]
"""`LONG_SCHEMA` of parts that were written before it had its last columns."""
SHORT_SCHEMA = pa.schema([("id", pa.string()), ("logprobs", _floats)])


class Place(NamedTuple):
    """Where a row is."""

    path: Path
    group: int
    row: int


def _side_folder(short: ShortContext | None) -> str:
    """Where a side is inside the run: ``long`` (None), or ``short/K4096-d1024``."""
    return "long" if short is None else f"short/K{short.context}-d{short.stride}"


def _side_schema(short: ShortContext | None) -> pa.Schema:
    """The columns of a side."""
    return LONG_SCHEMA if short is None else SHORT_SCHEMA


def run_settings(
    info: ScorerInfo, shorts: Sequence[ShortContext], *, bos: Bos, limit: Limit, store_text: bool
) -> dict[str, Any]:
    """The settings that make two runs the same run, for the manifest.

    Raises:
        UserError: An unknown BOS rule, or K that leaves nothing to score.
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
    """The manifest of a run.

    Raises:
        UserError: There is no run, or it is of another schema version, or broken.

    Warns:
        LonglensWarning: It is of schema version 1.
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
    """What manifest.json holds.

    Args:
        info: Of the model.
        settings: See `run_settings`.
        name: What the run is called in tables; no part of what identifies it.

    Raises:
        UserError: The name is empty.
    """
    if name is not None and not name.strip():
        raise UserError("`name` is empty: pass a display name, or leave it out")
    named = {} if name is None else {"name": name}
    return runs.make_manifest(named | {"model": asdict(info) | info.identity.to_json(), "settings": dict(settings)})


def _check_same_run(folder: Path, have: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuses to mix scores that were made differently.

    Raises:
        UserError: Model, tokenizer or settings differ; both values are shown.
    """
    differs = model_differences(have["model"], wanted["model"])
    # Settings that identify the model too are said once.
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
    """Rejects, before weights are loaded, settings that cannot be and a run directory that was made otherwise.

    Args:
        out: The folder; anything is fine where no run is in it.
        model: Of the run; while its weights are not on this machine, the folder is not looked at.
        shorts: Short contexts that would be scored.
        bos: Which BOS tokens the model sees, see `longlens.score`.
        limit: What documents are truncated to.
        store_text: Whether texts are stored.

    Raises:
        UserError: An unknown BOS rule, K that leaves nothing to score, or a folder of another model or other settings.
    """
    run_settings(model.info, shorts, bos=bos, limit=limit, store_text=store_text)
    info = model.identify() if (out / MANIFEST).is_file() else None
    if info is not None:
        settings = run_settings(info, shorts, bos=bos, limit=limit, store_text=store_text)
        _check_same_run(out, read_manifest(out), make_manifest(info, settings))


def run_sha256(manifest: Mapping[str, Any]) -> str | None:
    """What every part of a run carries: the hash of its model and settings; None in runs of schema version 1."""
    if manifest["schema_version"] == BY_WEIGHTS:
        return None
    return canonical_sha256([ModelIdentity.read(manifest["model"]).to_json(), manifest["settings"]])


def _part_paths(folder: Path) -> list[Path]:
    """Committed parts, in the order of their names."""
    return sorted(folder.glob("part-*.parquet"))


def read_ids(folder: Path, short: ShortContext | None, run: str | None) -> Iterator[tuple[Place, dict[str, str]]]:
    """Of each row of a side its place and its id, with the hash of the text where the side has it."""
    columns = ["id", "text_sha256"] if short is None else ["id"]
    for path in _part_paths(folder / _side_folder(short)):
        with open_part(path, _side_schema(short), run) as parquet:
            for group in range(parquet.num_row_groups):
                for row, record in enumerate(parquet.read_row_group(group, columns=columns).to_pylist()):
                    if None in record.values():
                        raise broken(path, f"row {row} of row group {group} has no {' or no '.join(columns)}")
                    yield Place(path, group, row), record


def broken(path: Path, reason: str) -> UserError:
    """What to say of a part that cannot be relied on."""
    return UserError(
        f"{path} is corrupt or was not written by longlens ({reason}): delete that file and run the same longlens "
        "score command again, which scores the missing documents"
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
            if not there.equals(schema) and not (schema is LONG_SCHEMA and any(map(there.equals, EARLIER_SCHEMAS))):
                raise pa.ArrowInvalid(f"its columns are {', '.join(there.names)}, or they have other types")
            if run is not None and (there.metadata or {}).get(RUN_KEY) != run.encode():
                raise pa.ArrowInvalid("it is of a run of another model or with other settings")
            yield parquet
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        raise broken(path, one_line(error)) from error


def check_writable(folder: Path, *, rank: int = 0) -> None:
    """Rejects, before anything is computed, a folder that no run can be written to.

    Raises:
        UserError: It is a file, holds something else, another process writes there, or it cannot be made.
    """
    made = [path for path in (folder, *folder.parents) if not os.path.exists(path)]  # False also for a name too long
    _own(folder, rank).release()
    for path in made:
        with suppress(OSError):  # gone, or another process has put something there
            path.rmdir()


def _own(folder: Path, rank: int) -> LockedFolder:
    return LockedFolder(folder, "run", example="scores", rank=rank)


class RunWriter:
    """The one writer of a run directory, under an OS lock (one writer a rank where several processes share a run).

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
        """Writes the manifest, or holds this run's against the one that is there; returns `run_sha256`."""
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
        """Ids in committed parts of a side (None is long), with their texts' hashes.

        A short row whose long row was lost is not done: without the hash nothing says of which text it is.
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
        """Makes the folder of a side, which says that it was scored also where no document has rows of it.

        Raises:
            UserError: It cannot be made.
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
        # Rows are whole documents, so what is finished is kept even when something else went wrong (Ctrl-C too).
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
