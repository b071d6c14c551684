"""What an extended config holds, and which models and settings are refused."""

import copy

import pytest
import torch
import transformers

from longlens import UserError
from longlens.rope import CLEX, EABF, NTK, DynamicNTK, LongRoPE, PositionInterpolation, YaRN, extend_config
from longlens.rope.config import prepare_config, rope_parameters, set_rope_parameters, shared_rotary_note, text_config
from longlens.rope.model import count_rope_layers
from tests.rope.conftest import KNOWN, LENGTH, METHODS
from tests.tiny import tiny_model


def llama(**changes):
    settings = {"hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": LENGTH, **changes}
    return transformers.LlamaConfig(**settings)


EXPECTED = {
    "pi": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "ntk": {"rope_type": "default", "rope_theta": 1e4 * 4 ** (8 / 6)},
    "ntk-theta": {"rope_type": "default", "rope_theta": 8e6},
    "dynamic-ntk": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    },
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.0, 2.0, 3.0, 4.0],
    },
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "eabf": {
        "rope_type": "longlens_eabf",
        "rope_theta": 2e6,
        "original_max_position_embeddings": 64,
        "first_layer": 0,
    },
    "clex": {
        "rope_type": "longlens_clex",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "width": 1,
        "step": 0.25,
    },
}


@pytest.mark.parametrize("name", METHODS)
def test_what_a_config_becomes_and_the_given_one_stays(name):
    config = llama()
    before = config.to_dict()
    new = extend_config(config, METHODS[name])
    assert new.rope_parameters == EXPECTED[name] | {"rope_theta": pytest.approx(EXPECTED[name]["rope_theta"])}
    assert new.max_position_embeddings == (LENGTH if name == "dynamic-ntk" else 4 * LENGTH)
    assert type(new) is type(config)
    assert config.to_dict() == before
    assert {key for key, value in new.to_dict().items() if value != before.get(key)} <= {
        "rope_parameters",
        "max_position_embeddings",
        "longlens_requires",
    }


@pytest.mark.parametrize("name", METHODS)
def test_a_config_is_read_again_as_it_was_written(name, tmp_path):
    new = extend_config(llama(), METHODS[name])
    new.save_pretrained(tmp_path)
    assert transformers.AutoConfig.from_pretrained(tmp_path).rope_parameters == new.rope_parameters


@pytest.mark.parametrize("name", METHODS)
def test_layers_with_a_window_keep_their_frequencies(name):
    config = tiny_model("gemma3").config
    local = dict(config.rope_parameters["sliding_attention"])
    new = extend_config(config, METHODS[name])
    assert new.rope_parameters["sliding_attention"] == local
    assert new.rope_parameters["full_attention"]["rope_type"] == EXPECTED[name]["rope_type"]
    assert new.rope_parameters["full_attention"] != config.rope_parameters["full_attention"]


