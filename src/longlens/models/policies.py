"""Cache policies of the literature, one class each. A policy selects the keys and values to keep after each chunk.

Sizes are tokens kept in each layer with full attention: a number of tokens, or a fraction of those seen
(``h2o:512``, ``h2o:0.25``). Layers with a sliding window keep it under every policy.

Keys keep the position at which they were rotated. StreamingLLM as published renumbers the kept tokens, which gives
the same distances between neighbors but other distances to the sinks.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from longlens.errors import UserError, library_errors, require
from longlens.models.caches import (
    CACHE_CHUNK,
    CachePolicy,
    CacheProtocol,
    CacheUse,
    EvictingLayer,
    FullCache,
    ObservingLayer,
    evicting_cache,
    replace_full_layers,
)
from longlens.plugins import list_plugins, load_plugin

SNAP_WINDOW = 64
"""Queries at the end of a chunk whose attention selects the other keys (SnapKV, ``window_size`` of its code)."""
SNAP_KERNEL = 5
"""Keys over which attention is averaged before the selection (SnapKV, ``kernel_size`` of its code)."""
RANDOM_SEED = 0


class Budget:
    """Number of tokens to keep: ``"512"`` tokens, or ``"0.25"`` of those seen; ``"1"`` is one token, ``"1.0"`` all.

    Attributes:
        text: The normalized text.

    Raises:
        UserError: The text is neither a number of tokens nor a fraction.
    """

    def __init__(self, text: str, name: str) -> None:
        is_number = re.fullmatch(r"[0-9]+|[0-9]*\.[0-9]+", text) is not None
        self._tokens = int(text) if is_number and "." not in text else None
        self._fraction = float(text) if is_number and "." in text else None
        if not (self._tokens or 0 < (self._fraction or 0) <= 1):
            raise UserError(
                f"`cache` is '{name}:{text}'; expected the number of tokens to keep, or a fraction of those seen: "
                f"{name}:512, {name}:0.25"
            )
        self.text = str(self._fraction if self._tokens is None else self._tokens)

    def tokens(self, seen: int) -> int:
        """Returns the number of tokens to keep.

        Args:
            seen: Number of tokens seen.
        """
        return max(1, int((self._fraction or 0) * seen)) if self._tokens is None else self._tokens


class Window(CachePolicy):
    """``window:W``: the last W tokens."""

    mixes_rows = False

    def __init__(self, settings: str) -> None:
        (self._size,) = _integers(settings, "window", "W")
        self.name = f"window:{self._size}"

    def new_cache(self, model: Any) -> Any:
        """Makes a cache that keeps the end."""
        return evicting_cache(model, lambda keys, _: torch.arange(max(0, keys.shape[-2] - self._size), keys.shape[-2]))


class Sink(CachePolicy):
    """``sink:S+W``: the first S tokens and the last W (Xiao et al. 2024, StreamingLLM)."""

    mixes_rows = False

    def __init__(self, settings: str) -> None:
        self._sinks, self._size = _integers(settings, "sink", "S+W")
        self.name = f"sink:{self._sinks}+{self._size}"

    def new_cache(self, model: Any) -> Any:
        """Makes a cache that keeps both ends."""

        def keep(keys: Tensor, values: Tensor) -> Tensor:
            n = keys.shape[-2]
            first = min(self._sinks, n)
            return torch.cat([torch.arange(first), torch.arange(max(first, n - self._size), n)])

        return evicting_cache(model, keep)


class _Ranked(CachePolicy):
    """Keeps a budget of tokens with the highest ranks, which a layer computes."""

    layer: Callable[[Budget, int], EvictingLayer]
    kind: str

    def __init__(self, settings: str) -> None:
        self._budget = Budget(settings, self.kind)
        self.name = f"{self.kind}:{self._budget.text}"

    def new_cache(self, model: Any) -> Any:
        """Makes a cache with a ranking layer for each layer with full attention."""
        make = type(self).layer
        return replace_full_layers(model, lambda number: make(self._budget, number))


class _RandomLayer(EvictingLayer):
    def __init__(self, budget: Budget, number: int) -> None:
        super().__init__(self._draw)
        self._budget, self._number = budget, number

    def _draw(self, keys: Tensor, values: Tensor) -> Tensor:
        # Each layer and step has its own seed: the result for a sequence depends on nothing before it.
        generator = torch.Generator().manual_seed(RANDOM_SEED + 1_000_003 * self._number + self.num_seen)
        order = torch.randperm(keys.shape[-2], generator=generator)
        return order[: self._budget.tokens(self.num_seen)].sort().values


class Random(_Ranked):
    """``random:SIZE``: random tokens, the same for all heads of a layer; a baseline for the other policies."""

    kind, layer, mixes_rows = "random", _RandomLayer, False


class _NormLayer(EvictingLayer):
    def __init__(self, budget: Budget, number: int) -> None:
        super().__init__(lambda keys, _: _highest(-keys.float().norm(dim=-1), budget.tokens(self.num_seen)))


class KeyNorm(_Ranked):
    """``knorm:SIZE``: in each head the keys with the smallest L2 norm (Devoto et al. 2024)."""

    kind, layer = "knorm", _NormLayer


class _AttendedLayer(ObservingLayer):
    def __init__(self, budget: Budget, number: int) -> None:
        super().__init__()
        self._budget = budget

    def keep_attended(self, query: Tensor, scaling: float) -> Tensor:
        """Selects the tokens to keep within the budget."""
        size = self._budget.tokens(self.num_seen)
        return self._choose(query, scaling, size)

    @abstractmethod
    def _choose(self, query: Tensor, scaling: float, size: int) -> Tensor: ...


class _HeavyHitterLayer(_AttendedLayer):
    _sums: Tensor | None = None

    def _choose(self, query: Tensor, scaling: float, size: int) -> Tensor:
        sums = torch.zeros(self.keys.shape[:-1], device=self.keys.device)
        if self._sums is not None:
            sums[..., : self._sums.shape[-1]] += self._sums
        for block in self.attention(query, scaling):
            sums += block.mean(2).sum(-2)
        ranked = sums.clone()
        ranked[..., max(0, ranked.shape[-1] - size // 2) :] = float("inf")  # the recent half
        kept = _highest(ranked, size)
        self._sums = sums.gather(-1, kept)
        return kept


class HeavyHitter(_Ranked):
    """``h2o:SIZE``: in each head, half are the last tokens, half have the most attention so far (Zhang et al. 2023)."""

    kind, layer = "h2o", _HeavyHitterLayer


class _SnapLayer(_AttendedLayer):
    def _choose(self, query: Tensor, scaling: float, size: int) -> Tensor:
        n = self.keys.shape[-2]
        window = min(SNAP_WINDOW, query.shape[-2], max(1, size // 2))
        sums = torch.zeros(self.keys.shape[:-1], device=self.keys.device)
        for block in self.attention(query[..., -window:, :], scaling):
            sums += block.mean(2).sum(-2)
        ranked = torch.nn.functional.avg_pool1d(
            sums.flatten(0, 1)[:, None], SNAP_KERNEL, stride=1, padding=SNAP_KERNEL // 2, count_include_pad=False
        ).reshape(sums.shape)
        ranked[..., n - window :] = float("inf")
        return _highest(ranked, size)


class Snap(_Ranked):
    """``snapkv:SIZE``: in each head the last 64 tokens of a chunk, and the tokens before them with the most attention
    from these, averaged over 5 neighbors (Li et al. 2024, SnapKV).
    """

    kind, layer = "snapkv", _SnapLayer


class _LastQueryLayer(_AttendedLayer):
    def _choose(self, query: Tensor, scaling: float, size: int) -> Tensor:
        (block,) = self.attention(query[..., -1:, :], scaling)
        ranked = block.mean((1, 2))  # over all heads, which keep the same tokens
        return _highest(ranked[:, 0], size)[:, None].expand(-1, self.keys.shape[1], -1)


class LastQuery(_Ranked):
    """``tova:SIZE``: tokens with the most attention from a chunk's last token, over all heads (Oren et al. 2024)."""

    kind, layer = "tova", _LastQueryLayer


