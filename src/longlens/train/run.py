"""One training run: first all checks, then rows, then the Trainer, then the trained model."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from longlens.errors import UserError, library_errors
from longlens.files import cannot_write, read_json
from longlens.losses.settings import LongCE
from longlens.models.files import model_max_length
from longlens.progress import Progress
from longlens.rope.config import shared_rotary_note
from longlens.runs.processes import Processes
from longlens.train.batch import pad_right
from longlens.train.callbacks import CheckpointCommitter, LogWriter, LongPPLCallback
from longlens.train.folder import RunFolder, read_log
from longlens.train.recipe import Recipe, RecipeFile
from longlens.train.rows import check_shared_rows, check_sources, has_packed_rows, load_rows, prepare_rows, rows_sha256
from longlens.train.settings import ChatData, Offline
from longlens.train.setup import (
    HeldOutDocuments,
    accumulation,
    load_for_training,
    merge_adapters,
    plan_config,
    prepare_evaluation,
    sharding_of,
    training_arguments,
)

SCHEMA_VERSION = 1
RESULT = ("evaluation", "loss", "model", "steps")
_LOGGER = logging.getLogger(__name__)


def run_file(
    found: RecipeFile, out: str | os.PathLike[str], *, progress: Progress | None = None
) -> dict[str, dict[str, Any]]:
    """Runs a recipe, or the runs of a sweep one after the other.

    Args:
        found: Result of `longlens.train.recipe.read_recipe`.
        out: Folder of the run or sweep; repeating the call resumes where it stopped.
        progress: Shows the steps.

    Returns:
        Results of `run`, by name of the run.

    Raises:
        UserError: See `run`.
    """
    shared = Path(out) / "data" if found.shares_data else None
    if "." not in found.runs and (Path(out) / "recipe.yaml").exists():
        raise UserError(f"{out} contains a different run, and this recipe is a sweep of several: use another folder")
    results = {}
    for label, recipe in found.runs.items():
        if label != ".":
            _LOGGER.info("run %s", label)
        results[label] = run(recipe, Path(out) / label, rows=shared, progress=progress)
    return results


def run(
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    rows: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Trains a model by a recipe; repeating the call resumes from the last checkpoint, with the same losses.

    Args:
        recipe: The recipe.
        out: A new folder, or one of this recipe; see `longlens.train.folder` for its content.
        rows: Folder in which rows are created, instead of ``out/data``.
        progress: Shows the steps.

    Returns:
        Content of result.json: the model's folder, steps, the loss of the first and the last line of the log, and the
        first and the last evaluation. Empty in processes other than the first.

    Raises:
        UserError: Settings, model, data or checkpoint cannot be used, or the disk is full.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config
    from transformers.utils.logging import disable_progress_bar

    from longlens.models import load_tokenizer

    disable_progress_bar()
    out, processes = Path(out), Processes()
    micro_batches = accumulation(recipe, processes.size)
    arguments = training_arguments(recipe, out / "checkpoints", micro_batches, out.name or "run", processes.size)
    sharding = sharding_of(arguments)
    processes.connect()
    check_sources(recipe)
    config = plan_config(recipe)
    if recipe.extend is not None and (shared := shared_rotary_note(config)):
        _LOGGER.info("note: %s", shared)
    tokenizer = load_tokenizer(recipe.model, trust_remote_code=recipe.load.trust_remote_code)
    rows = rows or out / "data"
    if processes.rank > 0:
        plan = processes.receive()
        if not plan["done"]:
            start = _start(recipe, load_for_training(recipe, config, sharding), tokenizer, plan, out)
            committer = CheckpointCommitter(None, "", recipe.training.keep)
            trainer = _trainer(recipe, start, tokenizer, arguments, [committer])
            _train(trainer, start)
            _gather(trainer)
        return {}
    with processes, RunFolder(out, recipe.resolved(), result=RESULT) as folder, _writing(out, folder):
        if folder.result is not None:
            processes.broadcast({"done": True})
            _LOGGER.info("%s: done already, nothing was changed", out)
            return folder.result
        model = load_for_training(recipe, config, sharding)
        how = {"processes": processes.size, "sharding": sharding}
        plan = _prepare(recipe, model, tokenizer, folder, rows, how)
        processes.broadcast(plan)
        start = _start(recipe, model, tokenizer, plan, out)
        if start.checkpoint is not None:
            _LOGGER.info(f"resuming after {start.checkpoint.name}")
        log = LogWriter(folder, progress or Progress(), out.name or "run")
        # The line of a step is written before its checkpoint is complete.
        callbacks = [log, CheckpointCommitter(folder, plan["run"], recipe.training.keep)]
        trainer = _trainer(recipe, start, tokenizer, arguments, callbacks)
        try:
            _train(trainer, start)
        finally:
            log.close()
        weights = _gather(trainer)
        folder.check()
        trained = trainer.accelerator.unwrap_model(trainer.model)
        if weights is not None and recipe.lora is not None:
            # Adapters are merged into full weights, which DeepSpeed would shard again on loading.
            unset_hf_deepspeed_config()
            trained = load_for_training(recipe, config)
            trained.load_state_dict(weights)
            weights = None
        trained.config.use_cache = start.use_cache
        _save(trained, weights, tokenizer, recipe, out)
        result = _result(out, read_log(folder.log))
        folder.finish(result)
        return result


def _prepare(
    recipe: Recipe, model: Any, tokenizer: Any, folder: RunFolder, out: Path, how: Mapping[str, Any]
) -> dict[str, Any]:
    """Steps of the first process only: rows, key tokens, and the checkpoint to resume from."""
    rows = prepare_rows(recipe, tokenizer, out)
    check_shared_rows(recipe, rows)
    load_rows(rows, folder.path / "cache", recipe)
    if recipe.evaluation is not None:
        prepare_evaluation(recipe, tokenizer, _length(recipe, rows, folder.path), folder.path / "evaluation")
    manifest = folder.bind(_manifest(recipe, model, tokenizer, rows) | {k: v for k, v in how.items() if v is not None})
    run_id = hashlib.sha256(json.dumps([recipe.resolved(), manifest], sort_keys=True).encode()).hexdigest()
    checkpoint = folder.last_checkpoint(run_id)
    folder.cut_log(-1 if checkpoint is None else int(checkpoint.name.rpartition("-")[2]))
    return {"done": False, "rows": str(rows), "run": run_id, "checkpoint": checkpoint and str(checkpoint)}


def _length(recipe: Recipe, rows: Path, out: Path) -> int:
    """Tokens of the longest row, judged by the first rows."""
    if recipe.length is not None:
        return recipe.length
    first = load_rows(rows, out / "cache", recipe)[:16]["input_ids"]
    return max(len(row) for row in first)


def _manifest(recipe: Recipe, model: Any, tokenizer: Any, rows: Path) -> dict[str, Any]:
    """Identity of the run, in addition to its recipe."""
    from longlens import models
    from longlens.runs.identity import functional_config
    from longlens.tokenization import TextEncoder

    found = {
        "weights_sha256": models.hash_files(models.resolve(recipe.model)),
        "config": functional_config(model),
        "tokenizer_sha256": TextEncoder(tokenizer).sha256,
        "rows_sha256": rows_sha256(rows),
    }
    return {"model": recipe.model} | found


class _Start(NamedTuple):
    """Starting point of training, in each process."""

    model: Any
    rows: Any
    held_out: HeldOutDocuments | None
    checkpoint: Path | None
    use_cache: bool


def _start(recipe: Recipe, model: Any, tokenizer: Any, plan: Mapping[str, Any], out: Path) -> _Start:
    rows = load_rows(Path(plan["rows"]), out / "cache", recipe)
    held_out = None
    if recipe.evaluation is not None:
        length = _length(recipe, Path(plan["rows"]), out)
        held_out = prepare_evaluation(recipe, tokenizer, length, out / "evaluation")
    if held_out is not None:
        _check_room(model, tokenizer, held_out)
    return _Start(
        model=model,
        rows=rows,
        held_out=held_out,
        checkpoint=None if plan["checkpoint"] is None else Path(plan["checkpoint"]),
        use_cache=bool(getattr(model.config, "use_cache", True)),
    )


def _check_room(model: Any, tokenizer: Any, held_out: HeldOutDocuments) -> None:
    takes = model_max_length(model.config)
    needed = held_out.max_length + (tokenizer.bos_token_id is not None)
    if takes is not None and needed > takes:
        raise UserError(
            f"a held-out document has {needed:,} tokens, and the model supports {takes:,}: make evaluation.max_length "
            "smaller, or extend the model further"
        )


def _trainer(recipe: Recipe, start: _Start, tokenizer: Any, arguments: Any, callbacks: list[Any]) -> Any:
    from transformers import PrinterCallback

    from longlens.losses.passes import check_packing
    from longlens.train.trainer import LongCETrainer

    kind: Any = LongCETrainer
    if isinstance(recipe.data, ChatData):
        from longlens.train.sft import LongCESFTTrainer

        kind = LongCESFTTrainer
    held_out = start.held_out
    arguments.eval_on_start = held_out is not None and start.checkpoint is None
    if held_out is not None:
        longppl = LongPPLCallback(held_out.documents, keys=held_out.keys, max_length=held_out.max_length)
        callbacks = [longppl, *callbacks]
    loss = recipe.loss
    with library_errors("training", "change training.arguments or precision"):
        trainer = kind(
            model=start.model,
            args=arguments,
            data_collator=pad_right,
            train_dataset=start.rows,
            eval_dataset=None if held_out is None else held_out.rows,
            processing_class=tokenizer,
            callbacks=callbacks,
            longce=LongCE(gamma=loss.gamma, floor=loss.floor) if isinstance(loss, Offline) else loss,
        )
        trainer.create_optimizer()  # may need a package, or reject optim_args
    trainer.remove_callback(PrinterCallback)  # it would print to stdout
    if not _is_sharded(trainer) and has_packed_rows(start.rows):  # now, rather than at the first packed row
        with trainer.compute_loss_context_manager():
            check_packing(trainer.model, arguments.per_device_train_batch_size)
    return trainer


def _train(trainer: Any, start: _Start) -> None:
    checkpoint = start.checkpoint
    if checkpoint is not None:
        step = f"delete {checkpoint}, and run the same command again"
        state = read_json(checkpoint / "trainer_state.json", step)
        done, total = state.get("global_step"), state.get("max_steps")
        if not isinstance(done, int) or not isinstance(total, int):
            raise UserError(f"{checkpoint / 'trainer_state.json'} is broken (no global_step or max_steps): {step}")
        if done >= total:
            # All steps are done, but the model was not saved yet: the Trainer would run one more step.
            if _is_sharded(trainer):
                trainer._prepare_for_training(total, trainer.get_train_dataloader(), str(checkpoint))
            else:
                trainer._load_from_checkpoint(str(checkpoint))
            return
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def _is_sharded(trainer: Any) -> bool:
    return bool(trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)


def _gather(trainer: Any) -> Any:
    """Gathers sharded weights in the first process; called by all processes; None in others or if not sharded."""
    return trainer.accelerator.get_state_dict(trainer.model_wrapped) if _is_sharded(trainer) else None


def _save(model: Any, weights: Any, tokenizer: Any, recipe: Recipe, out: Path) -> None:
    """Saves the trained model atomically, with adapters merged into it, and the folder of ``after``.

    Args:
        model: The trained model.
        weights: Weights to save instead of the model's own, which may be only a part.
        tokenizer: Its tokenizer.
        recipe: Recipe of the run.
        out: Folder of the run.
    """
    from longlens.rope.folder import extend

    target, after = out / "model", recipe.method("after")
    if not target.exists():
        temporary = out / f".model.{uuid.uuid4().hex}.tmp"
        try:
            merge_adapters(model, recipe).save_pretrained(temporary, state_dict=weights)
            tokenizer.save_pretrained(temporary)
            os.rename(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    further = out / "model-after"
    if after is not None and not further.exists():
        extend(str(target), after, further, trust_remote_code=recipe.load.trust_remote_code)


def _result(out: Path, log: list[dict[str, Any]]) -> dict[str, Any]:
    losses = [line for line in log if "loss" in line]
    evaluations = [line for line in log if "eval_loss" in line]
    names = {"eval_loss": "loss", "eval_ppl": "ppl", "eval_longppl": "longppl", "eval_num_key_tokens": "num_key_tokens"}
    ends = {
        end: {"step": line["step"]} | {short: line.get(name) for name, short in names.items()}
        for end, line in zip(("first", "last"), (evaluations[:1] + evaluations[-1:]), strict=False)
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "out": str(out),
        "model": str(out / "model"),
        "steps": log[-1]["step"] if log else 0,
        "loss": {"first": losses[0]["loss"], "last": losses[-1]["loss"]} if losses else None,
        "evaluation": ends or None,
    }


@contextmanager
def _writing(out: Path, folder: RunFolder) -> Iterator[None]:
    """Turns the libraries' errors on a full disk into a UserError; deletes an incomplete checkpoint to free space."""
    from safetensors import SafetensorError

    try:
        yield
    except UserError:
        folder.drop_half_written()
        raise
    except OSError as error:
        folder.drop_half_written()
        if error.errno is None:
            raise
        raise cannot_write(Path(error.filename or out), error, resumes=True) from error
    except (SafetensorError, RuntimeError) as error:
        if not _is_write_error(error):
            raise
        folder.drop_half_written()
        # The errors do not state the cause; most often it is a full disk.
        reason = OSError(errno.ENOSPC, f"the disk is full, or writing failed ({_first_line(error)})")
        raise cannot_write(out / "checkpoints", reason, resumes=True) from error


def _is_write_error(error: Exception) -> bool:
    # torch.save reports no more than that.
    return type(error).__name__ == "SafetensorError" or any(
        word in str(error) for word in ("PytorchStreamWriter", "inline_container", "No space left")
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200].rstrip(".")
