"""Sequences longer than one device: context parallelism of torch, and Ulysses of DeepSpeed, both through accelerate.

Each rank of a group has a part of the tokens of the same sequences; attention sees all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from longlens.data.store import NEUTRAL
from longlens.errors import UserError
from longlens.losses.longce import Shard, shard_nll, shift_targets, short_logprobs_of
from longlens.losses.passes import IGNORED, head_of, innermost, run_inside, scored_labels, shifted, split_documents
from longlens.losses.settings import LongCE
from longlens.models.forward import Forward
from longlens.rope.eabf import base_attention
from longlens.train.batch import TrainingBatch, read_batch

_FLASH = "flash_attention"


class SequenceParallel:
    """The group of ranks over which a sequence is split, and the splitting of batches.

    Attributes:
        size: Number of ranks per group.
        is_ulysses: Whether it is DeepSpeed's Ulysses; otherwise torch's context parallelism.
        multiple: Rows are padded to a multiple of this number of tokens.

    Args:
        accelerator: The accelerator of accelerate, whose ``parallelism_config`` has ``cp_size`` or ``sp_size`` above 1.
        model: A transformers causal language model.

    Raises:
        UserError: The split model would compute something other than it does on one device.
    """

    def __init__(self, accelerator: Any, model: Any) -> None:
        config = accelerator.parallelism_config
        if config.sp_size > 1 and getattr(accelerator.state, "deepspeed_plugin", None) is None:
            raise UserError(f"sp_size={config.sp_size} is DeepSpeed's Ulysses: set `deepspeed`, or cp_size with `fsdp`")
        self.accelerator = accelerator
        self._implementation: str | None = None
        self.is_ulysses: bool = config.sp_size > 1
        self.size: int = config.sp_size if self.is_ulysses else config.cp_size
        # Torch gives each rank a piece from the head and one from the tail, so that all have equal work.
        self.multiple = self.size if self.is_ulysses else 2 * self.size
        self.name = f"sp_size={self.size}" if self.is_ulysses else f"cp_size={self.size}"
        self._check_model(innermost(model))
        if self.is_ulysses and self._zero("stage", 0) == 0:
            raise UserError(
                f"{self.name} needs ZeRO: set zero_optimization.stage to 1, 2 or 3 in DeepSpeed's configuration"
            )
        if self.is_ulysses and self._zero("stage", 0) == 3 and not self._zero("reduce_scatter", True):
            raise UserError(
                f"{self.name} and ZeRO-3 with reduce_scatter false, where DeepSpeed scales gradients by the size of a "
                "bucket: leave zero_optimization.reduce_scatter out"
            )

    def _check_model(self, model: Any) -> None:
        name, attention = type(model).__name__, model.config._attn_implementation
        forward = Forward(model)
        if forward.by_length:
            raise UserError(
                f"{self.name}, and the rotary frequencies of {name} depend on the length of the sequence (dynamic "
                "NTK, LongRoPE, CLEX), which no rank has as a whole: extend it with yarn, pi, ntk or eabf"
            )
        windows = forward.attention_windows
        if windows is None:
            raise UserError(
                f"{self.name}, and layers of {name} carry a state along the sequence, which would restart on each "
                "rank: train it with sharded weights and whole sequences (FSDP, ZeRO-3)"
            )
        if self.is_ulysses:
            self._implementation = self.accelerator.parallelism_config.sp_handler.sp_attn_implementation
            if attention != self._implementation:
                raise UserError(
                    f"{self.name} with sp_attn_implementation {self._implementation!r}, and the model was loaded with "
                    f"{attention!r}: they must match"
                )
            return
        if windows:
            raise UserError(
                f"{self.name}, and layers of {name} have sliding-window or chunked attention, which torch's context "
                "parallelism would make full: use sp_size (Ulysses), or load the model with full attention"
            )
        if base_attention(attention) != "sdpa" or not any(
            part.endswith("self_attn") for part, _ in model.named_modules()
        ):
            raise UserError(
                f"{self.name}, and {name} has {attention!r} attention: torch's context parallelism needs a model of "
                "transformers with attn_implementation='sdpa' and layers named self_attn"
            )

    @property
    def group(self) -> Any:
        """Process group of the ranks that have parts of the same sequences; available once the model is prepared."""
        if self.is_ulysses:
            from deepspeed.utils import groups

            return groups._get_sequence_parallel_group()
        return self.accelerator.torch_device_mesh["cp"].get_group()

    @property
    def weight(self) -> float:
        """Factor of a rank's part of a sum, so that the gradient of a step is that of the whole sum.

        FSDP and ZeRO-3 (`reduce_scatter_coalesced`) average gradients over all ranks; ZeRO-1 and ZeRO-2 sum them over
        the group, and average over groups (``sequence_parallel_size`` in DeepSpeed 0.19.8).
        """
        ranks: int = self.accelerator.num_processes
        return ranks / self.size if self.is_ulysses and self._zero("stage", 0) < 3 else ranks

    def _zero(self, key: str, default: int) -> int:
        """A setting of DeepSpeed's ZeRO."""
        found: int = self.accelerator.state.deepspeed_plugin.hf_ds_config.get_value(f"zero_optimization.{key}", default)
        return found

    def total(self, value: Tensor) -> Tensor:
        """The sum over the group, without gradient."""
        value = value.detach().clone().to(self.accelerator.device)
        dist.all_reduce(value, group=self.group)
        return value

    def whole(self, inputs: Mapping[str, Any]) -> TrainingBatch:
        """The whole batch of which all ranks of the group have parts: Ulysses' loader has split it already."""
        if "shift_labels" not in inputs:
            batch = read_batch(inputs)
        else:
            found = {name: self._gather(value) for name, value in inputs.items() if isinstance(value, Tensor)}
            targets = found.pop("shift_labels")
            found["labels"] = torch.nn.functional.pad(targets[:, :-1], (1, 0), value=IGNORED)
            batch = read_batch(found)
        self.check(batch)
        return batch

    def _gather(self, part: Tensor) -> Tensor:
        part = part.to(self.accelerator.device).contiguous()
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(parts, part, group=self.group)
        return torch.cat(parts, dim=1)

    def check(self, batch: TrainingBatch) -> None:
        """Rejects batches for which attention over several ranks would differ from attention on one.

        Raises:
            UserError: Documents are packed, so that they would see each other, or the length is not divisible.
        """
        rows, length = batch.input_ids.shape
        if len(split_documents(batch.input_ids, batch.position_ids)) > rows:
            has_flash = self.is_ulysses and (self._implementation or "").startswith(_FLASH)
            if not has_flash or rows > 1:
                raise UserError(
                    f"{self.name} with documents packed into rows, which would see each other: train with one document "
                    "per "
                    "row" + (f", or with {_FLASH}_2 and one row per batch" if self.is_ulysses else ", or with sp_size")
                )
        if length % self.multiple:
            raise UserError(
                f"{self.name} and a batch of {length} tokens per row, expected a multiple of {self.multiple}: leave "
                "the padding to the trainer's data_collator"
            )

    def collator(self, collator: Callable[[list[Any]], Mapping[str, Any]]) -> Callable[[list[Any]], dict[str, Tensor]]:
        """Makes a collator's rows divisible: padded on the right, with positions and labels of scored tokens."""
        return partial(_collate, self, collator)

    def parts(
        self, model: Any, inputs: Mapping[str, Any], longce: LongCE | None, step: int
    ) -> tuple[Callable[[], AbstractContextManager[Any]], dict[str, Tensor]]:
        """This rank's part of a batch, after the short-context pass on whole sequences, which the ranks share.

        Args:
            model: The model as prepared by accelerate.
            inputs: Inputs of the data loader: whole rows, or Ulysses' parts.
            longce: Settings of LongCE; None for cross-entropy.
            step: Number of updates so far, from 0.

        Returns:
            The context in which the loss is computed, and the columns of `Shard`, which are split when it is entered.
        """
        batch = self.whole(inputs)
        ids, positions = batch.input_ids, batch.position_ids
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        if "_longlens_head" not in vars(innermost(model)):  # its probe is a whole sequence as well
            with torch.no_grad():
                run_inside(model, lambda inner: head_of(inner).weight.new_zeros(()))
        short = batch.short_logprobs
        if longce is not None and short is None and batch.token_weights is None:
            short = short_logprobs_of(model, ids, batch.labels, positions, longce, step, self.group)
        columns = {"input_ids": ids, "shift_labels": shift_targets(batch.labels, positions), "position_ids": positions}
        for name, values in (("token_weights", batch.token_weights), ("short_logprobs", short)):
            if values is not None:
                columns[name] = shifted(values, NEUTRAL[name])
        if self.is_ulysses:
            rank, length = dist.get_rank(self.group), ids.shape[1] // self.size
            part = slice(rank * length, (rank + 1) * length)
            return nullcontext, {name: values[:, part].contiguous() for name, values in columns.items()}
        # Torch splits them in place.
        columns = {name: values.clone(memory_format=torch.contiguous_format) for name, values in columns.items()}
        buffers = list(columns.values())
        context = partial(
            self.accelerator.maybe_context_parallel,
            buffers=buffers,
            buffer_seq_dims=[1] * len(buffers),
            no_restore_buffers=set(buffers),
        )
        return context, columns

    def evaluated(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        """Nats of all scored tokens of whole rows, without gradient, the same on each rank."""
        context, columns = self.parts(model, inputs, None, 0)
        with torch.no_grad(), context():
            return self.total(shard_nll(model, shard_of(columns), None).total)

    def gather_rows(self, values: Tensor) -> Tensor:
        """What `Accelerator.gather_for_metrics` should return: values of each row once, without repeated rows."""
        found: Tensor = self.accelerator.gather(values).view(-1, self.size, len(values))[:, 0].flatten()
        state = self.accelerator.gradient_state
        return found[: state.remainder] if state.end_of_dataloader and state.remainder > 0 else found


def shard_of(inputs: Mapping[str, Any]) -> Shard:
    """The columns of `SequenceParallel.parts` as an argument of the loss."""
    return Shard(
        input_ids=inputs["input_ids"],
        targets=inputs["shift_labels"],
        position_ids=inputs["position_ids"],
        token_weights=inputs.get("token_weights"),
        short_logprobs=inputs.get("short_logprobs"),
    )


class _Epoch(IterableDataset[Any]):
    """The parts of one pass over the rows, from DeepSpeed's adapter, which cannot start a second pass by itself."""

    def __init__(self, adapter: Any) -> None:
        self.adapter = adapter

    def __iter__(self) -> Iterator[Any]:
        self.adapter.micro_batches.clear()
        self.adapter.iter = iter(self.adapter.dl)
        yield from self.adapter


def epoch_loader(adapter: Any, epoch: int) -> Any:
    """The loader of an epoch for Ulysses: with its order of rows, and supported by `accelerate.skip_first_batches`.

    Args:
        adapter: ``UlyssesSPDataLoaderAdapter`` of DeepSpeed.
        epoch: Number of the epoch, from 0.
    """
    adapter.dl.set_epoch(epoch)
    return DataLoader(_Epoch(adapter), batch_size=None)


def _collate(
    parallel: SequenceParallel, collator: Callable[[list[Any]], Mapping[str, Any]], features: list[Any]
) -> dict[str, Tensor]:
    batch = read_batch(collator(features))
    ids, positions = batch.input_ids, batch.position_ids
    if positions is None:
        positions = torch.arange(ids.shape[1]).expand(ids.shape)
    missing = -ids.shape[1] % parallel.multiple
    further = positions[:, -1:] + torch.arange(1, missing + 1)
    found = {
        "input_ids": torch.nn.functional.pad(ids, (0, missing)),
        "labels": batch.labels.masked_fill(~scored_labels(batch.labels, positions), IGNORED),
        "position_ids": torch.cat([positions.expand(len(ids), -1), further.expand(len(ids), -1)], dim=1),
    }
    found["labels"] = torch.nn.functional.pad(found["labels"], (0, missing), value=IGNORED)
    for name, values in (("token_weights", batch.token_weights), ("short_logprobs", batch.short_logprobs)):
        if values is not None:
            found[name] = torch.nn.functional.pad(values, (0, missing), value=NEUTRAL[name])
    parallel.check(read_batch(found))
    return found
