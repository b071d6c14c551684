"""RULER's common words, ``cwe``: find the ten words that a numbered list repeats most often.

Prompt: ``common_words_extraction`` in scripts/data/synthetic/constants.py and common_words_extraction.py (NVIDIA/RULER
c3f5e3b, Apache-2.0), one worked example included. Metric: ``string_match_all``. Words: `wonderwords`. Known difference,
beside those of all tasks: where a list wants more than the 8,166 words there are (beyond 128k tokens), the rest are
pairs of an adjective and a noun; RULER then takes all words from a list of its own repository. A tokenizer of so short
tokens that the 300 items at least do not fit into 4,096 of them has the fewer repetitions of shorter lengths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from random import Random

from longlens.tasks.base import Sample, draws
from longlens.tasks.fitting import Draft, Plan, Tokens, shortest
from longlens.tasks.layout import starts_of
from longlens.tasks.ruler.base import RulerTask
from longlens.tasks.words import distinct, longest, word_list, words

BEFORE = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n"
)
AFTER = "\nQuestion: What are the 10 most common words in the above list?"
PREFIX = " Answer: The top 10 words that appear most often in the list are:"
COMMON = 10  # synthetic.yaml, cwe: num_cw: 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Repeats:
    """How often words are in a list, and in that of the example.

    Attributes:
        common: Times that each of the ten words is there.
        uncommon: Times that each other word is there.
        example_words: Different words of the example.
        example_common: As `common`, for the example.
        example_uncommon: As `uncommon`, for the example.
    """

    common: int
    uncommon: int
    example_words: int
    example_common: int
    example_uncommon: int


# synthetic.yaml: freq_cw: 30, freq_ucw: 3; common_words_extraction.py: get_example(40, 10, 3, args.num_cw)
LONG = Repeats(common=30, uncommon=3, example_words=40, example_common=10, example_uncommon=3)
# common_words_extraction.py, "if args.max_seq_length < 4096": get_example(20, 3, 1, …), get_example(num_words, 6, 1, …)
SHORT = Repeats(common=6, uncommon=1, example_words=20, example_common=3, example_uncommon=1)
SHORT_BELOW = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class CommonWords(RulerTask):
    """Common words. A length below 4,096 has fewer repetitions, as in RULER; a sample's metadata says how many."""

    name: str = "cwe"

    max_new_tokens = 120  # constants.py: 'tokens_to_generate': 120

    @property
    def unit_tokens(self) -> int:
        """A word as often as it is repeated, each with a number of up to 7 digits."""
        return LONG.uncommon * (longest("adjective", "noun") + len(" 1000000. "))

    def plan(self, *, length: int | None, seed: int, index: int, tokens: Tokens) -> Plan:
        """Draws the words."""
        sample = (self.name, seed, index)
        if length is not None and length >= SHORT_BELOW:
            plan = _Plan(sample, LONG)
            if shortest(plan, tokens) + self.max_new_tokens <= length:
                return plan
        return _Plan(sample, SHORT)

    def target(self, sample: Sample) -> str | None:
        """All words numbered as in the worked example; in which order, the question leaves open."""
        return _listed(sample.answers)


class _Plan(Plan):
    minimum = 1

    def __init__(self, key: tuple[str, int, int], repeats: Repeats) -> None:
        self._key, self._repeats = key, repeats
        self._source = _endless(draws(*key, "words"))
        self._words: list[str] = []
        rng = draws(*key, "example")
        shown = rng.sample(_all_words(), repeats.example_words)
        items = _shuffled(shown, repeats.example_common, repeats.example_uncommon, rng)
        self._example = f"{BEFORE}{' '.join(_numbered(items))}{AFTER}{PREFIX}{_listed(shown[:COMMON])}\n"

    def unit(self, index: int) -> str:
        times = self._repeats.uncommon
        self._draw(COMMON + index + 1)
        return f" {COMMON * self._repeats.common + index * times}. {self._words[COMMON + index]}" * times

    def draft(self, units: int) -> Draft:
        self._draw(COMMON + units)
        chosen = self._words[: COMMON + units]
        common = chosen[:COMMON]
        items = _shuffled(chosen, self._repeats.common, self._repeats.uncommon, draws(*self._key, "order"))
        lines = _numbered(items)
        before = self._example + BEFORE
        wanted = frozenset(common)
        ends = [len(before) + start + len(line) for start, line in zip(starts_of(lines, " "), lines, strict=True)]
        return Draft(
            prompt=before + " ".join(lines) + AFTER,
            answer_prefix=PREFIX,
            answers=common,
            answer_spans=[(end - len(word), end) for end, word in zip(ends, items, strict=True) if word in wanted],
            metadata={"words": len(chosen), "common_repeats": self._repeats.common},
        )

    def _draw(self, count: int) -> None:
        self._words += islice(self._source, max(0, count - len(self._words)))


def _all_words() -> list[str]:
    return sorted({*word_list("noun"), *word_list("adjective"), *word_list("verb")})


def _endless(rng: Random) -> Iterator[str]:
    every = _all_words()
    taken = set(every)
    rng.shuffle(every)
    return chain(every, distinct(words, rng, taken))


def _shuffled(chosen: Sequence[str], common: int, uncommon: int, rng: Random) -> list[str]:
    items = list(chosen[:COMMON]) * common + list(chosen[COMMON:]) * uncommon
    rng.shuffle(items)
    return items


def _listed(answers: Sequence[str]) -> str:
    return f" {' '.join(_numbered(answers))}"


def _numbered(items: Sequence[str]) -> list[str]:
    return [f"{number}. {word}" for number, word in enumerate(items, start=1)]
