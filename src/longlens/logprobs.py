"""Hidden states to token log-probabilities, in blocks of rows: the only module that uses a vocabulary head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from longlens.errors import UserError
from longlens.models.forward import is_sharded, run_in_layer
from longlens.models.products import linear

BLOCK_BYTES = 128 * 2**20
"""Upper bound on the logits in memory at one time, in bytes."""
LOGIT_BYTES = 40 * 2**20
"""Upper bound, in bytes, on the logits in memory while statistics are computed; each block reads the whole head.

It exceeds the 32 MiB up to which glibc keeps freed arrays in its heap, which would fragment it.
"""
DISTRIBUTION_BYTES = 4 * 2**20
"""Size in bytes of each array from which statistics of distributions are computed; about ten of them exist at once."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """How a model turns hidden states into logits: ``softcap(scale * (h @ weight.T + bias))``.

    Attributes:
        weight: Weight of the head, ``(V, H)``.
        bias: Bias of the head, ``(V,)``, or None.
        scale: Cohere's ``logit_scale``, or 1 over Granite's ``logits_scaling``.
        softcap: c of ``c * tanh(z / c)``, such as Gemma 2's ``final_logit_softcapping``; None for no cap.
        wide_weight: ``weight`` in fp32, kept across calls; None if each call makes its own copy (see `keep_wide`).
        layer: The module that owns the weight if FSDP or ZeRO-3 shards it: it is gathered only while the layer runs.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    wide_weight: Tensor | None = None
    layer: Any = None

    def logits(self, hidden: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Logits of ``(m, H)`` hidden states, ``(m, V)``.

        Args:
            hidden: Hidden states in the dtype of ``weight``.
            dtype: Dtype of the logits; that of ``hidden`` by default. Half-precision inputs with float32 logits are
                multiplied exactly and accumulated in float32 (CUDA only, see `_multiplies_exactly`).
        """
        if dtype in (None, hidden.dtype):
            logits = linear(hidden, self.weight, self.bias)
        else:
            logits = torch.mm(hidden, self.weight.T, out_dtype=dtype)
            if self.bias is not None:
                logits += self.bias.to(dtype)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    def to(self, dtype: torch.dtype) -> Head:
        """The same head in another dtype."""
        bias = None if self.bias is None else self.bias.to(dtype)
        weight = self.weight.to(dtype) if self.wide_weight is None or dtype != torch.float32 else self.wide_weight
        return replace(self, weight=weight, bias=bias, wide_weight=None)

    def keep_wide(self) -> Head:
        """The same head with its fp32 copy made once, instead of once per call; for weights that do not change.

        Uses ``4 V H`` bytes if the weights are in half precision and the device has no exact half-precision product.
        """
        is_exact = self.weight.dtype == torch.float32 or _multiplies_exactly(self.weight, self.weight)
        if is_exact or self.layer is not None:
            return self
        return replace(self, wide_weight=self.weight.to(torch.float32))

    def gathered(self) -> Head:
        """The same head with its weight gathered; for use while its layer runs."""
        return replace(self, weight=self.layer.weight, bias=getattr(self.layer, "bias", None), layer=None)


def token_logprobs(hidden: Tensor, targets: Tensor, head: Head, *, block_bytes: int = BLOCK_BYTES) -> Tensor:
    """Natural-log probability of each target, in fp32 whatever the model's dtype; differentiable.

    Equals ``head.logits(hidden.float()).log_softmax(-1).gather(-1, targets[:, None])[:, 0]`` with at most
    ``block_bytes`` of logits at a time, in the backward pass too. The product is computed in fp32 as well: bf16 logits
    of 16 and more are 0.125 apart, which would move tokens across the thresholds of eq. 4.

    Args:
        hidden: ``(m, H)`` hidden states; row i predicts target i.
        targets: ``(m,)`` int64 token ids.
        head: The vocabulary head; its bias gets no gradient unless it is a parameter.
        block_bytes: Bound on the logits that exist at one time.

    Returns:
        ``(m,)`` float32, nats.
    """
    if head.layer is not None:
        return run_in_layer(
            head.layer,
            lambda states: token_logprobs(states, targets, head.gathered(), block_bytes=block_bytes),
            hidden,
        )
    rows = max(1, block_bytes // (head.weight.shape[0] * _width(hidden).itemsize))
    # Autocast would compute the product in half precision again.
    with torch.autocast(hidden.device.type, enabled=False):
        logprobs: Tensor = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
            hidden, head.weight, head.bias, targets, head, rows
        )
    return logprobs.float()


def logit_blocks(hidden: Tensor, head: Head) -> Iterator[Tensor]:
    """``head.logits(hidden)`` in fp32, at most `DISTRIBUTION_BYTES` of its rows at a time; no gradient.

    Args:
        hidden: ``(m, H)`` hidden states.
        head: The vocabulary head.

    Yields:
        ``(rows, V)`` float32, from the first row to the last.
    """
    operand, width = _operand(head, hidden), _width(hidden)
    vocabulary = 4 * len(operand.weight)
    at_once, rows = (max(1, size // vocabulary) for size in (max(LOGIT_BYTES, DISTRIBUTION_BYTES), DISTRIBUTION_BYTES))
    for first in range(0, len(hidden), at_once):
        with torch.no_grad():
            logits = operand.logits(hidden[first : first + at_once].to(operand.weight.dtype), width)
        for start in range(0, len(logits), rows):
            yield logits[start : start + rows].float()
        del logits  # before the next block of them is made


def greedy_logprobs(hidden: Tensor, targets: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """`token_logprobs`, and whether greedy decoding selects the target: ``head.logits(hidden).argmax(-1) == targets``.

    The logits that are compared are in the model's own dtype, as in generation: in half precision the largest ones are
    often equal, and then the first of them is selected. In float32 one product serves both; no gradient.

    Args:
        hidden: ``(m, H)`` hidden states; row i predicts target i.
        targets: ``(m,)`` int64 token ids.
        head: The vocabulary head.

    Returns:
        ``(m,)`` float32, nats; ``(m,)`` bool.
    """
    if head.layer is not None or not hidden.dtype == head.weight.dtype == torch.float32:
        rows = max(1, BLOCK_BYTES // (head.weight.shape[0] * head.weight.itemsize))
        blocks = torch.split(hidden.to(head.weight.dtype), rows)
        greedy = [head.logits(block).argmax(-1) for block in blocks]
        return token_logprobs(hidden, targets, head), torch.cat(greedy) == targets
    logprobs, is_greedy = torch.empty_like(hidden[:, 0]), torch.empty_like(targets, dtype=torch.bool)
    start = 0
    for logits in logit_blocks(hidden, head):
        block = slice(start, start + len(logits))
        is_greedy[block] = logits.argmax(-1) == targets[block]
        chosen = logits.gather(-1, targets[block, None])[:, 0]
        logprobs[block] = chosen - _take_normalizers(logits)
        start += len(logits)
    return logprobs, is_greedy


class _TokenLogprobs(torch.autograd.Function):
    """The block loop. The backward pass recomputes the logits of a block instead of keeping them.

    With z the logits, p = softmax(z) and g the gradient of the log-probability: ``dz = g (onehot(target) - p)``,
    through the cap ``dz *= 1 - (z / c)**2`` and the scale, then ``dh = dz @ weight``, ``dweight = dz.T @ h``.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: Head, rows: int
    ) -> Tensor:
        width = _width(hidden)
        head = _operand(head, hidden)
        logprobs, normalizers = [], []
        for start in range(0, len(hidden), rows):
            logits = head.logits(hidden[start : start + rows].to(head.weight.dtype), width)
            chosen = logits.gather(-1, targets[start : start + rows, None])[:, 0]
            normalizers.append(_take_normalizers(logits))
            logprobs.append(chosen - normalizers[-1])
            del logits  # before the next block of them is made
        empty = hidden.new_zeros(0, dtype=width)
        ctx.save_for_backward(hidden, weight, bias, targets, torch.cat(normalizers) if normalizers else empty)
        # The head's weights are among the saved tensors.
        ctx.head, ctx.rows = replace(head, weight=weight, bias=None, wide_weight=None), rows
        return torch.cat(logprobs) if logprobs else empty

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normalizers = ctx.saved_tensors
        (gradient,) = gradients
        # From the saved tensors, so that a weight that was moved or gathered in between is the right one.
        head = replace(ctx.head, weight=weight, bias=bias)
        operand, wide = _operand(head, hidden), head.to(_width(hidden))
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        of_hidden = torch.zeros_like(hidden) if wants_hidden else None
        of_weight = torch.zeros_like(wide.weight) if wants_weight else None
        of_bias = torch.zeros_like(wide.bias) if wants_bias and wide.bias is not None else None
        for start in range(0, len(hidden), ctx.rows):
            block = slice(start, start + ctx.rows)
            states = hidden[block].to(wide.weight.dtype)
            logits = operand.logits(hidden[block].to(operand.weight.dtype), wide.weight.dtype)
            slope = None if head.softcap is None else 1 - (logits / head.softcap) ** 2
            # onehot - p, times the gradient
            change = logits.sub_(normalizers[block, None]).exp_().neg_()
            change.scatter_add_(-1, targets[block, None], torch.ones_like(change[:, :1]))
            change.mul_(gradient[block, None].to(change.dtype))
            if slope is not None:
                change.mul_(slope)
            if head.scale != 1.0:
                change.mul_(head.scale)
            if of_hidden is not None:
                of_hidden[block] = linear(change, wide.weight.T).to(of_hidden.dtype)
            if of_weight is not None:
                of_weight.addmm_(change.T, states)
            if of_bias is not None:
                of_bias += change.sum(0)
            del logits, slope, change
        return (
            of_hidden,
            None if of_weight is None else of_weight.to(weight.dtype),
            None if of_bias is None else of_bias.to(bias.dtype),
            None,
            None,
            None,
        )


