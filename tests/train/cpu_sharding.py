"""Lets accelerate shard a model on the CPU: it has FSDP and DeepSpeed on devices alone, where torch has them with gloo.

What is put in place is the choice of the backend, and the branch of `AcceleratorState` that follows from it. All else,
`fully_shard`, DeepSpeed's engine, the optimizers and checkpoints, is as on GPUs.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import Any

from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from transformers import training_args


def allow() -> None:
    os.environ |= {"DS_ACCELERATOR": "cpu", "ACCELERATE_TORCH_DEVICE": "cpu"}
    of_device = PartialState._prepare_backend
    plain = Accelerator.__init__

    def prepare_backend(self: Any, *given: Any, **named: Any) -> Any:
        is_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
        return ("gloo", DistributedType.MULTI_CPU) if is_deepspeed else of_device(self, *given, **named)

    @functools.wraps(plain)
    def init(self: Any, *given: Any, fsdp_plugin: Any = None, **named: Any) -> None:
        if fsdp_plugin is not None and named.get("parallelism_config") is not None:  # which it checks at once
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        plain(self, *given, fsdp_plugin=fsdp_plugin, **named)
        if fsdp_plugin is not None and self.state.distributed_type == DistributedType.MULTI_CPU:
            self.state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.state.fsdp_plugin = fsdp_plugin
            if self.mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self.mixed_precision)

    # Which asks for a GPU unless told to use the CPU, and then there is no DeepSpeed.
    training_args.is_torch_bf16_gpu_available = lambda: True
    if importlib.util.find_spec("deepspeed") is not None:
        # Compiled when it is first used, under a lock that a killed process leaves behind; without it there is gloo.
        importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None
    PartialState._prepare_backend = prepare_backend  # type: ignore[method-assign]
    Accelerator.__init__ = init  # type: ignore[method-assign]
