"""RULER's frequent words, ``fwe``: find the three coded words that a text has most often.

Prompt: ``freq_words_extraction`` in scripts/data/synthetic/constants.py and freq_words_extraction.py (NVIDIA/RULER
c3f5e3b, Apache-2.0). The word of rank k is there ``int(words * k**-alpha / zeta(alpha))`` times, rank 1 is the noise
``...`` and ranks 2 to 4 are the answer. Metric: ``string_match_all``. Known difference, beside those of all tasks:
there are as many coded words as have a count (RULER's vocabulary of one for 50 tokens is larger from some 500 tokens
on, and what has no count is not in the text); texts so short that ranks 2 to 5 could be equal in number are refused.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from heapq import heappush, heapreplace
from itertools import islice, pairwise
from random import Random

from longlens.errors import UserError
from longlens.tasks.base import draws
from longlens.tasks.fitting import Draft, Plan, Tokens
from longlens.tasks.layout import starts_of
from longlens.tasks.ruler.base import RulerTask
from longlens.tasks.words import distinct

BEFORE = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared "
    "coded words. "
)
AFTER = (
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently "
    "appeared words in the above coded text?"
)
PREFIX = " Answer: According to the coded text above, the three most frequently appeared words are:"
NOISE = "..."
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
            raise UserError(f"alpha={self.alpha}; expected above 1 (or there is no sum of k**-alpha), 10 at most")

    @property
    def unit_tokens(self) -> int:
        """One more word asked for can add a word to the counts of several ranks, but never to 32 at alpha 2."""
        return 32 * (LETTERS + 1)

    def plan(self, *, length: int | None, seed: int, index: int, tokens: Tokens) -> Plan:
        """Draws the coded words."""
        from scipy.special import zeta

        return _Plan((self.name, seed, index), self.alpha, float(zeta(self.alpha)))


class _Plan(Plan):
    def __init__(self, key: tuple[str, int, int], alpha: float, zeta: float) -> None:
        self._key, self._alpha, self._zeta = key, alpha, zeta
        self._source = distinct(_coded, draws(*key, "words"))
        self._words = [NOISE]
        self._added: list[list[int]] = []  # ranks that one unit more has once more
        self._due = [(self._when(1, 1), 1, 1)]  # with how many units a rank has which count
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
        spans = [(len(BEFORE) + start, len(BEFORE) + start + LETTERS) for word, start in places if word in answers]
        return Draft(
            prompt=BEFORE + " ".join(items) + AFTER,
            answer_prefix=PREFIX,
            answers=answers,
            answer_spans=spans,
            metadata={"counts": counts[:5]},
        )

    def _counts(self, units: int) -> list[int]:
        """Times that each rank is there, as far as these are not 0."""
        last = int((units / self._zeta) ** (1 / self._alpha)) + 1
        counts = [int(units * rank**-self._alpha / self._zeta) for rank in range(1, last + 1)]
        return counts[: next((rank for rank, count in enumerate(counts) if count == 0), last)]

    def _when(self, rank: int, count: int) -> float:
        """Units from which on a rank is there so many times."""
        return float(count * self._zeta * rank**self._alpha)

    def _is_clear(self, units: int) -> bool:
        """Whether each of the ranks 2 to 4 is there more often than the next, here and with any more units."""
        shares = [units * rank**-self._alpha / self._zeta for rank in range(2, 6)]
        return all(more - less >= 1 for more, less in pairwise(shares))

    def _draw(self, count: int) -> None:
        self._words += islice(self._source, max(0, count - len(self._words)))


def _coded(rng: Random) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=LETTERS))
