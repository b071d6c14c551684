"""LongCETrainer: one step equals the naive loss's, however the step is cut into micro-batches."""

import copy
import inspect
import math

import datasets
import pytest
import torch
import transformers

from longlens.errors import LonglensWarning, UserError
from longlens.logprobs import Head
from longlens.losses.settings import ChunkedLongCE, LongCE, SampledLongCE
from longlens.train import LongCEConfig, LongCETrainer
from tests.reference.longce import naive_longce
from tests.tiny import VOCABULARY, tiny_model
from tests.train.runs import LEARNING_RATE, RULE, arguments, losses, pad_right, rows, trained, weights_of

OFFLINE = LongCE(gamma=RULE.gamma)


def naive_step(model, documents, rule=RULE):
    """Loss, weights and parameters after one step of SGD on the naive loss."""
    model = copy.deepcopy(model).train()
    loss, weights = naive_longce(model, documents, rule.context, rule.stride, rule.gamma)
    loss.backward()
    stepped = {n: p.detach() - LEARNING_RATE * p.grad for n, p in model.named_parameters() if p.grad is not None}
    return loss.item(), torch.cat(weights), stepped


def documents(data=None):
    return [(torch.tensor(row["input_ids"]), torch.tensor(row["labels"])) for row in data or rows()]


def assert_stepped(trainer, expected, start=None):
    loss, _, parameters = expected
    assert losses(trainer)[0] == pytest.approx(loss, rel=1e-6)
    before = weights_of(tiny_model("llama") if start is None else start)
    for name, weight in weights_of(trainer.model).items():
        assert torch.allclose(weight, parameters[name], atol=1e-6, rtol=1e-6), name
    assert any((weights_of(trainer.model)[name] - before[name]).abs().max() > 1e-4 for name in before)


@pytest.mark.parametrize(("size", "accumulation"), [(4, 1), (2, 2), (1, 4), (3, 2)])
def test_a_step_is_the_naive_one_however_it_is_cut(tmp_path, size, accumulation):
    trainer = trained(tmp_path, args={"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation})
    expected = naive_step(tiny_model("llama"), documents())
    assert_stepped(trainer, expected)
    # the logged weights are those of the naive loss
    labels = torch.cat([label[1:] for _, label in documents()])
    weights = expected[1][labels != -100]
    logged = trainer.state.log_history[0]
    assert logged["longce_mean_weight"] == pytest.approx(weights.mean().item(), rel=1e-6)
    assert logged["longce_share_at_gamma"] == pytest.approx((weights > 1.0999).double().mean().item())
    assert 0 < logged["longce_share_at_gamma"] < 0.9
    assert logged["longce_share_above_2"] == 0
    scored_from_context = sum(int((label[16:] != -100).sum()) for _, label in documents())
    assert logged["longce_share_weighed"] == pytest.approx(scored_from_context / len(weights))


@pytest.mark.parametrize("accumulation", [1, 4])
def test_without_weights_it_is_the_trainer_of_transformers(tmp_path, accumulation):
    settings = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    ours = trained(tmp_path / "a", longce=None, eval_dataset=rows(seed=3), args=settings)
    theirs = trained(tmp_path / "b", kind=transformers.Trainer, eval_dataset=rows(seed=3), args=settings)
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-6)
    expected = weights_of(theirs.model)
    for name, weight in weights_of(ours.model).items():
        assert torch.allclose(weight, expected[name], atol=1e-6)
    weighted = trained(tmp_path / "c", eval_dataset=rows(seed=3), args=settings)
    assert abs(losses(weighted)[0] - losses(ours)[0]) > 1e-3
    assert not any(name.startswith("longce") for name in ours.state.log_history[0])
    # the evaluation loss is plain CE in every arm
    plain = theirs.evaluate()["eval_loss"]
    assert ours.evaluate()["eval_loss"] == pytest.approx(plain, rel=1e-6)
    weighted.model.load_state_dict(theirs.model.state_dict())
    assert weighted.evaluate()["eval_loss"] == pytest.approx(plain, rel=1e-6)


def test_metrics_of_predictions_get_logits_and_labels(tmp_path):
    seen = {}

    def metrics(found):
        seen.update(logits=found.predictions, labels=found.label_ids)
        return {"seen": 1.0}

    trainer = trained(tmp_path, eval_dataset=rows((20,) * 4), compute_metrics=metrics)
    assert trainer.evaluate()["eval_seen"] == 1.0
    assert seen["logits"].shape == (4, 20, VOCABULARY)
    assert seen["labels"].tolist() == rows((20,) * 4)["labels"]


def test_packed_documents_are_as_if_each_were_alone(tmp_path):
    collator = transformers.DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)
    for attention in ("sdpa", "eager"):
        model = tiny_model("llama")
        model.set_attn_implementation(attention)
        trainer = trained(
            tmp_path,
            model,
            data_collator=collator,
            args={"per_device_train_batch_size": 2} | {"gradient_accumulation_steps": 2},
        )
        assert_stepped(trainer, naive_step(tiny_model("llama"), documents()))


