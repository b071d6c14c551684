"""Training losses that ask for long context."""

from longlens.losses.longce import longce_loss, longce_weights

__all__ = ["longce_loss", "longce_weights"]
