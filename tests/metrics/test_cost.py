"""What a policy costs: by hand, and against loops over tokens."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from longlens import UserError, cost
from longlens.metrics.cost import PolicyCost
from longlens.scoring.scores import ShortContext
from longlens.scoring.statistics import DIVERGENCE
from longlens.settings.options import KeyRule
from tests.toys import NAN, scores, token_scores

PIECES = [*"abcdefghijkl"]
K, FAR = ShortContext(4, 2), ShortContext(6, 2)


def row(long, short, far=None, id="a", **changes):
    made = token_scores(PIECES, long, short, id=id, context=4, stride=2)
    shorts = dict(made.short) if far is None else {**made.short, FAR: np.asarray(far, np.float32)}
    return dataclasses.replace(made, short=shorts, **changes)


def policy(*rows, cache="window:8@4", name="toy", reference=None):
    found = scores(*rows, name=name)
    found.manifest["model"] |= {"cache": cache}
    if reference is not None:
        found.manifest["model"]["reference"] = {"name": "toy", "sha256": reference}
    return found


SHORT = [NAN] * 4 + [-6.0] * 8
LONG = [-1.0] * 4 + [-1.0, -3.0, -1.0, -1.0, -5.9, -1.0, -1.0, -1.0]  # key: 4, 6, 7, 9, 10, 11 (lsd 5, lcl -1)
KEY = [4, 6, 7, 9, 10, 11]


def test_by_hand():
    full = scores(row(LONG, SHORT))
    kept = [*LONG]
    kept[4], kept[6], kept[8] = -6.0, -3.5, -9.0  # a key token loses all, one half; another token does not count
    (found,) = cost(full, [policy(row(kept, None))], evaluator_scores=full).policies
    assert found.retained_gain == pytest.approx((0 + 2.5 + 4 * 5) / 30)
    assert found.policy == "window:8@4"
    assert found.longppl == pytest.approx(math.exp((6 + 3.5 + 4) / 6))
    assert found.ppl == pytest.approx(math.exp(-sum(kept[4:]) / 8))
    assert found.interval is None
    assert found.kl is None
    assert found.bytes_per_token is None
    whole = cost(full, [full], evaluator_scores=full)
    assert whole.policies[0].retained_gain == 1
    assert (whole.num_key_tokens, whole.num_tokens, whole.gain) == (6, 8, 5.0)
    nothing = cost(full, [policy(row([-1.0] * 4 + SHORT[4:], None))], evaluator_scores=full)
    assert nothing.policies[0].retained_gain == 0


def test_by_distance():
    far = [NAN] * 6 + [-1.0, -5.0, -5.9, -3.4, -1.0, -6.0]
    # 4: before the larger K, so within it; 6, 10: all at K=6; 9: more than half; 7, 11: beyond it.
    full = scores(row(LONG, SHORT, far))
    kept = [*LONG]
    kept[7], kept[11], kept[4] = -6.0, -3.5, -2.0
    result = cost(full, [policy(row(kept, None))], evaluator_scores=full)
    near, beyond = result.policies[0].by_distance
    assert (near.above, near.up_to, near.num_tokens) == (4, 6, 4)
    assert near.retained_gain == pytest.approx(19 / 20)
    assert (beyond.above, beyond.up_to, beyond.num_tokens) == (6, None, 2)
    assert beyond.retained_gain == pytest.approx(2.5 / 10)
    assert result.policies[0].worst is beyond
    assert beyond.lost == pytest.approx(7.5)
    assert result.to_json()["policies"][0]["by_distance"][1]["to"] is None
    assert result.settings["contexts"] == [4, 6]


def naive(full, others, tail=None):
    above = below = 0.0
    for one, other in zip(full, others, strict=True):
        n = len(one.token_ids)
        for i in range(n):
            long, short, new = one.long_logprobs[i], one.short[K][i], other.long_logprobs[i]
            if math.isnan(short) or (tail is not None and i <= n - tail):  # n - tail is predicted from before the tail
                continue
            if long - short > 2 and long > -2:
                above, below = above + float(new) - float(short), below + float(long) - float(short)
    return above / below


@pytest.mark.parametrize("tail", [None, 5])
def test_many_documents_with_an_interval(tail):
    rng = np.random.default_rng(0)
    rows, others = [], []
    for number in range(12):
        long = -np.abs(rng.normal(1, 0.5, 12))
        short = np.where(np.arange(12) < 4, NAN, long - np.abs(rng.normal(3, 1, 12)))
        rows.append(row(long, short, id=f"d{number}"))
        others.append(row(long - np.abs(rng.normal(0, 0.5, 12)), None, id=f"d{number}"))
    full = scores(*rows)
    cache = "window:8@4" if tail is None else f"window:8@prefill+{tail}"
    result = cost(full, [policy(*others, cache=cache)], evaluator_scores=full)
    (found,) = result.policies
    assert found.retained_gain == pytest.approx(naive(rows, others, tail), rel=1e-6)
    low, high = found.interval
    assert low < found.retained_gain < high < 1.2
    assert [document.id for document in found.documents] == [f"d{number}" for number in range(12)]
    lost, gained = (sum(getattr(document, name) for document in found.documents) for name in ("lost", "gain"))
    assert 1 - lost / gained == pytest.approx(found.retained_gain)
    nats = [
        (math.log(document.longppl) * document.num_key_tokens, document.num_key_tokens) for document in found.documents
    ]
    assert math.exp(sum(n for n, _ in nats) / sum(m for _, m in nats)) == pytest.approx(found.longppl)
    nats = [(math.log(document.ppl) * document.num_tokens, document.num_tokens) for document in found.documents]
    assert math.exp(sum(n for n, _ in nats) / sum(m for _, m in nats)) == pytest.approx(found.ppl)
    assert result.settings["fed"] == ("4" if tail is None else "prefill+5")
    assert result.to_arrow().num_rows == 1


def test_columns_of_a_divergence_and_bytes():
    full = scores(row(LONG, SHORT))
    from longlens.scoring.scores import identity_of

    columns = dict.fromkeys(DIVERGENCE.columns, np.zeros(12))
    columns |= {"kl": np.arange(12.0), "top1_agreement": np.ones(12), "cache_bytes": np.full(12, 1200.0)}
    own = policy(row(LONG, None, columns=columns), reference=identity_of(full).sha256)
    (found,) = cost(full, [own], evaluator_scores=full).policies
    assert found.kl == pytest.approx(np.arange(4, 12).mean())
    assert found.documents[0].kl == found.kl
    assert found.key_kl == pytest.approx(np.mean(KEY))
    assert found.key_top1_agreement == 1
    assert found.bytes_per_token == 100
    other = cost(full, [policy(row(LONG, None, columns=columns), reference="else")], evaluator_scores=full)
    assert other.policies[0].kl is None
    assert "another reference" in other.warnings[0]


def test_runs_that_differ_in_more_than_a_policy():
    """Each of them was compared without a word, and most passed a gate."""
    full = scores(row(LONG, SHORT))
    compressed = policy(row(LONG, SHORT))
    with pytest.raises(UserError, match=r"was scored under window:8@4: name the uncompressed run first"):
        cost(compressed, [full], evaluator_scores=full)
    other_bos = scores(row(LONG, None), bos="published")
    with pytest.raises(UserError, match=r"`bos=published` and toy with `bos=window`"):
        cost(full, [other_bos], evaluator_scores=full)
    more = policy(row(LONG, None), row(LONG, None, id="b"))
    (said,) = [s for s in cost(full, [more], evaluator_scores=full).warnings if "are not in" in s]
    assert said.startswith("1 documents of toy")
    other = policy(row(LONG, None), name="other")
    assert "has other weights than toy" in cost(full, [other], evaluator_scores=full).warnings[0]
    sized, deeper = scores(row(LONG, SHORT)), scores(row(LONG, None), name="deeper")
    for run, layers in ((sized, 2), (deeper, 3)):
        run.manifest["model"]["config"] = {"num_hidden_layers": layers, "hidden_size": 8}
    assert (
        "another model than toy (num_hidden_layers is 3 and not 2)"
        in (cost(sized, [deeper], evaluator_scores=sized).warnings[0])
    )
    partial = scores(row(LONG, SHORT))
    partial.num_incomplete = 2
    assert "2 documents of toy" in cost(partial, [policy(row(LONG, None))], evaluator_scores=full).warnings[0]


@pytest.mark.parametrize("fed", ["12", "prefill+12", "500"])
def test_texts_that_were_fed_at_once_lose_nothing_and_say_nothing(fed):
    """A single pass through any cache is a pass of the full model: a gate passed."""
    full = scores(row(LONG, SHORT))
    with pytest.raises(UserError, match=r"no document of toy is longer than the .* tokens that were fed at once"):
        cost(full, [policy(row(LONG, None), cache=f"window:8@{fed}")], evaluator_scores=full)
    pieces = [*"abcdefghijklm"]
    short = token_scores(pieces, [*LONG, -1.0], [*SHORT, -6.0], id="b", context=4, stride=2)
    both = scores(row(LONG, SHORT), short)
    found = cost(both, [policy(*both, cache="window:8@12")], evaluator_scores=both)
    assert "nothing was compressed in 1 of 2 documents" in found.warnings[-1]


def test_a_tail_of_one_token_says_nothing_of_a_policy():
    """Its only token is predicted from what was read at once: it retained everything, whatever the policy."""
    full = scores(row(LONG, SHORT))
    with pytest.raises(UserError, match="no key token of toy can be used"):
        cost(full, [policy(row(LONG, None), cache="window:8@prefill+1")], evaluator_scores=full)


def test_impossible_tokens_are_counted():
    full = scores(row(LONG, SHORT))
    kept = [*LONG]
    kept[4] = -math.inf
    found = cost(full, [policy(row(kept, None))], evaluator_scores=full)
    assert found.num_key_tokens == 5
    assert "1 tokens have probability 0" in found.warnings[-1]


def test_why_there_is_no_interval():
    many = [row(LONG, SHORT, id=f"{n}") for n in range(4)]
    full = scores(*many)
    assert cost(full, [policy(*many)], evaluator_scores=full).policies[0].interval is not None
    worse = dataclasses.replace(many[0], short={K: np.asarray([NAN] * 4 + [0.0] * 8, np.float32)})
    selector, full = scores(*many, name="selector"), scores(worse, *many[1:])
    found = cost(full, [policy(*many)], evaluator_scores=selector)
    assert found.policies[0].interval is None
    assert any("gain nothing from long context" in said for said in found.warnings)
    pieces = [*"abcdefghijkl"] * 4
    one = scores(token_scores(pieces, LONG * 4, [*SHORT, *[-6.0] * 36], context=4, stride=2))
    found = cost(one, [policy(*one)], evaluator_scores=one)
    assert any("one document gives no interval" in said for said in found.warnings)


def test_what_cannot_be():
    full = scores(row(LONG, SHORT))
    long_only, other = policy(row(LONG, None)), policy(row(LONG, None, id="b"))
    tokens = policy(row(LONG, None, token_ids=np.arange(12) + 1))
    text = policy(row(LONG, None, text_sha256="x"))
    flat = scores(row([-5.0] * 12, SHORT))
    for call, message in (
        (lambda: cost(full, [long_only]), "pass `evaluator_scores`"),
        (lambda: cost(full, [], evaluator_scores=full), "pass at least one more run"),
        (lambda: cost(scores(row(LONG, None)), [full], evaluator_scores=full), "scored without short contexts"),
        (lambda: cost(full, [other], evaluator_scores=full), "document 'a' is not in toy"),
        (lambda: cost(full, [tokens], evaluator_scores=full), "different tokens"),
        (lambda: cost(full, [text], evaluator_scores=full), "different text"),
        (lambda: cost(flat, [long_only], evaluator_scores=flat), "no key token of toy can be used"),
        (
            lambda: cost(full, [long_only, policy(row(LONG, None), cache="h2o:9@8")], evaluator_scores=full),
            "different chunks",
        ),
        (lambda: cost(full, [long_only], evaluator_scores=full, rule=KeyRule(context=9)), "not at K=9"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    assert dataclasses.is_dataclass(PolicyCost)