@pytest.mark.parametrize("boundary", ["position_ids", "seq_idx", "cu_seq_lens_q"])
def test_first_tokens_of_packed_documents_are_not_counted(tmp_path, boundary):
    """Also where the collator leaves them their labels, which Trainer's own count would take."""
    data = rows().remove_columns("labels")

    def pack(features):
        ids = [torch.tensor(row["input_ids"]) for row in features]
        lengths = torch.tensor([len(row) for row in ids])
        made = {
            "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
            "seq_idx": torch.repeat_interleave(torch.arange(len(ids)), lengths)[None],
            "cu_seq_lens_q": torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).int(),
        }
        batch = {"input_ids": torch.cat(ids)[None], "labels": torch.cat(ids)[None], boundary: made[boundary]}
        if boundary == "position_ids":
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])  # with which transformers alone would leak
        return batch

    trainer = trained(tmp_path, data_collator=pack, train_dataset=data, args={"per_device_train_batch_size": 4})
    assert_stepped(trainer, naive_step(tiny_model("llama"), [(ids, ids) for ids, _ in documents()]))


def test_weights_of_the_batch_replace_the_short_pass(tmp_path, monkeypatch):
    _, weights, _ = naive_step(tiny_model("llama"), documents())
    per_token = [[1.0, *w.tolist()] for w in weights.split([len(ids) - 1 for ids, _ in documents()])]
    expected = naive_step(tiny_model("llama"), documents())
    monkeypatch.setattr("longlens.losses.longce.score_short", lambda *_: pytest.fail("the short pass ran"))
    for collator in (pad_right, transformers.DataCollatorWithFlattening()):
        data = rows(token_weights=per_token)
        trainer = trained(
            tmp_path,
            train_dataset=data,
            data_collator=collator,
            longce=OFFLINE,
            args={"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        )
        assert_stepped(trainer, expected)
    plain = trained(tmp_path, train_dataset=rows(token_weights=per_token), longce=None)
    assert losses(plain)[0] != pytest.approx(expected[0], rel=1e-4)
    # gamma caps weights that were made with a larger one; nothing else of the loss's settings would have an effect.
    larger = [[w * (2.0 if w > 1.0999 else 1.0) for w in row] for row in per_token]
    with pytest.warns(LonglensWarning, match=r"token_weights go up to 2\.2 and `gamma` is 1\.1: larger weights are"):
        capped = trained(tmp_path, train_dataset=rows(token_weights=larger), longce=OFFLINE)
    assert_stepped(capped, expected)
    for dead in (RULE, SampledLongCE(share=0.25), ChunkedLongCE(), LongCE(short_dtype="bfloat16")):
        with pytest.raises(UserError, match="so there is no short-context pass, and only `gamma` and `floor` of"):
            trained(tmp_path, train_dataset=rows(token_weights=per_token), longce=dead)
        stream = datasets.IterableDataset.from_generator(lambda: iter(rows(token_weights=per_token)))
        assert stream.column_names is None  # so that only a batch shows that there are weights
        with pytest.raises(UserError, match="so there is no short-context pass, and only `gamma` and `floor` of"):
            trained(tmp_path, train_dataset=stream, longce=dead)


def test_short_logprobs_of_the_batch_replace_the_short_pass(tmp_path, monkeypatch):
    from tests.reference.longce import naive_short

    model = tiny_model("llama")
    short = [[None, *naive_short(model, ids, 16, 8).tolist()] for ids, _ in documents()]
    short = [[None if v is None or math.isnan(v) else v for v in row] for row in short]
    monkeypatch.setattr("longlens.losses.longce.score_short", lambda *_: pytest.fail("the short pass ran"))
    trainer = trained(tmp_path, train_dataset=rows(short_logprobs=short), longce=OFFLINE)
    assert_stepped(trainer, naive_step(tiny_model("llama"), documents()))


def test_a_run_that_stopped_goes_on_as_if_it_had_not(tmp_path):
    args = {"max_steps": 4, "per_device_train_batch_size": 2, "optim": "adamw_torch", "save_strategy": "steps"}
    made = {"train_dataset": rows((40, 50, 45, 33, 60, 38, 41, 52))}
    whole = trained(tmp_path / "a", tiny_model("llama", attention_dropout=0.2), args=args | {"save_steps": 2}, **made)
    again = LongCETrainer(
        model=tiny_model("llama", attention_dropout=0.2),
        args=whole.args,
        data_collator=pad_right,
        longce=RULE,
        **made,
    )
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert len(set(losses(whole))) == 4
    assert losses(again) == losses(whole)
    for name, weight in weights_of(again.model).items():
        assert torch.equal(weight, weights_of(whole.model)[name])


def test_gradient_checkpointing_changes_nothing(tmp_path):
    trainer = trained(tmp_path, args={"gradient_checkpointing": True})
    assert_stepped(trainer, naive_step(tiny_model("llama"), documents()))


def test_dropout_is_in_the_long_pass_alone(tmp_path):
    model = tiny_model("llama", attention_dropout=0.5)
    seen = []
    model.model.layers[0].register_forward_pre_hook(
        lambda module, _: seen.append((module.training, torch.is_grad_enabled()))
    )
    trained(tmp_path, model)
    assert seen[-1] == (True, True)
    assert set(seen[:-1]) == {(False, False)}
    assert model.training


def test_autocast_runs_the_model_in_bf16_and_the_head_in_fp32(tmp_path, monkeypatch):
    seen = set()
    logits = Head.logits
    monkeypatch.setattr(
        Head, "logits", lambda self, h, *to: seen.add(logits(self, h, *to).dtype) or logits(self, h, *to)
    )
    model = tiny_model("llama")
    inside = []
    model.model.layers[0].mlp.down_proj.register_forward_hook(lambda *a: inside.append(a[-1].dtype))
    trainer = trained(tmp_path, model, args={"bf16": True})
    assert set(inside) == {torch.bfloat16}
    assert seen == {torch.float32}
    assert losses(trainer)[0] == pytest.approx(naive_step(tiny_model("llama"), documents())[0], rel=0.02)


def test_no_logits_of_a_whole_sequence_exist(tmp_path, monkeypatch):
    model = tiny_model("llama")
    trained(tmp_path, model)  # the head is held against the model's own logits once
    sizes = []
    monkeypatch.setattr("longlens.logprobs.token_logprobs.__kwdefaults__", {"block_bytes": 8 * VOCABULARY * 4})
    logits = Head.logits
    monkeypatch.setattr(Head, "logits", lambda self, h, *to: sizes.append(len(h)) or logits(self, h, *to))
    monkeypatch.setattr(
        type(model), "forward", lambda *_, **__: pytest.fail("the model's own forward makes all logits")
    )
    monkeypatch.setattr(model.lm_head, "forward", lambda *_: pytest.fail("the head makes all logits"))
    trained(tmp_path, model, eval_dataset=rows(), args={"remove_unused_columns": False}).evaluate()
    assert max(sizes) == 8


def test_documents_shorter_than_the_context_are_said_to_be(tmp_path):
    with pytest.warns(LonglensWarning, match="no token had a short-context score, so LongCE equaled CE"):
        trained(tmp_path, longce=LongCE(context=100, stride=8))


def test_a_router_loss_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"set router_aux_loss_coef=0\.0 in SFTConfig"):
        trained(tmp_path, tiny_model("mixtral", output_router_logits=True))


def test_mixture_of_experts_without_router_loss(tmp_path):
    model = tiny_model("mixtral")
    assert_stepped(trained(tmp_path, model), naive_step(tiny_model("mixtral"), documents()), tiny_model("mixtral"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"torch_compile": True}, "not known to be correct with torch_compile"),
        ({"label_smoothing_factor": 0.1}, "not known to be correct with label_smoothing_factor"),
    ],
)
def test_settings_that_were_not_shown_to_work_are_refused(tmp_path, args, message):
    with pytest.raises(UserError, match=message):
        trained(tmp_path, args=args)