_MIXED = {"num_hidden_layers": 8, "head_dim": 8, "sliding_window": 24, "attention_chunk_size": 32}
_MIXED |= {"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2}
_MIXED |= {"moe_intermediate_size": 16, "query_pre_attn_scalar": 8}
_SMALL = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "pad_token_id": 0}
_SMALL |= {"num_key_value_heads": 2, "max_position_embeddings": 4096, "bos_token_id": 1, "eos_token_id": 2}
_TYPES = ["sliding_attention", "full_attention"] * 4
# Which of the layers that attend to everything, and of the others, have a rotary embedding; and whether they share it.
FAMILIES_OF_LAYERS = {
    "Cohere2": ((0, 2), "sliding_attention", {}),
    "Cohere2Moe": ((0, 2), "sliding_attention", {}),
    "Exaone4": ((0, 2), "sliding_attention", {}),
    "ExaoneMoe": ((0, 2), "sliding_attention", {}),
    "Afmoe": ((0, 2), "sliding_attention", {}),
    "Llama4Text": ((0, 2), "chunked_attention", {}),
    "Gemma2": ((4, 4), "sliding_attention", {}),
    "VaultGemma": ((4, 4), "sliding_attention", {}),
    "GptOss": ((4, 4), "sliding_attention", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    "Qwen2": ((4, 4), "sliding_attention", {"layer_types": _TYPES, "use_sliding_window": True}),
    "Qwen3": ((4, 4), "sliding_attention", {"layer_types": _TYPES, "use_sliding_window": True}),
    "Gemma3Text": ((1, 1), None, {}),
    "Olmo3": ((2, 2), None, {}),
    "Qwen3Next": ((2, 2), None, {"head_dim": 32}),  # a quarter of which turns
    "SmolLM3": ((6, 8), None, {}),
}


def layers_of(model):
    return [module for name, module in model.named_modules() if name.rpartition(".")[0].endswith("model.layers")]


@pytest.mark.parametrize("family", FAMILIES_OF_LAYERS)
def test_layers_that_attend_to_everything_need_a_rotary_embedding(family):
    """Against two models with other frequencies: which layers give something else for the same states."""
    kind = getattr(transformers, f"{family}Config", None)
    if kind is None:
        pytest.skip(f"this transformers has no {family}")
    expected, local, changes = FAMILIES_OF_LAYERS[family]
    names = vars(kind()).keys()
    config = kind(**{name: value for name, value in (_SMALL | _MIXED).items() if name in names} | changes)
    before = config.to_dict()
    assert count_rope_layers(config)["full_attention"] == expected
    assert config.to_dict() == before

    from transformers import AutoModelForCausalLM

    other = copy.deepcopy(config)
    set_rope_parameters(text_config(other), {**rope_parameters(text_config(other)), "rope_theta": 3e6})
    torch.manual_seed(0)
    first, second = (AutoModelForCausalLM.from_config(c, dtype=torch.float32).eval() for c in (config, other))
    second.load_state_dict(first.state_dict())
    states, outputs = [], ([], [])
    for layer in layers_of(first):
        layer.register_forward_pre_hook(
            lambda m, a, k: states.append(a[0] if a else k["hidden_states"]), with_kwargs=True
        )
    for layer, at in zip(layers_of(second), range(len(config.layer_types)), strict=True):
        layer.register_forward_pre_hook(
            lambda m, a, k, at=at: ((states[at], *a[1:]), k) if a else (a, {**k, "hidden_states": states[at]}),
            with_kwargs=True,
        )
    for model, found in zip((first, second), outputs, strict=True):
        for layer in layers_of(model):
            layer.register_forward_hook(lambda m, a, o, found=found: found.append(o[0] if isinstance(o, tuple) else o))
    with torch.no_grad():
        for model in (first, second):
            model(input_ids=torch.arange(3, 51)[None], use_cache=False)
    changed = [not torch.equal(a, b) for a, b in zip(*outputs, strict=True)]
    full = [moved for moved, layer in zip(changed, config.layer_types, strict=True) if layer == "full_attention"]
    assert (sum(full), len(full)) == expected

    if expected[0] == 0:
        with pytest.raises(UserError, match=f"with full attention have no rotary .* change {local} layers only"):
            extend_config(config, NTK(factor=8))
        return
    extend_config(config, NTK(factor=8))
    note = shared_rotary_note(config)
    assert (note or "").startswith(f"{local} layers share one rotary embedding" if local else "")
    assert (note is None) == (local is None)


def test_the_text_part_of_a_multimodal_config_is_extended():
    text = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 6, "head_dim": 8}
    config = transformers.Gemma3Config(text_config=text | {"max_position_embeddings": LENGTH})
    new = extend_config(config, YaRN(factor=4))
    assert new.text_config.rope_parameters["full_attention"]["rope_type"] == "yarn"
    assert new.text_config.max_position_embeddings == 4 * LENGTH
    assert config.text_config.max_position_embeddings == LENGTH


def test_a_partial_rotary_embedding_is_extended_in_its_own_dimensions():
    config = transformers.GPTNeoXConfig(
        hidden_size=128, num_attention_heads=4, rotary_pct=0.25, max_position_embeddings=64
    )
    new = extend_config(config, NTK(factor=4))
    assert new.rope_parameters["rope_theta"] == pytest.approx(1e4 * 4 ** (8 / 6))
    assert new.rope_parameters["partial_rotary_factor"] == 0.25
    with pytest.raises(UserError, match="expected 4, one per frequency of the model's 8 rotary dimensions"):
        extend_config(config, LongRoPE(factor=4, short_factors=[1.0] * 16, long_factors=[1.0] * 16))


def test_an_original_length_that_is_given_counts():
    config = llama(max_position_embeddings=32768)
    new = extend_config(config, EABF(factor=8, original_length=4096))
    assert new.rope_parameters["original_max_position_embeddings"] == 4096
    assert new.max_position_embeddings == 32768
    assert extend_config(config, DynamicNTK(factor=8, original_length=4096)).max_position_embeddings == 4096


def test_the_base_of_an_eabf_model_can_be_raised_afterwards():
    """LongPPL, appendix B.5: 500K to 2M after training."""
    trained = extend_config(llama(), EABF(factor=8, first_layer=2))
    new = extend_config(trained, NTK(theta=2e6, factor=2))
    assert new.rope_parameters == {**trained.rope_parameters, "rope_theta": 2e6}
    assert new.max_position_embeddings == 2 * trained.max_position_embeddings
    with pytest.raises(UserError, match="llama is already extended"):
        extend_config(trained, NTK(factor=2))


