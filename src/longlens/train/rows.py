"""The rows of a recipe: created in the run's folder, or found in another one, and read as a dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longlens.data.packing import packing_of
from longlens.data.store import NEUTRAL, check_rows, count_documents, read_manifest
from longlens.errors import UserError, library_errors, shown_value
from longlens.files import cannot_write, read_json
from longlens.runs.processes import Processes
from longlens.settings.options import Reading
from longlens.train.recipe import Recipe, mixture_of
from longlens.train.settings import DocumentsData, MixtureData, Offline, PackedData


def check_sources(recipe: Recipe) -> None:
    """Checks, before anything is loaded or written, that the data exists.

    Raises:
        UserError: A source of the mixture has no path, or a folder contains no rows.
    """
    data = recipe.data
    if isinstance(data, MixtureData):
        for name, source in mixture_of(data).sources.items():
            if source.path is None:
                raise UserError(
                    f"the source {name} of {data.mixture} has no path: pass "
                    f"`data.sources.{name}=PATH`, a file, a folder or hf:NAME"
                )
    if isinstance(data, PackedData):
        _read_packed(data)


def _read_packed(data: PackedData) -> Mapping[str, Any]:
    manifest = read_manifest(Path(data.packed))
    if manifest is None or manifest["kind"] not in ("mixture", "packed", "chat"):
        raise UserError(
            f"{data.packed} has no rows of longlens data mix or longlens data pack: make them, or set data.mixture "
            "or data.documents"
        )
    return manifest


def prepare_rows(recipe: Recipe, tokenizer: Any, out: Path) -> Path:
    """Creates the rows, or resumes their creation; returns their folder.

    Args:
        recipe: The recipe.
        tokenizer: Tokenizer of the model.
        out: Folder in which they are created.

    Raises:
        UserError: They cannot be created, are broken, or belong to another tokenizer.
    """
    from longlens.tokenization import vocabulary_size

    folder = _make_rows(recipe, tokenizer, out)
    check_rows(folder / "data", vocabulary_size(tokenizer))
    return folder


def _make_rows(recipe: Recipe, tokenizer: Any, out: Path) -> Path:
    from longlens.data.chat import ChatSettings, chat_folder
    from longlens.data.mixture import mix, pack_folder
    from longlens.tokenization import TextEncoder

    data, alone = recipe.data, Processes.alone()  # the first process creates them, and the others wait
    if isinstance(data, PackedData):
        theirs = (_read_packed(data).get("settings") or {}).get("tokenizer_sha256")
        mine = TextEncoder(tokenizer).sha256
        if theirs is not None and theirs != mine:
            raise UserError(
                f"{data.packed} was tokenized by another tokenizer (sha256 {shown_value(theirs)[:13]}…, and that of "
                f"{recipe.model} is {mine[:12]}…): make the rows with the tokenizer of {recipe.model}"
            )
        return Path(data.packed)
    if isinstance(data, MixtureData):
        mix(mixture_of(data), tokenizer, out, processes=alone)
    elif isinstance(data, DocumentsData):
        pack_folder(
            data.documents,
            tokenizer,
            out,
            length=data.length,
            packing=packing_of(data.packing),
            too_long=data.too_long,
            min_tokens=data.min_tokens,
            reading=Reading(text_field=data.text_field or "text", split=data.split or "train"),
            processes=alone,
        )
    else:
        settings = ChatSettings(max_length=data.length, too_long=data.too_long, turns=data.turns)
        reading = Reading(subset=data.subset, split=data.split or "train", samples=data.samples)
        chat_folder(data.chat, tokenizer, out, settings, pack_rows=data.pack, reading=reading)
    return out


def check_shared_rows(recipe: Recipe, folder: Path) -> None:
    """Rejects rows of several documents shared by processes whose attention would not distinguish the documents.

    Raises:
        UserError: ``training.context_parallel`` with packed documents, except for Ulysses with FlashAttention.
    """
    training = recipe.training
    if (training.context_parallel or 1) == 1:
        return
    has_flash = training.sharding == "zero3" and "flash" in (recipe.load.attention or "")
    if has_flash and training.per_device_batch_size == 1:
        return
    rows, documents = count_documents(folder / "data")
    if documents > rows:
        raise UserError(
            f"training.context_parallel is {training.context_parallel}, and {folder} has {documents:,} documents in "
            f"{rows:,} rows, which would see each other: use rows of one document, or sharding zero3 with "
            "load.attention flash_attention_2 and per_device_batch_size 1"
        )


def rows_sha256(folder: Path) -> str:
    """Hash that identifies rows: how they were made, their counts, and the sizes of their files."""
    shards = sorted((folder / "data").glob("train-*.parquet"))
    parts = [f"{shard.name} {shard.stat().st_size}" for shard in shards]
    parts += [str(read_json(folder / "manifest.json")["settings"]), str(read_json(folder / "counts.json"))]
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()


def load_rows(folder: Path, cache: Path, recipe: Recipe) -> Any:
    """The rows as a `datasets.Dataset` with the columns for training.

    Args:
        folder: Folder written by `prepare_rows`.
        cache: Folder for the library's memory-mapped files.
        recipe: The recipe, which determines whether offline weights are used.

    Raises:
        UserError: Offline weights are missing, or exist but are not used; or K is not shorter than the rows.
    """
    import datasets

    datasets.disable_progress_bars()
    shards = [str(shard) for shard in sorted((folder / "data").glob("train-*.parquet"))]
    if not shards:
        raise UserError(f"{folder} has no rows: delete it, and run the same command again")
    with library_errors(f"cannot read the rows of {folder}", "delete it, and run the same command again"):
        try:
            rows = datasets.load_dataset("parquet", data_files=shards, split="train", cache_dir=str(cache))
        except (datasets.exceptions.DatasetGenerationError, OSError) as error:
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else error  # wrapped by the library
            if isinstance(cause, OSError) and cause.errno is not None:  # Parquet's own errors have none
                raise cannot_write(cache, cause, resumes=True) from error
            raise
    offline = [name for name in NEUTRAL if name in rows.column_names]
    if isinstance(recipe.loss, Offline) and not offline:
        raise UserError(f"loss is offline, and {folder} has neither {' nor '.join(NEUTRAL)}: see longlens data weigh")
    if recipe.loss is not None and not isinstance(recipe.loss, Offline) and offline:
        raise UserError(
            f"{folder} has {offline[0]}, which would replace the short-context pass, so context and stride would have "
            "no effect: set loss to {offline: {}}, or use rows without them"
        )
    recipe.check_length(max(len(row) for row in rows.select(range(min(len(rows), 64)))["input_ids"]))
    wanted = ["input_ids", "labels", "position_ids", *(offline if isinstance(recipe.loss, Offline) else ())]
    # Conversations that are not packed have no positions: the column exists and is null.
    empty = {"position_ids"} if "position_ids" in rows.column_names and rows[0]["position_ids"] is None else set()
    return rows.select_columns([name for name in wanted if name in rows.column_names and name not in empty])


def has_packed_rows(rows: Any) -> bool:
    """Whether a row has several documents, each with positions from 0.

    Args:
        rows: Rows from `load_rows`.
    """
    import pyarrow.compute as pc

    if "position_ids" not in rows.column_names:
        return False
    chunks = rows.data.column("position_ids").chunks
    return any(pc.sum(pc.equal(chunk.flatten(), 0)).as_py() > len(chunk) for chunk in chunks)
