"""Formats a plan as lines: the answer first, then its parts."""

from __future__ import annotations

from collections.abc import Iterator

from longlens.planning.score import Memory, ScorePlan
from longlens.planning.train import TrainPlan

_PARTS = {
    "weights": "weights",
    "head_copy": "float32 copy of the head",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "activations": "activations and logits",
    "runtime": "CUDA context and workspaces",
}


def size(number: float) -> str:
    """Bytes as GB of 10^9, as devices are sold."""
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.0f} MB"


def duration(seconds: float) -> str:
    """A time in a suitable unit."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds / 86400:.3g} days"


def flops(number: float) -> str:
    """Floating-point operations with a prefix."""
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G")):
        if number >= 10**power:
            return f"{number / 10**power:,.3g} {prefix}FLOP"
    return f"{number:,.0f} FLOP"


def _fits(plan: ScorePlan | TrainPlan) -> str:
    device = f"{plan.devices} x {plan.device.name}"
    if plan.fits is None or plan.device.memory_bytes is None:
        return f"needs {size(plan.memory_bytes)} on each of {device}"
    verdict = "fits on" if plan.fits else "does not fit on"
    return f"{verdict} {device} ({size(plan.device.memory_bytes)}): {size(plan.memory_bytes)} on each"


def score_answer(plan: ScorePlan) -> str:
    """The answer in one line."""
    time = "" if plan.seconds is None else f"; about {duration(plan.seconds)} for {plan.documents:,} documents"
    return f"{_fits(plan)}{time}"


def train_answer(plan: TrainPlan, tokens: float | None = None) -> str:
    """The answer in one line.

    Args:
        plan: Plan of a step.
        tokens: Number of training tokens, for the total time.
    """
    parts = [_fits(plan)]
    if plan.seconds is not None and plan.tokens_per_second is not None:
        parts.append(f"about {duration(plan.seconds)} per step, {plan.tokens_per_second:,.0f} tokens/s")
        if tokens is not None:
            parts.append(f"{duration(tokens / plan.tokens_per_second)} for {tokens:.3g} tokens")
    return "; ".join(parts)


def _memory_rows(memory: Memory) -> Iterator[tuple[str, str]]:
    for name, label in _PARTS.items():
        number = getattr(memory, name)
        if number:
            yield label, size(number)
    yield "memory per device", size(memory.total)


def score_rows(plan: ScorePlan) -> list[tuple[str, str]]:
    """The parts of the plan by name."""
    rows = [
        ("parameters", f"{plan.num_parameters:,} in {plan.dtype}"),
        ("tokens of model input", f"{plan.tokens:,}"),
        ("tokens per batch", f"{plan.batch_tokens:,}"),
        ("long contexts", flops(plan.long.total)),
        ("short contexts", flops(plan.short.total)),
        ("overhead of the short contexts", f"{100 * plan.overhead:+.0f} %"),
        *_memory_rows(plan.memory),
    ]
    return rows + [("note", note) for note in plan.notes]


def train_rows(plan: TrainPlan) -> list[tuple[str, str]]:
    """The parts of the plan by name."""
    rows = [
        ("parameters", f"{plan.num_parameters:,}, {plan.num_trained:,} of them trained"),
        ("tokens per step", f"{plan.batch_size * plan.length:,}"),
        ("step of cross-entropy", flops(plan.step.total)),
        ("short-context pass of LongCE", flops(plan.short.total)),
        ("overhead of LongCE", f"{100 * plan.overhead:+.0f} %"),
    ]
    if plan.once.total:
        rows.append(("offline weights, once per row", flops(plan.once.total)))
    rows += _memory_rows(plan.memory)
    return rows + [("note", note) for note in plan.notes]
