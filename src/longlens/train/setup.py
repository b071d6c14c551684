"""Preparation of a run from a recipe: training arguments, the model, and held-out documents with their key tokens."""

from __future__ import annotations

import copy
import importlib.util
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from longlens.corpus import Document, read_documents, text_sha256
from longlens.errors import UserError, library_errors, require, shown, shown_value
from longlens.files import read_json
from longlens.keytokens.exchange import read_keys, write_keys
from longlens.keytokens.selection import select_key_tokens
from longlens.models.quantized import can_dequantize, dequantizing_config, quantization_note, quantization_settings
from longlens.scoring.run import score
from longlens.scoring.truncation import TokenLimit
from longlens.settings.options import Loading, Reading
from longlens.settings.recipe import check_values, nearest
from longlens.tokenization import TextEncoder
from longlens.train.recipe import Recipe
from longlens.train.settings import ChatData, Evaluation

_LOGGER = logging.getLogger(__name__)
# Arguments that would break a run's guarantees (complete checkpoints, a log without gaps, the same losses after
# resuming), or would have no effect; by the reason.
_REFUSED = {
    "the batches would not be the recipe's": ("accelerator_config", "auto_find_batch_size"),
    "the order of rows would not be the same twice": ("dataloader_in_order",),
    "checkpoints are written by training.save_every": ("enable_jit_checkpoint",),
    "the evaluation of the recipe does so": ("eval_on_start",),
    "a resumed run would see rows twice": ("ignore_data_skip",),
    "the model is that of the last step": ("load_best_model_at_end",),
    "runs resume by themselves": ("resume_from_checkpoint", "restore_callback_states_from_checkpoint"),
    "a run could not resume": ("save_only_model",),
    "use training.keep": ("save_total_limit",),
    "the first process alone writes": ("save_on_each_node",),
    "use training.gradient_checkpointing": ("gradient_checkpointing",),
    "use training.context_parallel": ("parallelism_config",),
    "torchrun sets it": ("local_rank",),
    "it would have no effect on a run": (
        *("length_column_name", "use_cache", "skip_memory_metrics"),
        *("do_train", "do_eval", "do_predict", "bf16_full_eval", "fp16_full_eval"),
    ),
    "a recipe has no metrics but cross-entropy, PPL and LongPPL, so it would have no effect": (
        *("batch_eval_metrics", "eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object"),
        *("greater_is_better", "include_for_metrics", "label_names", "metric_for_best_model", "prediction_loss_only"),
    ),
    "training was not verified with it": (
        *("label_smoothing_factor", "use_liger_kernel"),
        *("liger_kernel_config", "torch_compile", "torch_compile_backend", "torch_compile_mode"),
    ),
}
_GATHERS = "zero_optimization.stage3_gather_16bit_weights_on_model_save"
# Arguments for `training.sharding`. A checkpoint of FSDP is read with weights_only; DeepSpeed's "auto" values are
# filled in by the Trainer.
_SHARDING: Mapping[str, Mapping[str, Any]] = {
    "fsdp": {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "reshard_after_forward": True,
            "state_dict_type": "FULL_STATE_DICT",
        },
    },
    "zero3": {
        "deepspeed": {
            "zero_optimization": {
                "stage": 3,
                "overlap_comm": True,
                "contiguous_gradients": True,
                "reduce_bucket_size": "auto",
                "stage3_prefetch_bucket_size": "auto",
                "stage3_param_persistence_threshold": "auto",
                "stage3_gather_16bit_weights_on_model_save": True,
            },
            "bf16": {"enabled": "auto"},
            "fp16": {"enabled": "auto"},
            "gradient_clipping": "auto",
            "gradient_accumulation_steps": "auto",
            "train_batch_size": "auto",
            "train_micro_batch_size_per_gpu": "auto",
        }
    },
}
# Arguments that another key has to enable, by that key.
_NEEDED_BY = {
    "training.gradient_checkpointing": ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"),
    "evaluation": ("eval_delay",),
    "fsdp": ("fsdp_config",),
    "training.report_to: [trackio]": ("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
    "push_to_hub": ("hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision"),
}


def accumulation(recipe: Recipe, processes: int) -> int:
    """Number of micro-batches per step in each process.

    Raises:
        UserError: The batch size is not divisible by rows per micro-step, or the number of processes not by the group
            size.
    """
    training = recipe.training
    shared = training.context_parallel or 1
    if processes % shared:
        raise UserError(
            f"training.context_parallel is {shared}, and there are {processes} processes (torchrun --nproc-per-node): "
            f"expected a multiple of {shared}"
        )
    at_once = training.per_device_batch_size * (processes // shared)
    if training.batch_size % at_once:
        groups = f"{processes} processes" if shared == 1 else f"{processes // shared} groups of {shared} processes"
        raise UserError(
            f"training.batch_size is {training.batch_size} rows, which do not divide among {groups} with "
            f"micro-batches of {training.per_device_batch_size}: expected a multiple of {at_once}"
        )
    return training.batch_size // at_once


def training_arguments(recipe: Recipe, folder: Path, micro_batches: int, name: str, processes: int = 1) -> Any:
    """TrainingArguments, or SFTConfig for conversations.

    Args:
        recipe: Recipe of the run.
        folder: Folder for checkpoints.
        micro_batches: Number of micro-batches per step in each process.
        name: Name of the run, for reporters.
        processes: Number of processes.

    Raises:
        UserError: An argument does not exist or is set by longlens, or a reporter is not available.
    """
    import torch
    from transformers import Trainer, TrainingArguments
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config
    from transformers.training_args import OptimizerNames

    chosen = _from_recipe(recipe, folder, micro_batches, name)
    has_device = torch.accelerator.is_available()
    # Without a GPU, transformers rejects bf16 unless it is told to use the CPU.
    preferred = {"dataloader_pin_memory": has_device, "use_cpu": not has_device}
    known = {field.name for field in fields(TrainingArguments)}
    given = recipe.training.arguments
    is_on = {
        "training.gradient_checkpointing": recipe.training.gradient_checkpointing,
        "evaluation": recipe.evaluation is not None,
        "training.report_to: [trackio]": "trackio" in recipe.training.report_to,
        "push_to_hub": bool(given.get("push_to_hub")),
        "fsdp": bool(given.get("fsdp")),
    }
    refused = {key: reason for reason, keys in _REFUSED.items() for key in keys}
    refused |= dict.fromkeys(chosen, "it follows from the other keys of the recipe")
    without_effect = {key: needed for needed, keys in _NEEDED_BY.items() for key in keys if not is_on[needed]}
    for key in given:
        if key not in known:
            raise UserError(
                f"training.arguments has {shown_value(key)}, which TrainingArguments of transformers does not"
                f"{nearest(key, known)}"
            )
        if key in refused:
            raise UserError(f"training.arguments has {key!r}, which a recipe cannot set ({refused[key]}): leave it out")
        if key in without_effect:
            raise UserError(
                f"training.arguments has {key}, which has no effect without {without_effect[key]}: leave it out"
            )
    if given.get("optim") in [name.value for name in OptimizerNames if "adam" not in name.value]:
        raise UserError(
            f"training.arguments.optim is {shown_value(given['optim'])}, and training.betas are of AdamW: use one of "
            "its variants, such as adamw_torch, adamw_8bit or paged_adamw_8bit"
        )
    # Annotated as a string, but used as a boolean.
    check_values(
        {k: v for k, v in given.items() if (k, v) != ("fsdp", True)}, TrainingArguments, "training.arguments.{}"
    )
    strategies, strategy = ("random", "sequential", "group_by_length", "batch_rebalance"), "train_sampling_strategy"
    if given.get(strategy, "random") not in strategies:
        raise UserError(
            f"training.arguments.{strategy} is {shown_value(given[strategy])}; expected one of {', '.join(strategies)}"
        )
    _check_reporters(recipe)
    sharding = _sharding(recipe, processes)
    if "deepspeed" in sharding:
        preferred["use_cpu"] = False  # with which accelerate leaves DeepSpeed out
    if sharding.get("fsdp") and recipe.training.gradient_checkpointing:
        # Done by FSDP itself, so that recomputation does not gather weights again.
        sharding["fsdp_config"] = {"activation_checkpointing": True} | sharding["fsdp_config"]
        chosen["activation_checkpointing"] = False
    kind: Any = TrainingArguments
    if isinstance(recipe.data, ChatData):
        kind = require("trl", extra="train", purpose="data.chat").SFTConfig
        # The rows are already tokenized and have labels.
        chosen |= {"max_length": None, "packing": False, "dataset_kwargs": {"skip_prepare_dataset": True}}
    with library_errors("training", "change precision or arguments"):
        sharding |= _context_parallel(recipe, processes)
        made = kind(**preferred | chosen | dict(given) | sharding)
        launched = made.parallelism_config
        if launched is not None and "parallelism_config" not in sharding and launched.non_data_parallel_size > 1:
            raise UserError(
                "accelerate launch has a parallelism_config, by which the batches would not be the recipe's: leave it "
                "out there, and set training.sharding and training.context_parallel"
            )
        # Models, including an evaluator's, are loaded whole and sharded when training begins.
        unset_hf_deepspeed_config()
        deepspeed = None if made.deepspeed_plugin is None else made.deepspeed_plugin.hf_ds_config
        if deepspeed is not None and deepspeed.is_zero3() and not deepspeed.is_true(_GATHERS):
            raise UserError(f"the DeepSpeed configuration has no {_GATHERS}: set it to true, to save the trained model")
        made.get_process_log_level()
        if not made.optim_target_modules:  # otherwise the model is needed
            Trainer.get_optimizer_cls_and_kwargs(made)
    return made


def _sharding(recipe: Recipe, processes: int) -> dict[str, Any]:
    """Arguments that shard the model over the processes."""
    named = recipe.training.sharding
    keys = ("fsdp", "fsdp_config", "deepspeed")
    given = {key: value for key, value in recipe.training.arguments.items() if key in keys}
    for key in ("fsdp", "deepspeed"):
        if key in given and not given[key]:
            raise UserError(
                f"training.arguments.{key} is {shown_value(given[key])}, which has no effect: leave it out, or set "
                "training.sharding: fsdp or zero3"
            )
    found: dict[str, Any] = copy.deepcopy(given if named is None else dict(_SHARDING[named]))
    if found and processes == 1:
        key = "sharding" if named is not None else f"arguments.{next(iter(found))}"
        raise UserError(
            f"training.{key} spreads the model over processes, and this is one: start them with torchrun "
            "--nproc-per-node 8 -m longlens train (as many as there are GPUs), or leave the key out"
        )
    if "deepspeed" in found and importlib.util.find_spec("deepspeed") is None:
        raise UserError("DeepSpeed is asked for, and is not installed: pip install deepspeed")
    if found.get("fsdp"):
        config = found.get("fsdp_config") or {}
        if isinstance(config, str):
            config = read_json(Path(config), "use an fsdp_config of transformers")
        found["fsdp_config"] = {"version": 2, **config}
    return found


def _context_parallel(recipe: Recipe, processes: int) -> dict[str, Any]:
    """Arguments that split each row among processes."""
    from accelerate.parallelism_config import ParallelismConfig
    from accelerate.utils import DeepSpeedSequenceParallelConfig

    shared = recipe.training.context_parallel or 1
    if shared == 1:
        return {}
    groups = processes // shared
    if recipe.training.sharding == "fsdp":
        return {"parallelism_config": ParallelismConfig(cp_size=shared, dp_shard_size=groups)}
    handler = DeepSpeedSequenceParallelConfig(sp_attn_implementation=recipe.load.attention or "sdpa")
    return {"parallelism_config": ParallelismConfig(sp_size=shared, dp_shard_size=groups, sp_handler=handler)}


def sharding_of(arguments: Any) -> str | None:
    """How a run is sharded, by its recipe or by ``accelerate launch``: ``fsdp`` or ``deepspeed``."""
    if arguments.deepspeed_plugin is not None:
        return "deepspeed"
    is_fsdp = bool(arguments.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    return "fsdp" if is_fsdp else None


def _from_recipe(recipe: Recipe, folder: Path, micro_batches: int, name: str) -> dict[str, Any]:
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
        # transformers reads a number below 1 as a share of the steps.
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
        # A loss that is not finite must be visible.
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
                f"training.report_to is {shown_value(name)}{nearest(name, INTEGRATION_TO_CALLBACK)}; expected one of "
                f"{known}"
            )
        if name not in there:
            raise UserError(f"training.report_to has {shown_value(name)}, which is not installed: pip install {name}")


def plan_config(recipe: Recipe) -> Any:
    """The config with which the model is loaded, None for its own; does not need weights.

    Raises:
        UserError: The model does not exist, cannot be extended by the method, or has no sliding window to turn off.
    """
    from longlens import models
    from longlens.rope.model import build_rotary, extend_config

    source = models.resolve(recipe.model)
    models.check_folder(source)
    config = models.load_config(source, trust_remote_code=recipe.load.trust_remote_code)
    plain, extend, after = config, recipe.method("extend"), recipe.method("after")
    if recipe.load.full_attention:
        config = disable_sliding_window(config)
    if extend is not None:
        config, _ = build_rotary(config, extend)
    if after is not None:
        extend_config(config, after)
    return None if config is plain else config


def disable_sliding_window(config: Any) -> Any:
    """A new config in which all layers attend to everything.

    Raises:
        UserError: It has no sliding window, or only in some layers, by design of the model.
    """
    new = copy.deepcopy(config)
    text = new.get_text_config(decoder=True)
    is_off = not getattr(text, "sliding_window", None) or getattr(text, "use_sliding_window", True) is False
    if is_off:
        raise UserError(f"load.full_attention: {text.model_type} has no sliding window to turn off: leave it out")
    types = getattr(text, "layer_types", None) or []
    if len(set(types)) > 1:
        raise UserError(
            f"load.full_attention: {text.model_type} has a sliding window only in some layers, and full attention in "
            "others: it already supports long context, leave it out"
        )
    text.sliding_window = None
    if hasattr(text, "use_sliding_window"):
        text.use_sliding_window = False
    if types:
        text.layer_types = ["full_attention"] * len(types)
    return new


def load_for_training(recipe: Recipe, config: Any, sharding: str | None = None) -> Any:
    """Loads the model, with adapters if the recipe has them; quantized weights are dequantized if possible.

    Args:
        recipe: The recipe.
        config: Result of `plan_config`.
        sharding: Result of `sharding_of`.

    Raises:
        UserError: It cannot be loaded, lacks weights, or is quantized in a way that cannot be trained.
    """
    from longlens import models

    load, source = recipe.load, models.resolve(recipe.model)
    if config is None:
        config = models.load_config(source, trust_remote_code=load.trust_remote_code)
    stays_quantized = source.gguf is None and _stays_quantized(recipe, config, sharding)
    loading = Loading(
        dtype="auto" if stays_quantized else load.dtype,
        device="auto" if stays_quantized else "cpu",  # the trainer moves it, except for quantized weights
        attention=load.attention,
        trust_remote_code=load.trust_remote_code,
        allow_pickle=load.allow_pickle,
    )
    settings = None if source.gguf is not None else quantization_settings(config)
    if settings is not None and not stays_quantized:
        _LOGGER.info(
            "%s is quantized (%s): its weights are dequantized to %s",
            *(shown(recipe.model), quantization_note(settings), load.dtype),
        )
        config = dequantizing_config(config)
    checkpoint = models.Checkpoint(source, loading, config=config)
    found = str(checkpoint.plan.dtype).removeprefix("torch.")
    if found != load.dtype:
        raise UserError(
            f"load.dtype is {load.dtype}, and {shown(recipe.model)} is quantized ({checkpoint.plan.note}) with its "
            f"other weights in {found}: set load.dtype: {found}"
        )
    model, loading_info = checkpoint.load()
    models.check_loading_info(recipe.model, model, loading_info, "use a causal language model with its vocabulary head")
    return model if recipe.lora is None else _add_adapters(model, recipe)


def _stays_quantized(recipe: Recipe, config: Any, sharding: str | None) -> bool:
    """Whether adapters are trained on top of quantized weights; weights are dequantized instead if possible.

    Raises:
        UserError: Neither is possible.
    """
    settings = quantization_settings(config)
    if settings is None:
        return False
    note = quantization_note(settings)
    method, said = note.split()[0], f"{shown(recipe.model)} is quantized ({note})"
    if method != "bitsandbytes":
        if can_dequantize(method):
            return False
        raise UserError(f"{said}, which longlens train does not support: use the unquantized model")
    if recipe.lora is None:
        raise UserError(
            f"{said}, and such weights can only be trained with adapters: add lora: {{r: 16, alpha: 32}}, or use the "
            "unquantized model"
        )
    if sharding is not None:
        raise UserError(
            f"{said}, and such weights cannot be sharded ({sharding}): leave training.sharding out, or use the "
            "unquantized model"
        )
    return True


def merge_adapters(model: Any, recipe: Recipe) -> Any:
    """The trained model with its adapters in its weights, which are dequantized first if they are quantized.

    Merged into 4 or 8 bits, most of the update would be lost in rounding.
    """
    if recipe.lora is None:
        return model
    if getattr(model.get_base_model(), "is_quantized", False):
        peft: Any = require("peft", extra="train", purpose="lora")
        adapters = peft.get_peft_model_state_dict(model)
        model = _add_adapters(model.unload().dequantize(), recipe)
        peft.set_peft_model_state_dict(model, adapters)
    return model.merge_and_unload()


def _add_adapters(model: Any, recipe: Recipe) -> Any:
    import torch

    peft: Any = require("peft", extra="train", purpose="lora")
    lora = recipe.lora
    assert lora is not None
    modules = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=modules,
        modules_to_save=list(lora.modules_to_save) or None,
    )
    try:
        # The same in every process, since sharding takes parts of it, and for any number of processes.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.training.seed)
            adapted = peft.get_peft_model(model, config)
    except ValueError as error:  # peft: no module has such a name
        raise UserError(f"lora: {' '.join(str(error).split())[:300]}: check target_modules") from error
    if recipe.training.gradient_checkpointing:
        # Otherwise no input of the first checkpointed layer requires grad.
        adapted.enable_input_require_grads()
    return adapted


class HeldOutDocuments(NamedTuple):
    """Documents of an evaluation during training, with their key tokens."""

    documents: list[Document]
    keys: Any
    max_length: int
    rows: Any


def prepare_evaluation(recipe: Recipe, tokenizer: Any, length: int, out: Path) -> HeldOutDocuments:
    """Reads and truncates the held-out documents, and selects their key tokens with an evaluator, once.

    Args:
        recipe: A recipe with an evaluation.
        tokenizer: Tokenizer of the model that is trained.
        length: Tokens per row.
        out: Folder for the evaluator's scores and ``keys.jsonl``.

    Raises:
        UserError: Documents or keys cannot be read, keys belong to other texts, or there is no key token at all.
    """
    import datasets

    evaluation, encoder = recipe.evaluation, TextEncoder(tokenizer)
    assert evaluation is not None
    reading = Reading(
        text_field=evaluation.text_field or "text", split=evaluation.split or "test", samples=evaluation.samples
    )
    documents = list(read_documents(evaluation.documents, reading))
    bos = [] if encoder.bos_token_id is None else [encoder.bos_token_id]
    if evaluation.evaluator is not None:
        # A model may support no more than a row, and BOS precedes the document.
        most = evaluation.max_length or length - len(bos)
        limit = TokenLimit(
            max_tokens=most, counted_by=recipe.model, encode=encoder.encode, bos_token_id=encoder.bos_token_id
        )
        documents = [replace(document, text=limit(document.text).text) for document in documents]
        path = out / "keys.jsonl"
        is_new = not path.is_file()
        if is_new:
            _select_keys(recipe, evaluation, documents, out)
        keys = read_keys(path)
        if not is_new:
            _check_evaluator(keys, recipe, evaluation.evaluator.model, path)
    else:
        keys = read_keys(str(evaluation.keys))
    _check_keys_of(keys, documents)
    encoded = [encoder.encode(document.text).token_ids.tolist() for document in documents]
    encoded = [ids[1:] if bos and ids[:1] == bos else ids for ids in encoded]  # the text itself may begin with it
    return HeldOutDocuments(
        documents=documents,
        keys=keys,
        max_length=max([2, *(len(ids) for ids in encoded)]),
        rows=datasets.Dataset.from_dict({"input_ids": [bos + ids for ids in encoded]}),
    )


def _select_keys(recipe: Recipe, evaluation: Evaluation, documents: Sequence[Document], out: Path) -> None:
    from longlens.models import load_scorer

    chosen = evaluation.evaluator
    assert chosen is not None
    _LOGGER.info("%s selects the key tokens of %s held-out documents", chosen.model, f"{len(documents):,}")
    load = recipe.load
    scorer = load_scorer(chosen.model, trust_remote_code=load.trust_remote_code, allow_pickle=load.allow_pickle)
    scores = score(documents, scorer, context=chosen.context, stride=chosen.stride, out=out / "scores", shard=(0, 1))
    write_keys(out / "keys.jsonl", select_key_tokens(scores, alpha=chosen.alpha, beta=chosen.beta))


def _check_evaluator(keys: Any, recipe: Recipe, name: str, path: Path) -> None:
    """Checks the evaluator of existing keys: those of before 0.2 have no identity, and its model may not be cached."""
    from longlens.models import identify

    there, here = keys.settings["evaluator_sha256"], None
    if there is not None:
        here = identify(name, Loading(trust_remote_code=recipe.load.trust_remote_code))
    if here is not None and here.sha256 != there:
        raise UserError(
            f"{path} was selected by another model than {name} is now: use that model again, or another folder"
        )


def _check_keys_of(keys: Any, documents: Sequence[Document]) -> None:
    ids = set(keys.ids)
    number = 0
    for document in documents:
        if document.id not in ids:
            raise UserError(
                f"the held-out document {shown_value(document.id)} has no key tokens in the keys: pass the documents "
                "that the evaluator scored, with the same ids"
            )
        found = keys.get(document.id)
        if found.text_sha256 != text_sha256(document.text):
            raise UserError(
                f"the keys of {shown_value(document.id)} are of another text: pass the documents as the evaluator "
                "scored them (an evaluator that supports less than evaluation.max_length truncates them: make that "
                "smaller)"
            )
        number += len(found.char_runs)
    if not number:
        raise UserError(
            f"none of the {len(documents)} held-out documents has a key token, so that there is no LongPPL: use "
            "longer documents, a smaller evaluator.context, or smaller alpha and beta"
        )
