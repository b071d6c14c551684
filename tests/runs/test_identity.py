"""Two models are one where weights, configuration, tokenizer and dtype are: held against folders that people have."""

import json
import shutil

import numpy as np
import pytest
import torch

import longlens
from longlens import Document, UserError, load_scorer, open_scores, perplexity, score
from longlens.data.weigh import weigh_folder
from longlens.keytokens import read_keys, select_key_tokens, write_keys
from longlens.metrics.context_reach import reach
from longlens.models import identify
from longlens.models.generate import load_generator
from longlens.rope import extend
from longlens.runs import folder
from longlens.runs.identity import ModelIdentity, functional_config, model_differences
from longlens.scoring.scores import identity_of, same_model
from longlens.scoring.transformers import TransformersScorer
from longlens.settings.options import Loading
from tests.rope.conftest import LENGTH, METHODS
from tests.tiny import byte_tokenizer, tiny_model

TEXTS = ["It was a dark and stormy night; the rain fell in torrents, but not everywhere at once. " * 3] * 2
DOCUMENTS = [Document(id=f"d{i}", text=text[i:]) for i, text in enumerate(TEXTS)]
DTYPES = ("float32", "bfloat16")
FAMILIES = {"llama": "llama", "gemma2": "gemma2", "mistral": "mistral-sliding"}
EDITS = {
    "theta": ("llama", lambda c: c["rope_parameters"].update(rope_theta=20000.0)),
    "eps": ("llama", lambda c: c.update(rms_norm_eps=1e-5)),
    "window": ("mistral", lambda c: c.update(sliding_window=16)),
    "no-window": ("mistral", lambda c: c.update(sliding_window=None)),
    "attention-cap": ("gemma2", lambda c: c.update(attn_logit_softcapping=3.0)),
    "final-cap": ("gemma2", lambda c: c.update(final_logit_softcapping=3.0)),
    "layers": ("gemma2", lambda c: c.update(layer_types=["full_attention"] * 3)),
}
BASES = {**dict.fromkeys(METHODS, "llama"), **{name: base for name, (base, _) in EDITS.items()}}
SAME_WEIGHTS = [name for name in BASES if name != "clex"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Models by name: three bases, and folders with the weights of one of them."""
    root = tmp_path_factory.mktemp("models")
    for name, family in FAMILIES.items():
        tiny_model(family, max_position_embeddings=LENGTH).save_pretrained(root / name)
        byte_tokenizer().save_pretrained(root / name)
    for name, method in METHODS.items():
        extend(str(root / "llama"), method, root / name)
    for name, (base, edit) in EDITS.items():
        shutil.copytree(root / base, root / name)
        edit_config(root / name, edit)
    return root


def edit_config(folder, edit):
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def scorers(folders):
    return {name: load_scorer(str(folders / name), dtype="float32") for name in [*FAMILIES, *BASES]}


def scored(scorer, out=None, contexts=(16,)):
    strides = [context // 2 for context in contexts]
    return score(DOCUMENTS, scorer, context=list(contexts), stride=strides, max_length=60, out=out, extrapolate=True)


@pytest.mark.parametrize("name", BASES)
def test_a_run_folder_takes_no_second_model_with_the_same_weights(name, scorers, tmp_path):
    base, other = scorers[BASES[name]], scorers[name]
    if name in SAME_WEIGHTS:
        assert base.info.weights_sha256 == other.info.weights_sha256
    score(DOCUMENTS[:1], base, context=16, stride=8, max_length=60, out=tmp_path / "run", extrapolate=True)
    before = open_scores(tmp_path / "run")[0].long_logprobs
    with pytest.raises(
        UserError, match=r"contains a different run: (its model is .*, but .* was given|.* is .* there and .* here)"
    ):
        scored(other, tmp_path / "run")
    np.testing.assert_array_equal(open_scores(tmp_path / "run")[0].long_logprobs, before)
    assert len(scored(base, tmp_path / "run")) == 2


def test_every_folder_has_an_identity_of_its_own_that_is_known_before_it_is_loaded(folders, scorers):
    loading = Loading(dtype="float32")
    for name, scorer in scorers.items():
        assert identify(str(folders / name), loading, tokenizer=byte_tokenizer()) == scorer.info.identity
    hashes = {name: scorer.info.identity.sha256 for name, scorer in scorers.items()}
    assert len(set(hashes.values())) == len(hashes)
    there, here = (scorers[name].info.identity.to_json() for name in ("pi", "yarn"))
    assert "config.rope_parameters.rope_type is 'linear' there and 'yarn' here" in model_differences(there, here)


def test_names_paths_versions_dtype_and_the_attention_implementation_do_not_count(folders, scorers, tmp_path):
    noise = {
        "_name_or_path": "elsewhere",
        "transformers_version": "5.99.0",
        "architectures": ["LlamaForCausalLM"],
        "use_cache": False,
        "torch_dtype": "bfloat16",
        "eos_token_id": 7,
        "an_option_of_later": False,
    }
    shutil.copytree(folders / "llama", tmp_path / "renamed")
    edit_config(tmp_path / "renamed", lambda config: config.update(noise))
    wanted = scorers["llama"].info
    for options in ({"dtype": "float32"}, {"dtype": "bfloat16", "attention": "eager"}):
        found = load_scorer(str(tmp_path / "renamed"), **options).info
        assert found.identity.sha256 == wanted.identity.sha256
        assert found.identity.is_same_model(wanted.identity)
        assert (found.identity == wanted.identity) == (options["dtype"] == "float32")
    bfloat16 = load_scorer(str(folders / "llama"), dtype="bfloat16").info.identity
    assert model_differences(wanted.identity.to_json(), bfloat16.to_json()) == [
        "dtype is 'float32' there and 'bfloat16' here"
    ]


def test_a_configuration_edited_in_memory_counts(scorers):
    """Until the scorer is built: what is edited later is not what it checked."""
    model = tiny_model("mistral-sliding", max_position_embeddings=LENGTH)
    first = TransformersScorer(model, byte_tokenizer())
    model.config.sliding_window = 8
    second = TransformersScorer(model, byte_tokenizer())
    assert (first.info.config["sliding_window"], second.info.config["sliding_window"]) == (24, 8)
    assert not first.info.identity.is_same_model(second.info.identity)


def test_a_tokenizer_counts_with_its_bos(folders, scorers, tmp_path):
    shutil.copytree(folders / "llama", tmp_path / "other")
    path = tmp_path / "other" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token": "</s>"}))
    scored(scorers["llama"], tmp_path / "run")
    with pytest.raises(UserError, match="bos_token_id is 256 there and 257 here"):
        scored(load_scorer(str(tmp_path / "other"), dtype="float32"), tmp_path / "run")


def test_adapters_count_with_their_settings_and_their_base(folders, tmp_path):
    peft = pytest.importorskip("peft")
    shutil.copytree(folders / "llama", tmp_path / "base")
    names = {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    torch.manual_seed(0)
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    peft.get_peft_model(base, peft.LoraConfig(r=2, lora_alpha=2, **names)).save_pretrained(tmp_path / "adapter")
    byte_tokenizer().save_pretrained(tmp_path / "adapter")
    shutil.copytree(tmp_path / "adapter", tmp_path / "stronger")
    path = tmp_path / "stronger" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 9}))

    found = {name: load_scorer(str(tmp_path / name)).info for name in ("base", "adapter", "stronger")}
    assert found["adapter"].weights_sha256 == found["stronger"].weights_sha256 != found["base"].weights_sha256
    assert len({info.identity.sha256 for info in found.values()}) == 3
    for name, info in found.items():
        assert identify(str(tmp_path / name), Loading(dtype=info.dtype), tokenizer=byte_tokenizer()) == info.identity
    other = tiny_model("llama", max_position_embeddings=LENGTH)
    with torch.no_grad():
        other.lm_head.weight.mul_(0.5)
    other.save_pretrained(tmp_path / "base")
    again = load_scorer(str(tmp_path / "adapter")).info
    assert again.weights_sha256 != found["adapter"].weights_sha256


@pytest.mark.parametrize("name", ["pi", "yarn", "eabf", "theta"])
def test_a_model_with_the_weights_of_its_evaluator_is_another_model(name, scorers, tmp_path):
    contexts = (8, 16, 24)
    evaluator, model = (scored(scorers[which], contexts=contexts) for which in ("llama", name))
    assert not same_model(model, evaluator)
    rule = {"alpha": -9.0, "beta": -99.0}
    write_keys(tmp_path / "keys.jsonl", select_key_tokens(evaluator, context=8, stride=4, **rule))
    keys = read_keys(tmp_path / "keys.jsonl")
    for given in ({"evaluator_scores": evaluator, **rule}, {"keys": keys}):
        for scores, is_own in ((model, False), (evaluator, True)):
            notes = perplexity(scores, **given).warnings
            assert any("is its own evaluator" in note for note in notes) == is_own
            found = reach(scores, **given, resamples=10)
            assert (found.keys is None) == is_own
            assert any("is its own evaluator" in note for note in found.warnings) == is_own


def test_an_older_run_is_read_with_a_warning_and_goes_on(scorers, tmp_path):
    scored(scorers["llama"], tmp_path / "run")
    new = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert new["schema_version"] == 2
    assert ModelIdentity.read(new["model"]) == scorers["llama"].info.identity
    old = new | {"schema_version": 1, "model": {k: v for k, v in new["model"].items() if k not in ("config", "cache")}}
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(old))
    with pytest.warns(longlens.errors.LonglensWarning, match="without the model's configuration") as warned:
        there = scored(scorers["yarn"], tmp_path / "run")
    assert all("another RoPE method" in str(warning.message) for warning in warned)
    assert same_model(there, scored(scorers["llama"]))
    with (
        pytest.raises(UserError, match="contains a different run: its model is"),
        pytest.warns(longlens.errors.LonglensWarning),
    ):
        scored(scorers["gemma2"], tmp_path / "run")


def test_other_versions_are_a_warning(scorers, tmp_path, monkeypatch):
    scored(scorers["llama"], tmp_path / "run")
    monkeypatch.setattr(folder, "versions", lambda: {"torch": "9.9"})
    with pytest.warns(longlens.errors.LonglensWarning, match=r"was started with other versions \(torch \S+ -> 9\.9\)"):
        scored(scorers["llama"], tmp_path / "run")


def test_a_server_is_what_it_says_of_itself():
    one, same, other = (ModelIdentity(config={"model": name}) for name in ("m", "m", "n"))
    assert one.is_same_model(same)
    assert not one.is_same_model(other)
    assert not ModelIdentity().is_same_model(ModelIdentity())
    assert not ModelIdentity(weights_sha256="a", cache="window:64").is_same_model(ModelIdentity(weights_sha256="a"))


def test_a_configuration_is_plain_json_whatever_is_in_it():
    config = functional_config(tiny_model("llama").config) | {"limits": None}
    assert json.loads(json.dumps(config, allow_nan=False)) == config
    assert functional_config({"a": float("inf"), "b": 2.0, "c": {2, 1}, "d": torch.float16, "e": (1, 0.5)}) == {
        "a": "inf",
        "b": 2,
        "c": ["1", "2"],
        "d": "torch.float16",
        "e": [1, 0.5],
    }
    assert identity_of(scored(TransformersScorer(tiny_model("llama"), byte_tokenizer()))).config


def test_data_is_of_one_model(folders, scorers, tmp_path):
    documents = [Document(id=d.id, text=d.text[:60]) for d in DOCUMENTS]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"id": d.id, "text": d.text}) + "\n" for d in documents))
    of = {
        name: score(documents, scorers[name], context=16, stride=8, extrapolate=True, out=tmp_path / name)
        for name in ("pi", "yarn")
    }
    weigh_folder([str(texts)], of["pi"], tmp_path / "weighed")
    with pytest.raises(UserError, match=r"contains a different dataset: scored_with is '.*' there and '.*' here"):
        weigh_folder([str(texts)], of["yarn"], tmp_path / "weighed")
    hashes = {load_generator(str(folders / name), dtype=dtype).identity_sha256 for name in of for dtype in DTYPES}
    assert len(hashes) == 4
