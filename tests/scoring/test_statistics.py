"""Statistics of distributions: against whole float64 logits, stored as columns, and resumed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from longlens import Document, UserError, open_scores, score
from longlens.evaluation import Reference, score_documents
from longlens.logprobs import DISTRIBUTION_BYTES
from longlens.models.caches import CacheUse
from longlens.models.policies import load_cache
from longlens.scoring.scorer import Request
from longlens.scoring.statistics import DIVERGENCE, ENTROPY, RANK, Statistic, describe, load_statistics
from longlens.scoring.transformers import TransformersScorer
from longlens.settings.options import Engine, Loading
from tests.tiny import byte_tokenizer, tiny_model

IDS = torch.randint(1, 250, (60,), generator=torch.Generator().manual_seed(3)).tolist()
OTHER_IDS = IDS[:25]
ALL = [ENTROPY, RANK, DIVERGENCE]


def distributions(model):
    """Log-probabilities of each next token, float64, from the model's own logits."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([IDS])).logits[0, :-1].double().log_softmax(-1)


def columns(model, reference, statistics=ALL, cache=None, ids=IDS):
    other = None if reference is None else TransformersScorer(reference, byte_tokenizer())
    scorer = TransformersScorer(model, byte_tokenizer(), statistics=statistics, reference=other, cache=cache)
    found = {r.key: r.columns for r in scorer.logprobs([Request("a", ids, 1), Request("b", OTHER_IDS, 5)])}
    return found["a"]


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite"])
def test_measures_against_whole_logits(family, monkeypatch):
    monkeypatch.setattr("longlens.logprobs.DISTRIBUTION_BYTES", 7 * 4 * 260)  # blocks of a few rows
    a, b = tiny_model(family), tiny_model(family, initializer_range=0.3)
    for p in b.parameters():
        p.data.mul_(1.1)
    found = columns(b, a)
    p, q = distributions(a), distributions(b)
    middle = ((p.exp() + q.exp()) / 2).log()

    def kl(x, y):
        return (x.exp() * (x - y)).sum(-1)

    targets = torch.tensor(IDS[1:])[:, None]
    wanted = {
        "kl": kl(p, q),
        "reverse_kl": kl(q, p),
        "js": (kl(p, middle) + kl(q, middle)) / 2,
        "entropy": -(q.exp() * q).sum(-1),
        "reference_logprob": p.gather(-1, targets)[:, 0],
    }
    assert wanted["kl"].mean() > 0.01
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, atol=1e-5, rtol=1e-4)
    assert np.array_equal(found["top1_agreement"], (p.argmax(-1) == q.argmax(-1)).float())
    rank = (q > q.gather(-1, targets)).sum(-1).numpy()
    assert np.abs(found["rank"] - rank).max() <= 1  # capped logits are nearly equal, and tie in fp32


def test_a_model_against_itself():
    model = tiny_model("llama")
    found = columns(model, model)
    assert max(np.abs(found[name]).max() for name in ("kl", "reverse_kl", "js")) < 1e-6
    assert found["top1_agreement"].all()
    cache = CacheUse(policy=load_cache("window:4"), chunk=8)
    assert columns(model, model, cache=cache)["kl"].max() > 1e-3


def test_equal_rows_diverge_by_nothing_and_no_rows_by_less():
    """JS of a model with itself was up to 4e-8 on either side of 0, and KL of near ones down to -3e-7."""
    draws = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 300, generator=draws).mul(3).log_softmax(-1)
    near = (rows + 1e-4 * torch.randn(200, 300, generator=draws)).log_softmax(-1)
    targets = torch.zeros(200, dtype=torch.int64)
    same, found, turned = (DIVERGENCE.compute(*both, targets) for both in ((rows, rows), (near, rows), (rows, near)))
    for name in ("kl", "reverse_kl", "js"):
        assert not same[name].any()
        assert (found[name] >= 0).all()
    assert torch.equal(found["kl"], turned["reverse_kl"])
    assert torch.equal(found["js"], turned["js"])


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda rows: 1 / 0, "the statistic 'mine' fails: division by zero: fix its package"),
        (lambda rows: None, "gives None; expected real tensors x"),
        (lambda rows: [1], r"gives \[1\]; expected real tensors x"),
        (lambda rows: {"x": rows[:, 0].numpy()}, "gives {'x': 'ndarray'}; expected real tensors"),
        (lambda rows: {"x": rows[:, 0] + 1j}, "gives {'x': torch.complex64}; expected real tensors"),
        (lambda rows: {"x": rows[:, :1]}, "expected real tensors x of shape"),
        (lambda rows: {"x": rows[:, 0] * torch.nan}, "gives NaN for 'x': fix its package"),
    ],
)
def test_what_a_package_may_not_give(made, said):
    statistic = Statistic(name="mine", columns=("x",), compute=lambda rows, reference, targets: made(rows))
    rows = torch.zeros(3, 5)
    with pytest.raises(UserError, match=said):
        describe([rows], torch.zeros(3, dtype=torch.int64), [statistic], None)


