"""The small model: what it is made of, how a step changes it, and its scores against its own logits."""

import copy
import math

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from transformers import LlamaForCausalLM

from longlens.errors import UserError
from longlens.losses.settings import LongCE
from longlens.rope import EABF, load_model
from longlens.study.longce import model as models
from longlens.study.longce.arms import ARMS
from longlens.study.longce.documents import FactBatch, Vocabulary
from longlens.study.longce.questions import make_batches
from longlens.study.reproduce import reproduce
from longlens.windows import plan_windows
from tests.reference.longce import naive_longce
from tests.study.longce.toys import toy_study, write_text

STUDY = toy_study()
TRAINING = STUDY.training.replace(learning_rate=1e-2)
VOCABULARY = Vocabulary(words=tuple("abcdefghij"), keys=4, values=3)
DOCUMENTS = [np.arange(200) % 10]
IDS = np.random.default_rng(0).integers(0, VOCABULARY.size, (11, 40))


def small(seed=3):
    return models.make_model(STUDY.model, VOCABULARY, seed)


def steps(*arguments, **settings):
    """The steps of a training run."""
    found = []
    models.train(*arguments, **settings, after_step=found.append)
    return found


def weights_of(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def naive_logprobs(model, ids):
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(ids), use_cache=False).logits
    return logits.log_softmax(-1)[:, :-1].gather(-1, torch.from_numpy(ids)[:, 1:, None])[..., 0].numpy(), logits


def test_the_model_depends_on_its_seed_alone():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    one = weights_of(small())
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1)
    assert all(torch.equal(one[name], weight) for name, weight in weights_of(small()).items())
    assert any((one[name] != weight).any() for name, weight in weights_of(small(4)).items())
    assert small().config.vocab_size == VOCABULARY.size
    assert small().config.max_position_embeddings == STUDY.model.length


def test_what_is_saved_is_what_is_loaded(tmp_path):
    model = small()
    models.save_model(model, tmp_path / "base")
    loaded = weights_of(load_model(tmp_path / "base"))
    assert all(torch.equal(loaded[name], weight) for name, weight in weights_of(model).items())


def test_a_full_disk_says_so_and_leaves_no_base(tmp_path, monkeypatch):
    def full(self, folder, **_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", full)
    message = r"cannot write .*\.base\.tmp: I/O error: No space left on device .*: make room and run the same command"
    with pytest.raises(UserError, match=message):
        reproduce("longce", STUDY.replace(text=write_text(tmp_path / "toy")), tmp_path / "out")
    assert not (tmp_path / "out" / "seeds" / "0" / "base").exists()


def test_extending_leaves_the_model_as_it_was():
    model = small()
    before, _ = naive_logprobs(model, IDS)
    extended = models.extend_model(model, EABF(factor=4, theta=1e5))
    assert extended.config.max_position_embeddings == 64
    assert np.array_equal(naive_logprobs(model, IDS)[0], before)
    assert not np.allclose(naive_logprobs(extended, IDS)[0], before, atol=1e-4)


def test_scores_are_those_of_the_logits():
    model = small()
    found = models.score(model, IDS)
    logprobs, logits = naive_logprobs(model, IDS)
    assert np.isnan(found.long[:, 0]).all()
    assert np.allclose(found.long[:, 1:], logprobs, atol=1e-5)
    assert np.allclose(found.last, logits[:, -2].numpy(), atol=1e-5)


def test_short_scores_are_those_of_the_windows_alone():
    model, longce = small(), LongCE(context=8, stride=6)
    found = models.score_under_short_context(model, IDS, longce)
    assert np.isnan(found[:, :8]).all()
    for window in plan_windows(40, 8, 6):
        alone, _ = naive_logprobs(model, IDS[:, window.start : window.stop])
        assert np.allclose(found[:, window.first : window.stop], alone[:, window.first - window.start - 1 :], atol=1e-5)


def test_a_step_is_that_of_adamw_on_the_naive_loss():
    training = TRAINING.replace(steps=1, weight_decay=0.1)
    (batch,) = make_batches(training, VOCABULARY, DOCUMENTS, 64, [0])
    longce = LongCE(context=16, stride=16)
    model, other = small(), small()
    (step,) = steps(model, training, [batch], arm=ARMS["longce"], longce=longce)
    rows = [(row, row) for row in torch.from_numpy(batch.token_ids)]
    loss, weights = naive_longce(other, rows, 16, 16, longce.gamma)
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
    optimizer.step()
    assert (step.number, step.loss) == (1, pytest.approx(loss.item(), rel=1e-5))
    assert np.allclose(step.weights.ravel(), torch.cat(weights).numpy(), atol=1e-4)
    assert (step.answers == batch.answers[:, 1:]).all()
    expected = weights_of(other)
    for name, weight in weights_of(model).items():
        assert torch.allclose(weight, expected[name], atol=2e-4), name


def test_training_stops_after_its_steps_and_takes_a_batch_each():
    training = TRAINING.replace(steps=3)
    taken = iter(make_batches(training.replace(steps=9), VOCABULARY, DOCUMENTS, 64, [0]))
    assert [step.number for step in steps(small(), training, taken)] == [1, 2, 3]
    assert len(list(taken)) == 6


def test_the_learning_rate_warms_up_and_then_falls_to_its_end():
    training = TRAINING.replace(steps=100, warmup=10, end=0.1)
    share = [models.learning_rate_share(training, step) for step in range(100)]
    assert share[0] == pytest.approx(0.1, rel=1e-3)
    assert max(share) == share[9]
    assert share[50] == pytest.approx(0.55)
    assert share[99] == pytest.approx(0.1, abs=1e-2)
    constant = training.replace(warmup=0, end=1.0)
    assert {models.learning_rate_share(constant, step) for step in range(100)} == {1.0}


def test_timing_does_not_change_the_model():
    model = small()
    before = weights_of(copy.deepcopy(model))
    pairs = models.time_steps(model, IDS[:2], LongCE(context=8, stride=8), 3)
    assert len(pairs) == 3
    assert all(seconds > 0 and math.isfinite(seconds) for pair in pairs for seconds in pair)
    assert all(torch.equal(before[name], weight) for name, weight in weights_of(model).items())


def test_ce_weighs_all_tokens_alike():
    batch = FactBatch(token_ids=IDS, answers=np.zeros(IDS.shape, dtype=bool))
    (step,) = steps(small(), TRAINING.replace(steps=1), [batch])
    assert (step.weights == 1).all()
    assert step.weights.shape == (11, 39)


def test_training_without_a_rate_is_refused():
    with pytest.raises(UserError, match="training has no learning_rate: set one, such as 3e-4"):
        models.train(small(), STUDY.training, [])
