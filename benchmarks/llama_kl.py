"""Compares the KL of quantized weights by longlens with llama.cpp's own perplexity tool, on the same tokens.

    .venv-llama-cpp/bin/python -m benchmarks.llama_kl BIN     (after `make test-llama-cpp`; about ten minutes)

BIN has ``llama-perplexity`` and ``llama-quantize``, built from the sources that llama-cpp-python's package contains:

    pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36 && tar xf llama_cpp_python-0.3.36.tar.gz
    cmake -S llama_cpp_python-0.3.36/vendor/llama.cpp -B build -DLLAMA_CURL=OFF -DLLAMA_BUILD_SERVER=OFF
    cmake --build build --target llama-perplexity llama-quantize

SmolLM2's weights are written as float32 and quantized again by ``llama-quantize``. The tool stores the
log-probabilities of the float32 file, 16 bits each, and compares those of a quantized file with them, over the second
half of each chunk. longlens scores the tokens that the tool's file names, in the same chunks: through the same kernels
(``--engine llama-cpp``), and with the weights de-quantized by transformers.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

import numpy as np
from tests.engines.smollm2 import save_gguf

from benchmarks.tables import write_table
from longlens.models import load_tokenizer
from longlens.models.load import UnloadedModel
from longlens.scoring.scorer import Request
from longlens.settings.options import Engine, Loading
from longlens.study.texts import four_kinds

TYPES = ("Q8_0", "Q5_0", "Q4_0")
CHUNKS, LENGTH = 8, 1024
EXACT = ("-t", "1", "-fa", "off", "-ctk", "f32", "-ctv", "f32", "--no-warmup")
"""Keys, values and attention in float32, as `dtype=float32` of ``--engine llama-cpp``."""


def run_tool(tool: Path, *arguments: str) -> str:
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise SystemExit(f"{tool.name} failed:\n{done.stderr[-2000:]}")
    return done.stdout + done.stderr


def read_value(said: str, title: str) -> tuple[float, float]:
    """A mean and its standard error, from a line such as ``Mean    KLD:   0.001355 ±   0.000006``."""
    found = re.search(rf"{title}:\s+(-?[\d.]+)\s+±\s+([\d.]+)", said)
    if found is None:
        raise SystemExit(f"the tool printed no {title!r}:\n{said[-2000:]}")
    return float(found[1]), float(found[2])


def read_chunks(path: Path) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Tokens ``(chunks, length)`` of a file of log-probabilities: magic, three int32, tokens, then the values."""
    with path.open("rb") as file:
        if file.read(8) != b"_logits_":
            raise SystemExit(f"{path} is not a file of llama-perplexity")
        length, _, chunks = np.frombuffer(file.read(12), np.int32)
        tokens = np.frombuffer(file.read(4 * int(length) * int(chunks)), np.int32)
    return tokens.reshape(chunks, length)


def compare(model: Path, reference: Path, chunks: np.ndarray[Any, Any], engine: str | None) -> dict[str, float]:
    """Means of KL and of top-1 agreement over the tokens that the tool compares."""
    loading = Loading(dtype="float32")
    other = UnloadedModel(str(reference), loading, Engine(engine=engine))
    side = UnloadedModel(str(model), loading, Engine(engine=engine), statistics=["divergence"], reference=other)
    first = chunks.shape[1] // 2
    requests = [Request(number, ids.tolist(), first + 1) for number, ids in enumerate(chunks)]
    columns: list[Any] = [result.columns for result in side.load().logprobs(requests)]  # type: ignore[attr-defined]
    return {
        name: float(np.concatenate([one[name] for one in columns]).mean(dtype=np.float64))
        for name in ("kl", "top1_agreement")
    }


def row(name: str, said: str, ours: Sequence[dict[str, float]]) -> list[str]:
    kl, error = read_value(said, "Mean +KLD")
    same, _ = read_value(said, "Same top p")
    kernels, weights = ours
    return [
        name,
        f"{kl:.6f} ± {error:.6f}",
        f"{kernels['kl']:.6f}",
        f"{kernels['kl'] - kl:+.6f}",
        f"{weights['kl']:.6f}",
        f"{same:.2f} %",
        *(f"{100 * one['top1_agreement']:.2f} %" for one in ours),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.llama_kl")
    parser.add_argument("bin", type=Path, help="where llama-perplexity and llama-quantize are")
    binaries = parser.parse_args().bin
    perplexity = binaries / "llama-perplexity"
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        whole = save_gguf(folder / "F32.gguf")
        per_text = CHUNKS * LENGTH // 4 + 64
        texts = four_kinds(load_tokenizer("smollm2"), count=2, tokens=per_text, kinds=("code", "reference"))
        (folder / "text").write_text("\n\n".join(text.text for text in texts), encoding="utf-8")
        base = folder / "base"
        window = ("-c", str(LENGTH), "--chunks", str(CHUNKS), *EXACT, "--kl-divergence-base", str(base))
        run_tool(perplexity, "-m", str(whole), "-f", str(folder / "text"), *window)
        chunks = read_chunks(base)
        assert chunks.shape == (CHUNKS, LENGTH)
        for name in ("F32", *TYPES):
            path = folder / f"{name}.gguf"
            if not path.exists():
                run_tool(binaries / "llama-quantize", str(whole), str(path), name, "1")
            said = run_tool(perplexity, "-m", str(path), *window, "--kl-divergence")
            rows.append(row(name, said, [compare(path, whole, chunks, engine) for engine in ("llama-cpp", None)]))
            print(rows[-1], flush=True)
    columns = [
        "weights",
        "KL by llama-perplexity, nats",
        "by longlens, same kernels",
        "difference",
        "by longlens, de-quantized",
        "same top token by llama-perplexity",
        "by longlens, same kernels",
        "by longlens, de-quantized",
    ]
    write_table("llama_kl", columns, rows, "docs/caches.md")


if __name__ == "__main__":
    main()
