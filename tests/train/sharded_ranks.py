"""What processes with sharded weights compute: started by the tests as KIND FOLDER, with RANK and WORLD_SIZE.

Without WORLD_SIZE it is the one process that they are held against. ``recipe FILE OUT`` runs a recipe.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from longlens.losses import LongCE
from longlens.train import LongPPLCallback
from tests.tiny import byte_tokenizer, tiny_model
from tests.train.runs import documents_and_keys, pad_right, rows, trained

FSDP2 = {"fsdp": True, "fsdp_config": {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}}
ZERO3 = {
    "zero_optimization": {
        "stage": 3,
        "stage3_gather_16bit_weights_on_model_save": True,
        "stage3_param_persistence_threshold": 0,  # else the tiny weights are not spread at all
    },
    "bf16": {"enabled": "auto"},
    "gradient_clipping": "auto",
    "gradient_accumulation_steps": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
}
SHARDING: dict[str, dict[str, Any]] = {
    "none": {},
    "ddp": {},
    "fsdp2": FSDP2,
    "zero3": {"deepspeed": ZERO3, "use_cpu": False, "dataloader_pin_memory": False},
}
# The micro-batches of a step are of very different documents: from none to seven windows of RULE.
UNEQUAL = (60, 12, 52, 33, 20, 18, 70, 44)


def unequal(folder: Path, size: int, sharding: dict[str, Any]) -> Any:
    """AdamW, clipped, with evaluations: a loss, gradient norm or weight that is off shows."""
    documents, keys = documents_and_keys()
    return trained(
        folder / "unequal",
        train_dataset=rows(UNEQUAL),
        eval_dataset=rows((40, 31, 9)),
        processing_class=byte_tokenizer(),
        callbacks=[LongPPLCallback(documents, keys=keys)],
        args={
            **_adam(size),
            "per_device_eval_batch_size": 1,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "eval_on_start": True,
            **sharding,
        },
    )


def packed(folder: Path, size: int, sharding: dict[str, Any]) -> Any:
    """Every second row holds two documents, so that one process alone has packed ones."""
    lengths = (60, 48, 52, 40, 30, 44, 70, 36)
    positions = [list(range(n)) if at % 2 else [*range(n // 2), *range(n - n // 2)] for at, n in enumerate(lengths)]
    return trained(
        folder / "packed",
        train_dataset=rows(lengths, position_ids=positions),
        data_collator=_with_positions,
        args={**_adam(size), **sharding},
    )


def _with_positions(features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    batch = pad_right([{name: row[name] for name in ("input_ids", "labels")} for row in features])
    assert len(features) == 1
    return {**batch, "position_ids": torch.tensor([features[0]["position_ids"]])}


def offline(folder: Path, size: int, sharding: dict[str, Any]) -> Any:
    """Weights of a column, gradient checkpointing, and SGD."""
    weights = [[1 + 0.001 * (place % 97) for place in range(length)] for length in UNEQUAL]
    changes = {"gradient_checkpointing": True, "optim": "sgd", "learning_rate": 0.01}
    if "fsdp" in sharding:
        changes |= {"gradient_checkpointing": False}
        sharding = {**sharding, "fsdp_config": {**sharding["fsdp_config"], "activation_checkpointing": True}}
    return trained(
        folder / "offline",
        train_dataset=rows(UNEQUAL, token_weights=weights),
        longce=LongCE(gamma=2),
        args={**_adam(size), **changes, **sharding},
    )


def lora(folder: Path, size: int, sharding: dict[str, Any]) -> Any:
    """Adapters alone are trained."""
    import peft

    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, target_modules="all-linear")
    model = peft.get_peft_model(tiny_model("llama"), config)
    return trained(folder / "lora", model, train_dataset=rows(UNEQUAL), args={**_adam(size), **sharding})


def half(folder: Path, size: int, sharding: dict[str, Any]) -> Any:
    """bfloat16, with fp32 weights that FSDP or DeepSpeed's optimizer keeps."""
    trainer = trained(folder / "half", train_dataset=rows(UNEQUAL), args={**_adam(size), "bf16": True, **sharding})
    batch = trainer.data_collator([rows(UNEQUAL)[trainer.args.process_index]])
    trainer.state.log_history = [
        {"dtype": str(trainer.compute_loss(trainer.model_wrapped, batch).dtype)},
        *trainer.state.log_history,
    ]
    return trainer


CASES: dict[str, Callable[[Path, int, dict[str, Any]], Any]] = {
    "unequal": unequal,
    "packed": packed,
    "offline": offline,
    "lora": lora,
    "half": half,
}


def _adam(size: int) -> dict[str, Any]:
    return {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 4 // size,
        "max_steps": 4,
        "optim": "adamw_torch",
        "learning_rate": 1e-3,
        "max_grad_norm": 1.0,
    }


def run_recipe(recipe: str, out: str) -> None:
    """``longlens train``; KILL=STEP kills the second process, as kill -9 does, before it makes that step."""
    from longlens.train.recipe import read_recipe
    from longlens.train.run import run_file
    from longlens.train.trainer import LongCETrainer
    from tests.train import cpu_sharding

    cpu_sharding.allow()
    step, last = LongCETrainer.training_step, int(os.environ.get("KILL", "-1"))

    def dying(self: Any, *given: Any, **named: Any) -> Any:
        if self.state.global_step == last and self.args.process_index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *given, **named)

    LongCETrainer.training_step = dying  # type: ignore[method-assign]
    run_file(read_recipe(recipe), out)
    torch.distributed.destroy_process_group()


def main(kind: str, folder: Path, names: list[str]) -> None:
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if SHARDING[kind]:
        from tests.train import cpu_sharding

        cpu_sharding.allow()
    for name in names or CASES:
        trainer = CASES[name](folder / kind, size, SHARDING[kind])
        wrapped = trainer.model_wrapped
        state = trainer.accelerator.get_state_dict(wrapped) if size > 1 else trainer.model.state_dict()
        if trainer.args.process_index == 0:
            save_file({key: value.contiguous().clone() for key, value in state.items()}, folder / f"{name}.safetensors")
            (folder / f"{name}.json").write_text(json.dumps([type(wrapped).__name__, trainer.state.log_history]))
    if size > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    if sys.argv[1] == "recipe":
        run_recipe(*sys.argv[2:])
    else:
        main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
