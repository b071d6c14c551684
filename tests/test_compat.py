"""compute_longppl equals the published package where that is right; where it is not, both are shown."""

import inspect
import math
import subprocess
import sys

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

import longlens.compat
import longlens.models
from longlens.compat import compute_longppl
from longlens.errors import UserError
from tests.reference.published import decoded_spans, losses, published_longppl, published_runs
from tests.reference.scoring import naive_published_scores
from tests.tiny import FAMILIES, byte_tokenizer, tiny_model

TEXT = "It was the best of times, it was the worst of times; " * 3
SETTINGS = {"trunc_len": 32, "sliding_window": 12, "alpha": 0.02, "beta": -9.0}
EVERYTHING = {"trunc_len": 1, "sliding_window": 500, "alpha": -1e9, "beta": -1e9}


def merging_tokenizer(*merges, trim_offsets=False):
    """Bytes and these merges of them, such as ("t", "h"); `trim_offsets` as GPT-2: no span has its blanks."""
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(merge) for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if trim_offsets:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def both(text, model, evaluator, tokenizer, evaluator_tokenizer, path, **settings):
    """Our result and what the package would say, with its runs in `path` as we wrote them."""
    ours = compute_longppl(text, model, evaluator, tokenizer, evaluator_tokenizer, path, **settings)
    runs = published_runs(text, evaluator, evaluator_tokenizer, **settings)
    return ours, published_longppl(text, model, tokenizer, runs)


def written(runs):
    return ";".join(f"[{start}, {end}]" for start, end in runs)


def assert_equal(ours, theirs):
    assert ours["n_token"] == theirs.n_token
    assert ours["n_key_token"] == len(theirs.key_losses)
    assert ours["ppl"] == pytest.approx(theirs.ppl, rel=1e-4)
    assert ours["longppl"] == pytest.approx(theirs.longppl, rel=1e-4)


def mean_ppl(values):
    return math.exp(sum(values) / len(values))


# the same
def test_signature_is_the_published_one():
    found = [(name, parameter.default) for name, parameter in inspect.signature(compute_longppl).parameters.items()]
    required = [(name, inspect.Parameter.empty) for name in ("text", "model", "evaluator_model")]
    optional = [(name, None) for name in ("tokenizer", "evaluator_tokenizer", "save_path")]
    numbers = [("trunc_len", 4096), ("sliding_window", 1024), ("alpha", 2), ("beta", -2)]
    assert found == required + optional + numbers


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"llama-dynamic-ntk"}))
def test_every_family_equals_the_published_package(family, adds_bos, tmp_path):
    path = tmp_path / "slices.txt"
    tokenizer, evaluator_tokenizer = merging_tokenizer(("t", "h"), ("th", "e")), byte_tokenizer(adds_bos=adds_bos)
    model = tiny_model("qwen2")
    ours, theirs = both(TEXT, model, tiny_model(family), tokenizer, evaluator_tokenizer, path, **SETTINGS)
    assert path.read_text() == written(theirs.runs)
    assert_equal(ours, theirs)
    assert list(ours) == ["longppl", "n_key_token", "ppl", "n_token"]


@pytest.mark.parametrize("length", [34, 40, 43, 44, 46, 68, 150])
def test_every_end_of_the_last_window_equals_the_published_package(length, tmp_path):
    model, tokenizer, settings = tiny_model("llama"), byte_tokenizer(), SETTINGS | {"alpha": -1.0}
    ours, theirs = both(TEXT[: length - 1], model, model, tokenizer, tokenizer, tmp_path / "s", **settings)
    assert_equal(ours, theirs)


def test_text_is_not_cut_at_the_length_of_the_models():
    model, tokenizer = tiny_model("llama", max_position_embeddings=48), byte_tokenizer()
    assert_equal(*both(TEXT, model, model, tokenizer, tokenizer, None, **SETTINGS))


