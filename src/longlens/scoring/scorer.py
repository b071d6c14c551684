"""The engine contract: the interface of a Transformers model, an inference engine or a server.

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
    """Log-probabilities of ``token_ids[start:]`` are requested, each given the tokens before it; ``start >= 1``.

    Attributes:
        key: Any object; the result has the same key.
        token_ids: Token IDs, including special tokens.
        start: Index of the first scored token.
        is_short: Whether it is a window of a short context, which is scored without the cache policy.
    """

    key: Any
    token_ids: Sequence[int]
    start: int
    is_short: bool = False


class Result(NamedTuple):
    """The result of the request with this key: ``(len(token_ids) - start,)`` float32, nats."""

    key: Any
    logprobs: Floats


class DescribedResult(Result):
    """A result with additional values for its tokens.

    Attributes:
        columns: Columns by name, each of the shape of the log-probabilities.
    """

    columns: Mapping[str, Floats]

    @classmethod
    def make(cls, result: Result, columns: Mapping[str, Floats]) -> DescribedResult:
        """A result with columns; it unpacks into two values like any `Result`."""
        made = cls(*result)
        made.columns = columns
        return made


@dataclass(frozen=True, kw_only=True)
class ScorerInfo:
    """What a run records about its model; all fields are stored in manifest.json.

    Attributes:
        name: Name as passed by the user.
        source: Origin of the model, such as a Hub id with its revision or ``embedded``.
        architecture: Class of the model.
        weights_sha256: Hash of the weights; None for a server.
        tokenizer_sha256: Hash of the tokenizer.
        max_length: The model's maximum length in tokens; None if unknown.
        dtype: Resolved dtype of the weights, such as ``float32``, never ``auto``.
        device: Device on which it ran.
        attention: Attention implementation.
        bos_token_id: The tokenizer's BOS; None if it has none.
        own_prefix: IDs that the tokenizer itself puts before a text; used by ``bos="published"``.
        config: Configuration in use, `longlens.runs.identity.functional_config`; for a server, what it reports. None if
            nothing is known.
        cache: Policy of the key-value cache; None if it keeps everything.
        statistics: Names of the additional statistics computed for each token.
        reference: Name and identity of the model that statistics compare with; None without one.
        engine: Engine and version, such as ``vllm 0.32.0``; empty for transformers, whose version is listed with those
            of the libraries.
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
        """Identity of the model, by which two runs are compared."""
        return ModelIdentity.read(vars(self))


def reference_record(info: ScorerInfo) -> dict[str, Any]:
    """What a run records about the model with which its statistics compare."""
    return {"name": info.name, **info.identity.to_json(), "sha256": info.identity.sha256}


class TokenizedModel(Protocol):
    """A model's tokenizer and configuration; its weights may not be loaded."""

    @property
    def info(self) -> ScorerInfo:
        """What a run records about the model."""

    def encode(self, document: Document) -> Encoded:
        """Token ids of the document's text and their character spans, no special tokens added."""


class Scorer(TokenizedModel, Protocol):
    """The interface of a Transformers model, an inference engine or a server."""

    def logprobs(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Yields one result per request, in any order; requests are consumed lazily."""


class Distributions(Protocol):
    """A scorer that can be the reference of statistics: it has logits over the whole vocabulary."""

    @property
    def info(self) -> ScorerInfo:
        """What a run records about the model."""

    def logits(self, requests: Sequence[Request]) -> Iterator[Tensor]:
        """Logits of the scored tokens of a batch, ``(rows, V)`` float32 in blocks, request after request."""


def check_reference(info: ScorerInfo, reference: ScorerInfo) -> None:
    """Rejects a reference whose distributions are over another vocabulary.

    Raises:
        UserError: The tokenizers differ.
    """
    if info.tokenizer_sha256 != reference.tokenizer_sha256:
        raise UserError(
            f"{info.name} and {reference.name} have different tokenizers, and distributions over tokens can only be "
            "compared over one vocabulary: compare their perplexities with longlens compare"
        )
