"""Means of stored divergences, against loops over tokens."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from longlens import UserError, cost, divergence, perplexity
from longlens.metrics.divergence import MEASURES, bracket_of, mean_of
from longlens.scoring.scores import identity_of
from longlens.scoring.statistics import DIVERGENCE
from tests.toys import NAN, scores, token_scores


def diverged(*rows, statistics=("divergence",), reference="ref"):
    found = scores(*rows, statistics=list(statistics))
    found.manifest["model"]["reference"] = {"name": reference, "sha256": "r"} if reference else None
    return found


def row(n, seed, id):
    rng = np.random.default_rng(seed)
    long = -np.abs(rng.normal(1, 0.3, n))
    short = np.where(np.arange(n) < 4, NAN, long - np.abs(rng.normal(2, 1, n)))
    long[0] = NAN
    columns = {name: np.where(np.isnan(long), NAN, rng.random(n)) for name in DIVERGENCE.columns}
    return dataclasses.replace(
        token_scores(["ab"] * n, long, short, id=id), columns={k: v.astype(np.float32) for k, v in columns.items()}
    )


def test_means_against_loops():
    rows = [row(700, 1, "a"), row(300, 2, "b"), row(30, 3, "c")]
    own = diverged(*rows)
    found = divergence(own, evaluator_scores=own)
    wanted: dict = {(name, group): [] for name in MEASURES for group in ("all", "key", "rest")}
    places: dict = {}
    for one in rows:
        for i in range(1, len(one.token_ids)):
            is_key = one.lsd[i] > 2 and one.long_logprobs[i] > -2
            for name in MEASURES:
                value = float(one.columns[name][i])
                wanted[name, "all"].append(value)
                wanted[name, "key" if is_key else "rest"].append(value)
                places.setdefault((name, 0 if i < 256 else 1 if i < 512 else 2), []).append(value)
    for (name, group), values in wanted.items():
        mean = found.means[name][group]
        assert mean.value == pytest.approx(np.mean(values))
        assert mean.num_tokens == len(values)
        assert mean.interval[0] < mean.value < mean.interval[1]
    assert [(b.start, b.stop) for b in found.by_position] == [(0, 256), (256, 512), (512, 1024)]
    for number, bracket in enumerate(found.by_position):
        assert bracket.means["kl"].value == pytest.approx(np.mean(places["kl", number]))
    content = found.to_json()
    assert content["kl"]["key"] == pytest.approx(np.mean(wanted["kl", "key"]))
    assert content["num_tokens"] == 1027
    assert content["num_key_tokens"] == len(wanted["kl", "key"])
    assert content["by_position"][1]["to"] == 511
    logprobs = np.concatenate([one.columns["reference_logprob"][1:] for one in rows])
    assert content["reference_ppl"] == pytest.approx(np.exp(-logprobs.mean()), rel=1e-5)
    assert found.to_arrow().num_rows == 12
    plain = divergence(own)
    assert plain.means["kl"]["key"] is None
    assert plain.num_key_tokens is None


def test_brackets_double():
    assert bracket_of(np.array([0, 255, 256, 511, 512, 1023, 1024])).tolist() == [0, 0, 1, 1, 2, 2, 3]


def test_scores_without_a_reference_are_refused():
    for statistics, reference in (((), "ref"), (("divergence",), None)):
        with pytest.raises(UserError, match="have no reference: create them with longlens diverge"):
            divergence(diverged(row(10, 1, "a"), statistics=statistics, reference=reference))
    broken = dataclasses.replace(row(10, 1, "a"), columns={})
    with pytest.raises(UserError, match="has no column kl"):
        divergence(diverged(broken))


def test_intervals_stay_where_values_can_be():
    """A short document beside long ones: few degrees of freedom, and a wide interval."""
    nats = mean_of([(40.0, 200), (170.0, 200), (1.0, 1)])
    assert 0 < nats.interval[0] < nats.value < nats.interval[1]
    share = mean_of([(20.0, 200), (190.0, 200), (1.0, 1)], is_share=True)
    assert 0 <= share.interval[0] < share.value < share.interval[1] <= 1
    assert mean_of([(0.0, 10), (0.0, 10)]).interval == (0, 0)


def test_infinite_divergences_are_counted():
    """They were left out without a word here, and made `longlens cost --json` fail."""
    one = row(40, 1, "a")
    columns = {name: values.copy() for name, values in one.columns.items()}
    columns["kl"][5] = columns["reverse_kl"][6] = np.inf
    own = diverged(dataclasses.replace(one, columns=columns))
    found = divergence(own, evaluator_scores=own)
    assert (found.num_infinite, found.num_tokens) == (2, 37)
    assert found.to_json()["num_infinite"] == 2
    own.manifest["model"]["reference"]["sha256"] = identity_of(own).sha256
    costs = cost(own, [own], evaluator_scores=own)
    assert math.isfinite(costs.policies[0].kl)
    assert any("2 tokens of toy" in said and "an infinite KL" in said for said in costs.warnings)


def test_a_cache_that_was_compressed_once_is_judged_on_its_tail():
    """What was read before it has a divergence of 0, which made the mean as small as the tail is short."""
    one = row(40, 1, "a")
    own = diverged(one)
    own.manifest["model"]["cache"] = "window:8@prefill+10"
    found = divergence(own)
    assert found.num_tokens == 9
    assert found.means["kl"]["all"].value == pytest.approx(one.columns["kl"][-9:].mean())
    assert "affects only the last 9 tokens of each document" in perplexity(own).warnings[0]