@pytest.mark.parametrize("text", ["x" * 20, TEXT])
def test_without_key_tokens_two_values_are_none_and_nothing_is_printed(text, capsys):
    model, tokenizer = tiny_model("llama"), byte_tokenizer()
    result = compute_longppl(text, model, model, tokenizer, tokenizer, **SETTINGS | {"alpha": 1e3})
    ppl = mean_ppl(losses(model, tokenizer(text, add_special_tokens=False)["input_ids"]))
    assert result == {"longppl": None, "n_key_token": None, "ppl": pytest.approx(ppl), "n_token": len(text)}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("text", ["", "x"])
def test_text_without_a_loss_has_no_perplexity(text):
    model, tokenizer = tiny_model("llama"), byte_tokenizer()
    result = compute_longppl(text, model, model, tokenizer, tokenizer)
    assert result == {"longppl": None, "n_key_token": None, "ppl": None, "n_token": len(text)}


def test_key_tokens_are_read_back_without_an_evaluator(tmp_path):
    path, model, tokenizer = tmp_path / "slices.txt", tiny_model("llama"), byte_tokenizer()
    path.write_text("what stood here is replaced")
    first = compute_longppl(TEXT, model, tiny_model("gemma3"), tokenizer, tokenizer, path, **SETTINGS)
    assert compute_longppl(TEXT, model, None, tokenizer, save_path=str(path)) == first
    assert first["longppl"] is not None
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_replaced_is_left_alone(tmp_path, monkeypatch):
    path, model, tokenizer = tmp_path / "slices.txt", tiny_model("llama"), byte_tokenizer()
    path.write_text("[3, 7]")

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UserError, match=r"cannot write .*slices.txt: no space left"):
        compute_longppl(TEXT, model, model, tokenizer, tokenizer, path, **SETTINGS)
    assert path.read_text() == "[3, 7]"
    assert list(tmp_path.iterdir()) == [path]


def test_import_brings_no_torch():
    code = "import sys, longlens.compat; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
    loaded = subprocess.check_output([sys.executable, "-c", f"import torch; {code}"], text=True)
    assert "torch" in loaded, "the check can fail"


# where the package is wrong
def test_a_key_run_at_token_0_does_not_take_the_last_loss(tmp_path):
    path, model, tokenizer = tmp_path / "slices.txt", tiny_model("llama"), byte_tokenizer()
    path.write_text("[0, 3]")
    theirs = published_longppl(TEXT, model, tokenizer, [(0, 3)])
    values = losses(model, tokenizer(TEXT, add_special_tokens=False)["input_ids"])
    assert theirs.key_losses == [-1, 0, 1]
    assert theirs.longppl == pytest.approx(mean_ppl([values[-1], values[0], values[1]]))
    ours = compute_longppl(TEXT, model, None, tokenizer, save_path=path)
    assert ours["n_key_token"] == 2
    assert ours["longppl"] == pytest.approx(mean_ppl(values[:2]), rel=1e-4)
    path.write_text("[0, 1]")
    alone = compute_longppl(TEXT, model, None, tokenizer, save_path=path)
    assert (alone["longppl"], alone["n_key_token"]) == (None, None)


@pytest.mark.parametrize(("length", "stride"), [(33, 12), (45, 12), (40, 1)])
def test_a_window_of_one_token_is_scored(length, stride):
    model, tokenizer, text = tiny_model("llama"), byte_tokenizer(), TEXT[: length - 1]
    settings = {"trunc_len": 32, "sliding_window": stride, "alpha": -1e9, "beta": -1e9}
    with pytest.raises(TypeError, match="0-d tensor"):
        published_runs(text, model, tokenizer, **settings)
    ours = compute_longppl(text, model, model, tokenizer, tokenizer, **settings)
    key_losses = losses(model, tokenizer(text, add_special_tokens=False)["input_ids"])[30:]  # of y[32:], y[0] is BOS
    assert ours["n_key_token"] == len(key_losses) == length - 32
    assert ours["longppl"] == pytest.approx(mean_ppl(key_losses), rel=1e-4)


