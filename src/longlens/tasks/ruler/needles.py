"""Builds RULER's needle tasks: 3 ``niah_single``, 3 ``niah_multikey``, ``niah_multivalue``, ``niah_multiquery``.

Prompts: ``niah`` in scripts/data/synthetic/constants.py and niah.py (NVIDIA/RULER c3f5e3b, Apache-2.0), in the singular
if there is one answer. Metric: ``string_match_all``. Known differences, in addition to those of all tasks: the default
haystack of the essay tasks is not Graham's essays, which are not free (pass them as ``haystack=``); sentence ends
follow the rule of `longlens.tasks.haystack.sentence_ends`; at depths 0 and 100 there is no extra space.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, repeat
from random import Random
from typing import Any

from longlens.errors import UserError
from longlens.tasks import metrics
from longlens.tasks.base import Sample, Task, check_least, draws
from longlens.tasks.fitting import Draft, Plan, TokenCounter
from longlens.tasks.haystack import Haystack, open_haystack
from longlens.tasks.synthetic import (
    Needle,
    NeedleText,
    distinct,
    distractors,
    draw_number,
    draw_uuid,
    draw_words,
    hide_needles,
    longest_word,
    make_needle,
)

BEFORE = (
    "Some special magic {value_kind} are hidden within the following text. Make sure to memorize it. I will quiz you "
    "about the {value_kind} afterwards.\n"
)
AFTER = "\nWhat are all the special magic {value_kind} for {query} mentioned in the provided text?"
PREFIX = " The special magic {value_kind} for {query} mentioned in the provided text are"
SINGULAR = (("Some", "A"), ("are all", "is"), ("are", "is"), ("answers", "answer"))
DEPTHS = [round(100 * step / 39) for step in range(40)]
"""Percent; niah.py: ``np.round(np.linspace(0, 100, num=40, endpoint=True))``."""

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
"""The line that RULER's "noise" haystack repeats (niah.py, variable_tracking.py)."""


def clean(prediction: str) -> str:
    """RULER's evaluate.py: strips, replaces control characters (line ends, tabs) with line ends, and strips again."""
    return re.sub(r"[\x00-\x1f]", "\n", prediction.strip()).strip()


