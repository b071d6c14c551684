"""How sources become documents."""

from __future__ import annotations

from dataclasses import dataclass

from longlens.errors import UserError, shown


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """How sources become documents; an option that cannot take effect is an error, not ignored.

    Attributes:
        text_field: The field of a JSONL, Parquet or dataset row that holds its text.
        id_field: The field that holds its id. Rows without ``"id"`` are numbered; another name has to be there.
        subset: Configuration of a dataset on the Hub.
        split: Split of a dataset; one that was saved without splits is read whole.
        tokenized_with: Name of the tokenizer that made the rows' ``input_ids``, which are then decoded to the text.
        min_tokens: Rows with fewer ``input_ids`` are left out.
        samples: Stop after so many documents, counted over all sources and after `min_tokens`.

    Raises:
        UserError: A value is out of range, or two contradict each other.
    """

    text_field: str = "text"
    id_field: str = "id"
    subset: str | None = None
    split: str = "test"
    tokenized_with: str | None = None
    min_tokens: int | None = None
    samples: int | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        for name in ("text_field", "id_field", "split", "subset", "tokenized_with"):
            if getattr(self, name) == "":
                raise UserError(f"{_flag(name)} is empty: give a name, or leave it out")
        if self.text_field == self.id_field:
            raise UserError(f"--text-field and --id-field are both {shown(self.text_field)}: they must differ")
        for name in ("min_tokens", "samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{_flag(name)} is {value}, expected at least 1: leave it out to take every document")
        if self.min_tokens is not None and self.tokenized_with is None:
            raise UserError("--min-tokens counts the input_ids of tokenized rows: pass --tokenized-with TOKENIZER too")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
