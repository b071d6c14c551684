"""llama.cpp itself (`make test-llama-cpp`): SmolLM2 in its own quantized form, and with float weights."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from longlens import UserError, load_scorer, score
from longlens.models import load_tokenizer, resolve
from longlens.scoring.scorer import Request
from longlens.testing import check_scorer
from tests.engines.smollm2 import CONTEXT, STRIDE, TOKENS, documents, save_gguf
from tests.tiny import byte_tokenizer

pytestmark = pytest.mark.real

SETTINGS = {"context": CONTEXT, "stride": STRIDE, "max_length": TOKENS}


@pytest.fixture(scope="module")
def expected():
    """The numbers of transformers, which de-quantizes the file."""
    return score(documents(), load_scorer("smollm2", dtype="float32"), **SETTINGS)


@pytest.fixture(scope="module")
def scorer():
    return load_scorer("smollm2", engine="llama-cpp")


def differences(found, expected) -> np.ndarray:
    """Of all tokens, under the long and the short context."""
    apart = []
    for one, other in zip(found, expected, strict=True):
        assert one.id == other.id
        assert one.token_ids.tolist() == other.token_ids.tolist()
        for name in ("long_logprobs", "short_logprobs"):
            mine, theirs = getattr(one, name), getattr(other, name)
            assert (np.isnan(mine) == np.isnan(theirs)).all()
            apart.append(np.abs(mine - theirs)[~np.isnan(mine)])
    return np.concatenate(apart)


@pytest.mark.parametrize(
    ("half", "dtype", "mean", "most"),
    [(False, "float32", 1e-4, 2e-3), (False, "auto", 2e-3, 0.05), (True, "auto", 5e-3, 0.1)],
)
def test_float_weights_give_the_numbers_of_transformers(expected, tmp_path, half, dtype, mean, most):
    path = save_gguf(tmp_path / "smollm2.gguf", half=half)
    scorer = load_scorer(str(path), engine="llama-cpp", dtype=dtype)
    apart = differences(score(documents(), scorer, **SETTINGS), expected)
    assert apart.mean() < mean
    assert apart.max() < most
    assert scorer.info.dtype == ("f16" if half else "f32") + (", float32 attention" if dtype == "float32" else "")


def test_the_quantized_form_differs_by_its_kernels_alone(scorer, expected, tmp_path):
    found = score(documents(), scorer, out=tmp_path / "run", **SETTINGS)
    apart = differences(found, expected)
    # An off-by-one is wrong by nats; 8-bit activations by hundredths.
    assert 0.005 < apart.mean() < 0.1
    assert scorer.info.dtype == "q4_1"
    assert scorer.info.engine.startswith("llama-cpp-python ")
    with pytest.raises(UserError, match="engine is 'llama-cpp-python' there and 'transformers' here"):
        score(documents(), load_scorer("smollm2", dtype="float32"), out=tmp_path / "run", **SETTINGS)


def test_it_keeps_the_contract(scorer):
    check_scorer(scorer)


def test_batches_of_any_size_and_growing_contexts_change_nothing(scorer):
    ids = scorer.encode(documents()[0]).token_ids[:1500].tolist()
    requests = [Request(n, ids[:n], start) for n, start in ((30, 1), (1500, 1400), (700, 350), (31, 30), (2, 1))]
    one = {result.key: result.logprobs for result in scorer.logprobs(requests)}
    other = load_scorer("smollm2", engine="llama-cpp", batch_tokens=48)
    for result in other.logprobs(reversed(requests)):
        assert np.abs(result.logprobs - one[result.key]).mean() < 0.1
        assert len(result.logprobs) == len(one[result.key])
    again = {result.key: result.logprobs for result in scorer.logprobs(requests)}
    for key, logprobs in one.items():
        np.testing.assert_array_equal(again[key], logprobs)
    del other
    gc.collect()  # frees its context before its model


def test_what_cannot_be_right_is_refused_in_one_line(tmp_path: Path):
    source = resolve("smollm2")
    file = Path(source.path) / str(source.gguf)
    with pytest.raises(UserError, match="tokenize a text differently from token 0"):
        load_scorer("smollm2", engine="llama-cpp", tokenizer=byte_tokenizer())
    with pytest.raises(UserError, match="`device` is 'cuda'; expected auto or cpu"):
        load_scorer("smollm2", engine="llama-cpp", device="cuda")
    with pytest.raises(UserError, match="supports 100"):
        list(load_scorer("smollm2", engine="llama-cpp", max_model_len=100).logprobs([Request(0, [5] * 101, 1)]))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match="cannot load the model"):
        load_scorer(str(broken), engine="llama-cpp", tokenizer=load_tokenizer("smollm2"))


def test_distributions_are_compared_with_those_of_transformers(tmp_path):
    """KL is that of the kernels: rounding with float weights and attention, more with 8-bit activations."""
    from longlens.evaluation import Reference, score_documents
    from longlens.settings.options import Engine, Loading, Truncation

    path = save_gguf(tmp_path / "f32.gguf")

    def run(name, model, engine, loading, reference):
        return score_documents(
            documents(),
            model,
            tmp_path / name,
            context=None,
            truncation=Truncation(max_length=TOKENS),
            engine=Engine(engine=engine),
            loading=loading,
            statistics=["divergence", "entropy"],
            reference=reference,
        )

    exact = Loading(dtype="float32")
    whole = Reference(model="smollm2", loading=exact)
    plain = {
        row.id: row
        for row in score(documents(), load_scorer("smollm2", dtype="float32"), context=None, max_length=TOKENS)
    }
    close = run("f32", str(path), "llama-cpp", exact, whole)
    for row in close:
        columns = row.columns
        assert np.nanmax(columns["kl"]) < 1e-5
        assert np.nanmean(columns["top1_agreement"]) > 0.99
        np.testing.assert_allclose(columns["reference_logprob"], plain[row.id].long_logprobs, atol=1e-4)
    quantized = run("q4", "smollm2", "llama-cpp", Loading(), whole)
    mean = np.nanmean(np.concatenate([row.columns["kl"] for row in quantized]))
    assert 1e-4 < mean < 0.05
    # llama.cpp as the reference, in blocks of other sizes.
    turned = run(
        "turned", "smollm2", None, exact, Reference(model=str(path), loading=exact, engine=Engine(engine="llama-cpp"))
    )
    kl = {row.id: row.columns["kl"] for row in close}
    for row in turned:
        np.testing.assert_allclose(row.columns["reverse_kl"], kl[row.id], atol=2e-6)
