"""Folders with extended context: what they hold, who loads them, and that nothing is left where they cannot be made."""

import errno
import json
import shutil

import pytest
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file

from longlens import UserError, load_scorer
from longlens.rope import NTK, YaRN, extend, extend_config, load_model
from tests.rope.conftest import LENGTH, METHODS, logits
from tests.tiny import byte_tokenizer, tiny_model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model of 64 tokens, in two files, with what training left beside it."""
    folder = tmp_path_factory.mktemp("base") / "model"
    tiny_model("llama", torch.bfloat16, max_position_embeddings=LENGTH).save_pretrained(folder, max_shard_size="30KB")
    byte_tokenizer().save_pretrained(folder)
    (folder / "pytorch_model.bin").write_text("a pickle")
    (folder / "optimizer.pt").write_text("a pickle")
    (folder / "trainer_state.json").write_text("{}")
    return folder


# That the others compute what the method defines, in transformers too, is checked in tests/test_testing.py.
@pytest.mark.parametrize("name", ["eabf", "clex"])
def test_a_folder_that_longlens_alone_loads(name, base, ids, tmp_path):
    config = transformers.AutoConfig.from_pretrained(base)
    before = config.to_dict()
    extended = extend(str(base), METHODS[name], tmp_path / "out")
    assert extended.out == tmp_path / "out"
    wanted = load_model(str(base), config=extend_config(config, METHODS[name]), dtype=torch.float32)
    again = load_model(str(tmp_path / "out"), dtype=torch.float32)
    torch.testing.assert_close(logits(again, ids), logits(wanted, ids))
    assert (logits(again, ids) - logits(load_model(str(base), dtype=torch.float32), ids)).abs().max() > 1e-3
    with pytest.raises(
        UserError, match=r"does not support this model's rotary embedding: load it with longlens\.rope\.load_model"
    ):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "load it with longlens.rope.load_model(FOLDER)" in content.pop("longlens_requires")
    # Folders of earlier versions do not say so, and load.
    (tmp_path / "out" / "config.json").write_text(json.dumps(content))
    torch.testing.assert_close(logits(load_model(str(tmp_path / "out"), dtype=torch.float32), ids), logits(wanted, ids))
    assert transformers.AutoConfig.from_pretrained(base).to_dict() == before


@pytest.mark.parametrize("name", ["yarn", "clex"])
def test_what_a_folder_holds(name, base, tmp_path):
    extend(str(base), METHODS[name], tmp_path / "out")
    left = {"pytorch_model.bin", "optimizer.pt", "trainer_state.json"}
    added = {"longlens_rope.safetensors"} if name == "clex" else set()
    assert {file.name for file in (tmp_path / "out").iterdir()} == {f.name for f in base.iterdir()} - left | added
    for file in base.glob("model*"):
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (base, tmp_path / "out"))
    changed = {"rope_parameters", "max_position_embeddings"} | ({"longlens_requires"} if name == "clex" else set())
    assert {key for key in old | new if old.get(key) != new.get(key)} == changed
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    if name == "clex":
        states = load_file(tmp_path / "out" / "longlens_rope.safetensors")
        assert {key: value.shape for key, value in states.items()} == {
            "model.rotary_emb.up": (4, 8),
            "model.rotary_emb.down": (8, 4),
        }


@pytest.mark.parametrize("name", METHODS)
def test_a_folder_is_scored_with(name, base, tmp_path):
    extend(str(base), METHODS[name], tmp_path / "out")
    scorer = load_scorer(str(tmp_path / "out"), dtype="float32")
    assert scorer.info.max_length == (LENGTH if name == "dynamic-ntk" else 4 * LENGTH)
    expected = "longlens_eabf_eager" if name == "eabf" else "eager"
    assert load_scorer(str(tmp_path / "out"), attention="eager").info.attention == expected


def test_the_hash_of_the_weights_has_those_of_clex(base, tmp_path):
    for name in ("pi", "yarn", "clex"):
        extend(str(base), METHODS[name], tmp_path / name)
    hashes = {name: load_scorer(str(tmp_path / name)).info.weights_sha256 for name in ("pi", "yarn", "clex")}
    assert hashes["pi"] == hashes["yarn"] != hashes["clex"]


def test_an_eabf_folder_takes_a_larger_base(base, ids, tmp_path):
    extend(str(base), METHODS["eabf"], tmp_path / "eabf")
    extend(str(tmp_path / "eabf"), NTK(theta=8e6, factor=2), tmp_path / "out")
    model = load_model(str(tmp_path / "out"))
    assert model.config.rope_parameters["rope_type"] == "longlens_eabf"
    assert model.config.max_position_embeddings == 8 * LENGTH
    assert (logits(model, ids) - logits(load_model(str(tmp_path / "eabf")), ids)).abs().max() > 1e-4


def test_a_gguf_file_becomes_a_folder(tmp_path, monkeypatch, ids):
    """Its weights are in memory then: the file is read by transformers, here by a stand-in."""
    pytest.importorskip("gguf")
    model, tokenizer = tiny_model("llama", max_position_embeddings=LENGTH), byte_tokenizer()
    (tmp_path / "x.gguf").touch()
    original = transformers.AutoConfig.from_pretrained
    monkeypatch.setattr(
        "transformers.AutoConfig.from_pretrained",
        lambda path, **options: model.config if "gguf_file" in options else original(path, **options),
    )
    monkeypatch.setattr("longlens.models.Checkpoint.load", lambda checkpoint: (model, {}))
    monkeypatch.setattr("longlens.models.load_tokenizer", lambda name: tokenizer)
    extend(str(tmp_path / "x.gguf"), YaRN(factor=4), tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    wanted = load_model(str(tmp_path / "out"))
    assert again.config.rope_parameters["rope_type"] == "yarn"
    torch.testing.assert_close(logits(again, ids), logits(wanted, ids))
    assert byte_tokenizer().encode("a") == transformers.AutoTokenizer.from_pretrained(tmp_path / "out").encode("a")


def test_no_folder_is_overwritten(base, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("out", "link"):
        with pytest.raises(UserError, match=f"{name} exists: use a new folder for the extended model"):
            extend(str(base), YaRN(factor=4), tmp_path / name)
    with pytest.raises(UserError, match="nosuch is not a folder: create it first"):
        extend(str(base), YaRN(factor=4), tmp_path / "nosuch" / "out")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link", "out"]


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        ("shutil.copyfile", FULL, "No space left on device: make room"),
        ("os.rename", FULL, "No space left on device: make room"),
        ("transformers.LlamaConfig.save_pretrained", FULL, "No space left on device: make room"),
        ("safetensors.torch.save_file", SafetensorError("I/O error: No space"), "I/O error: No space: make room, or"),
        ("shutil.copyfile", OSError(errno.EACCES, "Permission denied"), "Permission denied: check the folder and its"),
    ],
)
def test_a_full_disk_leaves_nothing(function, error, message, base, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(function, fail)
    with pytest.raises(UserError) as refused:
        extend(str(base), METHODS["clex"], tmp_path / "out")
    assert str(refused.value).startswith(f"cannot write {tmp_path / 'out'}: {message}")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(base, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.copyfile", interrupt)
    with pytest.raises(KeyboardInterrupt):
        extend(str(base), YaRN(factor=4), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nothing", "contains no model (no config.json): expected a directory written by save_pretrained"),
        ("pickled", "has no weights in safetensors, and longlens does not copy pickles: convert them first"),
        ("no-weights", "contains no weights"),
        ("custom", "custom code, which runs only with `trust_remote_code=True`"),
    ],
)
def test_models_that_are_no_base(model, message, models, tmp_path):
    with pytest.raises(UserError) as refused:
        extend(str(models / model), YaRN(factor=4), tmp_path / "out")
    assert message in str(refused.value)
    assert list(tmp_path.iterdir()) == []
    assert not (models / "RAN").exists()


def test_a_model_without_rope_leaves_nothing(tmp_path):
    tiny_model("gpt2").save_pretrained(tmp_path / "gpt2")
    with pytest.raises(UserError, match="gpt2 has no rotary position embedding"):
        extend(str(tmp_path / "gpt2"), YaRN(factor=4), tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["gpt2"]


def test_a_clex_folder_without_its_file_is_refused(base, tmp_path):
    extend(str(base), METHODS["clex"], tmp_path / "out")
    (tmp_path / "out" / "longlens_rope.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"lacks weights of CLEX, 'model\.rotary_emb\.up': use the directory that longlens"
    ):
        load_scorer(str(tmp_path / "out"))


def test_a_config_that_was_edited_by_hand_is_read_as_it_stands(base, ids, tmp_path):
    """Editing before loading is no mistake."""
    shutil.copytree(base, tmp_path / "out")
    config = json.loads((base / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    extend(str(base), METHODS["pi"], tmp_path / "pi")
    ours, theirs = (load_model(str(tmp_path / name)) for name in ("out", "pi"))
    torch.testing.assert_close(logits(ours, ids), logits(theirs, ids))
    load_scorer(str(tmp_path / "out"))
