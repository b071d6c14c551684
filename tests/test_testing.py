"""The conformance checks: our own engines, methods and policies pass, and each broken rule is named in one line."""

from __future__ import annotations

import dataclasses
import itertools
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from longlens.models.caches import CachePolicy, EvictingLayer, FullCache, evicting_cache
from longlens.rope import DynamicNTK, Frequencies, ScaledMethod, YaRN
from longlens.scoring.scorer import Result
from longlens.scoring.statistics import OWN as OWN_STATISTICS
from longlens.scoring.statistics import Statistic
from longlens.scoring.transformers import TransformersScorer
from longlens.settings.options import Engine, Loading
from longlens.testing import ConformanceError, check_cache, check_rope_method, check_scorer, check_statistic
from longlens.tokenization import Encoded
from tests.rope.conftest import METHODS
from tests.scoring.test_caches import BY_LENGTH, Recent
from tests.tiny import FAMILIES, byte_tokenizer, tiny_model

TOYS = Path(__file__).parent / "plugin_package" / "src"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_engine_of_transformers_passes(family):
    scorer = TransformersScorer(tiny_model(family), byte_tokenizer(), batch_tokens=200)
    check_scorer(scorer, by_length=family in BY_LENGTH)


@pytest.mark.parametrize("name", METHODS)
def test_our_rope_methods_pass(name):
    check_rope_method(METHODS[name])


@pytest.mark.parametrize("policy", [FullCache(), Recent(8), Recent(500)])
def test_our_cache_policies_pass(policy):
    check_cache(policy)


def refused(check, broken, rule):
    with pytest.raises(ConformanceError) as error:
        check(broken)
    assert rule in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


# Engines: a good one, and each of its parts replaced by a wrong one


@pytest.fixture
def bigram(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(TOYS)
    from longlens_toys.engine import BigramScorer

    (tmp_path / "counts.txt").write_text("The cat sat on the mat, and the cats sat there too. " * 3)
    return BigramScorer(str(tmp_path / "counts.txt"), Loading(), Engine())


def test_a_good_engine_passes(bigram):
    check_scorer(bigram)
    check_scorer(with_info(bigram, bos_token_id=0))


def with_info(scorer, **changes):
    info = dataclasses.replace(scorer.info, **changes)
    return types.SimpleNamespace(info=info, encode=scorer.encode, logprobs=scorer.logprobs)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"name": ""}, "`info.name` is filled in"),
        ({"dtype": "auto"}, "`info.dtype` is the dtype in use, never auto"),
        ({"max_length": 0}, "`info.max_length` is a number of tokens, or None"),
        ({"own_prefix": ("<s>",)}, "`info.bos_token_id` and `own_prefix` are token ids"),
        ({"weights_sha256": None}, "`info` says which model it is"),
    ],
)
def test_what_an_engine_says_of_itself(bigram, changes, rule):
    refused(check_scorer, with_info(bigram, **changes), rule)


def wrong_spans(change):
    def encode(encoded, text):
        return Encoded(encoded.token_ids, change(encoded.char_spans.copy(), text))

    return encode


count = itertools.count()


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda encoded, text: 1 / 0, "`encode` accepts any text (ZeroDivisionError"),
        (lambda encoded, text: Encoded(encoded.token_ids * 1.0, encoded.char_spans), "integers (float64"),
        (wrong_spans(lambda spans, text: spans[:, :1]), "char_spans (n, 2), integers"),
        (wrong_spans(lambda spans, text: spans + next(count)), "`encode` returns the same each time"),
        (wrong_spans(lambda spans, text: spans + 1), "spans lie in the text"),
        (wrong_spans(lambda spans, text: spans[::-1]), "spans are in the order of the text"),
        (wrong_spans(lambda spans, text: spans * [1, 0] + [0, 1] * spans[:, :1]), "spans cover the text"),
        (lambda encoded, text: with_bos(encoded), "`encode` adds no special tokens"),
    ],
)
def test_what_an_engine_encodes(bigram, change, rule):
    broken = with_info(bigram, bos_token_id=1)
    broken.encode = lambda document: change(bigram.encode(document), document.text)
    refused(check_scorer, broken, rule)


def with_bos(encoded):
    return Encoded(np.append(1, encoded.token_ids), np.concatenate([[[0, 0]], encoded.char_spans]))


def each(change):
    """Answers that are wrong one by one: from the request and its right log-probabilities."""

    def logprobs(bigram, requests):
        for request in requests:
            (result,) = bigram.logprobs([request])
            yield Result(request.key, change(request, result.logprobs))

    return logprobs


def at_once(change):
    def logprobs(bigram, requests):
        requests = list(itertools.islice(requests, 100))
        yield from change(list(bigram.logprobs(requests)), requests)

    return logprobs


