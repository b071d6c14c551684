"""Builds SCROLLS and ZeroSCROLLS: summaries, QA, inference and sorting on reports, meetings, papers, books and plays.

Papers: Shaham et al., SCROLLS: Standardized CompaRison Over Long Language Sequences, arXiv 2201.03533; Shaham et al.,
ZeroSCROLLS: A Zero-Shot Benchmark for Long Text Understanding, arXiv 2305.14196. Data: the ZIP files of the Hub
datasets tau/scrolls and tau/zero_scrolls, read as published; rows with the same ``id`` are one question with several
answers. Scores: ``metrics/`` of both datasets (tau/zero_scrolls at 9af1d79). Code: tau-nlp/scrolls at bfc0da0 and
tau-nlp/zero_scrolls at c994676, MIT.

**Split.** The validation split, unless ``split="test"``: answers of test splits are hidden, except for a few datasets
of ZeroSCROLLS whose files include them. ZeroSCROLLS' validation split has about 20 rows per dataset, "meant for
eyeballing"; published numbers are of the test split, from the leaderboard's site.

SCROLLS trains models on its datasets and has no prompts. The prompts here are those of lm-evaluation-harness (0.4.13,
``tasks/scrolls/task.py``), whose own task no longer loads. In quality and contract_nli the prompt also contains the
choices, because the model has to write one. Answers end at a line end, as there.

ZeroSCROLLS' rows contain their prompts, up to the beginning of the answer; the end of a text that is too long is
removed, as upstream. Known difference: its F1 converts letters to ASCII with the package unidecode; here accents are
removed, and other letters are kept.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any

from longlens.errors import UserError, shown_value
from longlens.tasks import metrics
from longlens.tasks.base import Sample, Task
from longlens.tasks.data import DataFile, HubTask
from longlens.tasks.fitting import Draft
from longlens.tasks.rows import GEOMETRIC, DataRow, Subset, SubsetTask, other_letters, rouge_scores, with_geometric_mean

SPLITS = ("validation", "test")
SUMMARY, QUESTIONS, INFERENCE, AGGREGATION = "summarization", "QA", "NLI", "aggregation"
CONCLUSIONS = ("Not mentioned", "Entailment", "Contradiction")

_SUMMARIZE = "{context}\n\nQuestion: What is a summary of the preceding text?"
_ASK = "{context}\n\nQuestion: {question}"


def _summaries(tokens: int, prompt: str = "", prefix: str = "") -> Subset:
    stop = ("\n",) if prompt else ()
    return Subset(
        prompt=prompt,
        prefix=prefix,
        metric=GEOMETRIC,
        joint=True,
        max_new_tokens=tokens,
        category=SUMMARY,
        stop=stop,
    )


def _answers(metric: str, tokens: int, prompt: str = "", prefix: str = "", category: str = QUESTIONS) -> Subset:
    stop = ("\n",) if prompt else ()
    return Subset(prompt=prompt, prefix=prefix, metric=metric, max_new_tokens=tokens, category=category, stop=stop)


# SCROLLS does not define answer tokens: those of ZeroSCROLLS for the same data, but more if the answer is an option.
SETS: dict[str, Subset] = {
    "gov_report": _summaries(1024, _SUMMARIZE, "\nAnswer:"),
    "summ_screen_fd": _summaries(512, _SUMMARIZE, "\nAnswer:"),
    "qmsum": _summaries(512, _ASK, "\nAnswer:"),
    "narrative_qa": _answers("f1", 64, _ASK, "\nAnswer:"),
    "qasper": _answers("f1", 128, _ASK, "\nAnswer:"),
    "quality": _answers("exact_match", 128, f"{_ASK}\n{{options}}", "\nAnswer:"),
    "contract_nli": _answers(
        "exact_match",
        16,
        f"{{context}}\n\nHypothesis: {{question}}\n{', '.join(CONCLUSIONS[:-1])} or {CONCLUSIONS[-1]}?",
        "\nConclusion:",
        INFERENCE,
    ),
}
"""SCROLLS' datasets; metrics: ``DATASET_TO_METRICS`` of metrics/scrolls.py."""

