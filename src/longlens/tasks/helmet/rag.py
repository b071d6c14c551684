"""HELMET's RAG: short questions on retrieved passages, ``helmet_nq``, ``_triviaqa``, ``_hotpotqa`` and ``_popqa``.

Paper: HELMET, arXiv 2410.02694. Prompt, demonstrations and metric: ``load_qa`` and ``default_post_process`` in data.py
of princeton-nlp/HELMET at 4526dfb, MIT; settings: configs/rag.yaml, scripts/generate_configs.py. Data: HELMET's own
files, a data set on the hub as one archive (scripts/download_data.sh), made of KILT (MIT), Natural Questions (CC BY-SA
3.0), TriviaQA (Apache-2.0), HotpotQA (CC BY-SA 4.0), PopQA (MIT) and Wikipedia (CC BY-SA); the right passage of a
question stands at 6 depths in as many rows, 3 for HotpotQA. Metric: ``substring_exact_match``, best of the raw and the
parsed reply. Known differences:

- Which questions are asked, and which two show how to answer, is drawn otherwise: HELMET draws with Python's global
  random numbers and with the shuffle of datasets. A question's demonstrations depend on it alone in both.
- A reply ends at the first line end, as configs/rag.yaml wants with ``stop_new_line``. HELMET's arguments.py does not
  know this name (it is ``stop_newline`` there), so its code writes on for 20 tokens, and an answer there counts.
- HotpotQA's yes and no are not looked for in the passages (`Sample.answer_spans`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from longlens.tasks.base import Sample, Task
from longlens.tasks.data import DataFile
from longlens.tasks.helmet.lengths import by_length
from longlens.tasks.helmet.passages import Asked, PassageTask
from longlens.tasks.helmet.questions import QUESTIONS
from longlens.tasks.helmet.replies import best_scores

SOURCE = "the hub's data set princeton-nlp/HELMET, data.tar.gz, folder data/kilt"
SCHEMA = "a line a question, with question, answers[], ctxs[] of title and text, and an id if there is one"


@dataclass(frozen=True, kw_only=True, slots=True)
class Kilt:
    """A data set.

    Attributes:
        asked: Name of the file of questions, with ``{passages}``.
        shown: Name of the file of demonstrations.
        depths: Rows of each question.
        popularity: Below it has to be the decimal logarithm of a row's s_pop.
    """

    asked: str
    shown: str
    depths: int
    popularity: float | None = None

    def named(self, name: str) -> DataFile:
        """A file of it."""
        schema = SCHEMA if self.popularity is None else f"{SCHEMA}, and a number s_pop"
        return DataFile(names=(f"kilt/{name}", name), source=SOURCE, schema=schema)


# generate_configs.py, kilt_*: test_files and demo_files
NQ = Kilt(
    asked="nq-dev-multikilt_1000_k{passages}_dep6.jsonl",
    shown="nq-train-multikilt_1000_k3_dep6.jsonl",
    depths=6,
)
TRIVIAQA = Kilt(
    asked="triviaqa-dev-multikilt_1000_k{passages}_dep6.jsonl",
    shown="triviaqa-train-multikilt_1000_k3_dep6.jsonl",
    depths=6,
)
HOTPOTQA = Kilt(
    asked="hotpotqa-dev-multikilt_1000_k{passages}_dep3.jsonl",
    shown="hotpotqa-train-multikilt_1000_k3_dep3.jsonl",
    depths=3,
)
POPQA = Kilt(
    asked="popqa_test_1000_k{passages}_dep6.jsonl",
    shown="popqa_test_1000_k3_dep6.jsonl",
    depths=6,
    popularity=3,  # generate_configs.py, kilt_popqa: "name_postfix": "_3"
)


@dataclass(frozen=True, kw_only=True)
class RetrievedQA(PassageTask):
    """A short question on retrieved passages.

    Attributes:
        kilt: The data.
    """

    kilt: Kilt

    category = "rag"
    metric = "substring_exact_match"
    max_new_tokens = 20  # rag.yaml: generation_max_length
    sizes = by_length(20, 50, 105, 220, 440, 1000)  # generate_configs.py, kilt_*
    # data.py, load_qa
    instruction = (
        "Use the given documents to write a concise and short answer to the question. Write your answer in the "
        "following format:\nAnswer: [answer]\n\n"
    )
    asks = "Question: "
    prefix = "\nAnswer:"

    @property
    def default_samples(self) -> int:
        """All rows of a hundred questions, as HELMET."""
        return QUESTIONS * self.kilt.depths

    def file(self, passages: int) -> DataFile:
        """The questions with so many passages each."""
        return self.kilt.named(self.kilt.asked.format(passages=passages))

    @property
    def shown_file(self) -> DataFile:
        """The demonstrations."""
        return self.kilt.named(self.kilt.shown)

    def key(self, file: DataFile, row: Mapping[str, Any], place: str) -> str | None:
        """The row's id, else its question; None where PopQA's entity is too well known."""
        if self.kilt.popularity is not None:
            popularity = row.get("s_pop")
            if not isinstance(popularity, (int, float)) or not popularity > 0:
                raise file.wrong(place, f"s_pop is {popularity!r}")
            if not math.log10(popularity) < self.kilt.popularity:
                return None
        return file.get(row, "question", str, place) if row.get("id") is None else str(row["id"])

    def read(self, file: DataFile, row: Mapping[str, Any], place: str) -> Asked:
        """A row, checked."""
        answers = file.get(row, "answers", list, place)
        passages = [
            f"Document (Title: {file.get(one, 'title', str, place)}): {file.get(one, 'text', str, place)}"
            for one in file.get(row, "ctxs", list, place)
        ]
        if not passages or not answers or not all(isinstance(answer, str) for answer in answers):
            raise file.wrong(place, "answers or ctxs are empty, or an answer is no text")
        return Asked(
            question=file.get(row, "question", str, place),
            passages=passages,
            shown=answers[0],
            answers=answers,
            metadata={"depth": row["depth"]} if "depth" in row else {},
        )

    def evidence(self, asked: Asked, context: str) -> list[tuple[int, int]]:
        """Answers as words of the context; of those that overlap the longest one."""
        return found(context, [answer for answer in asked.answers if answer.lower() not in ("yes", "no")])

    def target(self, sample: Sample) -> str:
        """The first answer, which is what demonstrations give; the others are right too."""
        return f" {sample.answers[0]}"

    def score(self, sample: Sample, prediction: str) -> dict[str, float]:
        """HELMET's main metric, and whether the parsed reply is an answer and nothing else."""
        return best_scores(prediction, sample.answers, "substring_exact_match", "exact_match")


TASKS: dict[str, Callable[..., Task]] = {
    "helmet_nq": partial(RetrievedQA, kilt=NQ),
    "helmet_triviaqa": partial(RetrievedQA, kilt=TRIVIAQA),
    "helmet_hotpotqa": partial(RetrievedQA, kilt=HOTPOTQA),
    "helmet_popqa": partial(RetrievedQA, kilt=POPQA),
}


def found(text: str, answers: Sequence[str]) -> list[tuple[int, int]]:
    """``[start, end)`` of each answer where it stands as words; of spans that overlap the first and longest one."""
    spans = {
        match.span()
        for answer in answers
        if answer.strip()
        for match in re.finditer(re.escape(answer), text)
        if not _inside_word(text, *match.span())
    }
    chosen: list[tuple[int, int]] = []
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if not chosen or start >= chosen[-1][1]:
            chosen.append((start, end))
    return chosen


def _inside_word(text: str, start: int, end: int) -> bool:
    return any(0 < place < len(text) and (text[place - 1] + text[place]).isalnum() for place in (start, end))
