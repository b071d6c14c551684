"""Results and scores as tables of pyarrow and pandas, which are imported when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
