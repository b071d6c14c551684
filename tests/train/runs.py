"""Short training runs of tiny models, shared by the tests and by the processes that they start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers

import longlens
from longlens.losses.settings import LongCE, SampledLongCE
from longlens.rope import EABF, apply
from longlens.scoring.transformers import TransformersScorer
from longlens.train import LongCETrainer
from tests.tiny import VOCABULARY, byte_tokenizer, tiny_model

RULE = LongCE(context=16, stride=8, gamma=1.1)
LENGTHS = (60, 40, 52, 33)
LEARNING_RATE = 0.01
"""Of plain SGD, so that a step is the gradient."""


def rows(lengths: tuple[int, ...] = LENGTHS, seed: int = 0, **columns: Any) -> datasets.Dataset:
    """Random rows; the first tokens of each are context alone, of another number in each."""
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(1, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    labels = [[-100] * (3 * place) + row[3 * place :] for place, row in enumerate(ids)]
    return datasets.Dataset.from_dict({"input_ids": ids, "labels": labels, **columns})


def pad_right(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """What collators of transformers make of rows of several lengths."""
    width = max(len(row["input_ids"]) for row in features)
    padding = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    full = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in features]
    return {
        name: torch.tensor([list(row[name]) + [value] * (width - len(row[name])) for row in full])
        for name, value in padding.items()
    }


def arguments(folder: Path | str, **changes: Any) -> dict[str, Any]:
    """Of one step over four rows."""
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": [],
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        **changes,
    }


def trained(folder: Path | str, model: Any = None, *, kind: Any = LongCETrainer, **given: Any) -> Any:
    """A trainer after its run; ``given`` are its arguments, and under ``args`` changes to `arguments`."""
    changes = given.pop("args", {})
    given.setdefault("train_dataset", rows())
    given.setdefault("data_collator", pad_right)
    if issubclass(kind, LongCETrainer):
        given.setdefault("longce", RULE)
    trainer = kind(
        model=tiny_model("llama") if model is None else model,
        args=transformers.TrainingArguments(**arguments(folder, **changes)),
        **given,
    )
    trainer.train()
    return trainer


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def offline_rows(name: str) -> datasets.Dataset:
    """Rows with weights or short log-probabilities, one at each token, none alike."""
    generator = torch.Generator().manual_seed(1)
    values = [torch.rand(length, generator=generator) for length in LENGTHS]
    if name == "short_logprobs":
        values = [torch.where(value < 0.2, torch.nan, -8 * value) for value in values]
    return rows(**{name: [value.tolist() for value in values]})


def smooth_model() -> Any:
    """In float32: a model whose gradients are no larger than 1, and so rounding too."""
    model = tiny_model("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.25)
    return model


def _extended() -> Any:
    return apply(tiny_model("llama", torch.float64, max_position_embeddings=32), EABF(factor=4, theta=2e6))


def _adapted() -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    return peft.get_peft_model(tiny_model("llama", torch.float64), lora).to(torch.float64)


SEQUENCES: dict[str, Callable[[], dict[str, Any]]] = {
    "float32": lambda: {"model": smooth_model()},
    "ce": lambda: {"longce": None},
    "online": lambda: {
        "args": {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 2},
        "eval_dataset": rows((44, 37, 26), seed=1),
    },
    "evaluated": lambda: {
        "args": {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 1},
        "eval_dataset": rows((44, 37, 26), seed=1),
    },
    "accumulated": lambda: {"args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}},
    "even": lambda: {
        "args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
        "train_dataset": rows((58,) * 4),
    },
    "padded": lambda: {"train_dataset": rows((58, 41, 31, 18))},
    "sampled": lambda: {"longce": SampledLongCE(context=16, stride=8, gamma=1.1)},
    "token_weights": lambda: {"train_dataset": offline_rows("token_weights"), "longce": LongCE()},
    "short_logprobs": lambda: {"train_dataset": offline_rows("short_logprobs"), "longce": LongCE(gamma=1.1)},
    "of a rank": lambda: {"args": {"average_tokens_across_devices": False}},
    "tied": lambda: {"model": tiny_model("qwen3-tied", torch.float64)},
    "eabf": lambda: {"model": _extended()},
    "lora": lambda: {"model": _adapted()},
}
"""Runs whose sequences may be spread over processes without a difference, by name."""


ULYSSES = ("ce", "evaluated", "even", "padded", "token_weights", "short_logprobs", "of a rank")
"""Those of them that run with DeepSpeed; gloo gathers rows of one length alone."""


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def documents_and_keys() -> Any:
    """Held-out documents, and the tokens of them that are key to another tiny model."""
    documents = [
        longlens.Document(id=name, text=" ".join(f"{name}{i} {i * 7 % 13}" for i in range(12))) for name in "abc"
    ]
    evaluator = TransformersScorer(tiny_model("llama", num_hidden_layers=2), byte_tokenizer())
    scores = longlens.score(documents, evaluator, context=16, stride=8)
    return documents, longlens.select_key_tokens(scores, alpha=0.1, beta=-8)


def in_sequence(name: str) -> dict[str, Any]:
    """Arguments of `trained` for one of `SEQUENCES`; in float64, where nothing is lost to rounding, unless named so."""
    given = SEQUENCES[name]()
    given.setdefault("model", tiny_model("llama", torch.float64))
    return {**given, "args": {**given.get("args", {}), "learning_rate": 1.0}}  # weights move by the gradient itself
