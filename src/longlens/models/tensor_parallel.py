"""Runs one transformers model on several processes, each with a part of every layer, by its tensor-parallel plan.

torchrun starts ``k N`` processes for k teams of N. Rank 0 of a team, its leader, does all work of a process of a run;
the other ranks run the passes that it requests, see `longlens.scoring.tensor_parallel`.

Each team is a separate world of ``torch.distributed``, which transformers uses as its mesh. Each process has the whole
token embeddings and vocabulary head: log-probabilities are computed from them as for any other model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, Self

from longlens.engines import TRANSFORMERS
from longlens.errors import UserError, one_line
from longlens.models.files import find_adapter
from longlens.models.resolve import Source
from longlens.rope.config import custom_rope_type
from longlens.runs.processes import Processes, has_agent_store
from longlens.settings.options import Loading

_INSTEAD = "remove `tensor_parallel`, or use `device_map=auto`"
PATIENCE = timedelta(days=7)
"""Timeout of a follower that waits for its leader to request a pass; the leader may be reading documents."""
_OF_PEERS = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe", re.IGNORECASE)


class PeerGone(UserError):
    """Another process of a team has exited, which this process noticed when it communicated with it."""


@contextmanager
def exchanging() -> Iterator[None]:
    """Converts errors of ``torch.distributed`` about a process that has exited to one line.

    Raises:
        PeerGone: A process has exited.
    """
    try:
        yield
    except (RuntimeError, UserError) as error:  # the latter from code that runs the model
        said: BaseException | None = error
        while said is not None and not _is_of_peers(said):
            said = said.__cause__
        if said is None or isinstance(error, PeerGone):
            raise
        raise PeerGone(
            f"no connection to the processes that share the model ({one_line(said)}): one of them has ended; run the "
            "same command again, it resumes from what is stored"
        ) from error


def _is_of_peers(error: BaseException) -> bool:
    import torch.distributed as dist

    # gloo has no error class of its own.
    is_gloo = isinstance(error, RuntimeError) and _OF_PEERS.search(str(error)) is not None
    return is_gloo or isinstance(error, dist.DistError)


@dataclass(frozen=True)
class Team:
    """The processes that share a model, and the rank of this process among them.

    Its ``with`` block ends what `join` begins. If the block fails, the other processes of the team stop, too.

    Attributes:
        size: N; 1 for a process with a whole model.
        place: Rank of this process in the team; 0 is the leader.
        number: Index of the team among those that torchrun started.
    """

    size: int = 1
    place: int = 0
    number: int = 0

    @classmethod
    def of(cls, loading: Loading, engine: str) -> Team:
        """The team as set by torchrun; a team of one for other engines, which start their own processes.

        Raises:
            UserError: The number of processes is not a multiple of N, or torchrun did not start them.
        """
        size = loading.tensor_parallel or 1
        if size == 1 or engine != TRANSFORMERS:
            return cls()
        here = Processes()
        if here.size % size or not has_agent_store():
            raise UserError(
                f"`tensor_parallel` is {size}, which requires {size} processes of torchrun or a multiple, but there "
                f"{'is' if here.size == 1 else 'are'} {here.size}: start with torchrun --nproc-per-node {size} -m "
                "longlens, or use `engine=vllm`, which starts its own processes"
            )
        return cls(size, here.rank % size, here.rank // size)

    @property
    def follows(self) -> bool:
        """Whether another process of the team is the leader."""
        return self.place > 0

    @cached_property
    def processes(self) -> Processes:
        """The processes of the team, which share a store."""
        return Processes.within(self.size) if self.size > 1 else Processes.alone()

    def __enter__(self) -> Self:
        """Connects the processes."""
        self.processes.connect()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *rest: object) -> None:
        """Ends what `join` began.

        Raises:
            ProcessStopped: This process failed because another one failed and reported the reason.
        """
        import torch.distributed as dist

        if self.size == 1:
            return
        try:
            if isinstance(error, PeerGone):
                self.processes.check()
            if error is not None:
                self.processes.stop_others()
            else:
                self.processes.wait_for_all()  # closing a connection loses data in transit
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()

    def join(self) -> None:
        """Makes the team a world of ``torch.distributed``, once all of its processes are connected.

        Raises:
            ProcessStopped: One of them failed before.
            UserError: They cannot connect to each other.
        """
        import torch
        import torch.distributed as dist

        if self.size == 1 or dist.is_initialized():
            return
        accelerator = torch.accelerator.current_accelerator()
        kind = "cpu" if accelerator is None else accelerator.type
        if kind != "cpu" and not torch.accelerator.is_available():
            raise UserError(
                f"torch is built for {kind} but finds no such device here, and transformers then cannot run tensor "
                "parallelism: install the CPU build of torch, or run where the devices are"
            )
        device = None
        if kind != "cpu":
            device = torch.device(kind, int(os.environ.get("LOCAL_RANK", "0")))
            torch.accelerator.set_device_index(device.index)
        self.processes.wait_for_all()  # the leader comes last, and may have rejected its settings before
        with exchanging():
            dist.init_process_group(
                backend=dist.get_default_backend_for_device(kind),
                store=self.processes.store("torch"),
                rank=self.place,
                world_size=self.size,
                device_id=device if kind == "cuda" else None,
            )


def check_model(name: str, source: Source, config: Any, loading: Loading) -> None:
    """Rejects a model that N processes cannot share, before its weights are read.

    Args:
        name: Name of the model.
        source: Location of the model.
        config: Its configuration.
        loading: Loading settings.

    Raises:
        UserError: N does not divide its heads, it has no plan, or it is not a plain directory of safetensors.
    """
    size = loading.tensor_parallel or 1
    if size == 1:
        return
    if loading.device != "auto":
        raise UserError("`device` would have no effect with `tensor_parallel`: remove it")
    what = _cannot(name, size)
    kinds = {
        "it is a .gguf file, which is read whole": source.gguf is not None,
        "it is an adapter": find_adapter(source) is not None,
        f"its positions are of {custom_rope_type(config)}": custom_rope_type(config) is not None,
    }
    for reason, holds in kinds.items():
        if holds:
            raise UserError(f"{what}: {reason}: {_INSTEAD}")
    check_shared(name, config, size)


def check_shared(name: str, config: Any, size: int) -> None:
    """Rejects a configuration that transformers' tensor-parallel plan cannot divide.

    Args:
        name: Name of the model.
        config: Its configuration.
        size: N, the number of processes that share a model.

    Raises:
        UserError: It has no tensor-parallel plan, or N does not divide its heads.
    """
    text, what = config.get_text_config(decoder=True), _cannot(name, size)
    if not text.base_model_tp_plan:
        raise UserError(f"{what}: transformers has no tensor-parallel plan for {type(text).__name__}: {_INSTEAD}")
    for field in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(text, field, None)
        uneven = [count for count in (heads if isinstance(heads, list) else [heads]) if count and count % size]
        if uneven:
            raise UserError(f"{what}: it has {uneven[0]} {field}: use a divisor of it")


def _cannot(name: str, size: int) -> str:
    return f"{name} cannot be shared by `tensor_parallel={size}`"


def sharing(config: Any, loading: Loading) -> dict[str, Any]:
    """Options of ``from_pretrained`` for loading a model in a team."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.distributed.configuration_utils import DistributedConfig

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=loading.trust_remote_code)
    whole = [part for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part is not None]
    names = [name for name, module in model.named_modules() if any(module is part for part in whole)]
    return {
        "distributed_config": DistributedConfig(
            tp_size=loading.tensor_parallel, tp_plan=dict.fromkeys(names, "replicate")
        )
    }
