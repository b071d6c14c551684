"""Groups of settings that many calls take: frozen, checked when they are made, and None where nothing was given.

A command of the CLI that has a parameter of such a type has an option for each of its fields.
"""

from __future__ import annotations

from dataclasses import dataclass

from longlens.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Loading:
    """How a model is loaded.

    Attributes:
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``; ``auto`` is bfloat16 on a GPU that has it and float32
            elsewhere.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ...
        device_map: Spreads the model over devices, as in transformers; replaces `device`.
        attention: Attention implementation of transformers, such as ``sdpa``.
        batch_tokens: Tokens of model input in a batch; None for 1,024 on a CPU and 32,768 on a GPU.
        trust_remote_code: Runs code that comes with the model.
        allow_pickle: Reads ``.bin`` weights, which can run code.
    """

    dtype: str = "auto"
    device: str = "auto"
    device_map: str | None = None
    attention: str | None = None
    batch_tokens: int | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Truncation:
    """What documents are cut to, before any model sees them.

    Attributes:
        max_length: Tokens; None for the smaller of 32,768 and what the model takes.
        max_characters: Characters instead of tokens.
        truncate_with: Name of the model whose tokenizer counts `max_length`; None for the scored model's.
        extrapolate: Allows more tokens than the model was made for.

    Raises:
        UserError: Both tokens and characters are given.
    """

    max_length: int | None = None
    max_characters: int | None = None
    truncate_with: str | None = None
    extrapolate: bool = False

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.max_characters is not None and (self.max_length is not None or self.truncate_with is not None):
            raise UserError("`max_characters` and `max_length` (or `truncate_with`) were both given: choose one")


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyRule:
    """Which tokens are key, from an evaluator's scores (eq. 4): LSD > alpha and LCL > beta.

    Attributes:
        alpha: Nats; None for 2, or what a file of key tokens was made with.
        beta: Nats; None for -2, or what a file of key tokens was made with.
        lcl: False selects by LSD alone (appendix B.2).
        gamma: Largest weight of LongPPL-soft; None for 5.
        context: K, of several that were scored; None for the largest.
        stride: d, where one K was scored with several.
    """

    alpha: float | None = None
    beta: float | None = None
    lcl: bool | None = None
    gamma: float | None = None
    context: int | None = None
    stride: int | None = None
