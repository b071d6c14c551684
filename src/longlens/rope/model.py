"""Position extrapolation of a config, and of a model in memory, whose modules are made to agree with its config."""

from __future__ import annotations

import copy
import inspect
import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longlens.errors import LonglensWarning, UserError, library_errors, shown_value
from longlens.models.forward import find_decoder
from longlens.rope.base import CLEX_TYPE, EABF_TYPE, REQUIRES, Method
from longlens.rope.clex import ClexRotary
from longlens.rope.config import (
    auto_class,
    custom_rope_type,
    layer_type,
    prepare_config,
    read_rope,
    rope_parameters,
    set_rope_parameters,
    text_config,
)
from longlens.rope.eabf import PREFIX, scale_queries
from longlens.rope.frequencies import Rope


def _refuse(*_: Any, **__: Any) -> Any:
    raise UserError(REQUIRES)


# Otherwise, a plain ``from_pretrained`` of such a folder raises a KeyError with only the type.
for _kind in (EABF_TYPE, CLEX_TYPE):
    ROPE_INIT_FUNCTIONS.setdefault(_kind, _refuse)

RTOL = 1e-5
"""Relative tolerance between frequencies in fp32 that were computed in two ways."""


def rotary_modules(model: Any) -> dict[str, Any]:
    """Rotary embeddings of a model's decoder by their names in the model."""
    decoder = set(find_decoder(model).modules())
    return {
        name: module
        for name, module in model.named_modules()
        if module in decoder and any(key.endswith("original_inv_freq") for key in module._buffers)
    }


def extend_config(config: Any, method: Method) -> Any:
    """Returns a new config with extended context; the original is not modified.

    ``rope_parameters`` become the method's, and ``max_position_embeddings`` is multiplied by the factor if the method
    defines it so (dynamic NTK keeps the original, which is its reference length). Pass it to `load_model` or
    ``from_pretrained(config=...)``: transformers reads it only when a model is created. For a model that is already
    loaded, use `apply`.

    Args:
        config: A transformers configuration.
        method: The method, such as ``PositionInterpolation(factor=8)``.

    Raises:
        UserError: The model has no RoPE, or none in its full-attention layers; it is already extended; or the settings
            do not fit it.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"{config.model_type} is an encoder and a decoder: longlens supports only decoders")
    new = copy.deepcopy(config)
    text = text_config(new)
    rope = read_rope(text, method.original_length)
    current = rope_parameters(text)
    kind = current.get("rope_type", "default")
    if not method.extends(kind) and kind == "proportional":
        raise UserError(
            f"{text.model_type} has a rotary embedding of rope_type 'proportional', for which {method.name} is not "
            "defined: use a model whose rope_type is 'default'"
        )
    if not method.extends(kind):
        factor = f" with factor {current['factor']:g}" if isinstance(current.get("factor"), (int, float)) else ""
        raise UserError(
            f"{text.model_type} is already extended (rope_type {shown_value(kind)}{factor}): {method.name} must be "
            "applied to its base model, whose rope_type is 'default'"
        )
    method.check(rope)
    _check_layers(config, method)
    parameters = method.parameters(rope, current)
    set_rope_parameters(text, parameters)
    text.max_position_embeddings = method.max_length(rope)
    if kind == "default" and hasattr(text, "original_max_position_embeddings"):
        # Phi-3 has it outside of rope_parameters as well, and transformers prefers it there.
        text.original_max_position_embeddings = rope.length
    if layer_type(text) is None and hasattr(text, "head_dim") and text.head_dim is None:
        # For None, transformers uses hidden size divided by heads, but not in dynamic, yarn and longrope.
        text.head_dim = text.hidden_size // text.num_attention_heads
    if custom_rope_type(new) is not None:
        new.longlens_requires = REQUIRES
    _check_readable(new, parameters)
    return new


def _check_layers(config: Any, method: Method) -> None:
    """Checks a method against the layers of a model with several layer types."""
    text = text_config(config)
    first_layer = getattr(method, "first_layer", 0)
    if first_layer >= text.num_hidden_layers:
        raise UserError(
            f"`first_layer` is {first_layer}, and {text.model_type} has {text.num_hidden_layers} layers, so no query "
            "would be scaled: use a smaller one"
        )
    types = getattr(text, "layer_types", None) or []
    if len(set(types)) < 2 or "full_attention" not in types:
        return
    try:
        use = count_rope_layers(config)
    except UserError as error:
        warnings.warn(f"{error}: extended as if all had one", LonglensWarning, stacklevel=3)
        return
    if not use["full_attention"][0]:
        others = " and ".join(sorted(kind for kind, (used, _) in use.items() if used)) or "no"
        raise UserError(
            f"the layers of {text.model_type} with full attention have no rotary embedding (RoPE), so nothing limits "
            f"their length; {method.name} would change {others} layers only: use the model unchanged at the longer "
            "length"
        )


def _check_readable(config: Any, parameters: dict[str, Any]) -> None:
    """Rejects what the model's own config class rejects, or reads as something else."""
    name, kind = text_config(config).model_type, parameters["rope_type"]
    try:
        read = rope_parameters(text_config(type(config).from_dict(config.to_dict())))
    except Exception as error:  # config classes may raise anything
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(
            f"{name} does not support rope_type {shown_value(kind)}: {reason}. Choose another method"
        ) from error
    wrong = [key for key, value in parameters.items() if read.get(key) != value]
    if wrong:
        raise UserError(
            f"{name} reads {wrong[0]} of rope_type {shown_value(kind)} as {shown_value(read.get(wrong[0]))} instead of "
            f"{shown_value(parameters[wrong[0]])}: choose another method"
        )


