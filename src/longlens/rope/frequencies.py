"""The methods of position extrapolation: one pure function per method, in NumPy float64, without torch.

RoPE rotates dimension pair i of queries and keys at position m by the angle ``m * f_i`` (Su et al., 2021). Every method
here defines other inverse frequencies f, and some a factor on the attention logits. Notation: d rotary dimensions, base
b, original length L0 in tokens, factor s (the target length divided by L0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]


class Frequencies(NamedTuple):
    """Frequencies and attention factor of a method.

    Attributes:
        inv_freq: ``(d/2,)`` radians per token, highest first.
        attention_factor: Multiplies cosines and sines of queries and keys alike, so logits by its square.
    """

    inv_freq: Doubles
    attention_factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Rope:
    """The rotary embedding of a model as in training.

    Attributes:
        dim: d, number of rotary dimensions per head; even.
        theta: b, the base.
        length: L0, tokens.
    """

    dim: int
    theta: float
    length: int

    @property
    def exponents(self) -> Doubles:
        """``2i/d`` for i = 0 … d/2-1."""
        return np.arange(0, self.dim, 2, dtype=np.float64) / self.dim

    @property
    def inv_freq(self) -> Doubles:
        """``f_i = b ** (-2i/d)``."""
        return self.theta**-self.exponents


def position_interpolation(rope: Rope, *, factor: float) -> Frequencies:
    """``f_i / s``: position m is read as m/s.

    Source: Chen et al., 2023 (arXiv:2306.15595), eq. 4. transformers: ``linear``, the same.
    """
    return Frequencies(rope.inv_freq / factor)


def ntk_theta(rope: Rope, *, factor: float) -> float:
    """``b' = b * s ** (d / (d - 2))``: the lowest frequency is divided by s exactly, the highest stays.

    Source: bloc97, 2023 ("NTK-aware scaled RoPE"); YaRN paper (arXiv:2309.00071), "NTK-aware" interpolation.
    """
    return rope.theta * math.pow(factor, rope.dim / (rope.dim - 2))


def with_base(rope: Rope, *, theta: float) -> Frequencies:
    """``b' ** (-2i/d)`` for another base b'. transformers: ``default`` with another ``rope_theta``, the same."""
    return Frequencies(theta**-rope.exponents)


def dynamic_ntk(rope: Rope, *, factor: float, num_tokens: int) -> Frequencies:
    """``b' = b * (s n / L0 - (s - 1)) ** (d / (d - 2))`` for a sequence of n > L0 tokens; unchanged up to L0.

    Source: emozilla, 2023 ("Dynamically Scaled RoPE"). transformers: ``dynamic``, the same, with
    ``max_position_embeddings`` as L0; but a module keeps the frequencies of its longest sequence so far.
    """
    grown = factor * max(num_tokens, rope.length) / rope.length - (factor - 1)
    return with_base(rope, theta=ntk_theta(rope, factor=grown))


def yarn(
    rope: Rope, *, factor: float, beta_fast: float, beta_slow: float, attention_factor: float | None
) -> Frequencies:
    """``f_i * (1 - r_i) + f_i / s * r_i``, where r rises from 0 to 1 between two dimension pairs.

    The pair that makes n turns over L0 tokens is ``p(n) = d ln(L0 / (2 pi n)) / (2 ln b)``, and
    ``r_i = clip((i - low) / (high - low), 0, 1)`` with ``low = floor(p(beta_fast))``, ``high = ceil(p(beta_slow))``,
    both kept within [0, d-1]. The attention factor is ``0.1 ln s + 1`` by default.

    Source: Peng et al., 2023 (arXiv:2309.00071), "NTK-by-parts" interpolation and YaRN (equations are numbered
    differently in its versions). The paper's ramp is linear in the number of turns and not rounded; the published code,
    transformers (``yarn``) and this function use the one above.
    """
    low, high = (
        rope.dim * math.log(rope.length / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))
        for turns in (beta_fast, beta_slow)
    )
    low, high = max(math.floor(low), 0), min(math.ceil(high), rope.dim - 1)
    width = high - low if high != low else 0.001  # as the published code avoids a division by zero
    ramp = np.clip((np.arange(rope.dim // 2) - low) / width, 0, 1)
    if attention_factor is None:
        attention_factor = 0.1 * math.log(factor) + 1
    return Frequencies(rope.inv_freq * (1 - ramp) + rope.inv_freq / factor * ramp, attention_factor)


def longrope(
    rope: Rope,
    *,
    short_factors: Sequence[float],
    long_factors: Sequence[float],
    factor: float,
    attention_factor: float | None,
    num_tokens: int,
) -> Frequencies:
    """``f_i / lambda_i``: the long factors for a sequence of more than L0 tokens, else the short ones.

    The attention factor is ``sqrt(1 + ln s / ln L0)`` by default, for short sequences as well.

    Source: Ding et al., 2024 (arXiv:2402.13753), which searches lambda for a model, and Phi-3, which has two lists.
    transformers: ``longrope``, the same. Neither implements the paper's start tokens that keep their positions.
    """
    chosen = np.asarray(long_factors if num_tokens > rope.length else short_factors, dtype=np.float64)
    if attention_factor is None:
        attention_factor = math.sqrt(1 + math.log(factor) / math.log(rope.length))
    return Frequencies(rope.inv_freq / chosen, attention_factor)


def llama3(rope: Rope, *, factor: float, low_freq_factor: float, high_freq_factor: float) -> Frequencies:
    """``f_i * g_i + f_i / s * (1 - g_i)`` with ``g_i = clip((n_i - low) / (high - low), 0, 1)``.

    ``n_i = L0 f_i / (2 pi)`` is the number of turns of pair i over L0 tokens: pairs with fewer than ``low`` turns are
    interpolated, pairs with more than ``high`` are unchanged.

    Source: Llama 3.1 (meta-llama/llama-models, ``apply_scaling``). transformers: ``llama3``, the same.
    """
    turns = rope.length * rope.inv_freq / (2 * math.pi)
    kept = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    return Frequencies(rope.inv_freq * kept + rope.inv_freq / factor * (1 - kept))


def eabf_query_scale(positions: npt.ArrayLike, *, length: int) -> Doubles:
    """``max(1, ln(m + 1) / ln L0)`` for the query at position m, counted from 0: 1 at every position below L0.

    Source: Zhang et al., 2024 (arXiv:2401.07004), section 4; published code: PKU-ML/LongPPL ``finetune/patch/EABF.py``
    (the same, with 4096 for L0 whatever the model).
    """
    return np.maximum(1.0, np.log(np.asarray(positions, dtype=np.float64) + 1) / math.log(length))


def clex_start(rope: Rope, *, t: float) -> Frequencies:
    """``(b (2t - 1) ** (d / (d - 2))) ** (-2i/d)``: the frequencies of an untrained CLEX at t times L0.

    Source: Chen et al., 2024 (arXiv:2310.16450), section 3.2; published code: DAMO-NLP-SG/CLEX ``clex_layer.py``.
    """
    return with_base(rope, theta=ntk_theta(rope, factor=2 * t - 1))