def test_a_base_without_a_factor_leaves_the_length():
    assert extend_config(llama(), NTK(theta=5e5)).max_position_embeddings == LENGTH


def test_phi3_has_its_original_length_in_two_places():
    config = tiny_model("phi3-longrope").config
    config.rope_parameters = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}
    new = extend_config(config, METHODS["longrope"])
    assert new.original_max_position_embeddings == 4096
    assert new.rope_parameters["original_max_position_embeddings"] == 4096
    with pytest.raises(UserError, match=r"phi3 does not support rope_type 'linear': .*must be one of \['longrope'\]"):
        extend_config(config, PositionInterpolation(factor=4))


def test_a_head_dimension_that_is_none_is_written_out():
    """transformers multiplies by None otherwise, for these types."""
    config = transformers.MixtralConfig(hidden_size=32, num_attention_heads=4, max_position_embeddings=64)
    assert config.head_dim is None
    for name in ("dynamic-ntk", "yarn", "longrope"):
        assert extend_config(config, METHODS[name]).head_dim == 8


NO_ROPE = "has no rotary position embedding (RoPE), which these methods modify: use a model that has one"
REFUSED = {
    "learned": (lambda: tiny_model("gpt2").config, PositionInterpolation(factor=4), f"gpt2 {NO_ROPE}"),
    "opt": (lambda: tiny_model("opt").config, CLEX(max_factor=4), f"opt {NO_ROPE}"),
    "alibi": (lambda: transformers.FalconConfig(alibi=True), YaRN(factor=4), f"falcon {NO_ROPE}"),
    "mpt": (lambda: transformers.MptConfig(), YaRN(factor=4), f"mpt {NO_ROPE}"),
    "nope": (
        lambda: transformers.GraniteMoeHybridConfig(position_embedding_type="nope"),
        NTK(factor=4),
        f"granitemoehybrid {NO_ROPE}",
    ),
    "encoder-decoder": (
        lambda: transformers.T5Config(),
        YaRN(factor=4),
        "t5 is an encoder and a decoder: longlens supports only decoders",
    ),
    "extended": (
        lambda: tiny_model("llama-yarn").config,
        PositionInterpolation(factor=4),
        "llama is already extended (rope_type 'yarn' with factor 4): pi must be applied to its base model",
    ),
    "twice": (
        lambda: extend_config(llama(), CLEX(max_factor=4)),
        CLEX(max_factor=4),
        "llama is already extended (rope_type 'longlens_clex' with factor 4): clex must be applied to its base model",
    ),
    "longrope lists": (
        llama,
        LongRoPE(factor=4, short_factors=[1.0] * 4, long_factors=[1.0] * 3),
        "`long_factors` has 3 values; expected 4, one per frequency of the model's 8 rotary dimensions",
    ),
    "no length": (
        lambda: llama(max_position_embeddings=0),
        YaRN(factor=4),
        "the config of llama does not contain the training length (no max_position_embeddings): pass",
    ),
    "lengths that are not whole": (
        llama,
        YaRN(factor=1.3),
        "`factor=1.3` times 64 tokens is 83.2; expected an integer",
    ),
    "smaller base": (
        lambda: llama(rope_theta=1e6),
        EABF(factor=4),
        "`theta` is 500000; the model's base is 1e+06 already, and EABF requires at least that",
    ),
    "the same base": (
        lambda: llama(rope_theta=1e6),
        NTK(theta=1e6),
        "`theta` is 1e+06; the model's base is 1e+06 already; a larger one is required to extend it",
    ),
    "two dimensions": (
        lambda: tiny_model("gpt-neox").config,
        NTK(factor=2),
        "gpt_neox has the base 10000.0 and 2 rotary dimensions; expected a base and an even number of at least 4",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_extended(name):
    make, method, message = REFUSED[name]
    config = make()
    before = config.to_dict()
    with pytest.raises(UserError) as refused:
        extend_config(config, method)
    assert str(refused.value).startswith(message)
    assert config.to_dict() == before


@pytest.mark.parametrize("name", METHODS)
def test_what_transformers_can_build(name):
    new = extend_config(llama(), METHODS[name])
    prepared = prepare_config(new)
    if name in KNOWN:
        assert prepared is new
    else:
        assert prepared.rope_parameters == {"rope_type": "default", "rope_theta": new.rope_parameters["rope_theta"]}
        assert new.rope_parameters == EXPECTED[name]


def test_a_model_may_keep_its_base_at_a_longer_length():
    config = tiny_model("llama").config
    theta = config.rope_parameters["rope_theta"]
    longer = extend_config(config, NTK(factor=4, theta=theta))
    assert longer.max_position_embeddings == 4 * config.max_position_embeddings
    assert longer.rope_parameters["rope_theta"] == theta
