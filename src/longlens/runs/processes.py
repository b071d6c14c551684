"""Connects the processes of a run, which torchrun starts: rank 0 decides, and all communicate through a store.

They need no process group. They share only a key-value store (``torch.distributed.TCPStore``), that of torchrun's agent
or, if another launcher set ``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR`` and ``MASTER_PORT``, that of rank 0. All values in
it are JSON. A process that waits polls the store, so that Ctrl-C and torchrun can end it, and stops if another process
has failed.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from itertools import count
from typing import Any, Self

from longlens.errors import LonglensWarning, UserError, one_line

CONNECT = timedelta(minutes=10)
"""Timeout for connecting to the store; nodes of a cluster do not start at the same time."""
SHORTEST_PAUSE, LONGEST_PAUSE = 0.02, 0.5
"""Seconds between two polls of the store."""
CHUNK_CHARACTERS = 2**22
"""Maximum characters per value of the store, which is limited to 8 MB."""
_NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")
_meetings: dict[str, Iterator[int]] = defaultdict(count)
"""Run counters by group, so that a run does not find values of an earlier run of this process in the store."""


def has_agent_store() -> bool:
    """Whether torchrun's agent hosts the store of the run, which then outlives each of its processes."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


class ProcessStopped(UserError):
    """Another process of the run has failed and reported its error; this one stops."""


