"""Variants of a model: the same weights with an attention window, another RoPE, fewer bits, another temperature.

A variant is a copy of a loaded model that is run as any other, by `longlens.models.forward`.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from longlens.errors import UserError
from longlens.rope.base import check_theta
from longlens.rope.methods import NTK
from longlens.rope.settings import Extension
from longlens.settings.recipe import Integer, Name, Real, Settings

if TYPE_CHECKING:
    from longlens.rope.frequencies import Rope

GROUP = 32
"""Weights that share a scale and an offset where they are quantized, as in Q4_1 of llama.cpp."""
Count = Annotated[Integer, Field(ge=1)]


class VariantSettings(Settings):
    """What is done to a base model; nothing by default.

    Attributes:
        window: Tokens that a token attends to, itself included, in each layer that attends to everything.
        sinks: First tokens that all tokens attend to beside the window (StreamingLLM, arXiv 2309.17453).
        rope: A method of RoPE extension.
        theta: Another RoPE base of the layers that attend to everything, smaller or larger.
        bits: Number of bits of each weight of linear layers, rounded in memory, see `quantize`.
        temperature: T of ``log_softmax(logits / T)``.
        training: A fine-tune, by its name in the recipe.
    """

    window: Count | None = None
    sinks: Count | None = None
    rope: Extension | None = None
    theta: Real | None = None
    bits: Annotated[Integer, Field(ge=2, le=8)] | None = None
    temperature: Annotated[Real, Field(gt=0)] | None = None
    training: Name | None = None

    @model_validator(mode="after")
    def _check(self) -> VariantSettings:
        if self.sinks is not None and self.window is None:
            raise UserError("sinks without window: all tokens attend to the first ones anyway; give `window` as well")
        if self.rope is not None and self.theta is not None:
            raise UserError("rope and theta are both given: a variant changes one of them")
        return self


def make_variant(base: Any, settings: VariantSettings) -> Any:
    """A copy of a model, changed; fine-tunes are not run here.

    Args:
        base: A transformers model; not changed.
        settings: What is done.
    """
    from longlens.rope import apply

    model = copy.deepcopy(base)
    if settings.bits is not None:
        quantize(model, settings.bits)
    if settings.rope is not None:
        apply(model, settings.rope.build())
    if settings.theta is not None:
        apply(model, AnyBase(theta=settings.theta))
    if settings.window is not None:
        limit_attention(model, settings.window, settings.sinks or 0)
    if settings.temperature is not None:
        temper(model, settings.temperature)
    return model


class AnyBase(NTK):
    """Another RoPE base, a smaller one too, as no extension has it."""

    def check(self, rope: Rope) -> None:
        """Any base above 1 will do."""
        assert self.theta is not None
        check_theta(self.theta)


def window_mask(queries: int, keys: int, window: int, sinks: int = 0) -> Tensor:
    """``(queries, keys)`` bool: which of the keys the last `queries` of them attend to.

    ``mask[i, j] = j <= p and (p - j < window or j < sinks)`` with ``p = keys - queries + i``.
    """
    position = torch.arange(keys - queries, keys)[:, None]
    key = torch.arange(keys)
    return (key <= position) & ((position - key < window) | (key < sinks))


def limit_attention(model: Any, window: int, sinks: int = 0) -> None:
    """Lets each layer that attends to everything see a window, and the first tokens; layers with a window keep theirs.

    What a token knows of tokens farther back has come through the layers below, window by window.

    Args:
        model: Changed in place: its attention gets a mask of its own. Padding must be on the right.
        window: Tokens, the token itself included.
        sinks: First tokens that stay visible.

    Raises:
        UserError: It has no such layers, or its attention takes no mask of that form.
    """
    text = model.config.get_text_config(decoder=True)
    if text._attn_implementation not in ("sdpa", "eager"):
        raise UserError(f"attention is {text._attn_implementation}; a window needs `attention=sdpa` or eager")
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    found = [module for name, module in model.named_modules() if name.endswith(".self_attn")]
    if len(found) != len(kinds) or "full_attention" not in kinds:
        raise UserError(
            f"{type(model).__name__} has {len(found)} attention layers of its own kind among {len(kinds)}: expected a "
            "model such as Llama or Gemma 3, some of whose layers attend to everything"
        )
    for module, kind in zip(found, kinds, strict=True):
        if kind == "full_attention":
            module.register_forward_pre_hook(_Window(window, sinks), with_kwargs=True)


class _Window:
    """A hook before an attention layer; a class, so that a model with it can be copied."""

    def __init__(self, window: int, sinks: int) -> None:
        self.window, self.sinks = window, sinks

    def __call__(self, module: Any, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        states = args[0] if args else given["hidden_states"]
        cache = given.get("cache", given.get("past_key_values"))
        seen = 0 if cache is None else cache.get_seq_length(module.layer_idx)
        queries = states.shape[1]
        mask = window_mask(queries, seen + queries, self.window, self.sinks).to(states.device)[None, None]
        if module.config._attn_implementation == "eager":
            mask = torch.zeros_like(mask, dtype=states.dtype).masked_fill_(~mask, torch.finfo(states.dtype).min)
        return args, {**given, "attention_mask": mask}


def quantize(model: Any, bits: int, group: int = GROUP) -> None:
    """Rounds the weights of linear layers, all but the vocabulary head, as `rounded` does.

    A simulation: they are computed with in their own dtype, as weight-only quantization does on a CPU.
    """
    head = model.get_output_embeddings()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear) and module is not head:
                module.weight.copy_(rounded(module.weight, bits, group))


def rounded(weight: Tensor, bits: int, group: int = GROUP) -> Tensor:
    """Round-to-nearest with a scale and an offset for each group of inputs (Q4_1 of llama.cpp is that with 4 bits).

    ``low + round((w - low) / step) * step`` with ``step = (high - low) / (2**bits - 1)``, low and high being the
    smallest and the largest weight of the group, so that no weight moves by more than ``step / 2``.

    Args:
        weight: ``(outputs, inputs)``.
        bits: Number of bits of a weight.
        group: Inputs that share scale and offset; a last group may be smaller.
    """
    parts = []
    for part in torch.split(weight, group, dim=1):
        low, high = part.amin(1, keepdim=True), part.amax(1, keepdim=True)
        step = ((high - low) / (2**bits - 1)).clamp_min(torch.finfo(weight.dtype).tiny)
        parts.append(low + ((part - low) / step).round() * step)
    return torch.cat(parts, dim=1)


def temper(model: Any, temperature: float) -> None:
    """Divides the logits by a temperature, in place: the last hidden states, of which they are a linear function.

    Raises:
        UserError: They are not: the vocabulary head has a bias, or its logits are capped.
    """
    from longlens.losses.passes import head_of
    from longlens.models.forward import find_decoder, running

    with running(model):
        head = head_of(model)
    if head.bias is not None or head.softcap is not None:
        raise UserError(
            f"{type(model).__name__} has a bias or a cap on its logits: its hidden states cannot carry a temperature"
        )
    find_decoder(model).norm.register_forward_hook(_Divide(temperature))


class _Divide:
    """A hook after the last norm."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def __call__(self, module: Any, args: Any, output: Tensor) -> Tensor:
        return output / self.temperature
