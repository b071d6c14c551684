"""What a training recipe says of its data: one of four kinds, told apart by the key that each has of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longlens.corpus.files import TEXT_ENDINGS
from longlens.corpus.stdlib import PREFIX as STDLIB
from longlens.data.packing import PACKINGS, TooLong
from longlens.errors import UserError, shown_value
from longlens.recipe_file import at_least, check_types, names, one_of


def check_reading(
    sources: Sequence[str], *, text_field: str | None = None, subset: str | None = None, split: str | None = None
) -> None:
    """Refuses settings of reading that none of the sources has a use for.

    Raises:
        UserError: A subset or a split without an ``hf:`` dataset, or a text field where no source has rows.
    """
    datasets = [source for source in sources if source.startswith("hf:")]
    for name, value in (("subset", subset), ("split", split)):
        if value is not None and not datasets:
            raise UserError(f"{name} is for hf: datasets, and {shown_value(sources[0])} is none: leave it out")
    if text_field is not None and all(s.startswith(STDLIB) or Path(s).suffix.lower() in TEXT_ENDINGS for s in sources):
        raise UserError(
            f"text_field is for rows of datasets, JSON Lines and Parquet, and {shown_value(sources[0])} is a text: "
            "leave it out"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureData:
    """Rows that ``longlens data mix`` would make, in ``OUT/data``.

    Attributes:
        mixture: A preset, or a YAML file.
        sources: Paths of sources by name, instead of the mixture's.
        length: Tokens of a row; the mixture's unless given.
        tokens: Of all rows; the mixture's unless given.
        seed: Orders the rows; the mixture's unless given.
    """

    mixture: str
    sources: Mapping[str, Any] = field(default_factory=dict)
    length: int | None = None
    tokens: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        check_types(self)
        for name, path in self.sources.items():
            if not isinstance(path, str):
                raise UserError(f"sources.{name} is {shown_value(path)}; expected a file, a folder or hf:NAME")


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedData:
    """Rows of a folder that ``longlens data mix``, ``pack`` or ``weigh`` has made.

    Attributes:
        packed: The folder.
    """

    packed: str

    def __post_init__(self) -> None:
        """Checks the value."""
        check_types(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentsData:
    """Rows that ``longlens data pack`` would make, in ``OUT/data``.

    Attributes:
        documents: Files, folders, ``hf:NAME`` or ``stdlib:NAME``.
        length: Tokens of a row.
        packing: ``best-fit`` (documents stay whole) or ``fill`` (full rows).
        too_long: What becomes of longer documents: ``split``, ``cut`` or ``drop``.
        min_tokens: Documents with fewer tokens are left out.
        text_field: Field of a row that holds its text; ``text`` unless given.
        split: Split of an ``hf:`` dataset; ``train`` unless given.
    """

    documents: Sequence[str]
    length: int
    packing: str = "best-fit"
    too_long: TooLong = "split"
    min_tokens: int = 1
    text_field: str | None = None
    split: str | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        check_types(self)
        names("documents", self.documents)
        at_least("length", self.length, 2)
        one_of("packing", self.packing, PACKINGS)
        at_least("min_tokens", self.min_tokens, 1)
        check_reading(self.documents, text_field=self.text_field, split=self.split)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatData:
    """Conversations, of which the assistant's turns alone are learned (`longlens.data.chat`), in ``OUT/data``.

    Attributes:
        chat: Files, folders or ``hf:NAME`` with ``messages``.
        length: Tokens of a row.
        pack: Packs whole conversations into rows, none of which sees another; else a row is a conversation.
        too_long: Of longer conversations ``cut`` keeps the whole turns that fit, ``drop`` nothing.
        turns: ``together`` or ``apart``, as in `longlens.data.chat.chat_dataset`.
        subset: Subset of an ``hf:`` dataset.
        split: Its split; ``train`` unless given.
        samples: Number of conversations, from the first on; all unless given.
    """

    chat: Sequence[str]
    length: int
    pack: bool = False
    too_long: str = "cut"
    turns: str = "together"
    subset: str | None = None
    split: str | None = None
    samples: int | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        check_types(self)
        names("chat", self.chat)
        at_least("length", self.length, 2)
        one_of("too_long", self.too_long, ("cut", "drop"))
        one_of("turns", self.turns, ("together", "apart"))
        if self.samples is not None:
            at_least("samples", self.samples, 1)
        check_reading(self.chat, subset=self.subset, split=self.split)
