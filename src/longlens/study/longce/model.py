"""Creates, trains, extends and scores the small model of a study."""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback

from longlens.errors import UserError
from longlens.losses.longce import WeightedNLL, weighted_nll
from longlens.losses.passes import head_of, score_short, scored_labels, split_documents, target_logprobs
from longlens.losses.settings import LongCE
from longlens.models.forward import Forward, running
from longlens.rope import apply
from longlens.rope.base import Method
from longlens.study.longce.arms import Arm
from longlens.study.longce.documents import FactBatch, Ids, Vocabulary
from longlens.study.longce.settings import Shape, StudyTraining
from longlens.study.tuning import MAX_NORM, training_arguments
from longlens.train.batch import pad_right
from longlens.train.trainer import LongCETrainer

Floats = npt.NDArray[np.float32]
CE = Arm()
_KNOWN = LongCE(gamma=1e6)
"""Settings for weights that come with the batch, which are used unchanged."""
# "with no weight decay and a linear warmup of 20 steps along with AdamW (Loshchilov, 2017) with beta_1 = 0.9 and
# beta_2 = 0.95" (paper, appendix A.2)
BETAS = (0.9, 0.95)
INITIAL = 0.06
"""Standard deviation of initial weights: with transformers' 0.02, such a narrow model learns to copy much later."""
ROWS = 8
"""Number of documents per scoring batch."""


def make_model(shape: Shape, vocabulary: Vocabulary, seed: int) -> Any:
    """Creates a Llama with random weights, which depend only on the seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary.size,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.length,
        rope_parameters={"rope_type": "default", "rope_theta": float(shape.theta)},
        initializer_range=INITIAL,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def save_model(model: Any, folder: Path) -> None:
    """Writes config.json and model.safetensors.

    Raises:
        UserError: The disk is full.
    """
    from safetensors import SafetensorError

    try:
        model.save_pretrained(folder)
    except SafetensorError as error:
        raise UserError(
            f"cannot write {folder}: {error}: make room and run the same command again, it resumes from there"
        ) from error


def extend_model(model: Any, method: Method) -> Any:
    """Returns a copy of the model with its context extended."""
    return apply(copy.deepcopy(model), method)


class Step(NamedTuple):
    """Record of an optimizer step.

    Attributes:
        number: Number of the step, from 1.
        loss: Weighted loss in nats per token.
        weights: ``(B, n - 1)`` weights of the tokens from the second on.
        answers: ``(B, n - 1)`` bool: which of them are answers.
    """

    number: int
    loss: float
    weights: Floats
    answers: npt.NDArray[np.bool_]


def train(
    model: Any,
    training: StudyTraining,
    batches: Iterable[FactBatch],
    *,
    arm: Arm = CE,
    longce: LongCE | None = None,
    seed: int = 0,
    after_step: Callable[[Step], None] = lambda step: None,
) -> None:
    """Trains the model with `LongCETrainer`.

    Args:
        model: Changed in place.
        training: Steps, learning rate and related settings.
        batches: Documents of each step.
        arm: The loss; CE by default.
        longce: K, d and gamma of an arm other than CE.
        seed: Seed of random numbers in the model during training; the loss of step i, counted from 0, has ``seed + i``.
        after_step: Called after each step; it may run the model.
    """
    if training.learning_rate is None:
        raise UserError("training has no learning_rate: set one, such as 3e-4")
    taken = list(islice(batches, training.steps))
    loss, rows = _loss_of_step(arm, longce, seed), [row for batch in taken for row in _rows(arm, longce, batch)]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=training.learning_rate, betas=BETAS, weight_decay=training.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_share(training, step))
    with tempfile.TemporaryDirectory() as scratch:
        arguments = training_arguments(
            scratch,
            max_steps=len(taken),
            per_device_train_batch_size=len(taken[0].token_ids),
            # Seed of random numbers in the model (CLEX lengths); the Trainer also seeds NumPy, which accepts 32 bits.
            seed=seed % 2**32,
        )
        trainer = _StepTrainer(
            model,
            arguments,
            data_collator=pad_right,
            train_dataset=rows,
            optimizers=(optimizer, schedule),
            longce=loss(0),
        )
        trainer.remove_callback(PrinterCallback)  # it would print to stdout
        trainer.add_callback(_EachStep(trainer, taken, loss, after_step))
        trainer.train()


def _loss_of_step(arm: Arm, longce: LongCE | None, seed: int) -> Callable[[int], LongCE | None]:
    if arm.weights is not None:
        return lambda step: _KNOWN
    if arm.loss is None or longce is None:
        return lambda step: None
    make, settings = arm.loss, longce
    return lambda step: make(settings, seed + step)


def _rows(arm: Arm, longce: LongCE | None, batch: FactBatch) -> list[dict[str, Any]]:
    """Returns a step's documents as rows of the dataset, with weights that are known in advance."""
    rows: list[dict[str, Any]] = [{"input_ids": ids} for ids in batch.token_ids.tolist()]
    if arm.weights is not None and longce is not None:
        for row, weights in zip(rows, arm.weights(batch, longce.context).tolist(), strict=True):
            row["token_weights"] = weights
    return rows


