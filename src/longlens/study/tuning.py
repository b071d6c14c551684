"""Runs short fine-tuning of real models, whose weights an experiment compares."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from random import Random
from typing import Any, Literal

from pydantic import Field

from longlens.losses.settings import LongCE
from longlens.progress import Progress
from longlens.settings.recipe import Integer, Real, Settings
from longlens.study.texts import training_prose

_STATIONS = ("amber", "birch", "cobalt", "delta", "ember", "fjord", "garnet", "harbor", "indigo", "juniper")


class Tuning(Settings):
    """A fine-tuning run on texts that no metric and no task uses.

    Attributes:
        data: ``short``: spans of prose; ``retrieval``: prose in which codes are stated and later repeated, in a format
            that no task uses.
        loss: ``ce`` or ``longce``, with K = d = `context`.
        steps: Number of optimizer steps.
        rows: Rows per step.
        length: Tokens per row.
        learning_rate: Peak learning rate of AdamW, after a warm-up over a tenth of the steps.
        context: K and d of LongCE, tokens.
        seed: Seed of the rows.
    """

    data: Literal["short", "retrieval"]
    loss: Literal["ce", "longce"] = "ce"
    steps: Integer = Field(ge=1)
    rows: Integer = Field(ge=1)
    length: Integer = Field(ge=16)
    learning_rate: Real = Field(gt=0)
    context: Integer = Field(default=128, ge=1)
    seed: Integer = 0


MAX_NORM = 1.0
"""Of gradients."""


def training_arguments(folder: str, **own: Any) -> Any:
    """Returns ``TrainingArguments`` of an experiment's runs: rows in order, on the CPU, without output or logs.

    Args:
        folder: Output directory of the Trainer; nothing is written to it.
        own: Arguments of this run, such as steps and rows.
    """
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=folder,
        train_sampling_strategy="sequential",
        max_grad_norm=MAX_NORM,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=True,
        **own,
    )


def tune(model: Any, tokenizer: Any, tuning: Tuning, progress: Progress) -> None:
    """Trains a model in place with `LongCETrainer`: AdamW (0.9, 0.95), gradient norm at most 1, linear warm-up."""
    import torch
    from transformers import PrinterCallback, TrainerCallback

    from longlens.train.trainer import LongCETrainer

    rows = training_rows(tokenizer, tuning)

    class Shown(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            progress.update(state.global_step)

    with tempfile.TemporaryDirectory() as scratch:
        arguments = training_arguments(
            scratch,
            max_steps=tuning.steps,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=tuning.rows,
            learning_rate=tuning.learning_rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=max(1, tuning.steps // 10),
            adam_beta2=0.95,
        )
        trainer = LongCETrainer(
            model,
            arguments,
            train_dataset=[{"input_ids": torch.tensor(row)} for row in rows],
            data_collator=lambda batch: {"input_ids": torch.stack([row["input_ids"] for row in batch])},
            longce=None if tuning.loss == "ce" else LongCE(context=tuning.context, stride=tuning.context),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Shown())
        progress.start(f"{tuning.data} {tuning.loss}", unit="steps", total=tuning.steps)
        try:
            trainer.train()
        finally:
            progress.finish()
    model.eval()


def training_rows(tokenizer: Any, tuning: Tuning) -> list[list[int]]:
    """Returns rows of ``length`` tokens, the same for every loss."""
    rng = Random(f"{tuning.data} {tuning.seed}")
    lines = [line.strip() for text in training_prose() for line in text.splitlines() if len(line) > 40]
    rows: list[list[int]] = []
    while len(rows) < tuning.steps * tuning.rows:
        start = rng.randrange(len(lines) - 400)
        part = lines[start : start + 400]
        if tuning.data == "retrieval":
            part = _with_codes(part, rng, tuning.length)
        ids = tokenizer("\n".join(part), verbose=False)["input_ids"][: tuning.length]
        if len(ids) == tuning.length:
            rows.append(ids)
    return rows


def _with_codes(lines: Sequence[str], rng: Random, length: int) -> list[str]:
    """Returns prose with codes that are stated in its first part and repeated in its second part."""
    shown = list(lines[: max(4, length // 24)])
    names = rng.sample(_STATIONS, 6)
    codes = {name: "".join(rng.choice("0123456789") for _ in range(5)) for name in names}
    half = len(shown) // 2
    first, second = shown[:half], shown[half:]
    for name in names:
        first.insert(rng.randrange(len(first) + 1), f"The code of station {name} is {codes[name]}.")
    for name in rng.sample(names, len(names)):
        second.insert(rng.randrange(len(second) + 1), f"As said above, station {name} has the code {codes[name]}.")
    return first + second
