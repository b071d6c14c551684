"""Scoring with a model that is sharded over several processes.

::

    leader     score -> logprobs -> a batch --+-> the same pass -> log-probabilities
    followers                    follow <-----+-> the same pass

Only the leader handles documents, windows and the run directory; followers receive batches of token IDs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from longlens.errors import UserError
from longlens.models.forward import running
from longlens.models.tensor_parallel import PATIENCE, PeerGone, Team, exchanging
from longlens.scoring.scorer import Request, Result
from longlens.scoring.transformers import TransformersScorer


class TeamScorer(TransformersScorer):
    """A `TransformersScorer` of a model that was loaded with a tensor-parallel plan, in each process of a team.

    Args:
        team: Team of this process, which has joined it.
        *arguments: Arguments of `TransformersScorer`.
        **options: Options of `TransformersScorer`.

    Raises:
        UserError: As `TransformersScorer`.
    """

    def __init__(self, team: Team, *arguments: Any, **options: Any) -> None:
        self._team = team
        self._control = dist.new_group(backend="gloo", timeout=PATIENCE)  # NCCL would time out while a follower waits
        super().__init__(*arguments, **options)

    def logprobs(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Log-probabilities of each request's tokens from its start, in any order; called by the leader only.

        Raises:
            UserError: As `TransformersScorer.logprobs`; a follower has ended.
        """
        assert not self._team.follows, "a follower runs what its leader requests: follow()"
        return super().logprobs(requests)

    def _score(self, batch: Sequence[Request]) -> list[Result]:
        if not self._team.follows:
            self._tell([len(batch)])
            self._tell([number for r in batch for number in (len(r.token_ids), r.start, int(r.is_short))])
            self._tell([token for request in batch for token in request.token_ids])
        with exchanging():
            return super()._score(batch)

    def follow(self) -> None:
        """Runs the leader's batches until the leader ends.

        Raises:
            UserError: The leader has ended; this process has not enough memory.
        """
        while (count := int(self._hear(1))) > 0:
            lengths, starts, is_short = self._hear(3 * count).view(count, 3).T.tolist()
            rows = [row.tolist() for row in torch.split(self._hear(sum(lengths)), lengths)]
            batch = [Request(at, rows[at], starts[at], bool(is_short[at])) for at in range(count)]
            try:
                with running(self.model):
                    self._score(batch)
            except PeerGone:
                raise
            except UserError:  # the leader has the same error and reports it
                continue
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"process {self._team.place} (from 0) of a team ran out of memory: use a smaller `batch_tokens`"
                ) from error

    def end(self) -> None:
        """Ends the followers."""
        self._tell([0])

    def _tell(self, numbers: Sequence[int]) -> None:
        self._exchange(torch.tensor(numbers, dtype=torch.int64))

    def _hear(self, count: int) -> Tensor:
        return self._exchange(torch.empty(count, dtype=torch.int64))

    def _exchange(self, numbers: Tensor) -> Tensor:
        with exchanging():
            dist.broadcast(numbers, group_src=0, group=self._control)
        return numbers
