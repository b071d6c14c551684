"""Creates variants of a model: the same weights with an attention window, another RoPE, fewer bits, or a temperature.

A variant is a copy of a loaded model that runs like any other model, with `longlens.models.forward`.
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
"""Group size of quantization: weights that share a scale and an offset, as in Q4_1 of llama.cpp."""
Count = Annotated[Integer, Field(ge=1)]


class VariantSettings(Settings):
    """The changes to a base model; none by default.

    Attributes:
        window: Attention window in tokens, the token itself included, for each layer with full attention.
        sinks: Number of first tokens that all tokens attend to in addition to the window (StreamingLLM, arXiv
            2309.17453).
        rope: A method of RoPE extension.
        theta: RoPE base for the layers with full attention, smaller or larger than the original.
        bits: Number of bits of each weight of linear layers, rounded in memory, see `quantize`.
        temperature: T of ``log_softmax(logits / T)``.
        training: A fine-tuning run, by its name in the recipe.
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
            raise UserError("sinks without window: all tokens attend to the first tokens anyway; set `window` as well")
        if self.rope is not None and self.theta is not None:
            raise UserError("rope and theta are both set: a variant changes only one of them")
        return self


def make_variant(base: Any, settings: VariantSettings) -> Any:
    """Returns a modified copy of a model; fine-tuning is not run here.

    Args:
        base: A transformers model; not changed.
        settings: The changes.
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
    """A different RoPE base, which may also be smaller, unlike in an extension."""

    def check(self, rope: Rope) -> None:
        """Accepts any base above 1."""
        assert self.theta is not None
        check_theta(self.theta)


def window_mask(queries: int, keys: int, window: int, sinks: int = 0) -> Tensor:
    """Returns ``(queries, keys)`` bool: which of the keys the last `queries` of them attend to.

    ``mask[i, j] = j <= p and (p - j < window or j < sinks)`` with ``p = keys - queries + i``.
    """
    position = torch.arange(keys - queries, keys)[:, None]
    key = torch.arange(keys)
    return (key <= position) & ((position - key < window) | (key < sinks))


def limit_attention(model: Any, window: int, sinks: int = 0) -> None:
    """Restricts each layer with full attention to a window and the first tokens; layers with a window are unchanged.

    Information from tokens farther back reaches a token only through lower layers, window by window.

    Args:
        model: Changed in place: its attention gets its own mask. Padding must be on the right.
        window: Number of tokens, the token itself included.
        sinks: Number of first tokens that stay visible.

    Raises:
        UserError: The model has no such layers, or its attention does not support such a mask.
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
    """A hook before an attention layer; it is a class, so that a model with the hook can be copied."""

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
    """Rounds the weights of linear layers, except the vocabulary head, with `rounded`.

    This is a simulation: computation uses the weights' own dtype, like weight-only quantization on a CPU.
    """
    head = model.get_output_embeddings()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear) and module is not head:
                module.weight.copy_(rounded(module.weight, bits, group))


def rounded(weight: Tensor, bits: int, group: int = GROUP) -> Tensor:
    """Rounds to nearest with a scale and an offset for each group of inputs (Q4_1 of llama.cpp does so with 4 bits).

    ``low + round((w - low) / step) * step`` with ``step = (high - low) / (2**bits - 1)``, where low and high are the
    smallest and the largest weight of the group, so that no weight changes by more than ``step / 2``.

    Args:
        weight: ``(outputs, inputs)``.
        bits: Number of bits per weight.
        group: Number of inputs that share scale and offset; the last group may be smaller.
    """
    parts = []
    for part in torch.split(weight, group, dim=1):
        low, high = part.amin(1, keepdim=True), part.amax(1, keepdim=True)
        step = ((high - low) / (2**bits - 1)).clamp_min(torch.finfo(weight.dtype).tiny)
        parts.append(low + ((part - low) / step).round() * step)
    return torch.cat(parts, dim=1)


def temper(model: Any, temperature: float) -> None:
    """Divides the logits by a temperature, in place, by dividing the last hidden states, on which they depend linearly.

    Raises:
        UserError: The logits do not depend linearly on the states: the head has a bias, or the logits are capped.
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
    """A hook after the last normalization layer."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def __call__(self, module: Any, args: Any, output: Tensor) -> Tensor:
        return output / self.temperature
