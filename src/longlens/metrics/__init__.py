"""Numbers from stored scores: perplexities, their uncertainty, and comparisons. No torch here."""

from longlens.metrics.comparison import Comparison, Difference, PairComparison, compare
from longlens.metrics.documents import DocumentStatistics, WeightedSum
from longlens.metrics.ngram import reoccurred_ngram_mask
from longlens.metrics.perplexity import PerplexityResult, perplexity
from longlens.metrics.uncertainty import bootstrap_interval

__all__ = [
    "Comparison",
    "Difference",
    "DocumentStatistics",
    "PairComparison",
    "PerplexityResult",
    "WeightedSum",
    "bootstrap_interval",
    "compare",
    "perplexity",
    "reoccurred_ngram_mask",
]
