"""LongEval's lines: recall the number in one of many lines.

Blog: Li et al., How Long Can Open-Source LLMs Truly Promise on Context Length?, lmsys.org, June 2023. Prompt and
metric: ``longeval/utils.py`` of DachengLi1/LongChat at 4b5faa5, Apache-2.0 (``generate_lines_testcases``,
``test_lines_one_sample``). Metric: whether the last integer of the answer is the line's. Known differences: ids of
LRT-NL are never the same twice, at any number of lines (upstream draws adjectives without replacement and fails beyond
about 900); ids of LRT-ABCindex are 6 letters for the first 46,656 lines and 7 from there on (upstream writes all with 7
then); the test files that upstream ships were drawn with an older word list. The paper of LongPPL, section 4: "For
LongEval, we use 1350 lines as the prompt, which is approximately 32k tokens": task ``longeval_lines_1350``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, count, islice, product
from random import Random

from longlens.errors import UserError
from longlens.tasks.base import Sample, Task, draws
from longlens.tasks.distractors import distractors
from longlens.tasks.fitting import Draft, Plan, Tokens
from longlens.tasks.layout import starts_of
from longlens.tasks.words import distinct, longest, uuids, word_list

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
    return distinct(uuids, rng)


def _adjective_nouns(rng: Random) -> Iterator[str]:
    """Each adjective once, with a noun that was not there before; then the same again in other orders."""
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
    "LRT-NL": (_adjective_nouns, lambda: longest("adjective", "noun")),
}
"""How the lines are named, by upstream's ``line_idx_opt``: what draws the names, and bytes of the longest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LongEvalLines(Task):
    """LongEval's lines.

    Attributes:
        name: Of the task.
        ids: A key of `IDS`.
        lines: So many lines, whatever their tokens; as many as the length holds unless given.
        answer_prefix: What the model continues, ``{line}`` being the id that is asked for; upstream has none for chat
            models. A base model needs one, such as `BASE_PREFIX`, or it does not know that an answer is due.
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
            raise UserError(f"ids={self.ids!r}; expected one of {', '.join(IDS)}")
        if self.lines is not None and self.lines < 1:
            raise UserError(f"lines={self.lines}; expected at least 1")

    @property
    def unit_tokens(self) -> int:
        """A line."""
        return len(_line("", "50000")) + IDS[self.ids][1]()

    def plan(self, *, length: int | None, seed: int, index: int, tokens: Tokens) -> Plan:
        """Draws ids and numbers."""
        return _Lines(self, (self.name, seed, index))

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """Whether the last integer is the right one."""
        from longlens.tasks import metrics

        return {"accuracy": float(metrics.last_integer(prediction) == int(sample.answers[0]))}

    def target(self, sample: Sample) -> str | None:
        """The number; after a prefix that ends like the lines do before theirs, in their angle brackets."""
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
                "distractors": distractors(
                    [other for _, other in pairs], [number], draws(*self._key, "distractors"), _number
                ),
            },
        )
