"""Estimates the cost of a training step: cross-entropy, and LongCE with its short-context pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from longlens.errors import UserError, shown_value
from longlens.models.forward import BATCH_TOKENS
from longlens.planning.devices import Device, Rates
from longlens.planning.model import TracedModel, named_dtype
from longlens.planning.score import (
    RUNTIME_BYTES,
    Batch,
    Memory,
    Plan,
    equal_batches,
    find_config,
    plan_for,
    quantized_notes,
)
from longlens.planning.trace import Work

if TYPE_CHECKING:
    from longlens.losses.settings import LongCE
    from longlens.settings.options import Hardware, Loading
    from longlens.train.recipe import Recipe

Sharding = Literal["ddp", "fsdp", "zero3"]
SHARDINGS = ("ddp", "fsdp", "zero3")


@dataclass(frozen=True, kw_only=True)
class TrainPlan(Plan):
    """Estimated cost of training; ``seconds`` and ``short`` are per step.

    Attributes:
        num_trained: Number of trained parameters.
        batch_size: Rows per step, over all devices.
        step: FLOPs of a step of cross-entropy: forward, backward, and recomputation by checkpointing.
        once: FLOPs of offline weights, per row.
    """

    num_trained: int
    batch_size: int
    step: Work
    once: Work

    @property
    def main(self) -> Work:
        """`step`."""
        return self.step

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second of all devices together."""
        return None if self.seconds is None else self.batch_size * self.length / self.seconds

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values: FLOPs and seconds of a step, bytes."""
        own = {name: getattr(self, name) for name in ("tokens_per_second", "num_trained", "batch_size")}
        parts = {name: asdict(getattr(self, name)) for name in ("step", "short", "once")}
        return super().to_json() | own | {"flops_by_part": parts}


def parse_loss(loss: str, *, context: int, stride: int, gamma: float) -> tuple[LongCE | None, bool]:
    """Settings of a loss by its name in recipes, and whether its weights are computed once before training.

    Raises:
        UserError: The loss does not exist.
    """
    from longlens.losses.settings import FORMS

    if loss == "ce":
        return None, False
    forms = {**FORMS, "offline": FORMS["longce"]}
    if loss not in forms:
        raise UserError(f"`loss` is {shown_value(loss)}; expected one of {', '.join(forms)}, ce")
    return forms[loss](context=context, stride=stride, gamma=gamma), loss == "offline"


def plan_train(
    model: str | Any,
    *,
    name: str | None = None,
    length: int,
    longce: LongCE | None = None,
    offline: bool = False,
    batch_size: int | None = None,
    per_device_batch_size: int = 1,
    dtype: str = "float32",
    precision: str = "float32",
    attention: str = "sdpa",
    gradient_checkpointing: bool = False,
    lora: int | None = None,
    target_modules: str | Sequence[str] = "all-linear",
    modules_to_save: Sequence[str] = (),
    device: Device,
    devices: int = 1,
    sharding: Sharding = "ddp",
    context_parallel: int = 1,
    rates: Rates | None = None,
    utilization: float | None = None,
    trust_remote_code: bool = False,
    advises: bool = True,
) -> TrainPlan:
    """Estimates the cost of `longlens train` with AdamW, only from the model's configuration.

    Args:
        model: Name, a ``config.json``, or a transformers configuration.
        name: Display name of a configuration in the plan.
        length: Tokens per row, one document each.
        longce: The loss; None for cross-entropy.
        offline: Whether weights are computed once before training, with ``longce``, instead of in each step.
        batch_size: Rows per step, over all devices and micro-batches; by default one micro-batch on each device.
        per_device_batch_size: Rows per micro-batch.
        dtype: Dtype of the weights, their gradients and the optimizer's states.
        precision: Precision of autocast; ``float32`` for none.
        attention: Attention implementation.
        gradient_checkpointing: Whether activations are recomputed in the backward pass.
        lora: Rank of adapters that are trained instead of all weights.
        target_modules: Modules that have adapters.
        modules_to_save: Modules that are trained fully in addition.
        device: The target device.
        devices: Number of devices.
        sharding: Sharding of weights, gradients and optimizer's states: ``ddp`` keeps them whole on each device.
        context_parallel: Number of devices that share each row.
        rates: Measured speed of a device; by default the published peak times ``utilization``.
        utilization: Fraction of the peak; 0.4 by default.
        trust_remote_code: Allow custom code that comes with the model.
        advises: Whether to suggest settings with which the training fits, which requires further plans.

    Raises:
        UserError: The model does not exist or cannot be planned, or settings conflict.
    """
    for what, value, least in (
        ("length", length, 2),
        ("devices", devices, 1),
        ("context_parallel", context_parallel, 1),
        ("batch_size", batch_size, 1),
        ("per_device_batch_size", per_device_batch_size, 1),
        ("lora", lora, 1),
    ):
        if value is not None and value < least:
            raise UserError(f"`{what}` is {value}; expected at least {least}")
    if longce is not None and longce.context >= length:
        raise UserError(
            f"`context` is {longce.context}, but rows have {length} tokens, so no token would have a short-context "
            "score: use a larger `length` or a smaller `context`, or pass `loss=ce`"
        )
    if sharding not in SHARDINGS:
        raise UserError(f"`sharding` is {shown_value(sharding)}; expected one of {', '.join(SHARDINGS)}")
    if devices % context_parallel:
        raise UserError(
            f"`devices` is {devices}, and `context_parallel` is {context_parallel}: expected a multiple of it"
        )
    ranks = devices // context_parallel
    batch_size = ranks * per_device_batch_size if batch_size is None else batch_size
    micro, remainder = divmod(batch_size, ranks * per_device_batch_size)
    if remainder or not micro:
        raise UserError(
            f"`batch_size` is {batch_size} rows, which do not divide among {ranks} ranks with micro-batches of "
            f"{per_device_batch_size}: expected a multiple of {ranks * per_device_batch_size}"
        )
    is_sharded = sharding != "ddp" and devices > 1
    config = find_config(model, trust_remote_code=trust_remote_code) if isinstance(model, str) else model
    # Sharded weights are cast as they are gathered, others by autocast as they are used.
    kept, cast = named_dtype("dtype", dtype), named_dtype("precision", precision)
    computed = cast if is_sharded and precision != "float32" else kept
    autocast = None if is_sharded or precision == "float32" else cast
    traced = TracedModel(
        config, dtype=computed, attention=attention, on_gpu=device.on_gpu, trust_remote_code=trust_remote_code
    )
    num_parameters = traced.num_parameters
    if lora is not None:
        traced.add_adapters(lora, target_modules, modules_to_save)
    rows, local = per_device_batch_size, -(-length // context_parallel)
    keeps = is_sharded or micro > 1
    settings = {"checkpointing": gradient_checkpointing, "precision": autocast}
    found = traced.train(rows, local, rows * (local - 1), is_sharded=keeps, **settings)  # type: ignore[arg-type]
    whole = found
    if context_parallel > 1:
        whole = traced.train(rows, length, rows * (length - 1), is_sharded=keeps, **settings)  # type: ignore[arg-type]
    step = whole.work * micro * ranks
    once, short, short_peak = Work(), Work(), 0
    if longce is not None:
        # The same batches as in `longlens.losses.passes.score_short`.
        at_once = max(1, BATCH_TOKENS["cuda" if device.on_gpu else "cpu"] // (longce.context + longce.stride))
        sizes = longce.window_sizes(length).items()
        shapes = equal_batches((Batch(at_once, *size), number * rows) for size, number in sizes)
        of_rows = sum((traced.work(*shape) * number for shape, number in shapes.items()), Work())
        short_peak = max((traced.peak_bytes(*shape) for shape in shapes), default=0) + traced.wide_head_bytes
        if offline:
            once, short_peak = of_rows * (1 / rows) + traced.work(1, length, length - 1), 0
        else:
            short = of_rows * micro * ranks
    memory = _memory(
        traced,
        dtype=kept,
        activations=max(found.peak_bytes, short_peak),
        has_gradients=not keeps,
        sharding=sharding,
        devices=devices,
        on_gpu=device.on_gpu,
    )
    fits = None if device.memory_bytes is None else memory.total <= device.memory_bytes
    notes = tuple(quantized_notes(config, dtype))
    if advises and fits is False:
        notes += _advice(
            partial(
                plan_train,
                config,
                name=name,
                length=length,
                longce=longce,
                offline=offline,
                batch_size=batch_size,
                per_device_batch_size=per_device_batch_size,
                dtype=dtype,
                precision=precision,
                attention=attention,
                gradient_checkpointing=gradient_checkpointing,
                lora=lora,
                target_modules=target_modules,
                modules_to_save=modules_to_save,
                device=device,
                devices=devices,
                sharding=sharding,
                context_parallel=context_parallel,
                rates=rates,
                utilization=utilization,
                trust_remote_code=trust_remote_code,
                advises=False,
            )
        )
    if rates is None:
        rates = device.rates(precision if precision != "float32" else dtype, utilization)
    return TrainPlan(
        model=name or (model if isinstance(model, str) else type(config).__name__),
        num_parameters=num_parameters,
        num_trained=traced.num_trained,
        length=length,
        batch_size=batch_size,
        step=step,
        short=short,
        once=once,
        memory=memory,
        device=device,
        devices=devices,
        seconds=None if rates is None else rates.seconds(step + short) / devices,
        rates=rates,
        fits=fits,
        notes=notes,
    )


def _advice(plan: partial[TrainPlan]) -> tuple[str, ...]:
    """Changes with which training fits: settings are changed one after the other until it fits.

    Args:
        plan: `plan_train` with its arguments.
    """
    asked = plan.keywords
    steps: list[dict[str, Any]] = [{"gradient_checkpointing": True}]
    if asked["precision"] == asked["dtype"] == "float32" and asked["device"].on_gpu:
        steps.append({"precision": "bfloat16"})
    if asked["devices"] > 1:
        steps.append({"sharding": "fsdp"})
        steps += [{"context_parallel": n} for n in (2, 4, 8) if asked["context_parallel"] < n <= asked["devices"]]
    if asked["lora"] is None:
        steps.append({"lora": 16, "dtype": "bfloat16"})
    changed: dict[str, Any] = {}
    for step in steps:
        if all(asked[name] == value for name, value in step.items()):
            continue
        changed |= step
        if asked["batch_size"] % (asked["devices"] // changed.get("context_parallel", 1)):
            return ()
        found = plan(**changed)
        if found.fits:
            named = ", ".join(f"`{name}={value}`" for name, value in changed.items())
            return (f"fits with {named}: {found.memory_bytes / 1e9:.1f} GB on each",)
    return ("no setting of longlens train makes it fit: use more devices with `sharding=fsdp`, or shorter rows",)


def plan_recipe(recipe: Recipe, hardware: Hardware, loading: Loading, **changes: Any) -> tuple[TrainPlan, float | None]:
    """The plan of a recipe's run, and the tokens of all its steps.

    Args:
        recipe: The run.
        hardware: Target hardware.
        loading: Loading settings of the model's configuration.
        changes: Changes, as for `recipe_settings`; also ``tokens``.

    Raises:
        UserError: The model or device does not exist, or the length of rows is unknown.
    """
    settings = {**recipe_settings(recipe), **changes}
    return plan_settings(settings, hardware, loading, full_attention=recipe.load.full_attention)


def plan_settings(
    settings: Mapping[str, Any], hardware: Hardware, loading: Loading, *, full_attention: bool = False
) -> tuple[TrainPlan, float | None]:
    """The plan for arguments of `plan_train` with ``model`` and ``tokens``, and the number of tokens.

    Args:
        settings: The arguments, ``model`` a name.
        hardware: Target hardware.
        loading: Loading settings of the model's configuration.
        full_attention: Whether to disable the model's sliding window.

    Raises:
        UserError: The model or device does not exist, or a setting is missing or invalid.
    """
    from longlens.train.setup import disable_sliding_window

    given = dict(settings)
    for name, example in (("model", "model=smollm2"), ("length", "length=32768")):
        if given[name] is None:
            raise UserError(f"`{name}` is missing: pass `{example}`")
    total, model = given.pop("tokens"), given.pop("model")
    if total is not None and not 0 < total < math.inf:
        raise UserError(f"`tokens` is {total:g}; expected a number above 0, such as 1e9")
    config, device, rates = plan_for(model, hardware, loading, length=given["length"], trains=True)
    if full_attention:
        config = disable_sliding_window(config)
    plan = plan_train(
        config,
        name=model,
        **given,
        device=device,
        devices=hardware.devices,
        rates=rates,
        utilization=hardware.utilization,
        trust_remote_code=loading.trust_remote_code,
    )
    return plan, total


def recipe_settings(recipe: Recipe) -> dict[str, Any]:
    """The arguments of `plan_train` from a recipe, and ``tokens``, the number over all its steps.

    The length is None if only a folder of packed rows determines it.
    """
    from longlens.losses.settings import LongCE

    training, length = recipe.training, recipe.length
    is_online = isinstance(recipe.loss, LongCE)
    offline = LongCE() if recipe.loss is not None and not is_online else None
    target = "all-linear" if recipe.lora is None else recipe.lora.target_modules
    return {
        "model": recipe.model,
        "length": length,
        "longce": recipe.loss if is_online else offline,
        "offline": offline is not None,
        "batch_size": training.batch_size,
        "per_device_batch_size": training.per_device_batch_size,
        "dtype": recipe.load.dtype,
        "precision": training.precision,
        "attention": recipe.load.attention or "sdpa",
        "gradient_checkpointing": training.gradient_checkpointing,
        "lora": None if recipe.lora is None else recipe.lora.r,
        "sharding": training.sharding or _sharding_of(training.arguments),
        "context_parallel": training.context_parallel or 1,
        "target_modules": target,
        "modules_to_save": () if recipe.lora is None else recipe.lora.modules_to_save,
        "tokens": training.steps * training.batch_size * length if training.steps and length else None,
    }


def _sharding_of(arguments: Mapping[str, Any]) -> Sharding:
    """Sharding from arguments of transformers' Trainer; every DeepSpeed configuration is planned as stage 3."""
    return "zero3" if arguments.get("deepspeed") else "fsdp" if arguments.get("fsdp") else "ddp"


