"""The methods of position extrapolation as settings: the settings of each, and its parameters in a model's config.

Does not need torch. The equations are in `longlens.rope.frequencies`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longlens.errors import UserError, shown_value
from longlens.plugins import list_plugins, load_plugin
from longlens.rope import frequencies as f
from longlens.rope.base import (
    CLEX_TYPE,
    EABF_TYPE,
    Method,
    ScaledMethod,
    as_floats,
    check_attention_factor,
    check_factor,
    check_order,
    check_theta,
    extended_length,
)
from longlens.rope.frequencies import Frequencies, Rope


@dataclass(frozen=True, kw_only=True)
class PositionInterpolation(ScaledMethod):
    """Position Interpolation: positions divided by the factor (`frequencies.position_interpolation`)."""

    name = "pi"

    def frequencies(self, rope: Rope, num_tokens: int = 1) -> Frequencies:
        """``f_i / s``."""
        return f.position_interpolation(rope, factor=self.factor)

    def parameters(self, rope: Rope, current: Mapping[str, Any]) -> dict[str, Any]:
        """Type ``linear`` of transformers."""
        return {**current, "rope_type": "linear", "factor": float(self.factor)}


@dataclass(frozen=True, kw_only=True)
class NTK(Method):
    """NTK-aware scaling: a larger base, from the factor or as given (`frequencies.ntk_theta`).

    Attributes:
        factor: New context length divided by L0.
        theta: The base; by default computed from the factor. Without a factor,
            ``max_position_embeddings`` stays.
    """

    name = "ntk"
    factor: float | None = None
    theta: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor is None and self.theta is None:
            raise UserError("NTK needs a factor (factor=8), a base (theta=8e6), or both: a factor alone gives the base")
        if self.factor is not None:
            check_factor(self.factor)
        if self.theta is not None:
            check_theta(self.theta)

    def base(self, rope: Rope) -> float:
        """The base b'."""
        if self.theta is not None:
            return float(self.theta)
        assert self.factor is not None
        return f.ntk_theta(rope, factor=self.factor)

    def frequencies(self, rope: Rope, num_tokens: int = 1) -> Frequencies:
        """Frequencies of the larger base."""
        return f.with_base(rope, theta=self.base(rope))

    def parameters(self, rope: Rope, current: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters with the larger base."""
        return {**current, "rope_theta": self.base(rope)}

    def max_length(self, rope: Rope) -> int:
        """``s * L0``; L0 without a factor."""
        return rope.length if self.factor is None else extended_length(self.factor, rope.length)

    def extends(self, rope_type: str) -> bool:
        """A method with an explicit base can extend an EABF model.

        "we extend the context window of both models by increasing their RoPE base from 500K to 2M" (LongPPL, B.5).
        """
        return rope_type == "default" or (rope_type == EABF_TYPE and self.theta is not None)

    def check(self, rope: Rope) -> None:
        """Rejects a base that is not larger."""
        super().check(rope)
        # With a factor the base may stay: the model is trained at the new length with its own (ProLong, table 18).
        if self.theta is not None and (self.theta < rope.theta or (self.theta == rope.theta and self.factor is None)):
            raise UserError(
                f"`theta` is {self.theta:g}; the model's base is {rope.theta:g} already; a larger one is required to "
                "extend it"
            )


@dataclass(frozen=True, kw_only=True)
class DynamicNTK(ScaledMethod):
    """Dynamic NTK: a base that grows with the length (`frequencies.dynamic_ntk`); ``max_position_embeddings`` stays L0.

    transformers reads L0 from there, so longer documents need ``extrapolate``.
    """

    name = "dynamic-ntk"

    def frequencies(self, rope: Rope, num_tokens: int = 1) -> Frequencies:
        """Frequencies of a base that grows with the sequence length."""
        return f.dynamic_ntk(rope, factor=self.factor, num_tokens=num_tokens)

    def parameters(self, rope: Rope, current: Mapping[str, Any]) -> dict[str, Any]:
        """Type ``dynamic`` of transformers."""
        return {**current, "rope_type": "dynamic", "factor": float(self.factor)}

    def max_length(self, rope: Rope) -> int:
        """L0."""
        return rope.length


@dataclass(frozen=True, kw_only=True)
class YaRN(ScaledMethod):
    """YaRN (`frequencies.yarn`).

    Attributes:
        beta_fast: Pairs with more turns than this over L0 tokens are unchanged.
        beta_slow: Pairs with fewer turns are interpolated.
        attention_factor: Attention factor; ``0.1 ln s + 1`` by default.
    """

    name = "yarn"
    # The paper's values for the Llama family: alpha = 1 and beta = 32, here beta_slow and beta_fast ("NTK-by-parts").
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_attention_factor(self.attention_factor)
        check_order(beta_slow=self.beta_slow, beta_fast=self.beta_fast)

    def frequencies(self, rope: Rope, num_tokens: int = 1) -> Frequencies:
        """Frequencies, some of them divided by s."""
        beta = {"beta_fast": self.beta_fast, "beta_slow": self.beta_slow}
        return f.yarn(rope, factor=self.factor, **beta, attention_factor=self.attention_factor)

    def parameters(self, rope: Rope, current: Mapping[str, Any]) -> dict[str, Any]:
        """Type ``yarn`` of transformers."""
        settings = {name: getattr(self, name) for name in ("factor", "beta_fast", "beta_slow", "attention_factor")}
        return _written(current, "yarn", rope, **settings)


@dataclass(frozen=True, kw_only=True)
class LongRoPE(ScaledMethod):
    """LongRoPE: one divisor per frequency, found by a search for the model (`frequencies.longrope`).

    Attributes:
        short_factors: ``(d/2,)`` divisors for sequences up to L0.
        long_factors: ``(d/2,)`` divisors for longer sequences.
        attention_factor: Attention factor; ``sqrt(1 + ln s / ln L0)`` by default.
    """

    name = "longrope"
    starts_as_the_original = False
    short_factors: Sequence[float]
    long_factors: Sequence[float]
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_attention_factor(self.attention_factor)
        for name in ("short_factors", "long_factors"):
            values = getattr(self, name)
            wrong = [value for value in values if not (isinstance(value, (int, float)) and 0 < value < math.inf)]
            if wrong or not len(values):
                raise UserError(
                    f"`{name}` has {shown_value(wrong[0]) if wrong else 'no value'}; expected positive numbers"
                )
            object.__setattr__(self, name, tuple(float(value) for value in values))

    def frequencies(self, rope: Rope, num_tokens: int = 1) -> Frequencies:
        """Frequencies, each divided by its factor."""
        return f.longrope(
            rope,
            short_factors=self.short_factors,
            long_factors=self.long_factors,
            factor=self.factor,
            attention_factor=self.attention_factor,
            num_tokens=num_tokens,
        )

    def parameters(self, rope: Rope, current: Mapping[str, Any]) -> dict[str, Any]:
        """Type ``longrope`` of transformers."""
        written = _written(current, "longrope", rope, factor=self.factor, attention_factor=self.attention_factor)
        return written | {"short_factor": list(self.short_factors), "long_factor": list(self.long_factors)}

    def check(self, rope: Rope) -> None:
        """Rejects lists of another length than the frequencies."""
        super().check(rope)
        for name in ("short_factors", "long_factors"):
            if len(getattr(self, name)) != rope.dim // 2:
                raise UserError(
                    f"`{name}` has {len(getattr(self, name))} values; expected {rope.dim // 2}, one per frequency of "
                    f"the model's {rope.dim} rotary dimensions"
                )


@dataclass(frozen=True, kw_only=True)
class Llama3(ScaledMethod):
    """The scaling of Llama 3.1 (`frequencies.llama3`).

    Attributes:
        low_freq_factor: Pairs with fewer turns than this over L0 tokens are interpolated.
        high_freq_factor: Pairs with more turns are unchanged.
    """

    name = "llama3"
    # Llama 3.1's own: "low_freq_factor": 1.0, "high_freq_factor": 4.0 (its config.json, with factor 8 and L0 8192).
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(low_freq_factor=self.low_freq_factor, high_freq_factor=self.high_freq_factor)

    def frequencies(self, rope: Rope, num_tokens: int = 1) -> Frequencies:
        """Frequencies, some of them divided by s."""
        low, high = self.low_freq_factor, self.high_freq_factor
        return f.llama3(rope, factor=self.factor, low_freq_factor=low, high_freq_factor=high)

    def parameters(self, rope: Rope, current: Mapping[str, Any]) -> dict[str, Any]:
        """Type ``llama3`` of transformers."""
        settings = {name: getattr(self, name) for name in ("factor", "low_freq_factor", "high_freq_factor")}
        return _written(current, "llama3", rope, **settings)


@dataclass(frozen=True, kw_only=True)
class EABF(ScaledMethod):
    """Entropy-aware adjusted base frequency: a larger base, and queries scaled by the log of their position.

    See `frequencies.with_base` and `frequencies.eabf_query_scale`.

    Attributes:
        theta: The base.
        first_layer: First layer, counted from 0, in which queries are scaled.
    """

    name = "eabf"
    starts_as_the_original = False
    # "For EABF (Zhang et al., 2024c), we adopt the identical settings in the original paper, with a RoPE base of 500k."
    # (LongPPL, appendix A.2)
    theta: float = 500_000.0
    # The EABF paper leaves the first two layers unchanged (first_layer=2). The published code intends the same, but its
    # `apply_eabf` sets an attribute that attention does not read: all layers are scaled, and the numbers of both
    # papers' code come from that (first_layer=0).
    first_layer: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_theta(self.theta)
        if not isinstance(self.first_layer, int) or self.first_layer < 0:
            raise UserError(f"`first_layer` is {self.first_layer}; expected 0 (the published code) or 2 (the paper)")

    def frequencies(self, rope: Rope, num_tokens: int = 1) -> Frequencies:
        """Frequencies of the larger base."""
        return f.with_base(rope, theta=float(self.theta))

    def parameters(self, rope: Rope, current: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters of a longlens type."""
        return _written(current, EABF_TYPE, rope, rope_theta=self.theta) | {"first_layer": self.first_layer}

    def check(self, rope: Rope) -> None:
        """Rejects a smaller base."""
        super().check(rope)
        if self.theta < rope.theta:
            raise UserError(
                f"`theta` is {self.theta:g}; the model's base is {rope.theta:g} already, and EABF requires at least "
                "that"
            )


@dataclass(frozen=True, kw_only=True)
class CLEX(Method):
    """Continuous length extrapolation: frequencies follow a trained differential equation (`longlens.rope.clex`).

    Attributes:
        max_factor: The largest t, an integer: the maximum context length divided by L0.
        width: Hidden size of the equation's layer over d (``param_factor`` of the published code).
        step: Step of the solver (``time_dt`` of the published code).
    """

    name = "clex"
    max_factor: int
    # Defaults of the published code (DAMO-NLP-SG/CLEX, train/argument.py), which has 16 for max_factor.
    width: int = 1
    step: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_factor != int(self.max_factor) or self.max_factor < 2:
            raise UserError(f"`max_factor` is {self.max_factor}; expected an integer of at least 2, such as 16")
        object.__setattr__(self, "max_factor", int(self.max_factor))
        if not isinstance(self.width, int) or self.width < 1:
            raise UserError(f"`width` is {self.width}; expected an integer of at least 1")
        if not 0 < self.step <= 1:
            raise UserError(f"`step` is {self.step}; expected a number in (0, 1], such as 0.01")

    def frequencies(self, rope: Rope, num_tokens: int = 1) -> Frequencies:
        """Frequencies before training."""
        return f.clex_start(rope, t=min(self.max_factor, max(1, math.ceil(num_tokens / rope.length))))

    def parameters(self, rope: Rope, current: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters of a longlens type."""
        return _written(current, CLEX_TYPE, rope, factor=self.max_factor, step=self.step) | {"width": self.width}

    def max_length(self, rope: Rope) -> int:
        """The largest t times L0."""
        return extended_length(self.max_factor, rope.length)


def _written(current: Mapping[str, Any], rope_type: str, rope: Rope, **settings: float | None) -> dict[str, Any]:
    """``rope_parameters`` of a type that keeps L0; None values are omitted."""
    kept = {"rope_type": rope_type, "original_max_position_embeddings": rope.length}
    return {**current, **kept, **as_floats(**settings)}


def find_method(name: str) -> type[Method]:
    """Finds a method by name: one of `METHODS`, or one that another package adds (entry points longlens.rope_methods).

    Raises:
        UserError: There is no such method.
    """
    added: type[Method] | None = load_plugin(
        "longlens.rope_methods",
        name,
        own=METHODS,
        is_kind=lambda kind: isinstance(kind, type) and issubclass(kind, Method),
        expected="a subclass of longlens.rope.Method",
    )
    if added is None and name not in METHODS:
        known = ", ".join([*METHODS, *list_plugins("longlens.rope_methods")])
        raise UserError(f"`method` is {shown_value(name)}; expected one of {known}")
    return added or METHODS[name]


METHODS: dict[str, type[Method]] = {
    method.name: method for method in (PositionInterpolation, NTK, DynamicNTK, YaRN, LongRoPE, Llama3, EABF, CLEX)
}