# experiments/api/api.py, dataset_to_leave_tokens_for_generations
ZERO_SETS: dict[str, Subset] = {
    "gov_report": _summaries(1024),
    "summ_screen_fd": _summaries(512),
    "qmsum": _summaries(512),
    "squality": _summaries(512),
    "qasper": _answers("f1", 128),
    "narrative_qa": _answers("f1", 64),
    "quality": _answers("accuracy", 10),
    "musique": _answers("f1", 32),
    "space_digest": _answers("exp_similarity", 36, category=AGGREGATION),
    "book_sum_sort": _answers("concordance_index", 256, category=AGGREGATION),
}
"""ZeroSCROLLS' datasets; metrics: ``DATASET_TO_METRICS`` of metrics/zero_scrolls.py."""


@dataclass(frozen=True, kw_only=True)
class Scrolls(HubTask, SubsetTask):
    """A dataset of SCROLLS.

    Attributes:
        dataset: A key of `SETS`.
        split: ``validation``, or ``test`` if its answers are published.
    """

    split: str = "validation"
    sets = SETS
    suite = "scrolls"

    def __post_init__(self) -> None:
        """Checks the split."""
        super().__post_init__()
        if self.split not in SPLITS:
            raise UserError(f"`split` is {shown_value(self.split)}; expected {' or '.join(SPLITS)}")

    @property
    def hub(self) -> str:
        """The Hub dataset."""
        return "tau/scrolls"

    @property
    def file(self) -> DataFile:
        """The file of the split."""
        member = f"{self.dataset}/{self.split}.jsonl"
        return DataFile(
            names=(member, f"{self.dataset}.zip"),
            source=f"the Hub dataset {self.hub}",
            schema="rows with the strings id, input and output",
            hub=f"{self.hub}@{self.dataset}.zip",
            member=member,
        )

    def questions(self, rows: Sequence[DataRow]) -> list[DataRow]:
        """One `DataRow` per ``id``, with all outputs."""
        found: dict[str, DataRow] = {}
        for row in rows:
            output = row.values.get("output")
            if output is None and "output" in row.values:
                raise UserError(
                    f"{row.place}: no output: the answers of this split are not published: use `split=validation`"
                )
            first = found.setdefault(self.text(row, "id"), replace(row, item=[]))
            first.item.append(self.text(row, "output"))
        return list(found.values())

    def draft(self, row: DataRow, key: tuple[int, int]) -> Draft:
        """The draft of the row: the text, then the question, which precedes it in the file."""
        text = self.text(row, "input")
        metadata: dict[str, Any] = {"row_id": self.text(row, "id")}
        fields = {}
        answers = list(dict.fromkeys(row.item))
        if "{question}" in self.facts.prompt:
            question, separator, text = text.partition("\n\n")
            if not separator:
                raise self.file.wrong(row.place, "an input without a blank line after its question")
            fields["question"] = question
        if self.dataset == "quality":
            listed, _, rest = text.partition("(D)")
            last, _, text = rest.partition("\n\n")
            options = [" ".join(option.split()) for option in re.split(r" *\([A-D]\) *", f"{listed}(D){last}")[1:]]
            answers = [" ".join(answer.split()) for answer in answers]
            if not set(answers) <= set(options):
                raise self.file.wrong(row.place, "an output that is not one of the options (A) to (D) in its input")
            fields["options"] = "\n".join(options)
            metadata["distractors"] = [option for option in options if option not in answers]
            text = text.strip()
        elif self.dataset == "contract_nli":
            metadata["distractors"] = [option for option in CONCLUSIONS if option not in answers]
        return self.fill(metadata, answers, context=text, **fields)

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """The dataset's scores, best over the answers."""
        if self.metric == GEOMETRIC:
            return rouge_scores(prediction, sample.answers)
        return {self.metric: max(float(_SCORES[self.metric](prediction, answer)) for answer in sample.answers)}

    def aggregate(self, scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Means in percent; for summaries also ``rouge``, the geometric mean of the three means.

        Raises:
            UserError: The list of scores is empty.
        """
        return with_geometric_mean(super().aggregate(scores))


class ZeroScrolls(Scrolls):
    """A dataset of ZeroSCROLLS."""

    sets = ZERO_SETS
    suite = "zero_scrolls"
    overlong = "context-only"  # run_hf_model.py, process_model_input

    @property
    def hub(self) -> str:
        """The Hub dataset."""
        return "tau/zero_scrolls"

    def draft(self, row: DataRow, key: tuple[int, int]) -> Draft:
        """The draft of the row's own prompt, which ends where its query ends."""
        text, places = self.text(row, "input"), []
        for name in ("document_start_index", "document_end_index", "query_end_index"):
            places.append(int(self.file.get(row.values, name, int, row.place)))
        if not 0 <= places[0] <= places[1] <= len(text) or not 0 <= places[2] <= len(text):
            raise self.file.wrong(row.place, "indexes of document and query that are out of range of its input")
        metadata: dict[str, Any] = {"row_id": self.text(row, "id"), "omission": self.text(row, "truncation_seperator")}
        answers = list(dict.fromkeys(row.item))
        if self.dataset == "quality":
            letter = _letter(answers[0])
            if letter is None:
                raise self.file.wrong(row.place, "an output without a letter A to D")
            answers, metadata["distractors"] = [letter], other_letters(letter)
        return self.make_draft(
            text[: places[2]], text[places[2] :], answers=answers, context=(places[0], places[1]), metadata=metadata
        )

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """The dataset's scores, best over the answers; F1 is computed without accents."""
        if self.metric == "f1":
            sample, prediction = replace(sample, answers=list(map(_plain, sample.answers))), _plain(prediction)
        return super().score(sample, prediction)


def _plain(text: str) -> str:
    return "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))


def _letter(text: str) -> str | None:
    found = re.search(r"\b[A-D]\b", text)
    return None if found is None else found[0]


def _percentage(text: str) -> float | None:
    found = re.search(r"(?<!\d)\d+(?:\.\d*)?%", text)  # upstream's \d+\.?\d*%, in linear time
    return None if found is None else float(found[0][:-1])


def exp_similarity(prediction: str, answer: str) -> float:
    """``0.5 ** (|p - q| / 10)`` for the first percentages in prediction and answer, 0 if the prediction has none.

    Source: ``metrics/exp_similarity.py`` of the Hub's tau/zero_scrolls (space_digest).
    """
    given, wanted = _percentage(prediction), _percentage(answer)
    return 0.0 if given is None or wanted is None else 0.5 ** (abs(given - wanted) / 10)


def _order(text: str) -> list[str]:
    return [word.lstrip("0") for word in re.sub(r"[^0-9\s,]", "", text).replace(",", " ").split()]


def concordance_index(prediction: str, answer: str) -> float:
    """Fraction of pairs of numbers in the same order in prediction and answer; 0 unless both have the same numbers.

    Source: ``metrics/concordance_index.py`` of the Hub's tau/zero_scrolls (book_sum_sort).
    """
    given, wanted = _order(prediction), _order(answer)
    if sorted(given) != sorted(wanted) or len(set(wanted)) != len(wanted):
        return 0.0
    pairs = list(combinations(wanted, 2))
    return sum(given.index(a) < given.index(b) for a, b in pairs) / len(pairs) if pairs else 1.0


_SCORES: dict[str, Callable[[str, str], float]] = {
    "f1": lambda prediction, answer: metrics.token_f1(prediction, answer, variant="longbench"),
    "exact_match": metrics.exact_match,
    "accuracy": lambda prediction, answer: float(_letter(prediction) == _letter(answer)),
    "exp_similarity": exp_similarity,
    "concordance_index": concordance_index,
}
TASKS: dict[str, Callable[..., Task]] = {
    **{f"scrolls_{name}": partial(Scrolls, dataset=name) for name in SETS},
    **{f"zero_scrolls_{name}": partial(ZeroScrolls, dataset=name) for name in ZERO_SETS},
}
