"""Statistics: values computed for each scored token from a model's distribution, in the blocks of its head.

A statistic turns rows of log-probabilities over the vocabulary into named columns, which are stored with the scores.
With a reference, another model that is run over the same tokens, it receives the reference's rows too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from longlens.errors import UserError, library_errors, shown, shown_value
from longlens.plugins import list_plugins, load_plugin

if TYPE_CHECKING:
    from torch import Tensor

    from longlens.scoring.scores import Floats

Compute: TypeAlias = "Callable[[Tensor, Tensor, Tensor], Mapping[str, Tensor]]"
"""Maps log-probabilities ``(m, V)``, those of the reference, and the actual tokens ``(m,)`` to columns ``(m,)``.

Both are float32, in nats, and must not be changed. Without a reference, the second is the first.
"""


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """Named columns of each scored token.

    Attributes:
        name: Name by which it is requested.
        columns: Names of the columns that `compute` returns.
        compute: See `Compute`.
        is_pairwise: Whether it needs a reference.
    """

    name: str
    columns: tuple[str, ...]
    compute: Compute
    is_pairwise: bool = False


def entropy(logprobs: Tensor, reference: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """``H = -sum_v p(v) log p(v)``, nats."""
    return {"entropy": -_expected(logprobs.exp(), logprobs)}


def rank(logprobs: Tensor, reference: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Number of tokens that are more likely than the actual one; 0 if it is the most likely."""
    return {"rank": (logprobs > logprobs.gather(-1, targets[:, None])).sum(-1).float()}


