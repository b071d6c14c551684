"""The sections of a training recipe: the values of each key. See docs/recipes.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, model_validator

from longlens.data.packing import TooLong
from longlens.data.recipe import check_reading
from longlens.errors import UserError, shown_value
from longlens.losses.settings import FORMS, LongCE, check_floor
from longlens.settings.options import ALPHA, BETA, GAMMA
from longlens.settings.recipe import Integer, Names, Real, Settings, expected, nearest

Precision = Literal["float32", "bfloat16", "float16"]
Length = Annotated[Integer, Field(ge=2)]
Count = Annotated[Integer, Field(ge=1)]
Sources = Annotated[Names, Field(min_length=1)]
Beta = Annotated[Real, Field(ge=0, lt=1)]


class MixtureData(Settings):
    """Rows that ``longlens data mix`` would make, in ``OUT/data``.

    Attributes:
        mixture: A preset, or a YAML file.
        sources: Paths of sources by name, instead of the mixture's.
        length: Tokens per row; by default the mixture's.
        tokens: Number of tokens of all rows; by default the mixture's.
        seed: Seed of the order of rows; by default the mixture's.
    """

    mixture: str
    sources: Mapping[str, str] = Field(default_factory=dict)
    length: Integer | None = None
    tokens: Integer | None = None
    seed: Integer | None = None


class PackedData(Settings):
    """Rows of a folder that ``longlens data mix``, ``pack`` or ``weigh`` has made.

    Attributes:
        packed: The folder.
    """

    packed: str


class DocumentsData(Settings):
    """Rows that ``longlens data pack`` would make, in ``OUT/data``.

    Attributes:
        documents: Files, folders, ``hf:NAME`` or ``stdlib:NAME``.
        length: Tokens per row.
        packing: ``best-fit`` (documents stay whole) or ``fill`` (full rows).
        too_long: Handling of longer documents: ``split``, ``cut`` or ``drop``.
        min_tokens: Documents with fewer tokens are left out.
        text_field: Field of a row that contains its text; ``text`` by default.
        split: Split of an ``hf:`` dataset; ``train`` by default.
    """

    documents: Sources
    length: Length
    packing: Literal["fill", "best-fit"] = "best-fit"
    too_long: TooLong = "split"
    min_tokens: Count = 1
    text_field: str | None = None
    split: str | None = None

    @model_validator(mode="after")
    def _check_reading(self) -> DocumentsData:
        check_reading(self.documents, text_field=self.text_field, split=self.split)
        return self


class ChatData(Settings):
    """Conversations, in which only the assistant's turns are learned (`longlens.data.chat`), in ``OUT/data``.

    Attributes:
        chat: Files, folders or ``hf:NAME`` with ``messages``.
        length: Tokens per row.
        pack: Whether whole conversations are packed into rows, without attention between them; otherwise each row is
            one conversation.
        too_long: Handling of longer conversations: ``cut`` keeps the whole turns that fit, ``drop`` removes the
            conversation.
        turns: ``together`` makes one row per conversation, ``apart`` one per answer.
        subset: Subset of an ``hf:`` dataset.
        split: Split of the dataset; ``train`` by default.
        samples: Number of conversations, starting with the first; all by default.
    """

    chat: Sources
    length: Length
    pack: bool = False
    too_long: Literal["cut", "drop"] = "cut"
    turns: Literal["together", "apart"] = "together"
    subset: str | None = None
    split: str | None = None
    samples: Count | None = None

    @model_validator(mode="after")
    def _check_reading(self) -> ChatData:
        check_reading(self.chat, subset=self.subset, split=self.split)
        return self


DATA: Mapping[str, type[MixtureData | PackedData | DocumentsData | ChatData]] = {
    "mixture": MixtureData,
    "packed": PackedData,
    "documents": DocumentsData,
    "chat": ChatData,
}


def _to_data(values: Any) -> Any:
    """Selects the kind of data by its distinguishing key."""
    if not isinstance(values, Mapping):
        return values
    found = [name for name in DATA if values.get(name) is not None]
    if len(found) != 1:
        had = " and ".join(found) or "none of them"
        raise UserError(f"found {had}; expected one of {', '.join(DATA)}, and the keys that go with it")
    return DATA[found[0]].model_validate({k: v for k, v in values.items() if k not in DATA or k == found[0]})


Data = Annotated[MixtureData | PackedData | DocumentsData | ChatData, BeforeValidator(_to_data)]
"""One of four kinds, distinguished by a key that only it has."""


class Offline(Settings):
    """LongCE with the weights, or the short log-probabilities, that ``longlens data weigh`` stored with the tokens.

    Attributes:
        gamma: The largest weight; larger ones of ``token_weights`` are reduced to it.
        floor: The smallest weight; smaller ones are raised to it.
    """

    gamma: Real = Field(default=GAMMA, gt=0)
    floor: Real = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _check_floor(self) -> Offline:
        check_floor(self.floor, self.gamma)
        return self


LOSSES: Mapping[str, type[LongCE | Offline] | None] = {
    **FORMS,
    "offline": Offline,
    "ce": None,
}


def _to_loss(values: Any) -> Any:
    """Parses the loss by name; its settings are those of LongCE, or none for cross-entropy."""
    if isinstance(values, Settings):
        return values
    if isinstance(values, str):
        values = {values: {}}
    if not isinstance(values, Mapping) or len(values) != 1:
        raise expected(f"one of {', '.join(LOSSES)} with its keys, such as longce: {{}}")
    ((name, settings),) = values.items()
    if name not in LOSSES:
        raise expected(f"one of {', '.join(LOSSES)}{nearest(name, LOSSES)}")
    kind = LOSSES[name]
    if kind is None:
        if settings:
            raise UserError(f"ce has no keys, and {shown_value(settings)} was given: leave it out")
        return None
    return TypeAdapter(dict[str, kind]).validate_python({name: settings or {}})[name]  # type: ignore[valid-type]


Loss = Annotated[LongCE | Offline | None, BeforeValidator(_to_loss)]
"""LongCE in one of its forms; None for cross-entropy."""


class Load(Settings):
    """How the model is loaded.

    Attributes:
        dtype: Dtype of the weights, their gradients and the optimizer's state: ``float32``, ``bfloat16`` or
            ``float16``.
        attention: ``attn_implementation`` of transformers; chosen by transformers by default.
        full_attention: Whether to disable the model's sliding window in all layers.
        trust_remote_code: Whether to run code that comes with the model.
        allow_pickle: Whether to read ``.bin`` weights, which can execute code.
    """

    dtype: Precision = "float32"
    attention: str | None = None
    full_attention: bool = False
    trust_remote_code: bool = False
    allow_pickle: bool = False


class Training(Settings):
    """Training settings, for AdamW.

    Attributes:
        batch_size: Rows per step, over all processes and micro-batches.
        learning_rate: Maximum learning rate.
        steps: Number of updates; or use `epochs`.
        epochs: Number of passes over the rows.
        per_device_batch_size: Rows per micro-batch in each process.
        schedule: Learning rate after warmup: ``constant``, ``linear`` (to 0) or ``cosine``.
        final_share: ``cosine`` ends at this share of the learning rate.
        warmup_steps: Steps of linear warmup from 0; or use `warmup_ratio`.
        warmup_ratio: Warmup as a share of all steps.
        betas: Betas of AdamW.
        weight_decay: Weight decay of AdamW.
        clip: Maximum gradient norm; null for no clipping.
        precision: Autocast: ``bfloat16``, ``float16``, or ``float32`` for none.
        sharding: Spreads weights, gradients and the optimizer's state over the processes: ``fsdp`` (FSDP2) or ``zero3``
            (DeepSpeed); by default each process has all of them.
        context_parallel: Number of processes that share each row: with torch's context parallelism if `sharding` is
            ``fsdp``, with DeepSpeed's Ulysses if it is ``zero3``; not used by default.
        gradient_checkpointing: Whether to recompute activations in the backward pass.
        seed: Seed of the order of rows, dropout and other random choices.
        save_every: Steps between checkpoints; there is always one at the end.
        keep: Number of checkpoints to keep.
        log_every: Steps between lines of the log.
        report_to: ``tensorboard``, ``wandb``, ``trackio`` and the others that transformers knows.
        arguments: Further fields of transformers' TrainingArguments.
    """

    batch_size: Count
    learning_rate: Real = Field(gt=0)
    steps: Count | None = None
    epochs: Real | None = Field(default=None, gt=0)
    per_device_batch_size: Count = 1
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    final_share: Real | None = Field(default=None, ge=0, le=1)
    warmup_steps: Integer | None = Field(default=None, ge=0)
    warmup_ratio: Real | None = Field(default=None, ge=0, lt=1)
    # LongPPL, appendix A.2: "AdamW (Loshchilov, 2017) with beta_1 = 0.9 and beta_2 = 0.95", "no weight decay"; ProLong
    # has the same betas.
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.95), strict=False)
    weight_decay: Real = Field(default=0.0, ge=0)
    clip: Real | None = Field(default=1.0, gt=0)
    precision: Precision = "float32"
    sharding: Literal["fsdp", "zero3"] | None = None
    context_parallel: Count | None = None
    gradient_checkpointing: bool = False
    seed: Integer = 0
    save_every: Count = 50
    keep: Count = 1
    log_every: Count = 1
    report_to: Names = ()
    arguments: Mapping[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_together(self) -> Training:
        if (self.steps is None) == (self.epochs is None):
            raise UserError("set either steps or epochs")
        if self.batch_size % self.per_device_batch_size:
            raise UserError(
                f"batch_size is {self.batch_size} rows, which is not a multiple of "
                f"per_device_batch_size {self.per_device_batch_size}: change one of them"
            )
        if self.save_every % self.log_every:
            raise UserError(
                f"save_every is {self.save_every} and log_every {self.log_every}: a checkpoint between two lines of "
                "the log would change the line after it; make save_every a multiple of log_every"
            )
        if self.final_share is not None and self.schedule != "cosine":
            raise UserError(f"final_share is for schedule cosine, and schedule is {self.schedule}: leave it out")
        both = [name for name in ("fsdp", "fsdp_config", "deepspeed") if name in self.arguments]
        if self.sharding is not None and both:
            raise UserError(f"sharding and arguments.{both[0]} are both set: choose one")
        if self.context_parallel is not None and self.sharding is None:
            raise UserError(
                f"context_parallel is {self.context_parallel} and sharding is not set: set it to fsdp (torch's "
                "context parallelism) or zero3 (DeepSpeed's Ulysses)"
            )
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            raise UserError("warmup_steps and warmup_ratio are both set: choose one")
        return self


def _to_modules(value: Any) -> Any:
    is_list = isinstance(value, (list, tuple)) and value and all(isinstance(name, str) and name for name in value)
    if value != "all-linear" and not is_list:
        raise expected("all-linear, or a list of names")
    return value if isinstance(value, str) else tuple(value)


class Lora(Settings):
    """PEFT adapters to train instead of all weights; the trained model is saved with them merged in.

    Attributes:
        r: Rank.
        alpha: Scaling factor times r.
        dropout: Dropout of the adapters' input.
        target_modules: Names of modules, or ``all-linear``.
        modules_to_save: Modules that are trained fully.
    """

    r: Count
    alpha: Real
    dropout: Real = Field(default=0.0, ge=0, lt=1)
    target_modules: Annotated[str | tuple[str, ...], BeforeValidator(_to_modules)] = "all-linear"
    modules_to_save: Names = ()


class Evaluator(Settings):
    """The model that selects the key tokens of the held-out documents, once, before training (eq. 4).

    Attributes:
        model: Hub id, folder, ``.gguf`` file, ``smollm2`` or ``gemma3-270m``.
        context: K, tokens.
        stride: d, tokens.
        alpha: Threshold of the long-short difference, nats.
        beta: Threshold of the long-context likelihood, nats.
    """

    model: str
    context: Count
    stride: Count
    alpha: Real = ALPHA
    beta: Real = BETA


class Evaluation(Settings):
    """Cross-entropy, perplexity and LongPPL of held-out documents during training.

    Attributes:
        documents: Files, folders, ``hf:NAME`` or ``stdlib:NAME``.
        every: Number of steps between evaluations; the model is also evaluated before the first step.
        max_length: Maximum tokens per document; by default the length of a row, BOS included. Not allowed with `keys`,
            whose documents are used as they were scored.
        keys: Key tokens, from ``longlens keys``.
        evaluator: Model that selects the key tokens instead.
        text_field: Field of a row that contains its text; ``text`` by default.
        split: Split of an ``hf:`` dataset; ``test`` by default.
        samples: Number of documents, starting with the first; all by default.
    """

    documents: Sources
    every: Count
    max_length: Length | None = None
    keys: str | None = None
    evaluator: Evaluator | None = None
    text_field: str | None = None
    split: str | None = None
    samples: Count | None = None

    @model_validator(mode="after")
    def _check_together(self) -> Evaluation:
        if (self.keys is None) == (self.evaluator is None):
            raise UserError("LongPPL needs key tokens: set either keys (a file of longlens keys) or evaluator")
        if self.keys is not None and self.max_length is not None:
            raise UserError("max_length truncates documents, and keys refer to them as they were scored: leave it out")
        check_reading(self.documents, text_field=self.text_field, split=self.split)
        return self
