"""HELMET's recall tasks of RULER: ``helmet_niah_multikey_2``, ``helmet_niah_multikey_3``, ``helmet_niah_multivalue``.

Paper: HELMET, arXiv 2410.02694. Settings: configs/recall.yaml of princeton-nlp/HELMET at 4526dfb, MIT; prompt and
metric: ``load_ruler`` in data.py there. They are RULER's tasks (`longlens.tasks.ruler.needles`, generators and known
differences included) with three changes: the answer begins in a line of its own; there are fewer tokens for it; and
scores are not rounded. HELMET reads files that RULER's code made, where samples are drawn here. The fourth recall task
is `longlens.tasks.json_kv`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from longlens.tasks.base import Sample, Task
from longlens.tasks.fitting import Draft, Plan, Tokens
from longlens.tasks.ruler.needles import NUMBERS, UUIDS, WORDS, DistractorNeedles, Kind, Needles, ProseNeedles


@dataclass(frozen=True, kw_only=True)
class _Recall(Needles):
    max_new_tokens: int

    suite = "helmet"
    category = "recall"
    metric = "ruler_recall"
    template = "none"  # recall.yaml: use_chat_template: false
    default_samples = 100  # recall.yaml: max_test_samples: 100

    def plan(self, *, length: int | None, seed: int, index: int, tokens: Tokens) -> Plan:
        """RULER's, worded as HELMET does."""
        return _OwnLine(super().plan(length=length, seed=seed, index=index, tokens=tokens))

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """The share of answers that the prediction contains, in any case."""
        return {"ruler_recall": super().score(sample, prediction)["string_match_all"]}

    def aggregate(self, scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Means in percent."""
        return Task.aggregate(self, scores)


@dataclass(frozen=True, kw_only=True)
class RecallAmongNeedles(_Recall, DistractorNeedles):
    """A needle among needles with other keys.

    Attributes:
        max_new_tokens: Tokens that an answer may have.
    """


@dataclass(frozen=True, kw_only=True)
class RecallInProse(_Recall, ProseNeedles):
    """Needles in prose.

    Attributes:
        max_new_tokens: Tokens that an answer may have.
    """


def _recall(
    kind: type[_Recall], max_new_tokens: int, values: int = 1, of: Kind = WORDS, to: Kind = NUMBERS
) -> Callable[..., Task]:
    made = partial(kind, keys=1, values=values, queries=1, key_kind=of, value_kind=to)
    return partial(made, max_new_tokens=max_new_tokens)


# recall.yaml: generation_max_length: 50,100,50,100, of which the last is json_kv's
TASKS: dict[str, Callable[..., Task]] = {
    "helmet_niah_multikey_2": _recall(RecallAmongNeedles, 50),
    "helmet_niah_multikey_3": _recall(RecallAmongNeedles, 100, of=UUIDS, to=UUIDS),
    "helmet_niah_multivalue": _recall(RecallInProse, 50, values=4),
}


class _OwnLine(Plan):
    """A plan whose answer begins in a line of its own, as all of HELMET's do; RULER has a blank before it."""

    def __init__(self, ruler: Plan) -> None:
        self._ruler = ruler
        self.minimum, self.maximum = ruler.minimum, ruler.maximum

    def unit(self, index: int) -> str:
        return self._ruler.unit(index)

    def draft(self, units: int) -> Draft:
        draft = self._ruler.draft(units)
        return replace(draft, answer_prefix="\n" + draft.answer_prefix.lstrip())
