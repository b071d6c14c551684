"""The metrics' formulas, written down as naively as possible."""

import math


def ndcg(ranking, relevance, k):
    order = sorted(ranking, key=lambda document: (ranking[document], document), reverse=True)
    gains = [relevance.get(document, 0) for document in order]
    best = sum(g / math.log2(i + 2) for i, g in enumerate(sorted(relevance.values(), reverse=True)[:k]))
    return sum(g / math.log2(i + 2) for i, g in enumerate(gains[:k])) / best if best else 0.0


def common_length(first, second):
    if not first or not second:
        return 0
    if first[-1] == second[-1]:
        return 1 + common_length(first[:-1], second[:-1])
    return max(common_length(first[:-1], second), common_length(first, second[:-1]))