class _Quantized(CachePolicy):
    """Keys and values in fewer bits, by a layer of transformers; the first chunk is read unquantized."""

    def __init__(self, name: str, layer: str, package: str | None = None, **settings: Any) -> None:
        import transformers.cache_utils

        if not hasattr(transformers.cache_utils, layer):
            raise UserError(f"`cache={name}` needs {layer} of transformers 5.24, which this version lacks: update it")
        if package is not None:
            require(package, extra="caches", purpose=f"`cache={name}`")
        self.name, self._layer, self._settings = name, getattr(transformers.cache_utils, layer), settings

    def new_cache(self, model: Any) -> Any:
        """Quantized cache layers for full attention; QuantizedCache itself rejects models with windows."""
        return replace_full_layers(model, lambda _: self._layer(**self._settings))


def _fp8(settings: str) -> CachePolicy:
    """``fp8``: one scale per layer, from its first chunk; later values above it are clipped, so chunk size matters."""
    if settings:
        raise UserError(f"`cache` is 'fp8:{settings}'; expected fp8, which has no settings")
    return _Quantized("fp8", "Fp8QuantizedLayer")


def _quanto(settings: str) -> CachePolicy:
    """``quanto:BITS``: 2 or 4 bits, groups of 64 (optimum-quanto)."""
    bits = _bits(settings, "quanto", (2, 4))
    return _Quantized(f"quanto:{settings}", "QuantoQuantizedLayer", "optimum.quanto", nbits=bits)


