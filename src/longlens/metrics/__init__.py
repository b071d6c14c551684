"""Numbers from stored scores: perplexities, their uncertainty, and comparisons. No torch here."""

from longlens.metrics.comparison import Comparison, Difference, PairComparison, compare
from longlens.metrics.distributions import Classes, Distributions, Positions, distributions
from longlens.metrics.documents import DocumentStatistics, WeightedSum
from longlens.metrics.ngram import reoccurred_ngram_mask
from longlens.metrics.perplexity import PerplexityResult, perplexity
from longlens.metrics.reach import Curve, Drop, ReachResult, reach
from longlens.metrics.thresholds import ThresholdTable, threshold_table
from longlens.metrics.uncertainty import Estimate, estimate

__all__ = [
    "Classes",
    "Comparison",
    "Curve",
    "Difference",
    "Distributions",
    "DocumentStatistics",
    "Drop",
    "Estimate",
    "PairComparison",
    "PerplexityResult",
    "Positions",
    "ReachResult",
    "ThresholdTable",
    "WeightedSum",
    "compare",
    "distributions",
    "estimate",
    "perplexity",
    "reach",
    "reoccurred_ngram_mask",
    "threshold_table",
]
