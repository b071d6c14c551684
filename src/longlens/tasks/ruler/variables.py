"""Builds RULER's variable tracking, ``vt``: find the variables that a chain of assignments sets to one value.

Prompt: ``variable_tracking`` in scripts/data/synthetic/constants.py and variable_tracking.py (NVIDIA/RULER c3f5e3b,
Apache-2.0): one chain of 4 hops, thus 5 names, in the noise haystack, after one worked example with names of 3 letters.
Metric: ``string_match_all``. Known differences, in addition to those of all tasks: the example is drawn again for each
sample with its own positions (RULER changes only its names and value), and has 5 lines of filler if fewer fit into 500
tokens; all names are different, including those of the example.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from longlens.tasks.base import Sample, check_least, draws
from longlens.tasks.fitting import Draft, Plan, TokenCounter, fit
from longlens.tasks.ruler.needles import NOISE, RulerTask
from longlens.tasks.synthetic import Needle, hide_needles

BEFORE = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
AFTER = "\nQuestion: Find all variables that are assigned the value {value} in the text above."
PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, {count} variables are assigned the "
    "value {value}, they are: "
)
EXAMPLE_TOKENS = 500  # variable_tracking.py, main: sys_vartrack_w_noise_random(num_samples=1, max_seq_length=500


@dataclass(frozen=True, kw_only=True, slots=True)
class VariableTracking(RulerTask):
    """Variable tracking.

    Attributes:
        name: RULER's name.
        hops: Number of assignments from one variable to the next.
    """

    name: str = "vt"
    hops: int = 4  # synthetic.yaml, vt: num_hops: 4

    max_new_tokens = 30  # constants.py: 'tokens_to_generate': 30

    def __post_init__(self) -> None:
        """Checks the values."""
        check_least(self, hops=0)

    @property
    def unit_tokens(self) -> int:
        """Size of a line of filler."""
        return 1 + len(NOISE)

    def plan(self, *, length: int | None, seed: int, index: int, tokens: TokenCounter) -> Plan:
        """A plan with a random chain, and the example before it."""
        key = (self.name, seed, index)
        rng = draws(*key, "example")
        shown = Chain(_draw_names(rng, self.hops + 1, letters=3), rng.randint(10000, 99998), (*key, "example places"))
        draft = fit(shown, tokens, EXAMPLE_TOKENS).draft
        example = f"{draft.prompt}{draft.answer_prefix} {' '.join(draft.answers)}\n\n"
        rng = draws(*key, "chain")
        names = _draw_names(rng, self.hops + 1, letters=5)
        return Chain(names, rng.randint(10000, 99998), (*key, "places"), example)

    def target(self, sample: Sample) -> str | None:
        """All names in the order of the chain, as in the worked example."""
        return f" {' '.join(sample.answers)}"


class Chain(Plan):
    """``VAR A = 12345``, ``VAR B = VAR A``, … among lines of filler, and the question."""

    def __init__(self, names: Sequence[str], value: int, key: tuple[str, int, int, str], example: str = "") -> None:
        self._names, self._value, self._key, self._example = names, value, key, example
        self.minimum = len(names)
        heads = [f"VAR {names[0]} = {value}", *(f"VAR {b} = VAR {a} " for a, b in pairwise(names))]
        self._lines = [Needle(line, (4, 4 + len(name))) for line, name in zip(heads, names, strict=True)]

    def unit(self, index: int) -> str:
        """A line of filler."""
        return f"\n{NOISE}"

    def draft(self, units: int) -> Draft:
        """A draft with the lines of the chain in order, before random distinct lines."""
        places = sorted(draws(*self._key).sample(range(units), len(self._lines)))
        context = hide_needles([NOISE] * units, self._lines, places, "\n")
        before = self._example + BEFORE
        return Draft(
            prompt=before + context.text + AFTER.format(value=self._value),
            answer_prefix=PREFIX.format(value=self._value, count=len(self._names)),
            answers=self._names,
            answer_spans=context.answers(self._lines, len(before)),
            metadata={"depths": context.depths(self._lines), "haystack": "noise"},
        )


def _draw_names(rng: Random, count: int, *, letters: int) -> list[str]:
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(rng.choices(string.ascii_uppercase, k=letters))] = None
    return list(names)
