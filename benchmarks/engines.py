"""Compares other engines with transformers: SmolLM2 on real text, with the same documents and windows, alternating.

    .venv-vllm/bin/python -m benchmarks.engines vllm openai     (after `make test-vllm`; about ten minutes)
    .venv-llama-cpp/bin/python -m benchmarks.engines llama-cpp  (after `make test-llama-cpp`; about ten)

Each environment writes its rows to benchmarks/results/engines.json, and the table has the rows of all. The reference
is the transformers engine in float32 on the de-quantized weights, in the same environment. Times are over those of the
reference, without loading, medians over turns: CPU time of this process and of all that it started, and by the clock.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}

import numpy as np
import psutil
from tests.engines.smollm2 import CONTEXT, STRIDE, documents, save_folder, save_gguf
from tests.engines.vllm_server import server

import longlens
from benchmarks.tables import ROOT, fill_block, machine, markdown
from longlens.scoring.scorer import Scorer

ROUNDS, TOKENS = 2, 1500
RESULTS = ROOT / "benchmarks" / "results" / "engines.json"


def cpu_seconds() -> float:
    """Returns the CPU seconds of this process and its descendants so far."""
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return float(sum(time.user + time.system for time in times))


def measure(scorer: Scorer) -> tuple[Any, np.ndarray[Any, Any]]:
    """Returns scores, and seconds of CPU time and of wall-clock time."""
    before = np.array([cpu_seconds(), time.monotonic()])
    scores = longlens.score(documents(), scorer, context=CONTEXT, stride=STRIDE, max_length=TOKENS)
    return scores, np.array([cpu_seconds(), time.monotonic()]) - before


def row(name: str, scorer: Scorer, reference: Scorer) -> list[str]:
    ratios = []
    for _ in range(ROUNDS):
        expected, theirs = measure(reference)
        found, ours = measure(scorer)
        ratios.append(ours / theirs)
        print(f"{name}: {ours.round(1)} s, transformers {theirs.round(1)} s", file=sys.stderr, flush=True)
    apart = np.concatenate(
        [
            np.abs(getattr(one, side) - getattr(other, side))
            for one, other in zip(found, expected, strict=True)
            for side in ("long_logprobs", "short_logprobs")
        ]
    )
    apart = apart[~np.isnan(apart)]
    values = [longlens.perplexity(scores, evaluator_scores=expected).longppl_soft for scores in (found, expected)]
    assert values[0] is not None
    assert values[1] is not None
    return [
        name,
        scorer.info.engine or "transformers",
        scorer.info.dtype,
        f"{apart.mean():.2g}",
        f"{apart.max():.2g}",
        f"{100 * (values[0] / values[1] - 1):+.2g} %",
        *(f"{ratio:.2f}" for ratio in np.median(ratios, axis=0)),
    ]


@contextmanager
def scorers(engine: str, folder: Path) -> Iterator[list[tuple[str, Callable[[], Scorer]]]]:
    """Names of rows, and what loads the scorer of each."""
    if engine == "vllm":
        yield [
            ("vLLM in the process", lambda: longlens.load_scorer(str(folder), engine="vllm", dtype="float32")),
            ("vLLM in the process", lambda: longlens.load_scorer(str(folder), engine="vllm", dtype="bfloat16")),
        ]
    elif engine == "openai":
        with server(folder, folder.parent / "server.log") as (address, _):
            yield [("vLLM's server", lambda: longlens.load_scorer(address, tokenizer=str(folder)))]
    else:
        files = {"smollm2": "auto"} | {
            str(save_gguf(folder.parent / f"{name}.gguf", half=name == "f16")): "auto" for name in ("f16", "f32")
        }
        cases = [*files.items(), (str(folder.parent / "f32.gguf"), "float32")]
        yield [
            (
                "llama.cpp in the process",
                lambda name=name, dtype=dtype: longlens.load_scorer(name, engine="llama-cpp", dtype=dtype),
            )
            for name, dtype in cases
        ]


def main() -> None:
    rows: dict[str, list[list[str]]] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = save_folder(Path(temporary) / "smollm2")
        reference = longlens.load_scorer(str(folder), dtype="float32")
        for engine in sys.argv[1:]:
            with scorers(engine, folder) as found:
                rows[engine] = []
                for name, load in found:
                    scorer = load()
                    rows[engine].append(row(name, scorer, reference))
                    if engine == "vllm":
                        scorer._engine.engine_core.shutdown()  # type: ignore[attr-defined]
                    del scorer
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    columns = [
        "engine",
        "version",
        "dtype",
        "mean difference, nats",
        "largest",
        "LongPPL-soft",
        "CPU time over transformers",
        "by the clock",
    ]
    table = markdown(columns, [row for engine in sorted(rows) for row in rows[engine]])
    text = f"Measured with `python -m benchmarks.engines`: {machine()}.\n\n{table}"
    RESULTS.with_suffix(".md").write_text(text)
    fill_block("docs/engines.md", "engines", text)
    print(text)


if __name__ == "__main__":
    main()
