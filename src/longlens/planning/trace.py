"""Counts FLOPs and memory of a pass from a model's configuration: runs the model's own code on tensors without data.

The model consists of fake tensors (`torch._subclasses.FakeTensorMode`: shapes, strides and dtypes, no memory), and its
decoder runs as in `longlens.models.forward`. Each operator adds its floating-point operations
(`torch.utils.flop_counter`) and the bytes of its outputs until they are freed. Shared weights, active experts,
adapters, checkpointing and tensors saved by autograd are therefore counted as in the code. Only attention is counted
separately (`_attend`), because its kernels store no matrix and skip masked parts.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, fields
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from longlens.logprobs import BLOCK_BYTES

PLANNED = "longlens_plan"
"""Name under which `_attend` is registered in transformers."""
FLASH = ("flash_attention_2", "flash_attention_3", "flex_attention")


@dataclass(frozen=True, kw_only=True)
class Work:
    """Floating-point operations; a multiplication and an addition count as two.

    Attributes:
        linear: Matrix products outside of attention, including experts and recurrences.
        attention: Products of queries and keys, and of weights and values, for the pairs that the kernel computes.
        head: Products of the vocabulary head in the model's own precision.
        wide_head: Products of the vocabulary head in float32.
    """

    linear: float = 0.0
    attention: float = 0.0
    head: float = 0.0
    wide_head: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def __sub__(self, other: Work) -> Work:
        return self + other * -1

    def __mul__(self, times: float) -> Work:
        return Work(**{f.name: getattr(self, f.name) * times for f in fields(self)})

    @property
    def total(self) -> float:
        """Sum of all kinds."""
        return self.linear + self.attention + self.head + self.wide_head


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Cost of one pass over a batch.

    Attributes:
        work: Its floating-point operations.
        peak_bytes: Peak bytes in addition to the weights.
    """

    work: Work
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """One call of an attention kernel with ``q`` queries, which are the last of ``kv`` tokens.

    Attributes:
        layer: Index of the layer.
        batch: Number of rows.
        heads: Number of query heads.
        kv_heads: Number of key and value heads.
        q: Queries per row.
        kv: Keys per row.
        key_dim: Width of queries and keys.
        value_dim: Width of values.
        window: Number of keys to which a query attends; None for all before it.
    """

    layer: int
    batch: int
    heads: int
    kv_heads: int
    q: int
    kv: int
    key_dim: int
    value_dim: int
    window: int | None

    def is_masked(self, attention: str) -> bool:
        """Whether transformers makes a mask; it makes none if the kernel's causal flag is equivalent."""
        if attention in FLASH:
            return False
        return self.q > 1 and (self.q != self.kv or (self.window is not None and self.kv >= self.window))

    def pairs(self, attention: str) -> int:
        """Number of pairs of a query and a key that are computed: all under a mask, else only attended ones."""
        if attention == "eager" or self.is_masked(attention):
            return self.q * self.kv
        window = self.kv if self.window is None else self.window
        before = self.kv - self.q
        full = max(0, min(self.q, self.kv - window))  # queries with a whole window
        growing = self.q - full
        return full * window + growing * (before + 1) + growing * (growing - 1) // 2

    def flops(self, attention: str) -> int:
        """``2 * batch * heads * pairs * (key_dim + value_dim)``."""
        return 2 * self.batch * self.heads * self.pairs(attention) * (self.key_dim + self.value_dim)


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations, and the bytes of the tensors that operators make."""

    def __init__(self, attention: str, on_gpu: bool, windows: dict[int, int], known: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.attention, self.on_gpu, self.windows = attention, on_gpu, windows
        self.linear = self.attended = self.wide_head = self.head = 0
        self.live = self.peak = 0
        self.num_experts = 1
        self.is_causal = True
        self.calls: list[AttentionCall] = []
        self.masks: dict[tuple[int, int, int | None], Tensor] = {}
        self._held: dict[int, Any] = {}
        for tensor in known:
            self._hold(tensor, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs and counts an operator."""
        kwargs = kwargs or {}
        if func._overloadpacket is torch.ops.aten._grouped_mm:
            made = self._grouped_product(args[0], args[1])
        else:
            made = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.linear += formula(*args, **kwargs, out_val=made)
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._hold(tensor)
        return made

    def _grouped_product(self, rows: Tensor, weights: Tensor) -> Tensor:
        """A grouped product of rows sorted by expert; torch supports it without data for only one dtype.

        Args:
            rows: ``(S, M)``, or for the gradient of weights ``(M, S)``.
            weights: ``(E, M, N)``, or ``(S, N)``.
        """
        self.linear += 2 * rows.shape[0] * rows.shape[1] * weights.shape[-1]
        if weights.ndim == 3:
            self.num_experts = weights.shape[0]
            return rows.new_empty(rows.shape[0], weights.shape[-1])
        return rows.new_empty(self.num_experts, rows.shape[0], weights.shape[-1])

    def _hold(self, tensor: Tensor, size: int | None = None) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._held:
            return
        number = storage.nbytes() if size is None else size

        def freed(_: Any) -> None:
            self.live -= number
            self._held.pop(key, None)

        self._held[key] = weakref.ref(storage, freed)
        self.live += number
        self.peak = max(self.peak, self.live)


