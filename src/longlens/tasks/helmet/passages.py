"""What HELMET's RAG and re-ranking share: questions on the passages of large files."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from longlens.errors import UserError, shown, system_errors, utf8
from longlens.files import parse_json
from longlens.runs.jsonl import read_lines
from longlens.tasks.base import check_least, draws
from longlens.tasks.data import DataFile, FolderTask
from longlens.tasks.fitting import Draft, Plan, TokenCounter, Whole
from longlens.tasks.helmet.base import nominal_length, split_prefix

QUESTIONS = 100  # rag.yaml, rerank.yaml: max_test_samples: 100; data.py draws so many keys and keeps all their rows
Key = Callable[[dict[str, Any], str], "str | None"]
"""``key(row, place)``: which question a row is of, or None for a row that does not count; errors name the place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PassageQuestion:
    """A row: a question on passages.

    Attributes:
        question: What is asked.
        passages: As the prompt shows them.
        shown: The answer, as a demonstration gives it.
        answers: All right ones.
        metadata: What a sample says of it.
    """

    question: str
    passages: Sequence[str]
    shown: str
    answers: Sequence[str]
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PassageTask(FolderTask):
    """A question on passages, which HELMET's files hold ready for each length; a sample is a row of the file for its.

    The folder of the data is HELMET's, or the one in it that has the files.

    Attributes:
        passages: Number of passages, whatever their tokens; by default the benchmark's number for the length.
        shots: Number of demonstrations.
        sizes: Passages by nominal length.
        instruction: What the prompt begins with.
        asks: Text before a question.
        prefix: Text before an answer.
    """

    name: str
    passages: int | None = None
    shots: int = 2  # rag.yaml, rerank.yaml: shots: 2

    sizes: ClassVar[Mapping[int, int]]
    instruction: ClassVar[str]
    asks: ClassVar[str]
    prefix: ClassVar[str]

    suite = "helmet"
    template = "none"  # rag.yaml, rerank.yaml: use_chat_template: false
    stop = ("\n",)  # rag.yaml, rerank.yaml: stop_new_line: true; model_utils.py: ["\n", "\n\n"]
    fills = False
    overlong = "context-only"  # model_utils.py, tokenize: the context loses its end
    unit_tokens = 0  # a sample is one unit

    def __post_init__(self) -> None:
        """Checks the values."""
        check_least(self, passages=1, shots=0)

    @abstractmethod
    def file(self, passages: int) -> DataFile:
        """The questions with the given number of passages each."""

    @property
    @abstractmethod
    def shown_file(self) -> DataFile:
        """The demonstrations."""

    def files(self, lengths: Sequence[int] = ()) -> tuple[DataFile, ...]:
        """The questions of each length (of the shortest one where none is given), and the demonstrations."""
        fitting = [
            max(nominal for nominal in self.sizes if nominal <= one) for one in lengths if one >= min(self.sizes)
        ]
        counts = [self.passages] if self.passages else [self.sizes[one] for one in fitting or [min(self.sizes)]]
        return (*map(self.file, dict.fromkeys(counts)), *([self.shown_file] if self.shots else []))

    @abstractmethod
    def key(self, file: DataFile, row: Mapping[str, Any], place: str) -> str | None:
        """Which question a row is of; None for a row that does not count."""

    @abstractmethod
    def read(self, file: DataFile, row: Mapping[str, Any], place: str) -> PassageQuestion:
        """A row, checked."""

    def evidence(self, asked: PassageQuestion, context: str) -> list[tuple[int, int]]:
        """Where answers are in the context."""
        return []

    def plan(self, *, length: int | None, seed: int, index: int, tokens: TokenCounter) -> Plan:
        """Takes the row whose turn it is."""
        nominal = None if self.passages else nominal_length(self.name, length, self.sizes, "passages")
        lines = self._lines(self.file(self.passages or self.sizes[nominal or 0]))
        order = sample_order(lines.keys, draws(self.name, seed, 0, "questions"))
        self.check_index(index, len(order), lines.described["file"], "rows")
        row = order[index]
        key = lines.keys[row]
        made: dict[str, Any] = {"question": key, "nominal_length": nominal, "data": lines.described}
        shown: list[PassageQuestion] = []
        if self.shots:
            source = self._lines(self.shown_file)
            rows = demonstrations(source.keys, key, self.shots, self.name)
            shown = [self._read(source, one) for one in rows]
            made["demonstrations"] = {"questions": [source.keys[one] for one in rows], **source.described}
        return Whole(self._draft(self._read(lines, row), shown, made))

    @cached_property
    def _opened(self) -> dict[DataFile, PassageFile]:
        return {}

    def _lines(self, file: DataFile) -> PassageFile:
        if file not in self._opened:
            self._opened[file] = open_passages(file, self.name, self.data_dir, lambda row, at: self.key(file, row, at))
        return self._opened[file]

    def _read(self, lines: PassageFile, row: int) -> PassageQuestion:
        return self.read(lines.file, lines.row(row), lines.place(row))

    def _draft(self, asked: PassageQuestion, shown: Sequence[PassageQuestion], made: Mapping[str, Any]) -> Draft:
        examples = [f"{self._question(one)}{self.prefix} {one.shown}\n\n" for one in shown]
        before = self.instruction + "".join(examples)
        prompt, prefix = split_prefix(before + self._question(asked), self.prefix)
        context = "\n\n".join(asked.passages)
        start = len(before)
        return Draft(
            prompt=prompt,
            answer_prefix=prefix,
            answers=asked.answers,
            answer_spans=[(start + first, start + end) for first, end in self.evidence(asked, context)],
            context_span=(start, start + len(context)),
            metadata={"passages": len(asked.passages), **asked.metadata, **made},
        )

    def _question(self, asked: PassageQuestion) -> str:
        return "\n\n".join([*asked.passages, self.asks + asked.question])


