"""Defines the losses that a study compares: cross-entropy, LongCE, other weightings, and controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from longlens.losses.settings import LongCE
from longlens.study.longce.documents import FactBatch

Floats = npt.NDArray[np.float32]
ORACLE = 5.0
"""Weight of the known answers in the arm ``oracle``: the maximum weight of LongCE."""
INTERPOLATION = 0.75
"""Fraction of uniform weights in the arm ``abs-lsd``."""
EXTRA = 1.0
"""Average extra weight that the arm ``exact`` adds to a token of the tail."""


class PermutedLongCE(LongCE):
    """LongCE whose weights are permuted among the tokens with a short-context score: the same total, no selection.

    Attributes:
        seed: Seed of the permutation; different in each step.
    """

    seed: int

    def weights(self, long_logprobs: Tensor, short_logprobs: Tensor) -> Tensor:
        """``w[has_short] = w[has_short][permutation]`` for the weights w of LongCE; the others stay 1."""
        weights = super().weights(long_logprobs, short_logprobs)
        weighed = torch.nonzero(~short_logprobs.isnan())[:, 0]
        dealt = torch.randperm(len(weighed), generator=torch.Generator().manual_seed(self.seed))
        return weights.index_copy(0, weighed, weights[weighed[dealt.to(weighed.device)]])


class NormalizedLongCE(LongCE):
    """LongCE whose weights have mean 1 in every batch: the same selection, with a loss of the size of CE."""

    def weights(self, long_logprobs: Tensor, short_logprobs: Tensor) -> Tensor:
        """``w / mean(w)`` for the weights w of LongCE."""
        weights = super().weights(long_logprobs, short_logprobs)
        return weights / weights.mean()


class AbsoluteLSD(LongCE):
    """Dense token weighting by the absolute LSD: ``w = c + (1 - c) |LSD| / mean(|LSD|)`` with c = `INTERPOLATION`.

    The mean is over the tokens of a batch, where tokens without a short-context score count as LSD = 0 (both contexts
    are the same for them), so that their weight is c and the mean weight is 1.

    Source: Helm, Daheim and Gurevych, Token Weighting for Long-Range Language Modeling (Findings of NAACL 2025); their
    code, configs/llama3_32k_dense.json: transforms "absolute", normalization "L1", interpolation 0.75. There, the mean
    is over a sequence; here, it is over a batch, which is small and whose sequences have the same length.
    """

    def weights(self, long_logprobs: Tensor, short_logprobs: Tensor) -> Tensor:
        """Returns the weights of the scored tokens of a batch, ``(m,)``, without gradient."""
        score = (long_logprobs - short_logprobs).detach().abs().nan_to_num(nan=0.0)
        return INTERPOLATION + (1 - INTERPOLATION) * score / score.mean().clamp(min=torch.finfo(score.dtype).tiny)


def oracle_weights(batch: FactBatch, context: int) -> Floats:
    """``(B, n)``: `ORACLE` for the known answers of a batch, 1 for all other tokens."""
    return np.where(batch.answers, ORACLE, 1.0).astype(np.float32)


def exact_weights(batch: FactBatch, context: int) -> Floats:
    """``(B, n)``: weights by the inverse frequency of effective context length, without running a model.

    A token with c preceding tokens in its document is in the tail if c >= K, and there in the bucket
    ``floor(log2(c / K))``. With N tokens in the tail and N_b in each of its B buckets, ::

        w = 1 + EXTRA * N / (B * N_b) in the tail, 1 elsewhere

    so that each bucket has the same part of the extra weight, which is `EXTRA` per token on average. Here all documents
    have the same length, so that frequencies are the same in every batch.

    Source: our reading of the abstract of EXACT (arXiv:2605.10544): "assigns a fixed extra supervision weight to long
    effective-context targets, and distributes that extra weight by inverse frequency within the long-context tail".
    The start of the tail, the buckets and the size of the extra weight are our choices.
    """
    rows, length = batch.token_ids.shape
    before = np.arange(length)
    bucket = np.where(before >= context, np.log2(np.maximum(before, 1) / context).astype(np.int64), -1)
    weights = np.ones(length)
    found, counts = np.unique(bucket[bucket >= 0], return_counts=True)
    for index, count in zip(found, counts, strict=True):
        weights[bucket == index] += EXTRA * counts.sum() / (len(found) * count)
    return np.tile(weights.astype(np.float32), (rows, 1))


class Arm(NamedTuple):
    """A loss.

    Attributes:
        loss: Returns the loss that weights a step, from the settings of LongCE and a seed that is unique to the step of
            the run; None if the weights are known before the step, or are all 1.
        weights: ``(B, n)`` weights of a batch and K, if they need no forward pass.
    """

    loss: Callable[[LongCE, int], LongCE] | None = None
    weights: Callable[[FactBatch, int], Floats] | None = None


ARMS: Mapping[str, Arm] = {
    "ce": Arm(),
    "longce": Arm(loss=lambda longce, seed: longce),
    "floored": Arm(loss=lambda longce, seed: longce.replace(floor=1.0)),
    "permuted": Arm(loss=lambda longce, seed: PermutedLongCE(**dict(longce), seed=seed)),
    "normalised": Arm(loss=lambda longce, seed: NormalizedLongCE(**dict(longce))),
    "abs-lsd": Arm(loss=lambda longce, seed: AbsoluteLSD(**dict(longce))),
    "exact": Arm(weights=exact_weights),
    "oracle": Arm(weights=oracle_weights),
}
"""The arms of a study by name. ``floored`` is LongCE with a floor of 1; ``oracle`` is CE that knows the answers."""
