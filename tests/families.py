"""A tiny random model of every causal language model of transformers that can be made from its configuration alone."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

# Not causal as they are made here (encoders without is_decoder), or far too slow to make.
LEFT_OUT = {
    "bert", "bert-generation", "big_bird", "camembert", "cpmant", "data2vec-text", "electra", "ernie", "megatron-bert",
    "prophetnet", "qdqbert", "reformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm",
    "xlm-prophetnet", "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod",
}  # fmt: skip
KINDS = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - LEFT_OUT)

_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "n_head": 4, "n_heads": 4, "num_heads": 4}
_LAYERS = {"num_hidden_layers": 4, "n_layer": 4, "n_layers": 4, "decoder_layers": 2, "encoder_layers": 2}
_WIDTHS = {"hidden_size": 32, "intermediate_size": 48, "n_embd": 32, "d_model": 32, "n_inner": 48, "ffn_dim": 48}
_WIDTHS |= {"decoder_ffn_dim": 48, "encoder_ffn_dim": 48, "word_embed_proj_dim": 32, "ffn_hidden_size": 48}
_WIDTHS |= {"lru_width": 32, "kv_channels": 8, "intermediate_size_mlp": 48, "shared_expert_intermediate_size": 16}
_HEADS |= {"decoder_attention_heads": 4, "encoder_attention_heads": 4}
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
_LATENT |= {"qk_head_dim": 16}
_EXPERTS = {"num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "n_group": 1}
_EXPERTS |= {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_shared_experts": 1, "topk_group": 1}
_STATES = {"state_size": 8, "time_step_rank": 4, "ssm_state_size": 8, "chunk_size": 16, "conv_kernel": 4}
_STATES |= {"mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_num_heads": 4, "mamba_head_dim": 16}
_STATES |= {"mamba_n_groups": 1, "n_groups": 1, "mamba_chunk_size": 16, "linear_num_value_heads": 4}
_STATES |= {"linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
_TOKENS = {"vocab_size": 300, "pad_token_id": 0, "bos_token_id": 256, "eos_token_id": 257, "use_cache": True}
_LENGTHS = {"max_position_embeddings": 4096, "n_positions": 4096, "sliding_window": 24, "attention_chunk_size": 40}
_LENGTHS |= {"attention_window_size": 24}
_SMALL = _TOKENS | _WIDTHS | _LAYERS | _HEADS | _LENGTHS | _LATENT | _EXPERTS | _STATES
_OWN: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "codegen": {"rotary_dim": 4},
    "falcon_h1": {"mamba_d_ssm": 64},
    "dots3_note_text": {"num_key_value_heads": 4},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": 300,
        "hidden_size_per_layer_input": 8,
        "activation_sparsity_pattern": [0.0] * 4,
        "laurel_rank": 4,
    },
    "gemma4_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": 300,
        "hidden_size_per_layer_input": 8,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_layers": 4, "window_size": 24},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "xlstm": {"hidden_size": 128},  # its cache takes no width of keys below 64
    "zamba": {"num_hidden_layers": 8},
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid"] * 2,
        "num_mem_blocks": 1,
        "mamba_headdim": 16,
        "n_mamba_heads": 4,
    },
    "zaya": {"num_experts_per_tok": 1},
}


def family_model(kind: str) -> Any:
    """The model, or what goes wrong when it is made."""
    made = transformers.CONFIG_MAPPING[kind]
    names = {name for base in made.__mro__ for name in getattr(base, "__annotations__", {})}
    names |= set(inspect.signature(made.__init__).parameters) | set(getattr(made, "attribute_map", {}) or {})
    small = {name: value for name, value in _SMALL.items() if name in names} | _OWN.get(kind, {})
    changes: list[dict[str, Any]] = [{}, {"num_key_value_heads": 4}, {"num_key_value_heads": None}, {"head_dim": None}]
    first: Exception | None = None
    for change in changes:
        settings = {**small, **{name: value for name, value in change.items() if name in small}}
        try:
            config = made(**{name: value for name, value in settings.items() if value is not None})
            with torch.device("meta"):
                size = sum(p.numel() for p in transformers.AutoModelForCausalLM.from_config(config).parameters())
            if size > 5_000_000:
                raise ValueError(f"{size:,} parameters")
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(2.0)
                model(input_ids=torch.arange(1, 20)[None], use_cache=False).logits.sum()
            return model
        except Exception as error:  # noqa: BLE001 what a configuration lacks shows in any way
            first = first or error
    return first
