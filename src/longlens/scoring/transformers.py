"""The engine for transformers causal language models: token-bounded batches, logits only for scored rows."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from longlens.corpus import Document
from longlens.errors import UserError
from longlens.logprobs import (
    BLOCK_BYTES,
    LOGIT_BYTES,
    Head,
    find_head,
    greedy_logprobs,
    logit_blocks,
    token_logprobs,
)
from longlens.models.caches import CacheUse, EvictingLayer, FullCache, cache_bytes, observed
from longlens.models.files import model_max_length
from longlens.models.forward import (
    PROBE_TOKENS,
    Forward,
    default_batch_tokens,
    device_of,
    devices_of,
    is_close,
    pack,
    probe_ids,
    running,
    vocabulary_size,
)
from longlens.models.quantized import dtype_note, quantization_note, quantization_settings
from longlens.rope.eabf import base_attention
from longlens.rope.model import check_model
from longlens.runs.identity import functional_config
from longlens.scoring.scorer import (
    DescribedResult,
    Distributions,
    Request,
    Result,
    ScorerInfo,
    check_reference,
    reference_record,
)
from longlens.scoring.scores import Floats
from longlens.scoring.statistics import Statistic, describe
from longlens.tokenization import Encoded, TextEncoder

LOOK_AHEAD_BATCHES = 8
"""Number of batches of requests that are read ahead and sorted by length, to reduce padding."""
CHUNK_TOKENS = 1024
"""Number of rows per chunk if a sequence is fed in chunks (sliding-window layers, eager attention)."""
ATTENTION_BYTES = 256 * 2**20
"""Upper bound on the attention matrix of a chunk under eager attention, fp32."""
COPIED_TOKENS = {"cpu": 4096, "cuda": 32768}
"""Maximum number of tokens of key-value cache copies that exist at one time (`ContinuationScorer`), unless
``batch_tokens`` is set. On a CPU, more of them leave the caches."""
QUANTIZED_ERROR = 0.1
"""Largest change of states of quantized products, relative to the largest state, in a causal model.

