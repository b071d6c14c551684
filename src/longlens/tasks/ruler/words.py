"""Builds RULER's aggregation tasks: ten common words of a list, ``cwe``, and three frequent words of a text, ``fwe``.

Prompts: ``common_words_extraction`` and ``freq_words_extraction`` in scripts/data/synthetic/constants.py, and the files
of these names (NVIDIA/RULER c3f5e3b, Apache-2.0). Metric: ``string_match_all``. Known differences, in addition to those
of all tasks:

- cwe, whose prompt has one worked example, uses words from `wonderwords`. If a list needs more than its 8,166 words
  (beyond 128k tokens), the rest are pairs of an adjective and a noun; RULER then uses only words from a list of its own
  repository. If the tokens of a tokenizer are so short that the minimum of 300 items does not fit into 4,096 of them,
  the repetitions of shorter lengths are used, which are fewer.
- fwe repeats the coded word of rank k ``int(words * k**-alpha / zeta(alpha))`` times; rank 1 is the noise ``...`` and
  ranks 2 to 4 are the answer. The vocabulary consists of the coded words with a nonzero count. (RULER's vocabulary, one
  word per 50 tokens, is larger from about 500 tokens, but words with a count of 0 are not in the text.) Texts so short
  that two of ranks 2 to 5 could have equal counts are rejected.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappush, heapreplace
from itertools import chain, islice, pairwise
from random import Random

from longlens.errors import UserError
from longlens.tasks.base import Sample, draws
from longlens.tasks.fitting import Draft, Plan, TokenCounter, shortest
from longlens.tasks.ruler.needles import RulerTask
from longlens.tasks.synthetic import distinct, draw_words, longest_word, starts_of, word_list

CWE_BEFORE = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n"
)
CWE_AFTER = "\nQuestion: What are the 10 most common words in the above list?"
CWE_PREFIX = " Answer: The top 10 words that appear most often in the list are:"
COMMON = 10  # synthetic.yaml, cwe: num_cw: 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Repeats:
    """Repetitions of words in a list, and in that of the example.

    Attributes:
        common: Repetitions of each of the ten words.
        uncommon: Repetitions of each other word.
        example_words: Number of different words in the example.
        example_common: Repetitions of each of the ten words in the example.
        example_uncommon: Repetitions of each other word in the example.
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
    """Common words. Lengths below 4,096 have fewer repetitions, as in RULER; a sample's metadata has the number."""

    name: str = "cwe"

    max_new_tokens = 120  # constants.py: 'tokens_to_generate': 120

    @property
    def unit_tokens(self) -> int:
        """Maximum size of a word with all its repetitions, each with a number of up to 7 digits."""
        return LONG.uncommon * (longest_word("adjective", "noun") + len(" 1000000. "))

    def plan(self, *, length: int | None, seed: int, index: int, tokens: TokenCounter) -> Plan:
        """A plan with random words."""
        sample = (self.name, seed, index)
        if length is not None and length >= SHORT_BELOW:
            plan = _CommonPlan(sample, LONG)
            if shortest(plan, tokens) + self.max_new_tokens <= length:
                return plan
        return _CommonPlan(sample, SHORT)

    def target(self, sample: Sample) -> str | None:
        """All words, numbered as in the worked example; the question does not define their order."""
        return _list_answers(sample.answers)


class _CommonPlan(Plan):
    minimum = 1

    def __init__(self, key: tuple[str, int, int], repeats: Repeats) -> None:
        self._key, self._repeats = key, repeats
        self._source = _endless(draws(*key, "words"))
        self._words: list[str] = []
        rng = draws(*key, "example")
        shown = rng.sample(_all_words(), repeats.example_words)
        items = _shuffle(shown, repeats.example_common, repeats.example_uncommon, rng)
        self._example = (
            f"{CWE_BEFORE}{' '.join(_number_items(items))}{CWE_AFTER}{CWE_PREFIX}{_list_answers(shown[:COMMON])}\n"
        )

    def unit(self, index: int) -> str:
        times = self._repeats.uncommon
        self._draw(COMMON + index + 1)
        return f" {COMMON * self._repeats.common + index * times}. {self._words[COMMON + index]}" * times

    def draft(self, units: int) -> Draft:
        self._draw(COMMON + units)
        chosen = self._words[: COMMON + units]
        common = chosen[:COMMON]
        items = _shuffle(chosen, self._repeats.common, self._repeats.uncommon, draws(*self._key, "order"))
        lines = _number_items(items)
        before = self._example + CWE_BEFORE
        wanted = frozenset(common)
        ends = [len(before) + start + len(line) for start, line in zip(starts_of(lines, " "), lines, strict=True)]
        return Draft(
            prompt=before + " ".join(lines) + CWE_AFTER,
            answer_prefix=CWE_PREFIX,
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
    return chain(every, distinct(draw_words, rng, taken))


def _shuffle(chosen: Sequence[str], common: int, uncommon: int, rng: Random) -> list[str]:
    items = list(chosen[:COMMON]) * common + list(chosen[COMMON:]) * uncommon
    rng.shuffle(items)
    return items


def _list_answers(answers: Sequence[str]) -> str:
    return f" {' '.join(_number_items(answers))}"


def _number_items(items: Sequence[str]) -> list[str]:
    return [f"{number}. {word}" for number, word in enumerate(items, start=1)]


FWE_BEFORE = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared "
    "coded words. "
)
FWE_AFTER = (
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently "
    "appeared words in the above coded text?"
)
FWE_PREFIX = " Answer: According to the coded text above, the three most frequently appeared words are:"
DOTS = "..."
LETTERS = 6  # freq_words_extraction.py: --coded_wordlen, default=6


