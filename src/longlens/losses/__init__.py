"""Training losses that ask for long context."""

from longlens.losses.longce import LongCE, longce_loss, longce_weights

__all__ = ["LongCE", "longce_loss", "longce_weights"]
