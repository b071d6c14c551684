"""A RoPE method: the lower a frequency, the more of the factor it is divided by."""

from dataclasses import dataclass

import numpy as np

from longlens.rope import Frequencies, Rope, ScaledMethod


@dataclass(frozen=True, kw_only=True)
class Ramp(ScaledMethod):
    """``f_i / (1 + (s - 1) * r_i ** power)``, where r goes from 0 at the highest frequency to 1 at the lowest."""

    name = "ramp"
    power: float = 2.0

    def frequencies(self, rope: Rope, num_tokens: int = 1) -> Frequencies:
        """Those of a sequence of any length."""
        ramp = np.linspace(0, 1, rope.dim // 2) ** self.power
        return Frequencies(rope.inv_freq / (1 + (self.factor - 1) * ramp))
