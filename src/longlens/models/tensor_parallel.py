"""One model of transformers on several processes: each has a part of every layer, by the model's tensor-parallel plan.

torchrun starts ``k N`` processes for k teams of N. The first process of a team, its leader, does all that a process of
a run does; the others run the passes that it asks for, see `longlens.scoring.tensor_parallel`.

Each team is a world of its own for ``torch.distributed``, which transformers takes to be its mesh. The token embeddings
and the vocabulary head are whole in each process: log-probabilities are computed from them as anywhere else.
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

_INSTEAD = "leave it out, or use `device_map=auto`"
PATIENCE = timedelta(days=7)
"""So long a follower waits for its leader to ask for a pass: it may be reading documents."""
_OF_PEERS = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe", re.IGNORECASE)


class PeerGone(UserError):
    """Another process of a team has ended, as this one saw when it wanted to exchange something with it."""


@contextmanager
def exchanging() -> Iterator[None]:
    """Turns what ``torch.distributed`` says of another process that has gone into one line.

    Raises:
        PeerGone: It has gone.
    """
    try:
        yield
    except (RuntimeError, UserError) as error:  # the latter of what runs the model
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

    # gloo has no class of its own.
    is_gloo = isinstance(error, RuntimeError) and _OF_PEERS.search(str(error)) is not None
    return is_gloo or isinstance(error, dist.DistError)


@dataclass(frozen=True)
class Team:
    """The processes that share a model, and this one's place among them.

    A ``with`` block ends what `join` begins, and where it fails, the others of the team end with it.

    Attributes:
        size: N; 1 where a process has its model alone.
        place: Place of this process; 0 leads.
        number: Which team it is of those that torchrun started.
    """

    size: int = 1
    place: int = 0
    number: int = 0

    @classmethod
    def of(cls, loading: Loading, engine: str) -> Team:
        """What torchrun says; without an effect for engines other than transformers, which have processes of their own.

        Raises:
            UserError: The number of processes is no multiple of N, or torchrun did not start them.
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
        """Whether another process of the team leads."""
        return self.place > 0

    @cached_property
    def processes(self) -> Processes:
        """Those of the team, which share a store."""
        return Processes.within(self.size) if self.size > 1 else Processes.alone()

    def __enter__(self) -> Self:
        """Connects them."""
        self.processes.connect()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *rest: object) -> None:
        """Ends what `join` began.

        Raises:
            ProcessStopped: This process failed since another one has, which says why.
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
                self.processes.wait_for_all()  # a connection that is closed loses what is still under way
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()

    def join(self) -> None:
        """Makes the team a world of ``torch.distributed``, when all of its processes are there.

        Raises:
            ProcessStopped: One of them failed before.
            UserError: They do not find each other.
        """
        import torch
        import torch.distributed as dist

        if self.size == 1 or dist.is_initialized():
            return
        accelerator = torch.accelerator.current_accelerator()
        kind = "cpu" if accelerator is None else accelerator.type
        if kind != "cpu" and not torch.accelerator.is_available():
            raise UserError(
                f"torch is built for {kind} and finds no such device here, where transformers cannot run tensor "
                "parallelism: install the CPU build of torch, or run where the devices are"
            )
        device = None
        if kind != "cpu":
            device = torch.device(kind, int(os.environ.get("LOCAL_RANK", "0")))
            torch.accelerator.set_device_index(device.index)
        self.processes.wait_for_all()  # the leader comes last, and may have been rejected before
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
        source: Where it is.
        config: Of it.
        loading: How it is loaded.

    Raises:
        UserError: N does not divide its heads, it has no plan, or it is no plain folder of safetensors.
    """
    size = loading.tensor_parallel or 1
    if size == 1:
        return
    if loading.device != "auto":
        raise UserError("`device` would have no effect with `tensor_parallel`: leave it out")
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
        config: Of it.
        size: N, processes that share a model.

    Raises:
        UserError: There is no plan for it, or N does not divide its heads.
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
    """Options of ``from_pretrained`` with which a team loads a model."""
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
