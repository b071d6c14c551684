"""What two processes with parts of the same sequences compute: started twice by test_sequence.py; writes to a folder.

Torch's context parallelism has no attention for the CPU, so that the attention here is the test's own: keys and values
of all ranks are gathered, with gradient. All else is the product's: how torch cuts and orders the tokens, the short
pass, the weights, the scale of the loss.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import DistributedType
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.nn.functional import all_gather
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import longlens.train
from longlens.errors import UserError
from longlens.train import LongCETrainer
from tests.tiny import tiny_model
from tests.train.runs import LENGTHS, SEQUENCES, in_sequence, rows, trained

ATTENTION = torch.nn.functional.scaled_dot_product_attention
ALONE = ALL_ATTENTION_FUNCTIONS["sdpa"]


def over_ranks(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention of this rank's queries to the keys of all ranks, where torch's context is on."""
    if torch.nn.functional.scaled_dot_product_attention is ATTENTION:
        found: tuple[Tensor, None] = ALONE(module, query, key, value, attention_mask, **options)
        return found
    assert attention_mask is None
    positions = options["position_ids"].contiguous()
    places = [torch.empty_like(positions) for _ in range(dist.get_world_size())]
    dist.all_gather(places, positions)
    key, value = (torch.cat(all_gather(part.contiguous()), dim=2) for part in (key, value))
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    is_seen = positions[:, None, :, None] >= torch.cat(places, dim=1)[:, None, None, :]
    return ATTENTION(query, key, value, attn_mask=is_seen, scale=options["scaling"]).transpose(1, 2), None


class SpreadTrainer(LongCETrainer):
    """On a CPU, for which alone accelerate has no FSDP: torch has it."""

    def create_accelerator_and_postprocess(self) -> None:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        super().create_accelerator_and_postprocess()


SPREAD = {"fsdp": True, "fsdp_config": {"version": 2, "reshard_after_forward": True}}
PACKED = {"position_ids": [[*range(20), *range(length - 20)] for length in LENGTHS]}
REFUSED: dict[str, Callable[[], dict[str, Any]]] = {
    "packed": lambda: {"train_dataset": rows(**PACKED), "data_collator": longlens.train.pad_right},
    "eager": lambda: {"model": tiny_model("llama", attn_implementation="eager")},
    "sliding": lambda: {"model": tiny_model("mistral-sliding")},
    "dynamic": lambda: {"model": tiny_model("llama-dynamic-ntk")},
    "gpt2": lambda: {"model": tiny_model("gpt2")},
    "longrope": lambda: {"model": tiny_model("phi3-longrope")},
}


def main(folder: Path) -> None:
    AttentionInterface.register("sdpa", over_ranks)
    rank = int(os.environ["RANK"])
    for name in SEQUENCES:
        given = in_sequence(name)
        given["args"] |= {"parallelism_config": ParallelismConfig(cp_size=2), **SPREAD}
        trainer = trained(folder / name, kind=SpreadTrainer, **given)
        for module in trainer.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        weights = {key: value.full_tensor() for key, value in trainer.model.named_parameters()}
        save_file(weights, folder / f"{name}-{rank}.safetensors")
        (folder / f"{name}-{rank}.json").write_text(json.dumps(trainer.state.log_history))
    errors = {}
    for name, made in REFUSED.items():
        try:
            trained(
                folder / name,
                kind=SpreadTrainer,
                args={"parallelism_config": ParallelismConfig(cp_size=2), **SPREAD},
                **made(),
            )
        except UserError as error:
            errors[name] = str(error)
    (folder / f"errors-{rank}.json").write_text(json.dumps(errors))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
