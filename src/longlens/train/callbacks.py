"""Callbacks of a Trainer: LongPPL of held-out documents, and output of a run (its log, complete checkpoints)."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from longlens.corpus import Document
from longlens.errors import UserError
from longlens.keytokens.selection import KeySource
from longlens.losses.passes import innermost, run_inside
from longlens.metrics.longppl import perplexity
from longlens.models.forward import is_sharded
from longlens.progress import Progress
from longlens.scoring.run import score
from longlens.scoring.transformers import TransformersScorer
from longlens.train.folder import RunFolder


class LongPPLCallback(TrainerCallback):  # type: ignore[misc]
    """Adds ``eval_ppl``, ``eval_longppl`` and ``eval_num_key_tokens`` to every evaluation of a Trainer.

    Equals `longlens.perplexity` of the model's scores with ``keys``: long contexts only, with BOS before
    each document. Training is not affected: random number generators, modes of modules and gradients are unchanged. One
    process scores, or all processes together if FSDP or ZeRO-3 shards the weights; all receive the same values, so
    ``metric_for_best_model="eval_longppl"`` works.

    `LongCETrainer` sends the values to all its reporters. Another Trainer has them in its metrics and in
    ``state.log_history``, and also in its reporters if ``callback.trainer = trainer`` is set.

    Args:
        documents: Texts that the evaluator scored, truncated as for the evaluator.
        keys: Key tokens in these texts, from `longlens.read_keys` or `longlens.select_key_tokens`.
        max_length: Maximum tokens per document, counted by this model's tokenizer.
        tokenizer: The model's tokenizer; by default the trainer's ``processing_class``.

    Raises:
        UserError: There are no documents, or one has no key tokens in ``keys``.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        *,
        keys: KeySource,
        max_length: int | None = None,
        tokenizer: Any = None,
    ) -> None:
        self.documents, self.keys, self.max_length, self.tokenizer = list(documents), keys, max_length, tokenizer
        self.trainer: Any = None
        if not self.documents:
            raise UserError("no documents to compute LongPPL on: pass held-out documents that the evaluator scored")
        missing = [document.id for document in self.documents if document.id not in set(keys.ids)]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(self.documents)} documents have no key tokens, such as {missing[0]!r}: pass "
                "the documents that the evaluator scored, with the same ids"
            )

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Scores the documents after the evaluation loss was computed."""
        tokenizer = self.tokenizer or given.get("processing_class")
        if tokenizer is None:
            raise UserError(
                "LongPPL needs the model's tokenizer: pass `processing_class` to the trainer, or `tokenizer` to the "
                "callback"
            )
        model = given["model"]
        everywhere = is_sharded(model)  # all processes score together, on the same documents
        values = [self._evaluate(model, tokenizer) if everywhere or args.process_index == 0 else {}]
        if args.world_size > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(values)
        given.get("metrics", {}).update(values[0])
        self._log(state, dict(values[0]))

    def _evaluate(self, model: Any, tokenizer: Any) -> dict[str, float]:
        found: list[Any] = []

        def score_all(inner: Any) -> None:
            # Hashing the weights of a large model takes longer than scoring, and these scores are not stored.
            scorer = TransformersScorer(inner, tokenizer, source="in training", weights_sha256="in training")
            found.append(score(self.documents, scorer, context=None, max_length=self.max_length, shard=(0, 1)))

        with _same_random_numbers(), torch.no_grad():
            if is_sharded(model):
                run_inside(model, score_all)
            else:
                score_all(innermost(model))
        result = perplexity(found[0], keys=self.keys)
        values = {
            "eval_ppl": result.ppl,
            "eval_longppl": result.longppl,
            "eval_num_key_tokens": result.num_key_tokens,
        }
        return {name: math.nan if value is None else value for name, value in values.items()}

    def _log(self, state: Any, values: dict[str, float]) -> None:
        if self.trainer is not None:
            self.trainer.log(values)
        else:
            state.log_history.append({**values, "epoch": state.epoch, "step": state.global_step})


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Restores the state of every random number generator that training may use."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


class CheckpointCommitter(TrainerCallback):  # type: ignore[misc]
    """Marks a checkpoint as complete when all processes have written their parts; used in every process of a run.

    The Trainer writes a checkpoint file by file into its final folder. It writes its state last, but with several
    processes other files may follow.

    Args:
        folder: Folder of the run; None in processes that do not write.
        identity: Identifier of the run.
        keep: Number of checkpoints to keep.
    """

    def __init__(self, folder: RunFolder | None, identity: str, keep: int) -> None:
        self._folder, self._identity, self._keep = folder, identity, keep

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Called after the Trainer wrote a checkpoint."""
        if args.world_size > 1:
            import torch.distributed as dist

            dist.barrier()
        if self._folder is not None:
            self._folder.commit_checkpoint(state.global_step, self._identity, self._keep)


class LogWriter(TrainerCallback):  # type: ignore[misc]
    """Writes log.jsonl: everything logged at a step is one line, which is written before the step's checkpoint is
    complete.

    Args:
        folder: Folder of the run.
        progress: Shows the steps.
        title: Title of the run.
    """

    def __init__(self, folder: RunFolder, progress: Progress, title: str) -> None:
        self._folder, self._progress, self._title = folder, progress, title
        self._line: dict[str, Any] = {}
        self._last: Mapping[str, Any] = {}
        self._is_shown = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Shows the number of steps."""
        self._is_shown = True
        self._progress.start(self._title, unit="steps", total=state.max_steps, done=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
        """Collects what is logged, except for timings and for summaries of a part of a run."""
        kept = {
            name: value
            for name, value in (logs or {}).items()
            if not name.endswith(("_runtime", "_per_second")) and not name.startswith("train_") and name != "total_flos"
        }
        if set(kept) - {"epoch"}:
            self._line = {"step": state.global_step} | self._line | kept

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Writes the line of the previous step, with its evaluation."""
        self.flush()

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Shows the update; its loss is logged after this."""
        loss = self._last.get("loss")
        self._progress.update(state.global_step, note=f"loss {loss:.3f}" if isinstance(loss, float) else "")

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Writes the line before the checkpoint is complete."""
        self.flush()

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Writes the last line."""
        self.flush()

    def close(self) -> None:
        """Called when training has ended, successfully or not."""
        if self._is_shown:
            self._progress.finish()

    def flush(self) -> None:
        """Writes the line, if there is one."""
        if self._line:
            self._last, self._line = self._line, {}
            self._folder.add_to_log(self._last)
