"""Builds InfiniteBench: twelve tasks on texts of 44k to 2M tokens: retrieval, novels, a play, code and arithmetic.

Paper: Zhang et al., InfiniteBench: Extending Long Context Evaluation Beyond 100K Tokens, arXiv 2402.13718. Prompts:
``yarn_mistral_templates`` of ``src/prompt.py``, which upstream uses for all open models; answer tokens:
``src/eval_utils.py``; scores: ``src/compute_scores.py``; all of OpenBMB/InfiniteBench at 88b3daa, MIT. Data: the Hub
dataset xinrongzhang2022/InfiniteBench, one file per task, read as published. Sample i is row i. Known differences:

- ``length`` is the budget for prompt and answer; upstream removes the middle of the prompt only, at 128k tokens.
- A row whose first number is not an integer is wrong in math_find; upstream fails there.
- The prompts for GPT-4, Claude and Kimi are not included.

Oddities of the published numbers: code_debug requires ``B.``, ``B:`` or a phrase such as ``answer is: B``, and does not
accept a bare letter; longdialogue_qa_eng compares single words in capitals with the first answer, so that a name of two
words is never found; signs of numbers are ignored; math_find and code_run have only 3 and 5 answer tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile

from longlens.tasks import metrics
from longlens.tasks.base import Sample, Task
from longlens.tasks.data import DataFile, HubTask
from longlens.tasks.fitting import Draft
from longlens.tasks.metrics.chinese import character_f1_zh
from longlens.tasks.metrics.rouge import rouge_f
from longlens.tasks.rows import LETTERS, DataRow, Subset, SubsetTask, letter_of, other_letters

RETRIEVAL, NOVEL, DIALOGUE, CODE, MATH = "retrieval", "novel", "dialogue", "code", "math"
_OPTIONS = "A. {a}\nB. {b}\nC. {c}\nD. {d}"
_MARKS = "\n:\"'.,?!{}"
"""Characters that separate words like spaces: compute_scores.py, split_retrieval_answer."""

SETS: dict[str, Subset] = {
    "passkey": Subset(
        prompt="There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I will "
        "quiz you about the important information.\n\n{context}\n\n{input}",
        prefix="\n\nThe pass key is",
        metric="accuracy",
        max_new_tokens=6,
        category=RETRIEVAL,
    ),
    "number_string": Subset(
        prompt="There is an important info hidden inside a lot of irrelevant text. Find it. I will quiz you about the "
        "important information there.\n\n{context}\n\n{input}",
        prefix="\n\nThe sequence of digits is",
        metric="accuracy",
        max_new_tokens=12,
        category=RETRIEVAL,
    ),
    "kv_retrieval": Subset(
        prompt="Extract the value corresponding to the specified key in the JSON object below.\n\n{context}\n\n{input}",
        metric="accuracy",
        max_new_tokens=50,
        category=RETRIEVAL,
    ),
    "longbook_sum_eng": Subset(
        prompt="Summarize the book below.\n\n{context}",
        prefix="\n\nSummary:",
        metric="rouge_l_sum",
        max_new_tokens=1200,
        category=NOVEL,
    ),
    "longbook_choice_eng": Subset(
        prompt=f"Read the book and answer the question.\n\n{{context}}\n\nQuestion: {{input}}\n{_OPTIONS}",
        prefix="\n\nThe letter of the correct answer is",
        metric="accuracy",
        max_new_tokens=40,
        category=NOVEL,
    ),
    "longbook_qa_eng": Subset(
        prompt="Read the book and answer the question. Be very concise in your answer.\n\n{context}\n\n"
        "Question: {input}",
        prefix="\nAnswer:",
        metric="f1",
        max_new_tokens=40,
        category=NOVEL,
    ),
    "longbook_qa_chn": Subset(
        prompt="阅读以下书籍然后回答问题。\n\n{context}\n\n问题：{input}",
        prefix="\n答案：",
        metric="f1",
        max_new_tokens=40,
        category=NOVEL,
    ),
    "longdialogue_qa_eng": Subset(
        prompt="Below is a dialogue script where one random occurrence of a character name is replaced with "
        '"$$MASK$$", and you should try to guess who that character is.\n\n{context}',
        prefix="\n\nThe name that has been replaced with $$MASK$$ is likely",
        metric="accuracy",
        max_new_tokens=40,
        category=DIALOGUE,
    ),
    "math_find": Subset(
        prompt="{wanted}\n\n{context}\n\n{input}",
        metric="accuracy",
        max_new_tokens=3,
        category=MATH,
    ),
    "math_calc": Subset(
        prompt="Let us calculate the intermediate values of an expression.\n\nExpression: 1 + 3 + 4\n"
        "Values: [1, 4, 8]\n\nExpression: 8 - 3 + 2 - 4\nValues: [8, 5, 7, 3]\n\nExpression: {context}",
        prefix="\nValues:",
        metric="accuracy",
        max_new_tokens=30000,
        category=MATH,
    ),
    "code_run": Subset(
        prompt="There is a function called {function} in the following Python code.\n\n{context}\n\n"
        "Please compute the exact value of {call}.",
        prefix=" The value of {call} is",
        metric="accuracy",
        max_new_tokens=5,
        category=CODE,
    ),
    "code_debug": Subset(
        prompt="Following is a Python code where exactly one of the functions/methods has a deliberate error that "
        f"makes it crash.\n\n{{context}}\n\nOptions:\n{_OPTIONS}",
        prefix="\n\nThe correct option is:",
        metric="accuracy",
        max_new_tokens=5,
        category=CODE,
    ),
}
"""Datasets by upstream's name."""