If activations are quantized as well, rounding in another kernel or batch moves some of them by a whole step: 0.03 of
the largest state in SmolLM2 (int8 of torchao and bitsandbytes). A leak changes states by their own magnitude.
"""
_LOGGER = logging.getLogger(__name__)

_T = TypeVar("_T")


class TransformersScorer:
    """Scores with a transformers model.

    The vocabulary head is applied only to scored rows, in fp32, one block of rows at a time. Sequences longer than a
    sliding window, and those of eager attention, go through the model in chunks with the library's own key-value
    cache, so that no n x n mask or attention matrix exists and sliding-window layers cost n x window.

    Args:
        model: A causal language model; put into eval mode while it runs.
        tokenizer: Its tokenizer.
        name: Name for the run; by default the model's own name.
        source: Origin of the model, for the manifest.
        weights_sha256: Hash of its files; by default computed from the weights in memory.
        quantization: How its weights are quantized, for the manifest; by default what its configuration says.
        batch_tokens: Maximum tokens per batch, padding included; by default 1,024 on a CPU and 32,768 on a GPU.
        spans: ``"tokenizer"`` for the tokenizer's own offsets, as the published package uses them.
        cache: Cache policy under which long contexts are fed in chunks; short ones are scored without it.
        statistics: Statistics computed for each token under its long context, see `longlens.scoring.statistics`.
        reference: A model of the same tokenizer that is run over the same tokens, for statistics that compare two.

    Raises:
        UserError: A one-time probe found that the model is not causal, or that its log-probabilities would differ
            from those of its own logits.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str | None = None,
        source: str = "in memory",
        weights_sha256: str | None = None,
        quantization: str | None = None,
        batch_tokens: int | None = None,
        spans: Any = "exact",
        cache: CacheUse | None = None,
        statistics: Sequence[Statistic] = (),
        reference: Distributions | None = None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._encoder = TextEncoder(tokenizer, spans=spans)
        self._name, self._source, self._weights_sha256 = name, source, weights_sha256
        settings = quantization_settings(model.config) if quantization is None else None
        self._quantization = quantization_note(settings) if settings else quantization or ""
        check_model(model)
        self._config = model.config.get_text_config(decoder=True)
        self._attention = base_attention(self._config._attn_implementation)
        self._forward = Forward(model)
        self._device = device_of(model)
        self._vocabulary = vocabulary_size(model)
        self._batch_tokens = batch_tokens or default_batch_tokens(self._device)
        self._copied_tokens = batch_tokens or COPIED_TOKENS.get(self._device.type, COPIED_TOKENS["cuda"])
        self._pads = not (self._forward.by_length or self._forward.by_batch)
        self._rows: int | None = None
        # Computed now: later edits were not checked here.
        self._functional_config = functional_config(model)
        with running(model):
            self._head = self._probe().keep_wide()
        self._cache = cache
        if cache is not None:
            self._check_takes(cache)
        self._statistics, self._reference = list(statistics), reference
        if reference is not None:
            check_reference(self.info, reference.info)

    @cached_property
    def info(self) -> ScorerInfo:
        """What the run records about this model."""
        return ScorerInfo(
            name=self._name or self.model.name_or_path or type(self.model).__name__,
            source=self._source,
            architecture=type(self.model).__name__,
            weights_sha256=self._weights_sha256 or _hash_weights(self.model),
            tokenizer_sha256=self._encoder.sha256,
            max_length=model_max_length(self._config),
            dtype=dtype_note(self.model.dtype, self._quantization),
            device=", ".join(devices_of(self.model)),
            attention=str(self._config._attn_implementation),
            bos_token_id=self._encoder.bos_token_id,
            own_prefix=tuple(self._encoder.own_prefix),
            config=self._functional_config,
            cache=None if self._cache is None else self._cache.identity,
            statistics=tuple(statistic.name for statistic in self._statistics),
            reference=None if self._reference is None else reference_record(self._reference.info),
        )

    def encode(self, document: Document) -> Encoded:
        """Tokens of the document's text and their spans; no special tokens are added."""
        return self._encoder.encode(document.text)

    def logprobs(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Log-probabilities of each request's tokens from its start, in any order.

        Raises:
            UserError: A request is longer than a model with learned positions supports.
        """
        for batch in self._batches(requests):
            # No grad or eval mode is active while the caller has the results: it may be alternating with another
            # scorer.
            with running(self.model):
                try:
                    results = self._score(batch)
                except torch.OutOfMemoryError as error:
                    size = max(len(request.token_ids) for request in batch)
                    raise UserError(
                        f"{self.info.name} ran out of memory on {len(batch)} sequences of up to {size} tokens: use a "
                        f"smaller `batch_tokens` (it was {self._batch_tokens}), `max_length` or `dtype=bfloat16`"
                    ) from error
            yield from results

    def _batches(self, requests: Iterable[Request]) -> Iterator[list[Request]]:
        for waiting in read_ahead(requests, self._batch_tokens, lambda request: len(request.token_ids)):
            yield from self._pack(waiting)

    def _pack(self, requests: list[Request]) -> Iterator[list[Request]]:
        through_cache = [request for request in requests if self._cache is not None and not request.is_short]
        whole = [request for request in requests if self._cache is None or request.is_short]
        # What a policy keeps must not depend on padding.
        for some, pads, rows in ((through_cache, False, self._rows_of_long), (whole, self._pads, self._rows)):
            lengths = [len(request.token_ids) for request in some]
            for numbers in pack(lengths, pads=pads, tokens=self._batch_tokens, rows=rows):
                yield [some[number] for number in numbers]

    @property
    def _rows_of_long(self) -> int | None:
        """How many long contexts may be a batch; None for any number."""
        return 1 if self._cache is not None and self._cache.policy.mixes_rows else self._rows

    def logits(self, requests: Sequence[Request]) -> Iterator[Tensor]:
        """Logits of the scored tokens of a batch of long contexts, `longlens.scoring.scorer.Distributions`."""
        # The batch is another model's: this one may have to be given fewer of them together.
        is_alone = self._rows_of_long == 1
        pads = self._pads and self._cache is None
        parts = [[request] for request in requests] if is_alone else [list(requests)]
        if not (is_alone or pads):
            parts = [list(some) for _, some in groupby(requests, key=lambda request: len(request.token_ids))]
        for some in parts:
            with running(self.model):
                states, _ = self._long_hidden(*self._tensors(some))
            yield from logit_blocks(states.to(self._head.weight.device), self._head)

    def _tensors(self, batch: Sequence[Request]) -> tuple[Tensor, Tensor]:
        """Tokens ``(B, T)`` of sequences, the longest first, and a mask of the rows that predict a scored token."""
        longest = len(batch[0].token_ids)
        limit = getattr(self._config, "max_position_embeddings", None)
        if limit is not None and longest > limit and getattr(self._config, "rope_parameters", None) is None:
            raise UserError(f"{self.info.name} has {limit} learned positions and does not support {longest} tokens")
        # Right padding: under causal attention no token sees what comes after it, so no mask is needed.
        rows = [list(request.token_ids) + [0] * (longest - len(request.token_ids)) for request in batch]
        input_ids = torch.tensor(rows, dtype=torch.int64, device=self._device)
        if int(input_ids.max()) >= self._vocabulary:
            raise UserError(
                f"the tokenizer returned token {int(input_ids.max())}, and {self.info.name} has embeddings for "
                f"{self._vocabulary}: tokenizer and model do not match"
            )
        keep = torch.zeros_like(input_ids, dtype=torch.bool)
        for row, request in zip(keep, batch, strict=True):
            row[request.start - 1 : len(request.token_ids) - 1] = True
        return input_ids, keep

    def _score(self, batch: Sequence[Request]) -> list[Result]:
        input_ids, keep = self._tensors(batch)
        is_long = not batch[0].is_short
        columns: dict[str, Floats] = {}
        hidden, held = self._long_hidden(input_ids, keep) if is_long else (self._hidden(input_ids, keep), None)
        if held is not None:
            columns["cache_bytes"] = held.numpy().astype(np.float32)
        device = self._head.weight.device
        hidden = hidden.to(device)
        targets = torch.cat([input_ids[i, r.start : len(r.token_ids)] for i, r in enumerate(batch)]).to(device)
        described = is_long and bool(self._statistics)
        block_bytes = LOGIT_BYTES if described else BLOCK_BYTES
        logprobs = token_logprobs(hidden, targets, self._head, block_bytes=block_bytes).cpu().numpy()
        if np.isnan(logprobs).any():
            raise UserError(
                f"{self.info.name} overflows in {self.info.dtype} (log-probabilities are NaN): use "
                "`dtype=float32` or `dtype=bfloat16`"
            )
        if described:
            others = None if self._reference is None else self._reference.logits(batch)
            columns |= describe(logit_blocks(hidden, self._head), targets, self._statistics, others)
        ends = np.cumsum([len(request.token_ids) - request.start for request in batch])
        parts = np.split(logprobs, ends[:-1])
        results = [Result(request.key, part) for request, part in zip(batch, parts, strict=True)]
        pieces = {name: np.split(column, ends[:-1]) for name, column in columns.items()}
        return [
            DescribedResult.make(result, {name: piece[i] for name, piece in pieces.items()}) if pieces else result
            for i, result in enumerate(results)
        ]

    def _hidden(self, input_ids: Tensor, keep: Tensor) -> Tensor:
        """Last hidden states of the kept positions, ``(number kept, H)``, row by row of the batch."""
        batch, length = input_ids.shape
        chunk = self._chunk_tokens(batch, length)
        if chunk >= length or not self._forward.has_cache:
            states = self._forward.hidden(input_ids)
            return states[keep.to(states.device)]  # a device map may have the last layer elsewhere
        chunks = [slice(start, start + chunk) for start in range(0, length, chunk)]
        return self._feed(input_ids, keep, chunks, self._forward.new_cache())[0]

    def _long_hidden(self, input_ids: Tensor, keep: Tensor) -> tuple[Tensor, Tensor | None]:
        """Like `_hidden`, under the cache policy; with one, also each row's bytes of cache after each kept position."""
        use = self._cache
        if use is None:
            return self._hidden(input_ids, keep), None
        batch, length = input_ids.shape
        cache = use.policy.new_cache(self.model)
        with observed(self.model, cache):
            explicit = self._forward.takes_positions
            states, held = self._feed(input_ids, keep, use.chunks(length), cache, explicit=explicit)
        return states, held / batch

    def _feed(
        self, input_ids: Tensor, keep: Tensor, chunks: Sequence[slice], cache: Any, *, explicit: bool = False
    ) -> tuple[Tensor, Tensor]:
        batch, length = input_ids.shape
        places = None
        if explicit:  # the cache may have dropped tokens earlier
            places = torch.arange(length, device=input_ids.device)[None].expand(batch, -1)
        parts: list[list[Tensor]] = [[] for _ in range(batch)]
        held = torch.zeros(length, dtype=torch.float64)
        for chunk in chunks:
            states = self._forward.extend(input_ids[:, chunk], cache, None if places is None else places[:, chunk])
            for row, wanted, part in zip(states, keep[:, chunk].to(states.device), parts, strict=True):
                part.append(row[wanted])
            if explicit:
                held[chunk] = cache_bytes(cache)
        kept = torch.cat([held[row.cpu()] for row in keep])
        return torch.cat([piece for part in parts for piece in part]), kept

    def _chunk_tokens(self, batch: int, length: int) -> int:
        if self._window is None:
            return length
        if self._attention == "eager":
            heads = getattr(self._config, "num_attention_heads", 1)
            return max(16, min(length, ATTENTION_BYTES // (4 * batch * heads * length)))
        return CHUNK_TOKENS if length > max(self._window, CHUNK_TOKENS) else length

    @cached_property
    def _window(self) -> int | None:
        """Smallest attention window, 0 for eager attention; None if chunks have no benefit or are not possible."""
        if self._attention not in ("sdpa", "eager"):
            return None
        windows = self._forward.attention_windows
        if windows is None:
            return None
        if self._attention == "eager":
            return 0
        return min(windows) if windows else None

    def _check_takes(self, cache: CacheUse) -> None:
        name = type(self.model).__name__
        if not self._forward.has_cache:
            raise UserError(
                f"{name} has no plain KV cache (other state, or frequencies that depend on length): score it without "
                "`cache`"
            )
        if not self._forward.takes_positions and cache.policy.name != FullCache.name:
            raise UserError(
                f"{name} does not accept position ids, which tokens after dropped ones need: use `cache=full`"
            )
        layers, plain = cache.policy.new_cache(self.model).layers, FullCache().new_cache(self.model).layers
        drops = any(isinstance(layer, EvictingLayer) for layer in layers)
        if drops and getattr(self._config, "alibi", False):
            raise UserError(
                f"{name} has ALiBi, whose code in transformers does not count dropped tokens: use `cache=full` or "
                "`cache=fp8`"
            )
        same = all(type(one) is type(other) for one, other in zip(layers, plain, strict=False))
        if cache.policy.name != FullCache.name and len(layers) == len(plain) and same:
            raise UserError(
                f"every layer of {name} has a bounded window, which `cache={cache.policy.name}` leaves as it is: "
                "nothing would be compressed; score it without `cache`"
            )

    def _probe(self) -> Head:
        """Compares our log-probabilities with the model's own logits once, on a few tokens."""
        ids = probe_ids(self.model)
        whole, logits = self._forward.hidden(ids), self._forward.logits(ids)[0]
        hidden = whole[0]
        if not torch.isfinite(logits).all():
            raise UserError(
                f"{type(self.model).__name__} gives logits that are not finite in {self.model.dtype}: use another "
                "`dtype`, or check the weights"
            )
        half = PROBE_TOKENS // 2
        noise = QUANTIZED_ERROR if self._quantization and not self._quantization.endswith("dequantized") else 1e-3
        tolerance = max(64 * torch.finfo(hidden.dtype).eps, noise) * float(hidden.abs().max())
        before = self._forward.hidden(ids[:, :half])[0]
        moved = float((before - hidden[:half]).abs().max())
        if moved > tolerance and not self._forward.by_length:
            raise UserError(
                f"{type(self.model).__name__} is not causal: hidden states of the first {half} tokens moved by "
                f"{moved:.3g} when later tokens were added. longlens needs a causal language model"
            )
        if self._pads:
            padded = torch.cat([ids, torch.where(torch.arange(PROBE_TOKENS, device=ids.device) < half, ids, 0)])
            long, short = self._forward.hidden(padded)
            self._pads = is_close(short[:half], before) and is_close(long, hidden)
        if not self._pads:
            pair = self._forward.hidden(torch.cat([ids[:, :half], ids[:, half:]]))
            self._rows = None if is_close(pair[0], before) and not self._forward.by_batch else 1
            _LOGGER.info(
                "%s is run with %s: its states change with other sequences in the batch",
                type(self.model).__name__,
                "one sequence at a time" if self._rows else "batches of one length",
            )
        return find_head(self.model, hidden, logits)


def read_ahead(requests: Iterable[_T], batch_tokens: int, length: Callable[[_T], int]) -> Iterator[list[_T]]:
    """Yields parts of a stream of requests that are sorted by length and packed into batches together.

    Args:
        requests: Requests, in order.
        batch_tokens: Maximum number of tokens per batch.
        length: Function that returns the number of tokens of a request.
    """
    waiting: list[_T] = []
    tokens = 0
    for request in requests:
        waiting.append(request)
        tokens += length(request)
        if tokens >= LOOK_AHEAD_BATCHES * batch_tokens:
            yield waiting
            waiting, tokens = [], 0
    yield waiting


class Continuation(NamedTuple):
    """A continuation of a text.

    Attributes:
        logprob: Sum of its tokens' log-probabilities, in nats.
        is_greedy: Whether each of its tokens is the most likely one after those before it.
        logprobs: Log-probability of each token, in nats.
        greedy: Whether each token is the most likely one.
    """

    logprob: float
    is_greedy: bool
    logprobs: tuple[float, ...]
    greedy: tuple[bool, ...]


class ContinuationScorer(TransformersScorer):
    """Scores continuations of a text, which is run through the model once for all of them.

    With p the text and c a continuation, the result equals that of one pass over ``p + c``::

        logits = model(p + c).logits[len(p) - 1 : -1]
        logprob = logits.float().log_softmax(-1).gather(-1, c).sum()
        is_greedy = (logits.argmax(-1) == c).all()

    but logits exist only for the continuation's tokens, the key-value cache of p is reused for each continuation, and
    tokens with which all continuations begin are run through the model once.
    Each continuation needs a separate pass if the model has no such cache (state-space and hybrid models), or if its
    rotary frequencies depend on the total length (dynamic NTK, LongRoPE).
    """

    def continuations(self, text: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[Continuation]:
        """One result per continuation.

        Args:
            text: Token IDs, at least one, including special tokens.
            continuations: Token IDs, at least one each.
        """
        with running(self.model):
            if len(continuations) == 1 or not self._forward.has_cache:
                return [self._alone(text, tokens) for tokens in continuations]
            return self._after(self._read(text[:-1]), text, continuations)

    def branches(
        self, prefix: Sequence[int], rows: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]]
    ) -> list[list[Continuation]]:
        """``[continuations([*prefix, *text], some) for text, some in rows]``; the prefix is run through the model once.

        Args:
            prefix: Token IDs with which all texts begin; may be empty.
            rows: For each text, its tokens after the prefix (at least one) and its continuations.
        """
        with running(self.model):
            has_cache = self._forward.has_cache
            cache = self._read(prefix) if prefix and has_cache else None
        if cache is None:
            return [self.continuations([*prefix, *text], some) for text, some in rows]
        found = []
        with running(self.model):
            for text, some in rows:
                own = copy.deepcopy(cache)
                if len(text) > 1:
                    ids = torch.tensor([list(text[:-1])], dtype=torch.int64, device=self._device)
                    self._forward.extend(ids, own)
                found.append(self._after(own, [*prefix, *text], some))
        return found

    def _alone(self, text: Sequence[int], tokens: Sequence[int]) -> Continuation:
        input_ids = torch.tensor([[*text, *tokens]], dtype=torch.int64, device=self._device)
        keep = torch.zeros_like(input_ids, dtype=torch.bool)
        keep[0, len(text) - 1 : -1] = True
        return self._answers([self._hidden(input_ids, keep)], [], [tokens])[0]

    def _read(self, text: Sequence[int]) -> Any:
        """The key-value cache of a text."""
        cache = self._forward.new_cache()
        ids = torch.tensor([list(text)], dtype=torch.int64, device=self._device)
        chunk = self._chunk_tokens(1, len(text)) if self._window is not None else max(CHUNK_TOKENS, len(text))
        for start in range(0, len(text), max(1, chunk)):
            self._forward.extend(ids[:, start : start + chunk], cache)
        return cache

    def _after(self, cache: Any, text: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[Continuation]:
        """Scores continuations of a text after the cache of all its tokens but the last; the cache may be changed.

        Continuations are padded on the right, so that no token sees padding.
        """
        shared = common_tokens(continuations) if len(continuations) > 1 else 0
        beginning, last = list(continuations[0][:shared]), text[-1]
        states = []
        if beginning:
            ids = torch.tensor([[last, *beginning[:-1]]], dtype=torch.int64, device=self._device)
            states.append(self._forward.extend(ids, cache)[0])
            last = beginning[-1]
        tails = [tokens[shared:] for tokens in continuations]
        at_once = max(1, self._copied_tokens // (len(text) + shared))
        for first in range(0, len(tails), at_once):
            some = tails[first : first + at_once]
            longest = max(map(len, some))
            rows = [[last, *tokens[:-1], *[0] * (longest - len(tokens))] for tokens in some]
            own = cache if first + at_once >= len(tails) else copy.deepcopy(cache)
            own.batch_repeat_interleave(len(rows))
            found = self._forward.extend(torch.tensor(rows, dtype=torch.int64, device=self._device), own)
            states += [row[: len(tokens)] for row, tokens in zip(found, some, strict=True)]
        return self._answers(states, beginning, tails)

    def _answers(
        self, states: Sequence[Tensor], beginning: Sequence[int], tails: Sequence[Sequence[int]]
    ) -> list[Continuation]:
        """Continuations ``[*beginning, *tail]`` by the states that predict the beginning, if any, and each tail."""
        parts, device = [*([beginning] if beginning else []), *tails], self._head.weight.device
        targets = torch.tensor([token for tokens in parts for token in tokens], device=device)
        lengths = [len(tokens) for tokens in parts]
        found = greedy_logprobs(torch.cat(list(states)).to(device), targets, self._head)
        logprobs, greedy = (list(torch.split(values, lengths)) for values in found)
        if beginning:
            first, is_first = logprobs.pop(0), greedy.pop(0)
            logprobs, greedy = [torch.cat([first, x]) for x in logprobs], [torch.cat([is_first, x]) for x in greedy]
        return [
            Continuation(
                float(own.double().sum()), bool(is_greedy.all()), tuple(own.tolist()), tuple(is_greedy.tolist())
            )
            for own, is_greedy in zip(logprobs, greedy, strict=True)
        ]


def common_tokens(rows: Sequence[Sequence[int]]) -> int:
    """Number of tokens with which all rows begin, less than the length of the shortest."""
    longest = min(map(len, rows)) - 1
    return next((at for at in range(longest) if len({row[at] for row in rows}) > 1), longest)


def _hash_weights(model: torch.nn.Module) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of a model's parameters, in the order of their names.

    Raises:
        UserError: Weights are offloaded and cannot be read.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_meta:
            raise UserError(f"weights of {type(model).__name__} are offloaded: load it by name, not as an object")
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
