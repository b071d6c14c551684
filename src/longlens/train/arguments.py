"""From a recipe to the arguments of the Trainer: what longlens sets, and what a recipe may add."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from longlens.errors import UserError, require
from longlens.recipe_file import nearest
from longlens.train.data_settings import ChatData
from longlens.train.recipe import Recipe

# They would break what a run promises: checkpoints that are whole, a log without gaps, the same losses when resumed.
REFUSED = {
    "auto_find_batch_size": "the batch size would not be the recipe's",
    "dataloader_in_order": "the order of rows would not be the same twice",
    "enable_jit_checkpoint": "checkpoints are written by training.save_every",
    "eval_on_start": "the evaluation of the recipe does so",
    "ignore_data_skip": "a resumed run would see rows twice",
    "load_best_model_at_end": "the model is that of the last step",
    "resume_from_checkpoint": "runs resume by themselves",
    "restore_callback_states_from_checkpoint": "runs resume by themselves",
    "save_only_model": "a run could not resume",
    "save_total_limit": "use training.keep",
    "save_on_each_node": "the first process alone writes",
}


def accumulation(recipe: Recipe, processes: int) -> int:
    """Micro-batches of a step in each process.

    Raises:
        UserError: The batch is no whole number of them.
    """
    training = recipe.training
    at_once = training.per_device_batch_size * processes
    if training.batch_size % at_once:
        raise UserError(
            f"training.batch_size is {training.batch_size} rows, which do not divide among {processes} processes with "
            f"micro-batches of {training.per_device_batch_size}: expected a multiple of {at_once}"
        )
    return training.batch_size // at_once


def training_arguments(recipe: Recipe, folder: Path, micro_batches: int, name: str) -> Any:
    """TrainingArguments, or SFTConfig for conversations.

    Args:
        recipe: Of the run.
        folder: For checkpoints.
        micro_batches: Of a step in each process.
        name: Of the run, where it is reported to.

    Raises:
        UserError: Arguments that there are not, that longlens sets, or a reporter that is not there.
    """
    import torch
    from transformers import TrainingArguments

    chosen = _chosen(recipe, folder, micro_batches, name)
    has_device = torch.accelerator.is_available()
    # Without a device, transformers takes bf16 for a mistake unless it is told to use the CPU.
    preferred = {"dataloader_pin_memory": has_device, "use_cpu": not has_device}
    known = {field.name for field in fields(TrainingArguments)}
    for key in recipe.training.arguments:
        if key not in known:
            raise UserError(
                f"training.arguments has {key!r}, which TrainingArguments of transformers does not{nearest(key, known)}"
            )
        if key in chosen or key in REFUSED:
            why = REFUSED.get(key, "it follows from the other keys of the recipe")
            raise UserError(f"training.arguments has {key!r}, which longlens sets itself ({why}): leave it out")
    _check_reporters(recipe)
    kind: Any = TrainingArguments
    if isinstance(recipe.data, ChatData):
        kind = require("trl", extra="train", purpose="data.chat").SFTConfig
        # The rows are tokens already, with labels.
        chosen |= {"max_length": None, "packing": False, "dataset_kwargs": {"skip_prepare_dataset": True}}
    try:
        return kind(**preferred | chosen | dict(recipe.training.arguments))
    except (ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"training: {reason}: change precision or arguments") from error


def _chosen(recipe: Recipe, folder: Path, micro_batches: int, name: str) -> dict[str, Any]:
    training = recipe.training
    schedules = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
    schedule: dict[str, Any] = {"lr_scheduler_type": schedules[training.schedule]}
    if training.final_share is not None:
        schedule = {
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": training.final_share},
        }
    every = {} if recipe.evaluation is None else {"eval_steps": recipe.evaluation.every}
    return schedule | {
        "output_dir": str(folder),
        "run_name": name,
        "max_steps": training.steps or -1,
        "num_train_epochs": training.epochs or 1.0,
        "per_device_train_batch_size": training.per_device_batch_size,
        "per_device_eval_batch_size": 1,
        "gradient_accumulation_steps": micro_batches,
        "learning_rate": training.learning_rate,
        # A number below 1 is a share of the steps there.
        "warmup_steps": training.warmup_steps or training.warmup_ratio or 0,
        "adam_beta1": training.betas[0],
        "adam_beta2": training.betas[1],
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.clip or 0.0,
        "bf16": training.precision == "bfloat16",
        "fp16": training.precision == "float16",
        "activation_checkpointing": training.gradient_checkpointing,
        "seed": training.seed,
        "save_strategy": "steps",
        "save_steps": training.save_every,
        "logging_strategy": "steps",
        "logging_steps": training.log_every,
        # A loss that is not finite is to be seen.
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps" if every else "no",
        **every,
        "report_to": list(training.report_to) or "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }


def _check_reporters(recipe: Recipe) -> None:
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    there = get_available_reporting_integrations()
    for name in recipe.training.report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise UserError(
                f"training.report_to is {name!r}{nearest(name, INTEGRATION_TO_CALLBACK)}; expected one of {known}"
            )
        if name not in there:
            raise UserError(f"training.report_to has {name!r}, which is not installed: pip install {name}")
