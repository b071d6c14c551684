"""EABF's queries: scaled by the log of their position, inside an attention function that is registered by its name."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor

from longlens.errors import UserError, shown_value
from longlens.models.forward import find_decoder
from longlens.rope.base import EABF_TYPE
from longlens.rope.config import nested_keys

PREFIX = "longlens_eabf_"
"""Prefix of the name of the wrapped attention implementation."""
BASES = ("sdpa", "eager")


def query_scale(position_ids: Tensor, length: int) -> Tensor:
    """`longlens.rope.frequencies.eabf_query_scale` in torch: ``max(1, ln(m + 1) / ln L0)``, float32."""
    return ((position_ids.float() + 1).log() / math.log(length)).clamp_min(1)


def base_attention(implementation: str | None) -> str | None:
    """``"sdpa"`` for ``"longlens_eabf_sdpa"``; other names unchanged."""
    return None if implementation is None else implementation.removeprefix(PREFIX)


def scale_queries(model: Any) -> None:
    """Makes a model's attention scale its queries by its config, through transformers' attention registries.

    Raises:
        UserError: Its attention is not called through these registries, or is not one that longlens can wrap.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    decoder = find_decoder(model)
    base = base_attention(decoder.config._attn_implementation)
    if base not in BASES:
        raise UserError(
            f"EABF runs with the attention implementations {' and '.join(BASES)}, and this one is {shown_value(base)}"
        )
    name = PREFIX + base
    if name not in AttentionInterface._global_mapping:
        AttentionInterface.register(name, _scaled(base))
        # Without a mask of its own name, transformers would pass none at all.
        AttentionMaskInterface.register(name, AttentionMaskInterface._global_mapping[base])
    decoder.set_attn_implementation(name)
    if decoder.config._attn_implementation != name:
        raise UserError(f"{type(model).__name__} has custom attention code, in which EABF cannot scale queries")


def _scaled(base: str) -> Callable[..., Any]:
    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> Any:
        """``base`` attention of ``(B, heads, n, head_dim)`` queries, scaled from the config's ``first_layer``."""
        config, layer = module.config, module.layer_idx
        parameters = config.rope_parameters
        if nested_keys(config):
            parameters = parameters[config.layer_types[layer]]
        if parameters["rope_type"] == EABF_TYPE and layer >= parameters["first_layer"]:
            position_ids = options.get("position_ids")
            if position_ids is None or position_ids.ndim != 2:
                raise UserError(
                    f"{type(module).__name__} does not receive query positions, so EABF cannot scale queries"
                )
            scale = query_scale(position_ids, parameters["original_max_position_embeddings"])
            query = query * scale[:, None, :, None].to(query.dtype)
        # Each modeling file has its own eager attention (caps, sinks) and may have its own entries in the registry.
        own = sys.modules[type(module).__module__]
        function = own.ALL_ATTENTION_FUNCTIONS.get_interface(base, own.eager_attention_forward)
        return function(module, query, key, value, attention_mask, **options)

    return attention
