"""Builds BAMBOO: QA, hallucination, sorting and next-speaker tasks on papers, meetings, reports and plays, 4k and 16k.

Paper: Dong et al., BAMBOO: A Comprehensive Benchmark for Evaluating Long Text Modeling Capacities of Large Language
Models, arXiv 2309.13345. Data: ``datasets/`` of RUCAIBox/BAMBOO at f230f20, MIT, read as published: two rows of
paperqa_4k.jsonl contain control characters that JSON does not allow, and upstream's own script stops there. Prompts:
``prompt.json``. Numbering of events and paragraphs, and answer tokens: ``run_for_transformers.py``. Scores:
``evaluate.py``. Sample i is row i. Known differences:

- private_eval is not included: its score executes the code that the model generates.
- Field names are those of the published files; upstream's script reads fields that the files no longer have.
- Upstream samples answers at temperature 0.7; longlens decodes greedily, so that runs are reproducible.
- An empty answer is wrong in meetingqa and paperqa; upstream fails there.
- Upstream does not truncate prompts; here a prompt that is too long is rejected unless ``overlong=`` is set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations

from longlens.tasks.base import Sample, Task
from longlens.tasks.data import DataFile
from longlens.tasks.fitting import Draft
from longlens.tasks.rows import DataRow, Subset, SubsetTask, letter_of, other_letters

MAX_NEW_TOKENS = 32  # run_for_transformers.py, generate: max_new_tokens=32
SIZES = ("4k", "16k")
_CHOOSE = (
    "You are given an article or a long dialogue, a multiple-choice question with four optional answer(marked by A, B, "
    "C, D). Please choose the best answer to the question based on the given content by responsing its corresponding "
    "letter (either A, B, C, or D). Do not provide any explanation.\n\nArticle: ```{context}```\n\n"
    "Question: {question}\nOptions: {options}"
)
_SPEAKER = (
    "I want you to act as a long dialogue completer. Given a long dialogue, your objective is to add one speaker "
    "mentioned in the past dialogue at the end of the last sentence to complete the sentence and ensure its semantic "
    "integrity. At here, the added word must be a person's name which appears in the dialogue.\n\n{context}"
)
_ENTAILED = (
    "You are given an NLP paper and a hypothesis. Your task is to identify if the hypothesis is right according to the "
    'paper. If the hypothesis is entailed by the paper, response "Yes.". If the hypothesis is contradict to the paper '
    'or has any hallucination, response "No.".\nPaper: ```{context}```\nHypothesis: ```{hypothesis}```'
)
_FORMAT = (
    "identifiers, and the first {thing} in original order should be list first, and the output format should be [] > "
    "[], e.g., [0] > [2]. Only response the reorder results, do not say any word or explain."
)
QUESTIONS, SPEAKERS, HALLUCINATION, SORTING = "question answering", "language modeling", "hallucination", "sorting"


def _subset(category: str, metric: str, prompt: str, prefix: str) -> Subset:
    return Subset(prompt=prompt, prefix=prefix, metric=metric, max_new_tokens=MAX_NEW_TOKENS, category=category)


_CHOICE = _subset(
    QUESTIONS, "accuracy", _CHOOSE, "\n\nAnswer(Only give the corresponding letter (either A, B, C, or D)): "
)
_NEXT = _subset(
    SPEAKERS, "accuracy", _SPEAKER, "\n\nPredicted speaker of the last conversation (only the name of speaker): "
)
_TRUE = replace(_subset(HALLUCINATION, "f1", _ENTAILED, '\nAnswer ("Yes." or "No."):'), joint=True)
SETS: dict[str, Subset] = {
    "altqa": _subset(
        QUESTIONS,
        "accuracy",
        "{context}\n\nYou should only give an number as the answer, without any explanations and other words.",
        "\nAnswer: ",
    ),
    "meetingqa": _CHOICE,
    "paperqa": _CHOICE,
    "meetingpred": _NEXT,
    "showspred": _NEXT,
    "senhallu": _TRUE,
    "abshallu": _TRUE,
    "reportsumsort": _subset(
        SORTING,
        "concordance_index",
        "Given a long text, and 5 events which take place in the long text, each indicated by number identifier [] "
        "that represents the shuffled order, (e.g. [0], [2], etc.). Reorder the events according to the original order "
        "of the events in the long text. The events should be listed in descending order using "
        f"{_FORMAT.replace('{thing}', 'event')}\n\nLong text:\n{{context}}\nEvents: {{events}}",
        "\n\nGive the reorder results, only give the ordered identifiers of the five events [] > [] > [] > [] > []: ",
    ),
    "showssort": _subset(
        SORTING,
        "concordance_index",
        "You are given 5 paragraphs in a chapter of a book in a shuffled order, each indicated by number identifier [] "
        "that represents the shuffled order, (e.g. [0], [2], etc.). Reorder the chapters according to the original "
        "order of chapters in the book. The chapters should be listed in descending order using "
        f"{_FORMAT.replace('{thing}', 'chapters')}\n\nChapters:\n{{context}}",
        "\n\nGive the original order of the paragraphs before being shuffled, only give the ordered identifiers "
        "[] > [] > [] > [] > []: ",
    ),
}
"""Datasets by upstream's name; each exists at each of `SIZES`."""


