"""Short training runs of tiny models, shared by the tests and by the processes that they start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import torch
import transformers

import longlens
from longlens.losses.settings import LongCE
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
