"""LongCE in TRL: packing, masks of completions, adapters."""

import copy
import inspect
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
import transformers

from longlens.errors import UserError
from longlens.losses.settings import ChunkedLongCE, LongCE
from tests.reference.longce import naive_longce
from tests.tiny import byte_tokenizer, tiny_model
from tests.train.runs import RULE, arguments, losses, pad_right, rows, trained, weights_of
from tests.train.test_trainer import assert_stepped, documents, naive_step

peft = pytest.importorskip("peft")
trl = pytest.importorskip("trl")

from longlens.train import LongCEConfig, LongCESFTConfig, LongCESFTTrainer  # noqa: E402

ROOT = Path(__file__).parents[2]


def tokenizer():
    made = byte_tokenizer(adds_bos=False)
    made.pad_token = "</s>"
    return made


def sft(folder, model=None, *, data=None, longce=RULE, kind=LongCESFTTrainer, **given):
    changes = {"gradient_checkpointing": False, "max_length": None, "bf16": False} | given.pop("args", {})
    trainer = kind(
        model=tiny_model("llama") if model is None else model,
        args=trl.SFTConfig(**arguments(folder, **changes)),
        train_dataset=rows() if data is None else data,
        processing_class=tokenizer(),
        **({"longce": longce} if kind is LongCESFTTrainer else {}),
        **given,
    )
    trainer.train()
    return trainer


def plain(lengths):
    data = rows(lengths).remove_columns("labels")
    return data, [(torch.tensor(ids), torch.tensor(ids)) for ids in data["input_ids"]]


def test_rows_padded_and_packed_into_one_make_the_naive_step(tmp_path):
    data, documents = plain((60, 40, 52, 33))
    expected = naive_step(tiny_model("llama"), documents)
    assert_stepped(sft(tmp_path / "a", data=data), expected)
    assert_stepped(sft(tmp_path / "b", data=data, args={"padding_free": True, "pad_to_multiple_of": 64}), expected)
    halves = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "padding_free": True}
    assert_stepped(sft(tmp_path / "c", data=data, args=halves), expected)


def test_packing_that_splits_long_documents(tmp_path):
    data, documents = plain((60, 100, 20, 30))
    pieces = [half for ids, _ in documents for half in ids.split(64)]
    expected = naive_step(tiny_model("llama"), [(piece, piece) for piece in pieces])
    trainer = sft(tmp_path, data=data, args={"packing": True, "packing_strategy": "bfd_split", "max_length": 64})
    assert len(trainer.train_dataset) == 4
    assert max(len(lengths) for lengths in trainer.train_dataset["seq_lengths"]) > 1
    assert_stepped(trainer, expected)


def test_only_completions_are_in_the_loss(tmp_path):
    texts = [
        ("a long prompt of some words " * 2, "and its completion"),
        ("short ", "completion of a few more words" * 2),
    ]
    data = datasets.Dataset.from_dict({"prompt": [p for p, _ in texts], "completion": [c for _, c in texts]})
    encode = tokenizer()
    documents = []
    for prompt, completion in texts:
        ids = torch.tensor(encode(prompt + completion)["input_ids"] + [257])
        labels = ids.clone()
        labels[: len(encode(prompt)["input_ids"])] = -100
        documents.append((ids, labels))
    assert_stepped(sft(tmp_path, data=data), naive_step(tiny_model("llama"), documents))


needs_driver = pytest.mark.skipif(
    torch.version.cuda is not None and not torch.cuda.is_available(),
    reason="TRL's own loss takes Triton where torch is built for CUDA, and there is no driver",
)


@needs_driver
def test_without_weights_it_is_trl(tmp_path):
    for name, args in {"padded": {}, "packed": {"padding_free": True}}.items():
        ours = sft(tmp_path / name, longce=None, args=args)
        theirs = sft(tmp_path / name, kind=trl.SFTTrainer, args=args)
        assert losses(ours) == pytest.approx(losses(theirs), rel=1e-6)
        expected = weights_of(theirs.model)
        for part, weight in weights_of(ours.model).items():
            assert torch.allclose(weight, expected[part], atol=1e-6)


