"""What a benchmark asks of a model, and what it hears: plain data, whichever engine answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from longlens.errors import UserError

HF = "hf"
SECRET = ("auth_token", "header", "api_key", "hf_token")
"""Arguments of a backend that are never written down."""


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Which model answers, and how it is run.

    Attributes:
        model: As in `longlens.load_scorer`, or a server as ``http://HOST:PORT/v1#NAME``.
        backend: lm-evaluation-harness's name, such as ``hf``, ``vllm``, ``sglang``, ``local-completions``,
            ``local-chat-completions``; empty is ``hf``, or ``local-completions`` for a server.
        arguments: More arguments of the backend.
        tokenizer: Whose tokenizer counts and, for a server, encodes; the model's own unless given.
        dtype: As in `longlens.load_scorer`.
        device: As there.
        device_map: As there.
        attention: As there.
        batch_size: Prompts at a time, or ``auto``.
        max_length: Tokens that prompt and answer may have; what the model was made for unless given.
        trust_remote_code: As in `longlens.load_scorer`.
        allow_pickle: As there.
    """

    model: str
    backend: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    device_map: str | None = None
    attention: str | None = None
    batch_size: int | str = 1
    max_length: int | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        """Checks the values and fills in the backend."""
        if self.max_length is not None and self.max_length < 1:
            raise UserError(f"--max-length is {self.max_length}; expected at least 1, or leave it out")
        if self.batch_size != "auto" and (not isinstance(self.batch_size, int) or self.batch_size < 1):
            raise UserError(f"--batch-size is {self.batch_size!r}; expected a number from 1 on, or auto")
        if not self.backend:
            object.__setattr__(self, "backend", "local-completions" if self.server else HF)
        if self.backend == HF and self.server:
            raise UserError(f"{self.model} is a server: leave --backend out, or give local-chat-completions")

    @property
    def server(self) -> Server | None:
        """The server, if the model is one.

        Raises:
            UserError: Its address names no model.
        """
        if not self.model.startswith(("http://", "https://")):
            return None
        address, _, name = self.model.partition("#")
        if not name or not urlsplit(address).netloc:
            raise UserError(f"{self.model}: expected a server and its model, such as http://localhost:8000/v1#NAME")
        return Server(address.rstrip("/"), name)

    @property
    def is_chat(self) -> bool:
        """Whether the engine takes messages and puts them into a template itself."""
        return self.backend.endswith("chat-completions")


class Server(NamedTuple):
    """Where a server is, and which of its models is meant."""

    address: str
    name: str


class Texts(NamedTuple):
    """What is known of a model without its weights.

    Attributes:
        tokenizer: Of transformers.
        max_length: Tokens that prompt and answer may have.
    """

    tokenizer: Any
    max_length: int


def open_texts(settings: EngineSettings) -> Texts:
    """The tokenizer of a model, and how long its texts may be.

    Raises:
        UserError: There is none, or nothing says how long.
    """
    from longlens.models import check_folder, load_tokenizer, max_positions, resolve

    name = settings.tokenizer or (None if settings.server else settings.model)
    if name is None:
        raise UserError(f"{settings.model}: a server does not say how it counts: name its model with --tokenizer")
    if name == settings.model:
        check_folder(resolve(name))
    tokenizer = load_tokenizer(name, trust_remote_code=settings.trust_remote_code)
    positions = None
    if settings.max_length is None and not settings.server:
        positions = max_positions(settings.model, trust_remote_code=settings.trust_remote_code)
    max_length = positions if settings.max_length is None else settings.max_length
    if max_length is None:
        raise UserError(f"{settings.model} does not say how many tokens it takes: pass --max-length")
    return Texts(tokenizer, max_length)


class Request(NamedTuple):
    """A question to a model.

    Attributes:
        key: Names it.
        prompt: The exact text; for a chat engine the messages, as JSON.
        continuation: Is to be scored; None asks for an answer.
        max_new_tokens: Tokens that an answer may have.
        stop: Where an answer ends.
    """

    key: str
    prompt: str
    continuation: str | None = None
    max_new_tokens: int = 0
    stop: tuple[str, ...] = ()


class Answer(NamedTuple):
    """What a model said.

    Attributes:
        key: Of the request.
        text: The answer, without the stop; None where a continuation was scored.
        is_truncated: Whether the answer ended for its number of tokens, and neither by itself nor by a stop.
        logprob: Of the continuation, in nats.
        is_greedy: Whether greedy decoding would have written the continuation.
    """

    key: str
    text: str | None = None
    is_truncated: bool | None = None
    logprob: float | None = None
    is_greedy: bool | None = None


class Engine(Protocol):
    """What runs a model.

    Attributes:
        info: All that is recorded of it.
    """

    info: dict[str, Any]

    def answer(self, requests: Sequence[Request], take: Callable[[Answer], None]) -> None:
        """Answers requests in any order; each answer is taken as soon as it is there.

        Raises:
            UserError: A prompt is too long, or the border of prompt and continuation is inside of a token.
        """


def prompt_tokens(tokenizer: Any, prompt: str) -> list[int]:
    """The tokens of a prompt, with the special ones that the tokenizer puts around a text."""
    ids: list[int] = tokenizer(prompt, verbose=False)["input_ids"]
    return ids


def own_bos(tokenizer: Any) -> str:
    """The BOS that the tokenizer itself puts before a text; empty where it puts none."""
    ids = prompt_tokens(tokenizer, "a")
    bos = getattr(tokenizer, "bos_token_id", None)
    return str(tokenizer.bos_token) if bos is not None and ids[:1] == [bos] else ""


def check_border(tokenizer: Any, key: str, prompt: str, before: Sequence[int], continuation: str) -> None:
    """Checks that no token reaches from the prompt into the continuation.

    Args:
        tokenizer: Of the model.
        key: For the message.
        prompt: The prompt.
        before: Its tokens.
        continuation: What comes next.

    Raises:
        UserError: One does, so that no greedy decoding of the prompt writes this continuation.
    """
    whole = prompt_tokens(tokenizer, prompt + continuation)
    if whole[: len(before)] != list(before) or len(whole) <= len(before):
        raise UserError(
            f"{key}: {continuation[:20]!r} merges with the end of the prompt {prompt[-20:]!r} into one token, so that "
            "it cannot be scored as what comes next: use --mode generate for this task and tokenizer"
        )
