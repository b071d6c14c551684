"""Our cache policies: what they keep against naive choices, and what a model makes of it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import AttentionInterface

from longlens import UserError, load_scorer
from longlens.models.caches import CacheUse, ObservingLayer, cache_bytes, observed
from longlens.models.policies import OWN, load_cache
from longlens.scoring.scorer import Request
from longlens.scoring.transformers import TransformersScorer
from longlens.testing import check_cache
from tests.reference import caches as naive
from tests.tiny import byte_tokenizer, tiny_model

IDS = torch.randint(1, 250, (90,), generator=torch.Generator().manual_seed(3)).tolist()
NAMES = ["window:20", "sink:4+16", "random:0.3", "knorm:20", "h2o:20", "snapkv:0.5", "tova:20", "fp8"]
SCALING = 0.3


def result(model, name=None, chunk=16, protocol="stream", ids=IDS):
    use = None if name is None else CacheUse(policy=load_cache(name), chunk=chunk, protocol=protocol)
    (found,) = TransformersScorer(model, byte_tokenizer(), cache=use).logprobs([Request("a", ids, 1)])
    return found


@pytest.mark.parametrize("name", NAMES)
def test_they_conform(name):
    check_cache(load_cache(name))


@pytest.mark.parametrize("size", ["12", "0.5"])
@pytest.mark.parametrize("kind", ["h2o", "snapkv", "tova", "knorm"])
def test_what_is_kept_after_each_chunk(kind, size):
    """Values hold the place of their key, so that the held ones say which were kept."""
    kv_heads, heads, dim, chunk = 2, 4, 8, 10
    model = tiny_model("llama")
    layer = load_cache(f"{kind}:{size}").new_cache(model).layers[0]
    draws = torch.Generator().manual_seed(1)
    held = [list(range(0)) for _ in range(kv_heads)]
    every = torch.zeros(kv_heads, 0, dim)
    sums = [[] for _ in range(kv_heads)]
    for step in range(5):
        keys = torch.randn(1, kv_heads, chunk, dim, generator=draws)
        queries = 2 * torch.randn(1, heads, chunk, dim, generator=draws)
        places = torch.arange(step * chunk, (step + 1) * chunk)
        layer.update(keys, places.float()[None, None, :, None].expand(1, kv_heads, chunk, dim))
        if isinstance(layer, ObservingLayer):
            layer.observe(queries, SCALING)
        every = torch.cat([every, keys[0]], 1)
        seen = (step + 1) * chunk
        there = [[*kept, *places.tolist()] for kept in held]
        now = torch.stack([every[head, there[head]] for head in range(kv_heads)])
        weights = naive.attention(queries[0], now, SCALING, len(there[0]) - chunk)
        limit = min(naive.budget(float(size), seen), len(there[0]))
        if kind == "h2o":
            kept, total = naive.h2o(weights, kv_heads, limit, sums)
            sums = [[total[head][i] for i in kept[head]] for head in range(kv_heads)]
        elif kind == "knorm":
            kept = naive.knorm(now, limit)
        else:
            kept = getattr(naive, kind)(weights, kv_heads, limit)
        held = [[there[head][i] for i in kept[head]] for head in range(kv_heads)]
        assert layer.values[0, :, :, 0].long().tolist() == held
        assert layer.get_seq_length() == seen
        assert torch.equal(layer.keys[0], torch.stack([every[head, held[head]] for head in range(kv_heads)]))


@pytest.mark.parametrize(
    "family", ["llama", "llama-yarn", "qwen3-tied", "gemma3", "mixtral", "gpt2", "cohere2-sliding"]
)
@pytest.mark.parametrize("name", ["knorm:1.0", "h2o:500", "snapkv:1.0", "tova:500", "random:1.0", "window:500"])
def test_a_policy_with_room_for_everything_is_a_single_pass(family, name):
    model = tiny_model(family)
    np.testing.assert_allclose(result(model, name).logprobs, result(model).logprobs, atol=1e-4)


@pytest.mark.parametrize("name", ["window:12", "sink:3+9"])
def test_prefill_and_tail(name):
    """The context is read whole; the tail sees what was kept of it, and itself."""
    model, tail = tiny_model("llama"), 30
    n = len(IDS)
    prefix = n - tail
    kept = torch.zeros(n, dtype=torch.bool)
    kept[prefix - (12 if name == "window:12" else 9) :] = True
    kept[: 3 if name == "sink:3+9" else 0] = True
    query, key = torch.arange(n)[:, None], torch.arange(n)[None]
    seen = (key <= query) & ((query < prefix) | kept)
    model.set_attn_implementation("eager")
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]
    logits = model(input_ids=torch.tensor([IDS]), attention_mask=mask).logits[0]
    wanted = logits[:-1].log_softmax(-1).gather(-1, torch.tensor(IDS[1:])[:, None])[:, 0].detach().numpy()
    model.set_attn_implementation("sdpa")
    found = result(model, name, tail, "prefill+tail").logprobs
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    full = result(model).logprobs
    np.testing.assert_allclose(found[:prefix], full[:prefix], atol=1e-4)  # the tail's first token follows the prefix
    assert np.abs(found[prefix:] - full[prefix:]).max() > 0.1


def test_bytes_of_a_cache():
    model = tiny_model("llama")
    config = model.config
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    full, window, fp8 = (result(model, name).columns["cache_bytes"] for name in ("full", "window:20", "fp8"))
    assert full[-1] == len(IDS) * token
    assert full[0] == 16 * token  # after the first chunk
    assert window[-1] == 20 * token
    assert len(IDS) * token / 4 <= fp8[-1] < 1.05 * len(IDS) * token / 4
    assert not hasattr(result(model), "columns")


def test_fp8_depends_on_the_chunk_and_shows_nothing_in_a_single_pass():
    model = tiny_model("llama")
    plain = result(model).logprobs
    assert np.array_equal(result(model, "fp8", 1024).logprobs, result(model, "full", 1024).logprobs)
    errors = {chunk: np.abs(result(model, "fp8", chunk).logprobs - plain).max() for chunk in (8, 32)}
    assert min(errors.values()) > 1e-4
    assert errors[8] != errors[32]
    by_default = TransformersScorer(model, byte_tokenizer(), cache=CacheUse(policy=load_cache("fp8")))
    assert by_default.info.cache == "fp8@256"


@pytest.mark.parametrize(
    ("name", "package", "share"),
    [
        ("quanto:4", "optimum.quanto", 5 / 32),  # 4 bits, and scale and shift in fp32 for groups of 64
        ("quanto:2", "optimum.quanto", 3 / 32),
        ("hqq:8", "hqq", 9 / 32),
        ("hqq:4", "hqq", 5 / 32),
        ("hqq:2", "hqq", 3 / 32),
    ],
)
def test_fewer_bits_with_their_libraries(name, package, share):
    pytest.importorskip(package)
    check_cache(load_cache(name))
    model = tiny_model("llama", head_dim=64, hidden_size=256)
    ids = torch.randint(1, 250, (512,), generator=torch.Generator().manual_seed(4)).tolist()
    full, found = (result(model, policy, 256, ids=ids) for policy in ("full", name))
    assert found.columns["cache_bytes"][-1] / full.columns["cache_bytes"][-1] == pytest.approx(share, rel=0.01)
    error = np.abs(found.logprobs - full.logprobs)
    assert error[:255].max() < 1e-4  # the first chunk is read as it is
    assert error[256:].max() > 1e-3


def test_a_sequence_of_fp8_does_not_depend_on_its_neighbors():
    model = tiny_model("llama")
    scorer = TransformersScorer(model, byte_tokenizer(), cache=CacheUse(policy=load_cache("fp8"), chunk=16))
    rows = [IDS, IDS[::-1], [5] * len(IDS)]
    together = {r.key: r.logprobs for r in scorer.logprobs(Request(i, row, 1) for i, row in enumerate(rows))}
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(together[i], result(model, "fp8", ids=row).logprobs)


@pytest.mark.parametrize("protocol", ["stream", "prefill+tail"])
@pytest.mark.parametrize("length", [2, 3, 20])
@pytest.mark.parametrize("name", [*NAMES, "sink:300+5", "h2o:1", "snapkv:2", "tova:1"])
def test_texts_shorter_than_what_is_kept(name, length, protocol):
    """sink:4+16 could not read a text, or a chunk, of three tokens."""
    model = tiny_model("llama")
    for chunk in (1, 8):
        found = result(model, name, chunk, protocol, ids=IDS[:length]).logprobs
        assert np.isfinite(found).all()
    if name.startswith("sink:300"):
        np.testing.assert_allclose(found, result(model, ids=IDS[:length]).logprobs, atol=1e-4)


@pytest.mark.parametrize("name", ["knorm:20", "h2o:20"])
def test_a_choice_by_values_does_not_depend_on_the_batch(name):
    """Keys of one token have one norm: with the rounding of another batch other ones stayed, 0.06 nats apart."""
    model = tiny_model("llama", num_key_value_heads=1)
    rows = [IDS[:40], IDS[:40][::-1], [5] * 40, [6, 7] * 20]
    policy = load_cache(name)
    scorer = TransformersScorer(model, byte_tokenizer(), cache=CacheUse(policy=policy, chunk=1))
    alones = [result(model, name, 1, ids=row) for row in rows]
    for order in (rows, rows[::-1]):
        together = {r.key: r for r in scorer.logprobs(Request(tuple(row), row, 1) for row in order)}
        for row, alone in zip(rows, alones, strict=True):
            np.testing.assert_array_equal(together[tuple(row)].logprobs, alone.logprobs)
            np.testing.assert_array_equal(together[tuple(row)].columns["cache_bytes"], alone.columns["cache_bytes"])


def test_alibi_counts_what_is_kept():
    from transformers import FalconConfig, FalconForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = FalconForCausalLM(FalconConfig(**sizes, alibi=True)).eval()
    with pytest.raises(UserError, match="has ALiBi, whose code in transformers does not count dropped tokens"):
        result(model, "window:20")
    np.testing.assert_allclose(result(model, "full").logprobs, result(model).logprobs, atol=1e-4)
    assert np.isfinite(result(model, "fp8").logprobs).all()


def test_attention_is_read_from_sdpa_alone_and_the_model_is_left_as_it_was():
    model = tiny_model("llama")
    before = copy.deepcopy(model.config)
    result(model, "h2o:20")
    assert model.config._attn_implementation == before._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    with pytest.raises(UserError, match="uses eager: use `attention=sdpa`"):
        result(model, "h2o:20")
    model.set_attn_implementation("sdpa")
    cache = load_cache("h2o:20").new_cache(model)
    with pytest.raises(ZeroDivisionError), observed(model, cache):
        raise ZeroDivisionError
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(UserError, match="does not compute attention through transformers"), observed(model, cache):
        cache.update(torch.zeros(1, 2, 4, 8), torch.zeros(1, 2, 4, 8), 0)  # and no attention
    assert "longlens_observed_sdpa" in AttentionInterface()


def test_bytes_of_nested_state():
    class Layer:
        def __init__(self):
            self.keys, self._quantized = torch.zeros(4), (torch.zeros(8, dtype=torch.int8), {"scale": torch.zeros(2)})

    class Cache:
        layers = (Layer(), Layer())

    assert cache_bytes(Cache()) == 2 * (16 + 8 + 8)


def test_one_token_is_not_everything():
    """h2o:1 kept everything, as window:1 does not; and two forms of one size were two models."""
    model = tiny_model("llama")
    sizes = [result(model, name).columns["cache_bytes"][-1] for name in ("random:1", "window:1", "random:1.0", "full")]
    assert sizes[0] == sizes[1] == sizes[2] / len(IDS) == sizes[3] / len(IDS)
    assert [load_cache(f"knorm:{size}").name for size in ("0512", ".50", "1.0")] == [
        "knorm:512",
        "knorm:0.5",
        "knorm:1.0",
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("window:0", "keeps no recent token"),
        ("window:x", "expected window:W in tokens, such as window:1024"),
        ("sink:4", r"expected sink:S\+W in tokens, such as sink:4\+1020"),
        ("h2o:", "expected the number of tokens to keep, or a fraction of those seen: h2o:512, h2o:0.25"),
        ("h2o:1.5", "expected the number of tokens to keep"),
        ("knorm:-1", "expected the number of tokens to keep"),
        ("h2o:1_0", "expected the number of tokens to keep"),
        ("h2o:1e3", "expected the number of tokens to keep"),
        ("h2o:0.0", "expected the number of tokens to keep"),
        ("snapkv:nan", "expected the number of tokens to keep"),
        ("fp8:8", "expected fp8, which has no settings"),
        ("hqq:5", "expected hqq:BITS with 1, 2, 3, 4, 8 bits"),
        ("nonsense", "expected one of full, window, sink"),
    ],
)
def test_settings_that_cannot_be(name, message):
    with pytest.raises(UserError, match=message):
        load_cache(name)


@pytest.mark.parametrize("family", ["mistral-sliding", "llama4"])
def test_a_model_without_a_layer_to_compress(family):
    """Else every policy would seem to lose nothing."""
    with pytest.raises(UserError, match=r"every layer of .* has a bounded window, which `cache=fp8` leaves as it is"):
        result(tiny_model(family), "fp8")
    assert np.isfinite(result(tiny_model(family), "full").logprobs).all()


@pytest.mark.parametrize("family", ["llama-dynamic-ntk", "phi3-longrope"])
def test_a_model_whose_frequencies_depend_on_the_length(family):
    with pytest.raises(UserError, match="frequencies that depend on length"):
        result(tiny_model(family), "window:16")


@pytest.mark.parametrize("name", ["window:20", "h2o:20", "tova:20"])
def test_bfloat16_is_near_float32(name):
    """Far nearer than what the policy loses."""
    model = tiny_model("llama")
    full, wanted = result(model).logprobs, result(model, name).logprobs
    found = result(model.to(torch.bfloat16), name).logprobs
    assert np.abs(found - wanted).mean() < 0.3 * np.abs(full - wanted).mean()


def test_protocols_that_cannot_be(models):
    name = str(models / "llama")
    with pytest.raises(UserError, match="`cache_protocol` is 'x'; expected stream or prefill"):
        load_scorer(name, cache="full", cache_protocol="x")
    with pytest.raises(UserError, match="`cache_protocol` would have no effect without `cache`"):
        load_scorer(name, cache_protocol="stream")
    assert load_scorer(name, cache="tova:8", cache_protocol="prefill+tail").info.cache == "tova:8@prefill+256"
    assert set(OWN) == {"window", "sink", "random", "knorm", "h2o", "snapkv", "tova", "fp8", "quanto", "hqq"}
