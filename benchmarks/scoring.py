"""Scoring beside the published package `longppl` 0.3.0, and over batch sizes: real models, float32, one thread.

    python -m benchmarks.scoring [rounds]       (about a quarter of an hour a round on one core; `make test-real`'s
                                                 environment, which has the package)

The package and longlens with its defaults take turns within a round, and so do the batch sizes. Time is the process's
CPU time on one thread, which other work on the machine moves less than the clock on the wall; ratios are medians over
rounds, of rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import longlens
from benchmarks.tables import write_table
from longlens.compat import compute_longppl
from longlens.models import load_tokenizer
from longlens.scoring.transformers import TransformersScorer

CASES = (("smollm2", 2048, 512, 128), ("gemma3-270m", 1024, 256, 64))
BATCHES = (None, 512, 2048, 4096, 8192)


def cpu_seconds(call: Callable[..., Any], *arguments: Any, **options: Any) -> float:
    gc.collect()
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        call(*arguments, **options)
    return time.process_time() - start


def main() -> None:
    torch.set_num_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    package = import_module("longppl.longppl")
    module = Path(argparse.__file__).read_text(encoding="utf-8")
    peers, batches = [], []
    for name, length, context, stride in CASES:
        scorer = longlens.load_scorer(name, dtype="float32")
        model, tokenizer = scorer.model, load_tokenizer(name)
        text = module[: int(scorer.encode(longlens.Document(id="a", text=module)).char_spans[length - 2, 1])]
        document = [longlens.Document(id="a", text=text)]
        found: dict[Any, list[float]] = {}
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                arguments = (text, model, model, tokenizer, tokenizer)
                settings = {"trunc_len": context, "sliding_window": stride}
                for side, call in (("package", package.compute_longppl), ("longlens", compute_longppl)):
                    seconds = cpu_seconds(call, *arguments, Path(folder, side), **settings)
                    found.setdefault(side, []).append(seconds)
                    print(f"{name} {side}: {seconds:.1f} s", file=sys.stderr, flush=True)
            for tokens in BATCHES:
                sized = TransformersScorer(model, tokenizer, weights_sha256="not computed", batch_tokens=tokens)
                seconds = cpu_seconds(longlens.score, document, sized, context=context, stride=stride)
                found.setdefault(tokens, []).append(seconds)
                print(f"{name} batches of {tokens}: {seconds:.1f} s", file=sys.stderr, flush=True)
        case = [name, length, context, stride]
        ratios = [theirs / ours for theirs, ours in zip(found["package"], found["longlens"], strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        peers.append([*case, f"{statistics.median(ratios):.2f}", spread, f"{statistics.median(found['longlens']):.1f}"])
        for tokens in BATCHES:
            over = [mine / default for mine, default in zip(found[tokens], found[None], strict=True)]
            batches.append([*case, tokens or "default", f"{statistics.median(over):.2f}"])
        del scorer, model
    case_columns = ["model", "tokens", "K", "d"]
    columns = [*case_columns, "package / longlens, CPU time", "over rounds", "longlens, s"]
    write_table("scoring", columns, peers, page="docs/precision.md")
    write_table(
        "scoring_batches",
        [*case_columns, "tokens a batch", "time over the default"],
        batches,
        page="docs/precision.md",
        by="scoring",
    )


if __name__ == "__main__":
    main()
