"""Training losses for long context."""

from longlens.losses.longce import longce_loss
from longlens.losses.settings import ChunkedLongCE, LongCE, SampledLongCE, longce_weights

__all__ = ["ChunkedLongCE", "LongCE", "SampledLongCE", "longce_loss", "longce_weights"]