@needs_driver
def test_evaluation_is_plain_cross_entropy(tmp_path):
    trainer = sft(tmp_path, eval_dataset=rows(seed=2))
    theirs = sft(
        tmp_path, longce=None, kind=trl.SFTTrainer, eval_dataset=rows(seed=2), args={"per_device_eval_batch_size": 4}
    )
    trainer.model.load_state_dict(theirs.model.state_dict())
    assert trainer.evaluate()["eval_loss"] == pytest.approx(theirs.evaluate()["eval_loss"], rel=1e-6)


def test_lora_trains_its_adapters_alone(tmp_path):
    torch.manual_seed(0)
    settings = peft.LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"], init_lora_weights=False
    )
    trainer = sft(tmp_path, peft_config=settings, args={"gradient_checkpointing": True})
    base = weights_of(tiny_model("llama"))
    moved = set()
    for name, weight in weights_of(trainer.model).items():
        plain_name = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if plain_name in base:
            assert torch.equal(weight, base[plain_name]), name
        elif "modules_to_save" in name:
            moved.add("head" if not torch.equal(weight, base["lm_head.weight"]) else "")
        else:
            assert "lora" in name or "original_module" in name
            moved.add("lora")
    assert moved == {"head", "lora"}


def test_lora_gradients_are_those_of_the_naive_loss(tmp_path):
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    model = peft.get_peft_model(tiny_model("llama"), settings)
    exact = copy.deepcopy(model).train()
    documents = [(torch.tensor(row["input_ids"]), torch.tensor(row["labels"])) for row in rows()]
    loss, _ = naive_longce(exact, documents, RULE.context, RULE.stride, RULE.gamma)
    loss.backward()
    before = weights_of(model)
    trained(tmp_path, model, data_collator=pad_right)
    for name, parameter in exact.named_parameters():
        step = torch.zeros(()) if parameter.grad is None else 0.01 * parameter.grad
        assert torch.allclose(weights_of(model)[name], before[name] - step, atol=1e-6)
        assert parameter.requires_grad == ("lora" in name)


