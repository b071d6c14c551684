"""A model's config with extended context, and what transformers can build of it."""

from __future__ import annotations

import copy
import warnings
from typing import Any

from longlens.errors import LonglensWarning, UserError, shown_value
from longlens.rope.base import CLEX_TYPE, EABF_TYPE, REQUIRES, Method
from longlens.rope.frequencies import Rope

OWN_KEYS = ("original_max_position_embeddings", "factor", "first_layer", "width", "step")
"""What EABF and CLEX keep in ``rope_parameters`` beside what the ``default`` type has."""

LOCAL = {"sliding_attention", "chunked_attention"}
"""Types of layers that attend to a window."""


def text_config(config: Any) -> Any:
    """The part of a config that the decoder is built from; the config itself for most models."""
    return config.get_text_config(decoder=True)


def nested_keys(text: Any) -> list[str]:
    """Keys of ``rope_parameters``, such as layer types, where they are nested; transformers 5.17 has no such method."""
    labels = getattr(text, "_rope_type_labels", None) or getattr(text, "layer_types", None) or ()
    return [key for key in getattr(text, "rope_parameters", None) or {} if key in labels]


def layer_type(text: Any) -> str | None:
    """Key of ``rope_parameters`` under which the layers that attend to everything are; None where they are not nested.

    Local layers of Gemma 3 and its like see a few thousand tokens whatever the length, so their frequencies stay.
    """
    parameters = getattr(text, "rope_parameters", None) or {}
    nested = nested_keys(text)
    if not nested:
        return None
    if parameters.get("full_attention") is None:
        raise UserError(
            f"{text.model_type} has rotary embeddings for {', '.join(nested)}, and none for full_attention: longlens "
            "does not know which of them limits its context"
        )
    return "full_attention"


def rope_parameters(text: Any) -> dict[str, Any]:
    """``rope_parameters`` of the layers that attend to everything; empty without rotary embeddings."""
    parameters: dict[str, Any] = getattr(text, "rope_parameters", None) or {}
    key = layer_type(text)
    return parameters if key is None else parameters[key]


def set_rope_parameters(text: Any, parameters: dict[str, Any]) -> None:
    """Puts them in their place."""
    key = layer_type(text)
    text.rope_parameters = parameters if key is None else {**text.rope_parameters, key: parameters}


def read_rope(text: Any, original_length: int | None = None) -> Rope:
    """The rotary embedding that a config describes.

    Raises:
        UserError: It has none, or its length is not known.
    """
    name = text.model_type
    parameters = rope_parameters(text)
    kind = getattr(text, "position_embedding_type", "rope")
    if not parameters or getattr(text, "alibi", False) or kind not in ("rope", "rotary"):
        raise UserError(
            f"{name} has no rotary position embedding (RoPE), which is what these methods change: take a model that "
            "has one, such as Llama, Mistral, Qwen or Gemma"
        )
    length = original_length or getattr(text, "max_position_embeddings", None)
    if not length:
        raise UserError(
            f"the config of {name} does not say at which length it was trained (no max_position_embeddings): give "
            "original_length, in tokens"
        )
    theta = parameters.get("rope_theta")
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    dim = int(head * (parameters.get("partial_rotary_factor") or 1.0))
    if not theta or dim < 4 or dim % 2:
        raise UserError(
            f"{name} has the base {theta} and {dim} rotary dimensions; expected a base and an even number from 4 on"
        )
    return Rope(dim=dim, theta=float(theta), length=int(length))


