"""Naive oracles of position extrapolation, written from the papers, one number at a time; nothing of the package."""

from __future__ import annotations

import math


def plain(d: int, base: float) -> list[float]:
    """RoFormer: theta_i = base^(-2(i-1)/d), i = 1 … d/2."""
    return [base ** (-2 * (i - 1) / d) for i in range(1, d // 2 + 1)]


def position_interpolation(d: int, base: float, s: float) -> list[float]:
    """PI: f'(x, m) = f(x, m L / L'), so every angle is divided by s."""
    return [theta / s for theta in plain(d, base)]


def ntk_base(d: int, base: float, s: float) -> float:
    """NTK-aware: the base for which the last frequency is divided by s."""
    low, high = base, base * s**8
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if plain(d, middle)[-1] > plain(d, base)[-1] / s else (low, middle)
    return low


def dynamic_ntk(d: int, base: float, s: float, length: int, n: int) -> list[float]:
    """Dynamic NTK as emozilla wrote it: base * ((s * n / L) - (s - 1)) ** (d / (d - 2)) beyond L."""
    if n <= length:
        return plain(d, base)
    return plain(d, base * ((s * n / length) - (s - 1)) ** (d / (d - 2)))


def yarn(d: int, base: float, s: float, length: int, fast: float, slow: float) -> tuple[list[float], float]:
    """YaRN with the published code's ramp over dimension pairs, and sqrt(1/t) = 0.1 ln s + 1."""

    def pair_of(turns: float) -> float:
        # wavelength 2 pi base^(2p/d) = L / turns, solved for p
        return d / 2 * math.log(length / turns / (2 * math.pi), base)

    low, high = max(0, math.floor(pair_of(fast))), min(d - 1, math.ceil(pair_of(slow)))
    new = []
    for i, theta in enumerate(plain(d, base)):
        ramp = 0.0 if i <= low else 1.0 if i >= high else (i - low) / (high - low)
        new.append((1 - ramp) * theta + ramp * theta / s)
    return new, 0.1 * math.log(s) + 1


def longrope(
    d: int, base: float, s: float, length: int, short: list[float], long: list[float], n: int
) -> tuple[list[float], float]:
    """LongRoPE: each frequency over its own factor; Phi-3's attention factor."""
    factors = long if n > length else short
    return [t / f for t, f in zip(plain(d, base), factors, strict=True)], math.sqrt(1 + math.log(s) / math.log(length))


def llama3(d: int, base: float, s: float, length: int, low: float, high: float) -> list[float]:
    """Llama 3.1's apply_scaling, by wavelengths."""
    new = []
    for theta in plain(d, base):
        wavelength = 2 * math.pi / theta
        if wavelength < length / high:
            new.append(theta)
        elif wavelength > length / low:
            new.append(theta / s)
        else:
            smooth = (length / wavelength - low) / (high - low)
            new.append((1 - smooth) * theta / s + smooth * theta)
    return new


def eabf_scale(position: int, length: int) -> float:
    """Published patch: scale = log(position + 1) / log(4096); scale[scale < 1] = 1."""
    return max(math.log(position + 1) / math.log(length), 1.0)


def clex(
    d: int, base: float, t: float, up: list[list[float]], down: list[list[float]], steps_per_unit: int
) -> list[float]:
    """CLEX by many small Euler steps, with the published code's time embedding.

    Quantities are named as there: ntk_inv_freq, delta_ntk_freq, and the state log(inv_freq).
    """
    state = [math.log(theta) for theta in plain(d, base)]
    steps = round((t - 1) * steps_per_unit)
    for k in range(steps):
        now = 1 + k / steps_per_unit
        alpha = 2 * now - 1
        inputs, analytic = [], []
        for i in range(d // 2):
            index = 2 * i
            ntk = (base * alpha ** (d / (d - 2))) ** (-index / d)
            delta = -2 * index / (d - 2) / (base ** (index / d) * alpha ** (index / (d - 2) + 1))
            inputs.append(state[i] + math.log(ntk))
            analytic.append(delta / ntk)
        hidden = [math.tanh(sum(x * w[j] for x, w in zip(inputs, up, strict=True))) for j in range(len(up[0]))]
        learned = [sum(h * w[i] for h, w in zip(hidden, down, strict=True)) for i in range(d // 2)]
        state = [y + (a + b) / steps_per_unit for y, a, b in zip(state, learned, analytic, strict=True)]
    return [math.exp(y) for y in state]