def test_adapters_that_the_loss_would_pass_by_are_refused(tmp_path):
    on_head = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    with pytest.raises(UserError, match="an adapter is attached to the vocabulary head of LlamaForCausalLM"):
        trained(tmp_path, on_head)
    virtual = peft.get_peft_model(
        tiny_model("llama"), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    with pytest.raises(UserError, match="bypasses the virtual tokens of"):
        trained(tmp_path, virtual)


def test_what_trl_would_lose_or_change_is_refused(tmp_path):
    weighed = rows(token_weights=[[1.0] * n for n in (60, 40, 52, 33)])
    with pytest.raises(UserError, match="token_weights was dropped while the dataset was prepared"):
        sft(tmp_path, data=weighed, longce=LongCE(gamma=RULE.gamma), args={"packing": True, "max_length": 64})
    with pytest.raises(UserError, match="not known to be correct with loss_type"):
        sft(tmp_path, args={"loss_type": "dft"})
    with pytest.raises(UserError, match="token_weights for 32 tokens: expected one per token"):
        sft(tmp_path, data=weighed, longce=LongCE(gamma=RULE.gamma), args={"max_length": 32})
    with pytest.raises(UserError, match=r"set router_aux_loss_coef=0\.0 in SFTConfig"):
        sft(tmp_path, tiny_model("mixtral"))
    sft(tmp_path, tiny_model("mixtral"), args={"router_aux_loss_coef": 0.0})


def test_offline_weights_in_trl(tmp_path):
    expected = naive_step(tiny_model("llama"), documents())
    lengths = [len(ids) - 1 for ids, _ in documents()]
    weighed = rows(token_weights=[[1.0, *w.tolist()] for w in expected[1].split(lengths)])
    for args in ({}, {"padding_free": True}):
        assert_stepped(sft(tmp_path, data=weighed, args=args, longce=LongCE(gamma=RULE.gamma)), expected)


def test_trl_is_imported_where_it_is_asked_for():
    code = (
        "import sys, longlens; print('longlens.train' in sys.modules); "
        "from longlens.train import LongCETrainer, LongPPLCallback; print('trl' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.split() == ["False", "False"]


def test_rows_that_are_packed_already_need_a_collator_that_keeps_where_documents_begin(tmp_path):
    packed = rows((60, 60)).map(lambda row: {"position_ids": [*range(40), *range(20)]})
    with pytest.raises(UserError, match=r"begin again with each document \(2 in the first row\), and .* batches of 1"):
        sft(tmp_path / "a", data=packed)
    ids = [torch.tensor(row) for row in packed["input_ids"]]
    labels = [torch.tensor(row) for row in packed["labels"]]
    documents = [(i[part], k[part]) for i, k in zip(ids, labels, strict=True) for part in (slice(40), slice(40, 60))]
    kept = sft(tmp_path / "b", data=packed, data_collator=transformers.default_data_collator)
    assert_stepped(kept, naive_step(tiny_model("llama"), documents))


def test_settings_of_the_loss_in_the_arguments(tmp_path):
    made = LongCESFTConfig(
        **arguments(
            tmp_path, context=16, stride=8, gamma=1.1, gradient_checkpointing=False, max_length=None, bf16=False
        )
    )
    assert isinstance(made, trl.SFTConfig)
    trainer = LongCESFTTrainer(tiny_model("llama"), made, train_dataset=rows(), processing_class=tokenizer())
    trainer.train()
    assert trainer.longce == RULE
    assert_stepped(trainer, naive_step(tiny_model("llama"), documents()))
    (parsed,) = transformers.HfArgumentParser(LongCESFTConfig).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--use_cpu", "--context", "1024", "--loss", "chunked-longce", "--packing"]
    )
    assert (parsed.longce, parsed.packing) == (ChunkedLongCE(context=1024), True)
    plain_config = trl.SFTConfig(output_dir=str(tmp_path), use_cpu=True)
    ours = LongCESFTConfig(output_dir=str(tmp_path), use_cpu=True)
    assert {name: getattr(ours, name) for name in plain_config.to_dict()} == {
        name: getattr(plain_config, name) for name in plain_config.to_dict()
    }


def test_the_signature_is_that_of_trl():
    ours, theirs = (inspect.signature(kind).parameters for kind in (LongCESFTTrainer, trl.SFTTrainer))
    assert list(ours) == [*theirs, "longce"]
    assert {name: ours[name].default for name in theirs} == {name: p.default for name, p in theirs.items()}


def test_arguments_of_the_other_trainer_are_refused(tmp_path):
    with pytest.raises(UserError, match="`args` is LongCEConfig, without the settings of TRL: write LongCESFTConfig"):
        LongCESFTTrainer(tiny_model("llama"), LongCEConfig(output_dir=str(tmp_path)), train_dataset=rows())


def test_the_ten_lines_of_the_page_train(tmp_path, monkeypatch, capsys):
    """examples/longce_trl.py, which docs/train.md shows, with a tiny model in place of SmolLM2."""
    source = (ROOT / "examples" / "longce_trl.py").read_text()
    code = source.split('\n"""\n')[1].lstrip("\n")
    assert f"```python\n{code}```" in (ROOT / "docs" / "train.md").read_text()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("longlens.load_scorer", lambda name: SimpleNamespace(model=tiny_model("llama")))
    monkeypatch.setattr("longlens.models.load_tokenizer", lambda name: tokenizer())
    monkeypatch.setenv("WANDB_MODE", "disabled")
    names = runpy.run_path(str(ROOT / "examples" / "longce_trl.py"))
    logged = [line for line in names["trainer"].state.log_history if "loss" in line]
    assert [line["step"] for line in logged] == [1, 2]
    page = (ROOT / "docs" / "train.md").read_text()
    for name in logged[0]:
        assert name == "step" or name in NOT_OURS or f"`{name}`" in page, name


NOT_OURS = {"entropy", "num_tokens", "mean_token_accuracy"}
"""What TRL logs."""
