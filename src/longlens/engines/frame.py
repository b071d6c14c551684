"""Base class of all engines of longlens: accepts token ids and returns checked log-probabilities, after a probe.

An engine is third-party software. Its output is trusted only after the probe, and every answer is checked.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from longlens.corpus import Document
from longlens.errors import UserError, shown
from longlens.models.files import hash_files, load_tokenizer, model_max_length
from longlens.models.resolve import Source
from longlens.runs.identity import PROBE, functional_config
from longlens.scoring.scorer import DescribedResult, Request, Result, ScorerInfo
from longlens.scoring.scores import Floats, wrong_logprobs
from longlens.settings.options import Engine, Loading
from longlens.tokenization import Encoded, TextEncoder

PROBE_TEXT = "In 1998 the old lighthouse, 42 metres high, still burned oil; its keeper (Ann) read a letter by it."
TOKENIZER_TEXT = (
    'def area(r):\n    return 3.14159 * r ** 2  # "πr²"\n\nNaïve cafés: 12,345.67 €; Größe, 漢字とかな, Привет, '
    "مرحبا, 🙂👩‍🚀!\r\n\tI'm sure they'll say it's 2026-11-28.   Zwölf Boxkämpfer jagen Viktor quer über den Deich."
)
"""Text that tokenizers of different models split differently."""
PROBE_TOKENS = 24
PROBE_NATS = 0.3
"""Largest mean difference between log-probabilities that are equal except for rounding. In bfloat16 single tokens
differ by tenths of a nat between batches and kernels, and their mean by hundredths. In a list shifted by one, the
differences are several nats."""
LEAST_LOGPROB = -9000.0
"""Values at or below this represent minus infinity, such as vLLM's -9999."""
_STEP = "update the engine, or use another one (docs/engines.md)"


class Greedy(NamedTuple):
    """The token that an engine generates at temperature 0, and its log-probability if the engine returns it."""

    token_id: int
    logprob: float | None


Answer: TypeAlias = (
    tuple[Request, Sequence[Any] | Floats] | tuple[Request, Sequence[Any] | Floats, Mapping[str, Floats]]
)
"""A request, the log-probabilities that the engine returns, and the columns of statistics, if any."""


