"""The engine contract: what a Transformers model, an inference engine or a server has to give.

Above it: windows, BOS, truncation, resume, storage. Below it: batching and blocks of logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from longlens.corpus import Document
from longlens.errors import UserError
from longlens.runs.identity import ModelIdentity
from longlens.scoring.scores import Floats
from longlens.tokenization import Encoded

if TYPE_CHECKING:
    from torch import Tensor


class Request(NamedTuple):
    """Log-probabilities of ``token_ids[start:]`` are wanted, each given the tokens before it; ``start >= 1``.

    Attributes:
        key: Anything; the answer has it.
        token_ids: Tokens, special ones included.
        start: The first that is scored.
        is_short: Whether it is a window of a short context, which a cache policy leaves alone.
    """

    key: Any
    token_ids: Sequence[int]
    start: int
    is_short: bool = False


class Result(NamedTuple):
    """The answer to the request with this key: ``(len(token_ids) - start,)`` float32, nats."""

    key: Any
    logprobs: Floats


class DescribedResult(Result):
    """An answer with what else was computed of its tokens.

    Attributes:
        columns: By name, of the shape of the log-probabilities.
    """

    columns: Mapping[str, Floats]

    @classmethod
    def make(cls, result: Result, columns: Mapping[str, Floats]) -> DescribedResult:
        """A result with columns; it unpacks into two as any other."""
        made = cls(*result)
        made.columns = columns
        return made


@dataclass(frozen=True, kw_only=True)
class ScorerInfo:
    """What a run records of its model; all of it goes into manifest.json.

    Attributes:
        name: As the user gave it.
        source: Where it came from, such as a Hub id with its revision or ``embedded``.
        architecture: Class of the model.
        weights_sha256: Hash of the weights; None for a server.
        tokenizer_sha256: Hash of the tokenizer.
        max_length: The model's maximum length in tokens; None if unknown.
        dtype: RESOLVED dtype of the weights, such as ``float32``, never ``auto``.
        device: Where it ran.
        attention: Attention implementation.
        bos_token_id: The tokenizer's BOS; None where it has none.
        own_prefix: Ids that the tokenizer itself puts before a text; what ``bos="published"`` uses.
        config: The configuration in force, `longlens.runs.identity.functional_config`; of a server what it says of
            itself. None where nothing is known.
        cache: Policy of the key-value cache; None where it keeps everything.
        statistics: What else is computed of each token, by name.
        reference: Name and identity of the model that statistics compare with; None without one.
        engine: What ran it and its version, such as ``vllm 0.32.0``; empty for transformers, whose version stands with
            those of the libraries.
    """

    name: str
    source: str
    architecture: str
    weights_sha256: str | None
    tokenizer_sha256: str
    max_length: int | None
    dtype: str
    device: str
    attention: str
    bos_token_id: int | None
    own_prefix: tuple[int, ...] = ()
    config: Mapping[str, Any] | None = None
    cache: str | None = None
    statistics: tuple[str, ...] = ()
    reference: Mapping[str, Any] | None = None
    engine: str = ""

    @property
    def identity(self) -> ModelIdentity:
        """What makes another model the same one."""
        return ModelIdentity.read(vars(self))


def reference_record(info: ScorerInfo) -> dict[str, Any]:
    """What a run records of the model that its statistics compare with."""
    return {"name": info.name, **info.identity.to_json(), "sha256": info.identity.sha256}


class TokenizedModel(Protocol):
    """A model as far as its tokenizer and configuration say; its weights may not be loaded."""

    @property
    def info(self) -> ScorerInfo:
        """What a run records of the model."""

    def encode(self, document: Document) -> Encoded:
        """Token ids of the document's text and their character spans, no special tokens added."""


class Scorer(TokenizedModel, Protocol):
    """What a Transformers model, an inference engine or a server has to give."""

    def logprobs(self, requests: Iterable[Request]) -> Iterator[Result]:
        """An answer to every request, in any order; requests are taken as they are needed."""


class Distributions(Protocol):
    """A scorer that can be the reference of statistics: it has logits over the whole vocabulary."""

    @property
    def info(self) -> ScorerInfo:
        """What a run records of the model."""

    def logits(self, requests: Sequence[Request]) -> Iterator[Tensor]:
        """Logits of the scored tokens of a batch, ``(rows, V)`` float32 in blocks, request after request."""


def check_reference(info: ScorerInfo, reference: ScorerInfo) -> None:
    """Rejects a reference whose distributions are over other tokens.

    Raises:
        UserError: The tokenizers differ.
    """
    if info.tokenizer_sha256 != reference.tokenizer_sha256:
        raise UserError(
            f"{info.name} and {reference.name} have different tokenizers, and distributions over tokens can only be "
            "compared over one vocabulary: compare their perplexities with longlens compare"
        )
