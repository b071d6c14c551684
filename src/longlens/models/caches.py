"""Defines cache policies, which select the keys and values that a model keeps while a long context is fed in chunks.

A policy makes a transformers cache, and the scorer feeds a long context through it in chunks, with each token at its
original position regardless of dropped tokens. Short contexts are scored without a policy. The policies of longlens are
in `longlens.models.policies`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from longlens.errors import UserError

CACHE_CHUNK = 256
"""Default number of tokens per chunk."""
CacheProtocol = Literal["stream", "prefill+tail"]
"""How a text is fed through a policy's cache, see `CacheUse`."""
OBSERVED_ATTENTION = "longlens_observed_sdpa"
"""Name of an sdpa attention function that also passes the attention to an `ObservingLayer`."""
OBSERVED_ROWS = 256
"""Number of queries whose attention to all keys is in memory at one time."""


class CachePolicy(ABC):
    """Selects the keys and values that a model keeps.

    Attributes:
        name: Name with settings, such as ``"recent:512"``; a part of the model's identity.
        mixes_rows: Whether the selection in a row can depend on the other rows of a batch, for example through a scale
            for all rows or through a ranking of values: products in another batch are rounded differently, so that of
            two tokens with equal values (keys of one word have one norm) the other one is kept. Each sequence is then
            fed alone. False if the selection depends only on positions.
    """

    name: str
    mixes_rows: bool = True

    @abstractmethod
    def new_cache(self, model: Any) -> Any:
        """Returns an empty transformers cache for sequences of one length, for example from `evicting_cache`.

        Its ``get_seq_length`` counts the tokens seen and ``get_mask_sizes`` those stored. All layers of one kind store
        the same number. Its effect on a sequence depends neither on other rows of a batch nor on earlier sequences.
        the same number. Its effect on a sequence depends neither on other rows of a batch nor on earlier sequences.

        Args:
            model: A transformers model.
        """


class FullCache(CachePolicy):
    """Keeps all keys and values, for the results of a single pass, computed in chunks."""

    name, mixes_rows = "full", False

    def new_cache(self, model: Any) -> Any:
        """Returns the library's own cache."""
        return DynamicCache(config=model.config)


class EvictingLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """Keys and values of a layer, of which some are dropped after each chunk. A chunk attends to all stored before it.

    Masks and positions depend on the tokens seen, so that dropping tokens does not move others.

    Args:
        keep: Maps keys and values ``(B, heads, n, head_dim)``, the oldest first, to the indices of those to keep,
            ascending: ``(kept,)``, or ``(B, heads, kept)`` if heads differ.
    """

    keys: Any
    values: Any

    def __init__(self, keep: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self._keep, self.num_seen = keep, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Adds a chunk, returns the keys and values that it attends to, and stores those that `keep` selects."""
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        self.num_seen += key_states.shape[-2]
        self._evict(keys, values)
        return keys, values

    def _evict(self, keys: Tensor, values: Tensor) -> None:
        self._hold(self._keep(keys, values))

    def _hold(self, kept: Tensor) -> None:
        kept = kept.to(self.keys.device)
        if kept.dim() == 1:
            self.keys, self.values = self.keys.index_select(-2, kept), self.values.index_select(-2, kept)
        else:
            self.keys = self.keys.gather(-2, kept[..., None].expand(*kept.shape, self.keys.shape[-1]))
            self.values = self.values.gather(-2, kept[..., None].expand(*kept.shape, self.values.shape[-1]))

    def get_seq_length(self) -> int:
        """Number of tokens seen."""
        return self.num_seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of tokens that a chunk of this length attends to, and number of dropped tokens."""
        held = 0 if self.keys is None else self.keys.shape[-2]
        return held + query_length, self.num_seen - held


class ObservingLayer(EvictingLayer, ABC):
    """A layer that selects by the attention of the chunk's queries, which it receives after the attention is computed.

    Use it only inside `observed`.
    """

    def __init__(self) -> None:
        super().__init__(lambda keys, values: torch.arange(keys.shape[-2]))
        self.is_waiting = False

    def _evict(self, keys: Tensor, values: Tensor) -> None:
        self.is_waiting = True  # until `observe`

    def observe(self, query: Tensor, scaling: float) -> None:
        """Keeps the keys and values that `keep_attended` selects.

        Args:
            query: ``(B, query heads, q, head_dim)`` of the chunk, rotated.
            scaling: Scaling of the products with keys.
        """
        self.is_waiting = False
        self._hold(self.keep_attended(query, scaling))

    @abstractmethod
    def keep_attended(self, query: Tensor, scaling: float) -> Tensor:
        """Indices of the keys to keep, in the form of `keep` of `EvictingLayer`; ``self.keys`` has all keys until then.

        Args:
            query: ``(B, query heads, q, head_dim)`` of the chunk, rotated.
            scaling: Scaling of the products with keys.
        """

    def attention(self, query: Tensor, scaling: float) -> Iterator[Tensor]:
        """``softmax(scaling * query @ keys.T)`` under the causal mask, `OBSERVED_ROWS` queries at a time.

        Args:
            query: ``(B, query heads, q, head_dim)``: the last q tokens seen, or the last ones of these.
            scaling: Scaling of the products.

        Yields:
            ``(B, heads, query heads / heads, rows, n)`` float32.
        """
        keys = self.keys.float()
        batch, heads, n, dim = keys.shape
        queries = query.shape[-2]
        grouped = query.float().reshape(batch, heads, -1, queries, dim)
        for start in range(0, queries, OBSERVED_ROWS):
            block = grouped[..., start : start + OBSERVED_ROWS, :]
            products = block @ keys[:, :, None].transpose(-1, -2) * scaling
            last = torch.arange(start, start + block.shape[-2], device=keys.device) + n - queries
            hidden = torch.arange(n, device=keys.device) > last[:, None]
            yield products.masked_fill_(hidden, float("-inf")).softmax(-1)


def replace_full_layers(model: Any, make: Callable[[int], Any]) -> Any:
    """Makes a `DynamicCache` with other layers for full attention; layers with a window are unchanged.

    Args:
        model: A transformers model.
        make: Maps a layer's index to its cache layer.
    """
    cache = DynamicCache(config=model.config)
    cache.layers = [make(i) if type(layer) is DynamicLayer else layer for i, layer in enumerate(cache.layers)]
    return cache


def evicting_cache(model: Any, keep: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """Makes a cache with an `EvictingLayer` for each layer with full attention."""
    return replace_full_layers(model, lambda _: EvictingLayer(keep))


_observers: ContextVar[Mapping[int, ObservingLayer]] = ContextVar("observers")


def _observed_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    output = sdpa_attention_forward(module, query, key, value, mask, **kwargs)
    layer = _observers.get({}).get(getattr(module, "layer_idx", -1))
    if layer is not None and layer.is_waiting:
        layer.observe(query, query.shape[-1] ** -0.5 if kwargs.get("scaling") is None else kwargs["scaling"])
    return output


AttentionInterface.register(OBSERVED_ATTENTION, _observed_attention)
AttentionMaskInterface.register(OBSERVED_ATTENTION, sdpa_mask)


@contextmanager
def observed(model: Any, cache: Any) -> Iterator[None]:
    """Passes the attention to the cache's layers while the model is fed through it, if any layer needs it.

    Raises:
        UserError: The model does not use transformers' sdpa attention, or a layer received no attention.
    """
    layers = {i: layer for i, layer in enumerate(cache.layers) if isinstance(layer, ObservingLayer)}
    if not layers:
        yield
        return
    name, config = type(model).__name__, model.config.get_text_config(decoder=True)
    used = config._attn_implementation
    if used != "sdpa":
        raise UserError(
            f"this cache policy reads the attention of {name}, which uses {used}: use `attention=sdpa`, or a policy "
            "that does not need attention, such as `cache=knorm:0.5`"
        )
    token = _observers.set(layers)
    config._attn_implementation = OBSERVED_ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = used
        _observers.reset(token)
    if any(layer.is_waiting for layer in layers.values()):
        raise UserError(
            f"{name} does not compute attention through transformers' attention interface, so this cache policy cannot "
            "read it: use a policy that does not need attention, such as `cache=knorm:0.5`"
        )


def cache_bytes(cache: Any) -> int:
    """Bytes of the keys and values in a cache, including scales and indices of quantized ones."""
    return sum(_bytes_in(vars(layer)) for layer in cache.layers)


def _bytes_in(value: Any) -> int:
    if isinstance(value, Tensor):
        if type(value) is not Tensor and hasattr(value, "__tensor_flatten__"):  # quanto's
            return sum(_bytes_in(getattr(value, name)) for name in value.__tensor_flatten__()[0])
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(_bytes_in, value.values()))
    return sum(map(_bytes_in, value)) if isinstance(value, (list, tuple)) else 0


@dataclass(frozen=True, kw_only=True)
class CacheUse:
    """A policy, and the chunks in which a text is fed.

    Attributes:
        policy: The cache policy.
        chunk: Tokens per chunk, or of the tail.
        protocol: ``stream``: every chunk attends to the kept tokens of the chunks before it. ``prefill+tail``: all but
            the last `chunk` tokens are fed at once and then compressed, and the tail attends to the kept tokens. Only
            the scores of the tail depend on the policy.

    Raises:
        UserError: The chunk has no tokens, or the protocol is unknown.
    """

    policy: CachePolicy
    chunk: int = CACHE_CHUNK
    protocol: CacheProtocol = "stream"

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.chunk < 1:
            raise UserError(f"`cache_chunk` is {self.chunk}; expected tokens, at least 1")
        if self.protocol not in get_args(CacheProtocol):
            raise UserError(f"`cache_protocol` is {self.protocol!r}; expected {' or '.join(get_args(CacheProtocol))}")

    def chunks(self, length: int) -> list[slice]:
        """Slices of a text, in the order in which they are fed.

        Args:
            length: Length of the text, in tokens.
        """
        if self.protocol == "stream":
            starts = list(range(0, length, self.chunk))
        else:
            starts = [0, length - self.chunk] if length > self.chunk else [0]
        return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], length], strict=True)]

    @property
    def identity(self) -> str | None:
        """The policy's part of a model's identity: ``NAME@CHUNK`` or ``NAME@prefill+TAIL``; None for the full cache."""
        if self.policy.name == FullCache.name:
            return None
        return f"{self.policy.name}@{self.chunk if self.protocol == 'stream' else f'prefill+{self.chunk}'}"