@dataclass(frozen=True, kw_only=True, slots=True)
class FrequentWords(RulerTask):
    """Frequent words.

    Attributes:
        name: RULER's name.
        alpha: Exponent of the zeta distribution, above 1.
    """

    name: str = "fwe"
    alpha: float = 2.0  # synthetic.yaml, fwe: alpha: 2.0

    max_new_tokens = 50  # constants.py: 'tokens_to_generate': 50

    def __post_init__(self) -> None:
        """Checks the exponent."""
        if not 1 < self.alpha <= 10:
            raise UserError(f"`alpha={self.alpha}`; expected above 1 (the sum of k**-alpha must be finite), at most 10")

    @property
    def unit_tokens(self) -> int:
        """One more unit can increase the counts of several ranks by one, but never of 32 at alpha 2."""
        return 32 * (LETTERS + 1)

    def plan(self, *, length: int | None, seed: int, index: int, tokens: TokenCounter) -> Plan:
        """A plan with random coded words."""
        from scipy.special import zeta

        return _FrequentPlan((self.name, seed, index), self.alpha, float(zeta(self.alpha)))


class _FrequentPlan(Plan):
    def __init__(self, key: tuple[str, int, int], alpha: float, zeta: float) -> None:
        self._key, self._alpha, self._zeta = key, alpha, zeta
        self._source = distinct(_coded_word, draws(*key, "words"))
        self._words = [DOTS]
        self._added: list[list[int]] = []  # ranks whose count each unit increases by one
        self._due = [(self._when(1, 1), 1, 1)]  # number of units from which a rank has a count
        self.minimum = next(units for units in range(1, 10**7) if self._is_clear(units))

    def unit(self, index: int) -> str:
        while len(self._added) <= index:
            ranks = []
            while self._due[0][0] <= len(self._added) + 1:
                _, rank, count = self._due[0]
                ranks.append(rank)
                heapreplace(self._due, (self._when(rank, count + 1), rank, count + 1))
                if count == 1:
                    heappush(self._due, (self._when(rank + 1, 1), rank + 1, 1))
            self._added.append(ranks)
        ranks = self._added[index]
        self._draw(max(ranks, default=0))
        return "".join(f" {self._words[rank - 1]}" for rank in ranks)

    def draft(self, units: int) -> Draft:
        counts = self._counts(units)
        self._draw(max(4, len(counts)))
        items = [word for word, count in zip(self._words, counts, strict=False) for _ in range(count)]
        draws(*self._key, "order").shuffle(items)
        answers = self._words[1:4]
        places = zip(items, starts_of(items, " "), strict=True)
        spans = [
            (len(FWE_BEFORE) + start, len(FWE_BEFORE) + start + LETTERS) for word, start in places if word in answers
        ]
        return Draft(
            prompt=FWE_BEFORE + " ".join(items) + FWE_AFTER,
            answer_prefix=FWE_PREFIX,
            answers=answers,
            answer_spans=spans,
            metadata={"counts": counts[:5]},
        )

    def _counts(self, units: int) -> list[int]:
        """Counts of the ranks, up to the first that is 0."""
        last = int((units / self._zeta) ** (1 / self._alpha)) + 1
        counts = [int(units * rank**-self._alpha / self._zeta) for rank in range(1, last + 1)]
        return counts[: next((rank for rank, count in enumerate(counts) if count == 0), last)]

    def _when(self, rank: int, count: int) -> float:
        """Number of units from which a rank occurs ``count`` times."""
        return float(count * self._zeta * rank**self._alpha)

    def _is_clear(self, units: int) -> bool:
        """Whether each of the ranks 2 to 4 occurs more often than the next, here and with any more units."""
        shares = [units * rank**-self._alpha / self._zeta for rank in range(2, 6)]
        return all(more - less >= 1 for more, less in pairwise(shares))

    def _draw(self, count: int) -> None:
        self._words += islice(self._source, max(0, count - len(self._words)))


def _coded_word(rng: Random) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=LETTERS))