@pytest.mark.parametrize(
    ("logprobs", "rule"),
    [
        (lambda bigram, requests: None, "`logprobs` answers requests of any length (TypeError"),
        (at_once(lambda results, requests: results[1:]), "each request has one answer"),
        (at_once(lambda results, requests: [r._replace(key="mine") for r in results]), "has the key of its request"),
        (each(lambda request, found: found.astype(np.float64)), "a float32 for each token from `start` on"),
        (each(lambda request, found: found[1:]), "a float32 for each token from `start` on"),
        (each(lambda request, found: found * np.float32("nan")), "log-probabilities are finite"),
        (each(lambda request, found: -found), "log-probabilities are not above 0"),
        (each(lambda request, found: found - np.float32(request.start)), "`start` omits the tokens before it"),
        (
            each(lambda request, found: found - np.float32(len(request.token_ids))),
            "a token's log-probability does not depend on what follows it",
        ),
        (
            at_once(lambda results, requests: [r._replace(logprobs=r.logprobs - len(requests)) for r in results]),
            "an answer does not depend on the other requests",
        ),
        (each(lambda request, found: found * np.float32(0.1)), "probabilities of different next tokens sum to 1"),
        (
            lambda bigram, requests: iter([list(bigram.logprobs(list(requests)))][0]),
            "requests are read as they are needed",
        ),
    ],
)
def test_what_an_engine_answers(bigram, logprobs, rule):
    broken = with_info(bigram)
    broken.logprobs = lambda requests: logprobs(bigram, requests)
    refused(check_scorer, broken, rule)


def test_an_engine_that_answers_otherwise_each_time(bigram):
    seen = {}

    def logprobs(requests):
        for result in bigram.logprobs(requests):
            times = seen[len(result.logprobs)] = seen.get(len(result.logprobs), 0) + 1
            yield result._replace(logprobs=result.logprobs - np.float32(times > 2))

    broken = with_info(bigram)
    broken.logprobs = logprobs
    refused(check_scorer, broken, "the same requests get the same answers")


def test_an_engine_that_takes_no_bos(bigram):
    def logprobs(requests):
        for request in requests:
            if request.token_ids[0] == 0:
                raise ValueError("no")
            yield from bigram.logprobs([request])

    broken = with_info(bigram, bos_token_id=0)
    broken.logprobs = logprobs
    refused(check_scorer, broken, "`logprobs` answers requests of any length (ValueError: no)")


# RoPE methods


def method(name="toy", base=ScaledMethod, frozen=True, **members):
    kind = type("Toy", (base,), {"name": name, "frequencies": lambda self, rope, n=1: plain(self, rope), **members})
    return dataclasses.dataclass(frozen=frozen, kw_only=True)(kind)(factor=4) if frozen else kind(factor=4)


def plain(self, rope):
    return Frequencies(rope.inv_freq / self.factor)


def test_a_good_method_passes():
    check_rope_method(method())
    two_sets = lambda self, rope, n=1: plain(self, rope) if n > rope.length else Frequencies(rope.inv_freq)  # noqa: E731
    check_rope_method(method(frequencies=two_sets))


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        (object(), "it is a longlens.rope.base.Method"),
        (lambda: method(name=""), "its class has a `name`"),
        (lambda: method(frequencies=lambda self, rope, n=1: 1 / 0), "`frequencies` is defined for every length"),
        (lambda: method(frequencies=lambda self, rope, n=1: Frequencies(rope.inv_freq[1:])), "inv_freq is (d/2,)"),
        (lambda: method(frequencies=lambda self, rope, n=1: Frequencies(-rope.inv_freq)), "inv_freq is (d/2,)"),
        (
            lambda: method(frequencies=lambda self, rope, n=1: Frequencies(rope.inv_freq, 0.0)),
            "attention_factor is a number above 0",
        ),
        (
            lambda: method(frequencies=lambda self, rope, n=1: Frequencies(rope.inv_freq / (2 + next(count)))),
            "`frequencies` returns the same each time",
        ),
        (lambda: method(max_length=lambda self, rope: 4.5 * rope.length), "`max_length` is an integer"),
        (lambda: method(max_length=lambda self, rope: rope.length - 1), "at least the original length"),
        (
            lambda: method(frequencies=lambda self, rope, n=1: Frequencies(rope.inv_freq / 4)),
            "a factor of 1 is the original, or `starts_as_the_original` is False",
        ),
        (
            lambda: method(parameters=lambda self, rope, now: {**now, "rope_type": "nonsense"}),
            "says, in memory and in a folder (UserError: cannot extend LlamaForCausalLM by toy: no entry 'nonsense'",
        ),
        (
            lambda: method(parameters=lambda self, rope, now: {**now, "rope_type": "linear", "factor": 5.0}),
            "the model computes its rotary embedding as `frequencies` says",
        ),
        (
            lambda: method(parameters=lambda self, rope, now: {**now, "rope_type": "linear", "factor": 4, "m": (1, 2)}),
            "`parameters` are the same after JSON",
        ),
    ],
)
def test_broken_methods(broken, rule):
    refused(check_rope_method, broken() if callable(broken) else broken, rule)


