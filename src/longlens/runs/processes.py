"""The processes of one run, which torchrun starts: the first prepares, and broadcasts what it decided to the others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from longlens.errors import UserError

# Rows of a large mixture take hours; what waits for a step of training gives up sooner, after `ddp_timeout`.
PATIENCE = timedelta(days=7)


class Processes:
    """This process among those of a run.

    Attributes:
        rank: 0 for the first one, which alone writes.
        size: How many there are.
    """

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self._group: Any = None
        self._has_broadcast = False

    def connect(self) -> None:
        """Makes a group of all processes; called by all of them when torch's process group is there."""
        if self.size > 1:
            import torch.distributed as dist

            self._group = dist.new_group(backend="gloo", timeout=PATIENCE)

    @contextmanager
    def stopping_others(self) -> Iterator[None]:
        """Where this block of the first process fails before it has broadcast anything, it stops the others."""
        try:
            yield
        except BaseException:
            if not self._has_broadcast:
                self.broadcast(None)
            raise

    def broadcast(self, plan: dict[str, Any] | None) -> None:
        """The first process sends what it decided to the others; None stops them."""
        self._has_broadcast = True
        if self._group is not None:
            import torch.distributed as dist

            dist.broadcast_object_list([plan], src=0, group=self._group)

    def receive(self) -> dict[str, Any]:
        """What the first process decided, in another one, which waits for it.

        Raises:
            UserError: The first process stopped.
        """
        import torch.distributed as dist

        plans: list[Any] = [None]
        dist.broadcast_object_list(plans, src=0, group=self._group)
        if plans[0] is None:
            raise UserError("the first process stopped, and says why: the others stop with it")
        plan: dict[str, Any] = plans[0]
        return plan
