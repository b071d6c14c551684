"""Results and scores as plain values for JSON, and as tables of pyarrow and pandas, imported when asked for."""

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
    """Something with columns, which `to_arrow` and `to_pandas` give as a table."""

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        """The columns by their names, all equally long; None where there is no value."""
        raise NotImplementedError

    def to_arrow(self) -> pa.Table:
        """The table as a ``pyarrow.Table``; a value that does not exist is null."""
        import pyarrow as pa

        return pa.table({name: list(values) for name, values in self._columns().items()})

    def to_pandas(self) -> pd.DataFrame:
        """The table as a ``pandas.DataFrame``; a value that does not exist is NaN among numbers, else None."""
        return self.to_arrow().to_pandas()


def plain(value: Any) -> Any:
    """The same in values that JSON has: objects for dataclasses, lists for tuples and arrays, None for NaN."""
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value
