"""What two processes with parts of the same sequences compute by DeepSpeed's Ulysses: started by test_ulysses.py.

Nothing stands in for DeepSpeed here: its loader, its attention over the heads of all ranks and its ZeRO run with gloo.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import DeepSpeedSequenceParallelConfig
from deepspeed.runtime.sequence_parallel import parallel_state_sp
from safetensors.torch import save_file
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from longlens.errors import UserError
from longlens.train import pad_right
from tests.tiny import tiny_model
from tests.train import cpu_sharding
from tests.train.runs import LENGTHS, ULYSSES, in_sequence, rows, smooth_model, trained

ATTENTION = ALL_ATTENTION_FUNCTIONS["sdpa"]


def run(folder: Path, name: str, stage: int = 1, **changes: Any) -> Any:
    # DeepSpeed keeps its groups, and its attention in the place of transformers', for the life of a process.
    parallel_state_sp._release_sequence_parallel_groups()
    ALL_ATTENTION_FUNCTIONS["sdpa"] = ATTENTION
    given = {**in_sequence(name), "model": smooth_model(), **changes}
    given["args"] |= {
        "use_cpu": False,
        "dataloader_pin_memory": False,
        "deepspeed": {
            "zero_optimization": {"stage": stage, "stage3_gather_16bit_weights_on_model_save": stage == 3},
            "zero_allow_untested_optimizer": True,
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "train_batch_size": "auto",
            "gradient_clipping": 0.0,
        },
        "parallelism_config": ParallelismConfig(
            sp_size=2, sp_handler=DeepSpeedSequenceParallelConfig(sp_attn_implementation="sdpa")
        ),
    }
    return trained(folder / name, **given)


def main(folder: Path) -> None:
    cpu_sharding.allow()
    rank = os.environ["RANK"]
    for name in ULYSSES:
        for stage in (1, 3) if name == "evaluated" else (1,):
            trainer = run(folder, name, stage)
            state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
            if rank == "0":
                weights = {key: value.clone() for key, value in state.items()}
                save_file(weights, folder / f"{name}-{stage}.safetensors")
                (folder / f"{name}-{stage}.json").write_text(json.dumps(trainer.state.log_history))
    errors = {}
    packed = {"position_ids": [[*range(20), *range(length - 20)] for length in LENGTHS]}
    for name, changes in {
        "packed": {"train_dataset": rows(**packed), "data_collator": pad_right},
        "eager": {"model": tiny_model("llama", attn_implementation="eager")},
        "dynamic": {"model": tiny_model("llama-dynamic-ntk")},
    }.items():
        try:
            run(folder, "ce", **changes)
        except UserError as error:
            errors[name] = str(error)
    (folder / f"errors-{rank}.json").write_text(json.dumps(errors))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
