"""Finds the largest sample within a token budget: estimates it from the sizes of its units, then counts exactly."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from longlens.errors import UserError

if TYPE_CHECKING:
    from longlens.tokenization import Ints, TextEncoder


UNBOUNDED = 2**40
"""Maximum of a plan that can always be made longer."""
_CACHED = 2**18
"""Number of texts whose sizes are cached."""
_ESTIMATED = 12
"""Number of guesses by estimate before bisection is used; two or three are usual."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """The part of a `longlens.tasks.Sample` that a plan makes: its fields without those that `Task.build` adds."""

    prompt: str
    answer_prefix: str
    answers: Sequence[str]
    answer_spans: Sequence[tuple[int, int]]
    context_span: tuple[int, int] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Plan(ABC):
    """A sample whose random choices are made, but whose number of units (lines, words, documents) is open.

    Attributes:
        minimum: Minimum number of units.
        maximum: Maximum number of units.
    """

    minimum: int
    maximum: int = UNBOUNDED

    @abstractmethod
    def unit(self, index: int) -> str:
        """Approximately the text that unit ``index`` adds to the sample; only for an estimate of its tokens."""

    @abstractmethod
    def draft(self, units: int) -> Draft:
        """The sample with that many units."""


class Whole(Plan):
    """A sample that consists of all of its data, as exactly one unit."""

    minimum = maximum = 1

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    def unit(self, index: int) -> str:
        """The whole prompt."""
        return self._draft.prompt

    def draft(self, units: int) -> Draft:
        """The sample."""
        return self._draft


class Fitted(NamedTuple):
    """The largest sample that fits, and its number of tokens without those of the answer."""

    units: int
    tokens: int
    draft: Draft


class TokenCounter:
    """Counts tokens.

    Raises:
        UserError: The tokenizer is not callable.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not callable(tokenizer):
            raise UserError(
                f"`tokenizer` is {tokenizer!r}; expected a tokenizer of transformers, such as "
                "longlens.models.load_tokenizer('smollm2')"
            )
        self._tokenizer = tokenizer
        self._sizes: dict[str, int] = {}

    def count(self, text: str) -> int:
        """``len(tokenizer(text).input_ids)``, including the special tokens that the tokenizer adds."""
        return len(self._tokenizer(text, verbose=False)["input_ids"])

    def spans(self, text: str) -> Ints:
        """``(n, 2)``: ``[start, end)`` in characters for each token of the text, without special tokens."""
        return self._encoder.encode(text).char_spans

    @cached_property
    def _encoder(self) -> TextEncoder:
        from longlens.tokenization import TextEncoder

        return TextEncoder(self._tokenizer)

    def sizes(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text by itself. Each text is tokenized once."""
        new = list(dict.fromkeys(text for text in texts if text not in self._sizes))
        if new:
            if len(self._sizes) > _CACHED:
                self._sizes.clear()
                new = list(dict.fromkeys(texts))
            ids = self._tokenizer(new, add_special_tokens=False, verbose=False)["input_ids"]
            self._sizes.update(zip(new, map(len, ids), strict=True))
        return [self._sizes[text] for text in texts]


def fit(plan: Plan, tokens: TokenCounter, budget: int | None) -> Fitted:
    """Finds the sample with n units that fits while n + 1 units do not: ``count(n) <= budget < count(n + 1)``.

    Both counts are exact counts of the whole text. The search between them uses estimates, so that a sample costs two
    to four tokenizations of its whole text at any length.

    Args:
        plan: The sample; fixed if its minimum is its maximum.
        tokens: Token counter.
        budget: Maximum number of tokens; None for a fixed plan.

    Returns:
        The largest sample that fits; if none fits, the smallest one, which has more tokens than the budget.
    """
    best = _counted(plan, tokens, plan.minimum)
    if budget is None or best.tokens > budget:
        return best
    sizes = _Sizes(plan, tokens)
    at, at_tokens = best.units, best.tokens
    too_many, guesses = plan.maximum + 1, 0
    while too_many - best.units > 1:
        guess = sizes.reach(at, budget - at_tokens) if guesses < _ESTIMATED else (best.units + too_many) // 2
        trial = _counted(plan, tokens, min(max(guess, best.units + 1), too_many - 1))
        at, at_tokens, guesses = trial.units, trial.tokens, guesses + 1
        if trial.tokens <= budget:
            best = trial
        else:
            too_many = trial.units
    return best


def shortest(plan: Plan, tokens: TokenCounter) -> int:
    """Number of tokens of the smallest sample, without those of the answer."""
    return _counted(plan, tokens, plan.minimum).tokens


def _counted(plan: Plan, tokens: TokenCounter, units: int) -> Fitted:
    draft = plan.draft(units)
    return Fitted(units, tokens.count(draft.prompt + draft.answer_prefix), draft)


class _Sizes:
    """Estimated number of tokens of the first n units, computed as needed."""

    def __init__(self, plan: Plan, tokens: TokenCounter) -> None:
        self._plan, self._tokens = plan, tokens
        self._sums = [0]

    def reach(self, units: int, more: int) -> int:
        """The largest number of units that fits ``more`` tokens (negative: fewer) in addition to those of ``units``."""
        self._extend(units)
        wanted = self._sums[units] + more
        while self._sums[-1] <= wanted and len(self._sums) <= self._plan.maximum:
            done = len(self._sums) - 1
            mean = max(1.0, self._sums[-1] / max(1, done))
            self._extend(done + 16 + int((wanted - self._sums[-1]) / mean) if done else 16)
        return bisect_right(self._sums, wanted) - 1

    def _extend(self, units: int) -> None:
        first, last = len(self._sums) - 1, min(units, self._plan.maximum)
        for size in self._tokens.sizes([self._plan.unit(index) for index in range(first, last)]):
            self._sums.append(self._sums[-1] + size)
