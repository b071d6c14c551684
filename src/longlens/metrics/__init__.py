"""Numbers from stored scores: perplexities, their uncertainty, and comparisons. Does not import torch."""

from longlens.metrics.comparison import Comparison, Difference, PairComparison, compare
from longlens.metrics.context_reach import ReachResult, reach
from longlens.metrics.corpus import DocumentStatistics, WeightedSum
from longlens.metrics.gains import Curve, Drop
from longlens.metrics.longppl import PerplexityResult, perplexity
from longlens.metrics.ngram import reoccurred_ngram_mask
from longlens.metrics.score_distributions import Classes, Distributions, Positions, distributions
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