def _hqq(settings: str) -> CachePolicy:
    """``hqq:BITS``: 1, 2, 3, 4 or 8 bits, groups of 64 (hqq)."""
    return _Quantized(f"hqq:{settings}", "HQQQuantizedLayer", "hqq", nbits=_bits(settings, "hqq", (1, 2, 3, 4, 8)))


OWN: dict[str, Callable[[str], CachePolicy]] = {
    "window": Window,
    "sink": Sink,
    "random": Random,
    "knorm": KeyNorm,
    "h2o": HeavyHitter,
    "snapkv": Snap,
    "tova": LastQuery,
    "fp8": _fp8,
    "quanto": _quanto,
    "hqq": _hqq,
}
"""Built-in policies by the name before the colon; each receives the text after it."""


def make_cache_use(
    cache: str | CachePolicy | None, chunk: int | None, protocol: CacheProtocol | None
) -> CacheUse | None:
    """The requested cache use; None without a policy.

    Raises:
        UserError: The policy does not exist, or the chunk or protocol is invalid or set without a policy.
    """
    if cache is None:
        given = {"cache_chunk": chunk, "cache_protocol": protocol}
        for name in (name for name, value in given.items() if value is not None):
            raise UserError(f"`{name}` would have no effect without `cache`: remove it, or pass `cache=full`")
        return None
    policy = load_cache(cache) if isinstance(cache, str) else cache
    return CacheUse(policy=policy, chunk=CACHE_CHUNK if chunk is None else chunk, protocol=protocol or "stream")


def load_cache(name: str) -> CachePolicy:
    """Makes the policy for a name such as ``full`` or ``NAME:SETTINGS``, or ``MODULE:NAME:SETTINGS`` in a module.

    Other packages add names with entry points of the group ``longlens.caches``: a function or class that makes a
    policy from the text after the colon (empty if there is none).

    Raises:
        UserError: The policy does not exist, or its settings are invalid.
    """
    kind, _, settings = name.partition(":")
    own = [FullCache.name, *OWN]
    added = load_plugin("longlens.caches", kind, own=own, is_kind=callable, expected="a function or class")
    make = OWN.get(kind, added)
    if name == FullCache.name:
        return FullCache()
    if make is None:
        make, settings = _imported(name), settings.partition(":")[2]
    if make is None:
        known = ", ".join([*own, *list_plugins("longlens.caches")])
        raise UserError(
            f"`cache` is {name!r}; expected one of {known}, or install the plugin that provides it, or "
            "MODULE:NAME:SETTINGS with a module that Python can import (PYTHONPATH=. for one in this folder)"
        )
    with library_errors(f"`cache` is {name!r}, whose settings are invalid", f"see the settings of {kind}"):
        policy = make(settings)
    if not isinstance(policy, CachePolicy):
        raise UserError(f"`cache` {name!r} makes {type(policy).__name__}; expected a CachePolicy: fix its package")
    return policy


def _imported(name: str) -> Callable[[str], CachePolicy] | None:
    """Imports ``MODULE:NAME`` or ``MODULE:NAME:SETTINGS``; None if the text has another form or no such module exists.

    Raises:
        UserError: The module cannot be imported, or has no such function or class.
    """
    module, _, rest = name.partition(":")
    attribute = rest.partition(":")[0]
    if not attribute.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        return None
    with library_errors(f"the module of `cache` {name!r} cannot be imported", "fix it"):
        try:
            found = getattr(import_module(module), attribute, None)
        except ModuleNotFoundError as error:
            if error.name is not None and f"{module}.".startswith(f"{error.name}."):
                return None
            raise
    if not callable(found):
        raise UserError(f"`cache` is {name!r}, but {module} has no function or class {attribute}: use one that it has")
    make: Callable[[str], CachePolicy] = found
    return make


def _highest(ranks: Tensor, size: int) -> Tensor:
    """Indices of the highest values along the last axis, ascending."""
    return ranks.topk(min(size, ranks.shape[-1]), dim=-1).indices.sort(-1).values


def _integers(text: str, name: str, form: str) -> list[int]:
    parts = text.split("+")
    if len(parts) != len(form.split("+")) or not all(part.isascii() and part.isdigit() for part in parts):
        example = f"{name}:{_EXAMPLES[name]}"
        raise UserError(f"`cache` is '{name}:{text}'; expected {name}:{form} in tokens, such as {example}")
    sizes = [int(part) for part in parts]
    if sizes[-1] < 1:
        raise UserError(f"`cache` is '{name}:{text}', which keeps no recent token; expected 1 or more")
    return sizes


_EXAMPLES = {"window": "1024", "sink": "4+1020"}


def _bits(text: str, name: str, allowed: tuple[int, ...]) -> int:
    if text not in map(str, allowed):
        raise UserError(f"`cache` is '{name}:{text}'; expected {name}:BITS with {', '.join(map(str, allowed))} bits")
    return int(text)
