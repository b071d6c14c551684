"""LongCE in TRL's SFTTrainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import TrainingArguments

from longlens.errors import UserError, require
from longlens.losses.settings import LongCE
from longlens.train.trainer import PAPER, LongCEArguments, LongCEConfig, LongCETrainer

_trl = require("trl", extra="train", purpose="LongCESFTTrainer")
_SFTConfig: Any = _trl.SFTConfig
_SFTTrainer: Any = _trl.SFTTrainer


@dataclass
class LongCESFTConfig(LongCEArguments, _SFTConfig):  # type: ignore[misc]
    """SFTConfig of TRL, with its defaults, plus the settings of LongCE (`LongCEArguments`)."""


class LongCESFTTrainer(LongCETrainer, _SFTTrainer):  # type: ignore[misc]
    """TRL's SFTTrainer with the loss of `LongCETrainer`: its data preparation, masks, packing and adapters.

    TRL's own metrics (entropy, token accuracy) are not computed.

    Args:
        model: A transformers causal language model, or its name.
        args: `LongCESFTConfig`, which has the settings of the loss; or SFTConfig or TrainingArguments, together with
            ``longce``.
        longce: Settings of the loss, for SFTConfig; None for plain cross-entropy by the same code. Default: the
            paper's.

    All other arguments are those of SFTTrainer.

    Raises:
        UserError: A setting with which LongCE is not known to be correct.
    """

    def __init__(
        self,
        model: Any,
        args: LongCESFTConfig | TrainingArguments | None = None,
        data_collator: Callable[[list[Any]], Mapping[str, Any]] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_loss_func: Callable[..., Any] | None = None,
        compute_metrics: Callable[[Any], Mapping[str, Any]] | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[Any], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
        quantization_config: Any = None,
        peft_config: Any = None,
        formatting_func: Callable[[dict[str, Any]], str] | None = None,
        *,
        longce: LongCE | None = PAPER,
    ) -> None:
        if isinstance(args, LongCEConfig):
            raise UserError("`args` is LongCEConfig, without the settings of TRL: write LongCESFTConfig")
        columns = self._set_loss(args, longce, train_dataset)
        _SFTTrainer.__init__(
            self,
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            quantization_config=quantization_config,
            peft_config=peft_config,
            formatting_func=formatting_func,
        )
        self._check_settings(columns)
