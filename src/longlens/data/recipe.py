"""Recipes of mixtures: sources, their shares, and packing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from longlens.corpus.files import STDLIB, TEXT_ENDINGS
from longlens.data.packing import TooLong
from longlens.errors import UserError, shown, shown_value
from longlens.settings.options import Reading
from longlens.settings.recipe import Integer, Settings, expected, nearest, parse, parse_integer, read_yaml


def _check_weight(value: Any) -> Any:
    if type(value) not in (int, float) or not 0 < value <= 100:
        raise expected("percent of the tokens, above 0 and at most 100")
    return value


Tokens = Annotated[Integer, Field(ge=1)]


def check_reading(
    sources: Sequence[str], *, text_field: str | None = None, subset: str | None = None, split: str | None = None
) -> None:
    """Rejects reading settings that would not apply to any source.

    Raises:
        UserError: A subset or a split is set without an ``hf:`` dataset, or a text field without a source that has
            rows.
    """
    datasets = [source for source in sources if source.startswith("hf:")]
    for name, value in (("subset", subset), ("split", split)):
        if value is not None and not datasets:
            raise UserError(f"{name} is for hf: datasets, and {shown_value(sources[0])} is not one: leave it out")
    if text_field is not None and all(s.startswith(STDLIB) or Path(s).suffix.lower() in TEXT_ENDINGS for s in sources):
        raise UserError(
            f"text_field is for rows of datasets, JSON Lines and Parquet, and {shown_value(sources[0])} is a text: "
            "leave it out"
        )


class MixtureSource(Settings):
    """One part of a mixture.

    Attributes:
        weight: Its share of the tokens, percent. In a recipe, 0 removes the source, and a path passed for it is
            ignored.
        path: A file, a folder or ``hf:NAME``; a recipe can omit it if it is passed in `sources` of `read_mixture`.
        subset: Subset of an ``hf:`` dataset.
        split: Split of an ``hf:`` dataset.
        text_field: Field of a row that contains its text.
        tokenized: Whether rows contain ``input_ids`` of the tokenizer in use, and optionally columns of
            `columns.CARRIED`.
        group_by: Field with a document's group, such as its repository: the texts of a group become one document, in
            the order of `order_by`, separated by newlines. Text files in a folder need no fields: their group is the
            subfolder, their order that of paths.
        order_by: Field by which documents of a group are ordered.
        min_tokens: Documents with fewer tokens are dropped, as are last pieces of split documents; in a recipe,
            ``length`` means the length of a row.
        max_tokens: Documents with more tokens are dropped.
        piece_length: Documents are split into pieces of this number of tokens; by default the length of a row.
        too_long: Handling of longer documents: ``split``, ``cut`` or ``drop``.
        repeat: Whether the source may be repeated when it is exhausted.

    Raises:
        UserError: A value is invalid or would have no effect.
    """

    weight: Annotated[int | float, BeforeValidator(_check_weight)]
    path: str | None = None
    subset: str | None = None
    split: str | None = None
    text_field: str | None = None
    tokenized: bool = False
    group_by: str | None = None
    order_by: str | None = None
    min_tokens: Tokens = 1
    max_tokens: Tokens | None = None
    piece_length: Tokens | None = None
    too_long: TooLong = "split"
    repeat: bool = False

    @model_validator(mode="after")
    def _check_together(self) -> MixtureSource:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise UserError(f"min_tokens is {self.min_tokens} and max_tokens {self.max_tokens}: no document fits")
        if self.order_by is not None and self.group_by is None:
            raise UserError("order_by is the order in a group: set group_by too, or leave it out")
        if self.tokenized and (self.group_by or self.text_field):
            raise UserError("group_by and text_field are for texts, and tokenized is true: leave them out")
        if self.path is not None:
            check_reading([self.path], subset=self.subset, split=self.split)
        return self

    def reading(self) -> Reading:
        """Settings for reading its documents."""
        return Reading(text_field=self.text_field or "text", subset=self.subset, split=self.split or "train")


class Mixture(Settings):
    """A mixture of sources, packed.

    Attributes:
        sources: Sources by name; their weights sum to 100.
        length: Tokens per row.
        tokens: Number of tokens of all rows together: ``tokens // length`` rows are made.
        seed: Seed of the order of rows, and of groups within a grouped source.
        packing: ``fill`` (full rows, as ProLong) or ``best-fit`` (documents stay whole, rows are nearly full).
        bos: Whether the tokenizer's BOS, if it has one, is added before each document.
        eos: Whether its EOS is added after each document.

    Raises:
        UserError: A value is out of range.
    """

    sources: Mapping[str, MixtureSource] = Field(min_length=1)
    length: Integer = Field(ge=2)
    tokens: Integer
    seed: Integer = 0
    packing: Literal["fill", "best-fit"] = "fill"
    bos: bool = True
    eos: bool = True

    @model_validator(mode="after")
    def _check_together(self) -> Mixture:
        for name in self.sources:
            if not name or not name.isprintable() or name != Path(name).name or name.startswith(".") or len(name) > 100:
                raise UserError(f"a source is called {shown(name)}, which cannot name a folder: choose a plain word")
        total = sum(source.weight for source in self.sources.values())
        if abs(total - 100) > 1e-6:
            raise UserError(f"the weights of the sources sum to {total:g}; they are percent: expected 100")
        if self.tokens < self.length:
            raise UserError(f"tokens is {self.tokens}, less than one row of {self.length}: use more, such as 1e9")
        for name, source in self.sources.items():
            if source.piece_length is not None and source.piece_length > self.length:
                raise UserError(
                    f"piece_length of {name} is {source.piece_length}, longer than a row of {self.length} tokens: "
                    "leave it out, or make rows longer"
                )
        return self

    def resolved(self) -> dict[str, Any]:
        """All settings as JSON, for the manifest."""
        return self.model_dump(mode="json")


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
            `MixtureSource`.
        length: Tokens per row, instead of the recipe's.
        tokens: Total tokens, instead of the recipe's.
        seed: Seed, instead of the recipe's.
        sources: Paths by name, instead of the recipe's.

    Raises:
        UserError: The recipe does not exist or is not YAML, a key is unknown or missing, or a value is invalid.
    """
    content = read_yaml(recipe, "mixtures", "length and sources")
    content |= {name: v for name, v in {"length": length, "tokens": tokens, "seed": seed}.items() if v is not None}
    for name in ("length", "tokens"):
        if name not in content and content.keys() <= Mixture.model_fields.keys():
            raise UserError(f"{recipe} says no {name}: write it there, or pass `{name}`")
    if isinstance(content.get("sources"), dict) and "length" in content:
        content["length"] = parse_integer(content["length"], "length", f"{recipe}")
        content["sources"] = _fill_in(content["sources"], sources or {}, content["length"], f"{recipe}")
    return parse(Mixture, content, f"{recipe}")


def _fill_in(sources: Mapping[str, Any], paths: Mapping[str, str], length: int, place: str) -> dict[str, Any]:
    """The recipe's sources with overridden paths and the length of a row, without sources of weight 0."""
    for name in paths:
        if name not in sources:
            raise UserError(f"`sources`: {place} has no source {shown_value(name)}{nearest(name, sources)}")
    found = {}
    for name, values in sources.items():
        if isinstance(values, dict):
            if values.get("min_tokens") == "length":
                values = values | {"min_tokens": length}
            if type(values.get("weight")) in (int, float) and values["weight"] == 0:
                parse(MixtureSource, values | {"weight": 1}, f"{place}: sources.{name}")
                continue
            if name in paths:
                # The recipe's subset and split belong to the dataset that the path replaces.
                unused = () if paths[name].startswith("hf:") else ("subset", "split")
                values = {key: value for key, value in values.items() if key not in unused} | {"path": paths[name]}
        found[name] = values
    return found
