"""Computes float32 linear layers and attention with oneDNN on CPUs where torch's own products are slow.

torch multiplies float32 matrices with MKL, which uses AVX2 on processors that are not Intel's: 85 to 110 GFLOP/s per
core on an AMD EPYC with AVX-512, where oneDNN, which torch also contains, reaches 150 to 250. torch's attention on the
CPU uses the same products (`python -m benchmarks.scoring`). Both have float32 rounding errors: 4e-7 of the norm of the
product against 2.5e-7.
"""

from __future__ import annotations

import functools
import platform
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

ATTENTION_ROWS = 128
"""Queries of a head whose scores are computed together; fewer for many keys, see `ATTENTION_BYTES`."""
ATTENTION_BYTES = 8 * 2**20
"""Bound on the attention scores that are in memory at one time."""
ATTENTION_WORK = 4_000_000
"""Products of a head, ``queries x keys x width``, below which torch's own attention is as fast."""
MOST_KEYS = 8192
"""Above this number of keys, scores of whole rows exceed the CPU caches, and torch's tiles need less memory."""
FEWEST_ROWS = 16
"""Below this number of queries (a step of generation), torch's own attention is as fast."""
_CPU_INFO = Path("/proc/cpuinfo")
_TORCH_ATTENTION = nn.functional.scaled_dot_product_attention


@functools.cache
def has_faster_products() -> bool:
    """Whether oneDNN's float32 products are faster on this machine: x86 with AVX-512, not by Intel (see above)."""
    if platform.machine() not in ("x86_64", "AMD64") or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    if not torch._C._has_mkldnn or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return _CPU_INFO.exists() and "GenuineIntel" not in _CPU_INFO.read_text(encoding="utf-8")


