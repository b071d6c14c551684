"""LongPPL during training: its values, and that training does not notice it."""

import random

import numpy as np
import pytest
import torch

import longlens
from longlens.errors import UserError
from longlens.scoring.transformers import TransformersScorer
from longlens.train import LongPPLCallback
from tests.tiny import byte_tokenizer, tiny_model
from tests.train.runs import documents_and_keys, losses, rows, trained, weights_of

EVERY_STEP = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 3, "per_device_train_batch_size": 2}


@pytest.fixture(scope="module")
def held_out():
    return documents_and_keys()


def train(folder, held_out, callbacks=True, **given):
    documents, keys = held_out
    torch.manual_seed(5)
    model = tiny_model("llama", attention_dropout=0.3)
    return trained(
        folder,
        model,
        eval_dataset=rows(),
        processing_class=byte_tokenizer(),
        callbacks=[LongPPLCallback(documents, keys=keys)] if callbacks else [],
        args=EVERY_STEP,
        **given,
    )


def test_training_is_the_same_to_the_bit_with_it_and_without(tmp_path, held_out):
    with_it, without = (train(tmp_path / str(on), held_out, callbacks=on) for on in (True, False))
    assert losses(with_it) == losses(without)
    for name, weight in weights_of(with_it.model).items():
        assert torch.equal(weight, weights_of(without.model)[name])
    assert [e["eval_loss"] for e in with_it.state.log_history if "eval_loss" in e] == [
        e["eval_loss"] for e in without.state.log_history if "eval_loss" in e
    ]


def test_generators_modes_and_forward_are_put_back(held_out, monkeypatch):
    documents, keys = held_out
    model = tiny_model("llama").train()
    model.model.layers[1].eval()
    model._original_forward = model.forward  # as accelerate does it
    mine = model.forward = lambda *_, **__: pytest.fail("accelerate's forward would round the logits")
    real = TransformersScorer.logprobs

    def drawing(self, requests):
        random.random(), np.random.rand(), torch.rand(1)
        return real(self, requests)

    monkeypatch.setattr(TransformersScorer, "logprobs", drawing)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    LongPPLCallback(documents, keys=keys)._evaluate(model, byte_tokenizer())
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert model.training
    assert not model.model.layers[1].training
    assert model.forward is mine


def test_it_equals_perplexity_of_scores_made_apart(tmp_path, held_out):
    trainer = train(tmp_path, held_out)
    documents, keys = held_out
    scores = longlens.score(documents, TransformersScorer(trainer.model, byte_tokenizer()), context=None)
    expected = longlens.perplexity(scores, keys=keys)
    logged = [entry for entry in trainer.state.log_history if "eval_longppl" in entry]
    assert [entry["step"] for entry in logged] == [1, 2, 3]
    assert logged[-1]["eval_ppl"] == expected.ppl
    assert logged[-1]["eval_longppl"] == expected.longppl
    assert logged[-1]["eval_num_key_tokens"] == expected.num_key_tokens > 0
    assert expected.longppl != expected.ppl
    assert trainer.evaluate()["eval_longppl"] == expected.longppl


def test_another_trainer_has_it_in_its_history(tmp_path, held_out):
    import transformers

    trainer = train(tmp_path, held_out, kind=transformers.Trainer)
    assert sum("eval_longppl" in entry for entry in trainer.state.log_history) == 3


def test_under_autocast_the_model_is_scored_as_it_is(tmp_path, held_out):
    documents, keys = held_out
    trainer = trained(
        tmp_path,
        eval_dataset=rows(),
        processing_class=byte_tokenizer(),
        args={**EVERY_STEP, "max_steps": 1, "bf16": True},
    )
    trainer.add_callback(LongPPLCallback(documents, keys=keys))
    found = trainer.evaluate()
    for keep in (True, False):
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=keep)
        scores = longlens.score(documents, TransformersScorer(model, byte_tokenizer()), context=None)
        assert found["eval_longppl"] == longlens.perplexity(scores, keys=keys).longppl
    assert any("eval_longppl" in entry for entry in trainer.state.log_history)


def test_what_cannot_be_is_refused(tmp_path, held_out):
    documents, keys = held_out
    with pytest.raises(UserError, match="no documents to compute LongPPL on"):
        LongPPLCallback([], keys=keys)
    other = longlens.Document(id="z", text="…")
    with pytest.raises(UserError, match="1 of 4 documents have no key tokens, such as 'z'"):
        LongPPLCallback([*documents, other], keys=keys)
    with pytest.raises(UserError, match="needs the model's tokenizer"):
        trained(tmp_path, eval_dataset=rows(), callbacks=[LongPPLCallback(documents, keys=keys)], args=EVERY_STEP)


def test_frequencies_of_dynamic_ntk_are_put_back(held_out):
    """So that training steps of transformers' own trainer do not depend on the documents of the evaluation."""
    documents, keys = held_out
    model = tiny_model("llama-dynamic-ntk", max_position_embeddings=200)
    ids = torch.arange(280)[None]
    with torch.no_grad():
        model(ids)  # the state that a training step of 280 tokens leaves behind
        before = model(ids[:, :240]).logits
        LongPPLCallback(documents, keys=keys)._evaluate(model, byte_tokenizer())
        assert torch.equal(model(ids[:, :240]).logits, before)
