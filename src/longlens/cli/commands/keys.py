"""``longlens keys``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longlens.cli import options as o
from longlens.cli.command import Part
from longlens.settings.options import KeyRule, Reading, Truncation

if TYPE_CHECKING:
    from longlens.corpus import Document


def keys(
    command: typer.Context,
    *,
    sources: Annotated[list[str], typer.Argument(help="Run directory, or documents with --from-upstream.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Key file to write, such as keys.jsonl.")],
    from_upstream: Annotated[
        Path | None, typer.Option(help="Directory with the longppl package's slice_N.txt files to import.")
    ] = None,
    rule: Annotated[KeyRule, Part(but=("gamma",))],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    truncation: Annotated[Truncation, Part(but=("extrapolate",))],
    reading: Reading,
    as_json: o.Json = False,
) -> None:
    """Export key tokens, or import published ones. Key tokens are stored as character spans, valid for any tokenizer.

    Example: longlens keys scores/gemma3 -o keys.jsonl
    """
    from longlens.cli.console import print_json, say
    from longlens.cli.next_step import suggest
    from longlens.errors import UserError
    from longlens.evaluation import open_sources
    from longlens.keytokens.exchange import check_keys_file, import_upstream, write_keys
    from longlens.keytokens.selection import KeySource, select_key_tokens
    from longlens.scoring.reader import open_scores
    from longlens.scoring.truncation import cut_documents, make_limit

    check_keys_file(out, overwrite=overwrite)
    if from_upstream is not None:
        o.refuse(command, "with --from-upstream, which imports tokens that are already selected", KeyRule)
        documents: Iterable[Document] = open_sources(sources, reading)
        if truncation != Truncation():
            documents = cut_documents(documents, make_limit(truncation, None))
        selected: KeySource = import_upstream(from_upstream, documents)
    elif len(sources) != 1:
        raise UserError(f"got {len(sources)} run directories, expected one: use longlens keys SCORES -o keys.jsonl")
    else:
        o.refuse(command, "for a run directory, whose texts are already scored", Truncation, Reading)
        scores = open_scores(sources[0], context=rule.context, stride=rule.stride)
        selected = select_key_tokens(scores, alpha=rule.alpha, beta=rule.beta, use_lcl=rule.lcl)
    write_keys(out, selected, overwrite=overwrite)
    if as_json:
        settings = dict(selected.settings)
        print_json({"schema_version": 1, "out": str(out), "num_documents": len(selected), "settings": settings})
    else:
        say(f"key tokens of {len(selected):,} documents in {out}")
        suggest(("perplexity", "SCORES", "--keys", out))
