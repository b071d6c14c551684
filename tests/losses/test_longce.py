"""LongCE equals its naive form, loss and gradient, whatever the batch is made of."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longlens.errors import UserError
from longlens.keytokens.influence import soft_influence
from longlens.logprobs import Head, token_logprobs
from longlens.losses import longce_loss, longce_weights
from longlens.losses.longce import weighted_nll
from longlens.losses.passes import scored_labels
from longlens.losses.settings import LongCE
from tests.reference.longce import naive_longce
from tests.tiny import FAMILIES, VOCABULARY, tiny_model

RULE = {"context": 16, "stride": 8, "gamma": 1.1}


def tokens(*shape, seed=0):
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(model, ours, documents, rule=RULE):
    """Ours is as near to the float64 truth as the naive form, but for rounding: loss and every gradient.

    Twice the naive form's error: products by oneDNN round 1.6 times as much as torch's (`longlens.models.products`).
    """
    naive, _ = naive_longce(model, documents, *rule.values())
    exact = copy.deepcopy(model).double()
    if hasattr(model.config, "num_local_experts"):  # torch's grouped product of experts has no float64
        exact.set_experts_implementation("eager")
    truth, weights = naive_longce(exact, documents, *rule.values())
    for loss in (ours, naive):
        assert loss.item() == pytest.approx(truth.item(), abs=1e-5 * max(1, abs(truth.item())))
    found, expected, true = gradients(model, ours), gradients(model, naive), gradients(exact, truth)
    assert found.keys() == expected.keys() == true.keys()
    for name, gradient in true.items():
        allowed = 2 * (expected[name] - gradient).abs().max() + 1e-6 * max(1, float(gradient.abs().max()))
        assert (found[name] - gradient).abs().max() <= allowed, name
    return weights


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradient_equal_the_naive_ones_for_every_family(family):
    model = tiny_model(family)
    ids = tokens(2, 53)
    longce_loss(model, tokens(1, 90), **RULE)  # a longer sequence before leaves nothing behind
    weights = assert_same(model, longce_loss(model, ids, **RULE), [(row, row) for row in ids])
    assert any(float(weight.max()) > 1.001 for weight in weights), "weights that are all 1 would show nothing"


def test_the_ragged_tail_and_lengths_around_the_windows():
    model = tiny_model("llama")
    for length in (17, 18, 23, 24, 25, 31, 32, 33):
        ids = tokens(1, length)
        assert_same(model, longce_loss(model, ids, **RULE), [(ids[0], ids[0])])


def test_padding_and_ignored_labels_are_no_part_of_the_loss():
    model = tiny_model("llama")
    ids, labels = tokens(3, 60), tokens(3, 60)
    labels = ids.clone()
    labels[0, :30] = -100  # a prompt
    labels[1, 41:] = -100  # padding
    labels[2, 20:25] = -100
    ids[1, 41:] = 0
    rows = [(ids[0], labels[0]), (ids[1, :41], labels[1, :41]), (ids[2], labels[2])]
    assert_same(model, longce_loss(model, ids, labels, **RULE), rows)


def test_packed_documents_are_as_if_each_were_alone():
    model = tiny_model("llama")
    lengths = [40, 5, 1, 27, 17]
    ids = tokens(1, sum(lengths))
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    alone = [(row, row) for row in ids[0].split(lengths)]
    packed = longce_loss(model, ids, position_ids=positions, **RULE)
    assert abs(packed.item() - longce_loss(model, ids, **RULE).item()) > 1e-3, "packing that leaked would not be seen"
    assert_same(model, packed, alone)


def test_documents_begin_where_positions_do_not_follow():
    """As transformers builds its mask; some collators number documents from another position than 0."""
    model = tiny_model("llama")
    ids = tokens(2, 60)
    positions = torch.stack([torch.arange(60) % 33, torch.cat([torch.arange(20), torch.arange(40)])])
    alone = [(row, row) for row in (ids[0, :33], ids[0, 33:], ids[1, :20], ids[1, 20:])]
    for start in (0, 2):
        assert_same(model, longce_loss(model, ids, position_ids=positions + start, **RULE), alone)
    assert int(scored_labels(ids, positions).sum()) == 116


def test_a_model_that_does_not_keep_documents_apart_is_refused(monkeypatch):
    model = tiny_model("llama")
    forward = model.model.forward
    mask = torch.ones(1, 60, dtype=torch.int64)

    def leaking(input_ids, **given):
        return forward(input_ids, **given | {"attention_mask": mask[:, : input_ids.shape[1]]})

    monkeypatch.setattr(model.model, "forward", leaking)
    longce_loss(model, tokens(1, 60), **RULE)
    with pytest.raises(UserError, match="not separated by LlamaForCausalLM with sdpa attention"):
        longce_loss(model, tokens(1, 60), position_ids=(torch.arange(60) % 30)[None], **RULE)


@pytest.mark.parametrize("family", ["llama", "gpt2", "llama-dynamic-ntk"])
def test_without_weights_it_is_the_loss_of_transformers(family):
    """Also where labels are other tokens than the inputs."""
    model = tiny_model(family)
    ids, labels = tokens(2, 40), tokens(2, 40, seed=1)
    labels[:, 5:9] = -100
    found = weighted_nll(model, ids, labels, longce=None)
    expected = model(input_ids=ids, labels=labels).loss
    assert (found.total / len(found.weights)).item() == pytest.approx(expected.item(), rel=1e-6)
    assert set(found.weights.tolist()) == {1.0}
    assert not found.has_short.any()


def test_offline_scores_are_the_online_ones():
    model = tiny_model("llama")
    ids = tokens(2, 40)
    settings = LongCE(**RULE)
    online = weighted_nll(model, ids, longce=settings)
    weights = torch.full((2, 40), math.nan)
    weights[:, 1:] = online.weights.view(2, 39)
    by_weight = weighted_nll(model, ids, longce=settings, token_weights=weights)
    assert torch.equal(by_weight.total, online.total)
    with pytest.raises(UserError, match="remove one of them"):
        weighted_nll(model, ids, longce=settings, token_weights=weights, short_logprobs=weights)
    with pytest.raises(UserError, match=r"token_weights have shape \(2, 39\), input_ids \(2, 40\)"):
        weighted_nll(model, ids, longce=settings, token_weights=weights[:, 1:])


def test_a_model_that_accelerate_prepared_runs_in_its_precision():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    try:
        model = tiny_model("llama")
        plain = longce_loss(model, tokens(1, 60), **RULE).item()
        prepared = Accelerator(cpu=True, mixed_precision="bf16").prepare(model)
        inside = []
        model.model.layers[0].mlp.down_proj.register_forward_hook(lambda *given: inside.append(given[-1].dtype))
        loss = longce_loss(prepared, tokens(1, 60), **RULE)
        assert set(inside) == {torch.bfloat16}
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(plain, rel=0.02)
        loss.backward()
    finally:
        AcceleratorState._reset_state(True)


def test_accumulation_adds_up_to_the_whole_batch():
    model = tiny_model("llama")
    ids = tokens(4, 45)
    labels = ids.clone()
    labels[0, 5:] = -100  # micro-batches of unequal numbers
    labels[3, 30:] = -100
    whole = gradients(model, longce_loss(model, ids, labels, **RULE))
    number = int((labels[:, 1:] != -100).sum())
    model.zero_grad()
    for row in range(4):
        longce_loss(model, ids[row : row + 1], labels[row : row + 1], num_items=number, **RULE).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(parameter.grad, whole[name], atol=1e-6)


def test_dropout_is_off_in_the_short_pass_and_the_mode_is_kept():
    model = tiny_model("llama")
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()
    model.model.layers[1].eval()  # a frozen part
    seen = []
    model.model.layers[0].register_forward_pre_hook(
        lambda module, _: seen.append((module.training, torch.is_grad_enabled()))
    )
    longce_loss(model, tokens(1, 40), **RULE).backward()
    assert set(seen[:-1]) == {(False, False)}
    assert seen[-1] == (True, True)
    assert model.training
    assert not model.model.layers[1].training


def test_gradient_checkpointing_changes_nothing():
    model = tiny_model("llama")
    ids = tokens(2, 40)
    plain = gradients(model, longce_loss(model, ids, **RULE))
    model.gradient_checkpointing_enable()
    model.train()
    assert all(
        torch.allclose(g, plain[n], atol=1e-6) for n, g in gradients(model, longce_loss(model, ids, **RULE)).items()
    )


def test_no_logits_of_a_whole_sequence_exist(monkeypatch):
    model = tiny_model("llama")
    longce_loss(model, tokens(1, 40), **RULE)  # the head is held against the model's own logits once
    sizes = []
    monkeypatch.setattr(model, "forward", lambda *_, **__: pytest.fail("the model's own forward makes all logits"))
    monkeypatch.setattr("longlens.logprobs.token_logprobs.__kwdefaults__", {"block_bytes": 8 * VOCABULARY * 4})
    logits = Head.logits
    monkeypatch.setattr(
        Head, "logits", lambda self, hidden, *to: sizes.append(len(hidden)) or logits(self, hidden, *to)
    )
    longce_loss(model, tokens(1, 200), **RULE).backward()
    assert max(sizes) == 8
    assert sum(sizes) == 184 + 2 * 199  # scored rows of the short pass; the long one, and again in its backward


def test_with_ranks_through_ddp(tmp_path):
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        model = tiny_model("llama")
        ids = tokens(2, 40)
        plain = gradients(model, longce_loss(model, ids, **RULE))
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        reduced = []
        wrapped.register_comm_hook(None, lambda _, bucket: reduced.append(1) or _future(bucket.buffer()))
        for name, gradient in gradients(model, longce_loss(wrapped, ids, **RULE)).items():
            assert torch.allclose(gradient, plain[name], atol=1e-6)
        assert reduced, "the wrapper did not see the backward pass"
        assert "forward" not in vars(model)
    finally:
        torch.distributed.destroy_process_group()


def _future(value):
    future = torch.futures.Future()
    future.set_result(value)
    return future


@given(st.lists(st.floats(-60, 0), min_size=1, max_size=20), st.data(), st.floats(0.01, 100))
def test_weights_equal_the_soft_influence_of_the_stored_scores(long, data, gamma):
    short = data.draw(st.lists(st.one_of(st.just(math.nan), st.floats(-60, 0)), min_size=len(long), max_size=len(long)))
    ours = longce_weights(torch.tensor(long, dtype=torch.float64), torch.tensor(short, dtype=torch.float64), gamma)
    theirs = soft_influence(np.array(long) - np.array(short), gamma=gamma)
    expected = np.where(np.isnan(short), 1.0, theirs)
    assert ours.numpy() == pytest.approx(expected, rel=1e-12)


def test_weights_cannot_overflow_and_have_no_gradient():
    long = torch.tensor([0.0, -1e4], requires_grad=True)
    found = longce_weights(long, torch.tensor([-1e4, 0.0]))
    assert found.tolist() == [5.0, 0.0]
    assert not found.requires_grad


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 9), st.integers(1, 4), st.booleans(), st.sampled_from([None, 2.0]), st.sampled_from([1.0, 0.5]))
def test_the_gradient_of_the_block_loop_is_that_of_the_equation(rows, block, biased, softcap, scale):
    generator = torch.Generator().manual_seed(rows)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((rows, 5), (11, 5), (11,))
    )
    targets = torch.randint(11, (rows,), generator=generator)
    upstream = torch.randn(rows, generator=generator)
    head = Head(weight=weight, bias=bias if biased else None, scale=scale, softcap=softcap)
    inputs = [hidden, weight, *([bias] if biased else [])]
    ours = torch.autograd.grad(
        (token_logprobs(hidden, targets, head, block_bytes=8 * 11 * block) * upstream).sum(), inputs
    )
    plain = head.logits(hidden).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    for found, expected in zip(ours, torch.autograd.grad((plain * upstream).sum(), inputs), strict=True):
        assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"context": 40}, "`context` is 40 and the sequences have 40 tokens"),
        ({"context": 0}, "`context` is 0; expected at least 1"),
        ({"stride": 0}, "`stride` is 0; expected at least 1"),
        ({"gamma": 0.0}, "`gamma` is 0.0; expected more than 0"),
        ({"gamma": math.inf}, "`gamma` is inf; expected a finite number"),
        ({"labels": torch.zeros(1, 39, dtype=torch.int64)}, "labels have shape (1, 39), input_ids (1, 40)"),
    ],
)
def test_what_cannot_be_is_refused(changed, message):
    with pytest.raises(UserError) as caught:
        longce_loss(tiny_model("llama"), tokens(1, 40), **{**RULE, **changed})
    assert message in str(caught.value)