def sample_order(keys: Sequence[str], rng: Random) -> list[int]:
    """Rows in the order in which samples take them; a question has a row for each depth of its right passage.

    Questions are in random order. The first `QUESTIONS` samples ask as many questions, each with another depth than the
    one before; the next ones ask them again until all their rows are used, which is HELMET's set; then come others.

    Args:
        keys: Which question each row is of.
        rng: Random number generator seeded with the seed alone, so that the order is the same however many samples are
            asked for.
    """
    rows: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    questions = sorted(rows)
    rng.shuffle(questions)
    order: list[int] = []
    for first in range(0, len(questions), QUESTIONS):
        block = [rows[question] for question in questions[first : first + QUESTIONS]]
        for turn in range(max(map(len, block))):
            order += [own[(turn + place) % len(own)] for place, own in enumerate(block) if turn < len(own)]
    return order


def demonstrations(keys: Sequence[str], asked: str, shots: int, task: str) -> list[int]:
    """Rows that show how to answer: of different questions, none of them the one that is asked.

    They depend on the asked question alone, as in HELMET: the first ones of the other rows, shuffled with
    ``sha256(asked) % 2**31`` for a seed.

    Raises:
        UserError: There are too few.
    """
    rows = [row for row, key in enumerate(keys) if key != asked]
    Random(int(hashlib.sha256(asked.encode()).hexdigest(), 16) % 2**31).shuffle(rows)
    chosen: dict[str, int] = {}
    for row in rows:
        if len(chosen) == shots:
            break
        chosen.setdefault(keys[row], row)
    if len(chosen) < shots:
        raise UserError(
            f"{task}: `shots={shots}`, but the demonstrations are of {len(chosen)} other questions: give "
            f"`shots={len(chosen)}` at most"
        )
    return list(chosen.values())


@dataclass(frozen=True, slots=True)
class PassageFile:
    """JSON Lines of passages, of which a file may have gigabytes: keys are kept, a row is read when it is wanted.

    Attributes:
        file: What it should be.
        path: Where it is.
        described: Its name and sha256.
        starts: First byte of each row that counts.
        numbers: Its line, from 1.
        keys: Which question it is of.
    """

    file: DataFile
    path: Path
    described: dict[str, str]
    starts: Sequence[int]
    numbers: Sequence[int]
    keys: Sequence[str]

    def place(self, index: int) -> str:
        """What messages call a row."""
        return f"{self.described['file']}, line {self.numbers[index]}"

    def row(self, index: int) -> dict[str, Any]:
        """A row."""
        start, place = self.starts[index], self.place(index)
        with system_errors(self.path), self.path.open("rb") as stream:
            stream.seek(start)
            text = utf8(stream.readline(), place, start)
        row: dict[str, Any] = parse_json(text, place, self.file.expected)  # an object when its key was read
        return row


def open_passages(file: DataFile, task: str, folder: str | os.PathLike[str] | None, key: Key) -> PassageFile:
    """The file's keys; every line is parsed, none is kept.

    Raises:
        UserError: The file is missing or broken, or has no row that counts.
    """
    found = file.find(task, folder)
    name = found.described["file"]
    starts, numbers, keys = [], [], []
    for line in read_lines(found.path, step=file.expected):
        place = f"{name}, line {line.number}"
        if not isinstance(line.value, dict):
            raise file.wrong(place, f"a {type(line.value).__name__} where an object should be")
        wanted = key(line.value, place)
        if wanted is not None:
            starts.append(line.start)
            numbers.append(line.number)
            keys.append(wanted)
    if not keys:
        raise file.wrong(shown(found.path), "no rows")
    return PassageFile(file, found.path, found.described, starts, numbers, keys)