def apply(model: Any, method: Method) -> Any:
    """Extends the context of a loaded model in place, and returns it.

    Its config changes as in `extend_config`, and its rotary embeddings are rebuilt: transformers computes frequencies
    when a model is created, so editing only ``model.config`` has no effect.

    Raises:
        UserError: As for `extend_config`; or the model's code does not compute what the method defines.
    """
    extended = extend_config(model.config, method)
    new, text, modules = text_config(extended), text_config(model.config), rotary_modules(model)
    with library_errors(f"cannot extend {type(model).__name__} by {method.name}", "check its parameters"):
        fresh = _extended_rotary(model, new, method, read_rope(text, method.original_length))
    for name in ("rope_parameters", "max_position_embeddings", "original_max_position_embeddings", "head_dim"):
        if getattr(new, name, None) != getattr(text, name, None):
            setattr(text, name, getattr(new, name))
    if custom_rope_type(extended) is not None:
        model.config.longlens_requires = REQUIRES
    for name, module in fresh.items():
        module.config = text
        model.set_submodule(name, module.to(_device_of(modules[name])))
    return prepare_model(model, model.config)


def prepare_model(model: Any, config: Any, weights: Mapping[str, Tensor] | None = None) -> Any:
    """Turns what was built from ``prepare_config(config)`` into the model that ``config`` describes; returns it.

    The model has that config afterwards, so that the saved config matches the model.

    Args:
        model: A transformers model.
        config: Config with any type of rotary embedding; most need no preparation.
        weights: Weights of CLEX, by their names in the model; by default those of an untrained CLEX.
    """
    kind = custom_rope_type(config)
    if kind is None:
        return model
    text = text_config(model.config)
    text.rope_parameters = text_config(config).rope_parameters
    if kind == EABF_TYPE:
        scale_queries(model)
        return model
    modules = rotary_modules(model)
    if len(modules) != 1:
        raise UserError(f"{type(model).__name__} has {len(modules)} rotary embeddings; CLEX replaces one")
    for name, module in modules.items():
        clex = ClexRotary(module, rope_parameters(text))
        if weights is not None:
            clex.load_state_dict({key: weights[f"{name}.{key}"] for key in ("up", "down")})
        model.set_submodule(name, clex.train(model.training))
    return model


def clex_names(model: Any) -> list[str]:
    """Names of CLEX's weights in a model that was built but not prepared yet."""
    return [f"{name}.{key}" for name in rotary_modules(model) for key in ("up", "down")]


def check_model(model: Any) -> None:
    """Rejects a model whose rotary embeddings are not what its config says.

    Raises:
        UserError: The config was edited after the model was made, which transformers ignores.
    """
    text = text_config(model.config)
    kind = custom_rope_type(text)
    modules = rotary_modules(model)
    scaled = str(text._attn_implementation).startswith(PREFIX)
    right = scaled == (kind == EABF_TYPE)
    for module in modules.values():
        right &= isinstance(module, ClexRotary) == (kind == CLEX_TYPE)
        # Custom model code may create its embeddings in its own way.
        made_of_config = set(inspect.signature(type(module)).parameters) <= {"config", "device"}
        if type(module).__module__.startswith("transformers.") and made_of_config:
            right &= _same(module, _rebuild(module, module.config))
    if not right:
        raise UserError(
            f"the rotary embedding of {type(model).__name__} does not match its config: the config was edited after "
            "the model was made, which transformers ignores. Use longlens.rope.apply(model, method), or load the model "
            "with longlens.rope.load_model(name, config=extend_config(config, method))"
        )


def build_rotary(config: Any, method: Method) -> tuple[Any, dict[str, Any]]:
    """The extended config of a model that is not loaded, and its rotary embeddings by their names in the model.

    Only the shape of the model is built, without memory for its weights; the embeddings are those of
    ``prepare_config(config)``.

    Raises:
        UserError: As for `extend_config`; or the model's code cannot be built from the config, or does not compute what
            the method defines.
    """
    with library_errors(f"cannot extend a model of type {shown_value(config.model_type)}", "check its config.json"):
        new = extend_config(config, method)
        with torch.device("meta"):
            shape = auto_class(new.model_type).from_config(prepare_config(new))
        rope = read_rope(text_config(config), method.original_length)
        return new, _extended_rotary(shape, text_config(new), method, rope)


