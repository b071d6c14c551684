"""A statistic: how much probability the likeliest tokens have together."""

from collections.abc import Mapping

from torch import Tensor

from longlens.scoring.statistics import Statistic


def likeliest(logprobs: Tensor, reference: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
    """Of each row of log-probabilities ``(m, V)``, the largest probability and the sum of the ten largest."""
    top = logprobs.topk(10, dim=-1).values.exp()
    return {"top1": top[:, 0], "top10": top.sum(dim=-1)}


LIKELIEST = Statistic(name="likeliest", columns=("top1", "top10"), compute=likeliest)
