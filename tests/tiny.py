"""Tiny random models, one of each family that computes something its own way, and a byte tokenizer."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

VOCABULARY = 300
_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 256,
    "eos_token_id": 257,
}

# What a model's generation_config.json may ask for, and greedy decoding does not do.
OWN_GENERATION = {
    "do_sample": True,
    "temperature": 9.0,
    "top_k": 3,
    "num_beams": 3,
    "length_penalty": 5.0,
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "suppress_tokens": list(range(0, 250, 2)),
    "begin_suppress_tokens": list(range(1, 250, 2)),
    "bad_words_ids": [[7]],
    "sequence_bias": [[[9], 20.0]],
    "forced_eos_token_id": 9,
    "exponential_decay_length_penalty": [1, 5.0],
    "min_new_tokens": 3,
    "max_new_tokens": 2,
    "max_time": 0.0,
    "stop_strings": ["a"],
    "guidance_scale": 2.0,
    "prompt_lookup_num_tokens": 3,
    "cache_implementation": "static",
}


def byte_tokenizer(*, bos: bool = True, adds_bos: bool = True) -> Any:
    """256 byte tokens and `<s>` (256), `</s>` (257); puts `<s>` before a text as Llama's does."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    if bos and adds_bos:
        tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    names = {"eos_token": "</s>"} | ({"bos_token": "<s>"} if bos else {})
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-bias": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-yarn": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "llama-dynamic-ntk": (
        "Llama",
        {"max_position_embeddings": 40, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 8.0}},
    ),
    "phi3-longrope": (
        "Phi3",
        {
            "original_max_position_embeddings": 40,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 4,
                "long_factor": [1.0, 2.0, 3.0, 4.0],
                "original_max_position_embeddings": 40,
            },
        },
    ),
    "mistral-sliding": ("Mistral", {"sliding_window": 24}),
    "qwen2": ("Qwen2", {}),
    "qwen3-tied": ("Qwen3", {"tie_word_embeddings": True, "head_dim": 8}),
    "gemma2": (
        "Gemma2",
        {
            "head_dim": 8,
            "sliding_window": 24,
            "final_logit_softcapping": 2.0,
            "attn_logit_softcapping": 5.0,
            "query_pre_attn_scalar": 8,
        },
    ),
    "gemma3": ("Gemma3Text", {"head_dim": 8, "sliding_window": 24, "num_hidden_layers": 6, "query_pre_attn_scalar": 8}),
    "cohere": ("Cohere", {"logit_scale": 0.25}),
    "cohere2-sliding": ("Cohere2", {"logit_scale": 0.25, "sliding_window": 24, "num_hidden_layers": 4}),
    "granite": ("Granite", {"logits_scaling": 4.0}),
    "hyperclovax": ("HyperCLOVAX", {"logits_scaling": 4.0}),
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 4096}),
    "gpt-neox": ("GPTNeoX", {}),
    "opt": ("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "modernbert-decoder": ("ModernBertDecoder", {"local_attention": 24}),
    "llama4": (
        "Llama4Text",
        {"head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 48, "attention_chunk_size": 24},
    ),
    "gpt-oss-sinks": ("GptOss", {"num_local_experts": 4, "sliding_window": 24, "head_dim": 8}),
}


def tiny_model(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A random model of the family; its logits are large enough for caps and scales to matter."""
    kind, settings = FAMILIES[family]
    config = getattr(transformers, f"{kind}Config")(**{**_SMALL, **settings, **changes})
    torch.manual_seed(0)
    names = {"Gemma3Text": "Gemma3ForCausalLM", "GPT2": "GPT2LMHeadModel", "Llama4Text": "Llama4ForCausalLM"}
    model = getattr(transformers, names.get(kind, f"{kind}ForCausalLM"))(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    return model.to(dtype).eval()
