"""The frame of engines: whatever an engine can give wrongly is found, by the probe or at the answer itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from longlens import UserError, load_scorer, score
from longlens.corpus import Document
from longlens.engines import OWN, share
from longlens.engines.frame import EngineScorer, Greedy, check_logprobs
from longlens.models.load import UnloadedModel
from longlens.scoring.scorer import Request
from longlens.settings.options import Engine, Loading
from longlens.testing import check_scorer


class Through(EngineScorer):
    """A model of transformers as an engine, which can be wrong in one way."""

    def __init__(self, scorer, fault="", longest=None):
        super().__init__(scorer._encoder, scorer.info, longest=longest)
        self.inner, self.fault, self._seen = scorer, fault, {}

    def _all(self, ids):
        (result,) = self.inner.logprobs([Request(0, ids, 1)])
        return result.logprobs.tolist()

    def _answers(self, requests):
        for request in requests:
            yield request, self._wrong(list(request.token_ids), request.start)

    def _wrong(self, ids, start):
        values = self._all(ids)
        match self.fault:
            case "shifted":  # token i with the logits after it, as llama-cpp-python's server
                values = [self._all([*ids[: i + 1], ids[i]])[-1] for i in range(1, len(ids))]
            case "late":  # each value belongs to the token before
                values = [values[0], *values[:-1]]
            case "stale":  # the first answer about tokens that begin so
                values = self._seen.setdefault(tuple(ids[:8]), values) + values
                values = values[: len(ids) - 1]
            case "other request":
                values = self._seen.setdefault(len(ids), values)
            case "base 10":
                values = (np.array(values) / np.log(10)).tolist()
            case "not causal":
                values = [value - 1.0 * (ids[-1] % 7) for value in values]
            case "constant":
                values = [-1.0] * len(values)
            case "short":
                return values[start:]
            case "long":
                return values
        return values[start - 1 :]

    def _greedy(self, token_ids):
        with torch.no_grad():
            values = self.inner.model(input_ids=torch.tensor([token_ids])).logits[0, -1].log_softmax(-1)
        return Greedy(int(values.argmax()), float(values.max()) if self.fault != "silent" else None)


@pytest.fixture(scope="module")
def scorer(models: Path):
    return load_scorer(str(models / "llama"))


@pytest.mark.parametrize("fault", ["", "silent"])
def test_what_is_right_passes(scorer, fault):
    engine = Through(scorer, fault)
    engine.probe()
    check_scorer(engine)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("shifted", "the list is shifted or of other tokens"),
        ("late", "the last log-probability is the same for different tokens"),
        ("stale", "log-probabilit"),
        ("other request", "log-probabilit"),
        ("base 10", "sum to|shifted"),
        ("not causal", "depend on"),
        ("constant", "same for different tokens"),
        ("short", "returned .* log-probabilities for"),
        ("long", "returned .* log-probabilities for"),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_scored(scorer, fault, said):
    with pytest.raises(UserError, match=said) as caught:
        Through(scorer, fault).probe()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([-1.0], "returned 1 log-probabilities for 2 tokens"),
        ([-1.0] * 3, "returned 3 log-probabilities for 2 tokens"),
        ([None, -1.0], "returned None as a log-probability"),
        ([-1.0, "-2"], "returned '-2' as a log-probability"),
        ([-1.0, True], "returned True"),
        ([-1.0, float("nan")], "NaN"),
        ([-1.0, float("-inf")], "represents minus infinity"),
        ([-1.0, -9999.0], "represents minus infinity"),
        ([float("inf"), -1.0], "above 0"),
        ([-1.0, 0.5], "0.5, which is above 0"),
    ],
)
def test_an_answer_that_cannot_be_right_is_one_line(values, said):
    with pytest.raises(UserError, match=said):
        check_logprobs(values, 2, "m")
    assert check_logprobs([-1.0, 0.0], 2, "m").dtype == np.float32


def test_a_text_longer_than_the_engine_takes_is_refused_before_it_is_asked(scorer):
    engine = Through(scorer, longest=40)
    with pytest.raises(
        UserError, match=r"has 101 tokens, and the engine of .* supports 40: use a smaller `max_length`"
    ):
        score([Document(id="a", text="x" * 100)], engine, context=None, extrapolate=True, max_length=200)


def test_settings_of_two_models_go_to_the_engine_that_takes_them():
    url = "http://localhost:1/v1#m"
    local, server = ("m", Loading(dtype="float32"), Engine(concurrency=4)), (url, Loading(dtype="float32"), Engine())
    local, server = share([local, server])
    assert (local, server) == (
        (Loading(dtype="float32"), Engine()),
        (Loading(), Engine()),
    )
    with pytest.raises(UserError, match="`dtype` would have no effect with `engine=openai`: remove it"):
        share([(url, Loading(dtype="float32"), Engine())])
    with pytest.raises(UserError, match="`concurrency` would have no effect with `engine=transformers`"):
        share([("m", Loading(), Engine(concurrency=4)), ("n", Loading(), Engine())])


@pytest.mark.parametrize(
    ("name", "loading", "engine", "said"),
    [
        (
            "llama",
            Loading(tensor_parallel=2),
            Engine(),
            "`tensor_parallel` is 2, which requires 2 processes of torchrun or a multiple, but there is 1",
        ),
        ("llama", Loading(), Engine(max_model_len=9), "`max_model_len` would have no effect"),
        (
            "llama",
            Loading(),
            Engine(engine="openai"),
            "`engine=openai` is for a server: pass `model=http://HOST:PORT/v1#",
        ),
        (
            "http://h/v1#m",
            Loading(),
            Engine(engine="vllm"),
            "the model is a URL: use `engine=openai` or `engine=sglang`",
        ),
        ("http://h/v1#m", Loading(), Engine(cache="full"), "`cache` would have no effect with `engine=openai`"),
        (
            "http://h/v1#m",
            Loading(device="cpu", dtype="float32"),
            Engine(),
            "`device`, `dtype` would .* remove them",
        ),
    ],
)
def test_settings_without_effect_are_refused(name, loading, engine, said):
    with pytest.raises(UserError, match=said):
        UnloadedModel(name, loading, engine)


def test_a_tokenizer_by_name_or_loaded(models, scorer):
    name = str(models / "llama")
    for tokenizer in (str(models / "other"), scorer.tokenizer):
        assert load_scorer(name, tokenizer=tokenizer).info == scorer.info


def test_the_table_names_settings_that_exist():
    known = set(Loading.__slots__) | set(Engine.__slots__)
    assert all(own.takes <= known for own in OWN.values())
