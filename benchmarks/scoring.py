"""Compares scoring with the published package `longppl` 0.3.0 and with its own limit; real models, one thread.

    python -m benchmarks.scoring [rounds]       (about four minutes a round on one core; `make test-real`'s environment,
                                                 which has the package)

- The package and longlens take turns within a round, both with their defaults, and so do the batch sizes.
- The limit is what longlens multiplies and attends to, alone: the linear layers' products and the attention of one run
  are recorded, and replayed with the same weights and shapes.
- Peak memory is that of a process of its own, less what it had after loading.

Time is the process's CPU time on one thread, which other work on the machine moves less than the clock on the wall;
ratios are medians over rounds, of rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import longlens
from benchmarks.tables import write_table
from longlens.compat import compute_longppl
from longlens.models import load_tokenizer
from longlens.models.products import attention, linear
from longlens.scoring.transformers import TransformersScorer

CASES = (("smollm2", 2048, 512, 128), ("gemma3-270m", 1024, 256, 64))
BATCHES = (None, 512, 2048, 4096, 8192)
MEMORY = ("smollm2", 8191, 2048, 2048)
PRODUCTS = (
    ("SmolLM2, a batch, down", 1024, 1536, 576),
    ("SmolLM2, a batch, up", 1024, 576, 1536),
    ("SmolLM2, vocabulary", 512, 576, 49152),
    ("Gemma, vocabulary", 128, 640, 262144),
    ("8B, a batch, up", 256, 4096, 14336),
)
ATTENTIONS = (
    ("SmolLM2, windows of K = 512, d = 128", (1, 9, 640, 64), 3),
    ("SmolLM2, 2,048 tokens", (1, 9, 2048, 64), 3),
    ("Gemma 3, windows of K = 256, d = 64", (3, 4, 320, 256), 1),
    ("8B, windows of K = 512, d = 128", (1, 32, 640, 128), 8),
)
MEASURED = ("mkldnn::_linear_pointwise", "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_softmax")
PEAK = """
import contextlib, io, json, sys
from importlib import import_module
import longlens
from benchmarks.memory import status_bytes
from benchmarks.scoring import opening
from longlens.models import load_tokenizer
side, name, length, context, stride = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
scorer = longlens.load_scorer(name, dtype="float32")
model, tokenizer, text = scorer.model, load_tokenizer(name), opening(scorer, length)
module = "longppl.longppl" if side == "package" else "longlens.compat"
loaded = status_bytes("VmHWM")
with contextlib.redirect_stdout(io.StringIO()):
    import_module(module).compute_longppl(
        text, model, model, tokenizer, tokenizer, trunc_len=context, sliding_window=stride
    )