class RulerTask(Task):
    """A task of RULER."""

    suite = "ruler"
    metric = "string_match_all"
    default_samples = 500  # config_tasks.sh: NUM_SAMPLES=500

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """Fraction of answers that the prediction contains, ignoring case: ``string_match_all`` of one sample."""
        text = clean(prediction)
        found = [metrics.string_match_all([text], [[answer]]) / 100 for answer in sample.answers]
        return {"string_match_all": sum(found) / len(found)}

    def aggregate(self, scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Means over samples in percent, rounded to two digits as in RULER."""
        return {name: round(value, 2) for name, value in super().aggregate(scores).items()}


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of keys or values.

    Attributes:
        name: Its name in the prompt, in the plural.
        draw: Draws one.
        longest: Returns the bytes of the longest one.
    """

    name: str
    draw: Callable[[Random], str]
    longest: Callable[[], int]


WORDS = Kind("words", draw_words, lambda: longest_word("adjective", "noun"))
NUMBERS = Kind("numbers", draw_number, lambda: 7)
UUIDS = Kind("uuids", draw_uuid, lambda: 36)


def _needle_text(kind: Kind, key: str, value: str, *, asked: bool = True) -> Needle:
    """``One of the special magic numbers for KEY is: VALUE.``"""
    hidden = make_needle(f"One of the special magic {kind.name} for {key} is: ", value, ".")
    return hidden if asked else Needle(hidden.text)


class Hay(ABC):
    """A haystack for one sample.

    Attributes:
        least: Minimum number of units.
    """

    least: int

    @abstractmethod
    def unit(self, index: int) -> str:
        """Unit ``index`` with its separator."""

    @abstractmethod
    def hide(self, units: int, needles: Sequence[Needle], rng: Random) -> NeedleText:
        """Inserts needles into the given number of units."""

    def values(self, units: int) -> list[str]:
        """Values in the given number of units."""
        return []


class ProseHay(Hay):
    """A haystack of words; needles are between sentences, at depths drawn from `DEPTHS` without replacement."""

    least = 1

    def __init__(self, haystack: Haystack) -> None:
        self._haystack = haystack

    def unit(self, index: int) -> str:
        """A word."""
        return " " + self._haystack.words[index % len(self._haystack.words)]

    def hide(self, units: int, needles: Sequence[Needle], rng: Random) -> NeedleText:
        """Inserts each needle before sentence ``int(sentences * depth / 100)``."""
        sentences = self._haystack.sentences(units)
        depths = sorted(rng.sample(DEPTHS, len(needles)))
        places = [sentences[int((len(sentences) - 1) * (depth / 100))] for depth in depths]
        return hide_needles(self._haystack.take(units), needles, places, " ")


class LineHay(Hay):
    """A haystack of lines; needles are lines at random, distinct positions."""

    def __init__(self, lines: Iterator[Needle], needles: int) -> None:
        self._lines = lines
        self._drawn: list[Needle] = []
        self.least = needles

    def unit(self, index: int) -> str:
        """A line."""
        self._draw(index + 1)
        return "\n" + self._drawn[index].text

    def hide(self, units: int, needles: Sequence[Needle], rng: Random) -> NeedleText:
        """Inserts each needle before one of the lines."""
        self._draw(units)
        lines = [line.text for line in self._drawn[:units]]
        return hide_needles(lines, needles, sorted(rng.sample(range(units), len(needles))), "\n")

    def values(self, units: int) -> list[str]:
        """Values of the lines that are needles."""
        self._draw(units)
        return [line.text[slice(*line.answer)] for line in self._drawn[:units] if line.answer is not None]

    def _draw(self, count: int) -> None:
        self._drawn += islice(self._lines, max(0, count - len(self._drawn)))


@dataclass(frozen=True, kw_only=True)
class Needles(RulerTask):
    """A needle task; its subclasses define the haystack.

    Attributes:
        name: RULER's name.
        keys: Number of keys with values in the text; at least the number of queries is used.
        values: Number of values per key.
        queries: Number of keys in the question.
        key_kind: Kind of the keys.
        value_kind: Kind of the values.
    """

    name: str
    keys: int = 1
    values: int = 1
    queries: int = 1
    key_kind: Kind = WORDS
    value_kind: Kind = NUMBERS

    max_new_tokens = 128  # constants.py: 'tokens_to_generate': 128

    def __post_init__(self) -> None:
        """Checks the values."""
        check_least(self, keys=1, values=1, queries=1)
        if max(self.keys, self.queries) * self.values > len(DEPTHS):
            raise UserError(f"{max(self.keys, self.queries) * self.values} needles; expected {len(DEPTHS)} at most")

    @abstractmethod
    def hay(self, rng: Random, needles: int, taken: set[str]) -> Hay:
        """The haystack of one sample, without the keys and values in ``taken``."""

    @property
    @abstractmethod
    def described(self) -> str | dict[str, str]:
        """Description of the haystack in a sample's metadata."""

    def plan(self, *, length: int | None, seed: int, index: int, tokens: TokenCounter) -> Plan:
        """A plan with random keys and values."""
        return _Plan(self, (self.name, seed, index))


@dataclass(frozen=True, kw_only=True)
class ProseNeedles(Needles):
    """Needles in prose, RULER's ``essay``.

    Attributes:
        haystack: A file or directory, or None for `longlens.tasks.haystack`'s own text.
    """

    haystack: str | os.PathLike[str] | None = None

    @cached_property
    def text(self) -> Haystack:
        """The prose."""
        return open_haystack(self.haystack)

    @property
    def unit_tokens(self) -> int:
        """Maximum size of a word."""
        return 1 + max(len(word.encode()) for word in self.text.words)

    @property
    def described(self) -> str | dict[str, str]:
        """Name and hash."""
        return self.text.described()

    def hay(self, rng: Random, needles: int, taken: set[str]) -> Hay:
        """The prose, of which nothing is random."""
        return ProseHay(self.text)


@dataclass(frozen=True, kw_only=True)
class NoiseNeedles(Needles):
    """Needles in identical lines of filler, RULER's ``noise``."""

    described = "noise"

    @property
    def unit_tokens(self) -> int:
        """Size of a line."""
        return 1 + len(NOISE)

    def hay(self, rng: Random, needles: int, taken: set[str]) -> Hay:
        """The lines, of which nothing is random."""
        return LineHay(repeat(Needle(NOISE)), needles)


@dataclass(frozen=True, kw_only=True)
class DistractorNeedles(Needles):
    """Needles among needles with other keys, RULER's ``needle``."""

    described = "needle"

    @property
    def unit_tokens(self) -> int:
        """Maximum size of a needle."""
        bare = len(_needle_text(self.value_kind, "", "").text)
        return 1 + bare + self.key_kind.longest() + self.value_kind.longest()

    def hay(self, rng: Random, needles: int, taken: set[str]) -> Hay:
        """A haystack of random other needles."""
        pairs = zip(distinct(self.key_kind.draw, rng, taken), distinct(self.value_kind.draw, rng, taken), strict=True)
        return LineHay((_needle_text(self.value_kind, key, value) for key, value in pairs), needles)


class _Plan(Plan):
    def __init__(self, task: Needles, sample: tuple[str, int, int]) -> None:
        self._task, self._sample = task, sample
        rng = draws(*sample, "needles")
        keys = list(islice(distinct(task.key_kind.draw, rng), max(task.keys, task.queries)))
        drawn = distinct(task.value_kind.draw, rng, set(keys))
        values = {key: list(islice(drawn, task.values)) for key in keys}
        self._asked = rng.sample(keys, task.queries)
        self._answers = [value for key in self._asked for value in values[key]]
        self._needles = [
            _needle_text(task.value_kind, key, value, asked=key in self._asked) for key in keys for value in values[key]
        ]
        rng.shuffle(self._needles)
        self._values = [value for of_key in values.values() for value in of_key]
        taken = {*keys, *self._values}
        self._hay = task.hay(draws(*sample, "haystack"), len(self._needles), taken)
        self.minimum = self._hay.least

    def unit(self, index: int) -> str:
        return self._hay.unit(index)

    def draft(self, units: int) -> Draft:
        context = self._hay.hide(units, self._needles, draws(*self._sample, "places"))
        *first, last = self._asked
        query = f"{', '.join(first)}, and {last}" if first else last
        single = len(self._answers) == 1
        before, after, prefix = _word_prompt(self._task.value_kind.name, query, single=single)
        return Draft(
            prompt=before + context.text + after,
            answer_prefix=prefix,
            answers=self._answers,
            answer_spans=context.answers(self._needles, len(before)),
            metadata={"depths": context.depths(self._needles), "haystack": self._task.described}
            | (self._distractors(units) if single else {}),
        )

    def _distractors(self, units: int) -> dict[str, Any]:
        inside, rng = self._values + self._hay.values(units), draws(*self._sample, "distractors")
        return distractors(inside, self._answers, rng, distinct(self._task.value_kind.draw, rng))


def _word_prompt(kind: str, query: str, *, single: bool) -> tuple[str, str, str]:
    """The template's parts, in the singular as in niah.py if there is one answer."""
    parts = [BEFORE, AFTER, PREFIX]
    if single:
        kind = kind[:-1]
        for plural, singular in SINGULAR:
            parts = [part.replace(plural, singular) for part in parts]
    before, after, prefix = (part.format(value_kind=kind, query=query) for part in parts)
    return before, after, prefix
