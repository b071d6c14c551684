"""A batch of rows of any lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from longlens.losses.passes import IGNORED


def pad_right(features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """A batch of rows of any lengths: padding has the label -100, and positions that go on."""
    width = max(len(row["input_ids"]) for row in features)
    batch: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    if "position_ids" in features[0]:
        batch["position_ids"] = []
    for row in features:
        missing = width - len(row["input_ids"])
        ids = list(row["input_ids"])
        batch["input_ids"].append(ids + [0] * missing)
        batch["labels"].append(list(row.get("labels", ids)) + [IGNORED] * missing)
        if "position_ids" in batch:
            positions = list(row["position_ids"])
            batch["position_ids"].append(positions + [positions[-1] + 1 + at for at in range(missing)])
    return {name: torch.tensor(values, dtype=torch.long) for name, values in batch.items()}
