"""Cache policies: the keys and values that a model keeps while a long context is fed in chunks.

A policy makes a transformers cache, and the scorer feeds a long context through it in chunks, with each token at its
original position regardless of dropped tokens. Short contexts are scored without it. Our policies are in
`longlens.models.policies`.
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
"""Number of queries whose attention to all keys exists at one time."""


class CachePolicy(ABC):
    """Which keys and values a model keeps.

    Attributes:
        name: Name with settings, such as ``"recent:512"``: it is a part of the model's identity.
        mixes_rows: Whether what it keeps of a row may depend on the others of a batch, as one scale for all does, and a
            choice by values: products of another batch are rounded differently, and of two tokens that rank alike (keys
            of one word have one norm) the other one stays. Each sequence is then fed alone. False where places alone
            decide.
    """

    name: str
    mixes_rows: bool = True

    @abstractmethod
    def new_cache(self, model: Any) -> Any:
        """Returns an empty transformers cache for sequences of one length, such as from `evicting_cache`.

        Its ``get_seq_length`` counts the tokens seen and ``get_mask_sizes`` those held, and all layers of one kind hold
        the same number. Its effect on a sequence depends neither on other rows of a batch nor on earlier sequences.

        Args:
            model: A transformers model.
        """


class FullCache(CachePolicy):
    """Keeps everything: the results of a single pass, computed in chunks."""

    name, mixes_rows = "full", False

    def new_cache(self, model: Any) -> Any:
        """Returns the library's own cache."""
        return DynamicCache(config=model.config)


class EvictingLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """Keys and values of a layer; after each chunk, which sees all that was held before it, some are kept.

    Masks and positions depend on the tokens seen, so that dropping some moves no other.

    Args:
        keep: From keys and values ``(B, heads, n, head_dim)``, the oldest first, to the indices of those that stay,
            ascending: ``(kept,)``, or ``(B, heads, kept)`` where heads differ.
    """

    keys: Any
    values: Any

    def __init__(self, keep: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self._keep, self.num_seen = keep, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Takes a chunk in; what it attends to is returned, and what `keep` says is held."""
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
        """Tokens that a chunk of this length attends to, and how many came before them."""
        held = 0 if self.keys is None else self.keys.shape[-2]
        return held + query_length, self.num_seen - held


class ObservingLayer(EvictingLayer, ABC):
    """A layer that decides by what the chunk's queries attended to, which it is told after the attention was computed.

    Only inside `observed`.
    """

    def __init__(self) -> None:
        super().__init__(lambda keys, values: torch.arange(keys.shape[-2]))
        self.is_waiting = False

    def _evict(self, keys: Tensor, values: Tensor) -> None:
        self.is_waiting = True  # for `observe`

    def observe(self, query: Tensor, scaling: float) -> None:
        """Keeps what `keep_attended` says.

        Args:
            query: ``(B, query heads, q, head_dim)`` of the chunk, rotated.
            scaling: Scaling of the products with keys.
        """
        self.is_waiting = False
        self._hold(self.keep_attended(query, scaling))

    @abstractmethod
    def keep_attended(self, query: Tensor, scaling: float) -> Tensor:
        """Indices of the keys that stay, as `keep` of `EvictingLayer` gives them; ``self.keys`` holds all until then.

        Args:
            query: ``(B, query heads, q, head_dim)`` of the chunk, rotated.
            scaling: Scaling of the products with keys.
        """

    def attention(self, query: Tensor, scaling: float) -> Iterator[Tensor]:
        """``softmax(scaling * query @ keys.T)`` under the causal mask, `OBSERVED_ROWS` queries at a time.

        Args:
            query: ``(B, query heads, q, head_dim)``: the last q tokens that were seen, or the last of those.
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
    """A `DynamicCache` whose layers that attend to everything are others; those with a window have their own.

    Args:
        model: A transformers model.
        make: From a layer's number to its keys and values.
    """
    cache = DynamicCache(config=model.config)
    cache.layers = [make(i) if type(layer) is DynamicLayer else layer for i, layer in enumerate(cache.layers)]
    return cache


def evicting_cache(model: Any, keep: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """A cache with an `EvictingLayer` for each layer that attends to everything."""
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
    """While the model is fed through this cache, its layers are told the attention, if any wants to know.

    Raises:
        UserError: The model does not run transformers' sdpa attention, or a layer was told nothing.
    """
    layers = {i: layer for i, layer in enumerate(cache.layers) if isinstance(layer, ObservingLayer)}
    if not layers:
        yield
        return
    name, config = type(model).__name__, model.config.get_text_config(decoder=True)
    used = config._attn_implementation
    if used != "sdpa":
        raise UserError(
            f"this cache policy reads the attention of {name}, which runs {used}: use `attention=sdpa`, or a policy "
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
            f"{name} does not compute its attention by the interface of transformers, so this cache policy cannot read "
            "it: use a policy that does not need attention, such as `cache=knorm:0.5`"
        )


def cache_bytes(cache: Any) -> int:
    """Bytes of the keys and values that a cache holds, with the scales and indices of quantized ones."""
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
        protocol: ``stream``: every chunk reads what was kept of those before it. ``prefill+tail``: all but the last
            `chunk` tokens are fed at once and then compressed, and the tail reads what was kept of them; only the tail
            has scores that say something of the policy.

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
        """The slices of a text that are fed one after the other.

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
        """Its part of a model's identity: ``NAME@CHUNK`` or ``NAME@prefill+TAIL``; None if everything is kept."""
        if self.policy.name == FullCache.name:
            return None
        return f"{self.policy.name}@{self.chunk if self.protocol == 'stream' else f'prefill+{self.chunk}'}"