def _take_normalizers(logits: Tensor) -> Tensor:
    """``logits.logsumexp(-1)`` of ``(m, V)`` logits, which are overwritten.

    In place, and several times faster on the CPU than torch.logsumexp, which took longer than the product.
    """
    peak = logits.amax(-1, keepdim=True)
    return logits.sub_(peak).exp_().sum(-1).log_() + peak[:, 0]


def _width(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def _operand(head: Head, hidden: Tensor) -> Head:
    """The head with an fp32-exact product: unchanged if the device has such a product, else converted to fp32."""
    return head if _multiplies_exactly(hidden, head.weight) else head.to(_width(hidden))


def _multiplies_exactly(hidden: Tensor, weight: Tensor) -> bool:
    """Whether ``torch.mm(hidden, weight.T, out_dtype=torch.float32)`` exists: CUDA, operands of one half-precision
    dtype.

    A product of two float16 or bfloat16 numbers is exact in float32, and accumulation is as accurate as in a product of
    fp32 copies, so no fp32 copy of the weight is needed (cuBLAS, torch >= 2.8).
    """
    halves = (torch.float16, torch.bfloat16)
    is_cuda = hidden.is_cuda and weight.is_cuda and torch.version.hip is None
    return is_cuda and hidden.dtype == weight.dtype and weight.dtype in halves


_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
# Attribute names of Gemma 2 and its relatives, RecurrentGemma, xLSTM.
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def find_head(model: torch.nn.Module, hidden: Tensor, logits: Tensor) -> Head:
    """The head whose logits equal the model's own, among the candidates that its configuration declares.

    Configurations contain a scale or a cap without saying how it is applied (``logits_scaling`` divides in Granite and
    multiplies in HyperCLOVA X), so each interpretation is compared with the model's own logits. Declared transforms are
    tried before the plain product, because near zero a cap has no measurable effect.

    Args:
        model: A transformers causal language model.
        hidden: ``(m, H)`` last hidden states of a probe text.
        logits: ``(m, V)`` the model's own logits for that text.

    Raises:
        UserError: No interpretation reproduces the model's logits, or there is no head: scores would be wrong.
    """
    name = type(model).__name__
    module = model.get_output_embeddings()  # type: ignore[operator]
    if module is None or not isinstance(getattr(module, "weight", None), Tensor):
        raise UserError(f"{name} has no vocabulary head: longlens needs a causal language model (AutoModelForCausalLM)")
    if not is_sharded(module):
        return _read_head(model, module, hidden, logits)
    found: list[Head] = []

    def read(states: Tensor) -> Tensor:
        found.append(_read_head(model, module, states, logits))
        return states

    run_in_layer(module, read, hidden)
    return replace(found[0], weight=module.weight, bias=getattr(module, "bias", None), layer=module)


def _read_head(model: torch.nn.Module, module: Any, hidden: Tensor, logits: Tensor) -> Head:
    name = type(model).__name__
    raw = _resident(module)
    if not raw.weight.is_floating_point():
        raise UserError(
            f"the vocabulary head of {name} is quantized ({raw.weight.dtype}), and log-probabilities are computed "
            "from its weight in float32: use a checkpoint whose lm_head is not quantized"
        )
    if logits.shape != (len(hidden), len(raw.weight)) or hidden.shape[-1] != raw.weight.shape[-1]:
        raise UserError(
            f"{name} returns logits of shape {tuple(logits.shape)} for hidden states of shape {tuple(hidden.shape)}, "
            f"and its vocabulary head is {tuple(raw.weight.shape)}: longlens needs a causal language model whose "
            "logits are that head's product with its last hidden states"
        )
    config = model.config.get_text_config(decoder=True)  # type: ignore[operator, union-attr]
    scales: list[float] = []
    for key in _SCALES:
        value = getattr(model, key, None) or getattr(config, key, None)
        if isinstance(value, (int, float)) and value:
            scales += [float(value), 1.0 / float(value)]
    caps = [float(cap) for cap in (getattr(config, key, None) for key in _CAPS) if cap]
    wanted = logits.to(raw.weight.device, torch.float32)
    wide = hidden.to(raw.weight.device, torch.float32)
    base = raw.to(torch.float32)
    # The model rounds its logits to its dtype: the tolerance is 4 units in the last place, and at least the rounding
    # error of fp32 products.
    tolerance = max(4 * torch.finfo(logits.dtype).eps, 1e-4) * float(wanted.abs().max())
    worst = float("inf")
    for scale in [*scales, 1.0]:
        for softcap in [*caps, None]:
            error = float((replace(base, scale=scale, softcap=softcap).logits(wide) - wanted).abs().max())
            if error <= tolerance:
                return replace(raw, scale=scale, softcap=softcap)
            worst = min(worst, error)
    raise UserError(
        f"{name} computes its logits in an unsupported way: the nearest of "
        f"{(len(scales) + 1) * (len(caps) + 1)} readings is off by {worst:.3g} (allowed {tolerance:.3g}), so its "
        "scores would be wrong. "
        "Please open an issue with the name of the model"
    )


def _resident(module: Any) -> Head:
    """The plain product of a vocabulary head. If accelerate offloads it, it stays on its device from now on, because it
    is used for each block of rows.
    """
    if not module.weight.is_meta:
        return Head(weight=module.weight, bias=getattr(module, "bias", None))
    from accelerate.utils import align_module_device

    with align_module_device(module):
        if module.weight.is_meta:
            raise UserError("the vocabulary head has no weights: load the model by name")
        bias = getattr(module, "bias", None)
        return Head(weight=module.weight.detach().clone(), bias=None if bias is None else bias.detach().clone())
