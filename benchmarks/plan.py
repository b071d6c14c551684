"""Compares planned and measured memory and time of scoring and training steps; random weights, published shapes.

    python -m benchmarks.plan                            (half an hour on two idle cores: the table of docs/plan.md)
    python -m benchmarks.plan --examples                 (what the commands print, into docs/plan.md)
    PYTHONPATH=src python -m benchmarks.plan -o DIR      (on a GPU, under three minutes; DIR/plan.json and DIR/plan.md)

Each run has a process of its own on a CPU. Memory is the growth of the process from before the model is made (peak
RSS), on a GPU ``torch.cuda.max_memory_allocated``. Training steps are run a second time with `UNFRAGMENTED`, where no
freed memory stays with the process, so that the peak is that of tensors in use. Time is planned from what
`longlens.planning.devices.measure` finds on a few layers, before and after the run; on a CPU both are CPU time of one
thread, which other work moves less.
With ``-o`` and without a GPU it runs with tiny shapes, which tests the script and measures nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from tests.tiny import byte_tokenizer

import longlens
from benchmarks.gpu import SHAPES as LLAMA
from benchmarks.gpu import TINY, text
from benchmarks.memory import status_bytes
from benchmarks.tables import ROOT, fill_block, machine, markdown, write_table
from longlens.losses import LongCE
from longlens.losses.longce import weighted_nll
from longlens.planning.devices import Rates, measure, this_machine
from longlens.planning.score import plan_score
from longlens.planning.train import plan_train
from longlens.scoring.transformers import TransformersScorer

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: ("Llama", shape) for name, shape in LLAMA.items()},
    "Gemma-3-270M": (
        "Gemma3Text",
        {
            "hidden_size": 640,
            "intermediate_size": 2048,
            "num_hidden_layers": 18,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "sliding_window": 512,
            "vocab_size": 262144,
        },
    ),
    "Qwen2.5-0.5B": (
        "Qwen2",
        {
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
    ),
    "tiny": ("Llama", TINY),
}
STORED = ROOT / "benchmarks" / "results" / "plan.json"
"""Measurements, by the number of the case; ``--only`` repeats some of them."""
UNFRAGMENTED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000"}
"""With these glibc gives each tensor pages of its own, which go back when it is freed. By default blocks of up to 32
MiB come from a heap, whose holes stay with the process; glibc reads these variables when a process starts."""
BUDGET_SECONDS = 150.0
"""Seconds on a GPU after which no further run is started; skipped runs are listed."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run."""

    model: str
    mode: str
    length: int
    context: int | None = None
    stride: int = 1024
    batch_tokens: int | None = None
    dtype: str = "float32"
    rows: int = 1
    checkpointing: bool = False
    lora: int | None = None

    @property
    def label(self) -> str:
        windows = "" if self.context is None else f", K={self.context} d={self.stride}"
        parts = {
            "score": f"score{windows or ', long only'}"
            + ("" if self.batch_tokens is None else f", {self.batch_tokens} tokens a batch"),
            "train": f"{'CE' if self.context is None else 'LongCE'} step{windows}"
            + (f", {self.rows} rows" if self.rows > 1 else "")
            + (", checkpointing" if self.checkpointing else "")
            + ("" if self.lora is None else f", LoRA {self.lora}"),
        }
        return parts[self.mode]


SMOL, GEMMA, QWEN = "SmolLM2-135M", "Gemma-3-270M", "Qwen2.5-0.5B"
ON_CPU = (
    Case(model=SMOL, mode="train", length=1024),
    Case(model=SMOL, mode="train", length=1024, checkpointing=True),
    Case(model=SMOL, mode="train", length=1024, context=256, stride=256),
    Case(model=SMOL, mode="score", length=2048, context=512, stride=128),
    Case(model=SMOL, mode="train", length=1024, lora=16),
    Case(model=GEMMA, mode="score", length=2048, context=512, stride=256),
    Case(model=GEMMA, mode="train", length=512),
    Case(model=SMOL, mode="score", length=2048, context=512, stride=512, batch_tokens=8192),
    Case(model=QWEN, mode="score", length=2048, context=1024, stride=512),
    Case(model=QWEN, mode="train", length=512, context=128, stride=128, checkpointing=True, lora=16),
    Case(model=SMOL, mode="score", length=8192),
    Case(model=SMOL, mode="train", length=512, rows=2),
    Case(model=GEMMA, mode="score", length=8192),
    Case(model=SMOL, mode="train", length=4096, context=1024, stride=1024, checkpointing=True),
    Case(model=QWEN, mode="train", length=2048, checkpointing=True),
    Case(model=SMOL, mode="score", length=16384),
)
ON_GPU = tuple(
    replace(case, dtype="bfloat16")
    for case in (
        Case(model="Llama-3.2-1B", mode="score", length=8192, context=4096),
        Case(model="Llama-3.2-1B", mode="score", length=32768, context=4096),
        Case(model="Llama-3.2-1B", mode="score", length=131072),
        Case(model="Llama-3.1-8B", mode="score", length=8192, context=4096),
        Case(model="Llama-3.1-8B", mode="score", length=32768, context=4096),
        Case(model="Llama-3.1-8B", mode="score", length=131072),
        Case(model="Llama-3.2-1B", mode="train", length=8192, checkpointing=True),
        Case(model="Llama-3.2-1B", mode="train", length=8192, context=4096, checkpointing=True),
        Case(model="Llama-3.2-1B", mode="train", length=8192),
        Case(model="Llama-3.2-1B", mode="train", length=32768, context=4096, checkpointing=True),
    )
)
ON_NOTHING = (
    Case(model="tiny", mode="score", length=256, context=64, stride=32),
    Case(model="tiny", mode="train", length=128, context=64, stride=32, checkpointing=True),
)


