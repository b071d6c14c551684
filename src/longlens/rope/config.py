"""The rotary embedding in a model's config, and configs that transformers can build."""

from __future__ import annotations

import copy
from typing import Any

from longlens.errors import UserError
from longlens.rope.base import CLEX_TYPE, EABF_TYPE
from longlens.rope.frequencies import Rope

OWN_KEYS = ("original_max_position_embeddings", "factor", "first_layer", "width", "step")
"""Keys of EABF and CLEX in ``rope_parameters``, in addition to those of the ``default`` type."""

WHOLE = {"emu3"}
"""Multimodal models whose text part transformers does not find in the weights of the full model."""

LOCAL = {"sliding_attention", "chunked_attention"}
"""Types of layers with windowed attention."""


def text_config(config: Any) -> Any:
    """The part of a config from which the decoder is built; the config itself for most models."""
    return config.get_text_config(decoder=True)


def nested_keys(text: Any) -> list[str]:
    """Keys of ``rope_parameters``, such as layer types, if they are nested; transformers 5.17 has no such method."""
    labels = getattr(text, "_rope_type_labels", None) or getattr(text, "layer_types", None) or ()
    return [key for key in getattr(text, "rope_parameters", None) or {} if key in labels]


def layer_type(text: Any) -> str | None:
    """Key of ``rope_parameters`` for full-attention layers; None if they are not nested.

    Local layers of Gemma 3 and similar models see a few thousand tokens at any length, so their frequencies stay the
    same.
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
    """``rope_parameters`` of the full-attention layers; empty without rotary embeddings."""
    parameters: dict[str, Any] = getattr(text, "rope_parameters", None) or {}
    key = layer_type(text)
    return parameters if key is None else parameters[key]


def set_rope_parameters(text: Any, parameters: dict[str, Any]) -> None:
    """Stores ``rope_parameters`` in the config."""
    key = layer_type(text)
    text.rope_parameters = parameters if key is None else {**text.rope_parameters, key: parameters}


def head_dim(text: Any) -> int | None:
    """``head_dim`` of the full-attention layers: in Gemma 4 it differs from that of the local ones."""
    key, layers = layer_type(text), getattr(text, "per_layer_config", None)
    found: int | None = getattr(text if key is None or layers is None else layers[key], "head_dim", None)
    return found


def read_rope(text: Any, original_length: int | None = None) -> Rope:
    """The rotary embedding that a config describes.

    Raises:
        UserError: It has no rotary embedding, or its length is not known.
    """
    name = text.model_type
    parameters = rope_parameters(text)
    kind = getattr(text, "position_embedding_type", "rope")
    is_off = getattr(text, "alibi", False) or getattr(text, "use_mem_rope", True) is False  # the latter of Zamba 2
    if not parameters or is_off or kind not in ("rope", "rotary"):
        raise UserError(
            f"{name} has no rotary position embedding (RoPE), which these methods modify: use a model that has "
            "one, such as Llama, Mistral, Qwen or Gemma"
        )
    length = original_length or getattr(text, "max_position_embeddings", None)
    if not length:
        raise UserError(
            f"the config of {name} does not contain the training length (no max_position_embeddings): pass "
            "`original_length`, in tokens"
        )
    theta = parameters.get("rope_theta")
    head = head_dim(text) or text.hidden_size // text.num_attention_heads
    dim = int(head * (parameters.get("partial_rotary_factor") or 1.0))
    if not theta or dim < 4 or dim % 2:
        raise UserError(
            f"{name} has the base {theta} and {dim} rotary dimensions; expected a base and an even number of at least 4"
        )
    return Rope(dim=dim, theta=float(theta), length=int(length))


def shared_rotary_note(config: Any) -> str | None:
    """Note for configs whose windowed layers share the rotary embedding of full-attention layers; None otherwise."""
    text = text_config(config)
    types = set(getattr(text, "layer_types", None) or ())
    shared = " and ".join(sorted(types & LOCAL))
    if not shared or "full_attention" not in types or layer_type(text) is not None:
        return None
    return (
        f"{shared} layers share one rotary embedding with full-attention layers: their frequencies change "
        "too, although they see no more tokens than before"
    )


def custom_rope_type(config: Any) -> str | None:
    """The type of rotary embedding, if it is one of longlens's own, which transformers does not know."""
    text = text_config(config)
    parameters = getattr(text, "rope_parameters", None) or {}
    entries = [parameters[key] for key in nested_keys(text)] or [parameters]
    types = [entry.get("rope_type") for entry in entries if entry]
    return next((kind for kind in types if kind in (EABF_TYPE, CLEX_TYPE)), None)


def prepare_config(config: Any) -> Any:
    """A config that transformers can build: the config itself, or for EABF and CLEX a copy with their initial
    frequencies.

    `longlens.rope.model.prepare_model` turns what was built into the model that the config describes.
    """
    if custom_rope_type(config) is None:
        return config
    new = copy.deepcopy(config)
    text = text_config(new)
    parameters = {key: value for key, value in rope_parameters(text).items() if key not in OWN_KEYS}
    set_rope_parameters(text, {**parameters, "rope_type": "default"})
    return new


def check_decoder(config: Any) -> None:
    """Rejects configs from which no decoder can be built, before anything is loaded.

    Args:
        config: Configuration of a model.

    Raises:
        UserError: The config is an encoder-decoder, for which transformers often builds a causal language model from
            only the decoder; or it has no layers, no vocabulary, or a width of 0.
    """
    refuse_encoder_decoder(config)
    text = text_config(config)
    for name in ("num_hidden_layers", "hidden_size", "vocab_size"):
        value = getattr(text, name, None)
        if isinstance(value, int) and value < 1:
            raise UserError(f"`{name}` of {config.model_type} is {value}; expected at least 1: check its config.json")


def refuse_encoder_decoder(config: Any) -> None:
    """Raises a `UserError` for an encoder-decoder configuration or its class."""
    if getattr(config, "is_encoder_decoder", False) is True:
        raise UserError(
            f"{config.model_type} is an encoder and a decoder: longlens supports only decoders, such as Llama or Qwen"
        )


def auto_class(model_type: object) -> Any:
    """``AutoModelForCausalLM``; for a type that has none, as LLaVA and Qwen2-VL, ``AutoModelForMultimodalLM``.

    For a multimodal model, the text part is used, with text input only. An encoder-decoder has no such part.

    Raises:
        UserError: The multimodal model is an encoder-decoder.
    """
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForMultimodalLM
    from transformers.models.auto import modeling_auto as auto

    multimodal, causal = auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if model_type not in multimodal or (model_type in causal and model_type not in WHOLE):
        return AutoModelForCausalLM
    refuse_encoder_decoder(CONFIG_MAPPING[model_type])
    return AutoModelForMultimodalLM