def extend_config(config: Any, method: Method) -> Any:
    """A new config with extended context; the given one stays as it was.

    ``rope_parameters`` become the method's, and ``max_position_embeddings`` is multiplied by the factor where the
    method defines it so (dynamic NTK keeps the original, which is its reference length). Give it to `load_model` or
    ``from_pretrained(config=...)``: transformers reads it when a model is made, and never again. For a model that is
    loaded already there is `apply`.

    Args:
        config: Of transformers.
        method: Such as ``PositionInterpolation(factor=8)``.

    Raises:
        UserError: A model without RoPE, or without it in the layers that attend to everything; one that is extended
            already, or settings that do not fit it.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"{config.model_type} is an encoder and a decoder: longlens extends decoders alone")
    new = copy.deepcopy(config)
    text = text_config(new)
    rope = read_rope(text, method.original_length)
    current = rope_parameters(text)
    kind = current.get("rope_type", "default")
    if not method.extends(kind):
        factor = f" with factor {current['factor']:g}" if isinstance(current.get("factor"), (int, float)) else ""
        raise UserError(
            f"{text.model_type} is extended already (rope_type {shown_value(kind)}{factor}): {method.name} starts from "
            "the base model that it was made from, whose rope_type is 'default'"
        )
    method.check(rope)
    _check_layers(config, method)
    parameters = method.parameters(rope, current)
    set_rope_parameters(text, parameters)
    text.max_position_embeddings = method.max_length(rope)
    if kind == "default" and hasattr(text, "original_max_position_embeddings"):
        # Phi-3 has it outside of rope_parameters as well, and transformers prefers it there.
        text.original_max_position_embeddings = rope.length
    if hasattr(text, "head_dim") and text.head_dim is None:
        # transformers takes hidden size over heads for None, but not where it computes dynamic, yarn and longrope.
        text.head_dim = text.hidden_size // text.num_attention_heads
    if custom_rope_type(new) is not None:
        new.longlens_requires = REQUIRES
    _check_readable(new, parameters)
    return new


def _check_layers(config: Any, method: Method) -> None:
    """Holds a method against the layers of a model with several types of them."""
    text = text_config(config)
    first_layer = getattr(method, "first_layer", 0)
    if first_layer >= text.num_hidden_layers:
        raise UserError(
            f"first_layer is {first_layer}, and {text.model_type} has {text.num_hidden_layers} layers, so that no "
            "query would be scaled: give a smaller one"
        )
    types = getattr(text, "layer_types", None) or []
    if len(set(types)) < 2 or "full_attention" not in types:
        return
    from longlens.rope.model import count_rope_layers

    try:
        use = count_rope_layers(config)
    except UserError as error:
        warnings.warn(f"{error}: extended as if all had one", LonglensWarning, stacklevel=3)
        return
    if not use["full_attention"][0]:
        others = " and ".join(sorted(kind for kind, (used, _) in use.items() if used)) or "no"
        raise UserError(
            f"the layers of {text.model_type} that attend to everything have no rotary embedding (RoPE), so that none "
            f"limits their length; {method.name} would change {others} layers alone: use the model at the longer "
            "length as it is"
        )


def shared_rotary_note(config: Any) -> str | None:
    """What to say where layers with a window change with those that attend to everything; None where they do not."""
    text = text_config(config)
    types = set(getattr(text, "layer_types", None) or ())
    shared = " and ".join(sorted(types & LOCAL))
    if not shared or "full_attention" not in types or layer_type(text) is not None:
        return None
    return (
        f"{shared} layers share one rotary embedding with those that attend to everything: their frequencies change "
        "too, although they see no more tokens than before"
    )


def _check_readable(config: Any, parameters: dict[str, Any]) -> None:
    """Refuses what the model's own config class refuses, or reads as something else."""
    name, kind = text_config(config).model_type, parameters["rope_type"]
    try:
        read = rope_parameters(text_config(type(config).from_dict(config.to_dict())))
    except Exception as error:  # config classes raise what they like
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(
            f"{name} does not take rope_type {shown_value(kind)}: {reason}. Choose another method"
        ) from error
    wrong = [key for key, value in parameters.items() if read.get(key) != value]
    if wrong:
        raise UserError(
            f"{name} reads {wrong[0]} of rope_type {shown_value(kind)} as {shown_value(read.get(wrong[0]))} instead of "
            f"{shown_value(parameters[wrong[0]])}: choose another method"
        )


def custom_rope_type(config: Any) -> str | None:
    """The type of rotary embedding, where it is one of ours, which transformers does not know."""
    text = text_config(config)
    parameters = getattr(text, "rope_parameters", None) or {}
    entries = [parameters[key] for key in nested_keys(text)] or [parameters]
    types = [entry.get("rope_type") for entry in entries if entry]
    return next((kind for kind in types if kind in (EABF_TYPE, CLEX_TYPE)), None)


def prepare_config(config: Any) -> Any:
    """What transformers can build: the config itself, or for EABF and CLEX a copy with their frequencies at the start.

    `longlens.rope.model.prepare_model` turns what was built into the model that the config describes.
    """
    if custom_rope_type(config) is None:
        return config
    new = copy.deepcopy(config)
    text = text_config(new)
    parameters = {key: value for key, value in rope_parameters(text).items() if key not in OWN_KEYS}
    set_rope_parameters(text, {**parameters, "rope_type": "default"})
    return new
