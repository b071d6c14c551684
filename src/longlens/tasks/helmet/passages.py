"""Base class of HELMET's RAG and re-ranking tasks: questions about the passages of large files."""

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

QUESTIONS = 100  # rag.yaml, rerank.yaml: max_test_samples: 100; data.py draws 100 keys and keeps all their rows
Key = Callable[[dict[str, Any], str], "str | None"]
"""``key(row, place)``: the question of a row, or None for a row that is skipped; errors contain the place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PassageQuestion:
    """A row: a question about passages.

    Attributes:
        question: The question.
        passages: The passages as shown in the prompt.
        shown: The answer as shown in a demonstration.
        answers: All right answers.
        metadata: Metadata of the sample.
    """

    question: str
    passages: Sequence[str]
    shown: str
    answers: Sequence[str]
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PassageTask(FolderTask):
    """A question about passages, which HELMET's files contain for each length; a sample is a row of the length's file.

    The data directory is HELMET's, or the subdirectory that contains the files.

    Attributes:
        passages: Number of passages, whatever their tokens; by default the benchmark's number for the length.
        shots: Number of demonstrations.
        sizes: Number of passages by nominal length.
        instruction: Beginning of the prompt.
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
    overlong = "context-only"  # model_utils.py, tokenize: the end of the context is removed
    unit_tokens = 0  # a sample is one unit

    def __post_init__(self) -> None:
        """Checks the values."""
        check_least(self, passages=1, shots=0)

    @abstractmethod
    def file(self, passages: int) -> DataFile:
        """The file of questions with the given number of passages each."""

    @property
    @abstractmethod
    def shown_file(self) -> DataFile:
        """The file of demonstrations."""

    def files(self, lengths: Sequence[int] = ()) -> tuple[DataFile, ...]:
        """The files of questions for each length (by default for the shortest one), and of demonstrations."""
        fitting = [
            max(nominal for nominal in self.sizes if nominal <= one) for one in lengths if one >= min(self.sizes)
        ]
        counts = [self.passages] if self.passages else [self.sizes[one] for one in fitting or [min(self.sizes)]]
        return (*map(self.file, dict.fromkeys(counts)), *([self.shown_file] if self.shots else []))

    @abstractmethod
    def key(self, file: DataFile, row: Mapping[str, Any], place: str) -> str | None:
        """The question of a row; None for a row that is skipped."""

    @abstractmethod
    def read(self, file: DataFile, row: Mapping[str, Any], place: str) -> PassageQuestion:
        """Parses and checks a row."""

    def evidence(self, asked: PassageQuestion, context: str) -> list[tuple[int, int]]:
        """Spans of answers in the context."""
        return []

    def plan(self, *, length: int | None, seed: int, index: int, tokens: TokenCounter) -> Plan:
        """A fixed plan of the row with this index."""
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
    """The order in which samples use the rows; a question has a row for each depth of its right passage.

    Questions are in random order. The first `QUESTIONS` samples use as many questions, each at another depth than the
    one before; the next ones repeat them until all their rows are used, which is HELMET's set. Then others follow.

    Args:
        keys: The question of each row.
        rng: Random number generator seeded only with the seed, so that the order does not depend on the number of
            samples.
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
    """Rows of demonstrations, which have different questions, none of them the question that is asked.

    They depend only on the question, as in HELMET: the first ones of the other rows, shuffled with
    ``sha256(asked) % 2**31`` as a seed.

    Raises:
        UserError: There are too few other questions.
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
            f"{task}: `shots={shots}`, but the demonstrations are of {len(chosen)} other questions: pass "
            f"`shots={len(chosen)}` or less"
        )
    return list(chosen.values())


@dataclass(frozen=True, slots=True)
class PassageFile:
    """JSON Lines of passages. Files may have gigabytes, so only keys are stored and a row is read when it is used.

    Attributes:
        file: Definition of the file.
        path: Its path.
        described: Its name and sha256.
        starts: Offset in bytes of each row that is not skipped.
        numbers: Line number of each of them, from 1.
        keys: Question of each of them.
    """

    file: DataFile
    path: Path
    described: dict[str, str]
    starts: Sequence[int]
    numbers: Sequence[int]
    keys: Sequence[str]

    def place(self, index: int) -> str:
        """Position of a row, for messages."""
        return f"{self.described['file']}, line {self.numbers[index]}"

    def row(self, index: int) -> dict[str, Any]:
        """Reads a row."""
        start, place = self.starts[index], self.place(index)
        with system_errors(self.path), self.path.open("rb") as stream:
            stream.seek(start)
            text = utf8(stream.readline(), place, start)
        row: dict[str, Any] = parse_json(text, place, self.file.expected)  # an object when its key was read
        return row


def open_passages(file: DataFile, task: str, folder: str | os.PathLike[str] | None, key: Key) -> PassageFile:
    """Opens a file and reads its keys; every line is parsed, but only keys are stored.

    Raises:
        UserError: The file is missing or invalid, or all its rows are skipped.
    """
    found = file.find(task, folder)
    name = found.described["file"]
    starts, numbers, keys = [], [], []
    for line in read_lines(found.path, step=file.expected):
        place = f"{name}, line {line.number}"
        if not isinstance(line.value, dict):
            raise file.wrong(place, f"a {type(line.value).__name__} instead of an object")
        wanted = key(line.value, place)
        if wanted is not None:
            starts.append(line.start)
            numbers.append(line.number)
            keys.append(wanted)
    if not keys:
        raise file.wrong(shown(found.path), "no rows")
    return PassageFile(file, found.path, found.described, starts, numbers, keys)
