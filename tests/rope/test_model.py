"""Models in memory: extended, checked against their configs, and scored."""

import copy

import numpy as np
import pytest
import torch
import transformers

import longlens
from longlens import UserError
from longlens.rope import EABF, NTK, DynamicNTK, PositionInterpolation, apply, check_model, extend_config
from longlens.rope.config import prepare_config
from longlens.rope.frequencies import Rope
from longlens.rope.model import prepare_model, rotary_modules
from longlens.scoring.transformers import TransformersScorer
from tests.reference.scoring import naive_scores
from tests.rope.conftest import KNOWN, LENGTH, METHODS, logits
from tests.tiny import byte_tokenizer, tiny_model

TEXTS = ["It was the best of times, it was the worst of times, " * 3, "Straße 🙂 naïve", "of a middle length " * 5]


def made_of(config, model):
    """A model of that config with the weights of another."""
    new = type(model)(prepare_config(config)).eval()
    new.load_state_dict(model.state_dict())
    return prepare_model(new, config)


def scorer_of(model):
    return TransformersScorer(model, byte_tokenizer(), name="tiny", weights_sha256="0", batch_tokens=300)


@pytest.mark.parametrize("family", ["llama", "mistral-sliding", "qwen3-tied", "gemma2", "gemma3", "cohere", "mixtral"])
@pytest.mark.parametrize("name", METHODS)
def test_apply_gives_what_a_model_made_of_the_extended_config_gives(name, family, ids):
    model = tiny_model(family, max_position_embeddings=LENGTH)
    before = logits(model, ids)
    if (name, family) == ("clex", "gemma3"):
        with pytest.raises(UserError, match="has a rotary embedding per layer type, which CLEX does not"):
            apply(model, METHODS[name])
        return
    other = made_of(extend_config(model.config, METHODS[name]), tiny_model(family, max_position_embeddings=LENGTH))
    assert apply(model, METHODS[name]) is model
    check_model(model)
    check_model(other)
    assert model.config.to_dict() == other.config.to_dict()
    torch.testing.assert_close(logits(model, ids), logits(other, ids))
    assert (logits(model, ids) - before).abs().max() > 1e-3


@pytest.mark.parametrize("name", METHODS)
def test_a_model_turns_with_the_frequencies_of_the_method(name, ids):
    """At the length of each pass, with the cosines and sines that layers are given."""
    model = apply(tiny_model("llama", max_position_embeddings=LENGTH), METHODS[name])
    rope = Rope(dim=8, theta=1e4, length=LENGTH)
    for length in (LENGTH, 100):
        positions = torch.arange(length)[None]
        with torch.no_grad():
            cos, sin = rotary_modules(model)["model.rotary_emb"](torch.zeros(1, length, 1), positions)
        wanted = METHODS[name].frequencies(rope, length)
        angles = np.arange(length)[:, None] * wanted.inv_freq
        np.testing.assert_allclose(
            cos[0, :, :4], np.cos(angles) * wanted.attention_factor, atol=1e-3 if name == "clex" else 2e-5
        )
        np.testing.assert_allclose(
            sin[0, :, 4:], np.sin(angles) * wanted.attention_factor, atol=1e-3 if name == "clex" else 2e-5
        )


def test_editing_a_config_after_loading_changes_nothing_and_is_refused(ids):
    model = tiny_model("llama")
    before = logits(model, ids)
    model.config.rope_parameters = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    torch.testing.assert_close(logits(model, ids), before, rtol=0, atol=0)
    with pytest.raises(UserError) as refused:
        scorer_of(model)
    assert str(refused.value) == (
        "the rotary embedding of LlamaForCausalLM does not match its config: the config was edited after the model "
        "was made, which transformers ignores. Use longlens.rope.apply(model, method), or load the model with "
        "longlens.rope.load_model(name, config=extend_config(config, method))"
    )


