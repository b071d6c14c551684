"""Scoring and LongPPL with models given by name: what ``longlens score`` and ``longlens longppl`` run.

Everything that can be checked without a model's weights is checked before any weights are loaded.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from longlens.corpus import Document, Sources, to_documents
from longlens.engines import TRANSFORMERS, engine_for, engine_name, share
from longlens.errors import LonglensWarning, UserError
from longlens.files import write_json
from longlens.keytokens.exchange import read_keys
from longlens.keytokens.selection import KeySource
from longlens.metrics.corpus import choose_influence
from longlens.metrics.longppl import PerplexityResult, perplexity
from longlens.models import UnloadedModel, load_decoder
from longlens.models.load import check_distributions
from longlens.models.tensor_parallel import Team
from longlens.progress import Progress
from longlens.runs.processes import Processes
from longlens.scoring.reader import StoredScores, open_scores
from longlens.scoring.run import score, sharing_processes
from longlens.scoring.scores import ShortContext, short_contexts
from longlens.scoring.store import Bos, check_run, check_writable
from longlens.scoring.truncation import Limit, TokenLimit, cut_documents, make_limit
from longlens.settings.options import (
    CONTEXT,
    MAX_LENGTH,
    Engine,
    KeyRule,
    Loading,
    Ray,
    Reading,
    Truncation,
)

Documents = Sources | Sequence[Document]
"""Documents, which are read more than once."""
TOKEN_CHARACTERS = 8
"""A text with more characters per token than this is assumed to exceed the number of tokens, without tokenizing it."""

_LOGGER = logging.getLogger(__name__)


def open_sources(
    sources: Sequence[str | os.PathLike[str]], reading: Reading | None = None, *, trust_remote_code: bool = False
) -> Sources:
    """Documents of files, folders and datasets, with a tokenizer that decodes tokenized ones.

    Args:
        sources: Files, folders, ``hf:NAME`` and ``stdlib:NAME``.
        reading: Fields, split and filters.
        trust_remote_code: Allow custom code of that tokenizer.

    Raises:
        UserError: A source is missing or cannot be read.
    """
    if reading is None or reading.tokenized_with is None:
        return Sources(sources, reading)
    decoder = load_decoder(reading.tokenized_with, trust_remote_code=trust_remote_code)
    return Sources(sources, reading, decoder=decoder)


@dataclass(frozen=True, kw_only=True)
class _Side:
    """One model, and the folder into which it scores documents."""

    model: UnloadedModel
    out: Path
    shorts: Sequence[ShortContext]
    limit: Limit
    bos: Bos
    extrapolate: bool
    store_text: bool
    name: str | None = None

    def check(self) -> None:
        check_run(self.out, self.model, self.shorts, bos=self.bos, limit=self.limit, store_text=self.store_text)

    def score(
        self,
        documents: Documents,
        progress: Progress | None,
        processes: Processes,
        shard: tuple[int, int] | None = None,
    ) -> StoredScores:
        scorer = self.model.load()  # its weights are freed at the end
        info = scorer.info
        if info.weights_sha256 is None and info.engine:
            _LOGGER.info("%s: served by %s", info.name, info.engine)
        else:
            _LOGGER.info("%s: %s from %s, %s on %s", info.name, info.architecture, info.source, info.dtype, info.device)
        if isinstance(self.limit, TokenLimit) and self.limit.counted_by == "own" and self.limit.max_tokens < MAX_LENGTH:
            takes = "" if info.max_length is None else f" (model maximum: {info.max_length:,})"
            _LOGGER.info("%s: documents are truncated to %s tokens%s", info.name, f"{self.limit.max_tokens:,}", takes)
        scores = score(
            documents,
            scorer,
            context=[short.context for short in self.shorts] or None,
            stride=[short.stride for short in self.shorts] or None,
            out=self.out,
            bos=self.bos,
            limit=self.limit,
            extrapolate=self.extrapolate,
            store_text=self.store_text,
            shard=shard,
            name=self.name,
            processes=processes,
            progress=progress,
        )
        assert isinstance(scores, StoredScores)
        if self.model.team.size > 1:
            scorer.end()  # type: ignore[attr-defined]  # `TeamScorer.end`; after a failure, torchrun ends them
        return scores


def score_documents(
    documents: Sources | Sequence[Any],
    model: str,
    out: str | os.PathLike[str],
    *,
    context: int | Sequence[int] | None = CONTEXT,
    stride: int | Sequence[int] | None = None,
    truncation: Truncation | None = None,
    bos: Bos = "window",
    store_text: bool = True,
    loading: Loading | None = None,
    engine: Engine | None = None,
    ray: Ray | None = None,
    shard: tuple[int, int] | None = None,
    statistics: Sequence[str] = (),
    reference: Reference | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> StoredScores:
    """Scores documents with a model, given by name, into a run directory; `longlens.score` accepts a loaded one.

    Args:
        documents: A list as for `longlens.score`, or files from `open_sources`.
        model: Name or path of the model.
        out: The run directory; documents that it already contains are skipped.
        context: K, or several, or None to score the long context only.
        stride: d, one value, or one per K; by default a quarter of each K.
        truncation: How documents are truncated.
        bos: ``"window"`` or ``"published"``, see `longlens.score`.
        store_text: False does not store the texts.
        loading: How the model is loaded.
        engine: The inference engine.
        ray: Ray settings, if Ray actors run the model: how many; this process tokenizes and writes.
        shard: ``(rank, world size)``: every world-size-th document, starting at rank. By default, processes started by
            torchrun share the documents, see `longlens.score`.
        statistics: Additional values computed for each token and stored as columns; see `longlens.scoring.statistics`.
        reference: The model that statistics compare with, which is run alongside.
        name: Display name in tables; by default the last part of the model's path or id.
        progress: Shows characters of the documents.

    Raises:
        UserError: Settings are invalid, the model does not exist, or the run directory has other settings.

    Warns:
        LonglensWarning: No document is longer than a short context.
    """
    loading, truncation, folder = loading or Loading(), truncation or Truncation(), Path(out)
    documents = _as_documents(documents)
    shorts = short_contexts(context, stride)
    engine = engine or Engine()
    is_ray = ray is not None and ray.ray is not None
    team = Team() if is_ray else Team.of(loading, engine_name(model, engine))
    if team.follows:
        with team:
            team.join()  # returns when the leader joins, which has checked its arguments by then
            UnloadedModel(model, loading, engine, team).load().follow()  # type: ignore[attr-defined]  # a `TeamScorer`
        return open_scores(folder)
    processes = sharing_processes(shard, folder, team.size)
    if is_ray:
        processes.require_one("`ray` starts its own processes: run longlens without torchrun")
    with team, processes, ExitStack() as ending:
        with processes.after_first():
            if processes.rank == 0:
                check_writable(folder, rank=0 if shard is None else shard[0])
            described = {} if not statistics else {"statistics": statistics, "reference": _load(reference)}
            if described and is_ray:
                raise UserError("`statistics` are computed in this process: omit `ray`")
            unloaded = ending.enter_context(_unloaded(model, loading, engine, ray if is_ray else None, team, described))
            side = _Side(
                model=unloaded,
                out=folder,
                shorts=shorts,
                limit=make_limit(truncation, unloaded, trust_remote_code=loading.trust_remote_code),
                bos=bos,
                extrapolate=truncation.extrapolate,
                store_text=store_text,
                name=name,
            )
            side.check()
            if processes.rank == 0:
                _warn_of_short_documents(documents, unloaded, shorts)
        return side.score(documents, progress, processes, shard)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A model that statistics compare with.

    Attributes:
        model: Name or path.
        loading: How it is loaded.
        engine: The inference engine, and its cache policy.
    """

    model: str
    loading: Loading = field(default_factory=Loading)
    engine: Engine = field(default_factory=Engine)


