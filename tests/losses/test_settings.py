"""Forms of LongCE that weigh a part of the tokens at a step: which ones, and by the same weights as the whole."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longlens.errors import LonglensWarning, UserError
from longlens.losses import ChunkedLongCE, LongCE, SampledLongCE, longce_loss, longce_weights
from longlens.losses.longce import weighted_nll
from longlens.windows import plan_chunks, plan_windows
from tests.reference.longce import naive_logprobs
from tests.tiny import VOCABULARY, tiny_model

SIZES = {"context": 16, "stride": 8, "gamma": 1.1}
FORMS = [
    LongCE(**SIZES),
    SampledLongCE(**SIZES, share=0.4),
    ChunkedLongCE(**SIZES),
    LongCE(**SIZES, floor=1.0),
    ChunkedLongCE(**SIZES, floor=0.97),
]


def tokens(*shape, seed=0):
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def naive_weights(model, ids, longce, step):
    """Weights of tokens 1, 2, ..., window by window from whole logits."""
    short = torch.full((len(ids),), torch.nan)
    with torch.no_grad():
        for window in longce.windows(ids, step):
            inside = naive_logprobs(model, ids[window.start : window.stop])
            short[window.first : window.stop] = inside[window.first - window.start - 1 :]
        weights = (naive_logprobs(model, ids) - short[1:]).exp().clamp(longce.floor, longce.gamma)
    return torch.where(short[1:].isnan(), torch.ones_like(weights), weights)


@pytest.mark.parametrize("longce", FORMS, ids=lambda form: type(form).__name__)
@pytest.mark.parametrize("step", [0, 1, 7])
def test_weights_are_those_of_the_windows_of_the_step_and_1_elsewhere(longce, step):
    model, ids = tiny_model("llama").eval(), tokens(2, 77)
    found = weighted_nll(model, ids, longce=longce, step=step)
    expected = torch.cat([naive_weights(model, row, longce, step) for row in ids])
    torch.testing.assert_close(found.weights, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.weights[~found.has_short], torch.ones(int((~found.has_short).sum())))
    assert found.has_short.any()


@pytest.mark.parametrize("longce", FORMS, ids=lambda form: type(form).__name__)
def test_another_split_into_micro_batches_is_the_same_loss(longce):
    model, ids = tiny_model("llama").eval(), tokens(4, 60)
    number = 4 * 59
    whole = longce_loss(model, ids, settings=longce, step=3)
    parts = sum(longce_loss(model, row[None], settings=longce, step=3, num_items=number) for row in ids)
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)


def test_with_a_floor_no_weight_is_below_it_and_the_gradient_is_that_of_those_weights():
    model, ids = tiny_model("llama").eval(), tokens(2, 60)
    plain, floored = (weighted_nll(model, ids, longce=LongCE(**SIZES, floor=floor)) for floor in (0.0, 1.0))
    assert (plain.weights < 0.999).sum() > 5
    torch.testing.assert_close(floored.weights, plain.weights.clamp(min=1.0), rtol=0, atol=0)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1)
    naive = -(floored.weights * logits.gather(-1, ids[:, 1:, None]).flatten()).sum()
    parameters = list(model.parameters())
    for mine, other in zip(*(torch.autograd.grad(loss, parameters) for loss in (floored.total, naive)), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


def test_offline_weights_and_short_scores_are_raised_to_the_floor():
    model, ids = tiny_model("llama").eval(), tokens(2, 60)
    given = torch.linspace(0.2, 1.5, 120).view(2, 60)
    found = weighted_nll(model, ids, longce=LongCE(gamma=1.5, floor=1.0), token_weights=given)
    torch.testing.assert_close(found.weights, given[:, 1:].flatten().clamp(min=1.0), rtol=0, atol=0)
    long = torch.stack([naive_logprobs(model, row).detach() for row in ids])
    short = torch.nn.functional.pad(long - given[:, 1:].log(), (1, 0), value=torch.nan)
    found = weighted_nll(model, ids, longce=LongCE(gamma=1.5, floor=1.0), short_logprobs=short)
    torch.testing.assert_close(found.weights, given[:, 1:].flatten().clamp(min=1.0), rtol=1e-4, atol=1e-5)


@given(st.integers(0, 300), st.integers(1, 30), st.integers(1, 30), st.floats(0.01, 1), st.integers(0, 5))
def test_a_sample_is_so_many_windows_of_the_plan_and_the_same_at_the_same_step(size, context, stride, share, step):
    longce, ids = SampledLongCE(context=context, stride=stride, share=share), torch.arange(size)
    plan, chosen = plan_windows(size, context, stride), longce.windows(ids, step)
    assert chosen == sorted(set(chosen) & set(plan))
    assert len(chosen) == (max(1, round(share * len(plan))) if plan else 0)
    assert chosen == longce.windows(ids.clone(), step)


def test_samples_differ_between_steps_and_documents_and_reach_every_window():
    longce, ids = SampledLongCE(context=8, stride=4, share=0.3), tokens(2, 100)
    by_step = [longce.windows(ids[0], step) for step in range(40)]
    assert set().union(*by_step) == set(plan_windows(100, 8, 4))
    assert by_step[0] != by_step[1]
    assert any(longce.windows(ids[0], step) != longce.windows(ids[1], step) for step in range(3))


@given(st.integers(0, 300), st.integers(1, 30), st.integers(1, 30), st.integers(-99, 99))
def test_chunks_do_not_overlap_and_cover_all_that_is_scored_with_k_to_k_plus_d_minus_1(size, context, stride, shift):
    chunks = plan_chunks(size, context, stride, shift)
    assert sum(chunk.stop - chunk.start for chunk in chunks) <= size
    assert all(before.stop <= after.start for before, after in pairwise(chunks))
    for chunk in chunks:
        assert 0 <= chunk.start < chunk.first < chunk.stop <= size
        assert chunk.first - chunk.start == context
        assert chunk.stop - chunk.start <= context + stride


@given(st.integers(0, 200), st.integers(1, 20), st.integers(1, 20), st.integers(0, 50))
def test_every_token_from_k_on_is_weighed_within_a_round_of_steps(size, context, stride, step):
    longce, ids = ChunkedLongCE(context=context, stride=stride), torch.arange(size)
    around = -(-(context + stride) // stride)
    windows = [window for later in range(around) for window in longce.windows(ids, step + later)]
    assert {token for w in windows for token in range(w.first, w.stop)} == set(range(context, size))


def test_half_precision_is_of_the_short_pass_alone():
    model, ids = tiny_model("llama").eval(), tokens(2, 64)
    full = weighted_nll(model, ids, longce=LongCE(context=16, stride=8))
    half = weighted_nll(model, ids, longce=LongCE(context=16, stride=8, short_dtype="bfloat16"))
    moved = (full.weights.log() - half.weights.log()).abs()  # by the short log-probabilities alone
    assert 0 < float(moved.mean()) < 0.1
    ones = torch.ones(2, 64)
    alone = weighted_nll(model, ids, longce=LongCE(short_dtype="bfloat16"), token_weights=ones).total
    assert torch.equal(alone, weighted_nll(model, ids, longce=None).total)


def test_settings_that_weights_can_be_parse_recipe_otherwise():
    class Doubled(LongCE):
        def weights(self, long_logprobs, short_logprobs):
            return 2 * longce_weights(long_logprobs, short_logprobs, self.gamma)

    model, ids = tiny_model("llama").eval(), tokens(1, 64)
    torch.testing.assert_close(
        longce_loss(model, ids, settings=Doubled(**SIZES)), 2 * longce_loss(model, ids, **SIZES), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (SampledLongCE, {"share": 0.0}, "`share` is 0.0; expected"),
        (SampledLongCE, {"share": 1.5}, "`share` is 1.5; expected"),
        (LongCE, {"gamma": 0.0}, "`gamma` is 0.0; expected"),
        (LongCE, {"context": 0}, "`context` is 0; expected"),
        (LongCE, {"floor": -0.5}, "`floor` is -0.5; expected"),
        (LongCE, {"floor": 6.0}, "`floor` is 6, the minimum weight; expected 0 to `gamma`, 5"),
        (LongCE, {"short_dtype": "int8"}, "`short_dtype` is 'int8'; expected float16 or bfloat16"),
    ],
)
def test_what_cannot_be_is_refused(kind, given, message):
    with pytest.raises(UserError, match=message):
        kind(**given)


def test_settings_beside_context_stride_and_gamma_are_refused():
    with pytest.raises(UserError, match="in `settings` already"):
        longce_loss(tiny_model("llama"), tokens(1, 64), settings=LongCE(context=16, stride=8), context=8)


def test_a_gamma_below_1_is_said():
    with pytest.warns(LonglensWarning, match=r"`gamma` is 0.5, .* have lower weights than tokens without"):
        LongCE(gamma=0.5)
