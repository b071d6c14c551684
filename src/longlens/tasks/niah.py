"""Builds needle-in-a-haystack samples: one sentence at a given depth of a text of a given length.

Source: github.com/gkamradt/needle-in-a-haystack at 7b90d28, MIT (``llm_needle_haystack_tester.py``; prompt:
``providers/openai.py``, its three messages one after the other). Haystack: `longlens.tasks.haystack`'s own text, or the
user's. Known differences: upstream's score is 1 to 10 points from an OpenAI model. Here the scores are whether the
answer's part of the needle is in the reply, verbatim after normalization, and the fraction of its words in the reply. A
judge is used only if one is set: with upstream's rubric (``evaluators/openai.py``) in a prompt of longlens (upstream's
is langchain's, and asks for an explanation in one sentence and for only a number in the next). The needle is inserted
at the last sentence end at or before the depth, counted in words instead of tokens. Upstream reserves 200 tokens of a
length for prompt and reply; here the length includes all tokens, as in every task.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from longlens.errors import UserError
from longlens.tasks import metrics
from longlens.tasks.base import JudgedTask, Sample
from longlens.tasks.fitting import Draft, Plan, TokenCounter
from longlens.tasks.haystack import Haystack, open_haystack
from longlens.tasks.synthetic import Needle, boundary_at, hide_needles

SYSTEM = "You are a helpful AI bot that answers questions for a user. Keep your response short and direct\n\n"
ASK = "\n\n{question} Don't give information outside the document or repeat your findings"
ANSWER = "eat a sandwich and sit in Dolores Park on a sunny day"
NEEDLE = f"The best thing to do in San Francisco is {ANSWER}."
QUESTION = "What is the best thing to do in San Francisco?"
# evaluators/openai.py, CRITERIA
RUBRIC = """Score 1: The answer is completely unrelated to the reference.
Score 3: The answer has minor relevance but does not align with the reference.
Score 5: The answer has moderate relevance but contains inaccuracies.
Score 7: The answer aligns with the reference but has minor omissions.
Score 10: The answer is completely accurate and aligns perfectly with the reference."""
JUDGE = f"""Rate how accurate an answer to a question is, given a reference, on a scale of 1 to 10:
{RUBRIC}
Reply with the rating alone, in this format: Rating: [[5]]

[Question]
{{question}}

[Reference]
{{reference}}

