"""What a training recipe says, part by part: frozen dataclasses that refuse what cannot be. See docs/recipes.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from longlens.errors import UserError
from longlens.keytokens.influence import ALPHA, BETA, GAMMA, check_gamma, check_thresholds
from longlens.recipe_file import at_least, check_types, names, one_of
from longlens.train.data_settings import check_reading
from longlens.windows import check_window_settings

PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """How the model is loaded.

    Attributes:
        dtype: Of the weights, their gradients and the optimizer's state: ``float32``, ``bfloat16`` or ``float16``.
        attention: ``attn_implementation`` of transformers; its own choice unless given.
        full_attention: Turns the sliding window of a model off, in all layers.
        trust_remote_code: Runs code that comes with the model.
        allow_pickle: Reads ``.bin`` weights, which can run code.
    """

    dtype: str = "float32"
    attention: str | None = None
    full_attention: bool = False
    trust_remote_code: bool = False
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        """Checks the values."""
        check_types(self)
        one_of("dtype", self.dtype, PRECISIONS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Offline:
    """LongCE with the weights, or the short log-probabilities, that ``longlens data weigh`` wrote beside the tokens.

    Attributes:
        gamma: The largest weight; larger ones of ``token_weights`` are reduced to it.
    """

    gamma: float = GAMMA

    def __post_init__(self) -> None:
        """Checks the value."""
        check_types(self)
        check_gamma(self.gamma)


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """How it is trained, by AdamW.

    Attributes:
        batch_size: Rows of a step, over all processes and micro-batches.
        learning_rate: Its largest value.
        steps: Updates; or `epochs`.
        epochs: Passes over the rows.
        per_device_batch_size: Rows of a micro-batch in each process.
        schedule: After warmup ``constant``, ``linear`` (to 0) or ``cosine``.
        final_share: ``cosine`` ends at this share of the learning rate.
        warmup_steps: Of a linear rise from 0; or `warmup_ratio`.
        warmup_ratio: The same as a share of all steps.
        betas: Of AdamW.
        weight_decay: Of AdamW.
        clip: Largest norm of the gradient; null for none.
        precision: Autocast: ``bfloat16``, ``float16``, or ``float32`` for none.
        gradient_checkpointing: Computes activations again in the backward pass.
        seed: Of the order of rows, dropout and what else is drawn.
        save_every: Steps between checkpoints; there is one at the end in any case.
        keep: How many checkpoints are kept.
        log_every: Steps between lines of the log.
        report_to: ``tensorboard``, ``wandb``, ``trackio`` and the others that transformers knows.
        arguments: Further fields of transformers' TrainingArguments.
    """

    batch_size: int
    learning_rate: float
    steps: int | None = None
    epochs: float | None = None
    per_device_batch_size: int = 1
    schedule: str = "linear"
    final_share: float | None = None
    warmup_steps: int | None = None
    warmup_ratio: float | None = None
    # LongPPL, appendix A.2: "AdamW (Loshchilov, 2017) with beta_1 = 0.9 and beta_2 = 0.95", "no weight decay"; ProLong
    # has the same betas.
    betas: Sequence[float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float | None = 1.0
    precision: str = "float32"
    gradient_checkpointing: bool = False
    seed: int = 0
    save_every: int = 50
    keep: int = 1
    log_every: int = 1
    report_to: Sequence[str] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks the values, one by one and together."""
        check_types(self)
        for name in ("batch_size", "per_device_batch_size", "save_every", "keep", "log_every"):
            at_least(name, getattr(self, name), 1)
        if (self.steps is None) == (self.epochs is None):
            raise UserError("give steps or epochs, one of them")
        if self.steps is not None:
            at_least("steps", self.steps, 1)
        if self.epochs is not None and self.epochs <= 0:
            raise UserError(f"epochs is {self.epochs}; expected more than 0")
        if self.learning_rate <= 0:
            raise UserError(f"learning_rate is {self.learning_rate}; expected more than 0, such as 2e-5")
        if self.batch_size % self.per_device_batch_size:
            raise UserError(
                f"batch_size is {self.batch_size} rows, which are no whole number of micro-batches of "
                f"per_device_batch_size {self.per_device_batch_size}: change one of them"
            )
        if self.save_every % self.log_every:
            raise UserError(
                f"save_every is {self.save_every} and log_every {self.log_every}: a checkpoint between two lines of "
                "the log would change the line after it; make save_every a multiple of log_every"
            )
        self._check_schedule()
        names("report_to", self.report_to, empty=True)
        one_of("precision", self.precision, PRECISIONS)
        if len(self.betas) != 2 or not all(isinstance(beta, float) and 0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas is {list(self.betas)}; expected two numbers from 0 to below 1, such as [0.9, 0.95]")
        if self.weight_decay < 0:
            raise UserError(f"weight_decay is {self.weight_decay}; expected 0 or more")
        if self.clip is not None and self.clip <= 0:
            raise UserError(f"clip is {self.clip}; expected the largest norm of the gradient, or null for none")

    def _check_schedule(self) -> None:
        one_of("schedule", self.schedule, ("constant", "linear", "cosine"))
        if self.final_share is not None and self.schedule != "cosine":
            raise UserError(f"final_share is for schedule cosine, and schedule is {self.schedule}: leave it out")
        if self.final_share is not None and not 0 <= self.final_share <= 1:
            raise UserError(f"final_share is {self.final_share}; expected a share of the learning rate, from 0 to 1")
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise UserError("warmup_steps and warmup_ratio were both given: choose one")
        if self.warmup_steps is not None:
            at_least("warmup_steps", self.warmup_steps, 0)
        if self.warmup_ratio is not None and not 0 <= self.warmup_ratio < 1:
            raise UserError(f"warmup_ratio is {self.warmup_ratio}; expected a share of the steps, from 0 to below 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Lora:
    """Adapters of peft in place of all weights; the trained model is saved with them merged in.

    Attributes:
        r: Rank.
        alpha: Scale times r.
        dropout: Of the adapters' input.
        target_modules: Names of modules, or ``all-linear``.
        modules_to_save: Modules that are trained whole.
    """

    r: int
    alpha: float
    dropout: float = 0.0
    target_modules: str | Sequence[str] = "all-linear"
    modules_to_save: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Checks the values."""
        check_types(self)
        at_least("r", self.r, 1)
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}; expected 0 to below 1")
        if self.target_modules != "all-linear":
            names("target_modules", self.target_modules)
        names("modules_to_save", self.modules_to_save, empty=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluator:
    """The model that selects the key tokens of the held-out documents, once, before training (eq. 4).

    Attributes:
        model: As everywhere.
        context: K, tokens.
        stride: d, tokens.
        alpha: Nats.
        beta: Nats.
    """

    model: str
    context: int
    stride: int
    alpha: float = ALPHA
    beta: float = BETA

    def __post_init__(self) -> None:
        """Checks the values."""
        check_types(self)
        check_window_settings(self.context, self.stride)
        check_thresholds(self.alpha, self.beta)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Cross-entropy, perplexity and LongPPL of held-out documents during training.

    Attributes:
        documents: Files, folders, ``hf:NAME`` or ``stdlib:NAME``.
        every: Steps; the model is evaluated before the first one as well.
        max_length: Tokens that a document is cut to; with BOS the length of a row unless given. Not with `keys`, whose
            documents are those that were scored.
        keys: Key tokens, from ``longlens keys``.
        evaluator: Selects the key tokens instead.
        text_field: Field of a row that holds its text; ``text`` unless given.
        split: Split of an ``hf:`` dataset; ``test`` unless given.
        samples: Number of documents, from the first on; all unless given.
    """

    documents: Sequence[str]
    every: int
    max_length: int | None = None
    keys: str | None = None
    evaluator: Evaluator | None = None
    text_field: str | None = None
    split: str | None = None
    samples: int | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        check_types(self)
        names("documents", self.documents)
        at_least("every", self.every, 1)
        if self.max_length is not None:
            at_least("max_length", self.max_length, 2)
        if (self.keys is None) == (self.evaluator is None):
            raise UserError("LongPPL needs key tokens: give keys (a file of longlens keys) or evaluator, one of them")
        if self.keys is not None and self.max_length is not None:
            raise UserError("max_length cuts documents, and keys are of documents as they were scored: leave it out")
        if self.samples is not None:
            at_least("samples", self.samples, 1)
        check_reading(self.documents, text_field=self.text_field, split=self.split)