@dataclass(frozen=True, kw_only=True)
class Bamboo(SubsetTask):
    """A dataset of BAMBOO.

    Attributes:
        dataset: A key of `SETS`, ``_`` and one of `SIZES`.
    """

    suite = "bamboo"
    overlong = "error"

    @property
    def kind(self) -> str:
        """Name of the dataset without its size."""
        return self.dataset.rpartition("_")[0]

    @property
    def facts(self) -> Subset:
        """BAMBOO's definition of the dataset."""
        return SETS[self.kind]

    @property
    def file(self) -> DataFile:
        """The file of the dataset."""
        return DataFile(
            names=(f"{self.dataset}.jsonl", f"datasets/{self.dataset}.jsonl"),
            source="datasets of github.com/RUCAIBox/BAMBOO",
            schema=f"rows with content, answer{_FIELDS.get(self.kind, '')}",
            raw_controls=True,
        )

    def draft(self, row: DataRow, key: tuple[int, int]) -> Draft:
        """The draft of the row's prompt."""
        fields: dict[str, str] = {}
        metadata: dict[str, object] = {}
        kind = bool if self.category == HALLUCINATION else list if self.category == SORTING else str
        answer = self.file.get(row.values, "answer", kind, row.place)
        if self.facts is _CHOICE:
            options = self.texts(row, "options")
            answer = letter_of(self, row, answer, options)
            fields = {"question": self.text(row, "question"), "options": "\t".join(options)}
            metadata["distractors"] = other_letters(answer)
        elif self.category == HALLUCINATION:
            fields = {"hypothesis": self.text(row, "hypothesis")}
            answer, other = ("Yes.", "No.") if answer else ("No.", "Yes.")
            metadata["distractors"] = [other]
        elif self.category == SORTING:
            answer = " > ".join(f"[{number}]" for number in self.texts(row, "answer", int))
        if self.kind == "reportsumsort":
            events = enumerate(self.texts(row, "summaries"), start=1)
            fields = {"events": "\n".join(f"[{number}] ```{event}```" for number, event in events)}
        if self.kind == "showssort":
            content = "\n".join(f"[{n}] ```{part}```" for n, part in enumerate(self.texts(row, "content")))
        else:
            content = self.text(row, "content")
        return self.fill(metadata, [answer], context=content, **fields)

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """The dataset's score; for hypotheses whether the reply, the truth, and both are "yes"."""
        answer = sample.answers[0]
        if self.category == HALLUCINATION:
            said, true = "yes" in prediction.strip()[:3].lower(), answer == "Yes."
            return {"accuracy": float(said == true), "says_yes": float(said), "is_true": float(true)} | {
                "both": float(said and true)
            }
        if self.category == SORTING:
            return {self.metric: concordance_index(prediction, answer)}
        if self.facts is _CHOICE:
            return {self.metric: float(prediction.strip()[:1].upper() == answer)}
        if self.category == SPEAKERS:
            prediction = prediction.split("\n")[0]
        return {self.metric: float(_bare(prediction) == _bare(answer))}

    def aggregate(self, scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Means in percent; for hypotheses the precision, recall and F1 of "yes" over all samples, and the accuracy.

        Raises:
            UserError: The list of scores is empty.
        """
        means = super().aggregate(scores)
        if self.category != HALLUCINATION:
            return means
        said, true, both = (sum(row[name] for row in scores) / len(scores) for name in ("says_yes", "is_true", "both"))
        return {
            "f1": 200 * both / (said + true) if both else 0.0,
            "precision": 100 * both / said if both else 0.0,
            "recall": 100 * both / true if both else 0.0,
            "accuracy": means["accuracy"],
        }


_FIELDS = {
    "meetingqa": ", question and options (a list)",
    "paperqa": ", question and options (a list)",
    "senhallu": " (true or false) and hypothesis",
    "abshallu": " (true or false) and hypothesis",
    "reportsumsort": " (a list of numbers) and summaries (a list)",
    "showssort": " (a list of numbers); content is a list",
}


def _bare(text: str) -> str:
    return text.strip().strip(".").lower()


def concordance_index(prediction: str, answer: str) -> float:
    """Fraction of the answer's pairs of numbers that the prediction has in the same order; 0 if the counts differ.

    If the smallest number of the prediction is 1, its numbers are taken as 1-based.

    Source: ``evaluate.py``, `concordinary_index`.
    """
    given, wanted = ([int(digits) for digits in re.findall(r"\d{1,9}", text)] for text in (prediction, answer))
    if len(given) != len(wanted):
        return 0.0
    first = 1 if min(given, default=0) == 1 else 0
    pairs = set(combinations(wanted, 2))
    return len(pairs & {(a - first, b - first) for a, b in combinations(given, 2)}) / len(pairs) if pairs else 0.0


TASKS: dict[str, Callable[..., Task]] = {
    f"bamboo_{name}_{size}": partial(Bamboo, dataset=f"{name}_{size}") for name in SETS for size in SIZES
}
