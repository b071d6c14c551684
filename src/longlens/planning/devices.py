"""Provides speed and memory of devices: published by name, as passed, or measured on one layer of the model."""

from __future__ import annotations

import copy
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from longlens.errors import UserError, shown_value

if TYPE_CHECKING:
    from longlens.planning.trace import Work

UTILIZATION = 0.4
"""Assumed fraction of the published peak that a run reaches; `python -m benchmarks.gpu` measures it on a GPU."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Achieved floating-point operations per second, by kind of work (`Work`)."""

    linear: float
    attention: float
    head: float
    wide_head: float

    def seconds(self, work: Work) -> float:
        """Time for the work, if its kinds run one after the other."""
        names = ("linear", "attention", "head", "wide_head")
        return float(sum(getattr(work, name) / getattr(self, name) for name in names))


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device to plan for.

    Attributes:
        name: Name passed by the user, or of the measured device.
        memory_bytes: Memory in bytes; None if memory is not planned.
        peak: FLOP/s of dense matrix products by dtype, as published.
        source: Source of these numbers.
        on_gpu: Whether it is a GPU, on which half-precision heads need no float32 copy.
        reached: Assumed fraction of the peak; 1 if the achieved speed is passed.
    """

    name: str
    memory_bytes: float | None
    peak: Mapping[str, float]
    source: str
    on_gpu: bool = True
    reached: float = UTILIZATION

    def to_json(self) -> dict[str, Any]:
        """Its name, its memory in bytes, and the source of the numbers."""
        return {"name": self.name, "memory_bytes": self.memory_bytes, "source": self.source}

    def rates(self, dtype: str, utilization: float | None = None) -> Rates | None:
        """Achieved rates in this dtype; None if no peak is known.

        Args:
            dtype: Dtype of the products.
            utilization: Fraction of the peak; `UTILIZATION` by default.
        """
        if not self.peak:
            return None
        share = self.reached if utilization is None else utilization
        reached, wide = (self.peak.get(kind, self.peak["float32"]) * share for kind in (dtype, "float32"))
        return Rates(linear=reached, attention=reached, head=reached, wide_head=wide)


def _gpu(name: str, gigabytes: float, half: float, full: float, source: str) -> Device:
    peak = {"bfloat16": half * 1e12, "float16": half * 1e12, "float32": full * 1e12}
    return Device(name=name, memory_bytes=gigabytes * 1e9, peak=peak, source=source)


# TFLOP/s without sparsity: half-precision tensor cores (float32 accumulation), float32 without TF32.
DEVICES = {
    "h100": _gpu("H100 SXM", 80, 989.4, 66.9, "NVIDIA H100 Tensor Core GPU Architecture (white paper)"),
    "h100-pcie": _gpu("H100 PCIe", 80, 756, 51, "NVIDIA H100 Tensor Core GPU datasheet"),
    "h200": _gpu("H200 SXM", 141, 989.4, 66.9, "NVIDIA H200 Tensor Core GPU datasheet"),
    "b200": _gpu("B200 SXM", 180, 2250, 75, "NVIDIA HGX B200 datasheet, an eighth of 8 GPUs"),
    "a100": _gpu("A100 80 GB", 80, 312, 19.5, "NVIDIA A100 Tensor Core GPU datasheet"),
    "a100-40gb": _gpu("A100 40 GB", 40, 312, 19.5, "NVIDIA A100 Tensor Core GPU datasheet"),
    "l40s": _gpu("L40S", 48, 362.05, 91.6, "NVIDIA L40S GPU datasheet"),
    "l4": _gpu("L4", 24, 121, 30.3, "NVIDIA L4 Tensor Core GPU datasheet"),
    "rtx4090": _gpu("RTX 4090", 24, 165.2, 82.6, "NVIDIA Ada GPU Architecture (white paper)"),
    "mi300x": _gpu("Instinct MI300X", 192, 1307.4, 163.4, "AMD Instinct MI300X datasheet"),
}


def find_device(name: str | None, *, flops: float | None = None, memory_bytes: float | None = None) -> Device:
    """A device by name, with arguments that replace published numbers.

    Args:
        name: One of `DEVICES`.
        flops: Achieved FLOP/s for all kinds of work.
        memory_bytes: Memory in bytes.

    Raises:
        UserError: The device does not exist.
    """
    if name is None or name.lower() not in DEVICES:
        raise UserError(f"`device` is {shown_value(name)}; expected cpu or one of {', '.join(DEVICES)}")
    return _with(DEVICES[name.lower()], flops, memory_bytes)


def this_machine(device_type: str, *, flops: float | None = None, memory_bytes: float | None = None) -> Device:
    """The GPU or CPU of this machine with its memory; without a speed unless it is passed.

    Args:
        device_type: ``cuda`` or ``cpu``.
        flops: Achieved FLOP/s.
        memory_bytes: Memory in bytes.
    """
    import torch

    on_gpu = device_type == "cuda"
    name = torch.cuda.get_device_name() if on_gpu else f"this CPU with {torch.get_num_threads()} threads"
    found = Device(name=name, memory_bytes=_memory(device_type), peak={}, source="this machine", on_gpu=on_gpu)
    return _with(found, flops, memory_bytes)


def _with(device: Device, flops: float | None, memory_bytes: float | None) -> Device:
    if flops is not None:
        device = replace(device, peak={"float32": flops}, reached=1.0, source="given")
    return device if memory_bytes is None else replace(device, memory_bytes=memory_bytes)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Measured speed of a device on the layers of one model, with random weights.

    Attributes:
        device: The device, with its memory.
        forward: Rates of a pass without gradient.
        training: Rates of a forward and backward pass.
        product: FLOP/s of one square matrix product.
    """

    device: Device
    forward: Rates
    training: Rates
    product: float


