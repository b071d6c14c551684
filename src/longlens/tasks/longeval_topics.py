"""LongEval's topics: name the first of many conversations.

Blog and code as of `longlens.tasks.longeval` (``generate_topics_testcases``, ``test_topics_one_sample``), Apache-2.0.
Data: ``longeval/evaluation/topics/conversations.jsonl`` of DachengLi1/LongChat, 30 conversations, a file of the user.
Metric: whether the answer contains the topic after both are normalised (lower case, no articles or punctuation); known
difference: upstream asks GPT-3.5 instead, which also takes synonyms.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from longlens.errors import UserError
from longlens.tasks.base import Sample, Task, draws
from longlens.tasks.data import DataFile
from longlens.tasks.distractors import distractors
from longlens.tasks.fitting import Draft, Plan, Tokens

HEADER = (
    "Below is a record of our previous conversation on {count} different topics. You are the ASSISTANT, and I am the "
    "USER. At the beginning of each topic, the USER will say 'I would like to discuss the topic of <TOPIC>'. Memorize "
    "each <TOPIC>. At the end of the record, I will ask you to retrieve the first topic. Now the record start. "
)
QUESTION = (
    " Now the record ends. What is the first topic(s) we discussed? Only give me the topic name. Do not summarize "
    "yourself."
)
# utils.py, test_topics_one_sample, for MPT-StoryWriter
BASE_PREFIX = "\n ASSISTANT: The first topic is"
"""An answer prefix for base models: ``get_task("longeval_topics", answer_prefix=BASE_PREFIX)``."""
CONVERSATIONS = DataFile(
    names=("conversations.jsonl",),
    source="github.com/DachengLi1/LongChat, longeval/evaluation/topics/conversations.jsonl",
    schema="a line a conversation, with the texts topic and conversation",
)


@dataclass(frozen=True, kw_only=True)
class LongEvalTopics(Task):
    """LongEval's topics.

    Attributes:
        name: Of the task.
        topics: So many conversations, whatever their tokens (upstream: 5, 10, 15, 20, 25); as many as the length holds
            unless given.
        answer_prefix: What the model continues; upstream has none for chat models. A base model needs one, such as
            `BASE_PREFIX`.
        data_dir: The folder that has the conversations.
    """

    name: str = "longeval_topics"
    topics: int | None = None
    answer_prefix: str = ""
    data_dir: str | os.PathLike[str] | None = None

    suite = "longeval"
    metric = "accuracy"
    max_new_tokens = 50  # utils.py, test_topics_one_sample: max_new_tokens=50
    default_samples = 50  # generate_testcases_configs.yaml: num_test_samples: 50

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.topics is not None and self.topics < 1:
            raise UserError(f"topics={self.topics}; expected at least 1")

    @cached_property
    def data(self) -> tuple[Sequence[tuple[str, str]], dict[str, str]]:
        """Topics and conversations, and what describes the file.

        Raises:
            UserError: It is missing, has another schema, or too few conversations.
        """
        found, described = CONVERSATIONS.rows(self.name, self.data_dir)
        name = described["file"]
        rows = [
            (CONVERSATIONS.get(row, "topic", str, name), CONVERSATIONS.get(row, "conversation", str, name))
            for row in found
        ]
        if len(rows) < (self.topics or 1):
            raise UserError(f"{self.name}: {name} has {len(rows)} conversations; expected at least {self.topics or 1}")
        return rows, described

    @property
    def unit_tokens(self) -> int:
        """A conversation, at most the longest one; the header's count can grow by a digit."""
        return 1 + max(len(text.encode()) for _, text in self.data[0])

    def plan(self, *, length: int | None, seed: int, index: int, tokens: Tokens) -> Plan:
        """Draws the conversations."""
        return _Topics(self, (self.name, seed, index))

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """Whether the topic is in the answer."""
        from longlens.tasks import metrics

        return {"accuracy": metrics.substring_exact_match(prediction, sample.answers)}


class _Topics(Plan):
    def __init__(self, task: LongEvalTopics, key: tuple[str, int, int]) -> None:
        self._task, self._key = task, key
        rows, self._described = task.data
        self._rows = draws(*key, "conversations").sample(list(rows), len(rows))
        self.minimum = task.topics or 1
        self.maximum = task.topics or len(rows)

    def unit(self, index: int) -> str:
        return self._rows[index][1]

    def draft(self, units: int) -> Draft:
        header = HEADER.format(count=units)
        topic, first = self._rows[0]
        others = [other for other, _ in self._rows[1:units] or self._rows]
        at = first.lower().find(topic.lower()) if len(first.lower()) == len(first) else first.find(topic)
        return Draft(
            prompt=header + "".join(text for _, text in self._rows[:units]) + QUESTION,
            answer_prefix=self._task.answer_prefix,
            answers=[topic],
            answer_spans=[(len(header) + at, len(header) + at + len(topic))] if at >= 0 else [],
            metadata={
                "depths": [0.0],
                "topics": [topic for topic, _ in self._rows[:units]],
                "distractors": distractors(others, [topic], draws(*self._key, "distractors")),
                "data": self._described,
            },
        )
