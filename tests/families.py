"""A tiny random model of every causal language model of transformers that can be made from its configuration alone,
multimodal ones included, and what longlens makes of each.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from longlens.errors import UserError
from longlens.losses.passes import check_packing
from longlens.models.forward import Forward, greedy, pack, running
from longlens.rope import PositionInterpolation, extend_config
from longlens.scoring.scorer import Request
from longlens.scoring.transformers import ContinuationScorer
from tests.reference.scoring import naive_logprobs
from tests.tiny import byte_tokenizer

# Of Llama 4 transformers loads the text part alone, which is llama4_text.
TEXT_KINDS = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - {"llama4"})
KINDS = sorted({*TEXT_KINDS, *MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES} - {"llama4"})
# Of transformers' own code: no text without an image or sound.
NEED_MORE = {
    "blip", "blip-2", "idefics", "instructblip", "instructblipvideo", "kosmos-2", "llama4", "pi0", "pix2struct",
    "t5gemma2", "vision-encoder-decoder", "voxtral_realtime",
}  # fmt: skip

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
_LENGTHS |= {"attention_window_size": 24, "index_topk": 16, "index_n_heads": 16, "index_head_dim": 8}
_LENGTHS |= {"is_decoder": True}
_SMALL = _TOKENS | _WIDTHS | _LAYERS | _HEADS | _LENGTHS | _LATENT | _EXPERTS | _STATES
_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
_MROPE = {"rope_parameters": {**_ROPE, "mrope_section": [1, 1, 2]}}
_PARTIAL = {"head_dim": 32}  # of which a quarter is rotary
_OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("mimo_v2_flash", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"), _PARTIAL),
    "gpt_neox": {"hidden_size": 128},
    "stablelm": {"hidden_size": 128},
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 50, "hidden_size_global": 32},
    "chameleon": {"vocabulary_map": {"<image>": 299}},
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": dict.fromkeys(("sliding_attention", "full_attention"), _MROPE["rope_parameters"]),
    },
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"] * 2},
    "diffusion_gemma_text": {"top_k_experts": 2},
    "emu3": {"vocabulary_map": {"<image>": 299, "<|extra_200|>": 298}},
    "ernie4_5_vl_moe_text": {"moe_intermediate_size": [16, 16]},
    "falcon_h1": {"mamba_d_ssm": 64},
    "dots3_note_text": {"num_key_value_heads": 4},
    "gemma3_text": {"num_hidden_layers": 6},
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
    **{f"{kind}_text": _MROPE for kind in ("glm4v", "glm_ocr", "hunyuan_vl", "qwen2_vl", "qwen2_5_vl", "qwen2_5_omni")},
    "janus_vqgan": {"num_embeddings": 16, "image_token_embed_dim": 16},
    "rwkv": {"rescale_every": 2},
    "glm4v_moe_text": {"rope_parameters": {**_ROPE, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]}},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "paddleocr_vl_text": _MROPE,
    "qwen2_vl_vision": {"mlp_ratio": 1},
    "qwen4_exp_text": {
        "indexer_n_heads": 16,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
        "head_dim": 8,
    },
    "reformer": {"axial_pos_embds": False},
    "roc_bert": {"shape_vocab_size": 300, "pronunciation_vocab_size": 300},
    "xmod": {"default_language": "en_XX"},
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


_TOWER: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_TOWER |= {"num_key_value_heads": 2, "head_dim": 8, "image_size": 16, "patch_size": 4, "depth": 1, "embed_dim": 16}
_TOWER |= {"num_heads": 2, "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
_TOWER |= {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "num_mel_bins": 8}
_TOWER |= {"max_source_positions": 32, "out_hidden_size": 32, "num_layers": 1, "n_layers": 1, "vocab_size": 300}
_TOWER |= {"mlp_ratio": 1.0, "num_codebooks": 1, "codebook_size": 16, "codebook_dim": 8, "base_channels": 32}
_TOWER |= {"channel_multiplier": [1, 1], "num_res_blocks": 1, "latent_channels": 8, "window_size": 8}
_TOWER |= {"spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 16, "output_dim": 32}
_TOWER |= {"fullatt_block_indexes": [0], "deepstack_visual_indexes": [0], "text_hidden_size": 32, "proj_dim": 16}
_TOWER |= {"hidden_dim": 16, "num_query_tokens": 4, "encoder_hidden_size": 16, "pad_token_id": 0}
_TOWER |= {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16}
_TEXTS = ("text_config", "decoder", "vlm_config", "thinker_config", "global_config", "decoder_config")
_TOKENS_OF_A_TEXT = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def tiny_settings(made: Any, change: dict[str, Any], *, is_text: bool = True) -> dict[str, Any]:
    """Settings that make a config of this class tiny, its parts (text, vision, sound) included."""
    names = {name for base in made.__mro__ for name in getattr(base, "__annotations__", {})}
    names |= set(inspect.signature(made.__init__).parameters) | set(getattr(made, "attribute_map", {}) or {})
    parts = getattr(made, "sub_configs", None) or {}
    base = _SMALL if is_text else _TOWER
    settings = {name: value for name, value in base.items() if name in names - set(parts)}
    # Placeholders of images and sound: in the vocabulary, and none of the text's bytes.
    places = sorted(n for n in names if n.endswith(("token_id", "token_index")) and n not in _TOKENS_OF_A_TEXT)
    settings |= {name: 260 + number for number, name in enumerate(places)}
    settings |= _OWN.get(made.model_type, {})
    settings |= {name: value for name, value in change.items() if is_text and name in settings}
    default = made() if parts else None
    for name in parts:
        part = getattr(default, name, None)
        if part is not None and name not in settings:
            own = tiny_settings(type(part), change, is_text=name in _TEXTS)
            settings[name] = {**own, "model_type": type(part).model_type}
    return {name: value for name, value in settings.items() if value is not None}


def family_class(config: Any) -> Any:
    """The class that a whole checkpoint of this configuration is of, its towers included."""
    mapping = MODEL_FOR_MULTIMODAL_LM_MAPPING if type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING else None
    found = (mapping or MODEL_FOR_CAUSAL_LM_MAPPING)[type(config)]
    return found[0] if isinstance(found, tuple) else found


def family_model(kind: str) -> Any:
    """The model, or what goes wrong when it is made."""
    made = transformers.CONFIG_MAPPING[kind]
    changes: list[dict[str, Any]] = [{}, {"num_key_value_heads": 4}, {"num_key_value_heads": None}, {"head_dim": None}]
    first: Exception | None = None
    for change in changes:
        try:
            config = made(**tiny_settings(made, change))
            with torch.device("meta"):
                size = sum(parameter.numel() for parameter in family_class(config)(config).parameters())
            if size > 12_000_000:
                raise ValueError(f"{size:,} parameters")
            torch.manual_seed(0)
            model = family_class(config)(config).float().eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(2.0)
                if kind not in NEED_MORE:
                    model(input_ids=torch.arange(1, 20)[None], use_cache=False).logits.sum()
            return model
        except Exception as error:  # noqa: BLE001 what a configuration lacks shows in any way
            first = first or error
    return first


ROWS = [
    torch.randint(1, 250, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for length in (70, 37, 70, 5)
]
"""Texts of unequal lengths: longer than the windows, chunks and selections of the tiny models, and shorter."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What longlens does with a model; the columns of the table in docs/models.md.

    Attributes:
        name: Its class.
        scoring: ``batches``, ``equal lengths`` or ``one at a time``; or why it is refused.
        generation: The same of prompts.
        packing: Whether training keeps documents in a row apart, ``yes``, or refuses to pack them.
        extend: Whether `extend_config` takes it, or why not.
        errors: Where a number is not that of the model's own forward pass of one sequence; always empty.
    """

    name: str
    scoring: str
    generation: str = ""
    packing: str = ""
    extend: str = ""
    errors: tuple[str, ...] = ()

    @property
    def is_refused(self) -> bool:
        """Whether nothing is computed with it."""
        return not self.generation


def outcome(model: Any) -> Outcome:
    """Runs a model in every way that longlens has, each held against the model's own pass of one sequence."""
    with mock.patch("longlens.scoring.transformers.CHUNK_TOKENS", 32):
        return _outcome(model)


