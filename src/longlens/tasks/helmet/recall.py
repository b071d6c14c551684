"""Builds HELMET's recall tasks: ``json_kv`` and ``helmet_niah_`` of ``multikey_2``, ``multikey_3`` and ``multivalue``.

Paper: HELMET, arXiv 2410.02694. Settings: configs/recall.yaml of princeton-nlp/HELMET at 4526dfb, MIT; prompts and
metrics: ``load_json_kv`` and ``load_ruler`` in data.py there.

``json_kv`` asks for the value of one key of a long JSON object, as in Liu et al., Lost in the Middle, arXiv 2307.03172.
Metric: ``substring_exact_match``, best of the raw and the parsed reply. Known differences: pairs are generated here,
whereas HELMET reads files (``test_k105_dep6.jsonl``: 105 pairs, the key at 6 depths, which samples use in turn here);
the object is ``json.dumps`` of a dictionary.

The others are RULER's tasks (`longlens.tasks.ruler.needles`, with its generators and known differences) with three
changes: the answer begins on a new line, has fewer tokens, and scores are not rounded. HELMET reads files that RULER's
code generated, whereas samples are generated here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

from longlens.tasks import metrics
from longlens.tasks.base import Sample, Task, check_least, draws
from longlens.tasks.fitting import Draft, Plan, TokenCounter
from longlens.tasks.helmet.base import by_length
from longlens.tasks.ruler.needles import NUMBERS, UUIDS, WORDS, DistractorNeedles, Kind, Needles, ProseNeedles
from longlens.tasks.synthetic import distinct, distractors, draw_uuid

BETWEEN = "\n\nExtract the value corresponding to the specified key in the JSON object below.\n\n"
PREFIX = "\nCorresponding value:"
DEPTHS = 6
# generate_configs.py, json_kv: ["50", "105", "220", "440", "900", "1800"]
PAIRS = by_length(50, 105, 220, 440, 900, 1800)
"""HELMET's number of pairs by nominal length, fitted with Llama 2's tokenizer: e.g. ``pairs=PAIRS[8192]``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JsonKV(Task):
    """HELMET's JSON key and value.

    Attributes:
        pairs: Number of pairs, whatever their tokens, as in HELMET; by default as many as fit into the length.
        shots: Number of demonstrations.
    """

    name: str = "json_kv"
    pairs: int | None = None
    shots: int = 2  # recall.yaml: shots: 2

    suite = "helmet"
    category = "recall"
    metric = "substring_exact_match"
    template = "none"  # recall.yaml: use_chat_template: false
    max_new_tokens = 100  # recall.yaml: generation_max_length, fourth value
    default_samples = 100  # recall.yaml: max_test_samples: 100

    def __post_init__(self) -> None:
        """Checks the values."""
        check_least(self, pairs=1, shots=0)

    @property
    def unit_tokens(self) -> int:
        """Size of a pair."""
        return len(_pair("", "")) + 2 * 36

    def plan(self, *, length: int | None, seed: int, index: int, tokens: TokenCounter) -> Plan:
        """A plan with random pairs."""
        return _Pairs(self, (self.name, seed, index))

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """HELMET's main metric, and whether the parsed reply equals the value."""
        # eval.py, run_test: without a chat template the answer prefix is put before the output
        reply = PREFIX.strip() + prediction
        readings = (reply, metrics.parse_output(reply, PREFIX.strip()))
        best = max(metrics.substring_exact_match(text, sample.answers) for text in readings)
        exact = max(metrics.exact_match(text, sample.answers) for text in readings)
        return {"substring_exact_match": best, "exact_match": exact}


def _pair(key: str, value: str) -> str:
    return f', "{key}": "{value}"'


