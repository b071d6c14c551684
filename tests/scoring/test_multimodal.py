"""Multimodal checkpoints: their text part scores as the whole model does when it is given text alone."""

import warnings

import numpy as np
import pytest
import transformers
from safetensors.torch import load_file

import longlens
from longlens import models
from longlens.models import identify
from longlens.rope import PositionInterpolation, load_model
from longlens.rope.folder import extend
from longlens.runs.identity import functional_config
from tests.families import family_model
from tests.reference.scoring import naive_logprobs, naive_scores
from tests.tiny import byte_tokenizer

TEXT = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer. "
DOCUMENTS = [longlens.Document(id="long", text=TEXT * 2), longlens.Document(id="short", text=TEXT[:40])]
# Nested weights, RoPE in text_config, positions of three axes, tied heads, another name of the text's configuration.
WHOLE = [
    "emu3",
    "gemma3",
    "gemma4",
    "idefics3",
    "janus",
    "llava",
    "mistral3",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "smolvlm",
]
# transformers loads their text part alone.
TEXT_ALONE = {"llama4": "language_model", "qwen3_5": None, "qwen3_5_moe": None, "qwen4_exp": None, "mllama": None}


def save(kind, folder):
    model = family_model(kind)
    assert not isinstance(model, Exception), model
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return model


def check(scorer, folder, expected):
    """Scores of unequal lengths in both windows, and who the model is before and after its weights are read."""
    for row in longlens.score(DOCUMENTS, scorer, context=64, stride=32):
        long, short = naive_scores(expected, row.token_ids.tolist(), context=64, stride=32, bos=256)
        np.testing.assert_allclose(row.long_logprobs, long, atol=1e-4)
        np.testing.assert_allclose(row.short_logprobs, short, atol=1e-4)
    assert scorer.info.max_length == models.load_max_length(str(folder)) == 4096
    assert identify(str(folder)) == scorer.info.identity


@pytest.mark.parametrize("kind", WHOLE)
def test_a_folder_scores_as_the_whole_model_fed_with_text(kind, tmp_path):
    model = save(kind, tmp_path)
    scorer = longlens.load_scorer(str(tmp_path))
    assert scorer.info.architecture == type(model).__name__
    check(scorer, tmp_path, model)


@pytest.mark.parametrize("kind", TEXT_ALONE)
def test_a_text_part_that_is_loaded_alone_is_the_same_model(kind, tmp_path):
    whole = save(kind, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none of weights of its eyes that are not used
        scorer = longlens.load_scorer(str(tmp_path))
    assert scorer.info.architecture == type(scorer.model).__name__ != type(whole).__name__
    check(scorer, tmp_path, whole.language_model if kind == "llama4" else whole)


def test_prefix_attention_is_refused(tmp_path):
    save("paligemma", tmp_path)
    with pytest.raises(longlens.UserError, match="PaliGemmaForConditionalGeneration is not causal"):
        longlens.load_scorer(str(tmp_path))


def test_an_encoder_and_a_decoder_are_refused_before_they_are_loaded(tmp_path):
    save("t5gemma2", tmp_path)
    with pytest.raises(
        longlens.UserError, match="t5gemma2 is an encoder and a decoder: longlens supports only decoders"
    ):
        longlens.load_scorer(str(tmp_path))


def test_a_speech_model_is_not_scored_with_its_decoder_alone(tmp_path):
    """WhisperForCausalLM exists, and takes the decoder's weights from the whole model's checkpoint."""
    config = transformers.WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=300, bos_token_id=256, eos_token_id=257, pad_token_id=0,
        decoder_start_token_id=256, begin_suppress_tokens=None,
    )  # fmt: skip
    transformers.WhisperForConditionalGeneration(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    for load in (longlens.load_scorer, models.UnloadedModel):  # the latter before weights are read
        with pytest.raises(longlens.UserError, match="whisper is an encoder and a decoder"):
            load(str(tmp_path))


@pytest.mark.parametrize("kind", ["qwen2_vl", "gemma3"])
def test_the_text_part_is_extended_and_the_rest_stays(kind, tmp_path):
    whole = save(kind, tmp_path / "model")
    extend(str(tmp_path / "model"), PositionInterpolation(factor=2), tmp_path / "long")
    before, after = (transformers.AutoConfig.from_pretrained(tmp_path / name) for name in ("model", "long"))
    assert after.get_text_config().max_position_embeddings == 2 * before.get_text_config().max_position_embeddings
    eyes = [functional_config(config.vision_config) for config in (before, after)]
    assert eyes[0] == eyes[1]
    assert (
        load_file(tmp_path / "long" / "model.safetensors").keys()
        == load_file(tmp_path / "model" / "model.safetensors").keys()
    )
    scorer = longlens.load_scorer(str(tmp_path / "long"))
    assert scorer.info.max_length == 8192
    extended = type(whole).from_pretrained(tmp_path / "long")
    ids = [256, *TEXT.encode()[:50]]
    assert not np.allclose(naive_logprobs(extended, ids), naive_logprobs(whole, ids), atol=1e-3)
    loaded = load_model(str(tmp_path / "long")).eval()
    np.testing.assert_allclose(naive_logprobs(loaded, ids), naive_logprobs(extended, ids), atol=1e-5)
