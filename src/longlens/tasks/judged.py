"""Scores that a model gives: a language model that judges answers, and one that says whether a text entails a claim.

Which model that is, the caller says; nothing here runs one. What is not given stays out of a sample's scores, so that
no mean mixes judged and unjudged samples without saying how many there are of each.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

from longlens.tasks.base import Sample, Task

Judge = Callable[[Sequence[str]], Sequence[str]]
"""Prompts to a language model -> its replies, one for each."""

Entails = Callable[[str, str], bool]
"""``entails(premise, claim)``: whether the claim follows."""


class JudgedTask(Task):
    """A task whose benchmark asks a language model for the score.

    `score` gives what needs no judge, as a fallback under names of its own.

    Attributes:
        judged_metric: The score that the benchmark reports, a key of what `judged` gives.
        needs_judge: Whether the benchmark reports the judge's score alone, so that there is no score without it.
        judge_tokens: Tokens that the benchmark gives a judge's reply; 0 where it does not say.
    """

    judged_metric: str
    needs_judge: bool = False
    judge_tokens: int = 0

    @property
    def prompts_by(self) -> str:
        """Whose prompts the judge gets; scores by different ones are not put together."""
        return "own"

    @abstractmethod
    def judge_prompts(self, sample: Sample, prediction: str) -> list[str]:
        """What the judge is asked; none where the task has nothing to ask about this sample."""

    @abstractmethod
    def judged(self, sample: Sample, prediction: str, replies: Sequence[str]) -> dict[str, float]:
        """Numbers from 0 to 1 for the judge's replies; empty where one of them cannot be read."""


class CitedTask(Task):
    """A task whose benchmark asks whether cited documents support what is said."""

    @abstractmethod
    def cited(self, sample: Sample, prediction: str, entails: Entails) -> dict[str, float]:
        """Numbers from 0 to 1; empty where the prediction says nothing that could be supported."""
