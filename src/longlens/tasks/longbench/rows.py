"""The row of a file that a sample is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from longlens.errors import UserError
from longlens.tasks.base import Task


def row_at(
    task: Task, index: int, rows: Sequence[dict[str, Any]], described: Mapping[str, str]
) -> tuple[dict[str, Any], str]:
    """Row ``index`` of a file, and its place for messages.

    Raises:
        UserError: The file has fewer rows.
    """
    if index >= len(rows):
        raise UserError(
            f"{task.name}: {described['file']} has {len(rows)} rows; expected {task.default_samples}: ask for as "
            "many samples at most as there are, or get the whole file"
        )
    return rows[index], f"{described['file']}, row {index + 1}"
