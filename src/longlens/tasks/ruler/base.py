"""What RULER's tasks share: the filler, the metrics, the rounding."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from longlens.tasks.base import Sample, Task

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
"""The line that RULER's "noise" haystack repeats (niah.py, variable_tracking.py)."""

_CONTROL = re.compile(r"[\x00-\x1f]")


def cleaned(prediction: str) -> str:
    """As RULER's evaluate.py: stripped, control characters (line ends, tabs) made line ends, stripped again."""
    return _CONTROL.sub("\n", prediction.strip()).strip()


class RulerTask(Task):
    """A task of RULER."""

    suite = "ruler"
    metric = "string_match_all"
    default_samples = 500  # config_tasks.sh: NUM_SAMPLES=500

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """The share of answers that the prediction contains, in any case: ``string_match_all`` of one sample."""
        from longlens.tasks import metrics

        text = cleaned(prediction)
        found = [metrics.string_match_all([text], [[answer]]) / 100 for answer in sample.answers]
        return {"string_match_all": sum(found) / len(found)}

    def aggregate(self, scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Means over samples in percent, rounded to two places as RULER's."""
        return {name: round(value, 2) for name, value in super().aggregate(scores).items()}
