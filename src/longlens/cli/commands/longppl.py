"""``longlens longppl``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longlens.cli import options as o

if TYPE_CHECKING:
    from longlens.corpus import Document
    from longlens.models import UnloadedModel
    from longlens.scoring.reader import StoredScores
    from longlens.scoring.truncation import Limit
    from longlens.settings.options import Reading


def longppl(
    command: typer.Context,
    docs: o.Docs,
    model: Annotated[str, typer.Option(help=f"The evaluated model. {o.MODEL_HELP}")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder; resumes what is in it.")],
    evaluator: Annotated[
        str | None, typer.Option(help="The model that selects key tokens; self for the evaluated one.")
    ] = None,
    keys: o.Keys = None,
    context: Annotated[int, typer.Option(help="K, the short context in tokens.")] = 4096,
    stride: Annotated[int, typer.Option(help="d, tokens that share a window.")] = 1024,
    alpha: o.Alpha = o.ALPHA,
    beta: o.Beta = o.BETA,
    no_lcl: o.NoLcl = False,
    gamma: o.Gamma = o.GAMMA,
    max_length: o.MaxLength = None,
    max_characters: o.MaxCharacters = None,
    truncate_with: o.TruncateWith = None,
    extrapolate: o.Extrapolate = False,
    bos: o.Bos = "window",
    no_text: o.NoText = False,
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
    per_document: o.PerDocument = False,
    as_json: o.Json = False,
) -> None:
    """Compute LongPPL in one command. Scores documents with the evaluator and the evaluated model.

    Documents are cut to --max-length tokens of the evaluator, so that both models see the same text.

    Example: longlens longppl books/ --model smollm2 --evaluator gemma3-270m --context 1024 --stride 256 -o run
    """
    from longlens.cli.commands.perplexity import print_results
    from longlens.cli.console import print_json, say, told_once
    from longlens.errors import UserError
    from longlens.files import write_json
    from longlens.metrics.longppl import perplexity
    from longlens.models import UnloadedModel
    from longlens.scoring.scores import short_contexts
    from longlens.scoring.store import check_run, check_writable
    from longlens.scoring.truncation import TokenLimit
    from longlens.settings.options import Loading
    from longlens.windows import check_window_settings

    if (evaluator is None) == (keys is None):
        raise UserError(
            "LongPPL needs key tokens: give --evaluator MODEL or --keys FILE, one of them (--evaluator self selects "
            "by the evaluated model, which the paper finds uninformative)"
        )
    if keys is not None:
        o.refuse(command, "with --keys, which were selected already", "context", "stride")
    check_window_settings(context, stride)
    if evaluator == "self":
        say("warning: the model is its own evaluator, for which the paper finds LongPPL uninformative (appendix B.2)")
    reading = o.reading(command)
    storing = {"bos": bos, "store_text": not no_text, "extrapolate": extrapolate}
    chosen = o.choice(command, None, keys, alpha, beta, gamma, no_lcl, None, None)
    # Under the window rule one run gives both sides of a model that is its own evaluator.
    alone = evaluator == "self" and bos == "window"
    selects = None if alone or evaluator is None else model if evaluator == "self" else evaluator
    # All that can be refused without the weights is refused before any are loaded.
    documents = o.documents(docs, reading, trust_remote_code=trust_remote_code)
    for name in ["model"] if selects is None else ["evaluator", "model"]:
        check_writable(out / name)
    loading = Loading(**o.loading(command))
    evaluated = UnloadedModel(model, loading)
    selecting = evaluated if selects in (None, model) else UnloadedModel(str(selects), loading)
    limit = o.limit(
        selecting,
        max_length,
        max_characters,
        truncate_with,
        extrapolate=extrapolate,
        trust_remote_code=trust_remote_code,
    )
    assert limit is not None
    shorts = short_contexts(None if evaluator is None else context, stride)
    shared = limit
    if selects is not None and isinstance(limit, TokenLimit) and limit.counted_by == "own":
        shared = replace(limit, counted_by=str(selects))
    sides = [("model", evaluated, shorts if alone else [], shared)]
    for name, unloaded, contexts, cut in [*([("evaluator", selecting, shorts, limit)] if selects else []), *sides]:
        check_run(out / name, unloaded, contexts, bos=bos, limit=cut, store_text=not no_text)  # type: ignore[arg-type]
    o.tell_lengths(docs, reading, selecting, shorts)
    windows = {"context": context, "stride": stride}
    if selects is not None:
        if not extrapolate and selecting is not evaluated:
            _check_fits(o.documents(docs, reading, trust_remote_code=trust_remote_code), evaluated, limit)
        chosen["evaluator_scores"] = _run(
            docs, reading, documents, selecting, out / "evaluator", limit, storing | windows
        )
        documents = o.documents(docs, reading, trust_remote_code=trust_remote_code)
    storing |= windows if alone else {"context": None}
    scores = _run(docs, reading, documents, evaluated, out / "model", shared, storing)
    if alone:
        chosen["evaluator_scores"] = scores
    with told_once():
        result = perplexity(scores, **chosen)
    write_json(out / "perplexity.json", result.to_json(per_document=True))
    if as_json:
        print_json(result.to_json(per_document=per_document))
    else:
        print_results([result], per_document=per_document)


def _run(
    docs: list[str],
    reading: Reading,
    documents: Iterable[Document],
    model: UnloadedModel,
    out: Path,
    limit: Limit,
    storing: dict[str, Any],
) -> StoredScores:
    """Scores the documents with one model, whose weights are let go afterwards."""
    from longlens.cli.progress import ProgressBar
    from longlens.scoring.reader import StoredScores
    from longlens.scoring.run import score

    scorer = model.load()
    o.announce(scorer, limit)
    progress = ProgressBar(o.total_characters(docs, reading, limit))
    scores = score(documents, scorer, out=out, limit=limit, shard=(0, 1), progress=progress, **storing)
    assert isinstance(scores, StoredScores)
    return scores


def _check_fits(documents: Iterable[Document], model: UnloadedModel, limit: Limit) -> None:
    """Says before the evaluator runs, which takes longest, that the evaluated model takes less than a document has.

    Raises:
        UserError: A document, cut for the evaluator, has more tokens of the evaluated model than that takes.
    """
    from longlens.errors import UserError

    takes, bos = model.info.max_length, model.info.bos_token_id
    if takes is None:
        return
    room = takes - (bos is not None)
    for document in o.cut(documents, limit):
        ids = model.encode(document).token_ids
        tokens = len(ids) - (len(ids) > 0 and int(ids[0]) == bos)
        if tokens > room:
            raise UserError(
                f"document {document.id!r}, cut for the evaluator, has {tokens:,} tokens of {model.info.name}, which "
                f"takes {room:,}: use a smaller --max-length, or --extrapolate"
            )