def divergence(logprobs: Tensor, reference: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Divergence of a model's distribution q from the reference's p.

    Over the whole vocabulary::

        kl         = sum_v p(v) (log p(v) - log q(v))                     nats
        reverse_kl = sum_v q(v) (log q(v) - log p(v))                     nats
        js         = KL(p || m) / 2 + KL(q || m) / 2,  m = (p + q) / 2    nats, at most log 2
        top1_agreement = 1 if both have the same most likely token
        reference_logprob = log p(token)                                  nats
    """
    from torch.nn.functional import softplus

    p, q = reference.exp(), logprobs.exp()
    # log p - log m = log 2 - softplus(log q - log p), which is exactly 0 where both are equal; below 0 is rounding.
    over, under = (math.log(2) - softplus(some) for some in (logprobs - reference, reference - logprobs))
    return {
        "kl": _expected(p, reference - logprobs).clamp_min(0),
        "reverse_kl": _expected(q, logprobs - reference).clamp_min(0),
        "js": ((_expected(p, over) + _expected(q, under)) / 2).clamp_min(0),
        "top1_agreement": (logprobs.argmax(-1) == reference.argmax(-1)).float(),
        "reference_logprob": reference.gather(-1, targets[:, None])[:, 0],
    }


def _expected(p: Tensor, values: Tensor) -> Tensor:
    """``sum_v p(v) x(v)``, where 0 times infinity is 0; accumulated in float64."""
    return (p * values).masked_fill_(p == 0, 0.0).double().sum(-1)


ENTROPY = Statistic(name="entropy", columns=("entropy",), compute=entropy)
RANK = Statistic(name="rank", columns=("rank",), compute=rank)
DIVERGENCE = Statistic(
    name="divergence",
    columns=("kl", "reverse_kl", "js", "top1_agreement", "reference_logprob"),
    compute=divergence,
    is_pairwise=True,
)
OWN = {statistic.name: statistic for statistic in (ENTROPY, RANK, DIVERGENCE)}


def load_statistics(names: Sequence[str], *, has_reference: bool = False) -> list[Statistic]:
    """Statistics by name: ours, or one that another package adds (entry points ``longlens.statistics``).

    Raises:
        UserError: A statistic does not exist or needs a reference, or two have a column of the same name.
    """
    found: list[Statistic] = []
    for name in dict.fromkeys(names):
        added = load_plugin(
            "longlens.statistics", name, own=OWN, is_kind=lambda it: isinstance(it, Statistic), expected="a Statistic"
        )
        made = OWN.get(name, added)
        if made is None:
            known = ", ".join([*OWN, *list_plugins("longlens.statistics")])
            raise UserError(
                f"`statistics` has {shown(name)}; expected of {known}, or install the plugin that provides it"
            )
        if made.is_pairwise and not has_reference:
            raise UserError(f"the statistic {shown(name)} needs two models: use longlens diverge")
        found.append(made)
    columns = [column for statistic in found for column in statistic.columns]
    twice = next((column for column in columns if columns.count(column) > 1 or column == "cache_bytes"), None)
    if twice is not None:
        raise UserError(f"two statistics have a column {shown(twice)}: leave one of them out")
    return found


def describe(
    logits: Iterable[Tensor], targets: Tensor, statistics: Sequence[Statistic], reference: Iterable[Tensor] | None
) -> dict[str, Floats]:
    """Computes the columns of statistics.

    Args:
        logits: Rows in blocks, ``(rows, V)`` float32, one in memory at a time.
        targets: ``(m,)``, the token that follows each row.
        statistics: The statistics to compute.
        reference: The same rows of the reference, in blocks of any size; None without one. If one model has entries for
            more tokens (padding), both are normalized over the shared ones.

    Raises:
        UserError: A statistic fails, or returns NaN or other columns than it declares.
    """
    from torch import OutOfMemoryError

    passing = (OutOfMemoryError,)  # which the scorer says what to do about
    # Made first: small arrays allocated between the blocks would prevent glibc from reusing their memory.
    found = {name: np.empty(len(targets), np.float32) for statistic in statistics for name in statistic.columns}
    start = 0
    for block, other in ((block, None) for block in logits) if reference is None else _in_step(logits, reference):
        if other is None:
            own = others = block.log_softmax(-1)
        else:
            shared = min(block.shape[1], other.shape[1])
            own, others = (side[:, :shared].log_softmax(-1).to(targets.device) for side in (block, other))
        rows = slice(start, start + len(own))
        start = rows.stop
        for statistic in statistics:
            with library_errors(f"the statistic {shown(statistic.name)} fails", "fix its package", passing=passing):
                made = statistic.compute(own, others, targets[rows])
            check_columns(statistic, made, len(own))
            for name, values in made.items():
                found[name][rows] = values.float().cpu().numpy()
                if np.isnan(found[name][rows]).any():
                    raise UserError(
                        f"the statistic {shown(statistic.name)} gives NaN for {shown(name)}: use `dtype=float32` for "
                        "both models, or fix its package"
                        if statistic.is_pairwise
                        else f"the statistic {shown(statistic.name)} gives NaN for {shown(name)}: fix its package"
                    )
    return found


def _in_step(blocks: Iterable[Tensor], others: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the rows of both in pieces with equal numbers of rows."""
    following = iter(others)
    other = None
    for block in blocks:
        while len(block):
            if other is None or not len(other):
                other = next(following)
            rows = min(len(block), len(other))
            yield block[:rows], other[:rows]
            block, other = block[rows:], other[rows:]


def check_columns(statistic: Statistic, made: Mapping[str, Any], rows: int) -> None:
    """Rejects the output of a plugin's statistic if it does not match its declaration.

    Raises:
        UserError: Other columns, of another length, or no real tensors.
    """
    from torch import Tensor

    said: object = shown_value(made)
    if isinstance(made, Mapping):
        are_real = all(isinstance(value, Tensor) and not value.is_complex() for value in made.values())
        said = shapes = {name: tuple(getattr(value, "shape", ())) for name, value in made.items()}
        if are_real and set(made) == set(statistic.columns) and not set(shapes.values()) - {(rows,)}:
            return
        if not are_real:
            said = {n: v.dtype if isinstance(v, Tensor) else type(v).__name__ for n, v in made.items()}
    raise UserError(
        f"the statistic {shown(statistic.name)} gives {said}; expected real tensors {', '.join(statistic.columns)} of "
        f"shape ({rows},): fix its package"
    )
