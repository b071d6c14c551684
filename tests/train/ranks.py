"""What two processes compute: started twice by test_ranks.py, with RANK 0 and 1; writes its results to a folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.fsdp import fully_shard

from longlens.errors import UserError
from longlens.losses.longce import weighted_nll
from longlens.train import LongPPLCallback
from tests.tiny import byte_tokenizer, tiny_model
from tests.train.runs import RULE, documents_and_keys, losses, rows, trained, weights_of


def main(folder: Path) -> None:
    for name, changes in {
        "2x2": {"per_device_train_batch_size": 2},
        "2x1x2": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
    }.items():
        trainer = trained(folder / name, args=changes)
        rank = trainer.args.process_index
        assert trainer.accelerator.num_processes == 2
        save_file(weights_of(trainer.model), folder / f"{name}-{rank}.safetensors")
        (folder / f"{name}-{rank}.json").write_text(json.dumps(trainer.state.log_history[0]))
    documents, keys = documents_and_keys()
    trainer = trained(
        folder / "callback",
        eval_dataset=rows(),
        processing_class=byte_tokenizer(),
        callbacks=[LongPPLCallback(documents, keys=keys)],
        args={
            "per_device_train_batch_size": 2,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "max_steps": 2,
            "metric_for_best_model": "eval_longppl",
        },
    )
    report = {"losses": losses(trainer), "best": trainer.state.best_metric, "history": trainer.state.log_history}
    (folder / f"callback-{rank}.json").write_text(json.dumps(report))
    sharded(folder, rank)
    try:
        trained(folder / "cpu", args={"fsdp": True, "fsdp_config": {"version": 2}})
    except UserError as error:
        (folder / f"refused-{rank}.txt").write_text(str(error))


def sharded(folder: Path, rank: int) -> None:
    """FSDP2 without a Trainer: each rank has a row of another length, and so another number of windows."""
    model = tiny_model("llama")
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    row = rows()[rank]
    ids, labels = (torch.tensor(row[name])[None] for name in ("input_ids", "labels"))
    found = weighted_nll(model, ids, labels, longce=RULE)
    (found.total / 100).backward()
    gradients = {name: p.grad.full_tensor() for name, p in model.named_parameters()}
    save_file(gradients, folder / f"sharded-{rank}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
