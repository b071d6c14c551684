"""Folders of runs: one writer a rank, manifests of known versions, and parts that are whole or not there."""

import json
import tempfile
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longlens.errors import UserError
from longlens.runs import parts
from longlens.runs.folder import (
    BY_WEIGHTS,
    MAX_DIFFERENCES,
    SCHEMA_VERSION,
    LockedFolder,
    differences,
    make_manifest,
    read_manifest,
    refuse_other,
)

SCHEMA = pa.schema([("id", pa.int64()), ("values", pa.list_(pa.int32()))])


def test_each_rank_has_a_lock_of_its_own(tmp_path):
    first, second = (LockedFolder(tmp_path / "run", "run", example="run", rank=rank) for rank in range(2))
    with pytest.raises(UserError, match=r"another process is writing to .*run: wait for it, or use another directory"):
        LockedFolder(tmp_path / "run", "run", example="run", rank=1)
    first.release()  # which leaves the folder to the second
    assert second.is_there
    second.release()
    LockedFolder(tmp_path / "run", "run", example="run", rank=1).release()


def test_a_folder_in_which_nothing_was_made_goes_away(tmp_path):
    LockedFolder(tmp_path / "run", "run", example="run").release()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("version", [BY_WEIGHTS, SCHEMA_VERSION])
def test_manifests_of_known_versions_are_read(version, tmp_path):
    manifest = make_manifest({"kind": "toy"}) | {"schema_version": version}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert read_manifest(tmp_path) == manifest


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (3, "has schema_version 3, but this longlens reads 2: install the version of longlens that wrote it"),
        ("2", "has schema_version '2', but this longlens reads 2"),
        (True, "has schema_version True, but this longlens reads 2"),
        (None, r"is not a manifest of longlens \(it has no schema_version\): use another folder"),
    ],
)
def test_other_manifests_are_refused(version, message, tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"schema_version": version}))
    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path)


def test_what_differs_is_said_with_both_values():
    differs = differences({"a": 1, "b": 2, "same": 3}, {"a": 1.5, "c": None, "d": [4], "same": 3})
    assert differs == ["a is 1 there and 1.5 here", "b is 2 there and None here", "d is None there and [4] here"]
    refuse_other(Path("run"), "run", [])
    with pytest.raises(
        UserError, match=r"^run contains a different dataset: a is 1 there and 1.5 here; .* here\. Use another "
    ):
        refuse_other(Path("run"), "dataset", differs)
    with pytest.raises(UserError) as refused:
        refuse_other(Path("run"), "run", [str(number) for number in range(99)])
    assert str(refused.value).count(";") == MAX_DIFFERENCES - 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=30))
def test_parts_and_row_groups_have_at_most_so_many_tokens(lengths):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "ROW_GROUP_TOKENS", 8)
        patch.setattr(parts, "PART_TOKENS", 20)
        number = count()
        with parts.PartWriter(
            Path(folder) / "rows", SCHEMA, counted="values", name=lambda: f"{next(number):03}.parquet"
        ) as writer:
            for id, length in enumerate(lengths):
                writer.add({"id": id, "values": list(range(length))})
        files = sorted(Path(folder).rglob("*.parquet"))
        assert [id for file in files for id in pq.read_table(file)["id"].to_pylist()] == list(range(len(lengths)))
        for file in files:
            with pq.ParquetFile(file) as parquet:
                groups = [parquet.read_row_group(group)["values"] for group in range(parquet.num_row_groups)]
            sizes = [[len(values) for values in group.to_pylist()] for group in groups]
            assert all(sum(size) <= 8 or sum(map(bool, size)) == 1 for size in sizes)
            assert sum(map(sum, sizes)) <= 20 or len(sizes) == 1
        assert not list(Path(folder).rglob("*.tmp"))


def test_after_an_error_no_part_is_left(tmp_path):
    writer = parts.PartWriter(tmp_path, SCHEMA, counted="values", name=lambda: "a.parquet")
    writer.add({"id": 1, "values": [1]})
    writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert list(tmp_path.iterdir()) == []
