"""Measures how the cost of scoring grows with document length, number of windows and vocabulary size.

    python -m benchmarks.growth        (ten minutes of one core)

A small model with random weights (2 layers, H = 128), so that 131,072 tokens are scored on a CPU; its time and memory
show how the code grows, not what a real model costs. Each row is a new process: seconds of the CPU for scoring alone,
and the peak of its memory above that of the loaded model.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.tables import ROOT, write_table
from longlens.report.charts import Axis, Chart, Series
from longlens.report.figures import write_figures
from longlens.windows import plan_windows

VOCABULARY = 49152
LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
WINDOWS = tuple((context, stride) for context in (256, 1024) for stride in (64, 128, 256, 512, 1024))
VOCABULARIES = (49152, 98304, 196608, 393216)
PROGRAM = """
import json, pathlib, sys, sysconfig, time
import torch, longlens
from transformers import LlamaConfig, LlamaForCausalLM
from benchmarks.memory import status_bytes
from longlens.models import load_tokenizer
from longlens.scoring.transformers import TransformersScorer
torch.set_num_threads(1)
length, context, stride, vocabulary = map(int, sys.argv[1:])
torch.manual_seed(0)
config = LlamaConfig(
    hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    vocab_size=vocabulary, max_position_embeddings=2 * length, tie_word_embeddings=True,
)
scorer = TransformersScorer(LlamaForCausalLM(config), load_tokenizer("smollm2"), weights_sha256="0" * 64)
folder = pathlib.Path(sysconfig.get_paths()["stdlib"])
text = "".join(path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("*.py")))
document = longlens.Document(id="a", text=text[: 6 * length])
def run(length):
    return longlens.score([document], scorer, context=context, stride=stride, max_length=length)[0]
run(context + 16)
before, start = status_bytes("VmHWM"), time.process_time()
row = run(length)
seconds = time.process_time() - start
assert len(row.token_ids) == length, len(row.token_ids)
print(json.dumps([seconds, (status_bytes("VmHWM") - before) / 1e6]))
"""


def measure(length: int, context: int, stride: int, vocabulary: int = VOCABULARY) -> dict[str, Any]:
    """One document scored in a new process."""
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, *map(str, (length, context, stride, vocabulary))]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    windows = plan_windows(length, context, stride)
    fed = length + sum(window.stop - window.start for window in windows)
    found = {"n": length, "K": context, "d": stride, "V": vocabulary, "fed": fed, "s": seconds, "MB": peak}
    print(found, file=sys.stderr, flush=True)
    return found


def cells(found: dict[str, Any]) -> list[str]:
    whole = [f"{found[name]:,}" for name in ("n", "K", "d", "V", "fed")]
    return [*whole, f"{found['s']:.1f}", f"{1e6 * found['s'] / found['fed']:.0f}", f"{found['MB']:,.0f}"]


def draw(lengths: Sequence[dict[str, Any]], vocabularies: Sequence[dict[str, Any]]) -> None:
    """A chart of each: a flat line is linear growth with the length."""
    a_token = Series(name="K = 512, d = 512", x=LENGTHS, y=[1000 * found["s"] / found["n"] for found in lengths])
    whole = Series(name="K = 512, d = 512", x=VOCABULARIES, y=[found["s"] for found in vocabularies])
    drawn = [
        Chart(
            name="growth-length",
            title="Scoring a token of longer documents",
            caption="",
            x=Axis(label="n, tokens of the document", log=True),
            y=Axis(label="CPU milliseconds a token"),
            series=[a_token],
        ),
        Chart(
            name="growth-vocabulary",
            title="Scoring with larger vocabularies, 4,096 tokens",
            caption="",
            x=Axis(label="V, tokens of the vocabulary"),
            y=Axis(label="CPU seconds"),
            series=[whole],
        ),
    ]
    write_figures(drawn, ROOT / "docs" / "figures", formats=("svg",))


def main() -> None:
    lengths = [measure(length, 512, 512) for length in LENGTHS]
    windows = [measure(8192, context, stride) for context, stride in WINDOWS]
    vocabularies = [measure(4096, 512, 512, vocabulary) for vocabulary in VOCABULARIES]
    rows = [cells(found) for found in (*lengths, *windows, *vocabularies)]
    columns = ["n", "K", "d", "V", "tokens run", "CPU s", "us a token run", "peak MB above the model"]
    write_table("growth", columns, rows, page="docs/scale.md", left=0)
    draw(lengths, vocabularies)


if __name__ == "__main__":
    main()
