"""EABF: which queries are scaled, by how much, and that caches, masks and packing see the same."""

import pytest
import torch
import transformers

from longlens import UserError
from longlens.rope import EABF, NTK, apply
from longlens.rope.eabf import query_scale
from longlens.rope.frequencies import eabf_query_scale
from tests.reference import rope as oracle
from tests.rope.conftest import LENGTH, logits
from tests.tiny import tiny_model

FAMILIES = ["llama", "mistral-sliding", "qwen3-tied", "gemma2", "gemma3", "cohere", "mixtral", "gpt-oss"]


def pair(family="llama", attention=None, **settings):
    """The same weights with EABF and with its base alone."""
    models = []
    for method in (EABF(factor=4, theta=2e6, **settings), NTK(factor=4, theta=2e6)):
        if family == "gpt-oss":
            rope = {"rope_type": "default", "rope_theta": 1e4}
            model = tiny_model("gpt-oss-sinks", max_position_embeddings=LENGTH, rope_parameters=rope)
        else:
            model = tiny_model(family, max_position_embeddings=LENGTH)
        if attention is not None:
            model.set_attn_implementation(attention)
        models.append(apply(model, method))
    return models


def test_the_scale_in_torch_is_the_scale_in_numpy():
    positions = torch.arange(3000)[None]
    ours = query_scale(positions, 64)
    torch.testing.assert_close(ours[0].double(), torch.from_numpy(eabf_query_scale(positions[0].numpy(), length=64)))
    assert ours[0, 63] == 1
    assert ours[0, 2999] == pytest.approx(oracle.eabf_scale(2999, 64), rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_below_the_original_length_stay_and_those_from_it_on_change(family, ids):
    eabf, base = pair(family)
    ours, theirs = logits(eabf, ids)[0], logits(base, ids)[0]
    torch.testing.assert_close(ours[:LENGTH], theirs[:LENGTH])
    assert ((ours - theirs).abs().amax(-1)[LENGTH:] > 1e-5).all()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "mistral-sliding", "qwen3-tied"])
def test_every_attention_implementation_gives_the_same(family, attention, ids):
    ours, _ = pair(family, attention)
    assert ours.config._attn_implementation == f"longlens_eabf_{attention}"
    torch.testing.assert_close(logits(ours, ids), logits(pair(family)[0], ids), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_pass_is_token_by_token_with_a_cache(family, ids):
    model, _ = pair(family)
    cache = transformers.DynamicCache(config=model.config)
    with torch.no_grad():
        steps = [model(input_ids=ids[:, i : i + 1], past_key_values=cache, use_cache=True).logits for i in range(100)]
    torch.testing.assert_close(torch.cat(steps, dim=1), logits(model, ids), atol=1e-3, rtol=1e-3)


def test_padding_on_the_left_and_packing_count_from_each_start(ids):
    model, _ = pair()
    alone = logits(model, ids[:, :80])
    mask = torch.cat((torch.zeros(1, 20), torch.ones(1, 80)), dim=1).long()
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    padded = logits(model, torch.cat((ids[:, 80:], ids[:, :80]), dim=1), attention_mask=mask, position_ids=positions)
    torch.testing.assert_close(padded[:, 20:], alone, atol=1e-4, rtol=1e-4)
    positions = torch.cat((torch.arange(20), torch.arange(80)))[None]
    packed = logits(model, torch.cat((ids[:, 80:], ids[:, :80]), dim=1), position_ids=positions)
    torch.testing.assert_close(packed[:, 20:], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("first_layer", [0, 2])
def test_layers_from_the_first_on_are_scaled(first_layer, ids, monkeypatch):
    """0 as the published code does it, 2 as the paper has it; this model has three layers."""
    model, base = pair(first_layer=first_layer)
    queries = {}

    def remember(name, namespace):
        original = namespace.ALL_ATTENTION_FUNCTIONS["sdpa"]

        def attention(module, query, *arguments, **options):
            queries.setdefault(name, {}).setdefault(module.layer_idx, query)
            return original(module, query, *arguments, **options)

        return attention

    from transformers import AttentionInterface

    for name, one in (("eabf", model), ("base", base)):
        with monkeypatch.context() as patch:
            namespace = transformers.models.llama.modeling_llama
            patch.setitem(AttentionInterface._global_mapping, "sdpa", remember(name, namespace))
            logits(one, ids)
    scale = query_scale(torch.arange(100), LENGTH)[None, None, :, None]
    for layer in range(min(first_layer + 1, 3)):
        # Up to the first scaled layer both models have the same states.
        wanted = queries["base"][layer] * (scale if layer >= first_layer else 1)
        torch.testing.assert_close(queries["eabf"][layer], wanted)
    assert not torch.equal(logits(model, ids), logits(base, ids))


def test_a_first_layer_that_there_is_not_is_refused():
    with pytest.raises(UserError, match="`first_layer` is 3, and llama has 3 layers, so no query would be scaled"):
        pair(first_layer=3)


def test_it_learns(ids):
    model, _ = pair()
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_two_models_with_other_lengths_do_not_disturb_each_other(ids):
    first, _ = pair()
    before = logits(first, ids)
    other = apply(tiny_model("llama", max_position_embeddings=32), EABF(factor=4, first_layer=1))
    logits(other, ids)
    torch.testing.assert_close(logits(first, ids), before, rtol=0, atol=0)


def test_transformers_own_attention_stays_as_it_was(ids):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    rope, sdpa = dict(ROPE_INIT_FUNCTIONS), ALL_ATTENTION_FUNCTIONS["sdpa"]
    plain = tiny_model("llama", max_position_embeddings=LENGTH)
    before = logits(plain, ids)
    pair()
    assert dict(ROPE_INIT_FUNCTIONS) == rope
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa
    torch.testing.assert_close(logits(plain, ids), before, rtol=0, atol=0)


def test_another_attention_implementation_is_refused():
    model = tiny_model("llama", max_position_embeddings=LENGTH)
    model.config._attn_implementation_internal = "flex_attention"
    with pytest.raises(UserError, match="EABF runs with the attention implementations sdpa and eager, and this one is"):
        apply(model, EABF(factor=4))


def test_a_model_that_does_not_tell_positions_is_refused(ids):
    model, _ = pair()
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, options: (args, options | {"position_ids": None}), with_kwargs=True
        )
    with pytest.raises(UserError, match="LlamaAttention does not receive query positions"):
        logits(model, ids)