class Processes:
    """This process among those of a run.

    In a ``with`` block all of them are connected. They call `broadcast` (rank 0) or `receive` (the others),
    `wait_for_all` and `counter` in the same order. If the block fails, the others stop as soon as they wait for one
    another.

    Args:
        team: Number of torchrun's processes that share the work of one; only rank 0 of each such team participates.

    Attributes:
        rank: Rank of this process; rank 0 makes all decisions.
        size: Number of processes.
    """

    def __init__(self, team: int = 1) -> None:
        self.rank = int(os.environ.get("RANK", "0")) // team
        self.size = int(os.environ.get("WORLD_SIZE", "1")) // team
        self._group = f"first of {team}"
        self._store: Any = None
        self._hosts = False
        self._numbers = count()

    @classmethod
    def alone(cls) -> Processes:
        """A single process, regardless of torchrun's environment."""
        processes = cls()
        processes.rank, processes.size = 0, 1
        return processes

    @classmethod
    def within(cls, team: int) -> Processes:
        """The processes in this process's team of ``team`` processes, in which ranks start at 0."""
        processes = cls()
        processes._group = f"team {processes.rank // team} of {team}"
        processes.rank, processes.size = processes.rank % team, team
        return processes

    def __enter__(self) -> Self:
        """Connects the processes, as in `connect`."""
        self.connect()
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        """Tells the others if this process failed."""
        if kind is not None and not issubclass(kind, ProcessStopped):
            self.stop_others()

    def connect(self) -> None:
        """Connects to the store of the run; all processes call this.

        Raises:
            UserError: The environment does not contain the store's address, or nothing answers there.
        """
        if self.size == 1 or self._store is not None:
            return
        missing = [name for name in _NEEDED if not os.environ.get(name)]
        if missing:
            raise UserError(
                f"WORLD_SIZE is {self.size}, but {missing[0]} is not set in the environment: start the processes with "
                "torchrun, or unset WORLD_SIZE for one process"
            )
        from torch.distributed.distributed_c10d import PrefixStore

        # One process may have several runs, and torchrun may restart all processes.
        run = f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{self._group}/{next(_meetings[self._group])}"
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self._store = PrefixStore(f"longlens/{run}", _shared_store(rank, size))
        self._hosts = self.rank == 0 and not has_agent_store()

    def store(self, name: str) -> Any:
        """A part of the store of these connected processes, for a process group of ``torch.distributed``."""
        from torch.distributed.distributed_c10d import PrefixStore

        return PrefixStore(name, self._store)

    def require_one(self, reason: str) -> None:
        """Raises if there are several processes; the first reports the reason.

        Raises:
            UserError: There are several processes.
        """
        if self.size > 1:
            raise (UserError if self.rank == 0 else ProcessStopped)(reason)

    def stop_others(self) -> None:
        """Stops the others as soon as they wait for one another, because this process failed and reports the reason."""
        if self._store is not None:
            with suppress(RuntimeError):  # either side may end first
                self._store.set("stopped", str(self.rank))

    def check(self) -> None:
        """Raises `ProcessStopped` if another process has failed."""
        with _store_errors():
            if self._store is not None and self._store.check(["stopped"]):
                rank = int(self._store.get("stopped"))
                which = "rank 0" if rank == 0 else f"rank {rank}"
                raise ProcessStopped(f"{which} stopped and reported why: the others stop, too")

    @contextmanager
    def after_first(self) -> Iterator[None]:
        """Runs this block on rank 0 first and then on the others, which do not show its warnings.

        Errors in it are thus reported once. The block must not wait for another process.
        """
        if self.rank == 0:
            yield
            self.broadcast({})
            return
        self.receive()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LonglensWarning)
            yield

    def broadcast(self, plan: dict[str, Any]) -> None:
        """Rank 0 sends its decisions, as JSON, to the others."""
        if self.size == 1:
            return
        name, text = self._name(), json.dumps(plan)
        parts = [text[at : at + CHUNK_CHARACTERS] for at in range(0, len(text), CHUNK_CHARACTERS)]
        with _store_errors():
            for number, part in enumerate(parts):
                self._store.set(f"{name}/{number}", part)
            self._store.set(name, str(len(parts)))
        if self._hosts:  # the store ends with this process
            self._wait_for(f"{name}/received", self.size - 1)

    def receive(self) -> dict[str, Any]:
        """Waits for the decisions of rank 0 on another rank.

        Raises:
            ProcessStopped: A process failed.
        """
        name = self._name()
        number = int(self._wait(name))
        with _store_errors():
            text = b"".join(self._store.get(f"{name}/{part}") for part in range(number)).decode()
            self._store.add(f"{name}/received", 1)
        plan: dict[str, Any] = json.loads(text)
        return plan

    def wait_for_all(self) -> None:
        """Returns when all processes have called it.

        Raises:
            ProcessStopped: A process failed.
        """
        if self.size == 1:
            return
        name = self._name()
        with _store_errors():
            if self._store.add(f"{name}/here", 1) == self.size:
                self._store.set(name, "")
        self._wait(name)
        if not self._hosts:
            with _store_errors():
                self._store.add(f"{name}/gone", 1)
        else:
            self._wait_for(f"{name}/gone", self.size - 1)

    def counter(self) -> Callable[[], int]:
        """Returns a function that returns the next number, from 0, at each call; no number occurs in two processes."""
        if self.size == 1:
            return count().__next__
        name = self._name()

        def draw() -> int:
            with _store_errors():
                return int(self._store.add(f"{name}/drawn", 1)) - 1

        return draw

    def _name(self) -> str:
        return f"step/{next(self._numbers)}"

    def _wait(self, key: str) -> bytes:
        for _ in self._pauses():
            with _store_errors():
                if self._store.check([key]):
                    value: bytes = self._store.get(key)
                    return value
        raise AssertionError("unreachable")

    def _wait_for(self, key: str, number: int) -> None:
        for _ in self._pauses():
            with _store_errors():
                if self._store.add(key, 0) >= number:
                    return

    def _pauses(self) -> Iterator[None]:
        pause = SHORTEST_PAUSE
        while True:
            yield
            self.check()
            time.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 1.3)


@cache
def _shared_store(rank: int, size: int) -> Any:
    """The store, to which this process stays connected, or which it hosts, until it ends."""
    from torch.distributed.rendezvous import rendezvous

    with _store_errors():
        store, _, _ = next(iter(rendezvous("env://", rank, size, timeout=CONNECT)))
    return store


@contextmanager
def _store_errors() -> Iterator[None]:
    import torch.distributed as dist

    try:
        yield
    except (dist.DistError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(
            f"no connection to the other processes at {address} ({one_line(error)}): they exited, or MASTER_ADDR and "
            "MASTER_PORT are wrong; run the same command again, it resumes from what is stored"
        ) from error