def _memory(
    traced: TracedModel,
    *,
    dtype: Any,
    activations: float,
    has_gradients: bool,
    sharding: str,
    devices: int,
    on_gpu: bool,
) -> Memory:
    """Bytes on a device, computed from those of all weights.

    Args:
        traced: The model, with its adapters, if any.
        dtype: Dtype of the weights and of the optimizer's states.
        activations: Peak of a micro-batch.
        has_gradients: Whether that peak includes gradients.
        sharding: Sharding of the weights.
        devices: Number of devices.
        on_gpu: Whether there is a CUDA context.
    """
    trained, adapters = traced.num_trained, traced.num_adapters
    frozen = traced.num_parameters - trained
    runtime = RUNTIME_BYTES["cuda" if on_gpu else "cpu"]
    kept = 4 * adapters + dtype.itemsize * (trained - adapters)  # adapters are float32
    gradients, optimizer = kept, 2 * kept
    if sharding == "ddp" or devices == 1:
        weights = frozen * dtype.itemsize + kept + _buffer_bytes(traced)
        if has_gradients:
            activations = max(0.0, activations - gradients)
        # DistributedDataParallel copies gradients into its own buckets.
        buckets = gradients if devices > 1 else 0
        return Memory(
            weights=weights,
            gradients=gradients + buckets,
            optimizer=optimizer,
            activations=activations,
            runtime=runtime,
        )
    gathered = traced.gathered_bytes
    if sharding == "zero3" and traced.head.dtype.itemsize == 2:
        # Half-precision weights and gradients, and float32 weights with the optimizer's states.
        weights, gradients, optimizer = 2 * (frozen + trained), 2 * trained, 12 * trained
    else:
        weights = frozen * dtype.itemsize + kept
    return Memory(
        weights=weights / devices + gathered,
        gradients=gradients / devices,
        optimizer=optimizer / devices,
        activations=activations,
        runtime=runtime,
    )


def _buffer_bytes(traced: TracedModel) -> int:
    return sum(buffer.numel() * buffer.dtype.itemsize for buffer in traced.model.buffers())