@dataclass(frozen=True, kw_only=True)
class InfiniteBench(HubTask, SubsetTask):
    """A task of InfiniteBench.

    Attributes:
        dataset: A key of `SETS`.
    """

    sets = SETS
    suite = "infinitebench"  # overlong is "middle": eval_yarn_mistral.py, truncate_by_tokens

    @property
    def file(self) -> DataFile:
        """The file of the task."""
        return DataFile(
            names=(f"{self.dataset}.jsonl",),
            source="the Hub dataset xinrongzhang2022/InfiniteBench",
            schema="rows with id, context, input, answer (a value or a list) and options (a list)",
            hub=f"xinrongzhang2022/InfiniteBench@{self.dataset}.jsonl",
        )

    def draft(self, row: DataRow, key: tuple[int, int]) -> Draft:
        """The draft of the row's prompt."""
        answer = row.values.get("answer")
        answers = list(answer) if isinstance(answer, list) else [answer]
        if len(answers) == 1 and isinstance(answers[0], list):  # math_calc: [[1, 2, …]] or [1, 2, …]
            answers = answers[0]
        if not answers or any(isinstance(one, bool) or not isinstance(one, (str, int, float)) for one in answers):
            raise self.file.wrong(row.place, "no answer that is a string or a number, or a list of these")
        metadata: dict[str, object] = {"row_id": row.values.get("id")}
        fields = {"input": self.text(row, "input")}
        if self.dataset in CHOICES:
            options = self.texts(row, "options")
            if len(options) != len(LETTERS):
                raise self.file.wrong(row.place, f"{len(options)} options; expected {len(LETTERS)}")
            letter = letter_of(self, row, answers[-1], options)
            fields |= dict(zip("abcd", options, strict=True))
            metadata |= {"option": options[LETTERS.index(letter)], "distractors": other_letters(letter)}
            answers = [letter]
        elif self.dataset == "code_run":
            call = self._search(r"(func_[0-9]+)\(-?[0-9]+\)", fields["input"], row)
            fields |= {"call": call[0], "function": call[1]}
        elif self.dataset == "math_find":
            wanted = self._search("The .+ of", fields["input"], row)[0].lower()[: -len(" of")]
            fields["wanted"] = f"What is {wanted} in the following list?"
        said = [one if isinstance(one, str) else json.dumps(one) for one in answers]
        return self.fill(metadata, said, context=self.text(row, "context"), **fields)

    def _search(self, pattern: str, text: str, row: DataRow) -> re.Match[str]:
        found = re.search(pattern, text)
        if found is None:
            raise self.file.wrong(row.place, f"an input without {pattern}")
        return found

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """The task's score."""
        return {self.metric: float(SCORES[self.dataset](prediction, sample.answers, sample.metadata))}

    def target(self, sample: Sample) -> str | None:
        """The answer; for math_calc the list of values."""
        if self.dataset == "math_calc":
            return f" [{', '.join(sample.answers)}]"
        if self.dataset == "longbook_qa_chn":
            return sample.answers[0] if len(sample.answers) == 1 else None
        return super().target(sample)


