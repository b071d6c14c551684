"""compute_longppl beside the published package itself, ``longppl`` 0.3.0; `make test-real` installs it.

``pytest -m real -s tests/real/test_compat_real.py`` prints the table of docs/compat.md.
"""

from __future__ import annotations

import gc
from importlib import import_module, metadata
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import longlens
from longlens.compat import compute_longppl
from longlens.keytokens.alignment import tokens_in_runs
from longlens.models import load_tokenizer
from longlens.tokenization import TextEncoder
from tests.reference.published import decoded_spans, published_longppl, published_runs
from tests.tiny import byte_tokenizer, tiny_model

pytestmark = pytest.mark.real

MODELS = ("smollm2", "gemma3-270m")
CONTEXT, STRIDE, ALPHA, BETA = 512, 256, 2.0, -2.0
ENDS = {"full": 1536, "partial": 1636}  # tokens of the evaluator, BOS included: 4 windows, and 4 and 100 tokens
NEAR = 1e-3  # nats; the error of a log-probability in fp32
TEXT = "It was the best of times, it was the worst of times; " * 3


@pytest.fixture(scope="module")
def package() -> Any:
    """The published package; that it is missing is a failure and no reason to skip."""
    assert metadata.version("longppl") == "0.3.0"
    return import_module("longppl.longppl")


@pytest.fixture(scope="module")
def loaded():
    """Model and tokenizer by name, fp32, each loaded once."""
    torch.manual_seed(0)
    yield {name: (longlens.load_scorer(name, dtype="float32").model, load_tokenizer(name)) for name in MODELS}
    gc.collect()


