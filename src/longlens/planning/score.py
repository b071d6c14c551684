"""Estimates the cost of scoring documents: the requests of a run, their batches, and their forward passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from longlens.errors import UserError, library_errors, shown
from longlens.models import load_config, resolve
from longlens.models.quantized import quantization_note, quantization_settings
from longlens.models.tensor_parallel import check_shared
from longlens.planning.devices import Device, Rates, find_device, measure, this_machine
from longlens.planning.model import TracedModel, named_dtype
from longlens.planning.trace import Work
from longlens.settings.options import CONTEXT, Hardware, Loading
from longlens.windows import plan_windows, window_sizes

RUNTIME_BYTES = {"cuda": 0.6e9, "cpu": 0.05e9}
"""Memory of a CUDA context with its kernels, or of workspaces and the allocator on a CPU."""
SHARES = (2, 3, 4, 6, 8, 16, 32)
"""Numbers of devices to try if a model does not fit on one."""
SAME_DOCUMENTS = 16
"""If there are more documents of one length than this, only this number is batched, and the result is scaled."""

LISTED_REQUESTS = 20_000
"""Up to this number of requests, batches are those of a run; beyond, requests of one size are grouped."""


class FedRequest(NamedTuple):
    """A request of a run: its number of input tokens, how many of them are scored, and the kind of context."""

    fed: int
    scored: int
    is_short: bool


def document_requests(
    length: int, context: int | Sequence[int] | None, stride: int | Sequence[int] | None, *, bos: bool
) -> list[FedRequest]:
    """The requests of `longlens.score` to a model for one document.

    Args:
        length: n, tokens of the document, without BOS.
        context: K, several values, or None for only the long context.
        stride: d, one value, or one per K; by default a quarter of each K.
        bos: Whether a BOS precedes the long context and every window.
    """
    from longlens.scoring.scores import short_contexts

    before = int(bos)
    requests = [FedRequest(length + before, length + before - 1, False)] if length + before > 1 else []
    for short in short_contexts(context, stride):
        for window in plan_windows(length, *short):
            requests.append(FedRequest(window.stop - window.start + before, window.stop - window.first, True))
    return requests


def many_requests(
    length: int, context: int | Sequence[int] | None, stride: int | Sequence[int] | None, *, bos: bool
) -> Counter[FedRequest]:
    """Counts of the requests of `document_requests`, computed without listing them."""
    from longlens.scoring.scores import short_contexts

    before = int(bos)
    found: Counter[FedRequest] = Counter()
    if length + before > 1:
        found[FedRequest(length + before, length + before - 1, False)] = 1
    for short in short_contexts(context, stride):
        for (fed, scored), number in window_sizes(length, *short).items():
            found[FedRequest(fed + before, scored, True)] += number
    return found


class Batch(NamedTuple):
    """Sequences that are run together: number of rows, tokens of the longest, and total number of tokens scored."""

    rows: int
    length: int
    scored: int


def plan_batches(requests: Iterable[FedRequest], batch_tokens: int, *, pads: bool = True) -> Iterator[Batch]:
    """The batches that `longlens.scoring.transformers.TransformersScorer` makes from requests, in order."""
    from longlens.models.forward import pack
    from longlens.scoring.transformers import read_ahead

    for waiting in read_ahead(requests, batch_tokens, lambda request: request.fed):
        for numbers in pack([request.fed for request in waiting], pads=pads, tokens=batch_tokens):
            some = [waiting[number] for number in numbers]
            yield Batch(len(some), some[0].fed, sum(request.scored for request in some))


def equal_batches(sizes: Iterable[tuple[Batch, int]]) -> Counter[Batch]:
    """Batches of sequences of one size.

    Args:
        sizes: Pairs of a full batch of one size, with ``scored`` of one sequence, and the number of such sequences.
    """
    found: Counter[Batch] = Counter()
    for (most, length, scored), number in sizes:
        for rows, times in ((most, number // most), (number % most, 1)):
            if rows and times:
                found[Batch(rows, length, rows * scored)] += times
    return found


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device.

    Attributes:
        weights: Weights and buffers.
        head_copy: Float32 copy of a half-precision vocabulary head, on a CPU.
        gradients: Gradients of trained weights.
        optimizer: Optimizer states.
        activations: Peak of everything else: hidden states, tensors saved by autograd, a block of logits.
        runtime: CUDA context, workspaces.
    """

    weights: float
    head_copy: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    runtime: float = 0.0

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return float(sum(asdict(self).values()))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Estimated cost of a run.

    Attributes:
        model: Name of the model.
        num_parameters: Number of parameters.
        length: Tokens per document or row.
        short: FLOPs of the short contexts.
        memory: Memory on each device.
        device: Device of the plan.
        devices: Number of devices.
        seconds: Estimated seconds of the FLOPs; None if the speed is unknown.
        rates: Assumed FLOP/s.
        fits: Whether it fits on a device; None if the device's memory is unknown.
        notes: Assumptions of the plan, and settings with which it would fit.
    """

    model: str
    num_parameters: int
    length: int
    short: Work
    memory: Memory
    device: Device
    devices: int
    seconds: float | None
    rates: Rates | None
    fits: bool | None
    notes: tuple[str, ...] = ()

    @property
    def main(self) -> Work:
        """FLOPs without the short contexts."""
        raise NotImplementedError

    @property
    def flops(self) -> float:
        """Total FLOPs over all devices."""
        return self.main.total + self.short.total

    @property
    def overhead(self) -> float:
        """FLOPs of the short contexts divided by the others."""
        return self.short.total / self.main.total if self.main.total else 0.0

    @property
    def memory_bytes(self) -> float:
        """Peak memory on each device."""
        return self.memory.total

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values: FLOPs, bytes, seconds."""
        names = ("flops", "memory_bytes", "seconds", "overhead", "fits", "model", "num_parameters", "length", "devices")
        return {
            "schema_version": 1,
            **{name: getattr(self, name) for name in names},
            "device": self.device.to_json(),
            "memory_by_part": asdict(self.memory),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, kw_only=True)