def _outcome(model: Any) -> Outcome:
    name = type(model).__name__
    try:
        scorer = ContinuationScorer(model, byte_tokenizer(), batch_tokens=200)
    except UserError as error:
        return Outcome(name=name, scoring=str(error))
    batches = "batches" if scorer._pads else "equal lengths" if scorer._rows is None else "one at a time"
    generation, wrong = _generation(model)
    return Outcome(
        name=name,
        scoring=batches,
        generation=generation,
        packing=_packing(model),
        extend=(extended := _extension(model))[0],
        errors=(*_score_errors(scorer), *wrong, *extended[1]),
    )


def _score_errors(scorer: ContinuationScorer) -> list[str]:
    errors = []
    requests = [Request(str(number), tuple(row), 1) for number, row in enumerate(ROWS)]
    for key, logprobs in scorer.logprobs(requests):
        if not np.allclose(logprobs, naive_logprobs(scorer.model, ROWS[int(key)]), atol=1e-3, rtol=0):
            errors.append(f"log-probabilities of text {key}")
    # A text and its continuations: the cache of the text serves all of them, where that is right.
    continuations = [ROWS[1][:6], ROWS[3]]
    for answer, tokens in zip(scorer.continuations(ROWS[0], continuations), continuations, strict=True):
        expected = sum(naive_logprobs(scorer.model, ROWS[0] + tokens)[len(ROWS[0]) - 1 :])
        if abs(answer.logprob - expected) > 1e-3:
            errors.append(f"a continuation of {len(tokens)} tokens")
    return errors


