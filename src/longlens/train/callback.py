"""LongPPL during training: held-out documents, scored by the model as it is, on key tokens that do not change."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from longlens.corpus import Document
from longlens.errors import UserError
from longlens.keytokens.selection import KeySource
from longlens.losses.passes import innermost
from longlens.metrics.longppl import perplexity
from longlens.scoring.run import score
from longlens.scoring.transformers import TransformersScorer


class LongPPLCallback(TrainerCallback):  # type: ignore[misc]
    """Adds ``eval_ppl``, ``eval_longppl`` and ``eval_num_key_tokens`` to every evaluation of a Trainer.

    Equals `longlens.perplexity` of the model's scores with ``keys``: long contexts alone, the tokenizer's BOS before
    each document, as in `longlens.score`. Training goes on as if it had not been: no generator of random numbers, no
    module's mode and no gradient is touched. One process scores; the others wait and get its values, so that
    ``metric_for_best_model="eval_longppl"`` works.

    With `LongCETrainer` the values go to all its reporters. Another Trainer has them in its metrics and in
    ``state.log_history``, and in its reporters once it is named: ``callback.trainer = trainer``.

    Args:
        documents: The texts that the evaluator scored, as they were cut for it.
        keys: Key tokens in these texts, from `longlens.read_keys` or `longlens.select_key_tokens`.
        max_length: Tokens of this model's tokenizer that a document is cut to; as in `longlens.score`.
        tokenizer: The model's; the trainer's ``processing_class`` unless given.

    Raises:
        UserError: No documents, or one without key tokens in ``keys``.
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
            raise UserError("no documents to compute LongPPL on: give held-out documents that the evaluator scored")
        missing = [document.id for document in self.documents if document.id not in set(keys.ids)]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(self.documents)} documents have no key tokens, such as {missing[0]!r}: give "
                "the documents that the evaluator scored, with the same ids"
            )

    def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Scores, after the evaluation loss was computed."""
        tokenizer = self.tokenizer or given.get("processing_class")
        if tokenizer is None:
            raise UserError(
                "LongPPL needs the model's tokenizer: give processing_class to the trainer, or tokenizer to the "
                "callback"
            )
        values = [self._evaluate(given["model"], tokenizer) if args.process_index == 0 else {}]
        if args.world_size > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(values)
        given.get("metrics", {}).update(values[0])
        self._log(state, dict(values[0]))

    def _evaluate(self, model: Any, tokenizer: Any) -> dict[str, float]:
        inner = innermost(model)
        if any(hasattr(parameter, "full_tensor") for parameter in inner.parameters()):
            raise UserError(
                "LongPPL during training needs all weights in one process, and they are spread over several (FSDP): "
                "save checkpoints, and score them with longlens score"
            )
        with _same_random_numbers():
            # Hashing the weights of a large model takes longer than scoring, and nothing of this run is stored.
            scorer = TransformersScorer(inner, tokenizer, source="in training", weights_sha256="in training")
            scores = score(self.documents, scorer, context=None, max_length=self.max_length)
        result = perplexity(scores, keys=self.keys)
        found = {
            "eval_ppl": result.ppl,
            "eval_longppl": result.longppl,
            "eval_num_key_tokens": result.num_key_tokens,
        }
        return {name: math.nan if value is None else value for name, value in found.items()}

    def _log(self, state: Any, values: dict[str, float]) -> None:
        if self.trainer is not None:
            self.trainer.log(values)
        else:
            state.log_history.append({**values, "epoch": state.epoch, "step": state.global_step})


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Puts every generator that training may draw from back to where it was."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