class _StepTrainer(LongCETrainer):
    """A trainer that keeps the loss and the weights of the current step."""

    def _mean(self, found: WeightedNLL, num_items: Tensor | int | None) -> Tensor:
        loss = super()._mean(found, num_items)
        self.step_loss, self.step_weights = float(loss.detach()), found.weights
        return loss


class _EachStep(TrainerCallback):  # type: ignore[misc]
    """A callback that sets the loss of each step, and reports the step."""

    def __init__(
        self,
        trainer: _StepTrainer,
        batches: list[FactBatch],
        loss: Callable[[int], LongCE | None],
        after_step: Callable[[Step], None],
    ) -> None:
        self._trainer, self._batches, self._loss, self._after_step = trainer, batches, loss, after_step

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Sets the loss before a step."""
        self._trainer.longce = self._loss(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Reports the step after the update."""
        answers = self._batches[state.global_step - 1].answers[:, 1:]
        weights = self._trainer.step_weights.view(answers.shape).numpy()
        self._after_step(Step(state.global_step, self._trainer.step_loss, weights, answers))


def learning_rate_share(training: StudyTraining, step: int) -> float:
    """``min(1, (step + 1) / warmup) * (end + (1 - end) * (1 + cos(pi * step / steps)) / 2)``, step from 0."""
    warm = min(1.0, (step + 1) / max(1, training.warmup))
    return warm * (training.end + (1 - training.end) * (1 + math.cos(math.pi * step / training.steps)) / 2)


def time_steps(model: Any, batch: Ids, longce: LongCE, pairs: int) -> list[tuple[float, float]]:
    """Measures seconds of a CE and of a LongCE step on the same batch, alternating, so that other load affects both.

    Args:
        model: Not changed.
        batch: ``(B, n)`` token ids.
        longce: Settings of LongCE.
        pairs: Number of pairs; two more are run first as a warm-up.
    """
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=BETAS, weight_decay=0.0)
    ids, found = torch.from_numpy(batch), []
    for _ in range(pairs + 2):
        seconds = []
        for settings in (None, longce):
            started = time.perf_counter()
            optimizer.zero_grad()
            nll = weighted_nll(model, ids, longce=settings)
            (nll.total / nll.weights.numel()).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            seconds.append(time.perf_counter() - started)
        found.append((seconds[0], seconds[1]))
    return found[2:]


class TokenLogprobs(NamedTuple):
    """Scores of documents of the same length.

    Attributes:
        long: ``(N, n)`` nats, NaN for first tokens.
        last: ``(N, vocabulary)`` logits of the last token of each document.
    """

    long: Floats
    last: Floats


def score(model: Any, documents: Ids) -> TokenLogprobs:
    """Computes log-probabilities of all tokens, and the logits of the last token.

    Args:
        model: A model whose context covers the whole document.
        documents: ``(N, n)`` token ids.
    """
    long = torch.full(documents.shape, math.nan)
    last = []
    for first, ids, scored in _row_groups(documents):
        head = head_of(model)
        with running(model):
            states = Forward(model).hidden(ids)
            long[first : first + len(ids)][scored] = target_logprobs(states, ids, scored, head)
            last.append(model.get_output_embeddings()(states[:, -2]))
    return TokenLogprobs(long.numpy(), torch.cat(last).numpy())


def score_under_short_context(model: Any, documents: Ids, longce: LongCE) -> Floats:
    """``(N, n)`` nats: log-probabilities with a context of K to K + d - 1 tokens; NaN for tokens before K."""
    parts = []
    for _, ids, scored in _row_groups(documents):
        parts.append(score_short(model, head_of(model), ids, ids, scored, split_documents(ids, None), longce, 0))
    return torch.cat(parts).numpy()


def _row_groups(documents: Ids) -> Iterator[tuple[int, Tensor, Tensor]]:
    for first in range(0, len(documents), ROWS):
        ids = torch.from_numpy(documents[first : first + ROWS])
        yield first, ids, scored_labels(ids)