[Answer]
{{answer}}
[End of the answer]"""
_POINTS = r"(?<![\d.\-])(\d+(?:\.\d+)?)(?![\d.]*\d|\s*(?:-|–|to)\s*\d)"
_SAID = r"(?:rating|score|points|accuracy)"
# From the most to the least reliable format of a rating. Of several matches the last one counts: reasons come first.
_RATINGS = [
    re.compile(pattern, flags=re.IGNORECASE)
    for pattern in (
        rf"\[\[\s*{_POINTS}\s*(?:/\s*10\s*)?\]\]",
        rf"{_SAID}[\"'*_\s]*[:=][\"'*_\s\[(]*{_POINTS}",
        rf"{_SAID}\s+(?:is|of)\s+[*_\[]*{_POINTS}",
        rf"\A\W*(?:{_SAID}\W+)?{_POINTS}(?:\s*/\s*10)?\W*\Z",
        rf"{_POINTS}\s*(?:/|out of)\s*10\b",
    )
]
# llm_needle_haystack_tester.py: np.round(np.linspace(context_lengths_min=1000, …max=16000, …num_intervals=35))
LENGTHS = tuple(round(1000 + 15000 * step / 34) for step in range(35))
# The same: np.round(np.linspace(document_depth_percent_min=0, …max=100, document_depth_percent_intervals=35))
DEPTHS = tuple(round(100 * step / 34) for step in range(35))


@dataclass(frozen=True, kw_only=True)
class NeedleGrid(JudgedTask):
    """A row of the grid: samples of one length, sample i at depth ``depths[i % len(depths)]``.

    The whole grid is one ``build(length=…)`` for each of `LENGTHS`. Nothing is random: as upstream, a depth has the
    same sample with every seed. Request ``len(depths)`` samples.

    Attributes:
        name: Name of the task.
        depths: Depths in percent of the text, 0 to 100.
        needle: The hidden sentence.
        question: The question about it.
        answer: The part of the needle that answers the question.
        answer_prefix: The text that the model continues; upstream has none for chat models.
        haystack: A file or directory, or None for `longlens.tasks.haystack`'s own text.
    """

    name: str = "niah_grid"
    depths: Sequence[float] = DEPTHS
    needle: str = NEEDLE
    question: str = QUESTION
    answer: str = ANSWER
    answer_prefix: str = ""
    haystack: str | os.PathLike[str] | None = None

    suite = "niah_grid"
    metric = "exact"
    judged_metric = "judge"
    max_new_tokens = 300  # providers/openai.py: DEFAULT_MODEL_KWARGS: dict = dict(max_tokens = 300, temperature = 0)

    def __post_init__(self) -> None:
        """Checks the values."""
        if not self.depths or not all(0 <= depth <= 100 for depth in self.depths):
            raise UserError(f"depths={list(self.depths)}; expected percentages from 0 to 100, at least one")
        if not self.answer or self.answer not in self.needle:
            raise UserError(f"answer={self.answer!r} is not in the needle {self.needle!r}; expected a part of it")

    @property
    def default_samples(self) -> int:
        """One sample per depth."""
        return len(self.depths)

    @cached_property
    def text(self) -> Haystack:
        """The haystack."""
        return open_haystack(self.haystack)

    @property
    def unit_tokens(self) -> int:
        """Size of one word."""
        return 1 + max(len(word.encode()) for word in self.text.words)

    def plan(self, *, length: int | None, seed: int, index: int, tokens: TokenCounter) -> Plan:
        """A plan with the depth of this index."""
        return _Cell(self, self.depths[index % len(self.depths)])

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """``exact``: the answer is in the prediction; ``recall``: fraction of its words in it; both normalized."""
        wanted = Counter(metrics.normalize_answer(sample.answers[0]).split())
        found = wanted & Counter(metrics.normalize_answer(prediction).split())
        exact = metrics.substring_exact_match(prediction, sample.answers)
        return {"exact": exact, "recall": found.total() / max(1, wanted.total())}

    def judge_prompts(self, sample: Sample, prediction: str) -> list[str]:
        """The question, the needle as reference, the prediction, and the rubric."""
        return [JUDGE.format(question=self.question, reference=self.needle, answer=prediction)]

    def judged(self, sample: Sample, prediction: str, replies: Sequence[str]) -> dict[str, float]:
        """``judge``: points / 10; empty if the reply contains no points from 1 to 10."""
        points = rating(replies[0])
        return {} if points is None else {"judge": points / 10}


def rating(reply: str) -> float | None:
    """The points in a judge's reply, such as ``Rating: [[7]]``, ``Score: 7/10``, ``{"score": 7}`` or ``7``.

    Returns:
        1 to 10; None if no rating is found or it is outside this range.
    """
    found = next((every for pattern in _RATINGS if (every := pattern.findall(reply))), None)
    points = float(found[-1]) if found else 0.0
    return points if 1 <= points <= 10 else None


class _Cell(Plan):
    minimum = 1

    def __init__(self, task: NeedleGrid, depth: float) -> None:
        self._task, self._depth = task, depth
        at = task.needle.index(task.answer)
        self._needle = Needle(task.needle, (at, at + len(task.answer)))

    def unit(self, index: int) -> str:
        return " " + self._task.text.words[index % len(self._task.text.words)]

    def draft(self, units: int) -> Draft:
        text = self._task.text
        place = boundary_at(text.sentences(units), int(units * self._depth / 100))
        context = hide_needles(text.take(units), [self._needle], [place], " ")
        return Draft(
            prompt=SYSTEM + context.text + ASK.format(question=self._task.question),
            answer_prefix=self._task.answer_prefix,
            answers=[self._task.answer],
            answer_spans=context.answers([self._needle], len(SYSTEM)),
            metadata={
                "depth": self._depth,
                "depths": context.depths([self._needle]),
                "haystack": text.described(),
            },
        )