print(json.dumps((status_bytes("VmHWM") - loaded) / 1e6))
"""


class Recorder(TorchDispatchMode):
    """Records which products and attentions are computed: weights unchanged, states by their shape."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
        self._states: dict[tuple[Any, ...], Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() in MEASURED or "attention" in func.name():
            self.calls.append((func, tuple(map(self._stand_in, args)), dict(kwargs or {})))
        return func(*args, **(kwargs or {}))

    def _stand_in(self, part: Any) -> Any:
        base = part if not isinstance(part, Tensor) or part._base is None else part._base
        if not isinstance(part, Tensor) or isinstance(base, torch.nn.Parameter):
            return part
        key = (tuple(part.shape), part.stride(), part.dtype)
        if key not in self._states:
            self._states[key] = part.clone()
        return self._states[key]

    def replay(self) -> None:
        for func, args, kwargs in self.calls:
            func(*args, **kwargs)


def cpu_seconds(call: Callable[..., Any], *arguments: Any, **options: Any) -> float:
    gc.collect()
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        call(*arguments, **options)
    return time.process_time() - start


def opening(scorer: TransformersScorer, length: int) -> str:
    """Returns the prefix of a text that has the given number of tokens, without BOS."""
    text = "\n".join(Path(module.__file__ or "").read_text(encoding="utf-8") for module in (argparse, statistics))
    return text[: int(scorer.encode(longlens.Document(id="a", text=text)).char_spans[length - 2, 1])]


def peers(rounds: int) -> None:
    package = import_module("longppl.longppl")
    beside, batches = [], []
    for name, length, context, stride in CASES:
        scorer = longlens.load_scorer(name, dtype="float32")
        model, tokenizer = scorer.model, load_tokenizer(name)
        text = opening(scorer, length)
        document = [longlens.Document(id="a", text=text)]
        found: dict[Any, list[float]] = {}
        for _ in range(rounds):
            arguments = (text, model, model, tokenizer, tokenizer)
            settings = {"trunc_len": context, "sliding_window": stride}
            for side, call in (("package", package.compute_longppl), ("longlens", compute_longppl)):
                found.setdefault(side, []).append(cpu_seconds(call, *arguments, **settings))
                print(f"{name} {side}: {found[side][-1]:.1f} s", file=sys.stderr, flush=True)
            with Recorder() as recorder, contextlib.redirect_stdout(io.StringIO()):
                compute_longppl(*arguments, **settings)
            with torch.inference_mode():
                found.setdefault("limit", []).append(cpu_seconds(recorder.replay))
            print(f"{name} limit: {found['limit'][-1]:.1f} s", file=sys.stderr, flush=True)
            for tokens in BATCHES:
                sized = TransformersScorer(model, tokenizer, weights_sha256="not computed", batch_tokens=tokens)
                seconds = cpu_seconds(longlens.score, document, sized, context=context, stride=stride)
                found.setdefault(tokens, []).append(seconds)
                print(f"{name} batches of {tokens}: {seconds:.1f} s", file=sys.stderr, flush=True)
        case = [name, length, context, stride]

        def ratio(above: Any, below: Any, found: dict[Any, list[float]] = found) -> str:
            ratios = [one / other for one, other in zip(found[above], found[below], strict=True)]
            return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"

        seconds = f"{statistics.median(found['longlens']):.1f}"
        beside.append([*case, ratio("package", "longlens"), ratio("longlens", "limit"), seconds])
        for tokens in BATCHES:
            over = [mine / default for mine, default in zip(found[tokens], found[None], strict=True)]
            batches.append([*case, tokens or "default", f"{statistics.median(over):.2f}"])
        del scorer, model
    case_columns = ["model", "tokens", "K", "d"]
    columns = [*case_columns, "package / longlens", "longlens / limit", "longlens, s"]
    write_table("scoring", columns, beside, page="docs/precision.md")
    columns = [*case_columns, "tokens a batch", "time over the default"]
    write_table("scoring_batches", columns, batches, page="docs/precision.md", by="scoring")


def memory() -> None:
    name, length, context, stride = MEMORY
    megabytes = {}
    for side in ("package", "longlens"):
        arguments = [side, name, str(length), str(context), str(stride)]
        command = [sys.executable, "-W", "ignore", "-c", PEAK, *arguments]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        megabytes[side] = float(json.loads(done.stdout.splitlines()[-1]))
        print(f"{side}: {megabytes[side]:.0f} MB", file=sys.stderr, flush=True)
    package, ours = megabytes["package"], megabytes["longlens"]
    row = [name, length, context, stride, f"{package:,.0f}", f"{ours:,.0f}", f"{package / ours:.1f}"]
    columns = ["model", "tokens", "K", "d", "package, MB", "longlens, MB", "package / longlens"]
    write_table("scoring_memory", columns, [row], page="docs/precision.md", by="scoring")


def gigaflops(function: Callable[[Tensor, Tensor], Tensor], m: int, k: int, n: int) -> float:
    """Of the quickest of three runs of a product."""
    states, weight = torch.randn(m, k), torch.randn(n, k)
    calls = max(1, round(2e10 / (2 * m * k * n)))

    def multiply() -> None:
        for _ in range(calls):
            function(states, weight)

    multiply()
    return 2e-9 * m * k * n * calls / min(cpu_seconds(multiply) for _ in range(3))


def products() -> None:
    rows = []
    for name, m, k, n in PRODUCTS:
        speeds = [gigaflops(function, m, k, n) for function in (torch.nn.functional.linear, linear)]
        rows.append([name, m, k, n, *(f"{speed:.0f}" for speed in speeds), f"{speeds[1] / speeds[0]:.2f}"])
    columns = ["product", "rows", "inputs", "outputs", "torch's, GFLOP/s", "longlens's, GFLOP/s", "ratio"]
    write_table("scoring_products", columns, rows, page="docs/precision.md", by="scoring")


def attentions() -> None:
    """Compares causal attention in torch and in longlens."""
    rows = []
    for name, (batch, heads, length, width), groups in ATTENTIONS:
        query = torch.randn(batch, length, heads, width).transpose(1, 2)
        key, value = torch.randn(2, batch, groups, length, width)
        seconds = []
        for function in (torch.nn.functional.scaled_dot_product_attention, attention):
            call = partial(function, query, key, value, is_causal=True, enable_gqa=True)
            call()
            seconds.append(min(cpu_seconds(call) for _ in range(5)))
        of_torch, ours = (f"{1000 * value:.1f}" for value in seconds)
        rows.append(
            [name, f"{batch} x {heads} x {length:,} x {width}", of_torch, ours, f"{seconds[0] / seconds[1]:.2f}"]
        )
    columns = ["causal attention", "B x H x T x D", "torch's, ms", "longlens's, ms", "ratio"]
    write_table("scoring_attention", columns, rows, page="docs/precision.md", by="scoring")


def main() -> None:
    torch.set_num_threads(1)
    products()
    attentions()
    memory()
    peers(int(sys.argv[1]) if len(sys.argv) > 1 else 2)


if __name__ == "__main__":
    main()
