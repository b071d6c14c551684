"""Cache policies: what a model keeps of a long context while it is fed in chunks.

A policy makes a cache of transformers, and the scorer feeds a long context through it in chunks, with each token at its
own position whatever the cache has dropped. Short contexts are scored without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from longlens.errors import UserError, library_errors
from longlens.plugins import list_plugins, load_plugin

CACHE_CHUNK = 256
"""Tokens that are fed at a time unless given."""


class CachePolicy(ABC):
    """What a model keeps of its keys and values.

    Attributes:
        name: Says what is kept, settings included, such as ``"recent:512"``: it is a part of the model's identity.
    """

    name: str

    @abstractmethod
    def new_cache(self, model: Any) -> Any:
        """An empty cache of transformers for sequences of one length, such as `evicting_cache` makes.

        Its ``get_seq_length`` counts the tokens seen and ``get_mask_sizes`` those held, and all layers of one kind hold
        equally many. What it does to a sequence depends neither on the other rows of a batch nor on sequences before.

        Args:
            model: Of transformers.
        """


class FullCache(CachePolicy):
    """Keeps everything: the numbers of a single pass, in chunks."""

    name = "full"

    def new_cache(self, model: Any) -> Any:
        """The library's own."""
        return DynamicCache(config=model.config)


class EvictingLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """Keys and values of a layer; after each chunk, which sees all that was held before it, some are kept.

    Masks and positions go by the tokens seen, so that dropping some moves no other.

    Args:
        keep: From keys and values ``(B, heads, n, head_dim)``, the oldest first, to the indices ``(kept,)`` of those
            that stay, ascending.
    """

    def __init__(self, keep: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self._keep, self._num_seen = keep, 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Takes a chunk in; what it attends to is returned, and what `keep` says is held."""
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        self._num_seen += key_states.shape[-2]
        kept = self._keep(keys, values).to(keys.device)
        self.keys, self.values = keys.index_select(-2, kept), values.index_select(-2, kept)
        return keys, values

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self._num_seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Tokens that a chunk of this length attends to, and how many came before them."""
        held = 0 if self.keys is None else self.keys.shape[-2]
        return held + query_length, self._num_seen - held


def evicting_cache(model: Any, keep: Callable[[Tensor, Tensor], Tensor]) -> Any:
    """A cache with an `EvictingLayer` for each layer that attends to everything; those with a window have their own."""
    cache = DynamicCache(config=model.config)
    cache.layers = [EvictingLayer(keep) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def load_cache(name: str) -> CachePolicy:
    """The policy of a name as ``full`` or ``NAME:SETTINGS``.

    Other packages add names by entry points of the group ``longlens.caches``: a function, or a class, that makes the
    policy of the text after the colon (empty where there is none).

    Raises:
        UserError: No such policy, or settings that it does not take.
    """
    kind, _, settings = name.partition(":")
    make = load_plugin("longlens.caches", kind, own=[FullCache.name], is_kind=callable, expected="a function or class")
    if name == FullCache.name:
        return FullCache()
    if make is None:
        known = ", ".join([FullCache.name, *list_plugins("longlens.caches")])
        raise UserError(f"`cache` is {name!r}; expected one of {known}, or a package that adds it")
    with library_errors(f"`cache` is {name!r}, whose settings are wrong", f"see what {kind} takes"):
        policy = make(settings)
    if not isinstance(policy, CachePolicy):
        raise UserError(f"`cache` {name!r} makes {type(policy).__name__}; expected a CachePolicy: mend its package")
    return policy


def cache_identity(policy: CachePolicy | None, chunk: int | None) -> str | None:
    """What an identity says of a policy, ``NAME@CHUNK``; None where everything is kept."""
    return None if policy is None or policy.name == FullCache.name else f"{policy.name}@{chunk or CACHE_CHUNK}"


def check_cache_settings(policy: CachePolicy | None, chunk: int | None) -> None:
    """Refuses a chunk of no tokens, or one without a policy."""
    if chunk is not None and chunk < 1:
        raise UserError(f"`cache_chunk` is {chunk}; expected tokens, at least 1")
    if chunk is not None and policy is None:
        raise UserError("`cache_chunk` would have no effect without `cache`: leave it out, or give `cache=full`")