def linear(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``: ``states @ weight.T + bias``, with oneDNN where it is faster; with gradients."""
    parts = (states, weight, bias)
    with_gradient = torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in parts)
    if not _is_taken(states, weight, bias) or (with_gradient and _is_checkpointed()):
        return nn.functional.linear(states, weight, bias)
    if with_gradient:
        found: Tensor = _Linear.apply(states, weight, bias)  # type: ignore[no-untyped-call]
        return found
    return _multiply(states, weight, bias)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """``torch.nn.functional.scaled_dot_product_attention``, with oneDNN's products where they are faster.

    Keys that no query of a block attends to are skipped: a causal mask costs half, a sliding window n x window.

    Args:
        query: ``(B, H, T, D)``.
        key: ``(B, H', S, D)``, with H' = H, or a divisor of it under ``enable_gqa``.
        value: ``(B, H', S, E)``.
        attn_mask: Boolean, ``(B or 1, 1, T, S)``, True where a query attends to a key. Other masks are passed to torch,
            as are dropout, gradients, other dtypes and devices, small products and more than `MOST_KEYS` keys.
        dropout_p: As in torch.
        is_causal: As in torch: query i attends to the keys up to i.
        **options: ``scale`` and ``enable_gqa``, as in torch.

    Returns:
        ``(B, H, T, E)``; 0 for a query that attends to no key.
    """
    if dropout_p or not _is_attended(query, key, value, attn_mask, is_causal):
        return _TORCH_ATTENTION(query, key, value, attn_mask, dropout_p, is_causal, **options)
    batch, heads, length, width = query.shape
    group, keys = heads // key.shape[1], key.shape[2]
    scale = width**-0.5 if options.get("scale") is None else options["scale"]
    rows = max(1, min(ATTENTION_ROWS, ATTENTION_BYTES // (4 * keys * group)))
    blocks = [slice(start, min(start + rows, length)) for start in range(0, length, rows)]
    # In the layout that transformers needs next, with heads after tokens.
    found = query.new_zeros(batch, length, heads, value.shape[-1]).transpose(1, 2)
    views: list[_View] = []
    for b in range(batch):
        if b == 0 or (attn_mask is not None and len(attn_mask) > 1):
            views = [_view(None if attn_mask is None else attn_mask[b, 0], block, keys, is_causal) for block in blocks]
        for h in range(key.shape[1]):
            of_head = slice(h * group, (h + 1) * group)
            k, v = key[b, h].contiguous(), value[b, h].contiguous()
            # The largest block first: each array then fits where the one before it was, and the heap does not grow.
            for block, (first, last, hidden, blind) in zip(reversed(blocks), reversed(views), strict=True):
                if first == last:
                    continue
                states = (query[b, of_head, block] * scale).reshape(-1, width)
                scores = _multiply(states, k[first:last], None).view(group, -1, last - first)
                for some, bias in hidden:
                    scores[..., some] += bias
                torch.softmax(scores, -1, out=scores)
                if blind is not None:
                    scores[:, blind] = 0.0
                mixed = _multiply(scores.view(-1, last - first), v[first:last].T, None)
                found[b, of_head, block] = mixed.view(group, -1, mixed.shape[-1])
                del scores
    return found


class _View(NamedTuple):
    """The keys to which the queries of a block attend.

    Attributes:
        first: First key to which any of them attends.
        last: One after the last such key.
        hidden: Ranges of columns in ``[first, last)`` that are masked for some query, and the bias of their scores.
        blind: Mask of the queries that attend to no key; None if there are none.
    """

    first: int
    last: int
    hidden: list[tuple[slice, Tensor]]
    blind: Tensor | None


def _view(mask: Tensor | None, block: slice, keys: int, is_causal: bool) -> _View:
    if mask is None and not is_causal:
        return _View(0, keys, [], None)
    if mask is None:
        last = min(block.stop, keys)
        square = torch.full((block.stop - block.start, max(0, last - block.start)), -torch.inf).triu(1)
        return _View(0, last, [(slice(block.start, last), square)], None)
    some = mask[block].any(0).nonzero()
    if not len(some):
        return _View(0, 0, [], None)
    first, last = int(some[0]), int(some[-1]) + 1
    allowed = mask[block, first:last]
    partly = (~allowed.all(0)).nonzero()[:, 0]
    runs = partly.tensor_split((partly.diff() > 1).nonzero()[:, 0] + 1) if len(partly) else ()
    spans = [slice(int(run[0]), int(run[-1]) + 1) for run in runs]
    hidden = [(span, torch.zeros(()).where(allowed[:, span], -torch.inf)) for span in spans]
    blind = ~allowed.any(-1)
    return _View(first, last, hidden, blind if bool(blind.any()) else None)


def _is_attended(query: Any, key: Any, value: Any, mask: Any, is_causal: bool) -> bool:
    """Whether `attention` computes this call itself."""
    parts = (query, key, value)
    return bool(
        _is_plain(*parts)
        and all(part.ndim == 4 for part in parts)
        and not (torch.is_grad_enabled() and any(part.requires_grad for part in parts))
        and query.shape[-2] >= FEWEST_ROWS
        and key.shape[-2] <= MOST_KEYS
        and key.shape[-1] == query.shape[-1]
        and key.shape[:3] == value.shape[:3]
        and key.shape[0] == query.shape[0]
        and all(part.numel() for part in parts)
        and query.shape[1] % key.shape[1] == 0
        and query.numel() * key.shape[2] >= ATTENTION_WORK * key.shape[0] * key.shape[1]
        and (
            mask is None
            or (
                type(mask) is Tensor
                and not is_causal
                and mask.dtype == torch.bool
                and mask.ndim == 4
                and mask.shape[0] in (1, query.shape[0])
                and mask.shape[1:] == (1, query.shape[2], key.shape[2])
            )
        )
    )


def fast_products(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which a model on this device uses `linear` and `attention`, if they are faster on this machine."""
    return _FastProducts() if device.type == "cpu" and has_faster_products() else nullcontext()


class _FastProducts(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.linear:
            return linear(*args, **(kwargs or {}))
        if func is _TORCH_ATTENTION:
            return attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _is_taken(states: Any, weight: Any, bias: Any) -> bool:
    return bool(
        _is_plain(states, weight, *([] if bias is None else [bias]))
        and weight.ndim == 2
        and states.ndim > 0
        and states.shape[-1] == weight.shape[-1]
        and states.numel() > 0
    )


def _is_plain(*parts: Any) -> bool:
    """Whether all are plain float32 tensors on the CPU: quantized, sharded and fake tensors have other classes."""
    return bool(
        torch.backends.mkldnn.enabled
        and has_faster_products()
        and all(type(part) in (Tensor, nn.Parameter) for part in parts)
        and all(part.dtype == torch.float32 and part.device.type == "cpu" for part in parts)
        and not torch.is_autocast_enabled("cpu")
    )


def _is_checkpointed() -> bool:
    """Whether hooks process the tensors saved for the backward pass. A checkpointed layer is recomputed there outside
    of the function mode, and has to save the same tensors.
    """
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is None or top(True) is not None


def _multiply(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not (weight.is_contiguous() or weight.T.is_contiguous()):
        weight = weight.contiguous()  # with other strides, oneDNN has only reference code: 1,000 times as slow
    found: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
    return found


class _Linear(torch.autograd.Function):
    """A linear layer with ``dX = dY @ W``, ``dW = dY.T @ X``, ``db = dY.sum(0)`` over all rows."""

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
