"""LongCE in the Trainer of transformers; `longlens.train.sft` reuses it for TRL's SFTTrainer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from longlens.data.store import NEUTRAL
from longlens.errors import LonglensWarning, UserError, shown_value
from longlens.losses.longce import WeightedNLL, shard_nll, weighted_nll
from longlens.losses.passes import IGNORED, document_starts
from longlens.losses.settings import FORMS, LongCE, check_offline
from longlens.settings.options import CONTEXT, GAMMA, STRIDE
from longlens.train.batch import OfflineCollator, TrainingBatch, read_batch
from longlens.train.callbacks import LongPPLCallback
from longlens.train.sequence import SequenceParallel, epoch_loader, shard_of

PAPER = LongCE()


@dataclass
class LongCEArguments:
    """The settings of the loss as fields of training arguments: plain values for a command line and JSON.

    Attributes:
        loss: ``longce``, one of its forms ``sampled-longce`` and ``chunked-longce``, or ``ce`` for cross-entropy by the
            same code.
        context: K, the minimum length of the short context in tokens.
        stride: d, the number of tokens scored per window.
        gamma: The maximum weight.
        floor: The smallest weight of a token with a short-context score; 0 as in the paper, 1 so that no token has a
            smaller weight than in cross-entropy.
        share: Share of the windows, for ``sampled-longce``; 0.5 by default.
        short_dtype: ``bfloat16`` or ``float16`` for the short-context pass; otherwise that of the long pass.

    Raises:
        UserError: A value is invalid, or there is a share without ``sampled-longce``.
    """

    loss: Literal["longce", "sampled-longce", "chunked-longce", "ce"] = field(
        default="longce", metadata={"help": "longce, sampled-longce, chunked-longce, or ce for cross-entropy."}
    )
    context: int = field(default=CONTEXT, metadata={"help": "K: minimum tokens of context of a short-context score."})
    stride: int = field(default=STRIDE, metadata={"help": "d: tokens that share a window."})
    gamma: float = field(default=GAMMA, metadata={"help": "The largest weight of a token."})
    floor: float = field(default=0.0, metadata={"help": "The smallest weight of a token: 0 as in the paper, or 1."})
    share: float | None = field(
        default=None, metadata={"help": "Share of the windows that sampled-longce scores at a step; 0.5 unless given."}
    )
    short_dtype: Literal["float16", "bfloat16"] | None = field(
        default=None, metadata={"help": "Precision of the short-context pass; that of the long pass unless given."}
    )

    def __post_init__(self) -> None:
        """Checks these settings, and then the other training arguments."""
        _ = self.longce
        super().__post_init__()  # type: ignore[misc]

    @property
    def longce(self) -> LongCE | None:
        """These fields as settings of the loss; None for cross-entropy."""
        kinds = {**FORMS, "ce": LongCE}
        if self.loss not in kinds:
            raise UserError(f"`loss` is {shown_value(self.loss)}; expected one of {', '.join(kinds)}")
        if self.share is not None and self.loss != "sampled-longce":
            raise UserError(f"`share` is for sampled-longce, and `loss` is {self.loss}: leave it out")
        names = ("context", "stride", "gamma", "floor", "short_dtype", *(() if self.share is None else ("share",)))
        settings = kinds[self.loss](**{name: getattr(self, name) for name in names})
        return None if self.loss == "ce" else settings


@dataclass
class LongCEConfig(LongCEArguments, TrainingArguments):  # type: ignore[misc]
    """TrainingArguments of transformers with the settings of LongCE (`LongCEArguments`).

    Like all TrainingArguments, they can be parsed by HfArgumentParser (``--context 1024``), are written as JSON by
    ``to_dict``, and are saved with checkpoints.
    """


class LongCETrainer(Trainer):  # type: ignore[misc]
    """Trainer with the LongCE loss, ``sum(weight * -logprob) / number of scored labels`` (eq. 6, 7).

    The number of labels is that of the whole step, over all micro-batches and processes
    (``average_tokens_across_devices``), so 1 x 4, 4 x 1 and two processes of 2 make the same update. Neither training
    nor evaluation computes the logits of a whole sequence. The evaluation loss is always plain cross-entropy, so that
    runs are comparable.

    Rows may be padded on the right, or contain packed documents (``position_ids`` that restart, as the collators of
    transformers and TRL make them). Labels of -100 are context. If the dataset has the column ``token_weights`` or
    ``short_logprobs`` (nats, null for tokens without one), these replace the short-context pass, and of the settings
    only gamma and floor apply.

    Training logs ``longce_mean_weight``, ``longce_share_at_gamma``, ``longce_share_above_2`` and
    ``longce_share_weighed`` (tokens with a short-context score), over all scored tokens since the previous log.

    Args:
        model: A transformers causal language model; or pass ``model_init``.
        args: `LongCEConfig`, which includes the settings of the loss; or TrainingArguments, with ``longce``.
        longce: Settings of the loss for TrainingArguments; may be a custom subclass. None is plain cross-entropy
            by the same code. Default: the paper's.

    All other arguments are those of Trainer.

    Raises:
        UserError: A setting with which LongCE is not known to be correct. Supported are one process, or several
            (torchrun, accelerate launch) with DistributedDataParallel, FSDP2 or DeepSpeed's ZeRO.
    """

    # The loss is divided by the labels of all micro-batches, so it must not be divided by their number.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any = None,
        args: LongCEConfig | TrainingArguments | None = None,
        data_collator: Callable[[list[Any]], Mapping[str, Any]] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Callable[..., Any] | None = None,
        compute_loss_func: Callable[..., Any] | None = None,
        compute_metrics: Callable[[Any], Mapping[str, Any]] | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[Any], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        longce: LongCE | None = PAPER,
    ) -> None:
        _keep_gradients(model)
        columns = self._set_loss(args, longce, train_dataset)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            model_init=model_init,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        self._check_settings(columns)

    def _set_loss(self, args: Any, longce: LongCE | None, train_dataset: Any) -> set[str]:
        """Sets the settings of the loss before the dataset is prepared; returns its offline columns."""
        if isinstance(args, LongCEArguments):
            if longce is not PAPER:
                raise UserError(
                    f"`longce` is given, and `args` is {type(args).__name__}, which has the settings of the loss: "
                    "leave `longce` out, or pass TrainingArguments or SFTConfig"
                )
            longce = args.longce
        self.longce = longce
        columns = _offline_columns(train_dataset)
        if longce is not None and columns:
            check_offline(longce)
        return columns

    def _check_settings(self, columns: set[str]) -> None:
        """Checks that need a constructed trainer.

        Args:
            columns: The offline columns of the original dataset.
        """
        self._refuse_unshown()
        parallel = self.accelerator.parallelism_config
        is_spread = parallel is not None and max(parallel.cp_size, parallel.sp_size) > 1
        self._sequence = SequenceParallel(self.accelerator, self.model) if is_spread else None
        for column in columns - _offline_columns(self.train_dataset):
            raise UserError(
                f"{column} was dropped while the dataset was prepared, because TRL's packing does not keep it. Pack "
                "first, compute weights of the packed rows, and train on them with packing=False"
            )
        if columns or getattr(self.train_dataset, "column_names", None) is None:  # a stream may not know its columns
            self.data_collator: Any = OfflineCollator(self.data_collator)
        self._check_collator()
        if self._sequence is not None:
            self.data_collator = self._sequence.collator(self.data_collator)
            self._try_collator()
        self._sums = torch.zeros(5, dtype=torch.float64)
        for callback in self.callback_handler.callbacks:
            self._bind(callback)

    def _check_collator(self) -> None:
        """Rejects a collator that loses boundaries of packed documents, as TRL's does: they would see each other."""
        if "position_ids" not in (getattr(self.train_dataset, "column_names", None) or ()):
            return
        row = self.train_dataset[0]
        if row["position_ids"] is None:
            return
        starts = document_starts(*(torch.tensor(row[name])[None] for name in ("input_ids", "position_ids")))
        batch = read_batch(self._try_collator())
        found = document_starts(batch.input_ids, batch.position_ids)
        if found.sum() < starts.sum():
            raise UserError(
                f"rows have position_ids that begin again with each document ({int(starts.sum())} in the first row), "
                f"and {type(self.data_collator).__name__} makes batches of {int(found.sum())}, in which packed "
                "documents would see each other: use a data_collator that keeps position_ids, such as "
                "longlens.train.pad_right"
            )

    def _try_collator(self) -> Any:
        """A batch of the first row, if one is available before training."""
        if getattr(self.train_dataset, "column_names", None) is None or not hasattr(self.train_dataset, "__getitem__"):
            return None
        row = self.train_dataset[0]
        self._set_signature_columns_if_needed()
        kept = [name for name in row if not self.args.remove_unused_columns or name in self._signature_columns]
        return self.data_collator([{name: row[name] for name in kept}])

    def _refuse_unshown(self) -> None:
        asked = {
            "fsdp": self.args.fsdp and not self.is_fsdp_enabled,
            "deepspeed": self.args.deepspeed and not self.is_deepspeed_enabled,
        }
        for name, is_lost in asked.items():
            if is_lost:
                raise UserError(
                    f"`{name}` is set, but accelerate shards only on accelerators such as GPUs: on the CPU each "
                    "process would have the whole model. Leave it out for DistributedDataParallel"
                )
        parallel = self.accelerator.parallelism_config
        refused = {
            "FSDP 1 (version 2 of `fsdp_config` is)": self.is_fsdp_enabled and not self.accelerator.is_fsdp2,
            "tensor parallelism": parallel is not None and parallel.tp_size > 1,
            "one model spread over devices (device_map)": self.is_model_parallel,
            "nn.DataParallel, which Trainer uses where one process sees several GPUs,": self.args.n_gpu > 1,
            "torch_compile": self.args.torch_compile,
            "use_liger_kernel": self.args.use_liger_kernel,
            "label_smoothing_factor": self.label_smoother is not None,
            "compute_loss_func": self.compute_loss_func is not None,
            "loss_type": getattr(self.args, "loss_type", "nll") != "nll",
        }
        for name, is_on in refused.items():
            if is_on:
                raise UserError(
                    f"LongCE is not known to be correct with {name}: leave it out, and use one process, or several "
                    "(torchrun --nproc-per-node N) with DistributedDataParallel, FSDP2 or DeepSpeed"
                )

    def create_accelerator_and_postprocess(self) -> None:
        """As in Trainer; if FSDP2 computes in half precision, gradients are summed in fp32 and outputs are not rounded.

        accelerate's policy rounds every layer's output to half precision, including log-probabilities and the loss.
        """
        super().create_accelerator_and_postprocess()
        if self.is_fsdp_enabled and self.accelerator.is_fsdp2:
            plugin = self.accelerator.state.fsdp_plugin
            if plugin.mixed_precision_policy is not None:
                plugin.mixed_precision_policy = replace(
                    plugin.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None
                )

    def _prepare_input(self, data: Any) -> Any:
        """Moves data to the device, without Trainer's cast to DeepSpeed's precision: offline weights are float32."""
        is_float = isinstance(data, Tensor) and data.is_floating_point()
        return data.to(self.args.device) if is_float else super()._prepare_input(data)

    def _bind(self, callback: Any) -> None:
        if isinstance(callback, LongPPLCallback):
            callback.trainer = self

    def add_callback(self, callback: Any) -> None:
        """Adds a callback; a `LongPPLCallback` logs through this trainer."""
        super().add_callback(callback)
        self._bind(self.callback_handler.callbacks[-1])

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        wanted = (*NEUTRAL, "position_ids")  # TRL has no such column
        missing = [name for name in wanted if name not in self._signature_columns]
        self._signature_columns += missing

    def _get_num_items_in_batch(
        self, batch_samples: Sequence[Mapping[str, Any]], device: torch.device
    ) -> Tensor | None:
        """Scored labels of all micro-batches, and of all processes if the loss is averaged over them.

        Transformers counts ``labels[..., 1:]``, which includes the first tokens of packed documents unless the collator
        sets their labels to -100.
        """
        number = torch.zeros((), dtype=torch.int64, device=device)
        for inputs in batch_samples:
            # Ulysses' loader has already split the rows, and shifted the labels that the collator left.
            part = inputs.get("shift_labels")
            number += (read_batch(inputs).num_scored if part is None else (part != IGNORED).sum()).to(device)
        is_cut = any("shift_labels" in inputs for inputs in batch_samples)
        if self._sequence is not None and is_cut:
            number = self._sequence.total(number)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            number = self.accelerator.gather(number).sum()
            if self._sequence is not None and (is_cut or not self._sequence.is_ulysses):
                number = number // self._sequence.size  # each rank of a group counted the same rows
        return number

    def _prepare_context_parallel_inputs(self, model: Any, inputs: Mapping[str, Any]) -> tuple[Any, Any]:
        """This rank's part of the sequences, and the context in which the loss is computed; otherwise the batch itself.

        Transformers shards neither weights nor short log-probabilities, and would run the short-context pass on rows
        that are already split.
        """
        if self._sequence is None:
            return nullcontext, inputs
        if self.longce is not None and set(inputs) & NEUTRAL.keys():
            check_offline(self.longce)
        return self._sequence.parts(model, inputs, self.longce, self.state.global_step)

    def _run_epoch(self, **given: Any) -> None:
        """As in Trainer, which can neither skip batches of DeepSpeed's adapter nor start another epoch with it."""
        if self._sequence is not None and self._sequence.is_ulysses:
            given["train_dataloader"] = epoch_loader(given["train_dataloader"], given["epoch"])
        super()._run_epoch(**given)

    def training_step(self, *args: Any, **given: Any) -> Tensor:
        """One micro-batch; returns its contribution to the logged mean over ranks."""
        loss: Tensor = super().training_step(*args, **given)
        if self._sequence is not None:
            loss = loss * (self.accelerator.num_processes / self._sequence.weight)
        return loss

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """LongCE of one micro-batch; with ``return_outputs`` also the model's outputs, which contain all logits."""
        if self._sequence is not None and self.model.training:
            found = shard_nll(model, shard_of(inputs), self.longce)
            if self.longce is not None:
                self._count(found, self.longce)
            if num_items_in_batch is None:
                raise UserError(
                    f"{self._sequence.name} and compute_loss without num_items_in_batch: a part of a sequence does not "
                    "know how many labels the whole has; call training_step"
                )
            ranks = self._sequence.weight
            if not self.args.average_tokens_across_devices:
                ranks *= self._sequence.size / self.accelerator.num_processes
            loss = found.total * (ranks / torch.as_tensor(num_items_in_batch).clamp(min=1))
            return (loss, None) if return_outputs else loss
        batch = read_batch(inputs)
        if self.longce is not None and not (batch.token_weights is None and batch.short_logprobs is None):
            check_offline(self.longce)  # the columns of an iterable dataset are known only now
        found = _weigh(model, batch, self.longce, self.state.global_step)
        if self.longce is not None:
            self._count(found, self.longce)
        loss = self._mean(found, num_items_in_batch)
        return (loss, _outputs(model, batch)) if return_outputs else loss

    def _mean(self, found: WeightedNLL, num_items: Tensor | int | None) -> Tensor:
        number = len(found.weights) if num_items is None else num_items
        loss = found.total / torch.as_tensor(number).clamp(min=1)
        if num_items is not None and self.args.average_tokens_across_devices:
            # The number covers all processes, and DistributedDataParallel averages their gradients.
            loss = loss * self.accelerator.num_processes
        return loss

    def prediction_step(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Plain cross-entropy; logits are computed only for ``compute_metrics`` and ``predict``, which need all."""
        with torch.no_grad():
            inputs = self._prepare_inputs(inputs)
            batch = read_batch(inputs)
            # For this process only: Trainer averages over rows, and drops rows repeated across processes.
            if self._sequence is None or self._sequence.is_ulysses:  # Ulysses keeps rows whole in evaluation
                loss = self._mean(_weigh(model, batch, None, 0), None).detach()
            elif not prediction_loss_only:
                raise UserError(
                    f"{self._sequence.name}, and predict and compute_metrics need logits of whole sequences: evaluate "
                    "only the loss (prediction_loss_only=True), or load the saved model in one process"
                )
            else:
                loss = self._sequence.evaluated(model, inputs) / batch.num_scored.clamp(min=1)
                self.gather_function = self._sequence.gather_rows  # Trainer gathers this loss with it
            if prediction_loss_only:
                return loss, None, None
            return loss, _outputs(model, batch).logits, batch.labels

    def _count(self, found: WeightedNLL, longce: LongCE) -> None:
        weights = found.weights.double()
        at_gamma = weights >= longce.gamma * (1 - 1e-6)  # exp(log(gamma)) is gamma except for rounding
        parts = [torch.ones_like(weights), weights, at_gamma, weights > 2, found.has_short]
        self._sums = self._sums.to(weights.device) + torch.stack([part.sum(dtype=torch.float64) for part in parts])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs; a line of training includes the weights since the previous one."""
        # Every process logs this line; others come from one process only, and gathering would deadlock.
        if self.longce is not None and "loss" in logs and "learning_rate" in logs:
            sums = self.accelerator.gather(self._sums.to(self.args.device)[None]).sum(dim=0).tolist()
            self._sums = torch.zeros(5, dtype=torch.float64)
            if sums[0]:
                names = ("mean_weight", "share_at_gamma", "share_above_2", "share_weighed")
                logs.update({f"longce_{name}": part / sums[0] for name, part in zip(names, sums[1:], strict=True)})
            if sums[0] and not sums[4]:
                warnings.warn(
                    "no token had a short-context score, so LongCE equaled CE: documents have at most "
                    f"{self.longce.context} tokens, which is the context K. Train on longer ones, or with a smaller "
                    "context",
                    LonglensWarning,
                    stacklevel=2,
                )
        super().log(logs, start_time)


def _keep_gradients(model: Any) -> None:
    """Prevents bitsandbytes from packing 4-bit weights for inference, as it does in the first eval-mode pass on a CPU.

    Nothing before a layer with packed weights would get a gradient.
    """
    modules: Any = model.modules() if isinstance(model, torch.nn.Module) else ()
    for module in modules:
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
            if getattr(module.weight.quant_state, "packing_format_for_cpu", False):
                raise UserError(
                    "the 4-bit weights of the model were packed for inference by a pass on the CPU, and have no "
                    "gradients: load the model again, and train it before it is run"
                )


def _weigh(model: Any, batch: TrainingBatch, longce: LongCE | None, step: int) -> WeightedNLL:
    return weighted_nll(
        model,
        batch.input_ids,
        batch.labels,
        longce=longce,
        position_ids=batch.position_ids,
        token_weights=batch.token_weights,
        short_logprobs=batch.short_logprobs,
        step=step,
    )


def _outputs(model: Any, batch: TrainingBatch) -> Any:
    with torch.no_grad():
        return model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)


def _offline_columns(dataset: Any) -> set[str]:
    return set(getattr(dataset, "column_names", None) or ()) & NEUTRAL.keys()
