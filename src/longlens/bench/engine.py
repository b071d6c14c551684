"""Defines requests to a model and its answers as plain data, independent of the engine that runs the model."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote, urlsplit

from longlens.engines import is_url
from longlens.engines.address import KEY, OPENAI_KEY, Server, find_key, read_key, read_server
from longlens.errors import UserError, shown_value
from longlens.runs.identity import ModelIdentity
from longlens.settings.options import Loading

_LOGGER = logging.getLogger(__name__)
HF = "hf"
_HOW_IT_RUNS = """
num_concurrent max_retries timeout batch_size max_batch_size logits_cache tokenized_requests tensor_parallel_size
data_parallel_size pipeline_parallel_size tp_size dp_size max_num_seqs gpu_memory_utilization mem_fraction_static
swap_space enforce_eager enable_prefix_caching max_num_batched_tokens enable_chunked_prefill device parallelize
distributed_executor_backend
"""
_WHAT_IT_COMPUTES = """
dtype quantization kv_cache_dtype mixed_precision_dtype softmax_dtype load_in_4bit load_in_8bit revision subfolder peft
lora_local_path seed max_model_len max_length max_gen_toks truncation add_bos_token prefix_token_id eos_string
repetition_penalty enable_thinking think_end_token reasoning_effort trust_remote_code tokenizer_backend
"""
RECORDED_ARGUMENTS = frozenset((_HOW_IT_RUNS + _WHAT_IT_COMPUTES).split())
"""Backend arguments that are recorded if they are numbers, texts or booleans; other arguments may be secrets."""
NOT_RECORDED = "(not recorded)"


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """The evaluated model, and how it is run.

    Attributes:
        model: Name or path of the model, or a server as ``http://HOST:PORT/v1#NAME``.
        backend: Model type of lm-evaluation-harness, such as ``hf``, ``vllm``, ``sglang``, ``local-completions`` or
            ``local-chat-completions``; if empty, ``hf``, or ``local-completions`` for a server.
        arguments: Additional arguments of the backend.
        tokenizer: Model whose tokenizer counts tokens and, for a server, encodes texts; the model's own by default.
        loading: How the model is loaded.
        batch_size: Number of prompts per batch, or ``auto``.
        max_length: Maximum tokens of prompt and answer; the model's maximum length by default.
        api_key_env: Environment variable with the key that is sent to the server; without it, the key is that of
            `longlens.engines.address.find_key`.
    """

    model: str
    backend: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    loading: Loading = field(default_factory=Loading)
    batch_size: int | str = 1
    max_length: int | None = None
    api_key_env: str | None = None

    def __post_init__(self) -> None:
        """Validates the values and sets the default backend."""
        if self.max_length is not None and self.max_length < 1:
            raise UserError(f"`max_length` is {self.max_length}; expected at least 1, or leave it out")
        if self.batch_size != "auto" and (not isinstance(self.batch_size, int) or self.batch_size < 1):
            raise UserError(f"`batch_size` is {shown_value(self.batch_size)}; expected a number of at least 1, or auto")
        if not self.backend:
            object.__setattr__(self, "backend", "local-completions" if self.server else HF)
        if self.backend == HF and self.server:
            raise UserError(f"{self.model} is a server: leave `backend` out, or use `backend=local-chat-completions`")
        if "base_url" in self.arguments:
            raise UserError("`arguments` has base_url: pass the server as `model=http://HOST:PORT/v1#NAME` instead")
        if self.api_key_env is not None and not (self.server and read_key(self.api_key_env)):
            what = "is not set in the environment" if self.server else "is for a server, and `model` is not a server"
            raise UserError(f"`api_key_env` {shown_value(self.api_key_env)} {what}: leave it out, or correct it")

    @property
    def server(self) -> Server | None:
        """The server; None if the model is not a server.

        Raises:
            UserError: The address contains no model name.
        """
        if not is_url(self.model):
            return None
        return read_server(self.model, secret="name the environment variable that holds the key as `api_key_env`")

    @property
    def api_key(self) -> str:
        """The key that is sent to the server; empty if none is sent.

        Raises:
            UserError: The key contains characters that no valid key has.
        """
        if self.api_key_env is not None:
            return read_key(self.api_key_env)
        return find_key(self.server) if self.server else ""

    def log_unsent_key(self) -> None:
        """Logs that the environment contains a key that is not sent to the server."""
        has_header = any(name in self.arguments for name in ("header", "auth_token"))
        if self.server and os.environ.get(OPENAI_KEY) and not (self.api_key or has_header):
            host = urlsplit(self.server.address).hostname
            _LOGGER.info(
                f"{OPENAI_KEY} is set and not sent to {host}: pass `api_key_env={OPENAI_KEY}` if it is for that server"
            )

    def recorded_arguments(self) -> dict[str, Any]:
        """The arguments that may be recorded, without secrets."""
        plain = (str, int, float, type(None))
        return {
            name: value if name in RECORDED_ARGUMENTS and isinstance(value, plain) else NOT_RECORDED
            for name, value in self.arguments.items()
        }

    def to_json(self) -> dict[str, Any]:
        """How the model is run, for the manifest, which records `recorded_arguments` and the limit separately."""
        loading = {name: value for name, value in asdict(self.loading).items() if name != "batch_tokens"}
        names = ("model", "backend", "tokenizer", "batch_size", "api_key_env")
        return {name: getattr(self, name) for name in names} | loading

    def redact(self, text: str) -> str:
        """Removes the secrets of these settings and of the environment from a text, such as a server's error."""
        secrets = {os.environ.get(name, "") for name in (KEY, OPENAI_KEY, "HF_TOKEN", self.api_key_env or KEY)}
        for name, value in self.arguments.items():
            secrets |= set() if name in RECORDED_ARGUMENTS else set(_strings(value))
        for secret in sorted(secrets, key=len, reverse=True):
            for form in {secret, quote(secret, safe="")} if len(secret) > 3 else ():
                text = text.replace(form, "***")
        return text

    @property
    def is_chat(self) -> bool:
        """Whether the engine accepts messages and applies the chat template itself."""
        return self.backend.endswith("chat-completions")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _strings(part)
    elif isinstance(value, str):
        yield value
        yield from value.split()  # such as KEY in "Bearer KEY"


