"""CLEX: a rotary embedding whose frequencies follow a trained differential equation over the length (arXiv:2310.16450).

Implemented from the paper, sections 3.2 and 3.3, and checked against the published code (DAMO-NLP-SG/CLEX,
clex_layer.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from longlens.errors import UserError
from longlens.rope.base import CLEX_TYPE

LAYOUTS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda angles: torch.cat((angles, angles), dim=-1),  # Llama
    lambda angles: angles.repeat_interleave(2, dim=-1),  # Cohere
    lambda angles: angles,  # GPT-OSS
)
"""Layouts of the angles of ``(..., d/2)`` pairs in models."""


class ClexRotary(nn.Module):
    """Replaces a model's rotary embedding.

    With y = ln f and the ntk-aware trajectory ``ntk(t)_i = ln f_i - 2i / (d - 2) * ln(2t - 1)``, i = 0 … d/2-1::

        dy/dt = tanh((y + ntk(t)) @ up) @ down + dntk/dt,    y(1) = ln f

    is solved by Runge-Kutta's fourth-order rule with a fixed step. ``down`` starts as zeros, so training starts on the
    ntk-aware trajectory. A sequence of n tokens has the frequencies ``exp(y(t))`` at ``t = ceil(n / L0)``, at most
    ``max_factor``. In training mode, t is drawn from 1 … max_factor for each pass, and positions become sorted random
    ones up to t times L0, so that lengths beyond those in training are learned.

    The state depends only on the sequence length, so the order of calls does not matter. As with dynamic NTK, cached
    keys keep the frequencies of the time when they were computed: process a sequence in one pass.

    Args:
        base: The model's rotary embedding, with the frequencies used in training.
        parameters: ``rope_parameters`` as written by `longlens.rope.CLEX`.

    Raises:
        UserError: The model has several rotary embeddings in one, or lays out its angles in an unknown way.
    """

    rope_type = CLEX_TYPE
    original_inv_freq: Tensor
    index: Tensor

    def __init__(self, base: Any, parameters: Mapping[str, Any]) -> None:
        super().__init__()
        if not isinstance(getattr(base, "inv_freq", None), Tensor):
            raise UserError(
                f"{type(base).__name__} has a rotary embedding per layer type, which CLEX does not support: "
                "use another method, or a model with one rotary embedding"
            )
        inv_freq = base.original_inv_freq.detach().float()
        d = 2 * len(inv_freq)
        self.length = int(parameters["original_max_position_embeddings"])
        self.max_factor, self.step = int(parameters["factor"]), float(parameters["step"])
        self.layout = _layout(base)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)
        self.register_buffer("index", torch.arange(0, d, 2, device=inv_freq.device).float(), persistent=False)
        hidden = int(parameters["width"]) * d
        start = torch.rand(d // 2, hidden, generator=torch.Generator().manual_seed(0)) * 2 - 1
        self.up = nn.Parameter((start / math.sqrt(hidden)).to(inv_freq.device))
        self.down = nn.Parameter(torch.zeros(hidden, d // 2, device=inv_freq.device))
        self._solved: tuple[Any, dict[int, Tensor]] = (None, {})

    def slope(self, t: float, y: Tensor) -> Tensor:
        """dy/dt, ``(d/2,)``."""
        rate = 2 * self.index / (2 * len(self.index) - 2)
        ntk = self.original_inv_freq.float().log() - rate / 2 * math.log(2 * t - 1)
        learned = torch.tanh((y + ntk) @ self.up.float()) @ self.down.float()
        return learned - rate / (2 * t - 1)

    def frequencies(self, t: int) -> Tensor:
        """Inverse frequencies at t times L0, ``(d/2,)`` float32."""
        if torch.is_grad_enabled() and self.up.requires_grad:
            return self._solve(t)
        version = (self.up._version, self.down._version, self.up.data_ptr(), self.original_inv_freq.device)
        if self._solved[0] != version:
            self._solved = (version, {})
        solved = self._solved[1]
        if t not in solved:
            solved[t] = self._solve(t)
        return solved[t]

    def _solve(self, t: int) -> Tensor:
        if t == 1:
            # Exactly as trained; the term gives a gradient to every weight in every pass, as DDP requires.
            return self.original_inv_freq.float() + 0 * (self.up.sum() + self.down.sum())
        y = self.original_inv_freq.float().log()
        steps = math.ceil((t - 1) / self.step - 1e-9)
        with torch.autocast(y.device.type, enabled=False):
            for k in range(steps):
                now, h = 1 + (t - 1) * k / steps, (t - 1) / steps
                k1 = self.slope(now, y)
                k2 = self.slope(now + h / 2, y + h / 2 * k1)
                k3 = self.slope(now + h / 2, y + h / 2 * k2)
                k4 = self.slope(now + h, y + h * k3)
                y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return y.exp()

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines for ``(B, n)`` positions, in the layout of the model, of the dtype of ``x``."""
        num_tokens = int(position_ids.max()) + 1
        if self.training:
            t = int(torch.randint(1, self.max_factor + 1, ()))
            positions = self._drawn(num_tokens, t).to(x.device)[position_ids]
        else:
            t = min(self.max_factor, math.ceil(num_tokens / self.length))
            positions = position_ids.float()
        angles = positions[..., None] * self.frequencies(t).to(x.device)
        turned = self.layout(angles)
        return turned.cos().to(x.dtype), turned.sin().to(x.dtype)

    def _drawn(self, num_tokens: int, t: int) -> Tensor:
        """Positions of n tokens in training: sorted draws from 0 … tn-1 with both ends, over ``max(1, n // L0)``.

        The divisor keeps the end of a sequence that is longer than L0 at about t times L0.
        """
        if num_tokens < 3:
            return torch.arange(num_tokens).float()
        inner = torch.randperm(num_tokens * t - 2)[: num_tokens - 2].sort().values + 1
        drawn = torch.cat((torch.tensor([0]), inner, torch.tensor([num_tokens * t - 1])))
        return drawn.float() / max(1, num_tokens // self.length)


def _layout(base: Any) -> Callable[[Tensor], Tensor]:
    """The layout of a rotary embedding's angles: the one that reproduces its own cosines and sines."""
    device = base.inv_freq.device
    positions = torch.arange(5, device=device)[None]
    cos, sin = base(torch.zeros(1, 5, 1, device=device), positions)
    angles = positions[..., None].float() * base.inv_freq.float()
    for layout in LAYOUTS:
        turned = layout(angles)
        if turned.shape == cos.shape and torch.allclose(turned.cos(), cos) and torch.allclose(turned.sin(), sin):
            return layout
    raise UserError(
        f"{type(base).__name__} uses a rotary embedding layout that CLEX does not support: use another method"
    )