def _load(reference: Reference | None) -> UnloadedModel | None:
    if reference is None:
        return None
    check_distributions(engine_name(reference.model, reference.engine), compares=True)
    return UnloadedModel(reference.model, reference.loading, reference.engine)


@contextmanager
def _unloaded(
    model: str, loading: Loading, engine: Engine, ray: Ray | None, team: Team, described: Mapping[str, Any]
) -> Iterator[UnloadedModel]:
    """Yields the model, loaded in this process or by Ray actors, which end with the block."""
    if ray is None:
        yield UnloadedModel(model, loading, engine, team, **described)
        return
    from longlens.scoring.ray import RayModel

    with closing(RayModel(model, loading, engine, ray)) as there:
        yield there


def evaluate_longppl(
    documents: Sources | Sequence[Any],
    model: str,
    out: str | os.PathLike[str] | None = None,
    *,
    evaluator: str | None = None,
    keys: KeySource | str | os.PathLike[str] | None = None,
    context: int = CONTEXT,
    stride: int | None = None,
    rule: KeyRule | None = None,
    truncation: Truncation | None = None,
    bos: Bos = "window",
    store_text: bool = True,
    loading: Loading | None = None,
    engine: Engine | None = None,
    evaluator_engine: str | None = None,
    evaluator_tokenizer: Any = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> PerplexityResult | None:
    """LongPPL of a model on documents: scores them with the evaluator, then with the model.

    Documents are truncated by the evaluator's tokenizer, so that both models see the same text.

    Args:
        documents: A list as for `longlens.score`, or files from `open_sources`.
        model: Name or path of the evaluated model.
        out: Run directory for ``evaluator``, ``model`` and ``perplexity.json``; stored documents are skipped. None
            keeps nothing.
        evaluator: Name or path of the model that selects key tokens, or ``"self"`` for the evaluated model.
        keys: Key tokens, or a key file, instead of an evaluator.
        context: K, tokens of the evaluator.
        stride: d, tokens of the evaluator; by default a quarter of K.
        rule: How key tokens are selected.
        truncation: How documents are truncated.
        bos: ``"window"`` or ``"published"``, see `longlens.score`.
        store_text: False does not store the texts.
        loading: How both models are loaded; a setting that only one of their engines uses applies to that one.
        engine: Engine of the model, and of the evaluator if it can run it (an engine for servers runs only servers).
        evaluator_engine: Engine of the evaluator, if it differs from that of the model.
        evaluator_tokenizer: Tokenizer of the evaluator; the one in ``engine`` applies only to the model.
        name: Display name in tables; by default the last part of the model's path or id.
        progress: Shows characters of the documents.

    Returns:
        The perplexities. Processes started by torchrun share the documents, see `longlens.score`. Rank 0 computes and
        writes the result when all have finished; the other ranks return None.

    Raises:
        UserError: Both or neither of evaluator and keys are passed; settings are invalid; a model is unknown; the
            folder belongs to another run; or a document has more tokens than the evaluated model supports.

    Warns:
        LonglensWarning: The model is its own evaluator; no document is longer than the short context.
    """
    loading, truncation, rule = loading or Loading(), truncation or Truncation(), rule or KeyRule()
    engine = engine or Engine()
    kinds = {engine_name(model, engine)}
    if evaluator not in (None, "self", model):
        kinds.add(engine_name(str(evaluator), engine_for(str(evaluator), engine, kind=evaluator_engine)))
    if (loading.tensor_parallel or 1) > 1 and TRANSFORMERS in kinds:
        raise UserError(
            "`tensor_parallel` of transformers works only in longlens score: score with the evaluator and the model, "
            "then run longlens perplexity; or use `engine=vllm` or `device_map=auto`"
        )
    documents = _as_documents(documents)
    if (evaluator is None) == (keys is None):
        raise UserError(
            "LongPPL needs key tokens: pass either `evaluator` or `keys` (`evaluator=self` selects key tokens with "
            "the evaluated model, which the paper finds uninformative)"
        )
    if isinstance(keys, (str, os.PathLike)):
        keys = read_keys(keys)
    if keys is not None:
        choose_influence(None, keys, rule)  # for its checks
    if evaluator == "self":
        warnings.warn(
            "the model is its own evaluator; the paper finds LongPPL uninformative in this case (appendix B.2)",
            LonglensWarning,
            stacklevel=2,
        )
    shorts = short_contexts(None if evaluator is None else context, stride)
    with Processes() as processes, _folder_or_temporary(out, processes) as folder:
        with processes.after_first():
            selecting_side, side = _plan_longppl(
                documents,
                model,
                folder,
                evaluator=evaluator,
                shorts=shorts,
                truncation=truncation,
                bos=bos,
                store_text=store_text,
                loading=loading,
                engine=engine,
                evaluator_engine=evaluator_engine,
                evaluator_tokenizer=evaluator_tokenizer,
                name=name,
                checks=processes.rank == 0,
            )
        chosen = None if selecting_side is None else selecting_side.score(documents, progress, processes)
        scores = side.score(documents, progress, processes)
        if processes.rank > 0:
            return None
        evaluator_scores = scores if evaluator is not None and chosen is None else chosen
        result = perplexity(scores, evaluator_scores=evaluator_scores, keys=keys, **rule.keywords())
        if out is not None:
            write_json(folder / "perplexity.json", result.to_json(per_document=True))
        return result


def _plan_longppl(
    documents: Documents,
    model: str,
    folder: Path,
    *,
    evaluator: str | None,
    shorts: Sequence[ShortContext],
    truncation: Truncation,
    bos: Bos,
    store_text: bool,
    loading: Loading,
    engine: Engine,
    evaluator_engine: str | None,
    evaluator_tokenizer: Any,
    name: str | None,
    checks: bool,
) -> tuple[_Side | None, _Side]:
    """Sides of the evaluator (None if it is not run separately) and of the evaluated model; loads nothing."""
    # Under the window rule one run yields both sides of a model that is its own evaluator.
    is_alone = evaluator == "self" and bos == "window"
    selector = None if is_alone or evaluator is None else model if evaluator == "self" else evaluator
    # Key tokens are selected with the full cache, whatever the evaluated model's cache policy.
    compresses = engine.cache not in (None, "full")
    whole = replace(engine, cache=None, cache_chunk=None, cache_protocol=None)
    if compresses and evaluator == "self":
        raise UserError(
            f"`evaluator=self` would select key tokens under `cache={engine.cache}`: name an evaluator, which is run "
            f"without it (may be {model}), or score the model with and without it, then longlens cost"
        )
    if checks:
        for part in ["model"] if selector is None else ["evaluator", "model"]:
            check_writable(folder / part)
    if selector in (None, model):
        for given, value in (("evaluator_engine", evaluator_engine), ("evaluator_tokenizer", evaluator_tokenizer)):
            if value is not None:
                raise UserError(f"`{given}` would have no effect without a separate `evaluator`: leave it out")
        selecting = evaluated = UnloadedModel(model, loading, engine)
        if compresses and selector is not None:
            selecting = UnloadedModel(model, loading, whole)
    else:
        other = engine_for(str(selector), whole, kind=evaluator_engine, tokenizer=evaluator_tokenizer)
        for_model, for_selector = share([(model, loading, engine), (str(selector), loading, other)])
        evaluated, selecting = UnloadedModel(model, *for_model), UnloadedModel(str(selector), *for_selector)
    selecting_side = _Side(
        model=selecting,
        out=folder / "evaluator",
        shorts=shorts,
        limit=make_limit(truncation, selecting, trust_remote_code=loading.trust_remote_code),
        bos=bos,
        extrapolate=truncation.extrapolate,
        store_text=store_text,
    )
    limit = selecting_side.limit
    if selector is not None and isinstance(limit, TokenLimit) and limit.counted_by == "own":
        limit = replace(limit, counted_by=selecting.info.name)
    side = replace(
        selecting_side,
        model=evaluated,
        out=folder / "model",
        shorts=shorts if is_alone else [],
        limit=limit,
        name=name,
    )
    for one in [side] if selector is None else [selecting_side, side]:
        one.check()
    if checks:
        _warn_of_short_documents(documents, selecting, shorts)
        if selector is not None and not truncation.extrapolate and selecting is not evaluated:
            _check_fits(documents, evaluated, limit)
    return (None if selector is None else selecting_side), side


@contextmanager
def _folder_or_temporary(out: str | os.PathLike[str] | None, processes: Processes) -> Iterator[Path]:
    """Yields the run directory, or a temporary one, created by the first process for all and deleted at the end."""
    if out is not None:
        yield Path(out)
    elif processes.rank > 0:
        yield Path(processes.receive()["folder"])
    else:
        with tempfile.TemporaryDirectory(prefix="longlens-") as folder:
            processes.broadcast({"folder": folder})
            yield Path(folder)


def _as_documents(documents: Sources | Sequence[Any]) -> Documents:
    return documents if isinstance(documents, Sources) else list(to_documents(documents))


def _warn_of_short_documents(documents: Documents, model: UnloadedModel, shorts: Sequence[ShortContext]) -> None:
    """Warns if no document is longer than a short context; does not read datasets for this check."""
    if not shorts or (isinstance(documents, Sources) and not documents.are_files):
        return
    wanted = max(short.context for short in shorts)
    longest = 0
    for document in documents:
        text = document.text
        if len(text) > TOKEN_CHARACTERS * wanted:
            return
        if len(text.encode("utf-8", "replace")) > longest:  # every token has at least one byte
            longest = max(longest, len(model.encode(document).token_ids))
        if longest > wanted:
            return
    missed = ", ".join(str(short.context) for short in shorts if short.context >= longest)
    warnings.warn(
        f"no document has more than {longest:,} tokens of {model.info.name}, so no token has a context longer than "
        f"K = {missed}, and there will be no key tokens at that K: use a smaller `context`, such as "
        f"{max(1, longest // 4)}, or longer documents",
        LonglensWarning,
        stacklevel=3,
    )


def _check_fits(documents: Documents, model: UnloadedModel, limit: Limit) -> None:
    """Raises, before the slow run of the evaluator, if a document exceeds the evaluated model's maximum length."""
    takes, bos = model.info.max_length, model.info.bos_token_id
    if takes is None:
        return
    room = takes - (bos is not None)
    for document in cut_documents(documents, limit):
        ids = model.encode(document).token_ids
        tokens = len(ids) - (len(ids) > 0 and int(ids[0]) == bos)
        if tokens > room:
            raise UserError(
                f"document {document.id!r}, truncated for the evaluator, has {tokens:,} tokens of {model.info.name}, "
                f"which supports {room:,}: use a smaller `max_length`, or `extrapolate=True`"
            )
