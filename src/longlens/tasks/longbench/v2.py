"""Builds LongBench v2: 503 questions with four choices, on contexts from 8k to 2M words.

Paper: Bai et al., LongBench v2: Towards Deeper Understanding and Reasoning on Realistic Long-context Multitasks, arXiv
2412.15204. Prompts: ``prompts/0shot.txt`` and ``0shot_no_context.txt`` of THUDM/LongBench at 2e00731, MIT; answer
tokens and parsing of an answer: ``pred.py``. Data: ``data.json`` of the Hub dataset zai-org/LongBench-v2 (formerly
THUDM/LongBench-v2), whose card states its license. Sample i is row i of the file. Known differences:

- Upstream samples answers at temperature 0.1; longlens decodes greedily, so that runs are reproducible.
- ``length`` is the budget for prompt and answer; upstream's is for the prompt only.
- An empty reply is wrong here; upstream excludes its sample from the accuracy.
- Chain of thought (``--cot``) is not included: it calls the model twice, the second time with its own first reply.
  ``--rag`` is not included: it reads chunks that the dataset does not contain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longlens.errors import UserError
from longlens.tasks import metrics
from longlens.tasks.base import Sample
from longlens.tasks.data import DataFile, HubTask
from longlens.tasks.fitting import Draft
from longlens.tasks.longbench.v1 import group_scores
from longlens.tasks.rows import LETTERS, DataRow, RowsTask, other_letters

_QUESTION = "What is the correct answer to this question: $Q$\n"
_CHOICES = "Choices:\n(A) $C_A$\n(B) $C_B$\n(C) $C_C$\n(D) $C_D$\n\n"
_FORMAT = 'Format your response as follows: "The correct answer is (insert answer here)".'
DOCUMENT = "$DOC$"
PROMPT = (
    f"Please read the following text and answer the question below.\n\n<text>\n{DOCUMENT}\n</text>\n\n"
    f"{_QUESTION}{_CHOICES}{_FORMAT}"
)
"""prompts/0shot.txt"""
PROMPT_WITHOUT_CONTEXT = f"{_QUESTION}{_CHOICES}What is the single, most likely answer choice? {_FORMAT}"
"""prompts/0shot_no_context.txt"""
STATEMENT = "The correct answer is"
FILE = DataFile(
    names=("longbench_v2.json", "data.json", "longbench_v2.jsonl", "longbench_v2.parquet"),
    source="data.json of the Hub dataset zai-org/LongBench-v2",
    schema="a list of questions, with the strings _id, domain, sub_domain, difficulty (easy or hard), length (short, "
    "medium or long), question, choice_A to choice_D, answer (A to D) and context",
    hub="zai-org/LongBench-v2@data.json",
)

DIFFICULTIES = ("easy", "hard")
LENGTHS = ("short", "medium", "long")
"""v2's difficulties and lengths (paper, section 3: below 32k words, up to 128k, above)."""


