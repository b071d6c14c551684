"""``longlens score``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longlens.cli import options as o


def score(
    command: typer.Context,
    docs: o.Docs,
    model: Annotated[str, typer.Option(help=o.MODEL_HELP)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder; resumes what is in it.")],
    context: o.Context = "4096",
    stride: o.Stride = "1024",
    long_only: Annotated[bool, typer.Option("--long-only", help="No short contexts.")] = False,
    max_length: o.MaxLength = None,
    max_characters: o.MaxCharacters = None,
    truncate_with: o.TruncateWith = None,
    extrapolate: o.Extrapolate = False,
    bos: o.Bos = "window",
    no_text: o.NoText = False,
    shard: Annotated[
        str | None,
        typer.Option(
            help="RANK/WORLD: take every WORLD-th document.  [default: what torchrun says]", metavar="RANK/WORLD"
        ),
    ] = None,
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    device_map: o.DeviceMap = None,
    attention: o.Attention = None,
    batch_tokens: o.BatchTokens = None,
    trust_remote_code: o.TrustRemoteCode = False,
    allow_pickle: o.AllowPickle = False,
    text_field: o.TextField = "text",
    id_field: o.IdField = "id",
    subset: o.Subset = None,
    split: o.Split = "test",
    tokenized_with: o.TokenizedWith = None,
    min_tokens: o.MinTokens = None,
    samples: o.Samples = None,
    as_json: o.Json = False,
) -> None:
    """Run a model over documents and store its token scores. The same command resumes an unfinished run.

    Example: longlens score books/ --model smollm2 --context 1024 --stride 256 -o scores/smollm2
    """
    from longlens.cli.console import print_json, printable, say
    from longlens.cli.progress import ProgressBar
    from longlens.models import UnloadedModel
    from longlens.runs.processes import Processes
    from longlens.scoring.run import score as score_documents
    from longlens.scoring.scores import short_contexts
    from longlens.scoring.store import check_run, check_writable
    from longlens.settings.options import Loading

    if long_only:
        o.refuse(command, "with --long-only, which scores no short context", "context", "stride")
    contexts = None if long_only else o.integers(context, "--context")
    strides = o.integers(stride, "--stride")
    shorts = short_contexts(contexts, strides)
    processes = Processes()
    part = (processes.rank, processes.size) if shard is None else parse_shard(shard)
    reading = o.reading(command)
    # All that can be refused without the weights is refused before they are loaded.
    documents = o.documents(docs, reading, trust_remote_code=trust_remote_code)
    check_writable(out, rank=part[0])
    unloaded = UnloadedModel(model, Loading(**o.loading(command)))
    limit = o.limit(
        unloaded,
        max_length,
        max_characters,
        truncate_with,
        extrapolate=extrapolate,
        trust_remote_code=trust_remote_code,
    )
    assert limit is not None
    check_run(out, unloaded, shorts, bos=bos, limit=limit, store_text=not no_text)  # type: ignore[arg-type]
    o.tell_lengths(docs, reading, unloaded, shorts)
    loaded = unloaded.load()
    o.announce(loaded, limit)
    scores = score_documents(
        documents,
        loaded,
        context=contexts,
        stride=strides,
        out=out,
        bos=bos,  # type: ignore[arg-type]
        limit=limit,
        extrapolate=extrapolate,
        store_text=not no_text,
        shard=part,
        progress=ProgressBar(o.total_characters(docs, reading, limit, part)),
    )
    if processes.rank > 0:
        return
    if as_json:
        manifest = scores.manifest
        stored = [list(short) for short in scores.short_contexts]
        content = {"schema_version": 1, "out": str(out), "num_documents": len(scores), "short_contexts": stored}
        print_json(content | {"model": manifest["model"]["name"], "settings": manifest["settings"]})
    else:
        say(f"{len(scores):,} documents in {out}")
        print(f"next: longlens perplexity {printable(str(out))}")


def parse_shard(shard: str) -> tuple[int, int]:
    """``"1/4"`` to ``(1, 4)``.

    Raises:
        UserError: It is not ``RANK/WORLD`` with ``0 <= RANK < WORLD``.
    """
    from longlens.errors import UserError

    rank, _, world = shard.partition("/")
    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise UserError(f"--shard is {shard!r}; expected RANK/WORLD with RANK below WORLD, such as 0/4")
    return int(rank), int(world)
