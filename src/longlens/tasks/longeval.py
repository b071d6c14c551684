"""Builds LongEval: recall the number in one of many lines, or the topic of the first of many conversations.

Blog: Li et al., How Long Can Open-Source LLMs Truly Promise on Context Length?, lmsys.org, June 2023. Prompts and
metrics: ``longeval/utils.py`` of DachengLi1/LongChat at 4b5faa5, Apache-2.0.

Lines (``generate_lines_testcases``, ``test_lines_one_sample``): scored by whether the last integer of the answer is the
line's. Known differences: ids of LRT-NL are unique at any number of lines (upstream draws adjectives without
replacement and fails beyond about 900); ids of LRT-ABCindex have 6 letters for the first 46,656 lines and 7 for the
others (upstream then writes all with 7); the test files that upstream ships were drawn with an older word list. The
paper of LongPPL, section 4: "For LongEval, we use 1350 lines as the prompt, which is approximately 32k tokens": task
``longeval_lines_1350``.

Topics (``generate_topics_testcases``, ``test_topics_one_sample``): ``longeval/evaluation/topics/conversations.jsonl``,
30 conversations, a file of the user; scored by whether the answer contains the topic after both are normalized (lower
case, no articles or punctuation). Known difference: upstream asks GPT-3.5 instead, which also accepts synonyms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, count, islice, product
from random import Random

from longlens.errors import UserError
from longlens.tasks import metrics
from longlens.tasks.base import Sample, Task, check_least, draws
from longlens.tasks.data import DataFile, FolderTask
from longlens.tasks.fitting import Draft, Plan, TokenCounter
from longlens.tasks.synthetic import distinct, distractors, draw_uuid, longest_word, starts_of, word_list

HEADER = (
    "Below is a record of lines I want you to remember. Each line begins with 'line <line index>' and contains a "
    "'<REGISTER_CONTENT>' at the end of the line as a numerical value. For each line index, memorize its "
    "corresponding <REGISTER_CONTENT>. At the end of the record, I will ask you to retrieve the corresponding "
    "<REGISTER_CONTENT> of a certain line index. Now the record start:\n\n"
)
QUESTION = "\nNow the record is over. Tell me what is the <REGISTER_CONTENT> in line {line}? I need the number."
PAPER_LINES = 1350
# utils.py, test_lines_one_sample, for MPT-StoryWriter; there it follows the question without a line end
BASE_PREFIX = "\nLine <{line}>: <REGISTER_CONTENT> is"
"""An answer prefix for base models: ``get_task("longeval_lines", answer_prefix=BASE_PREFIX)``."""


def _numbered(rng: Random) -> Iterator[str]:
    return map(str, count(1))


def _letters(rng: Random) -> Iterator[str]:
    return chain.from_iterable(map("".join, product("ABCDEF", repeat=width)) for width in count(6))


def _uuids(rng: Random) -> Iterator[str]:
    return distinct(draw_uuid, rng)


def _adjective_nouns(rng: Random) -> Iterator[str]:
    """Combines each adjective with a noun so that the pair is new; then repeats this in other orders."""
    endless = zip(_rounds(word_list("adjective"), rng), _rounds(word_list("noun"), rng), strict=True)
    seen: set[str] = set()
    for adjective, noun in endless:
        if (line := f"{adjective}-{noun}") not in seen:
            seen.add(line)
            yield line


def _rounds(every: tuple[str, ...], rng: Random) -> Iterator[str]:
    mine = Random(rng.getrandbits(64))
    while True:
        yield from mine.sample(every, len(every))


IDS: dict[str, tuple[Callable[[Random], Iterator[str]], Callable[[], int]]] = {
    "LRT": (_numbered, lambda: 12),
    "LRT-ABCindex": (_letters, lambda: 12),
    "LRT-UUID": (_uuids, lambda: 36),
    "LRT-NL": (_adjective_nouns, lambda: longest_word("adjective", "noun")),
}
"""Kinds of line ids, by upstream's ``line_idx_opt``: the function that draws ids, and the bytes of the longest id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LongEvalLines(Task):
    """LongEval's lines.

    Attributes:
        name: Name of the task.
        ids: A key of `IDS`.
        lines: Number of lines, whatever their tokens; by default as many as fit into the length.
        answer_prefix: The text that the model continues, in which ``{line}`` is the requested id; upstream has none for
            chat models. A base model needs one, such as `BASE_PREFIX`, or it does not know that an answer is expected.
    """

    name: str = "longeval_lines"
    ids: str = "LRT-NL"
    lines: int | None = None
    answer_prefix: str = ""

    suite = "longeval"
    metric = "accuracy"
    max_new_tokens = 100  # utils.py, test_lines_one_sample: max_new_tokens=100
    default_samples = 50  # generate_testcases_configs.yaml: num_test_samples: 50

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.ids not in IDS:
            raise UserError(f"`ids={self.ids}`; expected one of {', '.join(IDS)}")
        check_least(self, lines=1)

    @property
    def unit_tokens(self) -> int:
        """Maximum size of a line."""
        return len(_line("", "50000")) + IDS[self.ids][1]()

    def plan(self, *, length: int | None, seed: int, index: int, tokens: TokenCounter) -> Plan:
        """A plan with random ids and numbers."""
        return _Lines(self, (self.name, seed, index))

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """Whether the last integer is the right one."""
        return {"accuracy": float(metrics.last_integer(prediction) == int(sample.answers[0]))}

    def target(self, sample: Sample) -> str | None:
        """The number, in angle brackets after a prefix that ends like the lines do before their numbers."""
        number = sample.answers[0]
        if sample.answer_prefix.endswith("REGISTER_CONTENT> is"):
            return f" <{number}>"
        return Task.target(self, sample)