def count_rope_layers(config: Any) -> dict[str, tuple[int, int]]:
    """Number of layers of each type that apply the rotary embedding, and of all layers: ``{"full_attention": (0, 2)}``.

    It depends on the model's code, so it is determined by a forward pass on the meta device, without memory or values:
    angles require grad, hidden states are detached before each layer, and a layer whose output requires grad used the
    angles.

    Args:
        config: A config with ``layer_types``; its rotary embedding is not extended.

    Raises:
        UserError: The model's code cannot be run in this way.
    """
    text = text_config(config)
    types, used = list(text.layer_types), list[bool]()

    def traced(module: Any, args: Any, output: Any) -> Any:
        parts = output if isinstance(output, tuple) else (output,)
        fresh = tuple(torch.zeros_like(part).requires_grad_() for part in parts)
        return fresh if isinstance(output, tuple) else fresh[0]

    def cut(module: Any, args: Any, options: Any) -> Any:
        if args:
            return (args[0].detach(), *args[1:]), options
        return args, {**options, "hidden_states": options["hidden_states"].detach()}

    def note(module: Any, args: Any, output: Any) -> None:
        used.append((output[0] if isinstance(output, tuple) else output).requires_grad)

    with library_errors(
        f"cannot determine which layers of {text.model_type} have a rotary embedding", "use another model"
    ):
        with torch.device("meta"):
            # Grouped products of experts on this device require bfloat16.
            shape = auto_class(config.model_type).from_config(
                copy.deepcopy(prepare_config(config)), dtype=torch.bfloat16
            )
            shape = shape.eval().requires_grad_(False)
            for rotary in rotary_modules(shape).values():
                rotary.register_forward_hook(traced)
            for name, layer in find_decoder(shape).named_modules():
                if re.search(r"(^|\.)layers\.\d+$", name):
                    layer.register_forward_pre_hook(cut, with_kwargs=True)
                    layer.register_forward_hook(note)
            zeros = torch.zeros(1, 8, dtype=torch.long)
            masks = dict.fromkeys(types)  # real masks would be inspected, and have no values here
            shape(input_ids=zeros, position_ids=zeros, attention_mask=masks, use_cache=False)
        counts = {
            kind: (sum(u for t, u in zip(types, used, strict=True) if t == kind), types.count(kind))
            for kind in set(types)
        }
    return counts


def _rebuild(module: Any, text: Any) -> Any:
    """A rotary embedding of the same class, built from a config."""
    return type(module)(prepare_config(text))


def _device_of(module: nn.Module) -> torch.device:
    return next(buffer.device for buffer in module.buffers())


def _extended_rotary(model: Any, text: Any, method: Method, rope: Rope) -> dict[str, Any]:
    """A model's rotary embeddings rebuilt from an extended config and compared with the method's definition."""
    fresh = {name: _rebuild(module, text) for name, module in rotary_modules(model).items()}
    name, key = type(model).__name__, layer_type(text)
    prefix = "" if key is None else f"{key}_"
    found = [module for module in fresh.values() if hasattr(module, f"{prefix}original_inv_freq")]
    if not found:
        raise UserError(f"{name} has no rotary embedding of transformers' kind, which {method.name} modifies")
    wanted = method.frequencies(rope)
    for module in found:
        inv_freq = getattr(module, f"{prefix}original_inv_freq").double().numpy()
        factor = getattr(module, f"{prefix}attention_scaling")
        same = inv_freq.shape == wanted.inv_freq.shape and np.allclose(inv_freq, wanted.inv_freq, rtol=RTOL, atol=0)
        if not same or not np.isclose(factor, wanted.attention_factor, rtol=RTOL):
            raise UserError(
                f"{name} does not compute its rotary embedding as {method.name} defines it: choose another method"
            )
    return fresh


def _same(module: Any, fresh: Any) -> bool:
    """Whether two rotary embeddings of one class start with the same frequencies, factors and lengths."""
    names = [key for key in module._buffers if key.endswith("original_inv_freq")]
    others = [key for key in fresh._buffers if key.endswith("original_inv_freq")]
    if names != others or getattr(module, "rope_type", None) != getattr(fresh, "rope_type", None):
        return False
    for name in names:
        ours, theirs = getattr(module, name), getattr(fresh, name)
        if ours.is_meta or ours.shape != theirs.shape:
            return bool(ours.is_meta)
        # A model that was cast to another dtype has rounded frequencies.
        rtol = max(RTOL, 2 * torch.finfo(ours.dtype).eps)
        if not torch.allclose(ours.cpu().float(), theirs.float(), rtol=rtol, atol=0):
            return False
    numbers = [key for key in vars(fresh) if key.endswith("attention_scaling")]
    if "dynamic" in str(fresh.rope_type):
        numbers.append("original_max_seq_len")
    return all(getattr(module, key, None) == getattr(fresh, key, None) for key in numbers)