def test_a_reference_that_overflows_is_an_error():
    """Its tokens were left out of all means without a word."""
    rows = torch.zeros(3, 5)
    with pytest.raises(UserError, match="'divergence' gives NaN for 'kl': use `dtype=float32` for both models"):
        describe([rows], torch.zeros(3, dtype=torch.int64), [DIVERGENCE], [rows * torch.nan])


def test_impossible_tokens_do_not_make_nan():
    rows = torch.tensor([[0.0, -torch.inf, -torch.inf], [-0.6931472, -0.6931472, -torch.inf]])
    found = DIVERGENCE.compute(rows, rows, torch.tensor([0, 1]))
    assert found["kl"].tolist() == [0, 0]
    assert found["js"].abs().max() < 1e-7
    turned = DIVERGENCE.compute(rows, rows.flip(0), torch.tensor([0, 1]))
    assert turned["kl"].tolist() == [torch.inf, pytest.approx(np.log(2))]
    assert ENTROPY.compute(rows, rows, torch.tensor([0, 1]))["entropy"].tolist() == [0, pytest.approx(np.log(2))]


def test_vocabularies_of_padded_heads_are_compared_where_both_have_tokens():
    a = tiny_model("llama")
    b = tiny_model("llama", vocab_size=300)
    for name, p in a.named_parameters():
        q = dict(b.named_parameters())[name]
        q.data[: len(p)] = p.data if p.dim() else q.data
    assert columns(b, a)["kl"].max() < 1e-5


class Rechunked:
    """A reference whose logits come in blocks of other sizes, as those of llama.cpp."""

    def __init__(self, scorer, sizes):
        self.info, self._scorer, self._sizes = scorer.info, scorer, sizes

    def logits(self, requests):
        rows = torch.cat(list(self._scorer.logits(requests)))
        yield from rows.split([*self._sizes, len(rows) - sum(self._sizes)])


@pytest.mark.parametrize("sizes", [[], [1], [5, 7, 2], [3] * 9])
def test_blocks_of_other_sizes_give_the_same_columns(sizes, monkeypatch):
    monkeypatch.setattr("longlens.logprobs.DISTRIBUTION_BYTES", 7 * 4 * 260)
    a, b = tiny_model("llama"), tiny_model("llama", initializer_range=0.3)
    reference = TransformersScorer(a, byte_tokenizer())
    other = Rechunked(reference, sizes)
    mine, theirs = (
        next(TransformersScorer(b, byte_tokenizer(), statistics=ALL, reference=one).logprobs([Request("a", IDS, 1)]))
        for one in (reference, other)
    )
    for name, values in mine.columns.items():
        assert np.array_equal(values, theirs.columns[name])


@pytest.mark.parametrize("kind", ["fp8", "h2o:8", "prefill+tail", "dynamic-ntk"])
def test_what_the_reference_gives_does_not_depend_on_the_batch_of_the_model(kind):
    """The model pads a batch of two texts, by its own rule; the reference has to be run by its own."""
    family = "llama-dynamic-ntk" if kind == "dynamic-ntk" else "llama"
    protocol = "prefill+tail" if kind == "prefill+tail" else "stream"
    name = "window:8" if kind == "prefill+tail" else kind
    use = None if kind == "dynamic-ntk" else CacheUse(policy=load_cache(name), chunk=8, protocol=protocol)
    reference = TransformersScorer(tiny_model(family), byte_tokenizer(), cache=use)
    requests = [Request("a", IDS, 1), Request("b", OTHER_IDS, 1), Request("c", IDS[::-1][:25], 1)]

    def columns_of(some):
        scorer = TransformersScorer(tiny_model("llama"), byte_tokenizer(), statistics=ALL, reference=reference)
        return {r.key: r.columns for r in scorer.logprobs(some)}

    together = columns_of(requests)
    for request in requests:
        wanted = next(reference.logprobs([request])).logprobs
        np.testing.assert_allclose(together[request.key]["reference_logprob"], wanted, atol=1e-4)


def test_memory_is_bounded_by_the_block():
    peak = {"numel": 0}
    size = 4096

    def note(logprobs, reference, targets):
        peak["numel"] = max(peak["numel"], logprobs.numel() * 4)
        return {"x": logprobs[:, 0]}

    model = tiny_model("llama", vocab_size=size)
    wide = Statistic(name="x", columns=("x",), compute=note)
    scorer = TransformersScorer(model, byte_tokenizer(), statistics=[wide])
    list(scorer.logprobs([Request("a", [1] * 1500, 1)]))
    assert size * 4 * 200 < peak["numel"] <= DISTRIBUTION_BYTES


