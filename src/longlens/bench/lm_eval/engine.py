"""Sends requests to a backend of lm-evaluation-harness, and passes on its answers as they arrive."""

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

from longlens.bench.engine import EngineSettings, ModelAnswer, ModelRequest, PromptLimit, prompt_tokens
from longlens.errors import UserError, one_line
from longlens.tokenization import TextEncoder, own_bos

OnAnswer = Callable[[ModelAnswer], None]
OnRawAnswer = Callable[[str, Any, "bool | None"], None]
PENALTY = "repetition_penalty"
NO_ANSWER = "\x00no answer"
# Placeholder for an answer that a server omitted; by default it is an empty string, like an empty answer of the model.
api_models.LMEVAL_MODEL_NONE_ANSWER_PLACEHOLDER = NO_ANSWER
# The harness runs git to get the commit of the current directory, which is unrelated; git reports errors on stderr.
evaluator.get_git_commit_hash = lambda: None


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the harness's output off stdout, which a program may parse, and its hints off stderr."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        logger.setLevel(level)


class HarnessEngine:
    """A `longlens.bench.engine.BenchEngine` that uses lm-evaluation-harness.

    Attributes:
        lm: Its backend.
        limit: Tokenizer that counts tokens, and maximum length.
        info: The record of the engine.
    """

    def __init__(self, lm: Any, settings: EngineSettings, limit: PromptLimit, described: Mapping[str, Any]) -> None:
        self.lm, self.limit = lm, limit
        self._settings = settings
        lm.adds_bos = bool(own_bos(limit.tokenizer))
        hashed = TextEncoder(limit.tokenizer).sha256
        self.info: dict[str, Any] = {
            "model": settings.model,
            "backend": settings.backend,
            **described,
            "tokenizer_sha256": hashed,
            "max_length": limit.max_length,
        }

    def answer(self, requests: Sequence[ModelRequest], on_answer: OnAnswer) -> None:
        """See `longlens.bench.engine.BenchEngine`."""
        self._check(requests)
        self.lm.exact_pairs = True
        for (is_written, tokens, stop), group in groupby(sorted(requests, key=_kind), key=_kind):
            same: dict[tuple[str, str | None], list[ModelRequest]] = {}
            for request in group:
                same.setdefault((request.prompt, request.continuation), []).append(request)
            by_key = {alike[0].key: alike for alike in same.values()}

            def hand_on(key: str, answer: Any, has_ended: bool | None, by_key: Any = by_key) -> None:
                for request in by_key[key]:
                    on_answer(self._answer_to(request, answer, has_ended))

            if is_written:
                options: dict[str, Any] = {"until": list(stop), "max_gen_toks": tokens, "do_sample": False}
                options |= {PENALTY: 1.0} if self.takes_penalty else {}
                sent = api_models.JsonChatStr if self._settings.is_chat else str
                asked = {key: (sent(alike[0].prompt), dict(options)) for key, alike in by_key.items()}
                self.ask("generate_until", asked, hand_on)
            else:
                pairs = {key: (alike[0].prompt, alike[0].continuation) for key, alike in by_key.items()}
                self.ask("loglikelihood", pairs, hand_on)

    def _answer_to(self, request: ModelRequest, answer: Any, has_ended: bool | None) -> ModelAnswer:
        if request.continuation is not None:
            return ModelAnswer(request.key, logprob=float(answer[0]), is_greedy=bool(answer[1]))
        if answer == NO_ANSWER:  # servers with separate reasoning omit an answer if reasoning used all tokens
            return ModelAnswer(request.key, text="", is_truncated=True)
        if has_ended is None:
            written = self.limit.tokenizer(str(answer), add_special_tokens=False, verbose=False)["input_ids"]
            has_ended = len(written) < request.max_new_tokens
        return ModelAnswer(request.key, text=str(answer), is_truncated=not has_ended)

    def _check(self, requests: Iterable[ModelRequest]) -> None:
        for request in requests:
            counted = request.num_tokens
            if counted is None:
                text = request.prompt + (request.continuation or "")
                counted = len(prompt_tokens(self.limit.tokenizer, text))
            needed = counted + request.max_new_tokens
            if needed > self.limit.max_length:
                raise UserError(
                    f"{request.key} needs {needed:,} tokens and {self._settings.model} supports "
                    f"{self.limit.max_length:,}: use shorter `lengths`, another `overlong`, or `max_length` if the "
                    "model supports more"
                )

    @property
    def takes_penalty(self) -> bool:
        """Whether the backend accepts a repetition penalty, to disable that of a model's generation_config.

        For servers that reject unknown parameters, set ``repetition_penalty`` to None in the arguments.
        """
        is_refused = self._settings.arguments.get(PENALTY, 1.0) is None
        return not is_refused and not self._settings.backend.startswith(("openai", "anthropic"))

    def ask(self, kind: str, asked: Mapping[str, tuple[Any, ...]], on_answer: OnRawAnswer) -> None:
        """Sends requests to the backend.

        Args:
            kind: ``generate_until``, ``loglikelihood`` or ``loglikelihood_rolling``.
            asked: Arguments of the requests, by key.
            on_answer: Receives the key, the answer and, if known, whether it ended by itself; immediately if the
                backend reports answers as they arrive, else at the end.
        """
        hook = AnswerHook(self.lm, asked, on_answer)
        self.lm.set_cache_hook(hook)
        run = getattr(self.lm, kind)
        without_bar = {"disable_tqdm": True} if "disable_tqdm" in inspect.signature(run).parameters else {}
        with quiet(), self._engine_errors():
            answers = run(
                [Instance(kind, {}, arguments, at) for at, arguments in enumerate(asked.values())], **without_bar
            )
        for key, answer in zip(asked, answers, strict=True):
            if key not in hook.handed_on:
                on_answer(key, answer, None)

    @contextmanager
    def _engine_errors(self) -> Iterator[None]:
        """Converts out-of-memory errors, and errors of a server or connection, to one line."""
        from aiohttp import ClientError
        from requests import RequestException
        from tenacity import RetryError
        from torch import OutOfMemoryError

        try:
            yield
        except OutOfMemoryError as error:
            raise UserError(
                f"{self._settings.model} ran out of memory; finished answers are kept: use a smaller `batch_size` (it "
                f"was {self._settings.batch_size}), `dtype=bfloat16` or `device_map=auto`, and run it again"
            ) from error
        except (RequestException, ClientError, RetryError, TimeoutError) as error:
            if not self._settings.server:
                raise
            response = getattr(error, "response", None)
            said = getattr(response, "text", "")
            is_refused = getattr(response, "status_code", getattr(error, "status", None)) in (401, 403)
            # The server's text about a rejected key may contain the key.
            reason = f"{one_line(error)}: {said[:200]}" if said and not is_refused else one_line(error)
            reason = self._settings.redact(reason)
            hint = ", and the key, see `api_key_env`" if is_refused else ""
            if PENALTY in said:
                hint += f", or disable the parameter that it does not support: {PENALTY}=null among the `arguments`"
            raise UserError(
                f"{self._settings.model} did not answer ({reason}): finished answers are kept; check it and run "
                f"the same command again{hint}"
            ) from error


