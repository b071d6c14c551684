"""Lists the engines by name, each a function ``(name, loading, engine) -> Scorer``. Imports no heavy package.

Other packages add engines of the same signature with an entry point of ``longlens.scorers``. The engines of longlens
are in `OWN`, so they are found without installed metadata, for example in a source tree.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import MISSING, dataclass, fields, replace
from importlib import import_module
from typing import Any

from longlens.errors import UserError
from longlens.settings.options import Engine, Loading

TRANSFORMERS = "transformers"
"""Default engine of a model that is not a server."""
WITH_LOGITS = ("transformers", "llama-cpp")
"""Engines whose scorers compute logits over the whole vocabulary, see `longlens.scoring.scorer.Distributions`."""
SERVER = "openai"
"""Default engine of a model that is a URL."""


@dataclass(frozen=True, kw_only=True)
class OwnEngine:
    """An engine of longlens.

    Attributes:
        takes: Fields of `Loading` and `Engine` that have an effect. Setting any other field is an error.
        function: ``MODULE:FUNCTION`` that makes the scorer, ``(name, loading, engine) -> Scorer``. Empty for
            transformers, whose model files are examined before they are loaded.
        is_server: Whether its models are URLs, ``http://HOST:PORT/v1#NAME``.
    """

    takes: frozenset[str]
    function: str = ""
    is_server: bool = False

    def load(self) -> Callable[[str, Loading, Engine], Any]:
        """Imports and returns the function."""
        module, _, name = self.function.partition(":")
        function: Callable[[str, Loading, Engine], Any] = getattr(import_module(module), name)
        return function


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


OWN = {
    TRANSFORMERS: OwnEngine(
        takes=_names(
            "dtype device device_map attention batch_tokens tensor_parallel trust_remote_code allow_pickle tokenizer "
            "cache cache_chunk cache_protocol"
        )
    ),
    SERVER: OwnEngine(
        takes=_names("trust_remote_code tokenizer concurrency max_model_len"),
        function="longlens.engines.openai:load",
        is_server=True,
    ),
    "sglang": OwnEngine(
        takes=_names("trust_remote_code tokenizer concurrency max_model_len"),
        function="longlens.engines.sglang:load",
        is_server=True,
    ),
    "vllm": OwnEngine(
        takes=_names("dtype batch_tokens tensor_parallel trust_remote_code tokenizer max_model_len"),
        function="longlens.engines.vllm:load",
    ),
    "llama-cpp": OwnEngine(
        takes=_names("dtype device batch_tokens trust_remote_code tokenizer max_model_len"),
        function="longlens.engines.llama_cpp:load",
    ),
}


def is_url(name: str) -> bool:
    """Whether the name of a model is a URL, which means that a server runs the model."""
    return name.lower().startswith(("http://", "https://"))


def engine_name(name: str, engine: Engine) -> str:
    """The engine that runs a model: the engine that is set, else `SERVER` for a URL and `TRANSFORMERS` for other names.

    Raises:
        UserError: The engine is for servers and the name is not a URL, or reversed.
    """
    kind = engine.engine or (SERVER if is_url(name) else TRANSFORMERS)
    own = OWN.get(kind)
    if own is not None and own.is_server != is_url(name):
        servers = " or ".join(f"`engine={name}`" for name, other in OWN.items() if other.is_server)
        if own.is_server:
            raise UserError(f"`engine={kind}` is for a server: pass `model=http://HOST:PORT/v1#NAME`")
        raise UserError(f"`engine={kind}` loads a model into this process, but the model is a URL: use {servers}")
    return kind


def engine_for(name: str, engine: Engine, *, kind: str | None = None, tokenizer: Any = None) -> Engine:
    """Engine settings for a second model, derived from those of a first one: the same engine if it can run that model.

    Args:
        name: The second model.
        engine: Settings of the first model. Its tokenizer is not used for the second.
        kind: Engine of the second model, if it is set.
        tokenizer: Tokenizer of the second model, if it is set.
    """
    own = OWN.get(engine.engine or "")
    fits = engine.engine is not None and (own is None or own.is_server == is_url(name))
    return replace(engine, engine=kind or (engine.engine if fits else None), tokenizer=tokenizer)


def check_taken(kind: str, loading: Loading, engine: Engine) -> None:
    """Checks that an engine of longlens uses every setting that is set.

    Raises:
        UserError: A setting would have no effect with this engine.
    """
    given = sorted(_given(loading) | _given(engine)) if kind in OWN else []
    idle = [f"`{name}`" for name in given if name not in OWN[kind].takes]
    if idle:
        raise UserError(f"{', '.join(idle)} would have no effect with `engine={kind}`: remove {_it(idle)}")


def share(models: Collection[tuple[str, Loading, Engine]]) -> list[tuple[Loading, Engine]]:
    """Splits settings that were set once for several models: each model receives those that its engine accepts.

    For example, ``dtype`` applies to the local model if the other model is a server.

    Args:
        models: Name, loading and engine of each model.

    Raises:
        UserError: No engine accepts one of the settings.
    """
    kinds = [engine_name(name, engine) for name, _, engine in models]
    takes = [OWN[kind].takes if kind in OWN else None for kind in kinds]
    parts = []
    for kind, own, (_, loading, engine) in zip(kinds, takes, models, strict=True):
        others = [other for other in takes if other is not own]
        idle = {
            name
            for name in _given(loading) | _given(engine)
            if own is not None and name not in own and any(other is None or name in other for other in others)
        }
        loading, engine = (_without(group, idle) for group in (loading, engine))
        check_taken(kind, loading, engine)
        parts.append((loading, engine))
    return parts


def _given(group: Loading | Engine) -> set[str]:
    """Fields that differ from their defaults, except the name of the engine."""
    defaults = {field.name: field.default for field in fields(group)}
    return {name for name, default in defaults.items() if getattr(group, name) != default} - {"engine"}


def _without(group: Any, names: Collection[str]) -> Any:
    changes = {field.name: field.default for field in fields(group) if field.name in names}
    assert MISSING not in changes.values()
    return replace(group, **changes)


def _it(names: Collection[str]) -> str:
    return "it" if len(names) == 1 else "them"
