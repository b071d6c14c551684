"""What the documents' claims about cost and RoPE come to in arithmetic: shapes of their models, no weights, no timing.

python -m benchmarks.arithmetic       (writes benchmarks/results/arithmetic.json; about two minutes on one core)

FLOPs are those of ``longlens plan``, from the shapes in each model's config.json on the hub.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config

from benchmarks.tables import ROOT, machine
from longlens.files import write_json
from longlens.losses.settings import LongCE
from longlens.models import load_tokenizer
from longlens.planning.devices import find_device
from longlens.planning.score import ScorePlan, plan_score
from longlens.planning.train import plan_train
from longlens.rope.frequencies import Rope, ntk_theta
from longlens.study import published
from longlens.tasks import get_task

LENGTH = 32768
CONTEXT, STRIDE = 4096, 1024
TABLE_7 = {  # row of Table 7: K, d
    "LongCE, K 4096, d 1024": (4096, 1024),
    "LongCE, K 1024, d 1024": (1024, 1024),
    "LongCE, K 4096, d 4096": (4096, 4096),
    "LongCE, K 4096, d 512": (4096, 512),
}
DISTANCES = (1, 16, 256, 4096)
"""Distances between q and k in tokens, for the decay of RoPE."""


def _shapes(kind: type[PreTrainedConfig], width: int, inner: int, layers: int, heads: int, kv: int, words: int) -> Any:
    return kind(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        vocab_size=words,
        max_position_embeddings=131072,
        tie_word_embeddings=False,
        architectures=[kind.__name__.replace("Config", "ForCausalLM")],
        **({"sliding_window": None} if kind is MistralConfig else {}),
    )


LLAMA_2_7B = _shapes(LlamaConfig, 4096, 11008, 32, 32, 32, 32000)
MISTRAL_7B = _shapes(MistralConfig, 4096, 14336, 32, 32, 8, 32000)
EVALUATORS = {
    "LongPPL, Llama-3.1-8B": _shapes(LlamaConfig, 4096, 14336, 32, 32, 8, 128256),
    "LongPPL, Qwen2-72B-Instruct": _shapes(Qwen2Config, 8192, 29568, 80, 64, 8, 152064),
}


def overheads() -> dict[str, Any]:
    """Table 7: FLOPs of LongCE's short-context pass relative to a step of CE, Llama-2-7B at 32k."""
    found = {}
    for name, (context, stride) in TABLE_7.items():
        longce = LongCE(context=context, stride=stride)
        found[name] = {
            key: plan_train(
                LLAMA_2_7B,
                length=LENGTH,
                longce=longce,
                gradient_checkpointing=checkpoints,
                device=find_device("a100"),
                advises=False,
            ).overhead
            for key, checkpoints in (("overhead", True), ("overhead_without_checkpointing", False))
        }
    return found


def _score(config: Any, length: int, context: int | None = None, stride: int = STRIDE) -> ScorePlan:
    return plan_score(config, length=length, context=context, stride=stride, device=find_device("a100"))


def times_of_ppl() -> dict[str, Any]:
    """Table 12: FLOPs of LongPPL of Mistral-7B, including the evaluator, relative to its PPL, by tokens."""
    found: dict[str, dict[str, float]] = {name: {} for name in EVALUATORS}
    for length in (LENGTH // 2, LENGTH):
        ppl = _score(MISTRAL_7B, length).flops
        for name, config in EVALUATORS.items():
            found[name][str(length)] = (ppl + _score(config, length, CONTEXT).flops) / ppl
    return found


def windows() -> dict[str, float]:
    """Appendix A.1: FLOPs of short contexts with d = 1 relative to d = 1,024, and of these to the long pass."""
    plans = {stride: _score(LLAMA_2_7B, LENGTH, CONTEXT, stride) for stride in (1, STRIDE)}
    short, long = ({stride: getattr(plan, part).total for stride, plan in plans.items()} for part in ("short", "long"))
    return {"stride": float(STRIDE), "saved": short[1] / short[STRIDE], "over_long": short[STRIDE] / long[STRIDE]}


def growth() -> dict[str, float]:
    """Slide 4: FLOPs of attention, and in total, at twice the length."""
    plans = [_score(LLAMA_2_7B, length) for length in (LENGTH, 2 * LENGTH)]
    attention = [plan.long.attention for plan in plans]
    return {"attention": attention[1] / attention[0], "all": plans[1].flops / plans[0].flops}


def decay(theta: float = 10_000.0, dim: int = 128) -> dict[str, Any]:
    """Slide 12: the mean over pairs of cos(distance x angle), which q = k would have, and where it rises."""
    angles = theta ** (-np.arange(0, dim, 2) / dim)
    curve = np.cos(np.arange(max(DISTANCES) + 1)[:, None] * angles).mean(axis=1)
    return {
        "mean_cosine": {str(distance): float(curve[distance]) for distance in DISTANCES},
        "share_of_steps_that_rise": float(np.mean(np.diff(curve) > 0)),
    }


def bases() -> dict[str, float]:
    """Slide 46: NTK's RoPE bases for Llama-3-8B, 8K to 64K, and from the base that was kept there to 512K."""
    kept = float(published.table("lecture-18").rows[-1].name)
    return {
        key: ntk_theta(Rope(theta=theta, dim=128, length=length), factor=8.0)
        for key, theta, length in (("at_64k", 500_000.0, 8192), ("at_512k", kept, 65536))
    }


def longeval_tokens() -> dict[str, int]:
    """Section 4: tokens of a LongEval prompt of 1,350 lines."""
    found = {}
    for name in ("smollm2", "gemma3-270m"):
        tokenizer = load_tokenizer(name)
        (sample,) = get_task("longeval_lines_1350").build(samples=1, seed=0, tokenizer=tokenizer)
        found[name] = len(tokenizer.encode(sample.prompt))
    return found


def main() -> None:
    """Writes the results."""
    started = time.perf_counter()
    parts = {
        part.__name__: part() for part in (overheads, times_of_ppl, windows, growth, decay, bases, longeval_tokens)
    }
    result = {"schema_version": 1, "machine": machine(), "seconds": round(time.perf_counter() - started, 1), **parts}
    write_json(ROOT / "benchmarks" / "results" / "arithmetic.json", result)
    print(parts)


if __name__ == "__main__":
    main()