class PromptLimit(NamedTuple):
    """Maximum tokens of a prompt and its answer, and the tokenizer that counts them.

    Attributes:
        tokenizer: A transformers tokenizer.
        max_length: Maximum tokens of prompt and answer.
    """

    tokenizer: Any
    max_length: int


def load_prompt_limit(settings: EngineSettings, lengths: Sequence[int] = ()) -> PromptLimit:
    """Loads the tokenizer and the maximum length of a model; the longest of the lengths if the model has no maximum.

    Args:
        settings: The model.
        lengths: Lengths of the samples in tokens, prompt and answer together.

    Raises:
        UserError: The tokenizer does not exist, or the maximum length is unknown.
    """
    from longlens.models import check_folder, load_max_length, load_tokenizer, resolve

    name = settings.tokenizer or (None if settings.server else settings.model)
    if name is None:
        raise UserError(f"{settings.model}: a server does not report its tokenizer: pass it as `tokenizer`")
    if name == settings.model:
        check_folder(resolve(name))
    tokenizer = load_tokenizer(name, trust_remote_code=settings.loading.trust_remote_code)
    positions = None
    if settings.max_length is None and not settings.server:
        positions = load_max_length(settings.model, trust_remote_code=settings.loading.trust_remote_code)
    max_length = positions if settings.max_length is None else settings.max_length
    if max_length is None and lengths:
        max_length = max(lengths)
        _LOGGER.info("%s states no maximum length: %s tokens are used", settings.model, max_length)
    if max_length is None:
        raise UserError(f"{settings.model} does not report its maximum length: pass `max_length`")
    return PromptLimit(tokenizer, max_length)


