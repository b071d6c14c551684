"""A cache policy: the last tokens alone."""

from typing import Any

import torch
from torch import Tensor

from longlens.models.caches import CachePolicy, evicting_cache


class Recent(CachePolicy):
    """``recent:N`` keeps the last N tokens."""

    def __init__(self, settings: str) -> None:
        self.size = int(settings or 512)
        self.name = f"recent:{self.size}"

    def new_cache(self, model: Any) -> Any:
        """An empty cache."""
        return evicting_cache(model, self._keep)

    def _keep(self, keys: Tensor, values: Tensor) -> Tensor:
        return torch.arange(keys.shape[-2])[-self.size :]