def config_of(name: str) -> Any:
    kind, shape = SHAPES[name]
    ids = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 0}
    return getattr(transformers, f"{kind}Config")(**shape, max_position_embeddings=131072 + 1, **ids)


def make(case: Case, device: torch.device) -> Any:
    torch.manual_seed(0)
    with device:
        model = transformers.AutoModelForCausalLM.from_config(
            config_of(case.model), dtype=getattr(torch, case.dtype), attn_implementation="sdpa"
        )
    if case.lora is not None:
        import peft

        model = peft.get_peft_model(
            model, peft.LoraConfig(task_type="CAUSAL_LM", r=case.lora, target_modules="all-linear")
        )
        model.enable_input_require_grads()
    return model


def work_of(case: Case, model: Any, device: torch.device) -> Callable[[], Any]:
    """What is timed: all scores of a document, or one step with its optimizer."""
    if case.mode == "score":
        scorer = TransformersScorer(
            model.eval(), byte_tokenizer(), weights_sha256="random weights", batch_tokens=case.batch_tokens
        )
        documents = [longlens.Document(id="a", text=text(case.length))]
        return lambda: longlens.score(
            documents, scorer, context=case.context, stride=case.stride, max_length=case.length
        )
    model.train()
    if case.checkpointing:
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    ids = torch.randint(97, 123, (case.rows, case.length), device=device)
    longce = None if case.context is None else LongCE(context=case.context, stride=case.stride)

    def step() -> None:
        (weighted_nll(model, ids, longce=longce).total / ids.numel()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def planned(case: Case, device: torch.device, rates: Rates | None) -> Any:
    where = this_machine(device.type)
    config = config_of(case.model)
    if case.mode == "score":
        return plan_score(
            config,
            length=case.length,
            context=case.context,
            stride=case.stride,
            bos=True,
            dtype=case.dtype,
            batch_tokens=case.batch_tokens,
            device=where,
            rates=rates,
        )
    return plan_train(
        config,
        length=case.length,
        longce=None if case.context is None else LongCE(context=case.context, stride=case.stride),
        batch_size=case.rows,
        per_device_batch_size=case.rows,
        dtype=case.dtype,
        gradient_checkpointing=case.checkpointing,
        lora=case.lora,
        device=where,
        rates=rates,
    )


def timed_lengths(case: Case, *, on_gpu: bool) -> tuple[int, int]:
    """Tokens at which layers are timed: those of a window and of the long context, as far as there is time for it."""
    window = case.length if case.context is None else case.context + case.stride
    if case.length > window:
        return window, min(case.length, 32768 if on_gpu else 4096)
    return max(2, min(4096 if on_gpu else 512, window // 2)), min(window, 32768 if on_gpu else 4096)


def run(case: Case) -> dict[str, Any]:
    """Plans and measures one case in this process."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    lengths = timed_lengths(case, on_gpu=on_gpu)

    def rates() -> Rates:
        found = measure(
            config_of(case.model),
            device=device.type,
            dtype=case.dtype,
            lengths=lengths,
            trains=case.mode == "train",
            repeats=3 if on_gpu else 2,
            clock=clock,
        )
        return found.training if case.mode == "train" else found.forward

    before = rates()
    found = measured(case, device, clock)
    if on_gpu:
        torch.cuda.empty_cache()
    after = rates()
    mean = Rates(**{name: 2 / (1 / value + 1 / getattr(after, name)) for name, value in asdict(before).items()})
    plan = planned(case, device, mean)
    bytes_planned = plan.memory.total - (plan.memory.runtime if on_gpu else 0)  # CUDA's context is no allocation
    weights = found["weights"]
    return {
        "model": case.model,
        "run": case.label,
        "tokens": case.length,
        "planned_gb": bytes_planned / 1e9,
        "measured_gb": found["peak"] / 1e9,
        "planned_beside_weights_gb": (bytes_planned - weights) / 1e9,
        "measured_beside_weights_gb": (found["peak"] - weights) / 1e9,
        "planned_s": plan.seconds,
        "measured_s": found["seconds"],
        "flops": plan.flops,
        "overhead": plan.overhead,
        "rates": asdict(mean),
    }


def measured(case: Case, device: torch.device, clock: Callable[[], float] = time.process_time) -> dict[str, float]:
    """Bytes at the peak, bytes of weights, and seconds of a run that is not the first."""
    on_gpu = device.type == "cuda"
    base = used(device)
    model = make(case, device)
    call = work_of(case, model, device)
    reset_peak(device)
    if on_gpu or case.mode == "train":  # the optimizer's states are made by the first step
        call()
    if on_gpu:
        torch.cuda.synchronize()
    start = clock()
    call()
    if on_gpu:
        torch.cuda.synchronize()
    seconds, peak = clock() - start, peak_used(device) - base
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return {"peak": peak, "weights": weights, "seconds": seconds}


def used(device: torch.device) -> int:
    """Bytes of this process, or of the GPU's allocator."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated()
    ctypes.CDLL(None).malloc_trim(0)
    return status_bytes("VmRSS")


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_used(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else status_bytes("VmHWM")


COLUMNS = [
    "model",
    "run",
    "tokens",
    "planned GB",
    "measured",
    "ratio",
    "in use",
    "ratio",
    "planned s",
    "measured",
    "ratio",
]


def row(found: dict[str, Any]) -> list[str]:
    in_use = found.get("in_use_gb")
    return [
        found["model"],
        found["run"],
        f"{found['tokens']:,}",
        f"{found['planned_gb']:.2f}",
        f"{found['measured_gb']:.2f}",
        f"{found['planned_gb'] / found['measured_gb']:.2f}",
        "" if in_use is None else f"{in_use:.2f}",
        "" if in_use is None else f"{found['planned_gb'] / in_use:.2f}",
        f"{found['planned_s']:.2f}",
        f"{found['measured_s']:.2f}",
        f"{found['planned_s'] / found['measured_s']:.2f}",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--only", type=int, nargs="*", metavar="NUMBER", help="These cases alone, from 0 on.")
    parser.add_argument("--examples", action="store_true", help="Write the examples of docs/plan.md.")
    given = parser.parse_args(arguments)
    if given.examples:
        examples()
        return 0
    if given.case is not None:
        torch.set_num_threads(1)
        case = ON_CPU[given.case]
        print(json.dumps(measured(case, torch.device("cpu")) if given.memory else run(case)))
        return 0
    if given.out is not None:
        return _into(given.out, ON_GPU if torch.cuda.is_available() else ON_NOTHING)
    for number in given.only or range(len(ON_CPU)):
        found = _in_process(number)
        if ON_CPU[number].mode == "train":
            again = _in_process(number, "--memory", **UNFRAGMENTED)
            found |= {"in_use_gb": again["peak"] / 1e9, "in_use_s": again["seconds"]}
        print(row(found), file=sys.stderr, flush=True)
        stored = json.loads(STORED.read_text(encoding="utf-8")) if STORED.is_file() else {}
        stored[f"{number:02}"] = found
        STORED.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        write_table("plan", COLUMNS, [row(stored[key]) for key in sorted(stored)], page="docs/plan.md")
    return 0


def _in_process(number: int, *options: str, **environment: str) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.plan", "--case", str(number), *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


EXAMPLES = (
    "score --length 131071 --documents 50 --device h100 --devices 8",
    "train --length 32768 --precision bfloat16 --device h100 --devices 8",
    "train prolong-64k --device h100 --devices 8",
    "train --length 32768 --lora 16 --dtype bfloat16 --gradient-checkpointing --device h100",
)


def examples() -> None:
    """Writes what the commands print for Llama-3.1-8B into docs/plan.md."""
    from typer.testing import CliRunner

    from longlens.cli.app import app

    parts = []
    with tempfile.TemporaryDirectory() as folder:
        config_of("Llama-3.1-8B").save_pretrained(folder)
        for example in EXAMPLES:
            mode, _, options = example.partition(" ")
            recipe = [options.split()[0]] if not options.startswith("-") else []
            rest = options.split()[len(recipe) :]
            asked = [mode, *recipe, "--model", f"{folder}/config.json", *rest]
            done = CliRunner().invoke(app, ["plan", *asked], catch_exceptions=False)
            shown = " ".join(["longlens plan", mode, *recipe, "--model config.json", *rest])
            parts.append(f"```console\n$ {shown}\n{done.stdout.rstrip()}\n```\n")
    fill_block("docs/plan.md", "plan_examples", "\n".join(re.sub(r" +\n", "\n", part) for part in parts))


def _into(out: Path, cases: Sequence[Case]) -> int:
    start, found, left_out = time.monotonic(), [], []
    for case in cases:
        if time.monotonic() - start > BUDGET_SECONDS:
            left_out.append(f"{case.model} {case.label} at {case.length}: no time left")
            continue
        try:
            found.append(run(case))
            print(row(found[-1]), flush=True)
        except torch.OutOfMemoryError:
            left_out.append(f"{case.model} {case.label} at {case.length}: out of memory")
            torch.cuda.empty_cache()
    out.mkdir(parents=True, exist_ok=True)
    content = {"schema_version": 1, "machine": machine(), "left_out": left_out, "runs": found}
    (out / "plan.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    heading = f"`python -m benchmarks.plan`: {machine()}; {time.monotonic() - start:.0f} s.\n\n"
    notes = "".join(f"\nNot measured: {line}\n" for line in left_out)
    (out / "plan.md").write_text(heading + markdown(COLUMNS, [row(one) for one in found]) + notes, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