class ScorePlan(Plan):
    """Estimated cost of scoring.

    Attributes:
        dtype: Dtype of the weights.
        documents: Number of documents.
        tokens: Tokens of model input over all documents, without padding.
        batch_tokens: Tokens per batch.
        long: FLOPs of the long contexts, all documents; ``short`` that of the windows of the short contexts.
    """

    dtype: str
    documents: int
    tokens: int
    batch_tokens: int
    long: Work

    @property
    def main(self) -> Work:
        """`long`."""
        return self.long

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values: FLOPs, bytes, seconds."""
        own = {name: getattr(self, name) for name in ("dtype", "documents", "tokens", "batch_tokens")}
        parts = {name: asdict(getattr(self, name)) for name in ("long", "short")}
        return super().to_json() | own | {"flops_by_part": parts}


def find_config(model: str, *, trust_remote_code: bool = False) -> Any:
    """Loads the configuration of a model or of a ``config.json``, without weights.

    Args:
        model: Hub id, directory, ``.gguf`` file, embedded model, or a configuration file.
        trust_remote_code: Allow custom code that comes with the model.

    Raises:
        UserError: The model or file does not exist.
    """
    path = Path(model)
    if path.is_file() and path.suffix == ".json":
        from transformers import AutoConfig

        with library_errors(f"the configuration {shown(model)}", "use the config.json of a transformers model"):
            return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    return load_config(resolve(model), trust_remote_code=trust_remote_code)


def plan_for(
    model: str,
    hardware: Hardware,
    loading: Loading,
    *,
    length: int,
    trains: bool = False,
) -> tuple[Any, Device, Rates | None]:
    """The configuration of a model, the target device, and its measured speed.

    Args:
        model: Name, or a ``config.json``.
        hardware: Settings of the hardware.
        loading: Loading settings of the model.
        length: Tokens per document or row.
        trains: Whether a backward pass is to be measured.

    Raises:
        UserError: The model or device does not exist.
    """
    from longlens.models.checkpoint import resolve_device

    config = find_config(model, trust_remote_code=loading.trust_remote_code)
    here = None
    if hardware.device in (None, "cpu") or hardware.measure:
        here = resolve_device("cpu" if hardware.device == "cpu" else "auto").type
    memory = None if hardware.memory is None else hardware.memory * 1e9
    if hardware.measure:
        if hardware.device not in (None, "cpu"):
            raise UserError(f"`measure` measures this machine, but `device` is {shown(hardware.device)}: remove one")
        dtype = loading.dtype if loading.dtype != "auto" else "bfloat16" if here == "cuda" else "float32"
        shortest, longest = (256, 2048) if here == "cpu" else (4096, 32768)
        found = measure(
            config,
            device=str(here),
            dtype=dtype,
            attention=loading.attention or "sdpa",
            lengths=(min(shortest, max(2, length // 2)), min(longest, max(length, 4))),
            trains=trains,
        )
        device = found.device if memory is None else replace(found.device, memory_bytes=memory)
        return config, device, found.training if trains else found.forward
    if here is not None:
        return config, this_machine(here, flops=hardware.flops, memory_bytes=memory), None
    return config, find_device(hardware.device, flops=hardware.flops, memory_bytes=memory), None


def quantized_notes(config: Any, dtype: str) -> list[str]:
    """Notes of a plan about quantized weights."""
    settings = quantization_settings(config)
    if settings is None:
        return []
    return [f"its weights are quantized ({quantization_note(settings)}), and are counted in {dtype}"]


def plan_score(
    model: str | Any,
    *,
    name: str | None = None,
    length: int,
    documents: int = 1,
    context: int | Sequence[int] | None = CONTEXT,
    stride: int | Sequence[int] | None = None,
    bos: bool | None = None,
    dtype: str = "auto",
    attention: str = "sdpa",
    batch_tokens: int | None = None,
    device: Device,
    devices: int = 1,
    device_map: bool = False,
    tensor_parallel: int = 1,
    rates: Rates | None = None,
    utilization: float | None = None,
    trust_remote_code: bool = False,
) -> ScorePlan:
    """Estimates the cost of `longlens.score`, only from the model's configuration.

    Args:
        model: Name, as for `longlens.load_scorer`, a ``config.json``, or a transformers configuration.
        name: Display name of a configuration in the plan.
        length: Document length in tokens, without BOS.
        documents: Number of documents of this length.
        context: K, several values, or None for only the long context.
        stride: d; by default a quarter of each K.
        bos: Whether a BOS precedes each sequence; by default, whether the configuration has one.
        dtype: Dtype of the weights; ``auto`` is bfloat16 on a GPU and float32 on a CPU.
        attention: ``sdpa``, ``eager``, or one of FlashAttention's names.
        batch_tokens: Tokens per batch; by default the engine's.
        device: The target device.
        devices: Number of devices; each scores different documents, unless they share the model.
        device_map: Whether one model is split by layers over all devices, which run one after the other.
        tensor_parallel: Number of devices that share each layer, divided by transformers' plan for the model.
        rates: Measured speed of the device; by default the published peak times ``utilization``.
        utilization: Fraction of the peak; 0.4 by default.
        trust_remote_code: Allow custom code that comes with the model.

    Raises:
        UserError: The model does not exist or cannot be planned, or no window is possible with the settings.
    """
    from longlens.models.forward import BATCH_TOKENS

    numbers = (("length", length), ("documents", documents), ("devices", devices), ("batch_tokens", batch_tokens))
    for what, value in numbers:
        if value is not None and value < 1:
            raise UserError(f"`{what}` is {value}; expected at least 1")
    if tensor_parallel < 1 or devices % tensor_parallel or (device_map and tensor_parallel > 1):
        raise UserError(
            f"`tensor_parallel` is {tensor_parallel}; expected a divisor of `devices`, which is {devices}, without a "
            "device map"
        )
    config = find_config(model, trust_remote_code=trust_remote_code) if isinstance(model, str) else model
    if tensor_parallel > 1:
        check_shared(name or type(config).__name__, config, tensor_parallel)
    kind = ("bfloat16" if device.on_gpu else "float32") if dtype == "auto" else dtype
    traced = TracedModel(
        config,
        dtype=named_dtype("dtype", kind),
        attention=attention,
        on_gpu=device.on_gpu,
        trust_remote_code=trust_remote_code,
    )
    if bos is None:
        bos = getattr(config.get_text_config(decoder=True), "bos_token_id", None) is not None
    at_once = batch_tokens or BATCH_TOKENS["cuda" if device.on_gpu else "cpu"]
    requests = many_requests(length, context, stride, bos=bos)
    some = min(documents, SAME_DOCUMENTS)

    def batches(batch_tokens: int) -> Counter[Batch]:
        if some * requests.total() > LISTED_REQUESTS:
            sizes = ((max(1, batch_tokens // r.fed), r, some * number) for r, number in requests.items())
            return equal_batches((Batch(most, r.fed, r.scored), number) for most, r, number in sizes)
        listed = document_requests(length, context, stride, bos=bos) * some
        return Counter(plan_batches(listed, batch_tokens, pads=not traced.by_length))

    shapes = batches(at_once)
    everything = sum((traced.work(*shape) * count for shape, count in shapes.items()), Work()) * (documents / some)
    long = sum((traced.work(1, r.fed, r.scored) for r in requests if not r.is_short), Work()) * documents
    short = everything - long if any(request.is_short for request in requests) else Work()
    memory = _memory(traced, shapes, on_gpu=device.on_gpu)
    placed = replace(memory, weights=traced.placed_bytes(devices if device_map else 1, tensor_parallel))
    fits = None if device.memory_bytes is None else placed.total <= device.memory_bytes
    notes: list[str] = []
    if fits is False:
        notes = _advice(traced, device, memory, batches, max(request.fed for request in requests), at_once)
    notes += quantized_notes(config, kind)
    if rates is None:
        rates = device.rates(kind, utilization)
    at_work = 1 if device_map else min(devices, documents * tensor_parallel)
    return ScorePlan(
        model=name or (model if isinstance(model, str) else type(config).__name__),
        num_parameters=traced.num_parameters,
        dtype=kind,
        length=length,
        documents=documents,
        tokens=sum(request.fed * number for request, number in requests.items()) * documents,
        batch_tokens=at_once,
        long=everything - short,
        short=short,
        memory=placed,
        device=device,
        devices=devices,
        seconds=None if rates is None else rates.seconds(everything) / at_work,
        rates=rates,
        fits=fits,
        notes=tuple(notes),
    )


def _memory(traced: TracedModel, shapes: Iterable[Batch], *, on_gpu: bool) -> Memory:
    """Memory of a device with the whole model that runs batches of these shapes.

    A batch's memory grows with its tokens and with its scored tokens: the peak is at the largest of either kind.
    """
    shapes = list(shapes)
    largest = {max(shapes, key=size) for size in (_tokens, lambda shape: shape.length, lambda shape: shape.scored)}
    return Memory(
        weights=traced.weight_bytes,
        head_copy=traced.wide_head_bytes,
        activations=max(traced.peak_bytes(*shape) for shape in largest),
        runtime=RUNTIME_BYTES["cuda" if on_gpu else "cpu"],
    )


def _advice(
    traced: TracedModel,
    device: Device,
    memory: Memory,
    batches: Callable[[int], Iterable[Batch]],
    longest: int,
    batch_tokens: int,
) -> list[str]:
    """Changes with which a run fits: a smaller batch, a device map, tensor parallelism."""
    room, found = device.memory_bytes or 0.0, []
    if batch_tokens > longest:
        smaller = _memory(traced, batches(longest), on_gpu=device.on_gpu)
        if smaller.total <= room:
            return [f"fits with `batch_tokens={longest}`: {smaller.total / 1e9:.1f} GB"]
        memory = smaller
    beside = memory.total - memory.weights
    if beside > room:
        return [f"{beside / 1e9:.1f} GB in addition to the weights do not fit: use a smaller `length`"]
    text = traced.model.config.get_text_config(decoder=True)
    heads: Any = getattr(text, "num_key_value_heads", None) or getattr(text, "num_attention_heads", 1)
    for option, is_map in (("device_map=auto", True), ("tensor_parallel={}", False)):
        for number in SHARES:
            size = beside + traced.placed_bytes(number if is_map else 1, 1 if is_map else number)
            if size <= room and (is_map or heads % number == 0):
                named = option.format(number)
                found.append(f"fits on {number} with `{named}` and `devices={number}`: {size / 1e9:.1f} GB on each")
                break
    return found or [f"the model does not fit on {SHARES[-1]} of them either: use a larger `device` or a smaller model"]


def _tokens(shape: Batch) -> int:
    return shape.rows * shape.length