def _kind(request: ModelRequest) -> tuple[bool, int, tuple[str, ...]]:
    return request.continuation is None, request.max_new_tokens, request.stop


class AnswerHook:
    """The cache hook that a backend calls for each answer; passes the answer on immediately.

    A backend may change the options of a request, so an answer is identified by its prompt and continuation. If several
    requests have the same prompt and continuation, they wait until all answers are available.

    Attributes:
        handed_on: Keys of the answers that were passed on.
    """

    def __init__(self, lm: Any, asked: Mapping[str, tuple[Any, ...]], on_answer: OnRawAnswer) -> None:
        self._lm, self._on_answer = lm, on_answer
        self._keys: dict[tuple[str, str | None], str | None] = {}
        for key, arguments in asked.items():
            identity = _identity(arguments)
            self._keys[identity] = None if identity in self._keys else key
        self.handed_on: set[str] = set()

    def add_partial(self, kind: str, asked: Sequence[Any], answer: Any) -> None:
        """Receives an answer to (prompt, options), (prompt, continuation) or (text,)."""
        ends = getattr(self._lm, "ended", None)
        has_ended = ends.pop(0) if kind == "generate_until" and ends else None
        key = self._keys.pop(_identity(tuple(asked)), None)
        if key is not None:
            self.handed_on.add(key)
            self._on_answer(key, answer, has_ended)


def _identity(arguments: tuple[Any, ...]) -> tuple[str, str | None]:
    prompt = getattr(arguments[0], "prompt", arguments[0])
    return prompt, arguments[1] if len(arguments) > 1 and isinstance(arguments[1], str) else None
