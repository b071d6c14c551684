"""HELMET's ``json_kv``: the value of one key of a long JSON object.

Paper: Yen et al., HELMET, arXiv 2410.02694; the task is that of Liu et al., Lost in the Middle, arXiv 2307.03172.
Prompt, two demonstrations and metric: ``load_json_kv`` in data.py of princeton-nlp/HELMET at 4526dfb, MIT; settings:
configs/recall.yaml. Metric: ``substring_exact_match``, best of the raw and the parsed reply. Known differences:
pairs are drawn here, where HELMET reads files (``test_k105_dep6.jsonl``: 105 pairs, the key at 6 depths, which samples
take in turn here); the object is ``json.dumps`` of a dictionary.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice

from longlens.errors import UserError
from longlens.tasks.base import Sample, Task, draws
from longlens.tasks.distractors import distractors
from longlens.tasks.fitting import Draft, Plan, Tokens
from longlens.tasks.words import distinct, uuids

BETWEEN = "\n\nExtract the value corresponding to the specified key in the JSON object below.\n\n"
PREFIX = "\nCorresponding value:"
DEPTHS = 6
# generate_configs.py, json_kv: ["50", "105", "220", "440", "900", "1800"] for 4k, 8k, 16k, 32k, 64k and 128k
PAIRS = {4096: 50, 8192: 105, 16384: 220, 32768: 440, 65536: 900, 131072: 1800}
"""HELMET's pairs for a nominal length, fitted with Llama 2's tokenizer: ``get_task("json_kv", pairs=PAIRS[8192])``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JsonKV(Task):
    """HELMET's JSON key and value.

    Attributes:
        name: Of the task.
        pairs: So many pairs, whatever their tokens, as HELMET has them; as many as the length holds unless given.
        shots: Demonstrations.
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
        if self.pairs is not None and self.pairs < 1:
            raise UserError(f"pairs={self.pairs}; expected at least 1")
        if self.shots < 0:
            raise UserError(f"shots={self.shots}; expected at least 0")

    @property
    def unit_tokens(self) -> int:
        """A pair."""
        return len(_pair("", "")) + 2 * 36

    def plan(self, *, length: int | None, seed: int, index: int, tokens: Tokens) -> Plan:
        """Draws the pairs."""
        return _Pairs(self, (self.name, seed, index))

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """HELMET's main metric, and whether the parsed reply is the value and nothing else."""
        from longlens.tasks import metrics

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
        drawn = distinct(uuids, draws(*key, "pairs"))
        self._source = zip(drawn, drawn, strict=True)  # two draws a pair
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
        # The first pair has one brace before it, all others what stands between pairs.
        end = len("{") + sum(len(_pair(*pair)) for pair in pairs[: asked + 1]) - len(", ") - len('"')
        return Draft(
            prompt=f"{context}{BETWEEN}{shown}Key: {key}",
            answer_prefix=PREFIX,
            answers=[value],
            answer_spans=[(end - len(value), end)],
            metadata={
                "depths": [round(100 * asked / max(1, units - 1), 2)],
                "pairs": units,
                "distractors": distractors(
                    [other for _, other in pairs], [value], draws(*self._sample, "distractors"), uuids
                ),
            },
        )
