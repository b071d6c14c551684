"""Loads models by name for scoring, and checks settings and documents before weights are loaded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from longlens.engines import OWN, TRANSFORMERS, WITH_LOGITS, check_taken, engine_name
from longlens.errors import UserError, library_errors, shown
from longlens.models.checkpoint import Checkpoint, check_loading_info
from longlens.models.files import hash_files, load_tokenizer, loading_errors, model_max_length
from longlens.models.resolve import check_folder, check_hub, resolve
from longlens.models.tensor_parallel import Team, check_model, exchanging
from longlens.plugins import list_plugins, load_plugin
from longlens.rope.config import check_decoder
from longlens.settings.options import Engine, Loading

if TYPE_CHECKING:
    from longlens.corpus import Document
    from longlens.models.caches import CachePolicy, CacheProtocol, CacheUse
    from longlens.scoring.scorer import Distributions, Scorer, ScorerInfo
    from longlens.scoring.statistics import Statistic
    from longlens.scoring.transformers import TransformersScorer
    from longlens.tokenization import Encoded


class UnloadedModel:
    """A model before its weights are loaded, to check settings and documents against it.

    A model of an engine other than transformers is loaded immediately, because only the engine can read its files.

    Attributes:
        info: Info of its scorer; values that depend on the weights are empty.
        team: The processes that share the model.
    """

    def __init__(
        self,
        name: str,
        loading: Loading | None = None,
        engine: Engine | None = None,
        team: Team | None = None,
        *,
        statistics: Sequence[str] = (),
        reference: UnloadedModel | None = None,
    ) -> None:
        """Loads the tokenizer and the configuration.

        Args:
            name: Name or path of the model.
            loading: Loading settings.
            engine: The inference engine.
            team: Processes that share the model; by default those that torchrun started.
            statistics: Names of additional statistics per token, see `longlens.scoring.statistics`.
            reference: The model with which the statistics compare.

        Raises:
            UserError: The model, engine, cache policy or statistic does not exist; or torchrun did not start a team.
        """
        from longlens.scoring.scorer import ScorerInfo
        from longlens.tokenization import TextEncoder

        self._loading, self._engine = loading or Loading(), engine or Engine()
        self._loaded: Scorer | None = None
        kind = engine_name(name, self._engine)
        check_taken(kind, self._loading, self._engine)
        self.team = team or Team.of(self._loading, kind)
        self._statistics, self._reference = self._load_statistics(kind, statistics, reference), reference
        if kind != TRANSFORMERS:
            self._loaded = _load_engine(name, kind, self._loading, self._engine)
            if self._statistics:
                other: Any = None if reference is None else reference.load()
                self._loaded.observe(self._statistics, other)  # type: ignore[attr-defined]  # an engine of `WITH_LOGITS`
            self.info = self._loaded.info
            return
        source = resolve(name)
        check_folder(source)
        self._cache = _cache_use(self._engine)
        self._checkpoint = Checkpoint(source, self._loading)
        config = self._checkpoint.config
        check_decoder(config)
        check_model(name, source, config, self._loading)
        self._tokenizer = _load_tokenizer(name, self._loading, self._engine.tokenizer)
        self._encoder = TextEncoder(self._tokenizer)
        unknown: dict[str, Any] = dict.fromkeys(
            ("architecture", "tokenizer_sha256", "dtype", "device", "attention"), ""
        )
        self.info = ScorerInfo(
            name=name,
            source=source.note,
            weights_sha256=None,
            max_length=model_max_length(config),
            bos_token_id=self._encoder.bos_token_id,
            own_prefix=self._encoder.own_prefix,
            statistics=tuple(statistics),
            **unknown,
        )

    def _load_statistics(self, kind: str, names: Sequence[str], reference: UnloadedModel | None) -> Sequence[Statistic]:
        if not names:
            return ()
        check_distributions(kind, is_alone=self.team.size == 1, compares=reference is not None)
        from longlens.scoring.statistics import load_statistics

        return load_statistics(names, has_reference=reference is not None)

    def identify(self) -> ScorerInfo | None:
        """`info` with all parts of the model's identity; None while its weights are not on this machine."""
        if self._loaded is not None:
            return self.info
        identity = self._checkpoint.identify(self._tokenizer)
        if identity is None:
            return None
        known = vars(identity) | {"cache": None if self._cache is None else self._cache.identity}
        if self._reference is not None:
            from longlens.scoring.scorer import reference_record

            reference = self._reference.identify()
            if reference is None:
                return None
            known["reference"] = reference_record(reference)
        return replace(self.info, **known)

    def encode(self, document: Document) -> Encoded:
        """Tokens of the document's text and their spans, without special tokens."""
        return self._encoder.encode(document.text) if self._loaded is None else self._loaded.encode(document)

    def load(self) -> Scorer:
        """Loads the model with its weights.

        Raises:
            UserError: The model is not a causal language model, or cannot be loaded with these settings.
        """
        if self._loaded is not None:
            return self._loaded
        return _load_checkpoint(
            self._checkpoint,
            self._tokenizer,
            cache=self._cache,
            team=self.team,
            statistics=self._statistics,
            reference=None if self._reference is None else self._reference.load(),  # type: ignore[arg-type]  # checked
        )