def small_config(config: Any, vocabulary: int = 512) -> Any:
    """The same configuration with few layers (each kind of layer in turn, at most four) and a small vocabulary."""
    new = copy.deepcopy(config)
    text = new.get_text_config(decoder=True)
    kinds = list(getattr(text, "layer_types", None) or [])
    number = 1
    if kinds:
        number = max(kinds.index(kind) for kind in set(kinds)) + 1
    dense = getattr(text, "first_k_dense_replace", 0) or 0
    number = min(max(number, dense + 1), text.num_hidden_layers)
    text.num_hidden_layers = number
    if kinds:
        text.layer_types = kinds[:number]
    text.vocab_size = vocabulary
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(text, name, None)
    return new


def measure(
    config: Any,
    *,
    device: str = "auto",
    dtype: str = "float32",
    attention: str = "sdpa",
    lengths: tuple[int, int],
    trains: bool = False,
    repeats: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """Times a few layers of the model on this machine, at a short and at a long length, and a block of its head.

    With t seconds for L linear operations and A attention operations, the two lengths give two equations
    ``t = L / linear + A / attention``.

    Args:
        config: Configuration of the model.
        device: ``auto``, ``cpu`` or ``cuda``.
        dtype: Dtype of the weights.
        attention: Attention implementation.
        lengths: Tokens per row, the short and the long one.
        trains: Whether the backward pass is timed as well.
        repeats: Number of repetitions, of which the median is used.
        clock: Returns a time in seconds; the process's CPU time is less affected by other work on the machine.
    """
    import torch

    from longlens.logprobs import Head, token_logprobs
    from longlens.models.checkpoint import resolve_device
    from longlens.models.forward import Forward, running
    from longlens.planning.model import TracedModel
    from longlens.rope.config import auto_class

    where = resolve_device(device)
    kind = getattr(torch, dtype)
    small = small_config(config)
    traced = TracedModel(small, dtype=kind, attention=attention, on_gpu=where.type == "cuda")
    with where:
        auto = auto_class(small.model_type)
        model = auto.from_config(copy.deepcopy(small), dtype=kind, attn_implementation=attention).eval()
    forward = Forward(model)

    def timed(call: Callable[[], Any]) -> float:
        call()
        times = []
        for _ in range(repeats):
            if where.type == "cuda":
                torch.cuda.synchronize()
            start = clock()
            call()
            if where.type == "cuda":
                torch.cuda.synchronize()
            times.append(clock() - start)
        return statistics.median(times)

    def once(length: int) -> None:
        with running(model, inference=False):
            forward.hidden(torch.ones(1, length, dtype=torch.int64, device=where))

    def step(length: int) -> None:
        model.train()
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(forward.hidden(torch.ones(1, length, dtype=torch.int64, device=where)).float().sum())

    def solve(call: Callable[[int], None], works: list[Work]) -> tuple[float, float]:
        seconds = [timed(lambda length=length: call(length)) for length in lengths]  # type: ignore[misc]
        (l1, a1), (l2, a2) = ((work.linear, work.attention) for work in works)
        determinant = l1 * a2 - l2 * a1
        if determinant > 0:
            by_linear = (seconds[0] * a2 - seconds[1] * a1) / determinant
            by_attention = (l1 * seconds[1] - l2 * seconds[0]) / determinant
            if by_linear > 0 and by_attention > 0:
                return 1 / by_linear, 1 / by_attention
        rate = (l2 + a2) / seconds[1]
        return rate, rate

    linear, attended = solve(once, [traced.layers(1, length) for length in lengths])
    training = (linear, attended)
    if trains:
        training = solve(step, [traced.layers(1, length, backward=True) for length in lengths])
    text = config.get_text_config(decoder=True)
    rows, size = 256, 2048 if where.type == "cpu" else 8192
    weight = torch.randn(text.vocab_size, text.hidden_size, device=where, dtype=kind) * 0.02
    head = Head(weight=weight).keep_wide()
    states = torch.randn(rows, text.hidden_size, device=where, dtype=kind)
    targets = torch.zeros(rows, dtype=torch.int64, device=where)
    work = 2.0 * rows * weight.numel()
    with torch.no_grad():
        reached = work / timed(lambda: token_logprobs(states, targets, head))
    trained = reached
    if trains:
        leaf, wide = states.requires_grad_(), weight.requires_grad_()
        trained = (
            4 * work / timed(lambda: torch.autograd.backward(token_logprobs(leaf, targets, Head(weight=wide)).sum()))
        )
    a = torch.randn(size, size, device=where, dtype=kind)
    product = 2.0 * size**3 / timed(lambda: a @ a)
    return Measured(
        device=replace(this_machine(where.type), source="measured"),
        forward=Rates(linear=linear, attention=attended, head=reached, wide_head=reached),
        training=Rates(linear=training[0], attention=training[1], head=trained, wide_head=trained),
        product=product,
    )


def _memory(device_type: str) -> float:
    import torch

    if device_type == "cuda":
        return float(torch.cuda.get_device_properties(0).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