def test_a_method_has_to_be_a_frozen_dataclass_of_keywords():
    class Plain(YaRN):
        """No dataclass of its own is one of its parent's."""

    check_rope_method(Plain(factor=4))

    @dataclasses.dataclass(frozen=True)
    class Positional(DynamicNTK):
        more: float = 1.0

    refused(check_rope_method, Positional(factor=4), "its settings are keywords")

    @dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
    class Bare(DynamicNTK):
        __eq__ = object.__eq__

    refused(check_rope_method, Bare(factor=4), "it is identified by its settings only")


# Cache policies


class Kept(EvictingLayer):
    def __init__(self):
        super().__init__(lambda keys, values: torch.arange(keys.shape[-2])[-8:])


def policy(layer=None, **members):
    def new_cache(self, model):
        cache = DynamicCache(config=model.config)
        cache.layers = [(layer or Kept)() for _ in cache.layers]
        return cache

    return type("Toy", (CachePolicy,), {"name": "toy", "new_cache": new_cache, **members})()


class Counts(Kept):
    def get_seq_length(self):
        return 0 if self.keys is None else self.keys.shape[-2]


class Sizes(Kept):
    def get_mask_sizes(self, query_length):
        held, before = super().get_mask_sizes(query_length)
        return held, before + 1


class Gives(Kept):
    def get_mask_sizes(self, query_length):
        held, before = super().get_mask_sizes(query_length)
        return held + 1, before - 1


class Uneven(Kept):
    def __init__(self):
        keep = 3 + next(count) % 5
        EvictingLayer.__init__(self, lambda keys, values: torch.arange(keys.shape[-2])[-keep:])


class Drawn(Kept):
    def __init__(self):
        EvictingLayer.__init__(self, lambda keys, values: torch.randperm(keys.shape[-2])[:8].sort().values)


class Mixed(Kept):
    """What is kept of a row goes by all rows, which a policy may say of itself: each row is then fed alone."""

    def __init__(self):
        def keep(keys, values):
            return keys.float().square().sum((0, 1, 3)).topk(min(8, keys.shape[-2])).indices.sort().values

        EvictingLayer.__init__(self, keep)


class Overflows(Kept):
    def update(self, *args, **kwargs):
        keys, values = super().update(*args, **kwargs)
        return keys, values * float("nan")


def shared_cache(self, model):
    if not hasattr(self, "cache"):
        self.cache = evicting_cache(model, lambda keys, values: torch.arange(keys.shape[-2])[-8:])
    return self.cache


def test_a_good_policy_passes():
    check_cache(policy())
    check_cache(policy(Mixed))


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        (object(), "it is a longlens.models.caches.CachePolicy"),
        (policy(name=""), "it has a `name`"),
        (policy(new_cache=lambda self, model: 1 / 0), "`new_cache` makes a cache of transformers (ZeroDivisionError"),
        (policy(new_cache=shared_cache), "`new_cache` makes a new one each time"),
        (policy(Counts), "`get_seq_length` counts the tokens seen"),
        (policy(Sizes), "`get_mask_sizes` counts the tokens dropped before"),
        (policy(Gives), "`update` returns the sizes of `get_mask_sizes`"),
        (policy(Uneven), "all layers hold the same number of tokens"),
        (policy(Mixed, mixes_rows=False), "what it keeps of a sequence depends on that sequence alone"),
        (policy(Drawn), "what it keeps of a sequence depends on that sequence alone"),
        (policy(Overflows), "`logprobs` answers requests of any length"),
    ],
)
def test_broken_policies(broken, rule):
    refused(check_cache, broken, rule)


def statistic(compute, columns=("x",), **options):
    return Statistic(name="mine", columns=columns, compute=compute, **options)


def changes(logprobs, reference, targets):
    return {"x": logprobs.zero_().sum(-1)}


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        (object(), "it is a longlens.scoring.statistics.Statistic"),
        (statistic(lambda p, q, t: {"y": p.sum(-1)}), "`compute` returns its columns, one value per row"),
        (statistic(lambda p, q, t: {"x": p}), "`compute` returns its columns, one value per row"),
        (statistic(changes), "`compute` does not change its input"),
        (statistic(lambda p, q, t: {"x": (p.exp() * p).sum(-1)}), "its values are numbers, even for impossible tokens"),
        (statistic(lambda p, q, t: {"x": p[:, 0] - p[:, 0].max()}), "a row's values depend only on that row"),
    ],
)
def test_broken_statistics(broken, rule):
    refused(check_statistic, broken, rule)


@pytest.mark.parametrize("own", OWN_STATISTICS.values(), ids=list(OWN_STATISTICS))
def test_our_statistics_pass(own):
    check_statistic(own)
