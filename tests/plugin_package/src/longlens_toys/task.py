"""A task: find the pass key among sentences about the weather."""

from dataclasses import dataclass
from random import Random

from longlens.tasks.base import Sample, Task, draws
from longlens.tasks.fitting import Draft, Plan, TokenCounter

FILLER = "The sun rose over the hills, and by noon it rained again. "
NEEDLE = "The pass key is {key}. Remember it. "
QUESTION = "\n\nWhat is the pass key?"


@dataclass(frozen=True, kw_only=True, slots=True)
class PassKey(Task):
    """Scored by whether the answer contains the key."""

    name: str = "pass_key"
    digits: int = 5

    suite = "pass_key"
    metric = "accuracy"
    max_new_tokens = 16
    default_samples = 100
    unit_tokens = len(FILLER)

    def plan(self, *, length: int | None, seed: int, index: int, tokens: TokenCounter) -> Plan:
        """Draws a key and where it stands."""
        return _Sentences(draws(self.name, seed, index, "key"), self.digits)

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """1 where the key is in the answer."""
        return {"accuracy": float(sample.answers[0] in prediction)}


class _Sentences(Plan):
    minimum = 1

    def __init__(self, rng: Random, digits: int) -> None:
        self._key, self._depth = "".join(rng.choices("0123456789", k=digits)), rng.random()

    def unit(self, index: int) -> str:
        return FILLER

    def draft(self, units: int) -> Draft:
        before = round(self._depth * units)
        text = FILLER * before + NEEDLE.format(key=self._key) + FILLER * (units - before)
        start = len(FILLER) * before + NEEDLE.index("{key}")
        return Draft(
            prompt=text + QUESTION,
            answer_prefix="The pass key is",
            answers=[self._key],
            answer_spans=[(start, start + len(self._key))],
        )
