"""Published numbers as data: the tables of the paper and of the lecture, with their places, and what is wrong in them.

```python
from longlens.study import published

published.table(9).number("2k", "PPL, answer tokens", group="Yi-6B-200K")      # 1.49
published.table("lecture-18").to_pandas()
[erratum.printed for erratum in published.paper().errata]
```

A cell is None if the number exists only in a figure. `longlens.study.published.recompute` recomputes what the
documents print from their own tables.
"""

from __future__ import annotations

from longlens.errors import UserError
from longlens.study.published.tables import Erratum as Erratum
from longlens.study.published.tables import Publication as Publication
from longlens.study.published.tables import PublishedColumn as PublishedColumn
from longlens.study.published.tables import PublishedRow as PublishedRow
from longlens.study.published.tables import PublishedTable as PublishedTable
from longlens.study.published.tables import Statement as Statement
from longlens.study.published.tables import publication

LECTURE = "lecture-"
"""Before the id of a table of the lecture, where those of both documents are meant."""


def paper() -> Publication:
    """What is Wrong with Perplexity for Long-context Language Modeling? (ICLR 2025)."""
    return publication("paper")


def lecture() -> Publication:
    """The lecture on long-context language models, with tables of ProLong, HELMET and Lu et al."""
    return publication("lecture")


def table(which: int | str) -> PublishedTable:
    """A table of either document.

    Args:
        which: ``9`` or ``"9"`` for Table 9 of the paper, ``"figure-5"`` for a figure of it, ``"lecture-18"`` for Table
            18 of the lecture, ``"lecture-prolong"`` for a table there that has no number.

    Raises:
        UserError: There is none.
    """
    for id, found in tables().items():
        if id == str(which):
            return found
    raise UserError(f"no published table {str(which)!r}; known are {', '.join(tables())}")


def tables() -> dict[str, PublishedTable]:
    """All tables of both documents, by what `table` takes."""
    of_paper = {found.id: found for found in paper().tables}
    return of_paper | {LECTURE + found.id: found for found in lecture().tables}
