"""What is trained side by side: CE, LongCE, and LongCE with a part of it taken away."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from longlens.losses.settings import LongCE


@dataclass(frozen=True, kw_only=True)
class PermutedLongCE(LongCE):
    """LongCE whose weights are dealt out anew among the tokens that have a short score: the same step, no selection.

    Attributes:
        seed: Of the permutation; another one each step.
    """

    seed: int

    def weights(self, long_logprobs: Tensor, short_logprobs: Tensor) -> Tensor:
        """``w[has_short] = w[has_short][permutation]`` for the weights w of LongCE; the others stay 1."""
        weights = super().weights(long_logprobs, short_logprobs)
        weighed = torch.nonzero(~short_logprobs.isnan())[:, 0]
        dealt = torch.randperm(len(weighed), generator=torch.Generator().manual_seed(self.seed))
        return weights.index_copy(0, weighed, weights[weighed[dealt.to(weighed.device)]])


@dataclass(frozen=True, kw_only=True)
class NormalisedLongCE(LongCE):
    """LongCE whose weights have mean 1 in every batch: the selection, and a loss of the size of CE."""

    def weights(self, long_logprobs: Tensor, short_logprobs: Tensor) -> Tensor:
        """``w / mean(w)`` for the weights w of LongCE."""
        weights = super().weights(long_logprobs, short_logprobs)
        return weights / weights.mean()


def _permuted(longce: LongCE, seed: int) -> LongCE:
    return PermutedLongCE(context=longce.context, stride=longce.stride, gamma=longce.gamma, seed=seed)


def _normalised(longce: LongCE, seed: int) -> LongCE:
    return NormalisedLongCE(context=longce.context, stride=longce.stride, gamma=longce.gamma)


ARMS: Mapping[str, Callable[[LongCE, int], LongCE | None]] = {
    "ce": lambda longce, seed: None,
    "longce": lambda longce, seed: longce,
    "permuted": _permuted,
    "normalised": _normalised,
}
"""The loss of a step by the arm's name, from the settings of LongCE and a seed that no other step of the run has."""
