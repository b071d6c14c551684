"""LongCE in TRL's SFTTrainer."""

from __future__ import annotations

from typing import Any

from longlens.errors import require
from longlens.train.trainer import LongCETrainer

_SFTTrainer: Any = require("trl", extra="train", purpose="LongCESFTTrainer").SFTTrainer


class LongCESFTTrainer(LongCETrainer, _SFTTrainer):  # type: ignore[misc]
    """TRL's SFTTrainer with the loss of `LongCETrainer`: its data preparation, masks, packing and adapters.

    Takes the arguments of SFTTrainer and ``longce``. TRL's own metrics (entropy, token accuracy) are not computed.
    """