def describe(settings: EngineSettings, limit: PromptLimit) -> dict[str, Any] | None:
    """Returns the record of an engine before the model is loaded: enough to distinguish models.

    Returns None if it is not known yet, because the weights are not downloaded yet.

    Raises:
        UserError: A model directory has no weight files.
    """
    from longlens.models import identify, resolve
    from longlens.tokenization import TextEncoder

    loading = settings.loading
    identity, source = ModelIdentity(dtype=loading.dtype), settings.backend
    if settings.server:
        source = settings.server.address
    elif settings.backend == HF or Path(settings.model).is_dir():
        own = loading if settings.backend == HF else Loading(trust_remote_code=loading.trust_remote_code)
        found = identify(settings.model, own, tokenizer=limit.tokenizer)
        if found is None:
            return None
        if settings.backend == HF:
            identity, source = found, resolve(settings.model).note
        else:
            identity = replace(found, dtype=loading.dtype)
    info = {"model": settings.model, "backend": settings.backend, "source": source, **identity.to_json()}
    return info | {"tokenizer_sha256": TextEncoder(limit.tokenizer).sha256, "max_length": limit.max_length}


class ModelRequest(NamedTuple):
    """A request to a model: to generate an answer, or to score a continuation.

    Attributes:
        key: Identifies the request.
        prompt: The exact text; for a chat engine, the messages as JSON.
        continuation: Text to score; None to generate an answer.
        max_new_tokens: Maximum tokens of the answer.
        stop: Stop sequences of the answer.
        num_tokens: Number of tokens of prompt and continuation; None if they were not counted.
    """

    key: str
    prompt: str
    continuation: str | None = None
    max_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    num_tokens: int | None = None


class ModelAnswer(NamedTuple):
    """A model's answer.

    Attributes:
        key: Key of the request.
        text: The answer, without the stop sequence; None if a continuation was scored.
        is_truncated: Whether the answer ended at the token limit, not at an end token or a stop sequence.
        logprob: Log-probability of the continuation, in nats.
        is_greedy: Whether greedy decoding would generate the continuation.
    """

    key: str
    text: str | None = None
    is_truncated: bool | None = None
    logprob: float | None = None
    is_greedy: bool | None = None


class BenchEngine(Protocol):
    """Interface of an engine that runs a model.

    Attributes:
        info: The record of the engine.
    """

    info: dict[str, Any]

    def answer(self, requests: Sequence[ModelRequest], on_answer: Callable[[ModelAnswer], None]) -> None:
        """Answers requests in any order; each answer is passed on as soon as it is available.

        Raises:
            UserError: A prompt is too long, or the boundary of prompt and continuation is inside a token.
        """


def prompt_tokens(tokenizer: Any, prompt: str) -> list[int]:
    """Returns the tokens of a prompt, including the special tokens that the tokenizer adds."""
    ids: list[int] = tokenizer(prompt, verbose=False)["input_ids"]
    return ids


def check_border(tokenizer: Any, key: str, prompt: str, before: Sequence[int], continuation: str) -> int:
    """Checks that no token spans the boundary of prompt and continuation; returns the number of tokens of both.

    Args:
        tokenizer: Tokenizer of the model.
        key: Key of the request, for the message.
        prompt: The prompt.
        before: Tokens of the prompt.
        continuation: Text after the prompt.

    Raises:
        UserError: A token spans the boundary, so greedy decoding after the prompt cannot generate this continuation.
    """
    whole = prompt_tokens(tokenizer, prompt + continuation)
    if whole[: len(before)] != list(before) or len(whole) <= len(before):
        raise UserError(
            f"{key}: {continuation[:20]!r} merges with the end of the prompt {prompt[-20:]!r} into one token, so it "
            "cannot be scored as a continuation: use `mode=generate` for this task and tokenizer"
        )
    return len(whole)
