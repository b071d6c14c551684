"""Samples are the same as they ever were: a change to a generator shows here.

``python -m tests.tasks.test_golden`` writes tests/golden/tasks.json anew; say so in CHANGELOG.md if you do, since
scores of before and after are then of other samples.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import pyarrow
import pytest

from longlens.tasks import list_tasks
from tests.tasks.fixtures import LENGTH, TOKENIZER, task, write

CHOICES = ("distractors", "distractors_in_text")
"""Of a sample's metadata; mode choice alone reads them, so that they have a hash of their own."""
GOLDEN = Path(__file__).parents[1] / "golden" / "tasks.json"


def summary(name: str, folder: Path) -> dict:
    length = {"longeval_topics": 3000, "longeval_lines_1350": None, "infinitebench_math_calc": None}.get(name, LENGTH)
    samples = task(name, folder).build(length=length, samples=2, seed=42, tokenizer=TOKENIZER)
    rows = [{key: value for key, value in asdict(sample).items() if value is not None} for sample in samples]
    wrong = [{key: row["metadata"].pop(key) for key in CHOICES if key in row["metadata"]} for row in rows]
    return {
        "lengths": [sample.length for sample in samples],
        "units": [sample.metadata["units"] for sample in samples],
        "answers": [sample.answers for sample in samples],
        "sha256": sha256(rows),
        **({"choices_sha256": sha256(wrong)} if any(wrong) else {}),
    }


def sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@pytest.mark.parametrize("name", list_tasks())
def test_samples_are_the_golden_ones(name, folder):
    if name == "helmet_banking77" and int(pyarrow.__version__.partition(".")[0]) < 26:
        pytest.skip("its data is Parquet, and a sample has the file's hash: another pyarrow writes other bytes")
    assert summary(name, folder) == json.loads(GOLDEN.read_text(encoding="utf-8"))[name]


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = write(Path(place))
        rows = {name: summary(name, folder) for name in list_tasks()}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    GOLDEN.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
