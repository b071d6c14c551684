"""Results and scores as plain values for JSON, and as tables of pyarrow and pandas, which are imported on demand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


class Tabular:
    """Mixin for objects with columns, which `to_arrow` and `to_pandas` return as a table."""

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        """The columns by their names, all of the same length; None for a missing value."""
        raise NotImplementedError

    def to_arrow(self) -> pa.Table:
        """Returns the columns as a ``pyarrow.Table``; a missing value is null."""
        import pyarrow as pa

        return pa.table({name: list(values) for name, values in self._columns().items()})

    def to_pandas(self) -> pd.DataFrame:
        """Returns the columns as a ``pandas.DataFrame``; a missing value is NaN in numeric columns, else None."""
        return self.to_arrow().to_pandas()


def plain(value: Any) -> Any:
    """Converts a value to JSON types: objects for dataclasses, lists for tuples and arrays, None for NaN."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value