@dataclass(frozen=True, kw_only=True)
class LongBenchV2(HubTask, RowsTask):
    r"""LongBench v2.

    Attributes:
        context: Whether the prompt contains the text; without it (upstream's ``--no_context``) the task measures what a
            model knows from training.
        answer_prefix: The text that the model continues; upstream has none for chat models. For base models, use for
            example ``"\n\nThe correct answer is"``.
    """

    name: str = "longbench_v2"
    context: bool = True
    answer_prefix: str = ""

    suite = "longbench_v2"
    metric = "accuracy"
    max_new_tokens = 128  # pred.py, get_pred: max_new_tokens=128
    default_samples = 503  # README: "503 challenging multiple-choice questions"
    # template is "prefill", of the empty prefix: pred.py, query_llm: messages=[{"role": "user", "content": prompt}]
    # overlong is "middle": pred.py, query_llm: input_ids[:max_len//2] + input_ids[-max_len//2:]

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.answer_prefix != self.answer_prefix.rstrip():
            raise UserError(f"`answer_prefix` is {self.answer_prefix!r}; expected one that does not end in whitespace")

    @property
    def file(self) -> DataFile:
        """The file of questions."""
        return FILE

    def draft(self, row: DataRow, key: tuple[int, int]) -> Draft:
        """The draft of the row's prompt."""
        answer = _one_of(row, "answer", LETTERS)
        document = self.text(row, "context").strip()
        fill = _Filler(row)
        start = PROMPT.index(DOCUMENT)
        return Draft(
            prompt=fill(PROMPT.replace(DOCUMENT, document) if self.context else PROMPT_WITHOUT_CONTEXT),
            answer_prefix=self.answer_prefix,
            answers=[answer],
            answer_spans=[],
            context_span=(start, start + len(fill(document))) if self.context else None,
            metadata={
                "row_id": self.text(row, "_id"),
                "domain": self.text(row, "domain"),
                "sub_domain": self.text(row, "sub_domain"),
                "difficulty": _one_of(row, "difficulty", DIFFICULTIES),
                "length_label": _one_of(row, "length", LENGTHS),
                "distractors": other_letters(answer),
                "data": self.data[1],
            },
        )

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """Whether the letter is right; ``compensated`` is 0.25 if no letter can be parsed, as for guessing.

        The letter is parsed from answer prefix and prediction, so that a prefix may begin the statement.
        """
        letter = metrics.extract_choice(sample.answer_prefix + prediction)
        right = float(letter in sample.answers)
        # result.py: if compensated and pred["pred"] == None: acc = 0.25
        return {"accuracy": right, "compensated": 0.25 if letter is None else right}

    def target(self, sample: Sample) -> str:
        """The statement that the prompt asks for, or the rest of it after the answer prefix."""
        letter = f"({sample.answers[0]})"
        if sample.answer_prefix.endswith(STATEMENT):
            return f" {letter}"
        return f"{' ' if sample.answer_prefix else ''}{STATEMENT} {letter}"


class _Filler:
    """Inserts question and choices into a text.

    As in ``pred.py``, marks are replaced one after the other wherever they occur, including in the document. For
    example, ``$Q$`` in a LaTeX text is replaced by the question; published numbers include this.
    """

    def __init__(self, row: DataRow) -> None:
        self._marks = [("$Q$", FILE.get(row.values, "question", str, row.place).strip())]
        for letter in LETTERS:
            self._marks.append((f"$C_{letter}$", FILE.get(row.values, f"choice_{letter}", str, row.place).strip()))

    def __call__(self, text: str) -> str:
        for mark, value in self._marks:
            text = text.replace(mark, value)
        return text


def _one_of(row: DataRow, key: str, values: tuple[str, ...]) -> str:
    value = str(FILE.get(row.values, key, str, row.place))
    if value not in values:
        raise FILE.wrong(row.place, f"{key} is {value!r}")
    return value


def summarize_v2(metadata: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> dict[str, float | None]:
    """v2's accuracies in percent: ``overall``, each of `DIFFICULTIES` and `LENGTHS`; None if there is no sample.

    ``round(100 * sum(scores) / len(scores), 1)`` of each group. Source: ``result.py``.

    Args:
        metadata: Metadata of the samples, with ``difficulty`` and ``length_label``.
        scores: Scores of the same samples: their ``accuracy``, or their ``compensated``, which is upstream's option.

    Raises:
        UserError: The numbers of samples and scores differ, or are 0.
    """
    groups = {
        "overall": list(scores),
        **group_scores([str(row["difficulty"]) for row in metadata], scores),
        **group_scores([str(row["length_label"]) for row in metadata], scores),
    }
    return {
        name: round(100 * sum(groups[name]) / len(groups[name]), 1) if name in groups else None
        for name in ("overall", *DIFFICULTIES, *LENGTHS)
    }
