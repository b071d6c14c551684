"""Recipes of mixtures: what is read, in which shares, and how it is packed; from YAML, every key known and used."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from longlens import recipe_file
from longlens.data.packing import TooLong, packing_of
from longlens.errors import UserError, shown, shown_value
from longlens.recipe_file import check_keys, check_types, made, nearest, read_yaml
from longlens.recipe_file import whole_number as whole_number
from longlens.settings.options import Reading


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One part of a mixture.

    Attributes:
        weight: Its share of the tokens, percent. In a recipe 0 leaves the source out, and a path given to it is unused.
        path: A file, a folder or ``hf:NAME``; a recipe can leave it to ``--source NAME=PATH``.
        subset: Subset of an ``hf:`` dataset.
        split: Split of an ``hf:`` dataset.
        text_field: Field of a row that holds its text.
        tokenized: Rows hold ``input_ids`` of the tokenizer in use, and perhaps columns of `columns.CARRIED`.
        group_by: Field that names a document's group, such as its repository: the texts of a group become one document,
            in the order of `order_by`, a newline between them. A file of a folder that is one text needs no fields: its
            group is the folder below that folder, its place in it its path.
        order_by: Field that documents of a group are ordered by.
        min_tokens: Documents with fewer tokens are left out, and last pieces of split documents too; ``"length"``
            stands for the length of a row.
        max_tokens: Documents with more tokens are left out.
        piece_length: Documents are split at so many tokens; at the length of a row unless given.
        too_long: What becomes of longer documents: ``split``, ``cut`` or ``drop``.
        repeat: Whether the source may be begun again when it runs out.

    Raises:
        UserError: A value that cannot be, or one that would have no effect.
    """

    weight: float
    path: str | None = None
    subset: str | None = None
    split: str | None = None
    text_field: str | None = None
    tokenized: bool = False
    group_by: str | None = None
    order_by: str | None = None
    min_tokens: int | str = 1
    max_tokens: int | None = None
    piece_length: int | None = None
    too_long: TooLong = "split"
    repeat: bool = False

    def __post_init__(self) -> None:
        """Checks the values, one by one and together."""
        check_types(self)
        if not 0 < self.weight <= 100:
            raise UserError(f"weight is {self.weight}, expected percent of the tokens, above 0 and at most 100")
        if isinstance(self.min_tokens, str) and self.min_tokens != "length":
            raise UserError(
                f"min_tokens is {shown_value(self.min_tokens)}; expected a number of tokens, or the word length"
            )
        for name in ("min_tokens", "max_tokens", "piece_length"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise UserError(f"{name} is {value}; expected at least 1 token")
        if isinstance(self.min_tokens, int) and self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise UserError(f"min_tokens is {self.min_tokens} and max_tokens {self.max_tokens}: no document fits")
        if self.order_by is not None and self.group_by is None:
            raise UserError("order_by is the order in a group: give group_by too, or leave it out")
        if self.tokenized and (self.group_by or self.text_field):
            raise UserError("group_by and text_field are for texts, and tokenized is true: leave them out")
        if self.path is not None and not self.path.startswith("hf:"):
            for name in ("subset", "split"):
                if getattr(self, name) is not None:
                    raise UserError(f"{name} is for hf: datasets, and path is {shown_value(self.path)}: leave it out")

    def reading(self) -> Reading:
        """How its documents are read."""
        return Reading(text_field=self.text_field or "text", subset=self.subset, split=self.split or "train")

    def at(self, path: str) -> Source:
        """The same source read from another place: of files, subset and split are of no use."""
        if path.startswith("hf:"):
            return replace(self, path=path)
        return replace(self, path=path, subset=None, split=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """A mixture of sources, packed.

    Attributes:
        sources: By name; their weights sum to 100.
        length: Tokens of a row.
        tokens: Of all rows together: ``tokens // length`` rows are made.
        seed: Decides in which order rows of the sources follow each other, and groups within a grouped source.
        packing: ``fill`` (full rows, as ProLong) or ``best-fit`` (documents stay whole, rows are nearly full).
        bos: Whether the tokenizer's BOS, where it has one, stands before every document.
        eos: Whether its EOS stands behind every document.

    Raises:
        UserError: A value that cannot be.
    """

    sources: Mapping[str, Source]
    length: int
    tokens: int
    seed: int = 0
    packing: str = "fill"
    bos: bool = True
    eos: bool = True

    def __post_init__(self) -> None:
        """Checks the values."""
        check_types(self)
        if not self.sources:
            raise UserError("the mixture has no sources: give at least one, with its path and weight")
        for name in self.sources:
            _check_name(name)
        total = sum(source.weight for source in self.sources.values())
        if abs(total - 100) > 1e-6:
            raise UserError(f"the weights of the sources sum to {total:g}; they are percent: expected 100")
        packing_of(self.packing)
        if self.length < 2:
            raise UserError(f"length is {self.length}; a row needs at least 2 tokens, such as 65536")
        if self.tokens < self.length:
            raise UserError(f"tokens is {self.tokens}, less than one row of {self.length}: give more, such as 1e9")
        for name, source in self.sources.items():
            if source.piece_length is not None and source.piece_length > self.length:
                raise UserError(
                    f"piece_length of {name} is {source.piece_length}, longer than a row of {self.length} tokens: "
                    "leave it out, or make rows longer"
                )

    def resolved(self) -> dict[str, Any]:
        """All settings as JSON, for the manifest."""
        return asdict(self)


def presets() -> list[str]:
    """Names of the recipes that come with longlens."""
    return recipe_file.presets("mixtures")


def read_mixture(
    recipe: str | os.PathLike[str],
    *,
    length: int | None = None,
    tokens: int | None = None,
    seed: int | None = None,
    sources: Mapping[str, str] | None = None,
) -> Mixture:
    """Reads a recipe.

    Args:
        recipe: Name of a preset, or a YAML file: the keys of `Mixture`, and under ``sources`` for each name those of
            `Source`.
        length: Instead of the recipe's.
        tokens: Instead of the recipe's.
        seed: Instead of the recipe's.
        sources: Paths by name, instead of the recipe's.

    Raises:
        UserError: No such recipe, no YAML, a key that is unknown or missing, or a value that cannot be.
    """
    content = read_yaml(recipe, "mixtures", "length and sources")
    given = {name: v for name, v in {"length": length, "tokens": tokens, "seed": seed}.items() if v is not None}
    content |= given
    check_keys(content, Mixture, f"{recipe}")
    for name in ("length", "tokens"):
        if name not in content:
            raise UserError(f"{recipe} says no {name}: pass --{name}, such as --{name} {_EXAMPLES[name]}")
        content[name] = whole_number(content[name], f"{name} of {recipe}")
    listed = content.get("sources", {})
    if not isinstance(listed, dict):
        raise UserError(f"sources of {recipe} is a {type(listed).__name__}; expected names, each with its keys")
    paths = dict(sources or {})
    for name in paths:
        if name not in listed:
            raise UserError(f"--source {name}: {recipe} has no source of that name{nearest(name, listed)}")
    for name in listed:
        _check_name(name, f"{recipe}: ")
    found = {name: _source(values, f"{recipe}: {name}", paths.get(name)) for name, values in listed.items()}
    with_length = {
        name: replace(source, min_tokens=content["length"]) if source.min_tokens == "length" else source
        for name, source in found.items()
        if source is not None
    }
    return made(Mixture, content | {"sources": with_length}, f"{recipe}")


_EXAMPLES = {"length": "65536", "tokens": "1e9"}


def _check_name(name: str, place: str = "") -> None:
    if not name or not name.isprintable() or name != Path(name).name or name.startswith(".") or len(name) > 100:
        raise UserError(f"{place}a source is called {shown(name)}, which cannot name a folder: choose a plain word")


def _source(values: Any, place: str, path: str | None) -> Source | None:
    if not isinstance(values, dict):
        raise UserError(f"{place} is {shown_value(values)}; expected keys such as path and weight")
    check_keys(values, Source, place)
    if "weight" not in values:
        raise UserError(f"{place} has no weight: give its share of the tokens, percent")
    if type(values["weight"]) in (int, float) and values["weight"] == 0:
        return None
    numbers = {
        name: whole_number(values[name], f"{place}: {name}")
        for name in ("min_tokens", "max_tokens", "piece_length")
        if values.get(name) is not None and values[name] != "length"
    }
    if path is not None and not path.startswith("hf:"):
        # The recipe's subset and split are of the dataset that the path stands in for.
        values = {name: value for name, value in values.items() if name not in ("subset", "split")}
    return made(Source, values | numbers | ({} if path is None else {"path": path}), place)
