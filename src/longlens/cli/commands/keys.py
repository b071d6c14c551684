"""``longlens keys``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longlens.cli import options as o

SELECTING = ("alpha", "beta", "no_lcl", "context", "stride")
READING = (
    *("max_characters", "max_length", "truncate_with", "text_field", "id_field", "subset", "split"),
    *("tokenized_with", "min_tokens", "samples"),
)


def keys(
    command: typer.Context,
    sources: Annotated[list[str], typer.Argument(help="A run folder, or documents with --from-upstream.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File for the key tokens, such as keys.jsonl.")],
    from_upstream: Annotated[
        Path | None, typer.Option(help="Import the slice_N.txt files of the package longppl from this folder.")
    ] = None,
    alpha: o.Alpha = o.ALPHA,
    beta: o.Beta = o.BETA,
    no_lcl: o.NoLcl = False,
    context: o.AtContext = None,
    stride: o.AtStride = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    max_characters: o.MaxCharacters = None,
    max_length: o.MaxLength = None,
    truncate_with: o.TruncateWith = None,
    text_field: o.TextField = "text",
    id_field: o.IdField = "id",
    subset: o.Subset = None,
    split: o.Split = "test",
    tokenized_with: o.TokenizedWith = None,
    min_tokens: o.MinTokens = None,
    samples: o.Samples = None,
    as_json: o.Json = False,
) -> None:
    """Export key tokens, or import published ones. They are runs of characters, which serve any tokenizer.

    Example: longlens keys scores/gemma3 -o keys.jsonl
    """
    from longlens.cli.console import print_json, say
    from longlens.errors import UserError
    from longlens.keytokens.exchange import check_keys_file, import_upstream, write_keys
    from longlens.keytokens.selection import KeySource, select_key_tokens
    from longlens.scoring.reader import open_scores

    check_keys_file(out, overwrite=overwrite)
    rule = o.key_rule(command, alpha, beta, no_lcl)
    if from_upstream is not None:
        o.refuse_idle(command)
        o.refuse(command, "with --from-upstream, whose tokens were selected already", *SELECTING)
        reading = o.reading(command)
        cut = o.limit(None, max_length, max_characters, truncate_with)
        documents = o.cut(o.documents(sources, reading), cut)
        selected: KeySource = import_upstream(from_upstream, documents)
    elif len(sources) != 1:
        raise UserError(f"{len(sources)} run folders were given; keys are of one: longlens keys SCORES -o keys.jsonl")
    else:
        o.refuse(command, "for a run folder, whose texts are scored already", *READING)
        selected = select_key_tokens(open_scores(sources[0], context=context, stride=stride), **rule)
    write_keys(out, selected, overwrite=overwrite)
    if as_json:
        settings = dict(selected.settings)
        print_json({"schema_version": 1, "out": str(out), "num_documents": len(selected), "settings": settings})
    else:
        say(f"key tokens of {len(selected):,} documents in {out}")