def answers(forward: Forward, rows: list[list[int]]) -> list[list[int]]:
    """As `longlens.bench.lm_eval.backends.LensHFLM` batches prompts."""
    found: dict[int, list[int]] = {}
    for batch in pack(list(map(len, rows)), pads=forward.pads_left, rows=3 if forward.generates_batches else 1):
        with running(forward.model), greedy(forward.model, max_new_tokens=3, eos_token_id=None) as config:
            written = forward.generate([rows[number] for number in batch], config)
        found |= dict(zip(batch, written, strict=True))
    return [found[number] for number in range(len(rows))]


def _generation(model: Any) -> tuple[str, list[str]]:
    try:
        forward = Forward(model)
        together = answers(forward, ROWS)
        alone = [answers(Forward(model), [row])[0] for row in reversed(ROWS)][::-1]
    except UserError as error:
        return f"refused: {error}", []
    kind = "batches" if forward.pads_left else "equal lengths" if forward.generates_batches else "one at a time"
    return kind, [] if together == alone else ["answers"]


def _packing(model: Any) -> str:
    try:
        check_packing(model, 2)
    except UserError:
        return "refused"
    return "yes"


def _extension(model: Any) -> tuple[str, list[str]]:
    try:
        config = extend_config(model.config, PositionInterpolation(factor=2))
    except UserError as error:
        reasons = {"no rotary": "no RoPE", "already extended": "extended already"}
        return next((short for part, short in reasons.items() if part in str(error)), "no"), []
    other = type(model)(copy.deepcopy(config)).float().eval()
    other.load_state_dict(model.state_dict())
    is_same = naive_logprobs(model, ROWS[0]) == naive_logprobs(other, ROWS[0])
    return "yes", ["extending changes nothing"] if is_same else []
