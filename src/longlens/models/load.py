"""A model loaded by name to score with, and what says before that whether settings and documents fit it."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longlens.engines import OWN, TRANSFORMERS, check_taken, engine_name
from longlens.errors import LonglensWarning, UserError, library_errors, shown
from longlens.models.files import (
    config_in_force,
    find_adapter,
    hash_files,
    load_config,
    load_tokenizer,
    loading_errors,
    model_max_length,
)
from longlens.models.quantized import Quantization, dtype_note, plan_quantization
from longlens.models.resolve import Source, check_folder, check_hub, resolve
from longlens.models.tensor_parallel import Team, check_model, exchanging, sharing
from longlens.plugins import list_plugins, load_plugin
from longlens.runs.identity import ModelIdentity, functional_config
from longlens.settings.options import Engine, Loading

if TYPE_CHECKING:
    import torch

    from longlens.corpus import Document
    from longlens.models.caches import CachePolicy
    from longlens.scoring.scorer import Scorer, ScorerInfo
    from longlens.scoring.transformers import TransformersScorer
    from longlens.tokenization import Encoded


class UnloadedModel:
    """A model without its weights: what says, before they are loaded, whether settings and documents fit it.

    A model of another engine than transformers is loaded at once, since the engine alone knows its files.

    Attributes:
        info: What a scorer of it says; what only the weights say is empty.
        team: The processes that share the model.
    """

    def __init__(
        self, name: str, loading: Loading | None = None, engine: Engine | None = None, team: Team | None = None
    ) -> None:
        """Loads the tokenizer and the configuration.

        Args:
            name: Name or path of the model.
            loading: How it is loaded.
            engine: What runs it.
            team: Processes that share the model; those that torchrun started unless given.

        Raises:
            UserError: No such model, engine or cache policy; or torchrun did not start a team.
        """
        from longlens.scoring.scorer import ScorerInfo
        from longlens.tokenization import TextEncoder

        self._loading, self._engine = loading or Loading(), engine or Engine()
        self._loaded: Scorer | None = None
        kind = engine_name(name, self._engine)
        check_taken(kind, self._loading, self._engine)
        self.team = team or Team.of(self._loading, kind)
        if kind != TRANSFORMERS:
            self._loaded = _load_engine(name, kind, self._loading, self._engine)
            self.info = self._loaded.info
            return
        source = resolve(name)
        check_folder(source)
        self._cache = _load_cache(self._engine.cache, self._engine.cache_chunk)
        trust = self._loading.trust_remote_code
        config = load_config(source, trust_remote_code=trust)
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
            **unknown,
        )

    def identify(self) -> ScorerInfo | None:
        """`info` with all that tells the model from others; None while its weights are not on this machine."""
        if self._loaded is not None:
            return self.info
        identity = identify(self.info.name, self._loading, tokenizer=self._tokenizer)
        if identity is None:
            return None
        from longlens.models.caches import cache_identity

        cache = cache_identity(self._cache, self._engine.cache_chunk)
        return replace(self.info, **vars(identity) | {"cache": cache})

    def encode(self, document: Document) -> Encoded:
        """Tokens of the document's text and their spans; no special tokens are added."""
        return self._encoder.encode(document.text) if self._loaded is None else self._loaded.encode(document)

    def load(self) -> Scorer:
        """The model with its weights.

        Raises:
            UserError: Not a causal language model, or it cannot be loaded as asked.
        """
        if self._loaded is not None:
            return self._loaded
        chunk = self._engine.cache_chunk
        return load_transformers(
            self.info.name,
            self._loading,
            tokenizer=self._tokenizer,
            cache=self._cache,
            cache_chunk=chunk,
            team=self.team,
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
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | dict[str, Any] | None = None,
    attention: str | None = None,
    batch_tokens: int | None = None,
    tensor_parallel: int | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Scorer:
    """Loads a model to score with.

    Args:
        name: Hub id, local folder, ``.gguf`` file, ``smollm2`` or ``gemma3-270m``; a server and the name of its model,
            ``http://HOST:PORT/v1#NAME``; other engines may take other names.
        engine: ``transformers``, ``vllm``, ``llama-cpp``, ``openai``, ``sglang``, or a name that another package adds
            by an entry point of ``longlens.scorers``: a function ``(name, loading, engine) -> Scorer`` of the name, a
            `longlens.settings.options.Loading` and a `longlens.settings.options.Engine`. Unless given, ``openai`` for
            a URL and ``transformers`` otherwise.
        tokenizer: The model's tokenizer: loaded, or its hub id or folder; found by the model's name unless given.
        concurrency: Requests to a server at a time; 8 unless given.
        max_model_len: Tokens that the engine takes (vLLM's ``max_model_len``, llama.cpp's ``n_ctx``).
        cache: Policy of the key-value cache, for transformers: ``full``, the name of one that another package adds by
            an entry point of ``longlens.caches``, or a `longlens.models.caches.CachePolicy`. Long contexts go through
            its cache in chunks, short ones do without. None is a single pass.
        cache_chunk: Tokens that are fed to that cache at a time; 256 unless given.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``. ``auto`` is bfloat16 on a GPU that has it and
            float32 elsewhere; key tokens are decided by differences of a few nats, of which bfloat16 loses some tenths.
        device: ``auto`` is the first GPU, else the CPU.
        device_map: Of transformers, such as ``auto``, to spread a model over devices; instead of ``device``.
        attention: ``attn_implementation`` of transformers; its own choice unless given.
        batch_tokens: Tokens of a batch, padding included; 1,024 on a CPU and 32,768 on a GPU unless given.
        tensor_parallel: GPUs that share each layer of the model, for vllm.
        trust_remote_code: Runs code that comes with the model. Off: such a model is refused.
        allow_pickle: Reads ``.bin`` weights, which are pickles and can run code. Off: safetensors and GGUF alone.

    Raises:
        UserError: No such model, engine or policy, not a causal language model, or it cannot be loaded as asked.
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
    )
    kind = engine_name(name, settings)
    check_taken(kind, loading, settings)
    if kind != TRANSFORMERS:
        return _load_engine(name, kind, loading, settings)
    return load_transformers(name, loading, tokenizer=tokenizer, cache=cache, cache_chunk=cache_chunk)


def _load_engine(name: str, kind: str, loading: Loading, engine: Engine) -> Scorer:
    """The scorer of another engine than transformers: one of ours, which is probed, or another package's."""
    expected = "a function (name, loading, engine) that makes a scorer"
    make = load_plugin("longlens.scorers", kind, own=OWN, is_kind=callable, expected=expected)
    if kind in OWN:
        make = OWN[kind].load()
    if make is None:
        known = ", ".join([*OWN, *list_plugins("longlens.scorers")])
        raise UserError(f"`engine` is {shown(kind)}; expected one of {known}, or install the package that adds it")
    if engine.cache is not None or engine.cache_chunk is not None:
        raise UserError(f"`cache` and `cache_chunk` are for `engine={TRANSFORMERS}`: leave them out")
    with library_errors(f"the engine {shown(kind)} cannot load {shown(name)}", "check the name, or ask its makers"):
        scorer: Scorer = make(name, loading, engine)
        if kind in OWN:
            scorer.probe()  # type: ignore[attr-defined]  # an EngineScorer, whose module imports tokenizers
    wrong = [part for part in ("info", "encode", "logprobs") if not hasattr(scorer, part)]
    if wrong:
        raise UserError(f"`engine` {shown(kind)} makes {type(scorer).__name__}, which has no {wrong[0]}: mend it")
    return scorer


def _load_tokenizer(name: str, loading: Loading, tokenizer: Any) -> Any:
    """The tokenizer that is given, loaded or by name, else the model's."""
    if tokenizer is not None and not isinstance(tokenizer, str):
        return tokenizer
    return load_tokenizer(name if tokenizer is None else tokenizer, trust_remote_code=loading.trust_remote_code)


def _load_cache(cache: str | CachePolicy | None, chunk: int | None) -> CachePolicy | None:
    if cache is None and chunk is None:
        return None
    from longlens.models.caches import check_cache_settings, load_cache

    policy = load_cache(cache) if isinstance(cache, str) else cache
    check_cache_settings(policy, chunk)
    return policy


def load_transformers(
    name: str,
    loading: Loading | None = None,
    *,
    tokenizer: Any = None,
    cache: str | CachePolicy | None = None,
    cache_chunk: int | None = None,
    team: Team | None = None,
) -> TransformersScorer:
    """Loads a model of transformers to score with.

    Args:
        name: Name or path of the model.
        loading: How it is loaded.
        tokenizer: The model's tokenizer: loaded, or its hub id or folder; found by the model's name unless given.
        cache: Policy of the key-value cache.
        cache_chunk: Tokens that are fed to it at a time.
        team: Processes that share the model, where there are any.

    Raises:
        UserError: No such model or policy, not a causal language model, or it cannot be loaded as asked.
    """
    loading = loading or Loading()
    source = resolve(name)
    check_folder(source)
    check_hub(source)  # before torch is imported
    from longlens.scoring.transformers import TransformersScorer

    plan = _plan(source, loading)
    if (loading.tensor_parallel or 1) > 1 and (team is None or team.size == 1):
        raise UserError(
            "`tensor_parallel` of transformers is for longlens score under torchrun: use "
            "`device_map=auto`, or `engine=vllm`"
        )
    policy = _load_cache(cache, cache_chunk)
    tokenizer = _load_tokenizer(name, loading, tokenizer)
    make: Callable[..., TransformersScorer] = TransformersScorer
    if team is not None and team.size > 1:
        from longlens.scoring.tensor_parallel import TeamScorer

        team.join()
        make = functools.partial(TeamScorer, team)
    with exchanging():
        model, loading_info = load_weights(source, loading)
    check_loading_info(name, model, loading_info, "longlens needs a causal language model with its vocabulary head")
    with exchanging(), loading_errors(source, "model"):  # it runs the model once
        return make(
            model,
            tokenizer,
            name=name,
            source=source.note,
            weights_sha256=hash_files(source),
            quantization=plan.note,
            batch_tokens=loading.batch_tokens,
            cache=policy,
            cache_chunk=cache_chunk,
        )


def identify(name: str, loading: Loading | None = None, *, tokenizer: Any = None) -> ModelIdentity | None:
    """Which model is loaded with these settings, its weights not being read; None while they are not on this machine.

    Args:
        name: Hub id, folder, ``.gguf`` file or embedded model.
        loading: How it is loaded.
        tokenizer: The model's, if it is loaded already.

    Raises:
        UserError: A local model has no configuration or no weights.
    """
    from longlens.tokenization import TextEncoder

    loading = loading or Loading()
    trust, source = loading.trust_remote_code, resolve(name)
    _resolve_dtype(loading)
    adapter = find_adapter(source)
    try:
        encoder = TextEncoder(load_tokenizer(name, trust_remote_code=trust) if tokenizer is None else tokenizer)
        config = load_config(source, trust_remote_code=trust)
        plan = _plan(source, loading, config)
        return ModelIdentity(
            weights_sha256=hash_files(source),
            config=functional_config(config_in_force(config), [] if adapter is None else [adapter.config]),
            tokenizer_sha256=encoder.sha256,
            bos_token_id=encoder.bos_token_id,
            own_prefix=encoder.own_prefix,
            dtype=dtype_note(plan.dtype, plan.note),
        )
    except FileNotFoundError:
        return None
    except UserError:
        if Path(source.path).is_dir():
            raise
        return None


def load_weights(
    source: Source, loading: Loading, *, config: Any = None, loader: Any = None
) -> tuple[Any, dict[str, Any]]:
    """A model of transformers with its weights, and what transformers says of the loading.

    Args:
        source: Where it is.
        loading: How; the model is put on ``device`` unless there is a ``device_map``.
        config: Instead of the model's own.
        loader: A function as ``from_pretrained``; a causal language model is loaded unless given.

    Raises:
        UserError: It cannot be loaded.
    """
    from transformers import GgufConfig

    from longlens.rope.load import load_model

    plan = _plan(source, loading, config)
    options: dict[str, Any] = {"trust_remote_code": loading.trust_remote_code, "dtype": plan.dtype}
    if source.gguf is not None:
        options |= {"gguf_file": source.gguf, "quantization_config": GgufConfig(dequantize=True)}
    else:
        options["use_safetensors"] = None if loading.allow_pickle else True
    # Some methods put weights in their place and form while they are loaded, and refuse to be moved afterwards.
    is_shared = (loading.tensor_parallel or 1) > 1
    device_map = _device_map(loading) if plan.note and not is_shared else loading.device_map
    chosen = {"config": config, "attn_implementation": loading.attention, "device_map": device_map}
    options |= {name: value for name, value in chosen.items() if value is not None}
    shared: dict[str, Any] = {}
    if is_shared:
        shared = sharing(load_config(source, trust_remote_code=loading.trust_remote_code), loading)
    with loading_errors(source, "model"):
        options |= shared
        model, loading_info = (loader or load_model)(source.path, output_loading_info=True, **options)
        if device_map is None and not shared:
            model = model.to(resolve_device(loading.device))
    return model, loading_info


def _plan(source: Source, loading: Loading, config: Any = None) -> Quantization:
    """The dtype that a model is loaded in, and how it is quantised, if it is.

    Raises:
        UserError: Neither can be had here.
    """
    plain = Quantization("", _resolve_dtype(loading))
    if source.gguf is not None:
        return plain
    if config is None:
        config = load_config(source, trust_remote_code=loading.trust_remote_code)
    is_asked, device_map = loading.dtype != "auto", _device_map(loading)
    return plan_quantization(source.name, config, plain.dtype, device_map, is_asked=is_asked) or plain


def _device_map(loading: Loading) -> Any:
    return loading.device_map or {"": resolve_device(loading.device)}


def check_loading_info(name: str, model: Any, loading_info: Mapping[str, Any], step: str) -> None:
    """Holds a model's files against the model that its configuration describes.

    Args:
        name: Name or path of the model.
        model: What was loaded.
        loading_info: What transformers says of the loading.
        step: What to do about missing weights, for the message.

    Raises:
        UserError: Weights are missing, which transformers fills with random ones.

    Warns:
        LonglensWarning: There are weights that the model does not use, as those of layers beyond ``num_hidden_layers``.
    """
    missing, unused = (sorted(loading_info.get(key, ())) for key in ("missing_keys", "unexpected_keys"))
    if model.base_model_prefix == "language_model" or model.config.base_config_key == "text_config":
        # Of a multimodal model, whose other parts are not loaded.
        unused = [weight for weight in unused if not {"language_model", "text_model"}.isdisjoint(weight.split("."))]
    if missing:
        raise UserError(
            f"{name} lacks weights of {type(model).__name__}, such as {missing[0]!r} ({len(missing)} in all), which "
            f"would be random: {step}"
        )
    if unused:
        warnings.warn(
            f"{shown(name)} has weights that {type(model).__name__} does not use, such as {shown(unused[0])} "
            f"({len(unused)} in all): if layers of the model are among them, its config.json is another model's",
            LonglensWarning,
            stacklevel=3,
        )


def resolve_device(device: str) -> torch.device:
    """Where a model is put: ``auto`` is the first GPU, that of this process where torchrun started several, or the CPU.

    Raises:
        UserError: It cannot be used.
    """
    import torch

    if device == "auto":
        gpu = f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"
        return torch.device(gpu if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=device).cpu()  # only use shows whether it can be used
    except (RuntimeError, AssertionError) as error:  # the latter where torch is built without it
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"`device` is {device!r}, which cannot be used: {reason}. Use auto, cpu or cuda") from error
    return torch.device(device)


def _resolve_dtype(loading: Loading) -> torch.dtype:
    """Type of the weights: ``auto`` is bfloat16 on a GPU that has it, else float32.

    Raises:
        UserError: Neither that nor one of ``float32``, ``bfloat16`` and ``float16``; or no such device.
    """
    import torch

    device = resolve_device(loading.device)
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if loading.dtype == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    if loading.dtype not in known:
        raise UserError(f"`dtype` is {loading.dtype!r}; expected auto, {', '.join(known)}")
    return known[loading.dtype]