def test_the_first_fsdp_is_refused(tmp_path, monkeypatch):
    real = LongCETrainer._refuse_unshown

    def pretend(self):
        self.is_fsdp_enabled = True  # and accelerate says that it is not the second
        real(self)

    monkeypatch.setattr(LongCETrainer, "_refuse_unshown", pretend)
    with pytest.raises(UserError, match=r"FSDP 1 .* with DistributedDataParallel, FSDP2 or DeepSpeed"):
        trained(tmp_path)


def config(folder, **changes):
    return LongCEConfig(**arguments(folder, context=RULE.context, stride=RULE.stride, gamma=RULE.gamma, **changes))


def test_settings_of_the_loss_in_the_arguments_are_the_same_loss(tmp_path):
    trainer = LongCETrainer(
        model=tiny_model("llama"), args=config(tmp_path), data_collator=pad_right, train_dataset=rows()
    )
    assert trainer.longce == RULE
    trainer.train()
    assert_stepped(trainer, naive_step(tiny_model("llama"), documents()))


@pytest.mark.parametrize(
    ("given", "loss"),
    [
        ({}, LongCE()),
        ({"loss": "ce"}, None),
        ({"gamma": 4.0, "floor": 1.0}, LongCE(gamma=4.0, floor=1.0)),
        ({"loss": "sampled-longce", "context": 64, "share": 0.25}, SampledLongCE(context=64, share=0.25)),
        (
            {"loss": "chunked-longce", "stride": 64, "short_dtype": "bfloat16"},
            ChunkedLongCE(stride=64, short_dtype="bfloat16"),
        ),
    ],
)
def test_arguments_go_through_json_and_the_command_line(tmp_path, given, loss):
    made = LongCEConfig(output_dir=str(tmp_path), use_cpu=True, **given)
    assert made.longce == loss
    file = tmp_path / "arguments.json"
    file.write_text(made.to_json_string())
    parser = transformers.HfArgumentParser(LongCEConfig)
    (read,) = parser.parse_json_file(str(file), allow_extra_keys=True)
    assert (read.longce, read.to_dict()) == (loss, made.to_dict())
    options = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    (parsed,) = parser.parse_args_into_dataclasses(["--output_dir", str(tmp_path), "--use_cpu", *options])
    assert parsed.longce == loss
    assert "--context" in parser.format_help()