EDITS = {
    "theta": lambda config: config.rope_parameters.update(rope_theta=5e5),
    "eabf": lambda config: config.rope_parameters.update(
        rope_type="longlens_eabf", original_max_position_embeddings=64, first_layer=0
    ),
    "clex": lambda config: config.rope_parameters.update(
        rope_type="longlens_clex", original_max_position_embeddings=64, factor=4.0, width=1, step=0.1
    ),
    "yarn": lambda config: config.rope_parameters.update(
        rope_type="yarn", factor=4.0, original_max_position_embeddings=64
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_no_edit_is_missed(edit):
    model = tiny_model("llama")
    check_model(model)
    EDITS[edit](model.config)
    with pytest.raises(UserError, match="the config was edited after the model was made"):
        check_model(model)


@pytest.mark.parametrize("name", ["eabf", "clex", "dynamic-ntk"])
def test_an_extended_model_whose_config_is_put_back_is_refused(name):
    model = apply(tiny_model("llama", max_position_embeddings=LENGTH), METHODS[name])
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 1e4}
    with pytest.raises(UserError, match="the config was edited after the model was made"):
        check_model(model)


def test_a_reference_length_of_dynamic_ntk_that_was_edited_is_refused():
    model = apply(tiny_model("llama", max_position_embeddings=LENGTH), DynamicNTK(factor=4))
    model.config.max_position_embeddings = 4 * LENGTH
    with pytest.raises(UserError, match="the config was edited after the model was made"):
        check_model(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_frequencies_that_were_rounded_with_a_whole_model_are_no_edit(dtype):
    check_model(tiny_model("llama", dtype))
    check_model(tiny_model("gemma3", dtype))


def test_a_model_that_is_refused_is_left_as_it_was(ids):
    model = tiny_model("llama", max_position_embeddings=LENGTH)
    before, config = logits(model, ids), copy.deepcopy(model.config.to_dict())
    with pytest.raises(UserError):
        apply(model, PositionInterpolation(factor=1.3))
    assert model.config.to_dict() == config
    torch.testing.assert_close(logits(model, ids), before, rtol=0, atol=0)


class Stubborn(transformers.models.llama.modeling_llama.LlamaRotaryEmbedding):
    """A rotary embedding that does what it does whatever its config says."""

    def __init__(self, config):
        config = copy.deepcopy(config)
        config.rope_parameters = {"rope_type": "default", "rope_theta": 1e4}
        super().__init__(config)


def test_code_that_ignores_its_config_is_refused():
    model = tiny_model("llama", max_position_embeddings=LENGTH)
    model.model.rotary_emb = Stubborn(model.config)
    with pytest.raises(UserError, match="LlamaForCausalLM does not compute its rotary embedding as pi defines it"):
        apply(model, PositionInterpolation(factor=4))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "mistral-sliding"])
@pytest.mark.parametrize("name", METHODS)
def test_scores_are_those_of_a_fresh_model_for_each_window_in_any_order(name, family, monkeypatch):
    """Padded batches, windows of several lengths, chunks, and what a pass leaves behind."""
    if (name, family) == ("clex", "gemma3"):
        pytest.skip("CLEX replaces one rotary embedding")
    monkeypatch.setattr("longlens.scoring.transformers.CHUNK_TOKENS", 32)
    monkeypatch.setattr("longlens.scoring.transformers.ATTENTION_BYTES", 32 * 4 * 4 * 200)
    plain = tiny_model(family, max_position_embeddings=LENGTH)
    config = extend_config(plain.config, METHODS[name])
    documents = [longlens.Document(id=str(i), text=text) for i, text in enumerate(TEXTS)]
    options = {"context": 70, "stride": 20, "extrapolate": True, "max_length": 400}
    scorer = scorer_of(apply(tiny_model(family, max_position_embeddings=LENGTH), METHODS[name]))
    for order in (documents, documents[::-1]):
        scores = longlens.score(order, scorer, **options)
        for row in scores:
            fresh = _FreshEachTime(config, plain)
            long, short = naive_scores(fresh, row.token_ids.tolist(), context=70, stride=20, bos=256)
            np.testing.assert_allclose(row.long_logprobs, long, atol=1e-4)
            np.testing.assert_allclose(row.short_logprobs, short, atol=1e-4)


class _FreshEachTime:
    """Makes a new model for every pass."""

    def __init__(self, config, weights):
        self.config, self.weights = config, weights

    def modules(self):
        return []

    def __call__(self, **inputs):
        return made_of(self.config, self.weights)(**inputs)


def test_dynamic_ntk_does_keep_its_state_in_transformers(ids):
    """What the scorer guards against: the same 70 tokens, before and after 100."""
    model = apply(tiny_model("llama", max_position_embeddings=LENGTH), DynamicNTK(factor=4))
    first = logits(model, ids[:, :70])
    logits(model, ids)
    assert (logits(model, ids[:, :70]) - first).abs().max() > 1e-3


def test_the_base_of_an_eabf_model_is_raised_in_memory(ids):
    model = apply(tiny_model("llama", max_position_embeddings=LENGTH), EABF(factor=4))
    before = logits(model, ids)
    apply(model, NTK(theta=2e6, factor=2))
    check_model(model)
    assert model.config._attn_implementation == "longlens_eabf_sdpa"
    assert (logits(model, ids) - before).abs().max() > 1e-4
    assert model.config.max_position_embeddings == 8 * LENGTH


@pytest.mark.parametrize("name", METHODS)
def test_what_is_saved_is_refused_or_computed_by_transformers_alone(name, ids, tmp_path):
    """Never something else: also for a model that was extended in memory, as training saves it."""
    model = apply(tiny_model("llama", max_position_embeddings=LENGTH), METHODS[name])
    model.save_pretrained(tmp_path)
    if name in KNOWN:
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
        torch.testing.assert_close(logits(again, ids), logits(model, ids))
    else:
        with pytest.raises(
            UserError, match=r"does not support this model's rotary embedding: load it with longlens\.rope\.load_model"
        ):
            transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    ours = longlens.rope.load_model(str(tmp_path))
    check_model(ours)
    torch.testing.assert_close(logits(ours, ids), logits(model, ids))


def test_eabf_is_fed_in_chunks_as_its_base_is():
    for family, window in (("mistral-sliding", 24), ("gemma2", 0), ("llama", None)):
        base = tiny_model(
            family, max_position_embeddings=LENGTH, attn_implementation="eager" if window == 0 else "sdpa"
        )
        assert scorer_of(apply(base, EABF(factor=4)))._window == window