class _Pairs(Plan):
    def __init__(self, task: JsonKV, key: tuple[str, int, int]) -> None:
        self._sample = key
        drawn = distinct(draw_uuid, draws(*key, "pairs"))
        self._source = zip(drawn, drawn, strict=True)  # two draws per pair
        self._depth = key[2] % DEPTHS / (DEPTHS - 1)
        self._shown = list(islice(self._source, task.shots))
        self._drawn: list[tuple[str, str]] = []
        self.minimum = task.pairs or 1
        if task.pairs is not None:
            self.maximum = task.pairs

    def _draw(self, pairs: int) -> None:
        self._drawn += islice(self._source, max(0, pairs - len(self._drawn)))

    def unit(self, index: int) -> str:
        self._draw(index + 1)
        return _pair(*self._drawn[index])

    def draft(self, units: int) -> Draft:
        self._draw(units)
        pairs = self._drawn[:units]
        asked = round(self._depth * (units - 1))
        key, value = pairs[asked]
        context = json.dumps(dict(pairs))
        shown = "".join(f"Key: {key}{PREFIX} {value}\n\n" for key, value in self._shown)
        # The first pair follows a brace, and each other pair the separator.
        rng = draws(*self._sample, "distractors")
        end = len("{") + sum(len(_pair(*pair)) for pair in pairs[: asked + 1]) - len(", ") - len('"')
        return Draft(
            prompt=f"{context}{BETWEEN}{shown}Key: {key}",
            answer_prefix=PREFIX,
            answers=[value],
            answer_spans=[(end - len(value), end)],
            metadata={
                "depths": [round(100 * asked / max(1, units - 1), 2)],
                "pairs": units,
            }
            | distractors([other for _, other in pairs], [value], rng, distinct(draw_uuid, rng)),
        )


@dataclass(frozen=True, kw_only=True)
class _Recall(Needles):
    max_new_tokens: int

    suite = "helmet"
    category = "recall"
    metric = "ruler_recall"
    template = "none"  # recall.yaml: use_chat_template: false
    default_samples = 100  # recall.yaml: max_test_samples: 100

    def plan(self, *, length: int | None, seed: int, index: int, tokens: TokenCounter) -> Plan:
        """RULER's plan with HELMET's wording."""
        return _OwnLine(super().plan(length=length, seed=seed, index=index, tokens=tokens))

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """Fraction of the answers that the prediction contains, ignoring case."""
        return {"ruler_recall": super().score(sample, prediction)["string_match_all"]}

    def aggregate(self, scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Means in percent."""
        return Task.aggregate(self, scores)


@dataclass(frozen=True, kw_only=True)
class RecallAmongNeedles(_Recall, DistractorNeedles):
    """A needle among needles with other keys.

    Attributes:
        max_new_tokens: Maximum number of tokens of an answer.
    """


@dataclass(frozen=True, kw_only=True)
class RecallInProse(_Recall, ProseNeedles):
    """Needles in prose.

    Attributes:
        max_new_tokens: Maximum number of tokens of an answer.
    """


class _OwnLine(Plan):
    """A plan whose answer begins on a new line, as in all tasks of HELMET; RULER has a space before it."""

    def __init__(self, ruler: Plan) -> None:
        self._ruler = ruler
        self.minimum, self.maximum = ruler.minimum, ruler.maximum

    def unit(self, index: int) -> str:
        return self._ruler.unit(index)

    def draft(self, units: int) -> Draft:
        draft = self._ruler.draft(units)
        return replace(draft, answer_prefix="\n" + draft.answer_prefix.lstrip())


def _recall(
    kind: type[_Recall], max_new_tokens: int, values: int = 1, of: Kind = WORDS, to: Kind = NUMBERS
) -> Callable[..., Task]:
    made = partial(kind, keys=1, values=values, queries=1, key_kind=of, value_kind=to)
    return partial(made, max_new_tokens=max_new_tokens)


# recall.yaml: generation_max_length: 50,100,50,100, of which the last is json_kv's
TASKS: dict[str, Callable[..., Task]] = {
    "json_kv": JsonKV,
    "helmet_niah_multikey_2": _recall(RecallAmongNeedles, 50),
    "helmet_niah_multikey_3": _recall(RecallAmongNeedles, 100, of=UUIDS, to=UUIDS),
    "helmet_niah_multivalue": _recall(RecallInProse, 50, values=4),
}
