import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from longlens.errors import LonglensWarning, UserError
from longlens.keytokens import select_key_tokens
from longlens.metrics import reach
from longlens.metrics.gains import effective_reach
from longlens.scoring.scores import ShortContext
from tests.reference import reach as naive
from tests.reference.metrics import estimate
from tests.toys import NAN, scores, token_scores

CONTEXTS = (4, 8, 16)
TOKENS = 24


def document(gains, *, id="d00", contexts=CONTEXTS, n=TOKENS, pieces=None, whole=None, divisor=2):
    """Scores whose gain at K_j is ``gains[j]``, a number or one for each token; -3 nats at K_1."""
    pieces = ["ab"] * n if pieces is None else pieces
    at = [np.broadcast_to(np.asarray(gain, dtype=float), len(pieces)) - 3.0 for gain in gains]
    long = at[-1] if whole is None else np.broadcast_to(np.asarray(whole, dtype=float), len(pieces)) - 3.0
    row = token_scores(pieces, [NAN, *long[1:]], id=id)
    short = {}
    for context, logprobs in zip(contexts, at, strict=True):
        hidden = np.where(np.arange(len(pieces)) < context, NAN, logprobs)
        short[ShortContext(context, context // divisor)] = hidden.astype(np.float32)
    return replace(row, short=short, selected=max(short))


def run(gains=(0, 0.5, 0.6), *, name="M", n=12, noise=0.0, seed=0, **options):
    """`n` documents with these gains, each moved by noise of its own at each K but the first."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        moved = [gain + (noise * rng.normal() if j else 0) for j, gain in enumerate(gains)]
        rows.append(document(moved, id=f"d{i:02}", **options))
    return scores(*rows, name=name)


def evaluator(key=(17, 20), *, name="E", n=12, context=4, pieces=("ab",) * TOKENS, **settings):
    """An evaluator to which the tokens `key` are key at K."""
    short = [NAN if i < context else -5.0 if i in key else -1.0 for i in range(len(pieces))]
    rows = [
        token_scores(pieces, [NAN, *[-1.0] * (len(pieces) - 1)], short, id=f"d{i:02}", context=context)
        for i in range(n)
    ]
    return scores(*rows, name=name, **settings)


def test_gains_are_means_over_the_tokens_that_have_the_largest_context():
    early = np.where(np.arange(TOKENS) < 16, 9.0, 0.5)  # what tokens before K_m gain is not counted
    found = reach(run([0, early, 0.75], whole=1.0), resamples=50)
    assert found.all.contexts == CONTEXTS
    assert found.all.gains == pytest.approx((0, 0.5, 0.75))
    assert (found.all.fit, found.all.max_gain) == (found.all.gains, pytest.approx(0.75))
    assert found.all.whole_gain == pytest.approx(1)
    assert (found.all.num_tokens, found.all.num_characters, found.all.num_documents) == (12 * 8, 12 * 16, 12)
    assert (found.model, found.evaluator, found.reference, found.keys) == ("M", None, None, None)
    assert found.warnings == []


@pytest.mark.parametrize("gain", [0.01, 1.0, 5.0])
def test_a_step_between_two_contexts_is_found_there(gain):
    options = {"contexts": (64, 128, 256, 512), "n": 2}
    found = reach(run([0, 0, gain, gain], pieces=["a"] * 520, **options)).all
    assert found.reach == pytest.approx(128 * 2**0.9)
    assert not found.censored
    assert found.drops == ()


def test_r_is_interpolated_in_log_k():
    assert effective_reach((10, 1000), (0, 1)) == pytest.approx(10 * 100**0.9)
    assert effective_reach((4, 8, 16, 32), (0, 0.9, 0.95, 1)) == pytest.approx(8)
    assert effective_reach((4, 8, 16, 32), (-1, -1, 0, 1)) == pytest.approx(16 * 2**0.9)
    assert effective_reach((4, 8, 16), (-1, -1, -1)) is None
    assert effective_reach((4, 8, 16), (0, 0, 0)) is None


def test_r_in_the_last_step_is_a_lower_bound():
    found = reach(run([0, 0.1, 0.5], noise=0.01), resamples=100).all
    assert found.censored
    assert found.reach_interval_censored
    assert 8 < found.reach_interval[0] < found.reach < found.reach_interval[1] <= 16
    settled = reach(run([0, 0.5, 0.51]), resamples=100).all
    assert not settled.censored
    assert not settled.reach_interval_censored
    wavering = reach(run([0, 0.5, 0.5], noise=0.06), resamples=200).all  # some resamples rise in the last step
    assert not wavering.censored
    assert wavering.reach_interval_censored


def test_noise_has_no_reach():
    found = reach(run([0, 0, 0], noise=0.3, seed=4), resamples=200).all
    assert found.max_gain > 0
    assert found.max_gain_interval[0] <= 0 < found.max_gain_interval[1]
    assert found.reach is found.reach_interval is None
    assert not found.censored
    assert not found.reach_interval_censored


def test_a_model_that_context_harms_has_no_reach_and_its_drops_are_named():
    found = reach(run([0, -0.25, -0.5], noise=0.01), resamples=100).all
    assert found.max_gain <= 0
    assert found.reach is found.reach_interval is None
    assert [(drop.from_context, drop.to_context) for drop in found.drops] == [(4, 8), (8, 16)]
    for drop in found.drops:
        assert drop.nats == pytest.approx(0.25, abs=0.02)
        assert drop.interval[0] < drop.nats < drop.interval[1]


def test_a_drop_is_smoothed_in_the_fit_and_shown_raw():
    found = reach(run([0, 0.6, 0.5]), resamples=20).all
    assert found.gains == pytest.approx((0, 0.6, 0.5))
    assert found.fit == pytest.approx((0, 0.55, 0.55))
    assert found.max_gain == pytest.approx(0.55)
    (drop,) = found.drops
    assert (drop.from_context, drop.to_context, drop.nats) == (8, 16, pytest.approx(0.1))
    assert drop.interval == pytest.approx((0.1, 0.1))


def test_key_tokens_are_those_of_the_evaluator_at_the_smallest_context():
    gains = [0, np.where(np.isin(np.arange(TOKENS), (17, 20)), 1.0, 0.25), 1.0]
    by_scores = reach(run(gains), evaluator_scores=evaluator(), resamples=20)
    assert by_scores.keys.gains == pytest.approx((0, 1, 1))
    assert by_scores.all.gains == pytest.approx((0, (2 + 6 * 0.25) / 8, 1))
    assert (by_scores.keys.num_tokens, by_scores.keys.num_characters) == (24, 48)
    assert by_scores.evaluator == "E"
    by_keys = reach(run(gains), keys=select_key_tokens(evaluator()), resamples=20)
    assert by_keys.to_json() == by_scores.to_json()
    early = reach(run(gains), evaluator_scores=evaluator((5, 17)), resamples=20)
    assert early.keys.num_tokens == 12  # token 5 has not the largest context before it


def test_key_tokens_are_carried_by_characters():
    text = "ab" * TOKENS
    pieces = [*text[:35], text[35:37], *text[37:]]  # tokens of one character, but for one of two
    found = reach(run(pieces=pieces), evaluator_scores=evaluator((16, 17)), resamples=20).keys
    assert (found.num_tokens, found.num_characters) == (12 * 3, 12 * 3)  # of 32 to 36


def test_of_several_strides_the_smallest_counts():
    coarse, fine = run([0, 5, 5]), run([0, 0.5, 0.5], divisor=4)
    both = [replace(a, short={**a.short, **b.short}) for a, b in zip(coarse, fine, strict=True)]
    found = reach(scores(*both, name="M"), resamples=20)
    assert found.all.gains == pytest.approx((0, 0.5, 0.5))
    assert found.settings["strides"] == (1, 2, 4)


def test_short_documents_contribute_nothing_and_are_counted():
    rows = [*run(), document([0, 5, 5], id="x", n=16), document([0, 5, 5], id="y", n=3)]
    found = reach(scores(*rows, name="M"), resamples=20)
    assert found.num_short_documents == 2
    assert found.all.gains == pytest.approx((0, 0.5, 0.6))
    assert found.all.num_documents == 12
    assert found.warnings == ["2 of 14 documents have 16 tokens of M or fewer, the largest K, and contribute nothing"]


def test_tokens_of_probability_0_are_left_out():
    rows = list(run())
    impossible = np.where(np.arange(TOKENS) == 20, -math.inf, 0.5)
    rows[0] = document([0, impossible, 0.6], id="d00")
    rows[1] = document([np.where(np.arange(TOKENS) == 16, -math.inf, 0), 0.5, 0.6], id="d01")
    rows[2] = document([0, 0.5, 0.6], id="d02", whole=np.where(np.arange(TOKENS) == 23, -math.inf, 0.6))
    found = reach(scores(*rows, name="M"), resamples=20)
    assert found.all.gains == pytest.approx((0, 0.5, 0.6))
    assert found.all.num_tokens == 12 * 8 - 3
    assert found.warnings == [
        "3 tokens of M have probability 0, or no score, under one of the contexts and are left out"
    ]


def test_documents_that_an_interrupted_run_has_not_finished_are_left_out():
    rows = list(run())
    rows[3] = replace(rows[3], short={short: p for short, p in rows[3].short.items() if short.context != 4})
    unfinished = scores(*rows, name="M")
    unfinished.num_incomplete = 2
    found = reach(unfinished, resamples=20)
    assert found.all.num_documents == 11
    assert "3 documents of M lack one of the short contexts" in found.warnings[0]


def test_with_few_documents_there_is_a_point_and_no_interval():
    found = reach(run(n=4), resamples=20)
    assert found.all.reach == pytest.approx(reach(run(), resamples=20).all.reach)
    assert found.all.gain_intervals is found.all.max_gain_interval is found.all.reach_interval is None
    assert reach(run([0, 0.6, 0.5], n=4)).all.drops[0].interval is None
    (note,) = found.warnings
    assert "with 4 documents and 32 tokens noise cannot be told from gain" in note
    assert "at least 5 documents and 20 tokens are needed" in note
    five = reach(run(n=5), resamples=20)
    assert five.all.reach_interval is not None
    assert five.warnings == []
    assert reach(run(n=10), evaluator_scores=evaluator((17,), n=10)).keys.gain_intervals is None  # 10 tokens


def test_documents_without_key_tokens_are_not_counted_among_the_ten():
    rows = [*evaluator()[:9], *evaluator((5,))[9:]]
    found = reach(run(), evaluator_scores=scores(*rows, name="E"), resamples=20)
    assert found.all.reach_interval is not None
    assert (found.keys.num_documents, found.keys.reach_interval) == (9, None)
    assert ["curve of key tokens" in note for note in found.warnings] == [True]


def test_a_model_that_is_its_own_evaluator_has_no_curve_of_key_tokens():
    own = evaluator(name="M")
    found = reach(run(), evaluator_scores=own, resamples=20)
    assert found.keys is found.evaluator is None
    assert found.settings["alpha"] is None
    (note,) = found.warnings
    assert note.startswith("M is its own evaluator")
    assert "regression to the mean" in note
    for part in ("weights_sha256", "config"):
        own.manifest["model"][part] = None  # not recorded, so not known to be the same
    assert reach(run(), evaluator_scores=own, resamples=20).keys is not None
    model = run()
    model.manifest["model"] |= {"weights_sha256": None, "config": None}
    assert reach(model, evaluator_scores=own, resamples=20).keys is not None


def test_keys_at_another_context_are_told():
    keys = select_key_tokens(evaluator(context=8))
    (note,) = reach(run(), keys=keys, resamples=20).warnings
    assert note.startswith("the keys were selected at K=8, and the smallest K of M is 4")
    keys.settings = {**keys.settings, "context": None}
    assert reach(run(), keys=keys, resamples=20).warnings == []
    keys = select_key_tokens(evaluator(name="M"))
    (note,) = reach(run(), keys=keys, resamples=20).warnings
    assert note.startswith("M is its own evaluator")
    keys.settings = {**keys.settings, "evaluator_sha256": None}  # of an older file
    (note,) = reach(run(), keys=keys, resamples=20).warnings
    assert note.startswith("the keys were selected by an evaluator that is called M too")


def test_without_a_key_token_behind_the_largest_context_there_is_no_curve_of_them():
    found = reach(run(), evaluator_scores=evaluator((5,)), resamples=20)
    assert found.keys is None
    assert found.warnings[0].startswith("no key token of M has 16 tokens before it")


def test_tokens_near_a_threshold_are_warned_of_once():
    with pytest.warns(LonglensWarning, match="24 tokens are within 0.1 nats") as warned:
        found = reach(run(), evaluator_scores=evaluator(dtype="bfloat16"), alpha=3.95, resamples=20)
    assert [warning.filename for warning in warned] == [__file__]
    assert str(warned[0].message) in found.warnings


def test_the_share_of_the_reference_is_per_character_of_each_models_own_tokens():
    pieces = ["ab"] * 12 + ["a", "b"] * 12  # from token 12 on, one character each
    reference = run([0, 0.4, 0.4], name="R", pieces=pieces)
    found = reach(run([0, 0.5, 0.5]), reference_scores=reference, resamples=20)
    assert found.reference == "R"
    assert found.all.reference_share == pytest.approx((0.5 / 2) / (0.4 / 1))
    assert found.warnings == []
    gainless = reach(run(), reference_scores=run([0, -0.1, -0.1], name="R"), resamples=20)
    assert gainless.all.reference_share is None
    short = reach(run(), reference_scores=run(name="R", pieces=["abab"] * 12), resamples=20)
    assert short.all.reference_share is None


def test_the_share_on_key_tokens():
    of = [0, np.where(np.isin(np.arange(TOKENS), (17, 20)), 1.0, 0.25), 1.0]
    found = reach(run([0, 0.5, 0.5]), reference_scores=run(of, name="R"), evaluator_scores=evaluator(), resamples=20)
    assert found.keys.reference_share == pytest.approx(0.5)
    biased = reach(run([0, 0.5, 0.5]), reference_scores=run(of, name="E"), evaluator_scores=evaluator(), resamples=20)
    assert biased.keys.reference_share is None
    assert biased.all.reference_share == pytest.approx(0.5)
    assert biased.warnings[0].startswith("the reference E is the evaluator, whose own gain on the key tokens is biased")


def test_a_reference_with_another_tokenizer_or_other_strides_is_told():
    reference = run(name="R", divisor=4)
    reference.manifest["model"]["tokenizer_sha256"] = "another"
    tokenizers, strides = reach(run(), reference_scores=reference, resamples=20).warnings
    assert tokenizers.startswith("M and R have different tokenizers: K tokens of theirs are different numbers of char")
    assert strides.startswith("M and R were scored with different d")


def test_what_is_recorded():
    found = reach(run(), evaluator_scores=evaluator(), alpha=1.5, use_lcl=False, resamples=20)
    assert found.settings == {
        **{"contexts": CONTEXTS, "strides": (2, 4, 8), "alpha": 1.5, "beta": -2.0, "lcl": False},
        **{"bos": "window", "dtype": "float32"},
    }


def test_json_has_lists_and_no_nan_also_where_nothing_exists():
    runs = {
        "gains": run(noise=0.1),
        "few": run([0, 0.6, 0.5], n=2),
        "harmed": run([0, -1, -1], noise=0.1),
        "none": run([0, 0, 0]),
    }
    for model in runs.values():
        others = {"evaluator_scores": evaluator(), "reference_scores": run(name="R", n=len(model))}
        found = reach(model, **others, resamples=50).to_json()
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        assert found["schema_version"] == 1
        assert found["all"]["contexts"] == [4, 8, 16]
    assert found["all"]["reach"] is None


def test_refusals():
    for contexts in ((4, 16), (16,)):
        with pytest.raises(
            UserError, match=r"K=16, and context reach needs at least 3 different K: score it .* `stride="
        ):
            reach(run([0] * len(contexts), contexts=contexts))
    with pytest.raises(UserError, match="M was scored at no short context, and context reach needs at least"):
        reach(scores(token_scores(["a"], [NAN]), name="M"))
    with pytest.raises(
        UserError, match=r"M was scored at K=4 with d=4, .* to 7 tokens of .* `context=4` and `stride=2`"
    ):
        reach(run(divisor=1))
    with pytest.raises(UserError, match="no token of M has 16 tokens before it"):
        reach(run(pieces=["a"] * 16))
    with pytest.raises(UserError, match="E was scored at K=8, and not at K=4, the smallest K of M"):
        reach(run(), evaluator_scores=evaluator(context=8))
    with pytest.raises(UserError, match="both evaluator scores and keys were passed"):
        reach(run(), evaluator_scores=evaluator(name="M"), keys=select_key_tokens(evaluator()))
    with pytest.raises(UserError, match="`alpha` cannot be set with keys"):
        reach(run(), keys=select_key_tokens(evaluator()), alpha=1)
    with pytest.raises(UserError, match="document 'd11' was scored with M, and has no scores of the evaluator E"):
        reach(run(), evaluator_scores=evaluator(n=11))
    with pytest.raises(UserError, match="document 'd00': M and the evaluator have different texts"):
        reach(run(), evaluator_scores=evaluator(pieces=["xy"] * TOKENS))
    with pytest.raises(UserError, match="document 'd00': M and the keys have different texts"):
        reach(run(), keys=select_key_tokens(evaluator(pieces=["xy"] * TOKENS)))


def test_refusals_of_a_reference():
    with pytest.raises(
        UserError, match=r"the reference R was scored at K=4,8,12 and M at K=4,8,16: .*`context=4,8,16`"
    ):
        reach(run(), reference_scores=run(name="R", contexts=(4, 8, 12)))
    for first, second in ((11, 12), (12, 11)):
        with pytest.raises(UserError, match="document 'd11' is not in both of the scores of M and of the reference R"):
            reach(run(n=first), reference_scores=run(name="R", n=second))
    with pytest.raises(UserError, match="document 'd00' is different texts in the scores of M and of the reference R"):
        reach(run(), reference_scores=run(name="R", pieces=["xy"] * TOKENS))


@st.composite
def corpora(draw):
    """Documents of differing lengths, tokens and gains, and runs of characters that are key."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    contexts = draw(st.sampled_from([(2, 4, 8), (2, 3, 5, 9), (4, 8, 12, 16, 20)]))
    slope = draw(st.sampled_from([-0.5, 0.0, 0.1, 1.0]))
    rows = []
    for i in range(draw(st.integers(10, 14))):
        n = max(contexts) + (int(rng.integers(0, 12)) if i else 3)
        pieces = ["x" * int(length) for length in rng.integers(0, 4, n)]
        gains = [slope * j * rng.random() + rng.normal(size=n) for j in range(len(contexts))]
        gains[-1][rng.random(n) < 0.05] = -math.inf
        rows.append(document(gains, id=f"d{i:02}", contexts=contexts, pieces=pieces, whole=rng.normal(size=n)))
    return rows, contexts


@settings(max_examples=25, deadline=None)
@given(corpora(), st.integers(0, 5))
def test_it_agrees_with_the_naive_oracle(corpus, seed):
    rows, contexts = corpus
    e = [token_scores([row.text[i : i + 2] for i in range(0, len(row.text), 2)], (), id=row.id) for row in rows]
    rng = np.random.default_rng(seed)
    marked = []
    for row in e:
        n = len(row.token_ids)
        short = np.where(np.arange(n) < contexts[0], NAN, np.where(rng.random(n) < 0.6, -5.0, -1.0)).astype(np.float32)
        at = ShortContext(contexts[0], 1)
        marked.append(replace(row, long_logprobs=np.full(n, -1, np.float32), short={at: short}, selected=at))
    evaluated = scores(*marked, name="E")
    runs = {key.id: key.char_runs.tolist() for key in select_key_tokens(evaluated)}
    found = reach(scores(*rows, name="M"), evaluator_scores=evaluated, seed=seed, resamples=30)
    for curve, expected in (
        (found.all, naive.gains(rows, contexts)),
        (found.keys, naive.gains(rows, contexts, runs)),
    ):
        everyone = range(len(rows))
        if not any(expected.documents):
            assert curve is None
            continue
        gains = [expected.mean(j, everyone) for j in range(len(contexts))]
        np.testing.assert_allclose(curve.gains, gains, atol=1e-9)
        np.testing.assert_allclose(curve.fit, naive.isotonic(gains), atol=1e-9)
        assert curve.whole_gain == pytest.approx(expected.mean(-1, everyone))
        assert curve.num_tokens == sum(map(len, expected.documents))
        assert curve.num_characters == expected.num_characters
        assert curve.num_documents == sum(map(bool, expected.documents))
        if curve.num_documents < 5 or curve.num_tokens < 20:
            assert curve.gain_intervals is None
            continue
        sums = [expected.sums(j) for j in range(len(contexts))]
        for (low, high), both in zip(curve.gain_intervals, sums, strict=True):
            value, error, freedom = estimate(both)
            half = stats.t.ppf(0.975, freedom) * error
            assert (low, high) == pytest.approx((value - half, value + half), abs=1e-9)
        drawn = naive.drawn(sums, contexts, seed, 30)
        ends = {name: np.percentile(values, [2.5, 97.5]) for name, values in drawn.items() if values}
        np.testing.assert_allclose(curve.max_gain_interval, ends["max_gain"], atol=1e-9)
        assert (curve.reach is None) == (curve.max_gain <= 0 or ends["max_gain"][0] <= 0)
        if curve.reach is not None:
            assert curve.reach == pytest.approx(naive.effective_reach(contexts, curve.fit), rel=1e-3)
            np.testing.assert_allclose(curve.reach_interval, ends["reach"], rtol=1e-3)


@settings(max_examples=50, deadline=None)
@given(corpora(), st.lists(st.floats(-20, 20), min_size=14, max_size=14), st.randoms())
def test_properties(corpus, constants, random):
    rows, contexts = corpus
    found = reach(scores(*rows, name="M"), resamples=20)
    assert found.all.gains[0] == 0
    assert list(found.all.fit) == sorted(found.all.fit)
    assert found.all.max_gain == found.all.fit[-1]
    if found.all.reach is not None:
        assert contexts[0] <= found.all.reach <= contexts[-1]
        assert found.all.censored == (found.all.reach > contexts[-2])

    turned = list(rows)
    random.shuffle(turned)
    assert reach(scores(*turned, name="M"), resamples=20).to_json() == found.to_json()

    shifted = [
        replace(
            row,
            long_logprobs=row.long_logprobs.astype(np.float64) + constant,
            short={short: p.astype(np.float64) + constant for short, p in row.short.items()},
        )
        for row, constant in zip(rows, constants, strict=False)
    ]
    same = reach(scores(*shifted, name="M"), resamples=20).all
    np.testing.assert_allclose(same.gains, found.all.gains, atol=1e-9)
    if found.all.gain_intervals is not None:
        np.testing.assert_allclose(same.gain_intervals, found.all.gain_intervals, atol=1e-9)


@given(
    st.lists(st.integers(1, 100_000), min_size=3, max_size=8, unique=True).map(sorted),
    st.lists(st.floats(0, 10), min_size=8, max_size=8).map(sorted),
)
def test_r_is_where_the_fit_reaches_nine_tenths(contexts, rises):
    fit = [0.0, *rises[: len(contexts) - 1]]
    found = effective_reach(contexts, fit)
    if fit[-1] == 0:
        assert found is None
        return
    assert contexts[0] <= found <= contexts[-1]
    there = np.interp(math.log(found), np.log(contexts), fit)
    assert there == pytest.approx(0.9 * fit[-1], rel=1e-6)


def test_there_is_no_share_of_a_gain_that_noise_could_make():
    steady, noisy = run(), run([0, 0, 0], noise=1.0, name="N")
    assert reach(noisy, resamples=200).all.max_gain > 0, "a gain that is not above 0 is refused anyway"
    assert reach(steady, reference_scores=noisy, resamples=200).all.reference_share is None
    assert reach(noisy, reference_scores=steady, resamples=200).all.reference_share is not None


def test_answers_have_a_curve_of_their_own():
    late = np.where(np.arange(TOKENS) >= 20, 2.0, 0.5)  # tokens 20 to 23 gain most
    model = run([0, late, late])
    answers = {f"d{i:02}": [(40, 48)] for i in range(12)}
    found = reach(model, answers=answers, resamples=20)
    assert found.answers.gains == pytest.approx((0, 2, 2))
    assert (found.answers.num_tokens, found.answers.num_characters) == (12 * 4, 12 * 8)
    stored = scores(*(replace(row, answer_spans=answers[row.id]) for row in model), name="M")
    assert reach(stored, resamples=20) == found
    assert reach(stored, answers={"d00": [(40, 42)]}, resamples=20).answers.num_tokens == 1
    assert reach(model, resamples=20).answers is None
    with pytest.raises(UserError, match="none of these documents was scored"):
        reach(model, answers={"x": [(0, 1)]})