MEMORY = """
import re, sys
from pathlib import Path
import torch
from longlens.models.caches import CacheUse
from longlens.models.policies import load_cache
from longlens.scoring.scorer import Request
from longlens.scoring.statistics import DIVERGENCE, ENTROPY, RANK
from longlens.scoring.transformers import TransformersScorer
from tests.tiny import byte_tokenizer, tiny_model

vocabulary, tokens, pairwise = map(int, sys.argv[1:])
sizes = {"vocab_size": vocabulary, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16384}
make = lambda: tiny_model("llama", **sizes)
reference = TransformersScorer(make(), byte_tokenizer()) if pairwise else None
statistics = [DIVERGENCE] if pairwise else [ENTROPY, RANK]
use = CacheUse(policy=load_cache("window:512"))
scorer = TransformersScorer(make(), byte_tokenizer(), cache=use, statistics=statistics, reference=reference)
run = lambda n: list(scorer.logprobs([Request("a", torch.randint(1, 250, (n,)).tolist(), 1)]))
megabytes = lambda name: int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
run(4)
before = megabytes("VmRSS")
run(tokens)
print(megabytes("VmHWM") - before)
"""


@pytest.mark.parametrize(
    ("vocabulary", "tokens"),
    [
        (49_152, 2048),
        (262_144, 512),
        pytest.param(49_152, 8192, marks=pytest.mark.real),
        pytest.param(262_144, 8192, marks=pytest.mark.real),
    ],
)
def test_peak_memory_above_the_models(vocabulary, tokens):
    """Below 300 MB, whatever the vocabulary; the whole logits would take 0.4 to 8.6 GB."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak is read from /proc")
    root = Path(__file__).parents[2]
    for pairwise in (1,) if tokens < 8192 else (1, 0):
        command = [sys.executable, "-c", MEMORY, str(vocabulary), str(tokens), str(pairwise)]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
        assert float(done.stdout.splitlines()[-1]) < 300


DOCUMENTS = [Document(id="a", text="abc " * 40), Document(id="b", text="Xyz " * 20)]


def test_columns_are_stored_and_resumed(models, tmp_path):
    name = str(models / "llama")
    reference = Reference(model=name)
    engine = Engine(cache="window:16", cache_chunk=8)

    def run(documents, **changes):
        given = {"engine": engine, "reference": reference, "statistics": ["divergence", "entropy"]} | changes
        return score_documents(documents, name, tmp_path / "run", context=None, **given)

    run(DOCUMENTS[:1])
    stored = run(DOCUMENTS)
    assert stored.ids == ["a", "b"]
    memory = columns_in_memory(name)
    for row in open_scores(tmp_path / "run"):
        assert set(row.columns) == {*DIVERGENCE.columns, "entropy", "cache_bytes"}
        for column, values in row.columns.items():
            assert len(values) == len(row.token_ids)
            np.testing.assert_array_equal(np.isnan(values), np.isnan(row.long_logprobs))
            np.testing.assert_allclose(values, memory[row.id].columns[column], atol=1e-6)
        full = np.nan_to_num(row.columns["reference_logprob"])
        assert np.abs(full - np.nan_to_num(row.long_logprobs)).max() > 1e-3
    other = Reference(model=str(models / "llama"), engine=Engine(cache="window:4"))
    for changes, said in (
        ({"reference": other}, "reference is"),
        ({"statistics": ["entropy"], "reference": None}, "statistics is"),
        ({"reference": Reference(model=name, loading=Loading(dtype="bfloat16"))}, "reference_dtype is"),
    ):
        with pytest.raises(UserError, match=said):
            run(DOCUMENTS, **changes)


def columns_in_memory(name):
    from longlens import load_scorer

    reference = load_scorer(name)
    cached = load_scorer(name, cache="window:16", cache_chunk=8)
    scorer = TransformersScorer(
        cached.model,
        cached.tokenizer,
        cache=CacheUse(policy=load_cache("window:16"), chunk=8),
        statistics=[DIVERGENCE, ENTROPY],
        reference=reference,
    )
    return {row.id: row for row in score(DOCUMENTS, scorer, context=None)}


def test_what_cannot_be(models, tmp_path):
    with pytest.raises(UserError, match="needs two models: use longlens diverge"):
        load_statistics(["divergence"])
    with pytest.raises(UserError, match="expected of entropy, rank, divergence"):
        load_statistics(["entrpy"])
    with pytest.raises(UserError, match="different tokenizers"):
        TransformersScorer(
            tiny_model("llama"),
            byte_tokenizer(),
            statistics=[DIVERGENCE],
            reference=TransformersScorer(tiny_model("llama"), byte_tokenizer(bos=False)),
        )
    wrong = Statistic(name="wrong", columns=("x",), compute=lambda p, q, t: {"x": p})
    with pytest.raises(UserError, match="the statistic 'wrong' gives"):
        columns(tiny_model("llama"), None, [wrong])


def test_rows_without_columns_are_as_before():
    (row,) = score(DOCUMENTS[:1], TransformersScorer(tiny_model("llama"), byte_tokenizer()), context=None)
    assert row.columns == {}