def test_a_run_with_its_arguments_goes_on_from_a_checkpoint_that_has_them(tmp_path):
    args = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 2}

    def trainer(settings):
        return LongCETrainer(tiny_model("llama"), settings, pad_right, rows())

    whole = trainer(config(tmp_path / "a", **args))
    whole.train()
    saved = torch.load(tmp_path / "a" / "checkpoint-2" / "training_args.bin", weights_only=False)  # noqa: TID251
    assert (type(saved), saved.longce) == (LongCEConfig, RULE)
    again = trainer(saved)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert losses(again) == losses(whole)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"context": 0}, "`context` is 0; expected at least 1"),
        ({"gamma": "many"}, "`gamma` is 'many'; expected a number"),
        ({"loss": "longec"}, "`loss` is 'longec'; expected one of longce, sampled-longce, chunked-longce, ce"),
        ({"loss": "ce", "stride": 0}, "`stride` is 0; expected at least 1"),
        ({"share": 0.5}, "`share` is for sampled-longce, and `loss` is longce: leave it out"),
        ({"loss": "sampled-longce", "share": 2.0}, "`share` is 2.0; expected at most 1"),
    ],
)
def test_arguments_that_cannot_be_are_refused(tmp_path, given, message):
    with pytest.raises(UserError, match=message):
        LongCEConfig(output_dir=str(tmp_path), **given)


def test_settings_of_the_loss_in_two_places_are_refused(tmp_path):
    with pytest.raises(UserError, match="`longce` is given, and `args` is LongCEConfig, which has the settings of the"):
        LongCETrainer(tiny_model("llama"), config(tmp_path), pad_right, rows(), longce=None)


def test_the_signature_is_that_of_the_trainer_of_transformers():
    ours, theirs = (inspect.signature(kind).parameters for kind in (LongCETrainer, transformers.Trainer))
    assert list(ours) == [*theirs, "longce"]
    assert not any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in ours.values())
    assert {name: ours[name].default for name in theirs} == {name: p.default for name, p in theirs.items()}