def _number(rng: Random) -> str:
    return str(rng.randint(1, 50000))


def _line(line: str, number: str) -> str:
    return f"line {line}: REGISTER_CONTENT is <{number}>\n"


class _Lines(Plan):
    def __init__(self, task: LongEvalLines, key: tuple[str, int, int]) -> None:
        self._task, self._key = task, key
        self._ids = IDS[task.ids][0](draws(*key, "ids"))
        self._numbers = draws(*key, "numbers")
        self._drawn: list[tuple[str, str]] = []
        self.minimum = task.lines or 1
        if task.lines is not None:
            self.maximum = task.lines

    def _draw(self, lines: int) -> None:
        more = islice(self._ids, max(0, lines - len(self._drawn)))
        self._drawn += [(line, _number(self._numbers)) for line in more]

    def unit(self, index: int) -> str:
        self._draw(index + 1)
        return _line(*self._drawn[index])

    def draft(self, units: int) -> Draft:
        self._draw(units)
        pairs = self._drawn[:units]
        asked = draws(*self._key, "asked").randrange(units)
        line, number = pairs[asked]
        lines = [_line(*pair) for pair in pairs]
        rng = draws(*self._key, "distractors")
        end = len(HEADER) + starts_of(lines, "")[asked] + len(lines[asked]) - len(">\n")
        return Draft(
            prompt=HEADER + "".join(lines) + QUESTION.format(line=line),
            answer_prefix=self._task.answer_prefix.replace("{line}", line),
            answers=[number],
            answer_spans=[(end - len(number), end)],
            metadata={
                "depths": [round(100 * asked / max(1, units - 1), 2)],
                "lines": units,
                "asked": line,
            }
            | distractors([other for _, other in pairs], [number], rng, distinct(_number, rng)),
        )


TOPICS_HEADER = (
    "Below is a record of our previous conversation on {count} different topics. You are the ASSISTANT, and I am the "
    "USER. At the beginning of each topic, the USER will say 'I would like to discuss the topic of <TOPIC>'. Memorize "
    "each <TOPIC>. At the end of the record, I will ask you to retrieve the first topic. Now the record start. "
)
TOPICS_QUESTION = (
    " Now the record ends. What is the first topic(s) we discussed? Only give me the topic name. Do not summarize "
    "yourself."
)
# utils.py, test_topics_one_sample, for MPT-StoryWriter
TOPICS_BASE_PREFIX = "\n ASSISTANT: The first topic is"
"""An answer prefix for base models: ``get_task("longeval_topics", answer_prefix=TOPICS_BASE_PREFIX)``."""
CONVERSATIONS = DataFile(
    names=("conversations.jsonl",),
    source="github.com/DachengLi1/LongChat, longeval/evaluation/topics/conversations.jsonl",
    schema="one line per conversation, with the strings topic and conversation",
)


@dataclass(frozen=True, kw_only=True)
class LongEvalTopics(FolderTask):
    """LongEval's topics.

    Attributes:
        name: Name of the task.
        topics: Number of conversations, whatever their tokens (upstream: 5, 10, 15, 20, 25); by default as many as fit
            into the length.
        answer_prefix: The text that the model continues; upstream has none for chat models. A base model needs one,
            such as `TOPICS_BASE_PREFIX`.
    """

    name: str = "longeval_topics"
    topics: int | None = None
    answer_prefix: str = ""

    suite = "longeval"
    metric = "accuracy"
    max_new_tokens = 50  # utils.py, test_topics_one_sample: max_new_tokens=50
    default_samples = 50  # generate_testcases_configs.yaml: num_test_samples: 50

    def __post_init__(self) -> None:
        """Checks the values."""
        check_least(self, topics=1)

    def files(self, lengths: Sequence[int] = ()) -> tuple[DataFile, ...]:
        """The file of conversations."""
        return (CONVERSATIONS,)

    @cached_property
    def data(self) -> tuple[Sequence[tuple[str, str]], dict[str, str]]:
        """Topics and conversations, and the description of the file.

        Raises:
            UserError: The file is missing, has another schema, or has too few conversations.
        """
        found, described = CONVERSATIONS.rows(self.name, self.data_dir)
        name, get = described["file"], CONVERSATIONS.get
        rows = [(get(row, "topic", str, name), get(row, "conversation", str, name)) for row in found]
        if len(rows) < (self.topics or 1):
            raise UserError(f"{self.name}: {name} has {len(rows)} conversations; expected at least {self.topics or 1}")
        return rows, described

    @property
    def unit_tokens(self) -> int:
        """Maximum size of a conversation: that of the longest one, plus one because the header's count can grow."""
        return 1 + max(len(text.encode()) for _, text in self.data[0])

    def plan(self, *, length: int | None, seed: int, index: int, tokens: TokenCounter) -> Plan:
        """A plan with random conversations."""
        return _Topics(self, (self.name, seed, index))

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """Whether the topic is in the answer."""
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
        header = TOPICS_HEADER.format(count=units)
        topic, first = self._rows[0]
        inside, outside = ([other for other, _ in rows] for rows in (self._rows[:units], self._rows[units:]))
        at = first.lower().find(topic.lower()) if len(first.lower()) == len(first) else first.find(topic)
        return Draft(
            prompt=header + "".join(text for _, text in self._rows[:units]) + TOPICS_QUESTION,
            answer_prefix=self._task.answer_prefix,
            answers=[topic],
            answer_spans=[(len(header) + at, len(header) + at + len(topic))] if at >= 0 else [],
            metadata={
                "depths": [0.0],
                "topics": inside,
                "data": self._described,
            }
            | distractors(inside, [topic], draws(*self._key, "distractors"), outside),
        )