def _first_digits(prediction: str, answers: Sequence[str], metadata: Mapping[str, object]) -> bool:
    found = re.search("[0-9]+", prediction)
    return found is not None and found[0] == answers[0]


def _words(text: str, marks: str) -> list[str]:
    return text.translate(str.maketrans(marks, " " * len(marks))).split()


def _word(prediction: str, answers: Sequence[str], metadata: Mapping[str, object]) -> bool:
    return answers[0] in _words(prediction, _MARKS)


def _name(prediction: str, answers: Sequence[str], metadata: Mapping[str, object]) -> bool:
    return answers[0] in [word.upper() for word in _words(prediction, _MARKS)]


def _last_number(prediction: str, answers: Sequence[str], metadata: Mapping[str, object]) -> bool:
    words = _words(prediction, "\n.`'\":")
    try:
        return bool(words) and int(words[-1]) == int(answers[0])
    except ValueError:
        return False


def _first_number(prediction: str, answers: Sequence[str], metadata: Mapping[str, object]) -> bool:
    found = re.search(r"\d+\.\d+|\d+", prediction)
    if found is None:
        return False
    return float(found[0]) == float(answers[0]) and ("." in answers[0] or "." not in found[0])


def _values_in_order(prediction: str, answers: Sequence[str], metadata: Mapping[str, object]) -> float:
    given = [digits.lstrip("0") or "0" for digits in re.findall("[0-9]+", prediction)]
    right = takewhile(lambda pair: pair[0] == pair[1], zip(answers, given, strict=False))
    return sum(1 for _ in right) / len(answers)


def _after(prediction: str, phrases: Sequence[str]) -> str | None:
    """The text that starts one character after the first of these phrases that occurs; None if none occurs."""
    for phrase in phrases:
        place = prediction.find(phrase)
        if place >= 0:
            return prediction[place + len(phrase) + 1 :]
    return None


def _choice(prediction: str, answers: Sequence[str], metadata: Mapping[str, object]) -> bool:
    right, text = (str(metadata["option"]), answers[0]), prediction.strip()
    if not text:
        return False
    if text[0] in LETTERS:
        return text[0] in right
    if text in right:
        return True
    text = re.sub(" {2,}", " ", re.sub("[\n\"'.,?!{}]", " ", text))
    rest = _after(text, ("answer is:", "answer:", "answer is", "option is"))
    if rest is not None:
        return any(rest.startswith(one) for one in right if rest)
    return next((word in right for word in text.split() if word in "ABCD"), False)


def _debug(prediction: str, answers: Sequence[str], metadata: Mapping[str, object]) -> bool:
    letter, text = answers[0], prediction.strip()
    if text[:2] in (f"{letter}.", f"{letter}:"):
        return True
    text = re.sub(" {2,}", " ", re.sub("[\n`'\"*-]|Option|option", " ", text))
    rest = _after(text, ("answer is:", "is:", "answer:", "correct option is:"))
    return bool(rest) and any(str(rest).startswith(one) for one in (letter, str(metadata["option"])))


CHOICES = ("longbook_choice_eng", "code_debug")
SCORES: dict[str, Callable[[str, Sequence[str], Mapping[str, object]], float]] = {
    "passkey": _first_digits,
    "number_string": _first_digits,
    "kv_retrieval": _word,
    "longbook_sum_eng": lambda text, answers, _: rouge_f(text, answers, "rougeLsum")["rougeLsum"],
    "longbook_choice_eng": _choice,
    "longbook_qa_eng": lambda text, answers, _: metrics.token_f1(text, answers, variant="longbench"),
    "longbook_qa_chn": lambda text, answers, _: character_f1_zh(text, answers),
    "longdialogue_qa_eng": _name,
    "math_find": _first_number,
    "math_calc": _values_in_order,
    "code_run": _last_number,
    "code_debug": _debug,
}
"""compute_scores.py, get_score_one: prediction, answers and the sample's metadata -> 0 to 1."""
TASKS: dict[str, Callable[..., Task]] = {f"infinitebench_{name}": partial(InfiniteBench, dataset=name) for name in SETS}
