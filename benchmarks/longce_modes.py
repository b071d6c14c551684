"""Defines the forms of LongCE that benchmarks compare: their settings, and their minimum arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longlens.losses import ChunkedLongCE, LongCE, SampledLongCE
from longlens.models import load_scorer
from longlens.models.forward import find_decoder

LENGTH, CONTEXT, STRIDE = 2048, 256, 64

EXACT = LongCE(context=CONTEXT, stride=STRIDE)
# What runs a short pass at each step. K stays, so that the short context never is shorter than in the exact form.
ONLINE: dict[str, LongCE] = {
    "exact, K=256 d=64": EXACT,
    "exact, bf16 short pass": LongCE(context=CONTEXT, stride=STRIDE, short_dtype="bfloat16"),
    "d=K=256": LongCE(context=CONTEXT, stride=CONTEXT),
    "sampled windows, d=K=256, share 0.25": SampledLongCE(context=CONTEXT, stride=CONTEXT, share=0.25),
    "chunks, K=256 d=256": ChunkedLongCE(context=CONTEXT, stride=CONTEXT),
    "chunks, K=256 d=768": ChunkedLongCE(context=CONTEXT, stride=3 * CONTEXT),
    "chunks, K=256 d=768, bf16 short pass": ChunkedLongCE(context=CONTEXT, stride=3 * CONTEXT, short_dtype="bfloat16"),
}


def load() -> Any:
    """SmolLM2 in float32."""
    return load_scorer("smollm2", dtype="float32").model


def texts(number: int) -> Tensor:
    """Rows of LENGTH tokens, each from the start of a module of the standard library."""
    from longlens.models import load_tokenizer

    modules = ("argparse", "ast", "decimal", "difflib", "doctest", "inspect", "mailbox", "optparse", "pdb", "pydoc")
    tokenizer = load_tokenizer("smollm2")
    rows = []
    for name in modules[:number]:
        module = __import__("_pydecimal" if name == "decimal" else name)
        with open(module.__file__ or "", encoding="utf-8") as file:
            rows.append(tokenizer(file.read())["input_ids"][:LENGTH])
    return torch.tensor(rows)


def floor(model: Any, ids: Tensor, longce: LongCE, step: int = 0) -> float:
    """Arithmetic of the short pass over that of a step of CE: multiply-adds that no implementation can leave out.

    A token in a sequence of S costs ``P + H S layers`` (P weights of the layers, and causal attention's two products),
    its logits ``V H``; a step of CE is three times that. The short pass has logits for scored tokens alone.
    """
    config = model.config
    head = config.vocab_size * config.hidden_size
    layers = sum(p.numel() for n, p in find_decoder(model).named_parameters() if "embed" not in n)
    width = config.num_attention_heads * config.head_dim * config.num_hidden_layers

    def body(size: int) -> float:
        return size * (layers + width * size)

    windows = longce.windows(ids[0], step)
    short = sum(body(w.stop - w.start) + (w.stop - w.first) * head for w in windows)
    return short / (3 * (body(ids.shape[1]) + ids.shape[1] * head))
