"""Training with LongCE: trainers for transformers and TRL, and LongPPL as an evaluation during training.

``LongCETrainer`` uses `LongCEConfig`, and ``LongCESFTTrainer`` uses `LongCESFTConfig`: the training arguments of the
classes that they extend, plus the settings of the loss. A custom training loop, with or without accelerate, calls
`longlens.losses.longce_loss`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longlens.losses.settings import ChunkedLongCE as ChunkedLongCE
    from longlens.losses.settings import LongCE as LongCE
    from longlens.losses.settings import SampledLongCE as SampledLongCE
    from longlens.train.batch import pad_right as pad_right
    from longlens.train.callbacks import LongPPLCallback as LongPPLCallback
    from longlens.train.sft import LongCESFTConfig as LongCESFTConfig
    from longlens.train.sft import LongCESFTTrainer as LongCESFTTrainer
    from longlens.train.trainer import LongCEConfig as LongCEConfig
    from longlens.train.trainer import LongCETrainer as LongCETrainer

# TRL takes seconds to import and is an extra, which transformers' own trainer does not need.
_HOME = {
    "ChunkedLongCE": "losses.settings",
    "LongCE": "losses.settings",
    "SampledLongCE": "losses.settings",
    "LongCEConfig": "train.trainer",
    "LongCESFTConfig": "train.sft",
    "LongCESFTTrainer": "train.sft",
    "LongCETrainer": "train.trainer",
    "LongPPLCallback": "train.callbacks",
    "pad_right": "train.batch",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'longlens.train' has no attribute {name!r}")
    return getattr(import_module(f"longlens.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
