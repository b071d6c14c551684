"""Settings of LongCE: which windows of a document are scored in a step, and the weight of a token (eq. 6 to 8)."""

from __future__ import annotations

import math
import warnings
import zlib
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from longlens.errors import LonglensWarning, UserError
from longlens.settings.options import CONTEXT, GAMMA, STRIDE, check_gamma
from longlens.settings.recipe import Integer, Real, Settings
from longlens.windows import Window, chunk_sizes, plan_chunks, plan_windows, window_sizes

SHORT_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class LongCE(Settings):
    """LongCE as in the paper: every token at position K or later is weighted in every step (eq. 6 to 8).

    A stride costs ``(n - K) / d`` windows of K + d tokens, so ``stride=context`` is cheaper: the short context of a
    token then has K to 2 K - 1 tokens. `SampledLongCE` and `ChunkedLongCE` weight a part of the tokens per step;
    docs/train.md lists the cost of each, and how far its weights are from these.

    Attributes:
        context: K, the minimum length of the short context in tokens.
        stride: d, the number of tokens scored per window.
        gamma: The maximum weight.
        floor: The smallest weight. 0, as in the paper, allows weights below 1 for tokens that the long context makes
            less probable (LSD < 0); with 1, no token has a smaller weight than in cross-entropy.
        short_dtype: ``bfloat16`` or ``float16``: the short-context pass runs in this dtype under autocast, but its
            vocabulary head in float32. By default, the precision of the long pass.

    Raises:
        UserError: A value is out of range.
    """

    context: Integer = Field(default=CONTEXT, ge=1)
    stride: Integer = Field(default=STRIDE, ge=1)
    gamma: Real = Field(default=GAMMA, gt=0)
    floor: Real = Field(default=0.0, ge=0)
    short_dtype: Literal["float16", "bfloat16"] | None = None

    @model_validator(mode="after")
    def _check_weights(self) -> LongCE:
        check_floor(self.floor, self.gamma)
        if self.gamma < 1:
            warnings.warn(
                f"`gamma` is {self.gamma}, the largest weight: tokens that the long context helps have lower weights "
                "than tokens without a short-context score, whose weight is 1; the paper uses gamma = 5",
                LonglensWarning,
                stacklevel=3,
            )
        return self

    def windows(self, ids: Tensor, step: int) -> list[Window]:
        """The windows of a document that are scored in a step.

        Args:
            ids: ``(n,)`` token ids of the document.
            step: Number of updates so far, from 0.
        """
        return plan_windows(len(ids), self.context, self.stride)

    def window_sizes(self, num_tokens: int) -> dict[tuple[int, int], int]:
        """Approximate number of windows per document and step, by (number of tokens, number of scored tokens)."""
        return window_sizes(num_tokens, self.context, self.stride)

    def weights(self, long_logprobs: Tensor, short_logprobs: Tensor) -> Tensor:
        """Weights of the scored tokens of a batch, `longce_weights`.

        Args:
            long_logprobs: ``(m,)`` nats.
            short_logprobs: ``(m,)`` nats, NaN for tokens without a short-context score.
        """
        return longce_weights(long_logprobs, short_logprobs, self.gamma, self.floor)


class SampledLongCE(LongCE):
    """LongCE with a random subset of the windows in each step; all other tokens have weight 1.

    A document with n windows has ``max(1, round(share * n))`` of them scored. The choice is a function of the step and
    of the document's tokens, so that it is the same in a resumed run and for any split into micro-batches.

    Attributes:
        share: Fraction of the windows, above 0 and at most 1.
    """

    share: Real = Field(default=0.5, gt=0, le=1)

    def windows(self, ids: Tensor, step: int) -> list[Window]:
        """The windows that are scored in a step, drawn from those of the whole document."""
        every = super().windows(ids, step)
        if not every:
            return every
        draw = np.random.default_rng([step, zlib.crc32(ids.cpu().numpy().tobytes())])
        chosen = draw.choice(len(every), size=max(1, round(self.share * len(every))), replace=False)
        return [every[index] for index in sorted(chosen)]

    def window_sizes(self, num_tokens: int) -> dict[tuple[int, int], int]:
        """As for all windows, counting the largest windows up to the number that is drawn."""
        every = super().window_sizes(num_tokens)
        left = max(1, round(self.share * sum(every.values())))
        found = {}
        for size, number in sorted(every.items(), reverse=True):
            found[size] = min(number, left)
            left -= found[size]
        return {size: number for size, number in found.items() if number}


class ChunkedLongCE(LongCE):
    """LongCE on disjoint chunks of K + d tokens: the short-context pass runs each token once, for any K and d.

    In each chunk the tokens at position K or later are weighted, d/(K + d) of all; the others have weight 1. Chunks
    move by d in every step, so that each token at position K or later is weighted in one of ``ceil((K + d)/d)`` steps:
    every other one if d = K.
    """

    def windows(self, ids: Tensor, step: int) -> list[Window]:
        """The windows that are scored in a step: the last tokens of each chunk."""
        return plan_chunks(len(ids), self.context, self.stride, step * self.stride)

    def window_sizes(self, num_tokens: int) -> dict[tuple[int, int], int]:
        """Window sizes of the chunks of the first step."""
        return chunk_sizes(num_tokens, self.context, self.stride)


FORMS = {"longce": LongCE, "sampled-longce": SampledLongCE, "chunked-longce": ChunkedLongCE}
"""All forms of LongCE, by their names in recipes."""


def check_offline(longce: LongCE) -> None:
    """Rejects settings of the short-context pass if offline columns replace it; gamma and floor still apply.

    Raises:
        UserError: Settings other than gamma and floor were given.
    """
    has_form = isinstance(longce, (SampledLongCE, ChunkedLongCE))
    if has_form or (longce.context, longce.stride, longce.short_dtype) != (CONTEXT, STRIDE, None):
        raise UserError(
            "the batch has offline weights, so there is no short-context pass, and only `gamma` and `floor` of "
            f"{longce!r} would have an effect: pass LongCE(gamma={longce.gamma:g}, floor={longce.floor:g}), or drop "
            "the offline columns"
        )


def check_floor(floor: float, gamma: float) -> None:
    """Rejects a minimum weight above the maximum weight.

    Raises:
        UserError: ``0 <= floor <= gamma`` does not hold.
    """
    if not 0 <= floor <= gamma:
        raise UserError(f"`floor` is {floor:g}, the minimum weight; expected 0 to `gamma`, {gamma:g}")


def longce_weights(long_logprobs: Tensor, short_logprobs: Tensor, gamma: float = GAMMA, floor: float = 0.0) -> Tensor:
    """``max(floor, min(exp(long - short), gamma))`` (eq. 7) without gradient; 1 without a short-context score (NaN).

    Computed as ``exp(minimum(long - short, log(gamma)))``, which cannot overflow; without a floor, the torch side of
    `longlens.keytokens.influence.soft_influence`.

    Args:
        long_logprobs: Any shape, nats.
        short_logprobs: The same shape, nats; NaN for tokens without a short-context score.
        gamma: The maximum weight.
        floor: The smallest weight of a token that has a short-context score; 0 as in the paper.

    Returns:
        The same shape, dimensionless weights.

    Raises:
        UserError: gamma is not a finite number above 0, or floor is not from 0 to gamma.
    """
    check_gamma(gamma)
    check_floor(floor, gamma)
    difference = (long_logprobs - short_logprobs).detach()
    weights = difference.clamp(max=math.log(gamma)).exp().clamp(min=floor)
    return torch.where(difference.isnan(), torch.ones_like(weights), weights)
