"""float32 products of linear layers on CPUs where torch's own are slow.

torch multiplies float32 matrices with MKL, which uses AVX2 on processors that are not Intel's: 85 to 110 GFLOP/s a core
on an AMD EPYC with AVX-512, where oneDNN, which torch also holds, reaches 150 to 250 (`python -m benchmarks.scoring`).
Both round as float32 does: 4e-7 of the norm of the product against 2.5e-7.
"""

from __future__ import annotations

import functools
import platform
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_CPU_INFO = Path("/proc/cpuinfo")


@functools.cache
def has_faster_products() -> bool:
    """Whether oneDNN's float32 products are the faster ones here: x86 with AVX-512 that is not Intel's (see above)."""
    if platform.machine() not in ("x86_64", "AMD64") or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    if not torch._C._has_mkldnn or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return _CPU_INFO.exists() and "GenuineIntel" not in _CPU_INFO.read_text(encoding="utf-8")


def linear(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``: ``states @ weight.T + bias``, by oneDNN where that is faster; with gradients."""
    parts = (states, weight, bias)
    with_gradient = torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in parts)
    if not _is_taken(states, weight, bias) or (with_gradient and _is_checkpointed()):
        return nn.functional.linear(states, weight, bias)
    if with_gradient:
        found: Tensor = _Linear.apply(states, weight, bias)  # type: ignore[no-untyped-call]
        return found
    return _multiply(states, weight, bias)


def fast_products(device: torch.device) -> AbstractContextManager[Any]:
    """Inside, the linear layers of a model on this device use `linear`; nothing changes where that is no faster."""
    return _FastProducts() if device.type == "cpu" and has_faster_products() else nullcontext()


class _FastProducts(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.linear:
            return linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _is_taken(states: Any, weight: Any, bias: Any) -> bool:
    """Plain float32 matrices on the CPU alone: quantized, sharded and fake tensors are classes of their own."""
    parts = [states, weight] if bias is None else [states, weight, bias]
    return bool(
        torch.backends.mkldnn.enabled
        and has_faster_products()
        and all(type(part) in (Tensor, nn.Parameter) for part in parts)
        and all(part.dtype == torch.float32 and part.device.type == "cpu" for part in parts)
        and weight.ndim == 2
        and states.ndim > 0
        and states.shape[-1] == weight.shape[-1]
        and states.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )


def _is_checkpointed() -> bool:
    """Whether hooks take what is saved for the backward pass: a layer that is computed again there, where no mode is in
    force, has to save the same tensors.
    """
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is None or top(True) is not None


def _multiply(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
    return found


class _Linear(torch.autograd.Function):
    """``dX = dY @ W``, ``dW = dY.T @ X``, ``db = dY.sum(0)`` over all rows."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(states, weight)
        ctx.has_bias = bias is not None
        return _multiply(states, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        states, weight = ctx.saved_tensors
        wants_states, wants_weight, wants_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        of_states = _multiply(gradient, weight.T, None) if wants_states else None
        of_weight = _multiply(rows.T, states.reshape(-1, states.shape[-1]).T, None) if wants_weight else None
        of_bias = rows.sum(0) if ctx.has_bias and wants_bias else None
        return of_states, of_weight, of_bias
