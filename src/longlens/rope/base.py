"""Base classes of the methods of position extrapolation, and shared checks."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from longlens.errors import UserError
from longlens.rope.frequencies import Frequencies, Rope

EABF_TYPE = "longlens_eabf"
CLEX_TYPE = "longlens_clex"
"""Types of rotary embedding that are unknown to transformers, which therefore rejects them."""
REQUIRES = (
    "transformers does not support this model's rotary embedding: load it with longlens.rope.load_model(FOLDER) "
    "(pip install longlens), or use it with the commands of longlens"
)
"""Written into the configuration of such a model as ``longlens_requires``."""


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Base class of all methods. A method is a frozen dataclass whose fields are its settings.

    Attributes:
        name: Name on the command line and in recipes.
        original_length: L0, the training length in tokens; by default the model's ``max_position_embeddings``.
    """

    name: ClassVar[str]
    original_length: int | None = None

    def __post_init__(self) -> None:
        length = self.original_length
        if length is not None and (not isinstance(length, int) or length < 2):
            raise UserError(f"`original_length` is {length}; expected the context length in training, in tokens")

    @abstractmethod
    def frequencies(self, rope: Rope, num_tokens: int = 1) -> Frequencies:
        """Inverse frequencies and attention factor for a sequence of ``num_tokens`` tokens."""

    @abstractmethod
    def max_length(self, rope: Rope) -> int:
        """``max_position_embeddings`` of the extended model, tokens."""

    def parameters(self, rope: Rope, current: Mapping[str, Any]) -> dict[str, Any]:
        """``rope_parameters`` of the extended model, from its current ones.

        Unless a method has its own type in transformers, its frequencies are written as ``longrope``, which
        transformers and other libraries read: one divisor per frequency for sequences up to L0 and one for longer ones.
        """
        short, long = self.frequencies(rope, rope.length), self.frequencies(rope, rope.length + 1)
        return {
            **current,
            "rope_type": "longrope",
            "factor": self.max_length(rope) / rope.length,
            "original_max_position_embeddings": rope.length,
            "short_factor": (rope.inv_freq / short.inv_freq).tolist(),
            "long_factor": (rope.inv_freq / long.inv_freq).tolist(),
            "attention_factor": float(short.attention_factor),
        }

    def extends(self, rope_type: str) -> bool:
        """Whether it can be applied to a model with this type of rotary embedding."""
        return rope_type == "default"

    def check(self, rope: Rope) -> None:
        """Checks the settings against the model.

        Raises:
            UserError: They do not fit the model.
        """
        self.max_length(rope)


@dataclass(frozen=True, kw_only=True)
class ScaledMethod(Method):
    """Methods with a factor s that multiplies the length.

    Attributes:
        factor: s, more than 1.
        starts_as_the_original: Whether frequencies approach the model's own as s goes to 1; false if other settings
            determine them.
    """

    starts_as_the_original: ClassVar[bool] = True

    # "For PI (Chen et al., 2023), we set the scaling factor to 8 since we want to extend the context window from 4k
    # to 32k." (LongPPL, appendix A.2). The factor follows from the lengths, so it has no default.
    factor: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_factor(self.factor)

    def max_length(self, rope: Rope) -> int:
        """``s * L0``."""
        return extended_length(self.factor, rope.length)


def check_factor(factor: float) -> None:
    """Rejects a factor that does not extend the length."""
    if not (isinstance(factor, (int, float)) and 1 < factor < math.inf):
        raise UserError(f"`factor` is {factor}; expected more than 1, such as 8 to go from 4,096 tokens to 32,768")


def check_theta(theta: float) -> None:
    """Rejects an invalid base."""
    if not (isinstance(theta, (int, float)) and 1 < theta < math.inf):
        raise UserError(f"`theta` is {theta}; expected a base above 1, such as 500000")


def check_attention_factor(value: float | None) -> None:
    """Rejects an invalid attention factor."""
    if value is not None and not 0 < value < math.inf:
        raise UserError(f"`attention_factor` is {value}; expected more than 0, or leave it out for the paper's")


def check_order(**values: float) -> None:
    """Rejects two settings unless 0 < first < second."""
    (low, a), (high, b) = values.items()
    if not 0 < a < b < math.inf:
        raise UserError(f"`{low}` is {a} and `{high}` is {b}; expected 0 < {low} < {high}")


def as_floats(**values: float | None) -> dict[str, float]:
    """Values for a config, without None values."""
    return {name: float(value) for name, value in values.items() if value is not None}


def extended_length(factor: float, length: int) -> int:
    """Tokens of the extended model, an integer: transformers computes the factor from the two lengths."""
    product = factor * length
    if product != round(product):
        raise UserError(
            f"`factor={factor:g}` times {length} tokens is {product:g}; expected an integer number of tokens"
        )
    return round(product)