def check_distributions(kind: str, *, is_alone: bool = True, compares: bool) -> None:
    """Rejects, before loading, an engine whose scorers do not have logits over the whole vocabulary.

    Args:
        kind: Name of the engine.
        is_alone: Whether one process has the whole model.
        compares: Whether statistics compare two models.

    Raises:
        UserError: The engine has no logits over the whole vocabulary, or several processes share the model.
    """
    if kind in WITH_LOGITS and is_alone:
        return
    what, otherwise = "`statistics` need", "remove `statistics`, or the engine and `tensor_parallel`"
    if compares:
        what, otherwise = "comparing two models needs", "use one of these engines for both models"
    raise UserError(
        f"{what} distributions over the whole vocabulary, which require "
        f"{' or '.join(f'`engine={name}`' for name in WITH_LOGITS)} in one process: {otherwise}"
    )


def load_scorer(
    name: str,
    *,
    engine: str | None = None,
    tokenizer: Any = None,
    concurrency: int | None = None,
    max_model_len: int | None = None,
    cache: str | CachePolicy | None = None,
    cache_chunk: int | None = None,
    cache_protocol: CacheProtocol | None = None,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | dict[str, Any] | None = None,
    attention: str | None = None,
    batch_tokens: int | None = None,
    tensor_parallel: int | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Scorer:
    """Loads a model for scoring.

    Args:
        name: Hub id, local directory, ``.gguf`` file, ``smollm2`` or ``gemma3-270m``; or a server and the name of its
            model, ``http://HOST:PORT/v1#NAME``. Engines of other packages may accept other names.
        engine: ``transformers``, ``vllm``, ``llama-cpp``, ``openai``, ``sglang``, or a name that another package adds
            with an entry point of ``longlens.scorers``: a function ``(name, loading, engine) -> Scorer`` of the name, a
            `longlens.settings.options.Loading` and a `longlens.settings.options.Engine`. Default: ``openai`` for
            a URL and ``transformers`` otherwise.
        tokenizer: The model's tokenizer, as an object, Hub id or directory. Default: found by the model's name.
        concurrency: Concurrent requests to a server. Default: 8.
        max_model_len: Context length of the engine (``max_model_len`` in vLLM, ``n_ctx`` in llama.cpp).
        cache: KV cache policy, for transformers: ``full``, one of `longlens.models.policies` such as
            ``sink:4+1020``, the name of one that another package adds with an entry point of ``longlens.caches``, or a
            `longlens.models.caches.CachePolicy`. Long contexts are run through its cache in chunks, short contexts
            without it. None is a single pass without a cache.
        cache_chunk: Tokens per chunk, or tokens of the tail. Default: 256.
        cache_protocol: ``stream`` (default) or ``prefill+tail``; see `longlens.models.caches.CacheUse`.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``. ``auto`` is bfloat16 on a GPU that supports it and
            float32 elsewhere. Key tokens are selected by differences of a few nats; bfloat16 errors are some tenths.
        device: ``auto`` is the first GPU, or the CPU if there is none.
        device_map: A device map of transformers, such as ``auto``, to distribute a model over devices; replaces
            ``device``.
        attention: ``attn_implementation`` of transformers. Default: that of transformers.
        batch_tokens: Maximum tokens per batch, padding included. Default: 1,024 on a CPU and 32,768 on a GPU.
        tensor_parallel: Number of GPUs that share each layer of the model, for vllm.
        trust_remote_code: Allow custom code from the model repository; otherwise such models are rejected.
        allow_pickle: Allow ``.bin`` weights, which can execute code; otherwise only safetensors and GGUF.

    Raises:
        UserError: The model, engine or policy is unknown, the model is not causal, or settings are unsupported.
    """
    loading = Loading(
        dtype=dtype,
        device=device,
        device_map=device_map,  # type: ignore[arg-type]  # on the command line a string
        attention=attention,
        batch_tokens=batch_tokens,
        tensor_parallel=tensor_parallel,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )
    settings = Engine(
        engine=engine,
        tokenizer=tokenizer,
        concurrency=concurrency,
        max_model_len=max_model_len,
        cache=cache if cache is None or isinstance(cache, str) else cache.name,
        cache_chunk=cache_chunk,
        cache_protocol=cache_protocol,
    )
    kind = engine_name(name, settings)
    check_taken(kind, loading, settings)
    if kind != TRANSFORMERS:
        return _load_engine(name, kind, loading, settings)
    return load_transformers(name, loading, tokenizer=tokenizer, cache=_cache_use(settings, cache))


def _load_engine(name: str, kind: str, loading: Loading, engine: Engine) -> Scorer:
    """The scorer of an engine other than transformers: an engine of longlens, which is probed, or a plugin's."""
    expected = "a function (name, loading, engine) that makes a scorer"
    make = load_plugin("longlens.scorers", kind, own=OWN, is_kind=callable, expected=expected)
    if kind in OWN:
        make = OWN[kind].load()
    if make is None:
        known = ", ".join([*OWN, *list_plugins("longlens.scorers")])
        raise UserError(f"`engine` is {shown(kind)}; expected one of {known}, or install the plugin that provides it")
    if any(value is not None for value in (engine.cache, engine.cache_chunk, engine.cache_protocol)):
        raise UserError(f"`cache`, `cache_chunk` and `cache_protocol` are for `engine={TRANSFORMERS}`: remove them")
    with library_errors(
        f"the engine {shown(kind)} cannot load {shown(name)}", "check the name, or ask the maintainers of the plugin"
    ):
        scorer: Scorer = make(name, loading, engine)
        if kind in OWN:
            scorer.probe()  # type: ignore[attr-defined]  # an EngineScorer, whose module imports tokenizers
    wrong = [part for part in ("info", "encode", "logprobs") if not hasattr(scorer, part)]
    if wrong:
        raise UserError(f"`engine` {shown(kind)} makes {type(scorer).__name__}, which has no {wrong[0]}: fix it")
    return scorer


def _load_tokenizer(name: str, loading: Loading, tokenizer: Any) -> Any:
    """The tokenizer that is passed, as an object or by name, else that of the model."""
    if tokenizer is not None and not isinstance(tokenizer, str):
        return tokenizer
    return load_tokenizer(name if tokenizer is None else tokenizer, trust_remote_code=loading.trust_remote_code)


def _cache_use(engine: Engine, policy: str | CachePolicy | None = None) -> CacheUse | None:
    """The requested cache use; a policy that is passed as an object replaces the one named in the settings."""
    if (engine.cache, engine.cache_chunk, engine.cache_protocol) == (None, None, None):
        return None
    from longlens.models.policies import make_cache_use

    return make_cache_use(policy or engine.cache, engine.cache_chunk, engine.cache_protocol)


def load_transformers(
    name: str,
    loading: Loading | None = None,
    *,
    tokenizer: Any = None,
    cache: CacheUse | None = None,
) -> TransformersScorer:
    """Loads a transformers model for scoring.

    Args:
        name: Name or path of the model.
        loading: Loading settings.
        tokenizer: The model's tokenizer as an object, Hub id or directory; by default found by the model's name.
        cache: Policy of the KV cache, and how it is fed.

    Raises:
        UserError: The model or policy does not exist, the model is not causal, or it cannot be loaded with these
            settings.
    """
    loading, source = loading or Loading(), resolve(name)
    check_folder(source)
    check_hub(source)  # before torch is imported
    checkpoint = Checkpoint(source, loading)
    _ = checkpoint.plan  # may reject the model before the tokenizer is loaded
    tokenizer = _load_tokenizer(name, loading, tokenizer)
    return _load_checkpoint(checkpoint, tokenizer, cache=cache, team=Team())


def _load_checkpoint(
    checkpoint: Checkpoint,
    tokenizer: Any,
    *,
    cache: CacheUse | None,
    team: Team,
    statistics: Sequence[Statistic] = (),
    reference: Distributions | None = None,
) -> TransformersScorer:
    source, loading = checkpoint.source, checkpoint.loading
    if (loading.tensor_parallel or 1) > team.size:
        raise UserError(
            "`tensor_parallel` of transformers is for longlens score under torchrun: use "
            "`device_map=auto`, or `engine=vllm`"
        )
    check_hub(source)  # before torch is imported
    from longlens.scoring.transformers import TransformersScorer

    plan = checkpoint.plan
    make: Callable[..., TransformersScorer] = TransformersScorer
    if team.size > 1:
        from longlens.scoring.tensor_parallel import TeamScorer

        team.join()
        make = functools.partial(TeamScorer, team)
    with exchanging():
        model, loading_info = checkpoint.load()
    expected = "longlens needs a causal language model with its vocabulary head"
    check_loading_info(source.name, model, loading_info, expected)
    with exchanging(), loading_errors(source, "model"):  # the constructor runs the model once
        return make(
            model,
            tokenizer,
            name=source.name,
            source=source.note,
            weights_sha256=hash_files(source),
            quantization=plan.note,
            batch_tokens=loading.batch_tokens,
            cache=cache,
            statistics=statistics,
            reference=reference,
        )