@pytest.fixture(scope="module")
def rows(loaded):
    """The table, printed when all of it is there."""
    table: list[str] = []
    yield table
    heads = ("evaluator", "model", "end", "evaluator's tokens", "key: package", "longlens", "key for only one")
    heads += ("model's key tokens: package", "longlens", "LongPPL: package", "longlens", "PPL: package", "longlens")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("longppl", "torch", "transformers"))
    print("\n\n| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads), *table, sep="\n")
    print(f"\nK = {CONTEXT}, d = {STRIDE}, fp32, {torch.get_num_threads()} threads; {versions}")


def prose(tokenizer: Any, num_tokens: int) -> str:
    """So many tokens of Python's own reference, BOS included, in which a topic comes again after more than K tokens."""
    text = "\n\n".join(topics[name] for name in ("context-managers", "with", "context-managers", "while", "assert"))
    encoder = TextEncoder(tokenizer)
    wanted = num_tokens - len(encoder.own_prefix)
    end = int(encoder.encode(text).char_spans[wanted - 1, 1])
    assert len(encoder.encode(text[:end]).token_ids) == wanted
    return text[:end]


def read(path: Any) -> Any:
    runs = [run.strip("[]").split(", ") for run in path.read_text().split(";")]
    return np.array(runs, dtype=np.int64).reshape(-1, 2)


PAIRS = [(evaluator, evaluated, "full") for evaluator in MODELS for evaluated in MODELS]


@pytest.mark.parametrize(
    ("evaluator", "evaluated", "end"),
    [*PAIRS, ("smollm2", "smollm2", "partial"), ("gemma3-270m", "smollm2", "partial")],
)
def test_equals_the_package(evaluator, evaluated, end, loaded, package, rows, tmp_path, monkeypatch):
    evaluator_model, evaluator_tokenizer = loaded[evaluator]
    model, tokenizer = loaded[evaluated]
    text = prose(evaluator_tokenizer, ENDS[end])
    arguments = (text, model, evaluator_model, tokenizer, evaluator_tokenizer)
    settings = {"trunc_len": CONTEXT, "sliding_window": STRIDE, "alpha": ALPHA, "beta": BETA}
    theirs = package.compute_longppl(*arguments, tmp_path / "theirs", **settings)
    gc.collect()
    kept: list[Any] = []

    def keep(*arguments: Any, **options: Any) -> Any:
        kept.append(longlens.score(*arguments, **options))
        return kept[-1]

    monkeypatch.setattr("longlens.compat.score", keep)
    ours = compute_longppl(*arguments, tmp_path / "ours", **settings)

    row = kept[0][0]  # of the evaluator
    near_alpha, near_beta = np.abs(row.lsd - ALPHA) <= NEAR, np.abs(row.lcl - BETA) <= NEAR
    key = {name: tokens_in_runs(row.char_spans, read(tmp_path / name)) for name in ("theirs", "ours")}
    assert np.array_equal(np.flatnonzero(key["ours"]), np.flatnonzero((row.lsd > ALPHA) & (row.lcl > BETA)))
    otherwise = key["ours"] != key["theirs"]
    rows.append(
        f"| {evaluator} | {evaluated} | {end} | {len(row.token_ids)} | {key['theirs'].sum()} | {key['ours'].sum()} "
        f"| {otherwise.sum()} | {theirs['n_key_token']} | {ours['n_key_token']} "
        f"| {theirs['longppl']:.5f} | {ours['longppl']:.5f} | {theirs['ppl']:.5f} | {ours['ppl']:.5f} |"
    )
    assert not (otherwise & ~near_alpha & ~near_beta).any()
    assert key["ours"].sum() >= 10
    assert ours["ppl"] == pytest.approx(float(theirs["ppl"]), rel=1e-3)
    assert ours["n_token"] == theirs["n_token"]
    assert abs(ours["n_key_token"] - theirs["n_key_token"]) <= 2 * otherwise.sum()
    if not otherwise.any():
        assert ours["longppl"] == pytest.approx(float(theirs["longppl"]), rel=1e-3)


def test_files_are_exchanged_with_the_package(loaded, package, tmp_path):
    model, tokenizer = loaded["smollm2"]
    text, settings = prose(tokenizer, 400), {"trunc_len": 64, "sliding_window": 50, "alpha": 0.5}
    theirs = package.compute_longppl(text, model, model, tokenizer, tokenizer, tmp_path / "theirs", **settings)
    ours = compute_longppl(text, model, model, tokenizer, tokenizer, tmp_path / "ours", **settings)
    again = package.compute_longppl(text, model, None, tokenizer, save_path=tmp_path / "ours")
    back = compute_longppl(text, model, None, tokenizer, save_path=tmp_path / "theirs")
    assert again["n_key_token"] == ours["n_key_token"] > 0
    assert back["n_key_token"] == theirs["n_key_token"]
    assert again["longppl"] == pytest.approx(ours["longppl"], rel=1e-3)
    assert back["longppl"] == pytest.approx(float(theirs["longppl"]), rel=1e-3)


# --- the oracle of tests/test_compat.py is the package, quirks included ---------------------------------------------


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen2", "gpt2", "llama-dynamic-ntk"])
@pytest.mark.parametrize(("length", "alpha"), [(43, -0.5), (150, 0.02)])
def test_the_oracle_is_the_package(family, adds_bos, length, alpha, package):
    text, tokenizer, evaluator_tokenizer = TEXT[:length], byte_tokenizer(), byte_tokenizer(adds_bos=adds_bos)
    model, settings = tiny_model("qwen2"), {"trunc_len": 32, "sliding_window": 12, "alpha": alpha, "beta": -9.0}
    theirs = package.compute_longppl(text, model, tiny_model(family), tokenizer, evaluator_tokenizer, **settings)
    oracle = published_longppl(
        text, model, tokenizer, published_runs(text, tiny_model(family), evaluator_tokenizer, **settings)
    )
    assert theirs["n_key_token"] == len(oracle.key_losses)
    assert theirs["longppl"] == pytest.approx(oracle.longppl, rel=1e-5)
    assert theirs["ppl"] == pytest.approx(oracle.ppl, rel=1e-5)


def test_a_window_of_one_token_ends_the_package(package):
    model, tokenizer = tiny_model("llama"), byte_tokenizer()
    with pytest.raises(TypeError, match="0-d tensor"):
        package.compute_longppl(TEXT[:44], model, model, tokenizer, tokenizer, trunc_len=32, sliding_window=12)


def test_the_package_takes_the_last_loss_for_token_0_and_evaluates_files(package, tmp_path):
    path, model, tokenizer = tmp_path / "s.txt", tiny_model("llama"), byte_tokenizer()
    path.write_text("[0, max(1, 3)]")
    theirs = package.compute_longppl(TEXT, model, None, tokenizer, save_path=path)
    oracle = published_longppl(TEXT, model, tokenizer, [(0, 3)])
    assert oracle.key_losses == [-1, 0, 1]
    assert theirs["longppl"] == pytest.approx(oracle.longppl, rel=1e-5)
    with pytest.raises(longlens.UserError, match="is not a run"):
        compute_longppl(TEXT, model, None, tokenizer, save_path=path)


def test_the_package_takes_no_names(package):
    with pytest.raises((TypeError, AttributeError)):
        package.compute_longppl(TEXT, "smollm2", "smollm2")
    with pytest.raises(AttributeError, match="device"):
        package.compute_longppl(TEXT, "smollm2", "smollm2", byte_tokenizer(), byte_tokenizer())
    assert not hasattr(import_module("longppl"), "compute_longppl"), "as its README imports it"


def test_the_package_and_tokenizers_without_offsets(package):
    model, tokenizer = tiny_model("llama"), transformers.ByT5Tokenizer(extra_ids=0)
    with pytest.raises(KeyError, match="offset_mapping"):
        package.compute_longppl(TEXT, model, model, tokenizer, tokenizer)
    text = "— 🙂 — the key"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    theirs = package.compute_offsets(text, tokenizer, torch.tensor([ids]))
    assert [tuple(span) for span in theirs] == decoded_spans(tokenizer, ids)
    assert theirs[-1][1] < len(text)


def test_the_package_merges_no_overlapping_runs_and_keeps_empty_ones(package):
    runs = torch.tensor([[0, 3], [3, 4], [3, 4], [4, 7], [9, 9]])
    assert package.merge_intervals(runs).tolist() == [[0, 4], [3, 7], [9, 9]]
    assert package.cal_overlap([(0, 1), (2, 5), (5, 5), (7, 7), (9, 9)], [[0, 4], [3, 7], [9, 9]]) == [-1, 1, 2, 3]


def test_the_embedded_smollm2_is_split_as_its_tokenizer_json_says() -> None:
    """SmolLM2's pre-tokenizer is Digits(individual_digits=True), then ByteLevel."""
    assert load_tokenizer("smollm2").tokenize("a   1") == ["a", "ĠĠĠ", "1"]
