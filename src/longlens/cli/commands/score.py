"""``longlens score``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longlens.cli import options as o
from longlens.settings.options import CONTEXT, Engine, Loading, Ray, Reading, Truncation


def score(
    command: typer.Context,
    *,
    docs: o.Docs,
    model: Annotated[str, typer.Option("--model", "-m", help=o.SCORED_HELP)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Run directory; an unfinished run in it is resumed.")],
    context: Annotated[
        str,
        typer.Option(
            help="K, the short context length in tokens; several as 64,256,4096.", metavar="TOKENS[,TOKENS...]"
        ),
    ] = str(CONTEXT),
    stride: Annotated[
        str | None,
        typer.Option(
            help="d, the number of tokens scored per window; one value, or one per K.  [default: K/4]",
            metavar="TOKENS[,TOKENS...]",
        ),
    ] = None,
    long_only: Annotated[bool, typer.Option("--long-only", help="Score with the long context only.")] = False,
    truncation: Truncation,
    name: o.Name = None,
    bos: o.Bos = "window",
    no_text: o.NoText = False,
    shard: Annotated[
        str | None,
        typer.Option(
            help="Score every WORLD-th document, from RANK on.  [default: torchrun's processes balance by cost]",
            metavar="RANK/WORLD",
        ),
    ] = None,
    loading: Loading,
    engine: Engine,
    ray: Ray,
    reading: Reading,
    statistics: Annotated[
        str | None,
        typer.Option(help="Additional columns per token: entropy, rank, or a plugin's.", metavar="NAME,..."),
    ] = None,
    log_to: o.LogTo = None,
    as_json: o.Json = False,
) -> None:
    """Score documents with a model and store the token scores. Rerun the same command to resume an unfinished run.

    Example: longlens score books/ --model smollm2 --context 1024 --stride 256 -o scores/smollm2
    """
    from longlens.cli.console import print_json, say, without_warnings
    from longlens.cli.next_step import after_score
    from longlens.cli.progress import ProgressBar
    from longlens.evaluation import open_sources, score_documents
    from longlens.runs.processes import Processes
    from longlens.tracking import check_trackers, log_runs

    if long_only:
        o.refuse(command, "with `long_only`, which scores no short contexts", "context", "stride")
    check_trackers(log_to or [])
    contexts = o.integers(context, "context")
    strides = None if stride is None else o.integers(stride, "stride")
    part = None if shard is None else _parse_shard(shard)
    scores = score_documents(
        open_sources(docs, reading, trust_remote_code=loading.trust_remote_code),
        model,
        out,
        context=None if long_only else contexts,
        stride=strides,
        truncation=truncation,
        bos=bos,  # type: ignore[arg-type]  # checked by the function
        store_text=not no_text,
        loading=loading,
        engine=engine,
        ray=ray,
        shard=part,
        statistics=[] if statistics is None else statistics.split(","),
        name=name,
        progress=ProgressBar(),
    )
    if Processes().rank > 0 and (part is None or loading.tensor_parallel is not None):
        return
    if log_to:
        from longlens.cli.tracked import tracked_perplexity
        from longlens.metrics.longppl import perplexity

        with without_warnings():
            log_runs(log_to, tracked_perplexity([perplexity(scores)], [scores.name], "score"))
    if as_json:
        manifest = scores.manifest
        stored = [list(short) for short in scores.short_contexts]
        content = {"schema_version": 1, "out": str(out), "num_documents": len(scores), "short_contexts": stored}
        print_json(content | {"model": manifest["model"]["name"], "settings": manifest["settings"]})
    else:
        say(f"{len(scores):,} documents in {out}")
        after_score(out, scores)


def _parse_shard(shard: str) -> tuple[int, int]:
    """Converts ``"1/4"`` to ``(1, 4)``.

    Raises:
        UserError: The text is not ``RANK/WORLD`` with ``0 <= RANK < WORLD``.
    """
    from longlens.errors import UserError

    rank, _, world = shard.partition("/")
    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise UserError(f"--shard is {shard!r}; expected RANK/WORLD with RANK below WORLD, such as 0/4")
    return int(rank), int(world)