def test_a_token_without_characters_is_not_key(tmp_path):
    text, path, model = "x  abc  d", tmp_path / "slices.txt", tiny_model("llama")
    tokenizer = merging_tokenizer(trim_offsets=True)
    spans = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    assert spans[2:8] == [(3, 3), (3, 4), (4, 5), (5, 6), (7, 7), (8, 8)]
    path.write_text("[3, 6]")
    theirs = published_longppl(text, model, tokenizer, [(3, 6)])
    assert theirs.key_losses == [1, 2, 3, 4], "the blank before abc is among them"
    ours = compute_longppl(text, model, None, tokenizer, save_path=path)
    assert ours["n_key_token"] == 3
    assert ours["longppl"] == pytest.approx(mean_ppl(losses(model, tokenizer(text)["input_ids"])[2:5]), rel=1e-4)


def test_a_key_token_without_characters_makes_no_run(tmp_path):
    text, model, tokenizer = "x  abc  d", tiny_model("llama"), merging_tokenizer(trim_offsets=True)
    ours, theirs = both(text, model, model, tokenizer, tokenizer, tmp_path / "s", **EVERYTHING)
    assert (2, 2) in theirs.runs
    assert (tmp_path / "s").read_text() == "[3, 6];[8, 9]"
    assert ours["n_key_token"] == len("abc") + len("d")


def test_runs_that_overlap_in_a_split_character_merge(tmp_path):
    text, model, evaluator_tokenizer = "--aéb--", tiny_model("llama"), byte_tokenizer()
    tokenizer = merging_tokenizer(("a", "Ã"), ("aÃ", "©"), ("aÃ©", "b"))
    assert tokenizer(text, return_offsets_mapping=True)["offset_mapping"][2] == (2, 5)
    ours, theirs = both(text, model, model, tokenizer, evaluator_tokenizer, tmp_path / "s", **EVERYTHING)
    assert theirs.runs == [(0, 4), (3, 7)]
    assert 1 not in theirs.key_losses, "the token aéb is in neither run"
    assert (tmp_path / "s").read_text() == "[0, 7]"
    assert ours["n_key_token"] == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[0, max(1, 3)]", r"'\[0, max\(1, 3\)\]' is not a run such as \[3, 7\]"),
        ("__import__('os').abort()", "is not a run such as"),
        ("[3, 7]\n[8, 9]", "is not a run such as"),
        ("[7, 3]", "reversed"),
        ("[3, 9999]", "ends after the document"),
        ("\udcff", "is not UTF-8 text"),
    ],
)
def test_a_file_is_never_evaluated_and_has_to_fit(content, message, tmp_path):
    path = tmp_path / "slices.txt"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message):
        compute_longppl(TEXT, tiny_model("llama"), None, byte_tokenizer(), save_path=path)


def test_names_are_loaded_and_equal_names_once(tmp_path, monkeypatch):
    folder, model, tokenizer = tmp_path / "model", tiny_model("llama"), byte_tokenizer()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    objects = compute_longppl(TEXT, model, model, tokenizer, tokenizer, **SETTINGS)
    loaded, load = [], longlens.models.load_transformers
    monkeypatch.setattr("longlens.models.load_transformers", lambda name: loaded.append(name) or load(name))
    assert compute_longppl(TEXT, str(folder), folder, **SETTINGS) == objects
    assert loaded == [str(folder)] * 2
    assert compute_longppl(TEXT, str(folder), str(folder), **SETTINGS) == objects
    assert len(loaded) == 3
    assert compute_longppl(TEXT, model, str(folder), tokenizer, **SETTINGS) == objects