class EngineScorer(ABC):
    """A `longlens.scoring.scorer.Scorer` over an engine. Log-probabilities of the engine are checked, then passed on.

    Attributes:
        info: Facts about the model that a run records.
        longest: Maximum number of tokens of a request; None if it is unknown.
    """

    info: ScorerInfo
    longest: int | None

    def __init__(self, encoder: TextEncoder, info: ScorerInfo, *, longest: int | None = None) -> None:
        self._encoder, self.info, self.longest = encoder, info, longest

    @abstractmethod
    def _answers(self, requests: Iterable[Request]) -> Iterator[Answer]:
        """Yields each request with log-probabilities of ``token_ids[start:]`` as the engine returns them, in any order.

        Requests are consumed lazily. Closing the iterator cancels the requests in progress.
        """

    @abstractmethod
    def _greedy(self, token_ids: Sequence[int]) -> Greedy | None:
        """The token that the engine generates after the tokens; None if the answer does not identify the token."""

    def encode(self, document: Document) -> Encoded:
        """Tokens of the document's text and their spans, without special tokens."""
        return self._encoder.encode(document.text)

    def logprobs(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Log-probabilities of each request's tokens from its start, in any order.

        Raises:
            UserError: A request is longer than the engine supports, or the log-probabilities of an answer are invalid.
        """
        with closing(self._answers(self._admitted(requests))) as answers:  # type: ignore[type-var]  # a generator
            for request, values, *columns in answers:
                wanted = len(request.token_ids) - request.start
                result = Result(request.key, check_logprobs(values, wanted, self.info.name))
                yield DescribedResult.make(result, columns[0]) if columns else result

    def _admitted(self, requests: Iterable[Request]) -> Iterator[Request]:
        for request in requests:
            if self.longest is not None and len(request.token_ids) > self.longest:
                raise UserError(
                    f"a document has {len(request.token_ids):,} tokens, and the engine of {shown(self.info.name)} "
                    f"supports {self.longest:,}: use a smaller `max_length`, or start the engine with a larger maximum"
                )
            yield request

    def probe(self) -> None:
        """Sends several requests about a short sequence and checks that the answers are consistent, before scoring.

        With v(x)[i] the log-probability that the engine returns for token i of the sequence x::

            v(x)[i] == v(x again)[i] == v(x[:m])[i] == v(x from a later start)[i]      i < m
            v(x)[i] does not change when a token after i changes, and changes when token i or one before it does
            sum(exp(v(p + [c])[-1]) for several c) <= 1
            v(p + [g])[-1] == the log-probability with which the engine generates g after p, and no v(p + [c])[-1] is
            larger, where g is the token generated at temperature 0

        The last rule detects lists that are shifted by one: their entries are also log-probabilities, but of the token
        given itself (llama-cpp-python's server, ``echo``). The other rules detect stale prefix caches and scores of
        other requests.

        Raises:
            UserError: The answers are inconsistent.
        """
        x, others = _probe_ids(self._encoder)
        n, half = len(x), len(x) // 2
        (whole,) = self._ask([(x, 1)])
        lasts = [[*x[:-1], token] for token in others]
        early = [x[0], others[0] if x[1] != others[0] else others[1], *x[2:]]
        again, prefix, late, changed, *ends = self._ask(
            [(x, 1), (x[:-4], 1), (x, half), (early, 1), *((y, 1) for y in lasts)]
        )
        for found, expected, what in (
            (again, whole, "the same tokens asked twice have other log-probabilities"),
            (prefix, whole[:-4], "log-probabilities depend on the tokens that follow"),
            (late, whole[half - 1 :], "log-probabilities depend on where scoring starts"),
            *((end[:-1], whole[:-1], "log-probabilities depend on a token that follows") for end in ends),
        ):
            self._require(_apart(found, expected) <= PROBE_NATS, f"{what} (by {_apart(found, expected):.2g} nats)")
        last = np.array([whole[-1], *(end[-1] for end in ends)], np.float64)
        self._require(np.ptp(last) > 0, "the last log-probability is the same for different tokens")
        self._require(
            not np.array_equal(changed[1:], whole[1:]), "log-probabilities do not depend on the tokens before"
        )
        total = float(np.exp(last).sum())
        self._require(total <= 1.05, f"probabilities of different next tokens sum to {total:.3g}")
        if self.info.weights_sha256 is None:  # a server's model, which only these values distinguish from a namesake
            known = {PROBE: [round(float(value), 3) for value in whole]}
            self.info = replace(self.info, config={**(self.info.config or {}), **known})
        self._check_greedy([x[:size] for size in range(n - 1, n // 3, -2)], others)

    def _check_greedy(self, prefixes: Sequence[list[int]], others: Sequence[int]) -> None:
        apart, best = [], []
        for prefix in prefixes:
            generated = self._greedy(prefix)
            if generated is None:
                continue
            tokens = [generated.token_id, *(token for token in others if token != generated.token_id)]
            values = [float(v[-1]) for v in self._ask([([*prefix, token], len(prefix)) for token in tokens])]
            best.append(values[0] >= max(values) - PROBE_NATS)
            if generated.logprob is not None:
                apart.append(abs(values[0] - generated.logprob))
            if len(best) == 3:
                break
        self._require(best, "the token that it generates at temperature 0 is not in the tokenizer's vocabulary")
        difference = float(np.mean(apart)) if apart else 0.0
        self._require(
            all(best) and difference <= PROBE_NATS,
            "the token that it generates has another log-probability in the prompt, or is not the most likely one there"
            + (f" (apart by {difference:.2g} nats)" if difference > PROBE_NATS else "")
            + ": the list is shifted or of other tokens",
        )

    def _ask(self, sequences: Sequence[tuple[list[int], int]]) -> list[Floats]:
        requests = [Request(number, ids, start) for number, (ids, start) in enumerate(sequences)]
        found = {result.key: result.logprobs for result in self.logprobs(iter(requests))}
        return [found[request.key] for request in requests]

    def _require(self, holds: Any, what: str) -> None:
        if not holds:
            raise UserError(f"{shown(self.info.name)} cannot be scored with this engine: {what}: {_STEP}")


def check_logprobs(values: Any, wanted: int, who: str) -> Floats:
    """Checks log-probabilities returned by an engine and converts them to ``(wanted,)`` float32.

    Args:
        values: List or array, as the engine returns it.
        wanted: Expected number of values.
        who: Name of the model, for the message.

    Raises:
        UserError: The number of values is wrong, or a value is None, not a number, not finite or above 0.
    """
    said = f"the engine of {shown(who)} returned "
    if len(values) != wanted:
        raise UserError(f"{said}{len(values)} log-probabilities for {wanted} tokens: {_STEP}")
    if not isinstance(values, np.ndarray):
        wrong = [
            value for value in values if isinstance(value, bool) or not isinstance(value, (int, float, np.floating))
        ]
        if wrong:
            raise UserError(f"{said}{wrong[0]!r:.40} as a log-probability, expected a number of nats: {_STEP}")
    floats = np.asarray(values, np.float32)
    low = floats[~(floats > LEAST_LOGPROB)]
    if low.size and not math.isnan(low[0]):
        raise UserError(f"{said}{low[0]:g} as a log-probability, which represents minus infinity: {_STEP}")
    reason = wrong_logprobs(floats)
    if reason:
        raise UserError(f"{said}impossible log-probabilities ({reason}): {_STEP}")
    return floats


def engine_encoder(name: str, loading: Loading, engine: Engine) -> TextEncoder:
    """The tokenizer of an engine's model: the one set by `engine` (an object or a name), else that of the model.

    Args:
        name: The model, used if no tokenizer is set.
        loading: How the tokenizer is loaded.
        engine: Engine settings, which may contain a tokenizer.

    Raises:
        UserError: The tokenizer cannot be loaded.
    """
    chosen: Any = name if engine.tokenizer is None else engine.tokenizer
    if not isinstance(chosen, str):
        return TextEncoder(chosen)
    return TextEncoder(load_tokenizer(chosen, trust_remote_code=loading.trust_remote_code))


def local_info(
    source: Source, config: Any, encoder: TextEncoder, *, dtype: str, device: str, attention: str, engine: str
) -> ScorerInfo:
    """Facts that a run records about a model whose files are read by an engine in this process.

    Args:
        source: Files of the model.
        config: Its transformers configuration.
        encoder: Its tokenizer.
        dtype: Dtype of the weights in the engine.
        device: Device of the model.
        attention: Attention implementation.
        engine: Name and version of the engine.
    """
    return ScorerInfo(
        name=source.name,
        source=source.note,
        architecture=str(config.architectures[0] if config.architectures else config.model_type),
        weights_sha256=hash_files(source),
        tokenizer_sha256=encoder.sha256,
        max_length=model_max_length(config),
        dtype=dtype,
        device=device,
        attention=attention,
        bos_token_id=encoder.bos_token_id,
        own_prefix=encoder.own_prefix,
        config=functional_config(config),
        engine=engine,
    )


def _probe_ids(encoder: TextEncoder) -> tuple[list[int], list[int]]:
    """Tokens of the probe, after the BOS if the tokenizer has one, and some other tokens for its last position."""
    ids = encoder.encode(PROBE_TEXT).token_ids[:PROBE_TOKENS].tolist()
    bos = [] if encoder.bos_token_id is None else [encoder.bos_token_id]
    others = [token for token in dict.fromkeys(ids) if token != ids[-1]][:6]
    if len(ids) < 12 or len(others) < 3:
        raise UserError(f"the tokenizer makes {len(ids)} tokens of {PROBE_TEXT!r}: pass the model's own `tokenizer`")
    return bos + ids, others


def _apart(found: Floats, expected: Floats) -> float:
    return float(np.abs(found - expected).mean()) if len(found) else 0.0