tracing: list[Tracer] = []


class _Attention(torch.autograd.Function):
    """The tensors of a kernel: its output and a float32 per query, and in the backward pass the three gradients."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, call: AttentionCall) -> Tensor:
        tracer = tracing[-1]
        tracer.attended += call.flops(tracer.attention)
        out = q.new_empty(call.batch, call.q, call.heads, call.value_dim)
        kept = q.new_empty(call.batch, call.heads, call.q, dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, kept, mask)
        ctx.call = call
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        tracer = tracing[-1]
        # Scores are recomputed: five products, whereas the forward pass has two.
        tracer.attended += ctx.call.flops(tracer.attention) * 5 // 2
        q, k, v, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None, None


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **settings: Any
) -> tuple[Tensor, None]:
    """Replaces an attention function of transformers; it saves the tensors that the selected kernel saves."""
    tracer = tracing[-1]
    batch, heads, q, key_dim = query.shape
    layer = getattr(module, "layer_idx", None)
    window = settings.get("sliding_window") or tracer.windows.get(-1 if layer is None else layer)
    call = AttentionCall(
        layer=-1 if layer is None else layer,
        batch=batch,
        heads=heads,
        kv_heads=key.shape[1],
        q=q,
        kv=key.shape[2],
        key_dim=key_dim,
        value_dim=value.shape[-1],
        window=window,
    )
    tracer.calls.append(call)
    is_causal = settings.get("is_causal")
    tracer.is_causal &= bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (tensor.to(torch.get_autocast_dtype("cpu")) for tensor in (query, key, value))
    is_masked = call.is_masked(tracer.attention)
    if heads != call.kv_heads and (is_masked or tracer.attention == "eager"):
        # Both eager and sdpa_attention_forward of transformers then repeat keys and values.
        key, value = (tensor.repeat_interleave(heads // call.kv_heads, dim=1) for tensor in (key, value))
    if tracer.attention == "eager":
        return _attend_eagerly(tracer, call, query, key, value), None
    mask = None
    if is_masked:
        shape = (q, call.kv, window)
        if shape not in tracer.masks:
            tracer.masks[shape] = torch.empty(1, 1, q, call.kv, dtype=torch.bool)
        mask = tracer.masks[shape].to(query.dtype)  # torch converts a mask to numbers, again in each layer
    return _Attention.apply(query, key, value, mask, call), None  # type: ignore[no-untyped-call]


def _attend_eagerly(tracer: Tracer, call: AttentionCall, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``eager_attention_forward`` of transformers' models; the products are counted as attention."""
    before = tracer.linear
    scores = torch.matmul(query, key.transpose(2, 3)) * 1.0
    scores = scores + torch.empty(1, 1, call.q, call.kv, dtype=scores.dtype)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    out = torch.matmul(weights, value).transpose(1, 2).contiguous()
    tracer.attended += tracer.linear - before
    tracer.linear = before
    return out


transformers.AttentionInterface.register(PLANNED, _attend)


class HeadStandIn(torch.autograd.Function):
    """Counts the operations and tensors of `longlens.logprobs.token_logprobs`, following that code."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, is_exact: bool, wide: Tensor | None) -> Tensor:
        """``(m,)`` log-probabilities of ``(m, H)`` states; ``wide`` means that the head's float32 copy exists."""
        tracer = tracing[-1]
        rows, (vocabulary, width) = len(hidden), weight.shape
        block = max(1, BLOCK_BYTES // (vocabulary * 4))
        half = weight.dtype != torch.float32
        widens = half and not is_exact and wide is None
        operand = hidden.new_empty(vocabulary, width, dtype=torch.float32) if widens else None
        work = 2 * rows * vocabulary * width
        if is_exact and half:
            tracer.head += work
        else:
            tracer.wide_head += work
        size = min(block, rows)
        states = hidden.new_empty(size, width, dtype=torch.float32) if half and not is_exact else None
        logits = hidden.new_empty(size, vocabulary, dtype=torch.float32)
        del states, logits, operand
        ctx.save_for_backward(hidden, weight)
        ctx.is_exact = is_exact
        return hidden.new_empty(rows, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of states and weight."""
        tracer = tracing[-1]
        hidden, weight = ctx.saved_tensors
        rows, (vocabulary, width) = len(hidden), weight.shape
        block, half = max(1, BLOCK_BYTES // (vocabulary * 4)), weight.dtype != torch.float32
        work = 2 * rows * vocabulary * width
        wide = [weight.new_empty(vocabulary, width, dtype=torch.float32)] * half
        operand = [weight.new_empty(vocabulary, width, dtype=torch.float32)] * (half and not ctx.is_exact)
        of_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        of_weight = weight.new_empty(vocabulary, width, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        if ctx.is_exact and half:
            tracer.head += work
        else:
            tracer.wide_head += work
        tracer.wide_head += work * ((of_hidden is not None) + (of_weight is not None))
        size = min(block, rows)
        states = hidden.new_empty(size, width, dtype=torch.float32) if half else None
        change = hidden.new_empty(size, vocabulary, dtype=torch.float32)
        product = hidden.new_empty(size, width, dtype=torch.float32)
        del states, product, change, wide, operand
        return of_hidden, None if of_weight is None else of_weight.to(weight.dtype), None, None