def test_tokenizers_without_offsets_get_exact_spans(tmp_path):
    text, path, model = "— 🙂 — the key, and the rest" * 2, tmp_path / "slices.txt", tiny_model("llama")
    tokenizer = transformers.ByT5Tokenizer(extra_ids=0)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    begin = text.index("key")
    path.write_text(f"[{begin}, {begin + 3}]")
    of_key = range(len(text[:begin].encode()) - 1, len(text[: begin + 3].encode()) - 1)
    theirs = published_longppl(text, model, tokenizer, [(begin, begin + 3)])
    assert decoded_spans(tokenizer, ids)[-1][1] < len(text), "a character of three bytes is lost"
    assert theirs.key_losses == [i + 3 for i in of_key]
    values = losses(model, ids)
    ours = compute_longppl(text, model, None, tokenizer, save_path=path)
    assert ours["n_key_token"] == 3
    assert ours["longppl"] == pytest.approx(mean_ppl([values[i] for i in of_key]), rel=1e-4)
    evaluated = compute_longppl(text, model, model, tokenizer, tokenizer, path, **EVERYTHING)
    assert path.read_text() == f"[0, {len(text)}]"
    assert evaluated["n_key_token"] == len(ids) - 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_further_from_the_truth_than_the_published_package(dtype):
    truth, model, tokenizer = tiny_model("llama"), tiny_model("llama", dtype), byte_tokenizer()
    truth.load_state_dict(model.state_dict())
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    exact = mean_ppl(losses(truth, ids))
    ours = compute_longppl(TEXT, model, model, tokenizer, tokenizer, **SETTINGS | {"alpha": 1e3})["ppl"]
    theirs = published_longppl(TEXT, model, tokenizer, []).ppl
    assert abs(ours - exact) <= abs(theirs - exact) + 1e-3 * exact


def test_dynamic_ntk_starts_afresh_with_every_window(tmp_path):
    tokenizer, settings = byte_tokenizer(adds_bos=False), SETTINGS | {"trunc_len": 48, "alpha": 0.5}
    fresh, ids = tiny_model("llama-dynamic-ntk"), tokenizer(TEXT)["input_ids"]
    long, short = naive_published_scores(fresh, ids, context=48, stride=12, prefix=[])
    key = [i for i in range(len(ids)) if long[i] - short[i] > 0.5 and long[i] > -9.0]
    runs = published_runs(TEXT, tiny_model("llama-dynamic-ntk"), tokenizer, **settings)
    theirs = {i for start, end in runs for i in range(start, end)}
    model = tiny_model("llama")
    ours = compute_longppl(TEXT, model, fresh, tokenizer, tokenizer, tmp_path / "s", **settings)
    assert ours["n_key_token"] == len(key)
    assert theirs != set(key), "windows with the frequencies of the whole text"


# what is refused
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokenizer": None}, "model is a LlamaForCausalLM without a tokenizer: pass its tokenizer as tokenizer"),
        ({"evaluator_tokenizer": None}, "evaluator_model is a LlamaForCausalLM without a tokenizer"),
        ({"model": "smollm2"}, "tokenizer was passed together with model='smollm2', which is loaded with its own"),
        ({"evaluator_model": "smollm2"}, "evaluator_tokenizer was passed together with evaluator_model='smollm2'"),
        ({"evaluator_model": None}, "neither an `evaluator_model` nor a `save_path`"),
        ({"evaluator_model": None, "save_path": "nowhere/s.txt"}, r"s.txt cannot be read \(No such file"),
        ({"save_path": "nowhere/s.txt"}, "nowhere is not a folder: create it, then write s.txt there"),
        ({"trunc_len": 0}, "`context` is 0; the short context K must be at least 1 token"),
        ({"sliding_window": 0}, "`stride` is 0"),
        ({"alpha": math.nan}, "`alpha` is nan"),
        ({"text": "a\ud800b"}, "lone surrogate"),
    ],
)
def test_what_is_refused(arguments, message):
    model, tokenizer = tiny_model("llama"), byte_tokenizer()
    usual = {"text": TEXT, "model": model, "evaluator_model": model, "tokenizer": tokenizer}
    with pytest.raises(UserError, match=message):
        compute_longppl(**usual | {"evaluator_tokenizer": tokenizer} | arguments)
