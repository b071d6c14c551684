"""Requests to a backend of lm-evaluation-harness, and its answers as they come."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from itertools import groupby
from typing import Any

from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.models import api_models

from longlens.bench.engine import Answer, EngineSettings, Request, Texts, prompt_tokens
from longlens.errors import UserError, one_line
from longlens.tokenization import TextEncoder, own_bos

PENALTY = "repetition_penalty"
NO_ANSWER = "\x00no answer"
# What stands for an answer that a server left out, which is the empty string otherwise, as if the model had said that.
api_models.LMEVAL_MODEL_NONE_ANSWER_PLACEHOLDER = NO_ANSWER
# It asks git for the commit of the current folder, which is not its own; git complains on stderr where there is none.
evaluator.get_git_commit_hash = lambda: None


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps lm-evaluation-harness's lines off stdout, which may be read by a program, and its hints off stderr."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        logger.setLevel(level)


class HarnessEngine:
    """A `longlens.bench.engine.Engine` of lm-evaluation-harness.

    Attributes:
        lm: Its backend.
        texts: What counts its tokens, and how many it takes.
        info: What is recorded.
    """

    def __init__(self, lm: Any, settings: EngineSettings, texts: Texts, described: Mapping[str, Any]) -> None:
        self.lm, self.texts = lm, texts
        self._settings = settings
        lm.adds_bos = bool(own_bos(texts.tokenizer))
        hashed = TextEncoder(texts.tokenizer).sha256
        self.info: dict[str, Any] = {
            "model": settings.model,
            "backend": settings.backend,
            **described,
            "tokenizer_sha256": hashed,
            "max_length": texts.max_length,
        }

    def answer(self, requests: Sequence[Request], take: Callable[[Answer], None]) -> None:
        """See `longlens.bench.engine.Engine`."""
        self._check(requests)
        self.lm.exact_pairs = True
        for (tokens, stop), group in groupby(sorted(requests, key=_kind), key=lambda r: (r.max_new_tokens, r.stop)):
            asked = list(group)
            if asked[0].continuation is None:
                self._generate(asked, tokens, stop, take)
            else:
                self._score(asked, take)

    def _check(self, requests: Iterable[Request]) -> None:
        for request in requests:
            counted = request.num_tokens
            if counted is None:
                text = request.prompt + (request.continuation or "")
                counted = len(prompt_tokens(self.texts.tokenizer, text))
            needed = counted + request.max_new_tokens
            if needed > self.texts.max_length:
                raise UserError(
                    f"{request.key} needs {needed:,} tokens and {self._settings.model} takes "
                    f"{self.texts.max_length:,}: use a shorter --length, another --overlong, or --max-length if the "
                    "model takes more"
                )

    @property
    def takes_penalty(self) -> bool:
        """Whether a repetition penalty can be switched off; a model's generation_config may ask for one.

        Servers that refuse what they do not know get none with ``repetition_penalty`` None among the arguments.
        """
        is_refused = self._settings.arguments.get(PENALTY, 1.0) is None
        return not is_refused and not self._settings.backend.startswith(("openai", "anthropic"))

    def _generate(
        self, requests: Sequence[Request], tokens: int, stop: tuple[str, ...], take: Callable[[Answer], None]
    ) -> None:
        options: dict[str, Any] = {"until": list(stop), "max_gen_toks": tokens, "do_sample": False}
        if self.takes_penalty:
            options[PENALTY] = 1.0
        same = _by_prompt(requests)

        def taken(key: str, text: Any, has_ended: bool | None) -> None:
            # Servers that keep reasoning apart leave out an answer whose tokens all went into it.
            said = "" if text == NO_ANSWER else str(text)
            is_truncated = text == NO_ANSWER or self._is_truncated(said, tokens, has_ended)
            for request in same[key]:
                take(Answer(request.key, text=said, is_truncated=is_truncated))

        sent = api_models.JsonChatStr if self._settings.is_chat else str
        self.ask("generate_until", {key: (sent(group[0].prompt), dict(options)) for key, group in same.items()}, taken)

    def _score(self, requests: Sequence[Request], take: Callable[[Answer], None]) -> None:
        same = _by_prompt(requests)

        def taken(key: str, answer: Any, has_ended: bool | None) -> None:
            for request in same[key]:
                take(Answer(request.key, logprob=float(answer[0]), is_greedy=bool(answer[1])))

        pairs = {key: (group[0].prompt, group[0].continuation) for key, group in same.items()}
        self.ask("loglikelihood", pairs, taken)

    def ask(self, kind: str, asked: Mapping[str, tuple[Any, ...]], take: Taken) -> None:
        """Asks the backend.

        Args:
            kind: ``generate_until``, ``loglikelihood`` or ``loglikelihood_rolling``.
            asked: What is asked, by any key.
            take: Takes the key, the answer and, where that is known, whether it ended by itself; at once where the
                backend says so, else when all are there.
        """
        hook = Hook(self.lm, asked, take)
        self.lm.set_cache_hook(hook)
        run = getattr(self.lm, kind)
        without_bar = {"disable_tqdm": True} if "disable_tqdm" in inspect.signature(run).parameters else {}
        with quiet(), self._engine_errors():
            answers = run(
                [Instance(kind, {}, arguments, at) for at, arguments in enumerate(asked.values())], **without_bar
            )
        for key, answer in zip(asked, answers, strict=True):
            if key not in hook.taken:
                take(key, answer, None)

    @contextmanager
    def _engine_errors(self) -> Iterator[None]:
        """Turns a lack of memory, and what goes wrong on the way to a server, into one line."""
        from aiohttp import ClientError
        from requests import RequestException
        from tenacity import RetryError
        from torch import OutOfMemoryError

        try:
            yield
        except OutOfMemoryError as error:
            raise UserError(
                f"{self._settings.model} ran out of memory; what was answered is kept: use a smaller --batch-size (it "
                f"was {self._settings.batch_size}), --dtype bfloat16 or --device-map auto, and run it again"
            ) from error
        except (RequestException, ClientError, RetryError, TimeoutError) as error:
            if not self._settings.server:
                raise
            response = getattr(error, "response", None)
            said = getattr(response, "text", "")
            is_refused = getattr(response, "status_code", getattr(error, "status", None)) in (401, 403)
            # What a server says of a key may repeat it.
            reason = f"{one_line(error)}: {said[:200]}" if said and not is_refused else one_line(error)
            reason = self._settings.redacted(reason)
            hint = ", and the key, see --api-key-env" if is_refused else ""
            hint += f", or leave out what it does not know: --model-arg {PENALTY}=null" if PENALTY in said else ""
            raise UserError(
                f"{self._settings.model} did not answer ({reason}): what was answered is kept; check it and run "
                f"the same command again{hint}"
            ) from error

    def _is_truncated(self, text: str, tokens: int, has_ended: bool | None) -> bool:
        if has_ended is not None:
            return not has_ended
        return len(self.texts.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) >= tokens


Taken = Callable[[str, Any, "bool | None"], None]


def _kind(request: Request) -> tuple[bool, int, tuple[str, ...]]:
    return request.continuation is None, request.max_new_tokens, request.stop


def _by_prompt(requests: Iterable[Request]) -> dict[str, list[Request]]:
    """Requests of one prompt and continuation together, by the key of the first."""
    same: dict[tuple[str, str | None], list[Request]] = {}
    for request in requests:
        same.setdefault((request.prompt, request.continuation), []).append(request)
    return {group[0].key: group for group in same.values()}


class Hook:
    """What a backend calls for each answer, as its cache: hands it on at once.

    A backend may change the options that it calls with, so that an answer is known by its prompt and continuation;
    where several requests have the same ones, they wait until all answers are there.

    Attributes:
        taken: Keys of the answers that were handed on.
    """

    def __init__(self, lm: Any, asked: Mapping[str, tuple[Any, ...]], take: Taken) -> None:
        self._lm, self._take = lm, take
        self._keys: dict[tuple[str, str | None], str | None] = {}
        for key, arguments in asked.items():
            identity = _identity(arguments)
            self._keys[identity] = None if identity in self._keys else key
        self.taken: set[str] = set()

    def add_partial(self, kind: str, asked: Sequence[Any], answer: Any) -> None:
        """An answer to (prompt, options), (prompt, continuation) or (text,)."""
        ends = getattr(self._lm, "ended", None)
        has_ended = ends.pop(0) if kind == "generate_until" and ends else None
        key = self._keys.pop(_identity(tuple(asked)), None)
        if key is not None:
            self.taken.add(key)
            self._take(key, answer, has_ended)


def _identity(arguments: tuple[Any, ...]) -> tuple[str, str | None]:
    prompt = getattr(arguments[0], "prompt", arguments[0])
    return prompt, arguments[1] if len(arguments) > 1 and isinstance(arguments[1], str) else None
