"""The small model of a study: made, trained, extended, scored. The one file of `study` that runs a model."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from longlens.errors import UserError
from longlens.losses.documents import scored_labels, split_documents
from longlens.losses.longce import weighted_nll
from longlens.losses.passes import head_of, target_logprobs
from longlens.losses.settings import LongCE
from longlens.losses.short import score_short
from longlens.models.forward import Forward, running
from longlens.rope import apply, load_model
from longlens.rope.base import Method
from longlens.study.evaluation import Batch
from longlens.study.settings import Shape, Training
from longlens.study.text import Ids, Vocabulary

Floats = npt.NDArray[np.float32]
# "with no weight decay and a linear warmup of 20 steps along with AdamW (Loshchilov, 2017) with beta_1 = 0.9 and
# beta_2 = 0.95" (paper, appendix A.2)
BETAS = (0.9, 0.95)
MAX_NORM = 1.0
INITIAL = 0.06
"""Standard deviation of initial weights: with transformers' 0.02 so narrow a model learns to copy much later."""
ROWS = 8
"""Documents that are scored at one time."""


def make_model(shape: Shape, vocabulary: Vocabulary, seed: int) -> Any:
    """A Llama with random weights, which depend on the seed alone."""
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


def save(model: Any, folder: Path) -> None:
    """Writes config.json and model.safetensors.

    Raises:
        UserError: The disk is full.
    """
    from safetensors import SafetensorError

    try:
        model.save_pretrained(folder)
    except SafetensorError as error:
        raise UserError(
            f"cannot write {folder}: {error}: make room and run the same command again, it goes on from there"
        ) from error


def load(folder: Path) -> Any:
    """Reads what `save` wrote.

    Raises:
        UserError: It cannot be read.
    """
    return load_model(str(folder))


def extended(model: Any, method: Method) -> Any:
    """A copy of the model with its context extended."""
    return apply(copy.deepcopy(model), method)


class Step(NamedTuple):
    """What one optimiser step did.

    Attributes:
        number: Counted from 1.
        loss: Nats per token, weighted.
        weights: ``(B, n - 1)`` weights of the tokens from the second on.
        answers: ``(B, n - 1)`` bool: which of them are answers.
    """

    number: int
    loss: float
    weights: Floats
    answers: npt.NDArray[np.bool_]


def train(
    model: Any, training: Training, batches: Iterable[Batch], loss: Callable[[int], LongCE | None] = lambda step: None
) -> Iterator[Step]:
    """Trains the model, and stops after every step for whoever looks at it.

    Args:
        model: Changed in place.
        training: Steps, learning rate and what belongs to it.
        batches: Documents of each step.
        loss: Settings of LongCE for a step, counted from 0; None for CE.
    """
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=training.learning_rate, betas=BETAS, weight_decay=training.weight_decay
    )
    model.train()
    for number, batch in zip(range(training.steps), batches, strict=False):
        for group in optimiser.param_groups:
            group["lr"] = training.learning_rate * learning_rate_share(training, number)
        ids = torch.from_numpy(batch.token_ids)
        found = weighted_nll(model, ids, longce=loss(number), step=number)
        mean = found.total / found.weights.numel()
        _update(model, optimiser, mean)
        weights = found.weights.view(len(ids), -1).numpy()
        yield Step(number + 1, float(mean.detach()), weights, batch.answers[:, 1:])


def learning_rate_share(training: Training, step: int) -> float:
    """``min(1, (step + 1) / warmup) * (end + (1 - end) * (1 + cos(pi * step / steps)) / 2)``, step from 0."""
    warm = min(1.0, (step + 1) / max(1, training.warmup))
    return warm * (training.end + (1 - training.end) * (1 + math.cos(math.pi * step / training.steps)) / 2)


def _update(model: Any, optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
    optimiser.step()


class TokenLogprobs(NamedTuple):
    """What a model says of documents of one length.

    Attributes:
        long: ``(N, n)`` nats, NaN for first tokens.
        predicted: ``(N,)`` the most probable last token of each document, by its id.
    """

    long: Floats
    predicted: Ids


def score(model: Any, documents: Ids) -> TokenLogprobs:
    """Log-probabilities of all tokens, and what the model would have said for the last one.

    Args:
        model: Its own context is the whole document.
        documents: ``(N, n)`` token ids.
    """
    long = torch.full(documents.shape, math.nan)
    predicted = []
    for first, ids, scored in _rows(documents):
        head = head_of(model)
        with running(model):
            states = Forward(model).hidden(ids)
            long[first : first + len(ids)][scored] = target_logprobs(states, ids, scored, head)
            predicted.append(model.get_output_embeddings()(states[:, -2]).argmax(-1))
    return TokenLogprobs(long.numpy(), torch.cat(predicted).numpy())


def score_under_short_context(model: Any, documents: Ids, longce: LongCE) -> Floats:
    """``(N, n)`` nats: log-probabilities with a context of K to K + d - 1 tokens; NaN for tokens before K."""
    parts = []
    for _, ids, scored in _rows(documents):
        parts.append(score_short(model, head_of(model), ids, ids, scored, split_documents(ids, None), longce, 0))
    return torch.cat(parts).numpy()


def _rows(documents: Ids) -> Iterator[tuple[int, Tensor, Tensor]]:
    for first in range(0, len(documents), ROWS):
        ids = torch.from_numpy(documents[first : first + ROWS])
        yield first, ids, scored_labels(ids)


def time_steps(model: Any, batch: Ids, longce: LongCE, pairs: int) -> list[tuple[float, float]]:
    """Seconds of a CE and of a LongCE step on the same batch, in turn, so that a busy machine slows both.

    Args:
        model: Not changed.
        batch: ``(B, n)`` token ids.
        longce: Settings of LongCE.
        pairs: How many; two more are run before and not counted.
    """
    model = copy.deepcopy(model).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.0, betas=BETAS, weight_decay=0.0)
    ids, found = torch.from_numpy(batch), []
    for _ in range(pairs + 2):
        seconds = []
        for settings in (None, longce):
            started = time.perf_counter()
            nll = weighted_nll(model, ids, longce=settings)
            _update(model, optimiser, nll.total / nll.weights.numel())
            seconds.append(time.perf_counter() - started)
        found.append((seconds[0], seconds[1]))
    return found[2:]
